#!/usr/bin/env bash
# Cloud TPU: the same program on every host of a slice, whose chips JAX joins by itself.
#
#   experiments/hosts/tpu_pod.sh NAME ZONE --config=experiments/configs/video_folder.py \
#     --workdir=SHARED_DIR --config.execution=auto --config.data.path=SHARED_DIR
#
# Every host has the repository in ~/sideways_jax, or in REPOSITORY, with a .venv in which
# `pip install -e '.[experiments,tpu]'` was run.
set -euo pipefail
if (($# < 3)); then
  echo "Usage: $0 NAME ZONE --config=FILE --workdir=SHARED_DIR ..." >&2
  exit 2
fi
name=$1 zone=$2
shift 2
arguments=$(printf ' %q' "$@") # Quoted once more: another shell reads them.

exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="
cd ${REPOSITORY:-sideways_jax} && . .venv/bin/activate &&
exec python experiments/main.py --distributed$arguments"
