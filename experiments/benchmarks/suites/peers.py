"""Suite `peers`: Sideways beside the alternatives of a user, on the same devices, in one run.

JAX: this library's pipelines (Sideways; blocking, gpipe and 1f1b backprop) and plain data-parallel
backprop. PyTorch: `torch.distributed.pipelining`, GPipe and 1F1B. Devices have
cores of their own; all sets of processes stay alive, and one program runs at a time. This process
starts and times all of them, so they have the same clock.

The same: Simple-CNN with the same weights, groups, clip and loss (the mean over frames of the mean
cross-entropy of the batch), float32, one SGD step a clip, messages over gloo, as many threads as
cores. First it checks that parameters, logits, loss and the norm of the gradients agree.

What differs:

* Sideways computes pseudo-gradients: K - 2(D-1) + i of K for module i (0-based), the same weights.
* PyTorch keeps residuals in both schedules; here gpipe recomputes (it is faster so), 1f1b keeps.
* SAME padding is asymmetric at stride 2; PyTorch's convolution has no argument for it, so it pads a
  copy. It computes in `channels_last`, as JAX does; gloo does not send that, so messages are
  copied. No `torch.compile`.
* JAX begins every call with the same weights, PyTorch with those of the previous call.
* `depth_sharded` and PyTorch have a process for every device, and messages over gloo;
  `program_per_device` is one process with all devices, on the same cores.
* The groups are balanced by their costs in JAX.
* Data-parallel backprop splits the batch, the others the network; with "time_parallel" all frames
  are one batch, and as with gpipe the whole clip must be there before it starts.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import statistics
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import Progress

from experiments.benchmarks.rig import measure, processes, turns
from experiments.benchmarks.rig.processes import Settings
from experiments.benchmarks.rig.suite import Suite

SIDEWAYS = "sideways depth_sharded"
TOLERANCE = 1e-3  # of losses and norms of gradients, relative: float32 sums in other orders

SHOWN = {
    "framework": "{}",
    "devices": "{}",
    "rule": "{}",
    "schedule": "{}",
    "execution": "{}",
    "steps_per_second": "{:.3g}",
    "ratio_to_sideways": "{:.2f}",
}
HEADERS = {
    "framework": "by",
    "devices": "N",
    "steps_per_second": "updates/s",
    "ratio_to_sideways": "/ Sideways",
}


def prepare(settings: Settings) -> None:
    """Raises ValueError, with the fix, for settings that this suite cannot compare."""
    if importlib.util.find_spec("torch") is None:
        raise ValueError(
            "--suite=peers needs PyTorch, which only the extra `peers` installs: pip install -e "
            "'.[peers]' --extra-index-url https://download.pytorch.org/whl/cpu (the CPU build)"
        )
    for name, only in (("model", "simple_cnn"), ("dtype", "float32"), ("forced", False)):
        value = getattr(settings, name)
        if value != only:
            raise ValueError(f"--suite=peers has --{name}={only} alone, got {value}: leave it out")
    for number in settings.devices:
        if number < 2:
            raise ValueError(f"--devices={number}: a pipeline needs at least 2")
        processes.check(number, forced=False)


def rows(settings: Settings, progress: Progress) -> list[dict]:
    """Measures; one row for each program and number of devices.

    A batch that the devices do not divide evenly has no data-parallel rows; a message says so.
    """
    clips, result = processes.clips_of(settings), []
    for number in settings.devices:
        if settings.batch % number:
            progress.console.print(
                f"no data-parallel backprop: a batch of {settings.batch} cannot be split evenly "
                f"over {number} devices"
            )
        result += rows_of(run(number, settings.rounds, clips, progress), clips)
    return result


def run(devices: int, rounds: int, clips: dict[str, Any], progress: Progress) -> dict:
    """Starts both sets of processes and measures their programs in turn.

    Raises:
      RuntimeError: if a process failed, with the end of its log.
      ValueError: if the programs do not compute the same.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        task = progress.add_task("compiling", total=None)
        file = Path(folder) / "reference.npz"
        ours, both = stack.enter_context(
            processes.teams(devices, forced=False, kind="peers", reference=file, **clips)
        )
        groups = ",".join(map(str, ours.about["groups"]))
        worker = processes.ROOT / "experiments" / "benchmarks" / "workers" / "torch_worker.py"
        command = [sys.executable, str(worker), f"--reference={file}", f"--groups={groups}"]
        theirs = stack.enter_context(turns.team(command, devices, Path(folder) / "torch"))
        programs = processes.in_turn(ours, both) | {
            name: partial(turns.ask, theirs, name) for name in theirs.about["programs"]
        }
        check_agreement({name: program() for name, program in programs.items()})
        progress.remove_task(task)
        return {
            "devices": devices,
            **{name: ours.about[name] for name in ("groups", "module_costs", "temporary_bytes")},
            "times": measure.seconds(programs, rounds=rounds, progress=progress),
            "torch": theirs.about["programs"],
        }


def check_agreement(answers: dict[str, dict | None]) -> None:
    """Raises ValueError unless all backprop has the same loss and norm of gradients.

    Args:
      answers: of the first call of each program, from the same weights.
    """
    blocking = processes.BLOCKING + "depth_sharded"
    expected = answers[blocking]
    for name, answer in answers.items():
        for key in ("loss", "grad_norm") if name.startswith("backprop") else ():
            if not math.isclose(answer[key], expected[key], rel_tol=TOLERANCE):
                raise ValueError(
                    f"{name!r} has {key} {answer[key]}, {blocking!r} {expected[key]}: "
                    "they should be the same computation, so their times cannot be compared"
                )


def rows_of(run: dict, settings: dict[str, Any]) -> list[dict]:
    """The rows of one number of devices, from the result of `run`."""
    sideways = run["times"][SIDEWAYS]
    result = []
    for (row, seconds), name in zip(
        processes.programs(run), (name for name in run["times"] if not name.startswith("group")),
        strict=True,
    ):  # fmt: skip
        framework = "torch" if name in run["torch"] else "jax"
        speed = 1 / statistics.median(seconds)
        result.append(
            row
            | {
                "suite": "peers",
                **settings,
                "framework": framework,
                "framework_version": importlib.metadata.version(framework),
                "devices": run["devices"],
                "groups": None if row["schedule"] == "data_parallel" else run["groups"],
                "steps_per_second": speed,
                "steps_per_second_best_of_three": 1 / min(seconds[:3]),
                # Groups ran one after the other here: no ideal can be computed from them.
                **dict.fromkeys(("ideal_speedup", "efficiency", "share_of_ideal_speed")),
                # Of the speeds: below 1 is slower than Sideways.
                "ratio_to_sideways": measure.ratio(sideways, seconds),
            }
        )
    return result


def picture(result: list[dict], path: str) -> None:
    """Updates per second of every program, a bar each; a PNG."""
    from matplotlib.figure import Figure

    numbers = sorted({row["devices"] for row in result})
    count = max(sum(row["devices"] == number for row in result) for number in numbers)
    figure = Figure(figsize=(8, 1.2 + 0.42 * count * len(numbers)), layout="constrained")
    all_axes = figure.subplots(len(numbers), squeeze=False)
    for number, axes in zip(numbers, all_axes[:, 0], strict=True):
        lines = [row for row in result if row["devices"] == number][::-1]
        names = [
            " ".join(filter(None, (row["framework"], row["rule"], row["schedule"],
                                   row["execution"] if row["framework"] == "jax" else None)))
            for row in lines
        ]  # fmt: skip
        colours = [
            "tab:orange" if row["rule"] == "sideways"
            else {"jax": "tab:blue", "torch": "tab:green"}[row["framework"]]
            for row in lines
        ]  # fmt: skip
        speeds = [row["steps_per_second"] for row in lines]
        bars = axes.barh(names, speeds, color=colours)
        labels = [
            f"{row['steps_per_second']:.2f} ({row['ratio_to_sideways']:.2f})" for row in lines
        ]
        axes.bar_label(bars, labels, padding=3, fontsize=8)
        axes.set_xlim(0, max(speeds) * 1.2)
        axes.tick_params(axis="y", labelsize=8)
        axes.set(xlabel="updates per second (relative to Sideways)", title=f"{number} devices")
    first = result[0]
    figure.suptitle(f"{first['model']}, {measure.clips_of(first)}")
    figure.savefig(path, dpi=120)


SUITE = Suite(
    settings=Settings, check=prepare, rows=rows, picture=picture, columns=SHOWN, headers=HEADERS
)
