"""Suite `chip`: how much of one accelerator training uses, all frames of a clip at once.

It runs Sideways and batched backprop, `execution="time_parallel"`, in float32 and bfloat16
(activations; parameters, gradients and sums stay float32), in one interleaved run. A training step
is one batch of clips and one update. The yardstick is the chip's rate for a product of two square
matrices of that type in the same run: `fraction` is the floating-point operations of a step,
counted by the compiler before it optimizes, over its seconds, over that rate. Sideways has fewer:
module i goes back over gamma_i of the K frames. The count includes operations that the compiler
removes, such as the gradient of the frames. float32 has JAX's default precision in both:
TensorFloat-32 on recent NVIDIA GPUs.

The paper's numbers are for batch 8, 64 frames, 112x112 on one V100 per module: 6 for Simple-CNN, 8
for VGG-8; this is one chip.
"""

from __future__ import annotations

import statistics
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from rich.progress import Progress

from experiments.benchmarks.rig import measure
from experiments.benchmarks.rig.programs import loss_fn
from experiments.benchmarks.rig.suite import COLOURS, Dtype, Suite
from sideways_jax import models, step

SHOWN = {
    "model": "{}",
    "dtype": "{}",
    "rule": "{}",
    "steps_per_second": "{:.3g}",
    "ratio_to_backprop": "{:.3f}",
    "teraflops_per_second": "{:.3g}",
    "matrix_teraflops_per_second": "{:.3g}",
    "fraction": "{:.0%}",
    "temporary_bytes": "{:,}",
    "paper_steps_per_second": "{}",
}
HEADERS = {
    "steps_per_second": "steps/s",
    "ratio_to_backprop": "time / backprop",
    "teraflops_per_second": "Tflop/s",
    "matrix_teraflops_per_second": "matrices",
    "fraction": "of it",
    "paper_steps_per_second": "paper",
}
PAPER = {
    ("simple_cnn", "sideways"): 8.4, ("simple_cnn", "backprop"): 1.7,
    ("vgg8", "sideways"): 0.6, ("vgg8", "backprop"): 0.1,
}  # fmt: skip
DTYPES = get_args(Dtype)
PRODUCTS = 10  # of matrices in one call, so that the cost of a call does not count
PAPER_SETTING = (8, 64, 112)  # batch, frames, size


class Settings(NamedTuple):
    """Settings; `suite.HELP` explains them."""

    model: str | None = None  # simple_cnn and vgg8
    frames: int = 64
    batch: int = 8
    size: int = 32
    rounds: int = 9
    matrix: int = 8192


def prepare(settings: Settings) -> None:
    """Raises ValueError for a network that does not exist or does not take frames of this size."""
    for name in _models(settings):
        frame = _frame(settings.batch, settings.size)
        jax.eval_shape(_network(name, "float32").init, jax.random.key(0), frame)


def rows(settings: Settings, progress: Progress) -> list[dict]:
    """Measures; one row for each network, type and rule."""
    result, chosen = [], _models(settings)
    task = progress.add_task("networks and types", total=len(chosen) * len(DTYPES))
    for model in chosen:
        for dtype in DTYPES:
            clips = {
                "model": model,
                "dtype": dtype,
                "frames": settings.frames,
                "batch": settings.batch,
                "size": settings.size,
            }
            result += _rows_of(clips, settings.rounds, settings.matrix, progress)
            progress.advance(task)
    progress.remove_task(task)
    return result


def _models(settings: Settings) -> tuple[str, ...]:
    return (settings.model,) if settings.model else ("simple_cnn", "vgg8")


def _rows_of(clips: dict[str, Any], rounds: int, matrix: int, progress: Progress) -> list[dict]:
    frames, batch, size = (clips[name] for name in ("frames", "batch", "size"))
    network = _network(clips["model"], clips["dtype"])
    frame = _frame(batch, size)
    clip = jax.random.uniform(jax.random.key(1), (frames, *frame.shape))
    labels = jnp.tile(jnp.arange(batch, dtype=jnp.int32) % 10, (frames, 1))
    programs, flops, temporary = {}, {}, {}
    for rule in ("sideways", "backprop"):
        init, train_step = step.make_train_step(
            network, loss_fn, optax.sgd(1e-3), rule=rule, execution="time_parallel"
        )
        train_state = jax.jit(lambda key, init=init: init(key, frame))(jax.random.key(0))
        lowered = jax.jit(train_step).lower(train_state, clip, labels)
        flops[rule] = lowered.cost_analysis()["flops"]
        program = lowered.compile()
        temporary[rule] = measure.temporary_bytes(program)
        programs[rule] = lambda program=program, start=train_state: program(start, clip, labels)
    programs["matrices"] = product_of_matrices(matrix, clips["dtype"])
    times = measure.seconds(programs, rounds=rounds, progress=progress)
    matrix_rate = PRODUCTS * 2 * matrix**3 / statistics.median(times["matrices"])
    in_the_paper = (batch, frames, size) == PAPER_SETTING
    return [
        {
            "suite": "chip",
            **clips,
            "rule": rule,
            "execution": "time_parallel",
            "devices": 1,
            "steps_per_second": 1 / (seconds := statistics.median(times[rule])),
            "seconds": times[rule],
            "ratio_to_backprop": measure.ratio(times[rule], times["backprop"]),
            "flops_per_step": flops[rule],
            "teraflops_per_second": flops[rule] / seconds / 1e12,
            "matrix_teraflops_per_second": matrix_rate / 1e12,
            "fraction": flops[rule] / seconds / matrix_rate,
            "temporary_bytes": temporary[rule],
            "paper_steps_per_second": PAPER.get((clips["model"], rule)) if in_the_paper else None,
        }
        for rule in ("sideways", "backprop")
    ]


def product_of_matrices(size: int, dtype: str):
    """A function that multiplies two matrices with the precision of the network."""
    a, b = (
        jax.random.normal(key, (size, size), dtype) for key in jax.random.split(jax.random.key(2))
    )

    def multiply(a, b):
        for _ in range(PRODUCTS):
            a = (a @ b) * (1 / size**0.5)  # As large as before.
        return a

    program = measure.compiled(multiply, a, b)
    return lambda: program(a, b)


def _network(name: str, dtype: str):
    return models.make(name, num_classes=10, dtype=dtype)


def _frame(batch: int, size: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)


def picture(result: list[dict], path: str) -> None:
    """Training steps a second, and the part of the chip's matrix rate, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    places = list(dict.fromkeys((row["model"], row["dtype"]) for row in result))
    for number, rule in enumerate(("backprop", "sideways")):
        some = [row for row in result if row["rule"] == rule]
        at = [place + 0.4 * number for place in range(len(some))]
        bars = left.bar(
            at, [row["steps_per_second"] for row in some], 0.36, color=COLOURS[rule], label=rule
        )
        left.bar_label(bars, fmt="%.3g", padding=2, fontsize=8)
        bars = right.bar(at, [100 * row["fraction"] for row in some], 0.36, color=COLOURS[rule])
        right.bar_label(bars, fmt="%.0f", padding=2, fontsize=8)
    for axes, label in ((left, "training steps a second"), (right, "% of the matrix rate")):
        axes.set_xticks([k + 0.2 for k in range(len(places))], ["\n".join(p) for p in places])
        axes.set_ylabel(label)
    left.set_yscale("log")
    left.legend(fontsize=8)
    first = result[0]
    figure.suptitle(f"one chip, all frames at once; {measure.clips_of(first)}")
    figure.savefig(path, dpi=120)


SUITE = Suite(
    settings=Settings, check=prepare, rows=rows, picture=picture, columns=SHOWN, headers=HEADERS
)
