"""What a trained auto-encoder paints while a video plays, with constant weights."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from data import NO_VIDEOS, BadVideo, default_config, is_live, load_streams, video_files
from experiments.jobs.autoencoding import report, rules
from experiments.jobs.autoencoding.chunks import Chunks
from experiments.jobs.autoencoding.painting import new_video
from experiments.jobs.autoencoding.score import Scores, StreamScore
from sideways_jax import Network

FPS = 24  # of the new videos


class Painted(NamedTuple):
    """Of one source; or why there is nothing."""

    source: str
    out: Path | None = None  # the new video: what came on the left, what was painted on the right
    scores: Scores | None = None
    error: str | None = None


def paint(
    config: ConfigDict,
    network: Network,
    params: tuple,
    state: tuple,
    sources: Sequence[str],
    *,
    folder: Path,
    live_frames: int,
) -> Iterator[Painted]:
    """Plays every source once, and writes what is painted into a video of its own.

    Args:
      config: of the run.
      network, params, state: what it has learned.
      sources: files and folders; cameras and addresses as in `video_file`.
      folder: for the new videos.
      live_frames: how many frames of a camera or an address are played; 0: until its end.
    """
    start, show = rules.make_showing(config.rule, network)
    show = jax.jit(show)
    size = config.data.size
    frame = jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)

    def shown(chunks: Chunks) -> Iterator[tuple]:
        carry = start(params, state, frame)
        for chunk in chunks:
            frames = chunk["frames"].swapaxes(0, 1)
            carry, outputs = show(params, state, carry, frames, chunk["reset"].T)
            yield frames, outputs

    names: dict[str, int] = {}
    for source in itertools.chain.from_iterable(map(_expanded, sources)):
        stem = Path(source).stem or "source"
        names[stem] = names.get(stem, 0) + 1
        number = f"-{names[stem]}" if names[stem] > 1 else ""
        yield _painted(config, source, folder / f"{stem}{number}.mp4", shown, live_frames)


def _expanded(source: str) -> list[str]:
    """The files of a folder; a folder without any stays, to be told of."""
    return [source] if is_live(source) else list(video_files(source)) or [source]


def _painted(
    config: ConfigDict, source: str, out: Path, shown: Callable, live_frames: int
) -> Painted:
    if Path(source).expanduser().is_dir():
        return Painted(source, error=NO_VIDEOS)
    data = default_config("video_file")
    data.path, data.size, data.repeat = source, config.data.size, False
    data.stride = config.data.stride
    pixel_range = config.model.pixel_range
    score = StreamScore(pixel_range, count_missing=config.eval.count_missing)
    try:
        with contextlib.ExitStack() as stack:
            streams = stack.enter_context(
                contextlib.closing(load_streams(data, seed=0, split="all"))
            )
            most = live_frames if is_live(source) and live_frames else None
            chunks = Chunks(itertools.islice(streams, most), config.online.chunk, keep_rest=True)
            write = None
            for frames, outputs in shown(chunks):
                if write is None:
                    write = stack.enter_context(new_video(out, config.data.size, FPS, Path(source)))
                score.add(outputs, frames)
                painted = np.asarray(outputs.outputs[:, 0])
                for one, other in zip(frames[:, 0], painted, strict=True):
                    picture = [one, report.as_uint8(other, pixel_range)]
                    write(np.concatenate(picture, axis=1))
            if chunks.failure is not None:
                raise chunks.failure
    except BadVideo as error:
        return Painted(source, error=error.reason)
    scores = score.result()
    if scores is None:
        return Painted(source, error="has fewer frames than the network has modules")
    return Painted(source, out, scores)
