"""Learns to reconstruct a stream while it plays, and writes the outputs into a video.

These are the internals of `experiments/live.py`.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import jax
import numpy as np
from rich.console import Console
from rich.live import Live

from data import BadVideo, Streams, default_config, load_streams
from experiments.jobs.autoencoding import report, rules
from experiments.processes import interrupts
from sideways_jax import Network, models
from sideways_jax.models.autoencoder import squared_error
from sideways_jax.training.paper_optimizer import make_optimizer

# What docs/online.md found best: the learning rate, and whether activations are normalised.
# Gradient descent, which remembers nothing, was the best of all.
OPTIMIZERS = {"sgd": (0.3, False), "adam": (1e-3, True)}
LINE_EVERY = 100  # frames between two lines, where there is no terminal
MEMORY = 0.98  # of the running means


class Settings(NamedTuple):
    """The source, the learning and the new video."""

    source: str  # a video file, a camera, or an address
    out: Path  # the new video
    rule: str
    frames: int  # to stop after; 0: at the end of the source
    repeat: bool  # play a file over and over
    size: int  # height and width, pixels
    optimizer: str  # one of OPTIMIZERS
    learning_rate: float | None  # None: the optimizer's own
    stride: int  # every how many-th frame of the source is taken
    fps: int  # frames a second of the new video
    seed: int  # of the weights


class Seen(NamedTuple):
    """How it went."""

    frames: int = 0
    frames_per_second: float = 0.0
    lag: float = float("nan")  # steps, running mean
    # Mean square against the frame of now, black 0 and white 1, running mean.
    error: float = float("nan")
    signal_number: int | None = None  # what ended it, of Ctrl-C and SIGTERM

    def __str__(self) -> str:
        return (
            f"{self.frames_per_second:.3g} frames/s  lag {self.lag:.1f}  error {self.error:.4f}"
        )  # fmt: skip


def watch(settings: Settings, console: Console) -> Seen:
    """Learns from the source until it ends, or Ctrl-C.

    Raises:
      BadVideo: if there is no such source. When one fails after it has shown something, that is
        said and the video so far is finished; then the error is raised.
      ValueError: for a source with fewer frames than modules, another file type, or an error that
        is not finite.
    """
    network = models.autoencoder(
        widths=(16, 32, 32, 64, 128), normalise=OPTIMIZERS[settings.optimizer][1]
    )
    if 0 < settings.frames < network.depth:
        raise ValueError(
            f"--frames={settings.frames} is too few: the first output comes with frame "
            f"{network.depth}"
        )
    config = default_config("video_file")
    config.path, config.size, config.stride = settings.source, settings.size, settings.stride
    config.repeat = settings.repeat
    asked = interrupts.Asked(notice="", again="Stopped before the video was finished.")
    # `asked` ends last: the video is finished meanwhile.
    with contextlib.ExitStack() as listening, contextlib.ExitStack() as stack:
        streams = stack.enter_context(
            contextlib.closing(load_streams(config, seed=settings.seed, split="all"))
        )
        batches = itertools.chain(_first(streams, settings, network.depth), streams)
        batch = next(batches, None)
        if batch is None:
            raise ValueError(f"{streams.name} has no frames")
        learn = _learner(settings, network)
        write = stack.enter_context(
            new_video(settings.out, settings.size, settings.fps, Path(settings.source))
        )
        live = stack.enter_context(Live(console=console)) if console.is_terminal else None
        seen, started = Seen(), None
        while batch is not None and not (0 < settings.frames <= seen.frames):
            frame = batch["frames"][0]
            painted, shown_frame = learn(batch)
            lag, error = _judge(settings, seen.frames, frame, painted, shown_frame)
            write(np.concatenate([frame, report.as_uint8(painted, (0, 1))], axis=1))
            if started is None:  # The first step was compiled.
                started = time.perf_counter()
                listening.enter_context(asked)
            speed = seen.frames / max(time.perf_counter() - started, 1e-9)
            seen = Seen(seen.frames + 1, speed, _mean(seen.lag, lag), _mean(seen.error, error))
            if live is not None:
                live.update(f"frame {seen.frames}  {seen}")
            elif seen.frames % LINE_EVERY == 0:
                console.print(f"frame {seen.frames}  {seen}", highlight=False)
            try:
                with asked.interrupting():  # A camera may have no frame for ever.
                    batch = next(batches, None)
            except KeyboardInterrupt:
                return seen._replace(signal_number=asked.number)
            except BadVideo as failure:
                raise BadVideo(
                    failure.path, f"{failure.reason}. {seen.frames} frames so far: {settings.out}"
                ) from failure
        if batch is None and seen.frames < network.depth:
            raise ValueError(_too_short(streams.name, seen.frames, settings.stride, network.depth))
    return seen


def _first(streams: Streams, settings: Settings, depth: int) -> list[dict]:
    """The first D batches of a file, as one that is too short fails before anything is compiled.

    Of what is live none: they are worth more when they come.
    """
    if not Path(settings.source).expanduser().is_file():
        return []
    batches = list(itertools.islice(streams, depth))
    resets = [n for n, batch in enumerate(batches) if n and batch["reset"][0]]
    in_a_row = resets[0] if resets else len(batches)
    if batches and in_a_row < depth:
        raise ValueError(_too_short(streams.name, in_a_row, settings.stride, depth))
    return batches


def _too_short(name: str, frames: int, stride: int, depth: int) -> str:
    has, advice = f"has {frames} frame{'s' * (frames != 1)}", "give a longer video"
    if stride > 1:
        has, advice = f"{has} at --stride={stride}", "set it to less"
    return f"{name} {has}, and the first output comes with frame {depth}: {advice}"


def _learner(settings: Settings, network: Network) -> Callable[[dict], tuple[np.ndarray, int]]:
    """Learns from a batch of one frame; gives what is painted `[H, W, 3]`, and of which frame."""
    tx = make_optimizer(
        settings.optimizer, _learning_rate(settings),
        steps_per_epoch=1, warmup_epochs=0, drop_epochs=(),
    )  # fmt: skip
    init, train_step = rules.make_learning(settings.rule, network, squared_error(), tx)
    frame = jax.ShapeDtypeStruct((1, settings.size, settings.size, 3), np.uint8)
    train_state = jax.jit(lambda key: init(key, frame))(jax.random.key(settings.seed))
    train_step = jax.jit(train_step, donate_argnums=0)

    def learn(batch):
        nonlocal train_state
        frames = batch["frames"][None]
        train_state, _, outputs = train_step(train_state, frames, frames, batch["reset"][None])
        return np.asarray(outputs.outputs[0, 0]), int(outputs.frames[0, 0])

    return learn


def _judge(
    settings: Settings, now: int, frame: np.ndarray, painted: np.ndarray, shown_frame: int
) -> tuple[int | None, float | None]:
    """The lag, and the error against the frame of now; None while nothing is painted."""
    if shown_frame < 0:
        return None, None
    error = float(np.mean(np.square(painted - frame.astype(np.float32) / 255)))
    if not np.isfinite(error):
        raise ValueError(
            f"after {now} frames the error is {error}: set --learning_rate to less than "
            f"{_learning_rate(settings):g}"
        )
    return now - shown_frame, error


def _learning_rate(settings: Settings) -> float:
    if settings.learning_rate is None:
        return OPTIMIZERS[settings.optimizer][0]
    return settings.learning_rate


def _mean(mean: float, new: float | None) -> float:
    """The running mean; what comes first counts fully, None not at all."""
    if new is None:
        return mean
    return new if mean != mean else MEMORY * mean + (1 - MEMORY) * new


@contextlib.contextmanager
def new_video(
    file: Path, size: int, fps: int, source: Path
) -> Iterator[Callable[[np.ndarray], None]]:
    """Gives a function that adds a frame `[size, 2 size, 3]`; the file is whole at the end.

    Raises:
      ValueError: for another kind of file than .mp4, .mkv, .avi and .gif, or if it is the source.
    """
    suffix = file.suffix.lower()
    codecs = {".mp4": "libx264", ".mkv": "libx264", ".avi": "mpeg4", ".gif": "gif"}
    if suffix not in codecs:
        raise ValueError(f"--out={file} must end in {', '.join(codecs)}")
    if file.exists() and source.exists() and file.samefile(source):
        raise ValueError(f"--out={file} is the source: it would be overwritten")
    file.parent.mkdir(parents=True, exist_ok=True)
    # Not under its name until it is whole.
    unfinished = file.with_name(f".{file.stem}.unfinished{suffix}")
    with contextlib.ExitStack() as stack:
        stack.callback(unfinished.replace, file)
        container = stack.enter_context(av.open(str(unfinished), "w"))
        stream = container.add_stream(codecs[suffix], rate=Fraction(fps))
        stream.width, stream.height = 2 * size, size
        stream.pix_fmt = "rgb8" if suffix == ".gif" else "yuv420p"

        def write(picture):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))

        try:
            yield write
        finally:
            container.mux(stream.encode(None))
