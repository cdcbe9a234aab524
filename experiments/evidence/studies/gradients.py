"""How wrong are the gradients of Sideways, where, and does it matter?

Module i (from 1, of D) meets a cotangent 2(D-i) frames late. Here its pseudo-gradient is compared
with the exact gradient of the same frames, weights and clips, that of pipelined backprop: the
cosine of the two, and |pseudo - exact| / |exact|, for every module, the mean of four batches of 8
clips.
**Drawn clips**: moving digits as in `table1`, at 0, 0.5, 1, 2 and 4 pixels a frame, and 1 pixel
at strides of 2 and 4 (these learn from the clips of 2 and 4 pixels a frame, other tests).
**Real clips** (`--videos=DIR`): every file is a class, strides 1, 2 and 4.
Simple-CNN with a quarter of the channels (D = 6), rate 4e-3, trained with Sideways for 600
updates; gradients at the start, in the middle and at the end. The same is trained with pipelined
backprop: its accuracy less that of Sideways is what is lost (of test digits; of real clips the
training accuracy in the last tenth). Five seeds. With a constant video (0 pixels a frame) the two
gradients have to be equal: the study stops with an error if their relative error is above 1e-3.

**Planned statistics.** Means with intervals of the cosine by module. Paired differences of the
lowest module's cosine: fastest - slowest; end - start of training. Does the cosine predict the
loss of accuracy? For every seed Spearman's rank correlation, over the moving drawn conditions, of
the mean cosine over modules at the end and the accuracy that is lost; its mean over seeds with an
interval.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from experiments.evidence.study import Row, Run, Scale, Study, Table
from experiments.evidence.summary import (
    Difference,
    band,
    difference,
    half_width,
    mean_of,
    said,
    shown,
    where,
)
from experiments.evidence.training import real_clips, recipes
from experiments.evidence.training.clips import Batch, clips, digits
from experiments.evidence.training.recipes import Recipe
from sideways_jax import step

# Speed in pixels a frame, and stride.
DRAWN = ((1.0, 1), (0.0, 1), (4.0, 1), (0.5, 1), (2.0, 1), (1.0, 4), (1.0, 2))
REAL_STRIDES = (1, 2, 4)
RATE = 4e-3
PROBES = 4  # batches
CONSTANT_ERROR = 1e-3  # relative; float32 sums in another order


def runs(scale: Scale) -> list[Run]:
    """Drawn clips, then real ones if there is a folder; all with the first seed, then the next."""
    drawn = DRAWN[:2] if scale.smoke else DRAWN
    real = REAL_STRIDES[:1] if scale.smoke else REAL_STRIDES
    folder = os.path.abspath(os.path.expanduser(scale.videos)) if scale.videos else ""
    conditions = [{"source": "drawn", "speed": speed, "stride": stride} for speed, stride in drawn]
    if folder:
        conditions += [{"source": "real", "videos": folder, "stride": stride} for stride in real]
    return [
        {
            "study": "gradients",
            "network": "smoke" if scale.smoke else "simple_cnn",
            **condition,
            "updates": scale.updates or (2 if scale.smoke else recipes.UPDATES["simple_cnn"]),
            "rate": RATE,
            "seed": seed,
        }
        for seed in range(scale.seeds)
        for condition in conditions
    ]


def measure(run: Run) -> dict[str, object]:
    """Trains with both rules; compares gradients on the way of Sideways.

    Raises:
      AssertionError: if the pseudo-gradients of a constant video are not exact.
      ValueError: for a folder without two videos that can be read.
    """
    make_batches, tests = _data(run)
    probes = list(itertools.islice(make_batches(run["seed"] + 10_000), PROBES))
    looks = [0, max(1, run["updates"] // 2), run["updates"]]
    cosines: list[list[float]] = []
    errors: list[list[float]] = []

    def look(n: int, params: tuple, state: tuple) -> None:
        del n
        both = np.mean([_compare(run["network"], params, state, probe) for probe in probes], axis=0)
        cosines.append(np.round(both[0], 6).tolist())
        errors.append(both[1].tolist())

    accuracy = {}
    for rule in ("sideways", "pipelined_backprop"):
        recipe = Recipe(run["network"], rule)
        learned = recipes.learn(
            recipe, make_batches(run["seed"]), rate=run["rate"], seed=run["seed"],
            updates=run["updates"], looks=looks if rule == "sideways" else (), look=look,
        )  # fmt: skip
        last = learned.curves["accuracy"][-max(1, run["updates"] // 10) :]
        accuracy[rule] = float(np.mean(last))
        if tests:
            accuracy[rule] = recipes.test(recipe, learned.params, learned.state, tests).accuracy
    if run.get("speed") == 0:
        worst = max(map(max, errors))
        assert worst < CONSTANT_ERROR, f"a constant video has relative errors of {worst:g}"
    return {
        "looks": looks,
        "cosine": cosines,
        "relative error": errors,
        "lowest cosine": cosines[-1][0],
        "mean cosine": float(np.mean(cosines[-1])),
        "accuracy": accuracy,
        "lost accuracy": accuracy["pipelined_backprop"] - accuracy["sideways"],
    }


def _data(run: Run) -> tuple[Callable[[int], Iterator[Batch]], list[Batch]]:
    """Training batches by seed, and test batches, none for real clips."""
    smoke = run["network"] == "smoke"
    if run["source"] == "drawn":
        config = digits(smoke, speed=run["speed"], stride=run["stride"])
        tests = clips(config, seed=run["seed"]).tests["test"]
        return lambda seed: clips(config, seed=seed).train, tests
    config = digits(smoke)
    shown_videos = real_clips.at_least_two(run["videos"], config.size)
    return lambda seed: real_clips.batches(
        shown_videos, frames=config.num_frames, stride=run["stride"], batch=config.batch_size,
        seed=seed,
    ), []  # fmt: skip


def _compare(network: str, params: tuple, state: tuple, batch: Batch) -> np.ndarray:
    """The cosine and the relative error of every module: float64 `[2, D]`."""
    return np.asarray(_comparing(network)(params, state, batch["frames"], batch["label"]))


@functools.cache
def _comparing(name: str) -> Callable:
    recipe = Recipe(name, "sideways")
    network = recipes.network_of(recipe)

    @jax.jit
    def compare(params, state, frames, label):
        clip = recipes.by_time(frames, label)
        pseudo, exact = (
            step.episode_gradients(
                network, recipes.loss_of(recipe), params, state, *clip, rule=rule,
                execution="time_parallel",
            ).grads
            for rule in ("sideways", "pipelined_backprop")
        )  # fmt: skip
        pairs = [(_flat(a), _flat(b)) for a, b in zip(pseudo, exact, strict=True)]
        tiny = jnp.finfo(jnp.float32).tiny
        norms = [(jnp.linalg.norm(a), jnp.linalg.norm(b) + tiny) for a, b in pairs]
        cosine = [a @ b / ((na + tiny) * nb) for (a, b), (na, nb) in zip(pairs, norms, strict=True)]
        error = [jnp.linalg.norm(a - b) / nb for (a, b), (_, nb) in zip(pairs, norms, strict=True)]
        return jnp.stack([jnp.stack(cosine), jnp.stack(error)])

    return compare


def _flat(tree) -> jax.Array:
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])


def answer(rows: Sequence[Row]) -> list[str]:
    """Constant video, speed, training, and whether the cosine predicts what is lost."""
    drawn, sentences = where(rows, source="drawn"), []
    if constant := where(drawn, speed=0.0):
        worst = max(max(map(max, row["relative error"])) for row in constant)
        sentences.append(
            f"Constant video: the largest relative error of any module is {worst:.1e}."
        )
    moving = [row for row in drawn if row["speed"] > 0]
    fast, slow = (where(moving, speed=speed, stride=1) for speed in (4.0, 0.5))
    one = difference(fast, slow, "lowest cosine")
    sentences.append(
        said(one, "Lowest module, end of training: cosine at 4 pixels a frame - at 0.5",
             higher="speed helps", lower="the faster, the more wrong")
    )  # fmt: skip
    sentences.append(_prediction(moving))
    for name, some in (("drawn", where(moving, speed=1.0, stride=1)),
                       ("real", where(rows, source="real", stride=1))):  # fmt: skip
        if some:
            lowest = mean_of(some, "lowest cosine")
            sentences.append(f"Cosine of the lowest module at the end, {name} clips at stride 1: "
                             f"{shown(lowest, '{:.2f}')} ({len(some)} seeds).")  # fmt: skip
            starts = [{**row, "lowest cosine": row["cosine"][0][0]} for row in some]
            sentences.append(
                said(difference(some, starts, "lowest cosine"),
                     f"The same, end - start of training, {name} clips",
                     higher="training makes it less wrong", lower="training makes it more wrong")
            )  # fmt: skip
    return sentences


def _prediction(moving: Sequence[Row]) -> str:
    correlations = []
    for seed in sorted({row["seed"] for row in moving}):
        some = where(moving, seed=seed)
        lost = [row["lost accuracy"] for row in some]
        if len(some) > 3 and len(set(lost)) > 1:
            cosine = [row["mean cosine"] for row in some]
            correlations.append(float(stats.spearmanr(cosine, lost).statistic))
    one = Difference(float("nan"), float("nan"), 0)
    if correlations:
        one = Difference(float(np.mean(correlations)), half_width(correlations), len(correlations))
    return said(
        one, "Rank correlation of the mean cosine and the accuracy lost, over scenes",
        higher="the cosine does not predict the loss: more is lost where it is higher",
        lower="the lower the cosine, the more accuracy is lost", template="{:+.2f}",
    )  # fmt: skip


def tables(rows: Sequence[Row]) -> list[Table]:
    """The cosine of every module at the end, by scene, and what is lost."""
    depth = len(rows[0]["cosine"][0]) if rows else 0
    lines = []
    for scene in dict.fromkeys(map(_scene, rows)):
        some = [row for row in rows if _scene(row) == scene]
        cells = [
            shown(mean_of([{"c": row["cosine"][-1][i]} for row in some], "c"), "{:.2f}")
            for i in range(depth)
        ]
        lost = shown(mean_of(some, "lost accuracy"), "{:.1%}")
        lines.append([scene, *cells, lost, str(len(some))])
    modules = [f"module {i + 1}, gap {2 * (depth - 1 - i)}" for i in range(depth)]
    return [Table("Cosine of pseudo-gradient and gradient at the end of training",
                  ["scene", *modules, "accuracy lost", "seeds"], lines)]  # fmt: skip


def _scene(row: Row) -> str:
    if row["source"] == "drawn":
        text = f"drawn, {row['speed']:g} pixels a frame"
        return text if row["stride"] == 1 else f"{text}, every {row['stride']} frames"
    return "real" if row["stride"] == 1 else f"real, every {row['stride']} frames"


def picture(rows: Sequence[Row]) -> Figure:
    """Cosine against the gap, at the start and at the end; accuracy lost against the cosine."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    start, end, lost = figure.subplots(1, 3)
    end.sharey(start)
    scenes = list(dict.fromkeys(map(_scene, rows)))
    for n, scene in enumerate(scenes):
        some = [row for row in rows if _scene(row) == scene]
        depth = len(some[0]["cosine"][0])
        gaps = [2 * (depth - 1 - i) for i in range(depth)]
        style = {"color": f"C{n % 10}", "marker": "." if some[0]["source"] == "drawn" else "x"}
        for axes, place in ((start, 0), (end, -1)):
            band(axes, gaps, [row["cosine"][place] for row in some], label=scene, **style)
        lost.plot([row["mean cosine"] for row in some], [row["lost accuracy"] for row in some],
                  linestyle="none", **style)  # fmt: skip
    start.set(xlabel="gap, frames", ylabel="cosine", title="at the start")
    end.set(xlabel="gap, frames", title="after training")
    lost.axhline(0, color="0.6", lw=0.8)
    lost.set(xlabel="mean cosine over modules", ylabel="accuracy lost to wrong gradients",
             title="every seed a point")  # fmt: skip
    start.legend(fontsize=7)
    return figure


STUDY = Study(
    title="How wrong are the gradients?",
    question="How far are pseudo-gradients from the gradients, and does it cost accuracy?",
    runs=runs,
    measure=measure,
    value="lowest cosine",
    format="{:.2f}",
    picture=picture,
    answer=answer,
    tables=tables,
    minutes=14,
)
