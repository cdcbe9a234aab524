"""Writes the network of a run as StableHLO, to be used with JAX alone, without this repository.

python experiments/export.py --workdir=DIR --out=FOLDER

`network.jax` takes frames uint8 [B, size, size, 3], for any B; `pipeline_start.jax` and
`pipeline_step.jax` are depth-parallel inference, one frame of each of `--batch` streams a step;
`network.json` says the size of frames (the middle of frames whose shorter side was resized to
`resize`) and the names of classes.
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.append(os.getcwd())  # For networks and data of the user's own.

import json
from pathlib import Path

from absl import app, flags

_WORKDIR = flags.DEFINE_string("workdir", None, "the directory of the run")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "last", "last, best, or a step")
_OUT = flags.DEFINE_string("out", None, "a folder for the files")
_BATCH = flags.DEFINE_integer("batch", 1, "streams of the pipeline", lower_bound=1)
_PLATFORMS = flags.DEFINE_list("platforms", "cpu,cuda,tpu", "that the files are for")


def main(argv: list[str]) -> int:
    """Writes the files; what a user can get wrong ends in one line."""
    del argv
    from experiments.terminal.command_line import quiet

    quiet()
    import jax
    import numpy as np

    from experiments import trained
    from experiments.jobs.classification.prediction import frame_sizes
    from experiments.workdir.files import write_atomically
    from sideways_jax import export

    folder = Path(_OUT.value)
    try:
        run = trained.load(_WORKDIR.value, _CHECKPOINT.value)
        size = run.config.data.size
        frame = jax.ShapeDtypeStruct((_BATCH.value, size, size, 3), np.uint8)
        learned = run.network, run.params, run.state, frame
        network = export.per_frame(*learned, platforms=_PLATFORMS.value)
        pipeline = export.pipelined(*learned, platforms=_PLATFORMS.value)
        folder.mkdir(parents=True, exist_ok=True)
        files = {"network": network, "pipeline_start": pipeline.start,
                 "pipeline_step": pipeline.step}  # fmt: skip
        for name, exported in files.items():
            (folder / f"{name}.jax").write_bytes(exported.serialize())
    except (ValueError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    says = {
        "size": size,
        "resize": frame_sizes(run.config.data)[1],
        "classes": list(run.classes),
        "average": run.config.eval.average,
        "depth": run.network.depth,
        "batch": _BATCH.value,
        "step": run.step,
        "platforms": _PLATFORMS.value,
    }
    write_atomically(folder / "network.json", json.dumps(says, indent=1) + "\n")
    print(f"written to {folder}")
    return 0


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir", "out"])
    app.run(main)
