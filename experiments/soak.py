"""Sends very many frames through a network that lives on a stream, and watches the memory.

python experiments/soak.py --what=inference --frames=1000000 --minutes=20
python experiments/soak.py --what=training --frames=1000000 --minutes=20

`inference` is `stream.PipelinedModel`, `training` an auto-encoder that learns online, at every
frame. Prints the resident size of the process at intervals; what it is after the first tenth, when
everything has been compiled and allocated, is compared with the end. docs/reliability.md has what
was measured.
"""

import os
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from absl import app, flags

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

_WHAT = flags.DEFINE_enum("what", "inference", ["inference", "training"], "what takes the frames")
_FRAMES = flags.DEFINE_integer("frames", 100_000, "how many at most", lower_bound=100)
_MINUTES = flags.DEFINE_float("minutes", 60.0, "how long at most", lower_bound=0.001)
_SIZE = flags.DEFINE_integer("size", 16, "height and width, pixels; training: multiples of 8")
PARTS = 20  # into which frames and minutes are divided, for a look at the memory after each
ALLOWED = 0.01  # relative growth after the first tenth


class Look(NamedTuple):
    """At the memory of this process."""

    frames: int  # so far
    resident: float  # MiB


def main(argv: list[str]) -> int:
    """Sends and prints; 1 if the process has grown by more than `ALLOWED`."""
    del argv
    from experiments.terminal.command_line import quiet

    quiet()
    start = time.monotonic()
    take = {"inference": _inference, "training": _training}[_WHAT.value](_SIZE.value)
    looks = watch(take, _FRAMES.value, 60 * _MINUTES.value)
    seconds = time.monotonic() - start
    early = next(look for look in looks if look.frames >= looks[-1].frames / 10)
    growth = looks[-1].resident / early.resident - 1
    print(
        f"{looks[-1].frames:,} frames in {seconds:,.0f} s: {early.resident:.1f} MiB after "
        f"{early.frames:,}, {looks[-1].resident:.1f} MiB at the end ({growth:+.2%}): "
        f"{slope([look for look in looks if look.frames >= early.frames]):+.3f} MiB for a million"
    )
    return int(growth > ALLOWED)


def watch(take: Callable[[int], object], frames: int, seconds: float) -> list[Look]:
    """Calls `take(n)` for the n-th frame until either is over; looks at the memory meanwhile."""
    import psutil

    process, looks, start = psutil.Process(), [], time.monotonic()
    next_look = 0.0  # the share of frames or of time, whichever is larger
    for n in range(1, frames + 1):
        take(n)
        passed = max(n / frames, (time.monotonic() - start) / seconds)
        if passed >= next_look or n == frames:
            next_look = passed + 1 / PARTS
            looks.append(Look(n, process.memory_info().rss / 2**20))
            print(f"{n:,} frames: {looks[-1].resident:.1f} MiB", flush=True)
        if passed >= 1.0:
            break
    return looks


def slope(looks: list[Look]) -> float:
    """MiB for a million frames more, by least squares; 0 for a single look.

    >>> slope([Look(0, 100.0), Look(500_000, 101.0), Look(1_000_000, 102.0)])
    2.0
    """
    frames = [look.frames / 1e6 for look in looks]
    middle = sum(frames) / len(frames)
    spread = sum((x - middle) ** 2 for x in frames)
    with_memory = sum((x - middle) * look.resident for x, look in zip(frames, looks, strict=True))
    return with_memory / spread if spread else 0.0


def _inference(size: int) -> Callable[[int], object]:
    import jax

    from sideways_jax import models, stream

    network = models.simple_cnn(10, widths=(4, 4, 4, 4, 4))
    frames = _frames(size)
    model = stream.PipelinedModel(network, *network.init(jax.random.key(0), frames[0]))
    return lambda n: model.push(frames[n % len(frames)])


def _training(size: int) -> Callable[[int], object]:
    import jax
    import numpy as np
    import optax

    from sideways_jax import models, step
    from sideways_jax.models.autoencoder import squared_error

    network = models.autoencoder(widths=(4, 4, 4, 4, 4))
    init, train_step = step.make_train_step(
        network, squared_error(), optax.sgd(0.1), update_every=1, with_outputs=True
    )
    frames = _frames(size)
    train_state = jax.jit(lambda key: init(key, frames[0]))(jax.random.key(0))
    train_step = jax.jit(train_step, donate_argnums=0)
    reset = np.zeros((1, 1), bool)

    def take(n):
        nonlocal train_state
        frame = frames[n % len(frames)][None]
        train_state, metrics, outputs = train_step(train_state, frame, frame, reset)
        return float(metrics["loss"]), np.asarray(outputs.outputs)

    return take


def _frames(size: int):
    """`[64, 1, size, size, 3]`: 64 frames, of one stream."""
    import numpy as np

    return np.random.default_rng(0).integers(0, 256, (64, 1, size, size, 3), "u1")


if __name__ == "__main__":
    app.run(main)
