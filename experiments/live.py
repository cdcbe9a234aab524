"""Watches a video, or a camera, and learns to paint it while it plays.

python experiments/live.py --source=FILE|CAMERA --out=/tmp/live.mp4

An auto-encoder learns online, one frame a computation step, with Sideways; `--rule=backprop` for
blocking backprop on the same frames. The terminal shows frames per second, the lag of what is
painted, and its error against the frame of now (a running mean). The video that it writes has what
came on the left and what was painted meanwhile on the right. Ctrl-C ends it; what was seen so far
is kept.
"""

from __future__ import annotations

import contextlib
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

_SOURCE = flags.DEFINE_string("source", None, "a video file, or a camera: 0, /dev/video0")
_OUT = flags.DEFINE_string("out", None, "the video that is written: .mp4, .mkv, .avi or .gif")
_RULE = flags.DEFINE_enum("rule", "sideways", ["sideways", "backprop"], "how it learns")
_FRAMES = flags.DEFINE_integer("frames", 0, "stop after so many; 0: at the end, or never")
_REPEAT = flags.DEFINE_bool("repeat", False, "play a file over and over")
_SIZE = flags.DEFINE_integer("size", 64, "height and width, pixels, a multiple of 8")
_RATE = flags.DEFINE_float("learning_rate", 1e-3, "of Adam")
_STRIDE = flags.DEFINE_integer("stride", 1, "take every n-th frame of the source", lower_bound=1)
_FPS = flags.DEFINE_integer("fps", 24, "frames a second of the new video", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "of the weights")
LINE_EVERY = 100  # frames between two lines, where there is no terminal
MEMORY = 0.98  # of the running means


class Seen(NamedTuple):
    """How it went."""

    frames: int
    frames_per_second: float
    lag: float  # steps, running mean
    error: float  # mean square against the frame of now, black 0 and white 1, running mean


def main(argv: list[str]) -> int:
    """Watches until the end; what a user can get wrong ends in one line."""
    del argv
    from experiments.command_line import quiet

    quiet()
    from rich.console import Console

    from data import BadVideo

    console = Console()
    try:
        seen = watch(console)
    except KeyboardInterrupt:
        print("Stopped before the first frame.", file=sys.stderr)
        return 130
    except (BadVideo, ValueError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    console.print(
        f"{_RULE.value}: {seen.frames} frames, {seen.frames_per_second:.3g} frames/s, lag "
        f"{seen.lag:.1f}, error {seen.error:.4f}; written to {_OUT.value}",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
    return 0


def watch(console) -> Seen:
    """Learns from the source that the flags name.

    Raises:
      BadVideo: if there is no such source. When one fails after it has shown something, that is
        said and the video so far is finished; then the error is raised.
    """
    import jax
    import numpy as np
    import optax
    from rich.live import Live

    from data import BadVideo, default_config, load_streams
    from experiments import stream_report, stream_rules
    from sideways_jax import models
    from sideways_jax.models.autoencoder import squared_error

    config = default_config("video_file")
    config.path, config.size, config.stride = _SOURCE.value, _SIZE.value, _STRIDE.value
    config.repeat = _REPEAT.value
    network = models.autoencoder(widths=(16, 32, 32, 64, 128), normalise=True)
    loss_fn = squared_error()
    init, train_step = stream_rules.make_learning(
        _RULE.value, network, loss_fn, optax.adam(_RATE.value)
    )
    with contextlib.ExitStack() as stack:
        streams = stack.enter_context(
            contextlib.closing(load_streams(config, seed=_SEED.value, split="all"))
        )
        first = next(streams, None)
        if first is None:
            raise ValueError(f"{_SOURCE.value} has no frames")
        frame = jax.ShapeDtypeStruct((1, config.size, config.size, 3), np.uint8)
        train_state = jax.jit(lambda key: init(key, frame))(jax.random.key(_SEED.value))
        train_step = jax.jit(train_step, donate_argnums=0)
        write = stack.enter_context(_video(Path(_OUT.value), config.size))
        shows = console.is_terminal
        live = stack.enter_context(Live(console=console)) if shows else None
        stack.enter_context(contextlib.suppress(KeyboardInterrupt))
        seen, started = Seen(0, 0.0, float("nan"), float("nan")), None
        batch = first
        while batch is not None and not (0 < _FRAMES.value <= seen.frames):
            came = batch["frames"]
            train_state, _, outputs = train_step(
                train_state, came[None], came[None], batch["reset"][None]
            )
            painted = np.asarray(outputs.outputs[0, 0])
            of = int(outputs.frames[0, 0])
            lag = seen.frames - of if of >= 0 else None
            error = None
            if lag is not None:
                error = float(np.mean(np.square(painted - came[0].astype(np.float32) / 255)))
                if not np.isfinite(error):
                    raise ValueError(
                        f"after {seen.frames} frames the error is {error}: set --learning_rate to "
                        f"less than {_RATE.value}"
                    )
            write(np.concatenate([came[0], stream_report.as_uint8(painted, (0, 1))], axis=1))
            if started is None:  # The first step was compiled.
                started = time.perf_counter()
            speed = seen.frames / max(time.perf_counter() - started, 1e-9)
            seen = Seen(seen.frames + 1, speed, _mean(seen.lag, lag), _mean(seen.error, error))
            line = (
                f"frame {seen.frames}  {speed:.3g} frames/s  lag {seen.lag:.1f}  "
                f"error {seen.error:.4f}"
            )
            if live is not None:
                live.update(line)
            elif seen.frames % LINE_EVERY == 0:
                console.print(line, highlight=False)
            try:
                batch = next(streams, None)
            except BadVideo as failure:
                raise BadVideo(
                    failure.path, f"{failure.reason}. {seen.frames} frames so far: {_OUT.value}"
                ) from failure
    return seen


def _mean(mean: float, new: float | None) -> float:
    """The running mean; what comes first counts fully, None not at all."""
    if new is None:
        return mean
    return new if mean != mean else MEMORY * mean + (1 - MEMORY) * new


@contextlib.contextmanager
def _video(file: Path, size: int):
    """Gives a function that adds a frame `[size, 2 size, 3]`; the file is whole at the end."""
    import av

    suffix = file.suffix.lower()
    codecs = {".mp4": "libx264", ".mkv": "libx264", ".avi": "mpeg4", ".gif": "gif"}
    if suffix not in codecs:
        raise ValueError(f"--out={file} must end in {', '.join(codecs)}")
    if file.exists() and Path(_SOURCE.value).exists() and file.samefile(_SOURCE.value):
        raise ValueError(f"--out={file} is the source: it would be overwritten")
    file.parent.mkdir(parents=True, exist_ok=True)
    # Not under its name until it is whole.
    unfinished = file.with_name(f".{file.stem}.unfinished{suffix}")
    with contextlib.ExitStack() as stack:
        stack.callback(unfinished.replace, file)
        container = stack.enter_context(av.open(str(unfinished), "w"))
        stream = container.add_stream(codecs[suffix], rate=Fraction(_FPS.value))
        stream.width, stream.height = 2 * size, size
        stream.pix_fmt = "rgb8" if suffix == ".gif" else "yuv420p"

        def write(picture):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))

        try:
            yield write
        finally:
            container.mux(stream.encode(None))


if __name__ == "__main__":
    flags.mark_flags_as_required(["source", "out"])
    app.run(main)
