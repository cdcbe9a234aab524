"""Suite `memory`: temporary bytes per device of training on a mesh, against K and N.

The numbers come from the compiled programs; nothing is run. They are what one update (an episode
and plain gradient descent) needs on every device beside the train state, the clip and the results.
Pipelined backprop is Sideways and what its modules keep: "kept" is how much that is by its shapes,
"beyond Sideways" what the compiled program needs more. The mesh has forced CPU devices, also on a
machine with accelerators.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from rich.progress import Progress

from experiments.benchmarks.rig import measure
from experiments.benchmarks.rig.programs import loss_fn
from experiments.benchmarks.rig.suite import COLOURS, Suite
from sideways_jax import make_mesh, models, step
from sideways_jax.devices.layout import place
from sideways_jax.pipeline.sideways_stage import bytes_kept
from sideways_jax.rule.task import RULES, Task

SHOWN = {
    "schedule": "{}",
    "recompute": "{}",
    "devices": "{}",
    "frames": "{}",
    "temporary_bytes": "{:,}",
    "ratio": "{:.2f}",
    "ratio_to": "{}",
    "bytes_kept": "{:,}",
    "bytes_beyond_sideways": "{:,}",
}
HEADERS = {"bytes_kept": "kept", "bytes_beyond_sideways": "beyond Sideways"}
# Rule and schedule, and whether the forward pass runs again in the backward pass.
EXECUTIONS = (
    ("sideways", None),
    ("pipelined_backprop", True),
    ("pipelined_backprop", False),
    ("1f1b", True),
    ("1f1b", False),
    ("gpipe", True),
    ("gpipe", False),
    ("blocking", True),
    ("blocking", False),
)


class Settings(NamedTuple):
    """Settings; `suite.HELP` explains them."""

    model: str = "simple_cnn"
    memory_frames: tuple[int, ...] = (16, 64, 256)
    depths: tuple[int, ...] = (2, 3, 6)
    batch: int = 8
    size: int = 32


def prepare(settings: Settings) -> None:
    """Forces as many CPU devices as the largest mesh has; before JAX is first used."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(settings.depths))


def rows(settings: Settings, progress: Progress) -> list[dict]:
    """Compiles; one row for each schedule, number of devices and number of frames."""
    model, memory_frames, depths, batch, size = settings
    network = models.make(model, num_classes=10)
    frame = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)

    def temporary_bytes(schedule, recompute, num_devices, num_frames):
        is_rule = schedule in RULES
        init, train_step = step.make_train_step(
            network,
            loss_fn,
            optax.sgd(0.1),
            rule=schedule if is_rule else "backprop",
            execution="depth_sharded",
            mesh=make_mesh(num_devices),
            schedule=None if is_rule else schedule,
            recompute=recompute,
        )
        train_state = jax.eval_shape(lambda: init(jax.random.key(0), frame))
        clip = jax.ShapeDtypeStruct((num_frames, *frame.shape), frame.dtype)
        labels = jax.ShapeDtypeStruct((num_frames, batch), jnp.int32)
        return measure.temporary_bytes(measure.compiled(train_step, train_state, clip, labels))

    def kept(recompute, num_devices):
        """Bytes that every device holds of past frames."""
        mesh = make_mesh(num_devices)
        variables = jax.eval_shape(network.init, jax.random.key(0), frame)
        task = Task(network, loss_fn, "pipelined_backprop")
        layout = place(network, *variables, frame, mesh, None)
        return bytes_kept(task, mesh, frame, recompute=recompute)(layout).held

    wanted = [(*one, n, k) for one in EXECUTIONS for n in depths for k in memory_frames]
    task = progress.add_task("compiling", total=len(wanted))
    result = []
    for schedule, recompute, num_devices, num_frames in wanted:
        result.append(
            {
                "suite": "memory",
                "model": model,
                "schedule": schedule,
                "recompute": recompute,
                "devices": num_devices,
                "frames": num_frames,
                "batch": batch,
                "size": size,
                "temporary_bytes": temporary_bytes(schedule, recompute, num_devices, num_frames),
                "bytes_kept": None,
                "bytes_beyond_sideways": None,
            }
        )
        progress.advance(task)
    progress.remove_task(task)
    sideways = {
        (row["devices"], row["frames"]): row["temporary_bytes"]
        for row in result
        if row["schedule"] == "sideways"
    }
    for row in result:
        of_sideways = sideways[row["devices"], row["frames"]]
        is_other = row["schedule"] != "sideways"
        row["ratio_to"] = "sideways" if is_other else None
        row["ratio"] = row["temporary_bytes"] / of_sideways if is_other else None
        if row["schedule"] == "pipelined_backprop":
            row["bytes_kept"] = kept(row["recompute"], row["devices"])
            row["bytes_beyond_sideways"] = row["temporary_bytes"] - of_sideways
    return result


def picture(result: list[dict], path: str) -> None:
    """Memory per device against K, one plot for every N, as a PNG."""
    from matplotlib.figure import Figure

    depths = sorted({row["devices"] for row in result})
    figure = Figure(figsize=(4 * len(depths) + 2, 4), layout="constrained")
    axes = figure.subplots(1, len(depths), sharey=True, squeeze=False)
    for n, (plot, depth) in enumerate(zip(axes[0], depths, strict=True)):
        for schedule, recompute in EXECUTIONS:
            points = sorted(
                (row["frames"], row["temporary_bytes"] / 2**20)
                for row in result
                if (row["schedule"], row["recompute"]) == (schedule, recompute)
                and row["devices"] == depth
            )
            label = (
                schedule.replace("_", " ")
                + {None: "", True: ", recomputed", False: ", kept"}[recompute]
            )
            style = "--" if recompute else "-"
            colour = COLOURS[schedule]
            plot.plot(*zip(*points, strict=True), style, marker="o", color=colour, label=label)
        plot.set(xscale="log", yscale="log", xlabel="frames K", title=f"{depth} devices")
        plot.set_xticks(sorted({row["frames"] for row in result}), minor=False)
        plot.xaxis.set_major_formatter("{x:.0f}")
        plot.xaxis.set_minor_formatter("")
        if n == 0:
            plot.set_ylabel("temporary memory per device, MiB")
    figure.legend(*plot.get_legend_handles_labels(), fontsize=8, loc="outside right upper")
    first = result[0]
    figure.suptitle(f"{first['model']}, batch {first['batch']}, {first['size']}x{first['size']}")
    figure.savefig(path, dpi=120)


SUITE = Suite(
    settings=Settings, check=prepare, rows=rows, picture=picture, columns=SHOWN, headers=HEADERS
)
