"""Suite `rules`: what a rule costs on one device, in time and in temporary memory.

Time, interleaved: Sideways with all frames at once against ordinary batched backprop (written here
with nothing but `Network.apply` and `jax.grad`), Sideways step by step against backprop frame by
frame, and pipelined backprop against Sideways. Memory, from the compiled programs: all executions
at a small and a large K.
"""

from __future__ import annotations

import statistics
from typing import NamedTuple

import jax
import jax.numpy as jnp
from rich.progress import Progress

from experiments.benchmarks.rig import measure
from experiments.benchmarks.rig.programs import loss_fn
from experiments.benchmarks.rig.suite import COLOURS, Suite
from sideways_jax import models, step

SHOWN = {
    "rule": "{}",
    "execution": "{}",
    "frames": "{}",
    "seconds_per_step": "{:.4f}",
    "ratio": "{:.3f}",
    "ratio_to": "{}",
    "temporary_bytes": "{:,}",
}

TIMED = (
    ("backprop", "batched"),
    ("backprop", "time_parallel"),
    ("sideways", "time_parallel"),
    ("backprop", "scan"),
    ("sideways", "scan"),
    ("pipelined_backprop", "time_parallel"),
    ("pipelined_backprop", "scan"),  # Inputs are kept, and forward passes run again.
    ("pipelined_backprop", "scan, residuals"),  # What the backward pass needs is kept.
)
BASELINES = {
    ("backprop", "time_parallel"): ("backprop", "batched"),
    ("sideways", "time_parallel"): ("backprop", "batched"),
    ("sideways", "scan"): ("backprop", "scan"),
    ("pipelined_backprop", "time_parallel"): ("sideways", "time_parallel"),
    ("pipelined_backprop", "scan"): ("sideways", "scan"),
    ("pipelined_backprop", "scan, residuals"): ("sideways", "scan"),
}


class Settings(NamedTuple):
    """Settings; `suite.HELP` explains them."""

    model: str = "simple_cnn"
    frames: int = 64
    memory_frames: tuple[int, ...] = (16, 64, 256)
    batch: int = 8
    size: int = 32
    rounds: int = 9


def batched_backprop(network, params, state, frames, targets):
    """What a user without this library writes: all frames in one batch, and `jax.grad`."""

    def loss(params):
        def merge(x):
            return x.reshape((-1, *x.shape[2:]))

        logits, _ = network.apply(params, state, merge(frames), train=True, rng=jax.random.key(0))
        return loss_fn(logits, merge(targets))

    return jax.value_and_grad(loss)(params)


def prepare(settings: Settings) -> None:
    """Raises ValueError for a network that does not exist."""
    models.make(settings.model, num_classes=10)


def rows(settings: Settings, progress: Progress) -> list[dict]:
    """Measures; one row for each rule, execution and number of frames."""
    frames, batch, size = settings.frames, settings.batch, settings.size
    network = models.make(settings.model, num_classes=10)
    frame = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
    params, state = network.init(jax.random.key(0), frame)
    wanted = [(*pair, frames) for pair in TIMED] + [
        (*pair, n)
        for pair in TIMED
        if pair[1] != "batched"
        for n in settings.memory_frames
        if n != frames
    ]
    task = progress.add_task("compiling", total=len(wanted))
    programs, result = {}, []
    for rule, execution, num_frames in wanted:
        compiled = _program(network, params, state, rule, execution, (num_frames, *frame.shape))
        result.append(_row(settings, rule, execution, num_frames, compiled))
        if num_frames == frames:
            programs[rule, execution] = compiled
        progress.advance(task)
    progress.remove_task(task)

    clip = jax.random.uniform(jax.random.key(1), (frames, *frame.shape))
    labels = jnp.tile(jnp.arange(batch, dtype=jnp.int32) % 10, (frames, 1))
    times = measure.seconds(
        {
            pair: lambda compiled=compiled: compiled(params, state, clip, labels)
            for pair, compiled in programs.items()
        },
        rounds=settings.rounds,
        progress=progress,
    )
    for line in result[: len(TIMED)]:
        pair = line["rule"], line["execution"]
        line["seconds_per_step"] = statistics.median(times[pair])
        baseline = BASELINES.get(pair)
        if baseline:
            line["ratio_to"] = " ".join(baseline)
            line["ratio"] = measure.ratio(times[pair], times[baseline])
    return result


def _program(network, params, state, rule, execution, shape) -> jax.stages.Compiled:
    """The gradients of a clip `[K, B, H, W, 3]` of this shape."""

    def gradients(params, state, clip, labels):
        if execution == "batched":
            return batched_backprop(network, params, state, clip, labels)
        where = step.Scan(recompute=False) if execution == "scan, residuals" else execution
        return step.episode_gradients(
            network, loss_fn, params, state, clip, labels, rule=rule, execution=where,
            rng=jax.random.key(0),
        )  # fmt: skip

    clip = jax.ShapeDtypeStruct(shape, jnp.float32)
    labels = jax.ShapeDtypeStruct(shape[:2], jnp.int32)
    return measure.compiled(gradients, params, state, clip, labels)


def _row(settings: Settings, rule, execution, num_frames, compiled) -> dict:
    return {
        "suite": "rules",
        "model": settings.model,
        "rule": rule,
        "execution": execution,
        "frames": num_frames,
        "batch": settings.batch,
        "size": settings.size,
        "seconds_per_step": None,
        "ratio_to": None,
        "ratio": None,
        "temporary_bytes": measure.temporary_bytes(compiled),
    }


def picture(result: list[dict], path: str) -> None:
    """Seconds per step and temporary memory against K, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    timed = [line for line in result if line["seconds_per_step"] is not None]
    names = [
        "\n".join([line["rule"].replace("_", "\n"), line["execution"].replace(", ", "\n")])
        for line in timed
    ]
    colours = [COLOURS[line["rule"]] for line in timed]
    bars = left.bar(names, [line["seconds_per_step"] for line in timed], color=colours)
    left.bar_label(bars, fmt="%.3f", padding=2)
    left.set(ylabel="seconds per step", title=f"{timed[0]['frames']} frames, one device")
    left.tick_params(axis="x", labelsize=8)
    styles = {"scan": "-", "time_parallel": "--", "scan, residuals": ":"}
    for execution, style in styles.items():
        for rule in ("backprop", "sideways", "pipelined_backprop"):
            points = sorted(
                (line["frames"], line["temporary_bytes"] / 2**20)
                for line in result
                if (line["rule"], line["execution"]) == (rule, execution)
            )
            if not points:
                continue
            right.plot(
                *zip(*points, strict=True),
                style,
                marker="o",
                color=COLOURS[rule],
                label=f"{rule}, {execution}",
            )
    right.set(
        xscale="log",
        yscale="log",
        xlabel="frames K",
        ylabel="temporary memory, MiB",
        title="temporary memory",
    )
    right.set_xticks(sorted({line["frames"] for line in result}), minor=False)
    right.xaxis.set_major_formatter("{x:.0f}")
    right.xaxis.set_minor_formatter("")
    right.legend(fontsize=8)
    figure.suptitle(
        f"{timed[0]['model']}, batch {timed[0]['batch']}, {timed[0]['size']}x{timed[0]['size']}"
    )
    figure.savefig(path, dpi=120)


SUITE = Suite(settings=Settings, check=prepare, rows=rows, picture=picture, columns=SHOWN)
