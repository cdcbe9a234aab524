"""Suite `memory`: temporary bytes per device of training on a mesh, against K and N.

The numbers come from the compiled programs; nothing is run. They are what one update (an episode
and plain gradient descent) needs on every device beside the train state, the clip and the results.
Pipelined backprop is Sideways and what its modules keep: "kept" is how much that is by its shapes,
"beyond Sideways" what the compiled program needs more. The mesh has forced CPU devices, also on a
machine with accelerators.

With a program per device the numbers are those of the device that needs most. "held / needed" is
what the step of a device takes as arguments, beside the clip, over what its modules need by their
shapes: parameters, sums of gradients, states, and a place for every signal that they hear; of the
worst device.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from rich.progress import Progress

from experiments.benchmarks.chips.executions import Case
from experiments.benchmarks.chips.programs import Clip, device_programs
from experiments.benchmarks.chips.topologies import Topology
from experiments.benchmarks.rig import measure
from experiments.benchmarks.rig.programs import loss_fn
from experiments.benchmarks.rig.suite import COLOURS, Row, Suite
from sideways_jax import Network, make_mesh, models, step
from sideways_jax.device_programs.plan import initial_shapes
from sideways_jax.devices.layout import place
from sideways_jax.devices.report import signal_bytes
from sideways_jax.pipeline.sideways_stage import bytes_kept
from sideways_jax.rule.task import RULES, Task
from sideways_jax.tools.trees import PyTree, first_of

SHOWN = {
    "execution": "{}",
    "schedule": "{}",
    "recompute": "{}",
    "devices": "{}",
    "frames": "{}",
    "temporary_bytes": "{:,}",
    "ratio": "{:.2f}",
    "ratio_to": "{}",
    "bytes_kept": "{:,}",
    "bytes_beyond_sideways": "{:,}",
    "held_over_needed": "{:.3f}",
}
HEADERS = {
    "bytes_kept": "kept",
    "bytes_beyond_sideways": "beyond Sideways",
    "held_over_needed": "held / needed",
}
ONE_PROGRAM, EACH = "depth_sharded", "program_per_device"
# Rule or schedule, whether the forward pass runs again in the backward pass, and the execution.
EXECUTIONS = (
    ("sideways", None, ONE_PROGRAM),
    ("sideways", None, EACH),
    *(
        (schedule, recompute, ONE_PROGRAM)
        for schedule in ("pipelined_backprop", "1f1b", "gpipe", "blocking")
        for recompute in (True, False)
    ),
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
    network = models.make(settings.model, num_classes=10)
    wanted = [
        (*one, n, k)
        for one in EXECUTIONS for n in settings.depths for k in settings.memory_frames
    ]  # fmt: skip
    task = progress.add_task("compiling", total=len(wanted))
    result = []
    for schedule, recompute, execution, num_devices, num_frames in wanted:
        row = {
            "suite": "memory",
            "model": settings.model,
            "execution": execution,
            "schedule": schedule,
            "recompute": recompute,
            "devices": num_devices,
            "frames": num_frames,
            "batch": settings.batch,
            "size": settings.size,
            "bytes_kept": None,
            "bytes_beyond_sideways": None,
            "held_over_needed": None,
        }
        clip = Clip(
            jax.ShapeDtypeStruct(
                (num_frames, settings.batch, settings.size, settings.size, 3), jnp.float32
            ),
            jax.ShapeDtypeStruct((num_frames, settings.batch), jnp.int32),
        )
        if execution == EACH:
            row |= _of_devices(network, num_devices, clip)
        else:
            row |= _of_one_program(network, schedule, recompute, num_devices, clip)
        result.append(row)
        progress.advance(task)
    progress.remove_task(task)
    _compare(result)
    return result


def _of_one_program(
    network: Network, schedule: str, recompute: bool | None, num_devices: int, clip: Clip
) -> Row:
    is_rule, mesh, frame = schedule in RULES, make_mesh(num_devices), first_of(clip.frames)
    init, train_step = step.make_train_step(
        network,
        loss_fn,
        optax.sgd(0.1),
        rule=schedule if is_rule else "backprop",
        execution=ONE_PROGRAM,
        mesh=mesh,
        schedule=None if is_rule else schedule,
        recompute=recompute,
    )
    train_state = jax.eval_shape(lambda: init(jax.random.key(0), frame))
    compiled = measure.compiled(train_step, train_state, *clip)
    row = {"temporary_bytes": measure.temporary_bytes(compiled)}
    if schedule == "pipelined_backprop":
        task = Task(network, loss_fn, schedule)
        layout = place(network, *initial_shapes(network, frame), frame, mesh, None)
        row["bytes_kept"] = bytes_kept(task, mesh, frame, recompute=recompute)(layout).held
    return row


def _of_devices(network: Network, num_devices: int, clip: Clip) -> Row:
    case = Case("sideways", EACH, depth=num_devices)
    topology = Topology(jax.devices(), {}, None)
    frame = first_of(clip.frames)
    layout = place(network, *initial_shapes(network, frame), frame, make_mesh(num_devices), None)
    temporary, ratios = [], []
    each = device_programs(case, network, clip, topology, optax.sgd(0.1))
    for n, program in enumerate(each):
        (params, carry, _, _, given), _ = program.step.args_info
        found = program.step.memory_analysis()
        held = found.argument_size_in_bytes - _bytes(given)
        sent = found.output_size_in_bytes - found.alias_size_in_bytes
        temporary.append(
            held - _bytes(params) - _bytes(carry.state) + sent + found.temp_size_in_bytes
        )
        needed = (layout.params, layout.grads, layout.state)
        ratios.append(held / (sum(one.bytes_used[n] for one in needed) + signal_bytes(layout)[n]))
    return {"temporary_bytes": max(temporary), "held_over_needed": max(ratios)}


def _bytes(tree: PyTree) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _compare(result: list[Row]) -> None:
    """Adds ratios to Sideways in one program."""
    sideways = {
        (row["devices"], row["frames"]): row["temporary_bytes"]
        for row in result
        if (row["schedule"], row["execution"]) == ("sideways", ONE_PROGRAM)
    }
    for row in result:
        of_sideways = sideways[row["devices"], row["frames"]]
        is_other = (row["schedule"], row["execution"]) != ("sideways", ONE_PROGRAM)
        row["ratio_to"] = "sideways" if is_other else None
        row["ratio"] = row["temporary_bytes"] / of_sideways if is_other else None
        if row["schedule"] == "pipelined_backprop":
            row["bytes_beyond_sideways"] = row["temporary_bytes"] - of_sideways


def picture(result: list[dict], path: str) -> None:
    """Memory per device against K, one plot for every N, as a PNG."""
    from matplotlib.figure import Figure

    depths = sorted({row["devices"] for row in result})
    figure = Figure(figsize=(4 * len(depths) + 2, 4), layout="constrained")
    axes = figure.subplots(1, len(depths), sharey=True, squeeze=False)
    for n, (plot, depth) in enumerate(zip(axes[0], depths, strict=True)):
        for schedule, recompute, execution in EXECUTIONS:
            points = sorted(
                (row["frames"], row["temporary_bytes"] / 2**20)
                for row in result
                if (row["schedule"], row["recompute"]) == (schedule, recompute)
                and (row["execution"], row["devices"]) == (execution, depth)
            )
            label = (
                schedule.replace("_", " ")
                + {None: "", True: ", recomputed", False: ", kept"}[recompute]
                + (", a program per device" if execution == EACH else "")
            )
            style = ":" if execution == EACH else "--" if recompute else "-"
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
