"""Table 3: both rules on the same streams, each at its best learning rate.

These are the internals of `experiments/table3.py`, which says what is compared and how.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from data import Streams, default_config, load_streams
from experiments.jobs.autoencoding import report, rules
from experiments.jobs.autoencoding.chunks import Chunks
from experiments.jobs.autoencoding.score import StreamScore
from experiments.processes.machine import machine
from experiments.terminal.names import printable
from experiments.workdir.files import read_rows, write_rows
from sideways_jax import Network, models
from sideways_jax.models.autoencoder import squared_error
from sideways_jax.step import TrainState
from sideways_jax.training.paper_optimizer import make_optimizer

RULES = ("backprop", "sideways")
CHUNK = 66  # frames; a multiple of 2D-1 = 11
SOLIDS = "moving_solids"  # any other source is a video file


class Settings(NamedTuple):
    """What is compared."""

    sources: tuple[str, ...]  # moving_solids, or video files
    strides: tuple[int, ...]  # every how many-th frame arrives
    seeds: int  # how many
    milestones: tuple[int, ...]  # frames that have arrived when both protocols are scored
    search_frames: int | None  # the milestone at which rates are compared; None: the last one
    rates: tuple[float, ...]  # learning rates to choose from
    optimizer: str  # sgd, momentum or adam
    size: int  # height and width, pixels
    streams: int  # of moving_solids at once; a file is one stream
    widths: tuple[int, ...]  # of the encoder
    normalise: bool  # the blocks of the encoder
    length: int | None = None  # frames of a scene of moving_solids; None: as many as CATER's have
    zoom: float = 1.0  # of the camera of moving_solids
    num_test: int | None = None  # test scenes of moving_solids; None: as many as it has
    count_missing: bool = False  # a step of a scene without any output counts as a black one


class Run(NamedTuple):
    """One run of one rule."""

    source: str
    stride: int
    rule: str
    seed: int
    rate: float


def check(settings: Settings) -> None:
    """Raises ValueError for milestones that cannot be scored, before anything is computed."""
    shown = ",".join(map(str, settings.milestones))
    eighths = 8 * CHUNK
    if not settings.milestones or any(one % eighths or one < 1 for one in settings.milestones):
        raise ValueError(f"--frames={shown} must be multiples of {eighths}")
    if settings.search_frames not in (None, *settings.milestones):
        raise ValueError(
            f"--search_frames={settings.search_frames} must be one of --frames={shown}"
        )


def compare(settings: Settings, file: Path) -> list[dict[str, Any]]:
    """The rows at the best learning rates, by milestone.

    Args:
      settings: what to compare.
      file: JSON; the rows that it has are not computed again, the others are added.

    Raises:
      BadVideo, ValueError: for a source without a part to test on, before anything is computed.
    """
    results = _Results(settings, file)
    places = list(itertools.product(settings.sources, settings.strides))
    for source, stride in places:
        _load(settings, Run(source, stride, "", 0, 0.0), "test").close()
    chosen = []
    search = settings.search_frames or settings.milestones[-1]
    short = [milestone for milestone in settings.milestones if milestone <= search]
    for source, stride in track(places, "sources", console=Console(stderr=True)):
        rows = []
        for rule in RULES:
            found = [
                results.get(Run(source, stride, rule, 0, rate), short) for rate in settings.rates
            ]
            best = _best(found, settings.rates)
            for seed in range(settings.seeds):
                rows += results.get(Run(source, stride, rule, seed, best), settings.milestones)
        chosen += sorted(rows, key=lambda row: row["arriving"])
    return chosen


def _best(found: list[list[dict[str, Any]]], rates: Sequence[float]) -> float:
    """The rate with the least error in the stream at last; one that diverged is the worst."""

    def in_stream(rows):
        *_, error = (row["streaming_mse"] for row in rows if row["protocol"] == "in_stream")
        return math.inf if error is None else error

    return min(zip(map(in_stream, found), rates, strict=True))[1]


class _Results:
    """Rows in a file, computed when they are first asked for."""

    def __init__(self, settings: Settings, file: Path):
        self._settings, self._file = settings, file
        self.rows = read_rows(file)

    def get(self, one: Run, milestones: Sequence[int]) -> list[dict]:
        """The rows of one run, by milestone."""
        key = _key(self._settings, one)

        def of_this_run(row):
            return key.items() <= row.items() and row["arriving"] in milestones

        if {row["arriving"] for row in filter(of_this_run, self.rows)} != set(milestones):
            scored = run(self._settings, one, milestones)
            rows = [key | row | {"machine": machine()} for row in scored]
            # Other milestones stay.
            self.rows = [row for row in self.rows if not of_this_run(row)] + rows
            write_rows(self._file, self.rows)
        return sorted(filter(of_this_run, self.rows), key=lambda row: row["arriving"])


def _key(settings: Settings, one: Run) -> dict[str, Any]:
    is_file = one.source != SOLIDS
    return {
        "source": os.path.abspath(one.source) if is_file else one.source,
        "streams": 1 if is_file else settings.streams,
        "stride": one.stride,
        "rule": one.rule,
        "seed": one.seed,
        "learning_rate": one.rate,
        "optimizer": settings.optimizer,
        "size": settings.size,
        "normalise": settings.normalise,
        "widths": list(settings.widths),
    }


def _load(settings: Settings, one: Run, split: str) -> Streams:
    is_file = one.source != SOLIDS
    config = default_config("video_file" if is_file else one.source)
    config.size, config.stride = settings.size, one.stride
    config.batch_size = 1 if is_file else settings.streams
    if is_file:
        config.path = one.source
    else:
        config.zoom = settings.zoom
        for name in ("length", "num_test"):
            if (value := getattr(settings, name)) is not None:
                config[name] = value
    return load_streams(config, seed=one.seed, split=split)


def _chunks(
    settings: Settings, one: Run, split: str, num_frames: int | None = None
) -> Iterator[dict]:
    chunks = Chunks(_load(settings, one, split), CHUNK, keep_rest=split == "test")
    try:
        for chunk in itertools.islice(chunks, num_frames and num_frames // CHUNK):
            yield {name: part.swapaxes(0, 1) for name, part in chunk.items()}
        if chunks.failure is not None:
            raise chunks.failure
    finally:
        chunks.close()


def run(settings: Settings, one: Run, milestones: Sequence[int]) -> list[dict[str, Any]]:
    """Trains once, and scores it at every milestone by both protocols."""
    rows = []
    for arriving, network, train_state, in_stream in _train(settings, one, milestones):
        held_out, copying = _held_out(settings, one, network, train_state)
        *eighths, quarter = in_stream
        for name, score in (("in_stream", quarter), ("held_out", held_out), ("copying", copying)):
            result = score.result()
            if result is None:
                raise ValueError(
                    f"{one.source} is too short: its {name} part has no output at all; "
                    f"D={network.depth} frames are the least that the last quarter needs"
                )
            row = {"protocol": name, "arriving": arriving, **result._asdict()}
            if name == "in_stream":
                before, last = (eighth.result().streaming_mse for eighth in eighths)
                row["still_falling"] = last / before
            rows.append(
                {k: None if isinstance(v, float) and not math.isfinite(v) else v
                 for k, v in row.items()}
            )  # fmt: skip
    return rows


def _held_out(
    settings: Settings, one: Run, network: Network, train_state: TrainState
) -> tuple[StreamScore, StreamScore]:
    """Scores on the test streams: what the network shows, and what "copying" would."""
    held_out, copying = (StreamScore(count_missing=settings.count_missing) for _ in range(2))
    recent, arrived = None, 0
    for frames, outputs, playing, _ in _test(settings, one, network, train_state):
        held_out.add(outputs, frames, playing)
        # The frames themselves, where the rule shows reconstructions of them.
        recent = frames if recent is None else np.concatenate([recent[-CHUNK:], frames])
        arrived += len(frames)
        shown = np.asarray(outputs.frames)
        place = np.maximum(shown - (arrived - len(recent)), 0)
        perfect = recent[place, np.arange(shown.shape[1])].astype(np.float32) / 255
        copying.add(outputs._replace(outputs=perfect), frames, playing)
    return held_out, copying


def _train(settings: Settings, one: Run, milestones: Sequence[int]) -> Iterator[tuple]:
    """Yields at every milestone: how many frames arrived, the network, its train state, and scores
    of the last eighth but one, of the last, and of both."""
    network = models.autoencoder(widths=settings.widths, normalise=settings.normalise)
    tx = make_optimizer(
        settings.optimizer, one.rate, steps_per_epoch=1000, warmup_epochs=0, drop_epochs=()
    )
    init, train_step = rules.make_learning(one.rule, network, squared_error(), tx)
    train_step = jax.jit(train_step, donate_argnums=0)
    scored = {}
    for milestone in milestones:
        eighth = milestone // CHUNK // 8
        windows = (6 * eighth, 7 * eighth), (7 * eighth, 8 * eighth), (6 * eighth, 8 * eighth)
        # One chunk before, for the frames that the first outputs are of.
        scored[milestone] = [
            (start, stop, _score_from(settings, start - 1)) for start, stop in windows
        ]
    train_state = None
    for n, chunk in enumerate(_chunks(settings, one, "train", milestones[-1])):
        frames = chunk["frames"]
        if train_state is None:
            train_state = jax.jit(init)(jax.random.key(one.seed), frames[0], frames[0])
        train_state, _, outputs = train_step(train_state, frames, frames, chunk["reset"])
        for start, stop, score in itertools.chain(*scored.values()):
            if start - 1 <= n < stop:
                score.add(outputs, frames, chunk["playing"] & (start <= n))
        arrived = (n + 1) * CHUNK
        if arrived in scored:
            yield arrived, network, train_state, [score for *_, score in scored.pop(arrived)]


def _score_from(settings: Settings, chunk: int) -> StreamScore:
    return StreamScore(first_frame=chunk * CHUNK, count_missing=settings.count_missing)


def _test(
    settings: Settings, one: Run, network: Network, train_state: TrainState
) -> Iterator[tuple]:
    """Yields of test streams: frames `[K, B, H, W, 3]`, outputs, and where they play and start."""
    start, show = rules.make_showing(one.rule, network)
    show, carry = jax.jit(show), None
    variables = train_state.params, train_state.state
    for chunk in _chunks(settings, one, "test"):
        frames = chunk["frames"]
        if carry is None:
            carry = start(*variables, frames[0])
        carry, outputs = show(*variables, carry, frames, chunk["reset"])
        yield frames, outputs, chunk["playing"], chunk["reset"]


def print_table(settings: Settings, rows: Sequence[dict], console: Console) -> None:
    """Prints means over seeds, and how many times larger the error of backprop is.

    "of half": of backprop and of Sideways, the error against the frame of now over that after half
    as many frames; nothing if that was no milestone.
    """
    table = Table(title="Mean squared error against the frame of now (own frame), mean of seeds")
    names = ["source", "stride", "frames", "protocol", "backprop", "sideways", "ratio", "of half"]
    for name in (*names, "rates"):
        table.add_column(name, justify="left" if name in ("source", "protocol") else "right")
    groups: dict[tuple, dict[str, list]] = {}
    for row in rows:
        place = (row["source"], row["stride"], row["arriving"], row["protocol"])
        groups.setdefault(place, {}).setdefault(row["rule"], []).append(row)
    for (source, stride, arriving, protocol), by_rule in groups.items():
        errors = {rule: _mean(some, "streaming_mse") for rule, some in by_rule.items()}
        own = {rule: _mean(some, "compensated_mse") for rule, some in by_rule.items()}
        rules = ("backprop", "sideways")
        cells = [f"{errors[rule]:.5f} ({own[rule]:.5f})" for rule in rules]
        half = groups.get((source, stride, arriving // 2, protocol), {})
        of_half = [errors[rule] / _mean(half[rule], "streaming_mse") for rule in rules if half]
        rates = [by_rule[rule][0]["learning_rate"] for rule in rules]
        searched = sorted(settings.rates)
        shown = [
            f"{rate:g}" + "*" * (len(searched) > 1 and rate in (searched[0], searched[-1]))
            for rate in rates
        ]
        table.add_row(
            Text(printable(os.path.basename(source))), str(stride), str(arriving), protocol, *cells,
            f"{errors['backprop'] / errors['sideways']:.2f}",
            " ".join(f"{ratio:.2f}" for ratio in of_half), " ".join(shown),
        )  # fmt: skip
    console.print(table)


def _mean(rows: Sequence[dict], name: str) -> float:
    return sum(math.nan if row[name] is None else row[name] for row in rows) / len(rows)


def draw(settings: Settings, rows: Sequence[dict]) -> Figure:
    """Ten consecutive frames in the middle of a test stream, and what both rules show meanwhile.

    Of the first source, after the last milestone; both rules are trained once more.
    """
    source, stride, milestone = settings.sources[0], settings.strides[0], settings.milestones[-1]
    shown_rows = {}
    for rule in RULES:
        rate = next(
            row["learning_rate"]
            for row in rows
            if (row["rule"], row["arriving"]) == (rule, milestone)
        )
        one = Run(source, stride, rule, 0, rate)
        *_, (_, network, train_state, _) = _train(settings, one, [milestone])
        middle = report.MiddleFrames()
        for frames, outputs, _, reset in _test(settings, one, network, train_state):
            middle.add(frames[:, 0], np.asarray(outputs.outputs[:, 0]), reset[:, 0])
        shown = middle.result((0.0, 1.0))
        shown_rows.setdefault("frame of now", shown.frames)
        shown_rows[f"{rule}: shown"] = shown.outputs
    return report.draw_rows(shown_rows)
