"""Pushes very many frames through a pipelined network, and watches the memory of the process.

python experiments/soak.py --frames=100000

Prints the resident size at intervals; what it is after the first tenth, when everything has been
compiled and allocated, is compared with the end.
"""

import sys
from pathlib import Path

from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

_FRAMES = flags.DEFINE_integer("frames", 100_000, "how many to push", lower_bound=100)
_SIZE = flags.DEFINE_integer("size", 16, "height and width, pixels")


def main(argv: list[str]) -> int:
    """Pushes and prints; fails if the process has grown by more than 1%."""
    del argv
    from experiments.terminal.command_line import quiet

    quiet()
    import jax
    import numpy as np
    import psutil
    from rich.progress import track

    from sideways_jax import models, stream

    network = models.simple_cnn(10, widths=(4, 4, 4, 4, 4))
    frames = np.random.default_rng(0).integers(0, 256, (64, 1, _SIZE.value, _SIZE.value, 3), "u1")
    model = stream.PipelinedModel(network, *network.init(jax.random.key(0), frames[0]))
    process, sizes = psutil.Process(), []
    for n in track(range(_FRAMES.value), "frames"):
        model.push(frames[n % len(frames)])
        if (n + 1) % (_FRAMES.value // 10) == 0:
            sizes.append(process.memory_info().rss)
            print(f"{n + 1:,} frames: {sizes[-1] / 2**20:.1f} MiB resident")
    growth = sizes[-1] / sizes[0] - 1
    print(f"grown by {growth:.2%}; {model.counters.frames_per_second:,.0f} frames/s")
    return int(growth > 0.01)


if __name__ == "__main__":
    app.run(main)
