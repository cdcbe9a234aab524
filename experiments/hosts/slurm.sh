#!/usr/bin/env bash
# Slurm: a process for every GPU of two hosts. In the repository, whose .venv all hosts can see:
#
#   sbatch experiments/hosts/slurm.sh --config=experiments/configs/video_folder.py \
#     --workdir=SHARED_DIR --config.execution=auto --config.data.path=SHARED_DIR
#
#SBATCH --job-name=sideways
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4   # The GPUs of a host: JAX gives process n of a host its GPU n ...
#SBATCH --gpus-per-node=4     # ... and has to see all of them; not so with --gpus-per-task.
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120     # Two minutes before the end the run is saved.
#SBATCH --requeue             # The same job again goes on from there.
#SBATCH --open-mode=append
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
# shellcheck disable=SC1091
. "${VENV:-.venv}/bin/activate"

# --distributed: JAX reads the number of this process and the name of the first host from Slurm.
exec srun --kill-on-bad-exit=1 python experiments/main.py --distributed "$@"
