"""Table 3 of the paper: online auto-encoding with Sideways and with blocking backprop.

python experiments/table3.py --sources=moving_solids,FILE,... --seeds=3 --json=/tmp/table3.json

Both rules see the same frames in the same order and start from the same parameters; the learning
rate of each is searched among `--rates`, on the first seed, by the error in the stream after
`--search_frames` (an asterisk says that it lies at the edge of what was searched). Two protocols:
"in_stream", scored while it learns, over the last quarter of the frames; and "held_out", on test
streams with the weights frozen, Sideways as pipelined inference and backprop blocking. A third kind
of row, "copying", has no network: the error of somebody who shows the very frames, as late as each
rule does on the test streams. It is not a bound: Sideways learns to show what will be there by
then. "still_falling" is the error of the last eighth of the stream over that of the one before.

Several `--frames` are milestones of one stream: at each both protocols are scored, so that rows,
and the picture beside FILE, say how the errors fall as frames arrive. "of half" is the error of
backprop, and that of Sideways, over those after half as many frames: about 1 where the curves are
flat.
Sources are moving_solids or video files (their last quarter is held out). `--strides` makes things
move faster. Rows that are in the JSON file already are not computed again.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from rich.console import Console
from rich.progress import track
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

_SOURCES = flags.DEFINE_list("sources", ["moving_solids"], "moving_solids, or video files")
_SEEDS = flags.DEFINE_integer("seeds", 3, "how many", lower_bound=1)
_FRAMES = flags.DEFINE_list(
    "frames", ["8448"], "that arrive in each training stream by each milestone; multiples of 528"
)
_SEARCH_FRAMES = flags.DEFINE_integer(
    "search_frames", None, "the milestone at which rates are compared; the last one if not given"
)
_STRIDES = flags.DEFINE_list("strides", ["1"], "every how many-th frame of the source arrives")
_OPTIMIZER = flags.DEFINE_enum("optimizer", "sgd", ["sgd", "momentum", "adam"], "of both rules")
_RATES = flags.DEFINE_list("rates", ["0.1", "0.3", "1"], "learning rates to choose from")
_SIZE = flags.DEFINE_integer("size", 48, "height and width, pixels")
_STREAMS = flags.DEFINE_integer("streams", 4, "of moving_solids at once; a file is one stream")
_WIDTHS = flags.DEFINE_list("widths", ["16", "32", "32", "64", "128"], "of the encoder")
_NORMALISE = flags.DEFINE_bool("normalise", False, "the blocks of the encoder, for both rules")
_JSON = flags.DEFINE_string("json", None, "where the rows go", required=True)
_PICTURE = flags.DEFINE_string("picture", None, "where the rows of frames go (Figures 7 and 8)")
_CHUNK = 66  # a multiple of 2D-1 = 11


def main(argv: list[str]) -> int:
    """Runs what is missing, prints the table; a bad source ends in one line."""
    del argv
    from experiments.command_line import quiet

    quiet()
    from data import BadVideo

    try:
        if not _milestones() or any(one % (8 * _CHUNK) or one < 1 for one in _milestones()):
            raise ValueError(
                f"--frames={','.join(_FRAMES.value)} must be multiples of {8 * _CHUNK}"
            )
        if _SEARCH_FRAMES.value not in (None, *_milestones()):
            raise ValueError(
                f"--search_frames={_SEARCH_FRAMES.value} must be one of --frames="
                f"{','.join(_FRAMES.value)}"
            )
        for file in filter(None, (_JSON.value, _PICTURE.value)):
            Path(file).absolute().parent.mkdir(parents=True, exist_ok=True)
        _compare()
    except (BadVideo, ValueError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


def _milestones() -> list[int]:
    return sorted({int(number) for number in _FRAMES.value})


def _compare() -> None:
    from experiments import command_line, stream_report

    results = _Results(Path(_JSON.value))
    settings = list(itertools.product(_SOURCES.value, map(int, _STRIDES.value)))
    rates = [float(rate) for rate in _RATES.value]
    for source, stride in settings:  # Before anything is computed.
        _load(source, stride, 0, "test").close()
    chosen = []  # the rows with the best learning rate, by milestone
    search = _SEARCH_FRAMES.value or _milestones()[-1]
    short = [milestone for milestone in _milestones() if milestone <= search]
    for source, stride in track(settings, "sources", console=Console(stderr=True)):
        rows = []
        for rule in ("backprop", "sideways"):
            found = [results.get(source, stride, rule, 0, rate, short) for rate in rates]
            best = _best(found, rates)
            for seed in range(_SEEDS.value):
                rows += results.get(source, stride, rule, seed, best, _milestones())
        chosen += sorted(rows, key=lambda row: row["arriving"])
    print_table(chosen, command_line.console())
    curves = Path(_JSON.value).with_suffix(".png")
    stream_report.draw_milestones(chosen).savefig(curves)
    if _PICTURE.value:
        last = [row for row in chosen if row["arriving"] == _milestones()[-1]]
        _draw(settings[0], last).savefig(_PICTURE.value)


def _best(found: list[list[dict[str, Any]]], rates: Sequence[float]) -> float:
    """The rate with the least error in the stream at last; one that diverged is the worst."""

    def in_stream(rows):
        *_, error = (row["streaming_mse"] for row in rows if row["protocol"] == "in_stream")
        return math.inf if error is None else error

    return min(zip(map(in_stream, found), rates, strict=True))[1]


class _Results:
    """Rows in a file, computed when they are first asked for."""

    def __init__(self, file: Path):
        self._file = file
        self.rows: list[dict[str, Any]] = []
        if file.exists():
            try:
                self.rows = json.loads(file.read_text())["rows"]
            except (ValueError, KeyError) as error:
                raise ValueError(
                    f"{file} is no file of this program ({error}): remove it"
                ) from error

    def get(
        self, source: str, stride: int, rule: str, seed: int, rate: float, milestones: Sequence[int]
    ) -> list[dict]:
        """The rows of one run, by milestone."""
        key = _key(source, stride, rule, seed, rate)

        def of_this_run(row):
            return key.items() <= row.items() and row["arriving"] in milestones

        if {row["arriving"] for row in filter(of_this_run, self.rows)} != set(milestones):
            from experiments.benchmarks.measure import machine

            rows = [key | row | {"machine": machine()} for row in run(milestones, **key)]
            # Other milestones stay.
            self.rows = [row for row in self.rows if not of_this_run(row)] + rows
            self._save()
        return sorted(filter(of_this_run, self.rows), key=lambda row: row["arriving"])

    def _save(self) -> None:
        from experiments.workdir import write_atomically

        content = json.dumps({"rows": self.rows}, indent=1, allow_nan=False)
        write_atomically(self._file, content + "\n")


def _key(source, stride, rule, seed, rate) -> dict[str, Any]:
    is_file = source != "moving_solids"
    return {
        "source": os.path.abspath(source) if is_file else source,
        "streams": 1 if is_file else _STREAMS.value,
        "stride": stride,
        "rule": rule,
        "seed": seed,
        "learning_rate": rate,
        "optimizer": _OPTIMIZER.value,
        "size": _SIZE.value,
        "normalise": _NORMALISE.value,
        "widths": list(map(int, _WIDTHS.value)),
    }


def _load(source: str, stride: int, seed: int, split: str):
    from data import default_config, load_streams

    is_file = source != "moving_solids"
    config = default_config("video_file" if is_file else source)
    config.size, config.stride = _SIZE.value, stride
    config.batch_size = 1 if is_file else _STREAMS.value
    if is_file:
        config.path = source
    return load_streams(config, seed=seed, split=split)


def _chunks(
    source: str, stride: int, seed: int, split: str, num_frames: int | None = None
) -> Iterator[dict]:
    from experiments.chunks import Chunks

    chunks = Chunks(_load(source, stride, seed, split), _CHUNK, keep_rest=split == "test")
    try:
        for chunk in itertools.islice(chunks, num_frames and num_frames // _CHUNK):
            yield {name: one.swapaxes(0, 1) for name, one in chunk.items()}
        if chunks.failure is not None:
            raise chunks.failure
    finally:
        chunks.close()


def run(milestones, source, stride, rule, seed, learning_rate, **_) -> list[dict[str, Any]]:
    """Trains once, and scores it at every milestone by both protocols."""
    rows = []
    for arriving, network, train_state, in_stream in _train(
        milestones, source, stride, rule, seed, learning_rate
    ):
        held_out, copying = _held_out(network, train_state, source, stride, rule, seed)
        *eighths, quarter = in_stream
        for name, score in (("in_stream", quarter), ("held_out", held_out), ("copying", copying)):
            result = score.result()
            if result is None:
                raise ValueError(
                    f"{source} is too short: its {name} part has no output at all; "
                    f"D={network.depth} frames are the least that the last quarter needs"
                )
            row = {"protocol": name, "arriving": arriving, **result._asdict()}
            if name == "in_stream":
                before, last = (one.result().streaming_mse for one in eighths)
                row["still_falling"] = last / before
            rows.append(
                {k: None if isinstance(v, float) and not math.isfinite(v) else v
                 for k, v in row.items()}
            )  # fmt: skip
    return rows


def _held_out(network, train_state, source, stride, rule, seed):
    """Scores on the test streams: what the network shows, and what "copying" would."""
    import numpy as np

    from experiments.stream_score import StreamScore

    held_out, copying = StreamScore(3 * network.depth), StreamScore(3 * network.depth)
    recent, arrived = None, 0
    for frames, outputs, playing, _ in _test(network, train_state, source, stride, rule, seed):
        held_out.add(outputs, frames, playing)
        # Somebody who shows the very frames that this rule shows reconstructions of.
        recent = frames if recent is None else np.concatenate([recent[-_CHUNK:], frames])
        arrived += len(frames)
        shown = np.asarray(outputs.frames)
        place = np.maximum(shown - (arrived - len(recent)), 0)
        perfect = recent[place, np.arange(shown.shape[1])].astype(np.float32) / 255
        copying.add(outputs._replace(outputs=perfect), frames, playing)
    return held_out, copying


def _train(milestones, source, stride, rule, seed, learning_rate):
    """Yields at every milestone: how many frames arrived, the network, its train state, and scores
    of the last eighth but one, of the last, and of both."""
    import jax

    from experiments import stream_rules
    from experiments.stream_score import StreamScore
    from sideways_jax.models.autoencoder import squared_error
    from sideways_jax.optimizer import make_optimizer

    network = make_network()
    tx = make_optimizer(
        _OPTIMIZER.value, learning_rate, steps_per_epoch=1000, warmup_epochs=0, drop_epochs=()
    )
    init, train_step = stream_rules.make_learning(rule, network, squared_error(), tx)
    train_step = jax.jit(train_step, donate_argnums=0)
    scored = {}
    for milestone in milestones:
        eighth = milestone // _CHUNK // 8
        windows = (6 * eighth, 7 * eighth), (7 * eighth, 8 * eighth), (6 * eighth, 8 * eighth)
        # One chunk before, for the frames that the first outputs are of.
        scored[milestone] = [
            (start, stop, StreamScore(3 * network.depth, first_frame=(start - 1) * _CHUNK))
            for start, stop in windows
        ]
    train_state = None
    for n, chunk in enumerate(_chunks(source, stride, seed, "train", milestones[-1])):
        frames = chunk["frames"]
        if train_state is None:
            train_state = jax.jit(init)(jax.random.key(seed), frames[0], frames[0])
        train_state, _, outputs = train_step(train_state, frames, frames, chunk["reset"])
        for start, stop, score in itertools.chain(*scored.values()):
            if start - 1 <= n < stop:
                score.add(outputs, frames, chunk["playing"] & (start <= n))
        arrived = (n + 1) * _CHUNK
        if arrived in scored:
            yield arrived, network, train_state, [score for *_, score in scored.pop(arrived)]


def _test(network, train_state, source, stride, rule, seed):
    """Yields frames `[K, B, H, W, 3]` of test streams, what is shown, and where they play."""
    import jax

    from experiments import stream_rules

    start, show = stream_rules.make_showing(rule, network)
    show, carry = jax.jit(show), None
    variables = train_state.params, train_state.state
    for chunk in _chunks(source, stride, seed, "test"):
        frames = chunk["frames"]
        if carry is None:
            carry = start(*variables, frames[0])
        carry, outputs = show(*variables, carry, frames, chunk["reset"])
        yield frames, outputs, chunk["playing"], chunk["reset"]


def make_network():
    """The auto-encoder of the flags."""
    from sideways_jax import models

    widths = tuple(map(int, _WIDTHS.value))
    return models.autoencoder(widths=widths, normalise=_NORMALISE.value)


def print_table(rows: Sequence[dict], console: Console) -> None:
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
        searched = sorted(map(float, _RATES.value))
        shown = [
            f"{rate:g}" + "*" * (len(searched) > 1 and rate in (searched[0], searched[-1]))
            for rate in rates
        ]
        table.add_row(
            os.path.basename(source), str(stride), str(arriving), protocol, *cells,
            f"{errors['backprop'] / errors['sideways']:.2f}",
            " ".join(f"{ratio:.2f}" for ratio in of_half), " ".join(shown),
        )  # fmt: skip
    console.print(table)


def _mean(rows: Sequence[dict], name: str) -> float:
    return sum(math.nan if row[name] is None else row[name] for row in rows) / len(rows)


def _draw(setting, chosen):
    """Ten consecutive frames in the middle of a test stream, and what both rules show meanwhile."""
    import numpy as np

    from experiments import stream_report

    source, stride = setting
    rows = {}
    for rule in ("backprop", "sideways"):
        rate = next(row["learning_rate"] for row in chosen if row["rule"] == rule)
        *_, (_, network, train_state, _) = _train(_milestones()[-1:], source, stride, rule, 0, rate)
        middle = stream_report.MiddleFrames()
        for frames, outputs, _, reset in _test(network, train_state, source, stride, rule, 0):
            middle.add(frames[:, 0], np.asarray(outputs.outputs[:, 0]), reset[:, 0])
        shown = middle.result((0.0, 1.0))
        rows.setdefault("frame of now", shown.frames)
        rows[f"{rule}: shown"] = shown.outputs
    return stream_report.draw_rows(rows)


if __name__ == "__main__":
    app.run(main)
