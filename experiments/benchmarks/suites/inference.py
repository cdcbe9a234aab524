"""Suite `inference`: a network on a stream, frame by frame, depth-parallel and one after the other.

All programs run on the same cores, in turn, each a number of frames in every round, a call for each
frame. On one core: the whole network in one program (`sequential`), a program for each module
(`one_by_one`), and `stream.PipelinedModel` on one device. On all of them: the first and the last
with a thread for every core, as a user would start them; copies of the network, one on each device,
that take frames in turn (`in_turn`); and `PipelinedModel` over the devices, in one program
(`depth_sharded`) and with a program for each (`program_per_device`). Modules, and their groups on
devices, are as even as the seconds of the layers, each alone, allow.

Every output is compared, bit for bit, with what the modules answer when each runs alone, one after
the other (`equal`). XLA also fuses over modules, and divides sums among threads: there `difference`
says how much outputs differ at most, relative to the largest. `latency_ms` is from a push to the
return of the push that gives its output; `latency_steps` is D-1 pushes in a pipeline.

The last columns are what is seen of a camera that does not wait (`rig/camera.py`): one which gives
95% of the frames that the pipeline of the fewest modules takes, with a program per device, or
`--camera` a second. It shows moving digits, a new one every 16 frames. A readout of the logits, of
10 classes, was learned from other digits, by ridge regression: with random weights, too, there is
something to be seen. At every step the newest answer is compared with the label of the frame of now
(`accuracy`) and with the answer for that frame (`agreement`), and the newest logits with those for
it (`error`, the mean square over the variance of the stream). Nothing is learned for a `--path`:
there answers are the largest logits, with random weights less their means over the stream.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.progress import Progress

from experiments.benchmarks.rig import camera, measure, processes, turns
from experiments.benchmarks.rig.frame_by_frame import divided
from experiments.benchmarks.rig.programs import num_layers
from experiments.benchmarks.rig.suite import Dtype, Suite
from experiments.benchmarks.rig.watched import Watched, digits, readout, video
from experiments.processes.children import usable_cores
from sideways_jax import models
from sideways_jax.tools.names import check_name

WORKER = processes.ROOT / "experiments/benchmarks/workers/inference_worker.py"
DEVICE_PROGRAMS = "program_per_device"
COLOURS = {"sequential": "tab:blue", "one_device": "tab:grey", "pipelined": "tab:orange"}
MARGIN = 0.95  # of the pipeline's frames: speeds that differ by little are to decide nothing

SHOWN = {
    "program": "{}",
    "devices": "{}",
    "frames_per_second": "{:.3g}",
    "speedup": "{:.2f}",
    "over_threads": "{:.2f}",
    "ideal_speedup": "{:.2f}",
    "latency_steps": "{}",
    "latency_ms": "{:.0f}",
    "equal": "{}",
    "difference": "{:.0e}",
    "used": "{:.0%}",
    "lag": "{:.2f}",
    "accuracy": "{:.0%}",
    "agreement": "{:.0%}",
    "error": "{:.2f}",
}
HEADERS = {
    "devices": "N",
    "frames_per_second": "f/s",
    "speedup": "/ seq.",
    "over_threads": "/ thr.",
    "ideal_speedup": "ideal",
    "latency_steps": "late",
    "latency_ms": "ms",
    "difference": "by",
    "accuracy": "right",
    "agreement": "agrees",
}


class Settings(NamedTuple):
    """Settings of this suite; `suite.HELP` explains them."""

    model: str = "resnet50"
    modules: tuple[int, ...] = (2, 4, 8)
    frames: int = 24
    batch: int = 1
    size: int = 224
    dtype: Dtype = "float32"
    devices: tuple[int, ...] = (2,)
    forced: bool = False
    rounds: int = 5
    camera: float | None = None
    path: str | None = None
    weights: str | None = None


def prepare(settings: Settings) -> None:
    """Raises ValueError, with the fix, for what cannot be measured."""
    model = settings.model
    check_name("network", model, models.NETWORKS)
    layers = num_layers(model)
    for devices in settings.devices:
        processes.check(devices, forced=settings.forced)
    most = max(settings.devices)
    for number in settings.modules:
        if not most <= number <= layers:
            raise ValueError(
                f"--modules={number}: {model} has {layers} layers, and {most} devices need a "
                f"module each: give numbers from {most} to {layers}"
            )
    if settings.frames <= max(settings.modules):
        raise ValueError(
            f"--frames={settings.frames}: a frame is {max(settings.modules)} pushes in the "
            f"pipeline, give at least {max(settings.modules) + 1}"
        )
    if settings.camera == 0:
        raise ValueError("--camera=0: give more frames a second than none, or leave it out")
    if settings.weights and not Path(settings.weights).is_file():
        raise ValueError(f"--weights={settings.weights}: there is no such file")


def rows(settings: Settings, progress: Progress) -> list[dict]:
    """Measures; one row for each program and number of devices."""
    found = []
    for devices in settings.devices:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            task = progress.add_task("drawing and compiling", total=None)
            seen = watched(settings)
            np.save(folder / "stream.npy", seen.frames)
            if seen.lesson is not None:
                np.save(folder / "lesson.npy", seen.lesson)
            with teams(settings, devices, folder) as started:
                progress.remove_task(task)
                run = measured(started, settings, progress)
            logits = np.load(folder / f"answers-{min(settings.modules)}.npy")
            answers = answers_of(seen, logits, folder, trained=bool(settings.weights))
        found += rows_of(
            run, settings, devices, partial(camera.score, logits, answers, seen.labels)
        )
    return found


def watched(settings: Settings) -> Watched:
    """What the camera shows; every round has other frames."""
    count, shape = (
        settings.frames * settings.rounds,
        {"size": settings.size, "batch": settings.batch},
    )
    return video(settings.path, count, **shape) if settings.path else digits(count, **shape)


def answers_of(seen: Watched, logits: np.ndarray, folder: Path, *, trained: bool) -> np.ndarray:
    """The answers for all frames, int `[S, B]`."""
    if seen.lesson is not None:
        return readout(np.load(folder / "lesson-answers.npy"), seen.lesson_labels, logits)
    return (logits if trained else logits - logits.mean(axis=0)).argmax(axis=-1)


@contextmanager
def teams(settings: Settings, devices: int, folder: Path) -> Iterator[dict[str, turns.Team]]:
    """The processes by what they run: those of `--programs` of `inference_worker.py`."""
    worker = [sys.executable, str(WORKER), f"--folder={folder}", f"--pipeline={devices}"]
    worker += [f"--{name}={value}" for name, value in processes.clips_of(settings).items()]
    worker.append(f"--modules={','.join(map(str, settings.modules))}")
    worker += [f"--weights={settings.weights}"] if settings.weights else []
    os.environ["JAX_PLATFORMS"] = "cpu"
    forced = f"--forced={devices}"
    with ExitStack() as stack:

        def start(kind: str, number: int, *more: str) -> turns.Team:
            command = [*worker, f"--programs={kind}", *more]
            return stack.enter_context(turns.team(command, number, folder / kind))

        started = {
            "each": start("each", 1, forced) if settings.forced else start("each", devices),
            "threads": start("threads", 1, "--forced=1"),
        }
        with processes.one_thread_a_device():
            started["together"] = start("together", 1, forced)
        yield started


def measured(
    started: dict[str, turns.Team], settings: Settings, progress: Progress
) -> dict[str, Any]:
    """Runs all programs in turn: their `times`, and what they `said`, call by call."""
    said: dict[str, list[dict]] = {}

    def run(team: turns.Team, name: str, key: str) -> None:
        said.setdefault(key, []).append(merged(turns.ask_all(team, name)))

    runs = {
        key: partial(run, team, name, key)
        for kind, team in started.items()
        for name in team.about["programs"]
        for key in [f"{kind} {name}"]
    }
    times = measure.seconds(runs, rounds=settings.rounds, progress=progress)
    return {"times": times, "said": said, "cuts": started["each"].about["cuts"]}


def merged(answers: list[dict]) -> dict[str, Any]:
    """One answer out of those of the processes that had outputs."""
    there = [one for one in answers if one]
    return {
        "equal": all(one["equal"] for one in there),
        "difference": max(one["difference"] for one in there),
        "latency": max(one["latency"] for one in there),
        "parts": there[0]["parts"],
    }


def rows_of(
    run: dict[str, Any],
    settings: Settings,
    devices: int,
    score: Callable[[np.ndarray], camera.Score | None],
) -> list[dict]:
    """The rows of one number of devices, from what was measured and the score of what is shown."""
    cores, times = usable_cores(), run["times"]
    own = cores if settings.forced else max(cores // devices, 1)  # of a process with one device
    per_frame = {key: statistics.median(s) / settings.frames for key, s in times.items()}
    reference = f"together {DEVICE_PROGRAMS} {min(settings.modules)}"
    between = 1 / settings.camera if settings.camera else per_frame[reference] / MARGIN
    found = []
    for key, seconds in times.items():
        kind, execution, *number = key.split()
        modules, said = int(number[0]) if number else 1, run["said"][key]
        threads = {"each": own, "threads": cores, "together": 1}[kind]  # of a device
        over = devices if kind == "together" or execution in ("in_turn", "depth_sharded") else 1
        pipelined = execution in (*processes.PIPELINES, "one_device")
        ideal = over > 1 and pipelined
        cut = run["cuts"].get(str(modules), {})
        busy = per_frame[key] * (over if execution == "in_turn" else 1)
        pace = camera.Pace(per_frame[key], busy, modules if pipelined else 1)
        seen = score(camera.shown(settings.frames * settings.rounds, between, pace))
        found.append({
            "suite": "inference",
            **processes.clips_of(settings),
            "program": _name(execution, modules, threads),
            "execution": execution,
            "modules": modules,
            "layers": cut.get("layers"),
            "groups": cut.get("groups") if ideal else None,
            "devices": over,
            "threads": threads,
            "frames_per_second": 1 / per_frame[key],
            "speedup": measure.ratio(times["each sequential"], seconds),
            "over_threads": measure.ratio(times["threads sequential"], seconds),
            "ideal_speedup": _ideal(run, modules, cut["groups"]) if ideal else None,
            "latency_steps": modules - 1 if pipelined else 0,
            "latency_ms": 1000 * statistics.median(one["latency"] for one in said[1:]),
            "equal": all(one["equal"] for one in said),
            "difference": max(one["difference"] for one in said),
            "camera_frames_per_second": 1 / between,
            "seconds": seconds,
            **(seen._asdict() if seen else dict.fromkeys(camera.Score._fields)),
        })  # fmt: skip
    return found


def _ideal(run: dict[str, Any], modules: int, groups: list[int]) -> float:
    """All modules over those of the slowest device, from their seconds one by one."""
    said = run["said"][f"each one_by_one {modules}"][1:]
    costs = [statistics.median(one) for one in zip(*(s["parts"] for s in said), strict=True)]
    return sum(costs) / max(map(sum, divided(costs, groups)))


def picture(result: list[dict], path: str) -> None:
    """Frames a second, how late they are, and the error on the stream, of all programs; a PNG."""
    from matplotlib.figure import Figure

    names = [row["program"] for row in result]
    figure = Figure(figsize=(11, 1.2 + 0.28 * len(names)), layout="constrained")
    panels = {
        "frames_per_second": "frames/s",
        "latency_ms": "ms from a frame to its output",
        "error": "error against the frame of now",
    }
    for axes, (key, title) in zip(figure.subplots(1, 3, sharey=True), panels.items(), strict=True):
        colours = [COLOURS[_kind(row)] for row in result]
        values = [math.nan if row[key] is None else row[key] for row in result]
        bars = axes.barh(names, values, color=colours)
        texts = ["" if math.isnan(value) else f"{value:.3g}" for value in values]
        axes.bar_label(bars, texts, padding=2, fontsize=8)
        axes.set_xlabel(title)
        axes.margins(x=0.15)
        axes.spines[["top", "right"]].set_visible(False)
    axes.invert_yaxis()
    first = result[0]
    pace = first["camera_frames_per_second"]
    figure.suptitle(
        f"{first['model']}, {measure.clips_of(first)} a round; a camera of {pace:.3g} frames/s",
        fontsize=10,
    )
    figure.savefig(path, dpi=120)


def _kind(row: dict) -> str:
    if row["modules"] == 1 or row["execution"] == "one_by_one":
        return "sequential"
    return "pipelined" if row["devices"] > 1 else "one_device"


def _name(execution: str, modules: int, threads: int) -> str:
    words = [execution.replace("_", " ")]
    words += [f"D={modules}"] if modules > 1 else []
    words += [f"{threads} threads"] if threads > 1 else []
    return ", ".join(words)


SUITE = Suite(
    settings=Settings, check=prepare, rows=rows, picture=picture, columns=SHOWN, headers=HEADERS
)
