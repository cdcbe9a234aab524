"""Suite `scaling`: the predicted speed of 1 to 64 devices, from costs of modules, links and steps.

For every N of `--devices`, and for one, `scaling_worker.py` measures, in a process with its own
cores for each device, the modules alone, the exchange of signals, the overhead of the library, and
training steps. The cost model (`cost_model.py`) predicts the training steps from the other three;
`error` is predicted over measured, less 1. With the costs of the largest N it then predicts more
devices, for
the links of this machine and for those of `--link_latency_us` and `--link_gigabytes_per_second`:

* strong scaling: one network on more and more devices: the model, a stack of `--stack` equal
  modules, and one of 64;
* weak scaling: a stack of as many modules as devices, so that the work of a device stays the same.

Stacks that were not measured have modules with the cost of a middle one, and clips of 512 frames if
`--frames` are fewer: 64 modules need 127 frames, or Sideways does not train the lowest. `limit` is
the largest part of the time (`cost_model.limit_of`); `useful_devices` is the smallest number that
reaches 90% of the best speed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

from rich.progress import Progress

from experiments.benchmarks.rig import processes
from experiments.benchmarks.rig.suite import Dtype, Suite
from experiments.benchmarks.scaling_model import cost_model
from experiments.benchmarks.scaling_model.cost_model import RULES, Link, Modules, Overhead
from experiments.benchmarks.scaling_model.picture import draw as picture
from experiments.processes.children import usable_cores
from sideways_jax import models

DEEPEST = 64
SHOWN = {
    "scaling": "{}",
    "model": "{}",
    "link": "{}",
    "rule_or_schedule": "{}",
    "devices": "{}",
    "depth": "{}",
    "frames": "{}",
    "measured": "{:.3g}",
    "predicted": "{:.3g}",
    "error": "{:+.0%}",
    "speedup_over_one_device": "{:.2f}",
    "speedup_over_blocking": "{:.2f}",
    "ideal_speedup": "{:.2f}",
    "share_of_ideal_speed": "{:.0%}",
    "limit": "{}",
    "useful_devices": "{}",
}
HEADERS = {
    "rule_or_schedule": "rule",
    "devices": "N",
    "depth": "D",
    "frames": "K",
    "measured": "measured s",
    "predicted": "predicted s",
    "speedup_over_one_device": "over one",
    "speedup_over_blocking": "over blocking",
    "ideal_speedup": "ideal",
    "share_of_ideal_speed": "of ideal speed",
    "useful_devices": "useful N",
}


class Settings(NamedTuple):
    """Settings of the workers and of the prediction; `suite.HELP` explains them."""

    model: str = "simple_cnn"
    frames: int = 64
    batch: int = 8
    size: int = 32
    dtype: Dtype = "float32"
    devices: tuple[int, ...] = (2,)
    forced: bool = False
    rounds: int = 9
    stack: int = 16
    link_latency_us: float | None = None
    link_gigabytes_per_second: float | None = None


def prepare(settings: Settings) -> None:
    """Raises ValueError for more devices than the rig can have, too few frames, or no link."""
    frames, devices, stack = settings.frames, settings.devices, settings.stack
    latency_us, gigabytes_per_second = settings.link_latency_us, settings.link_gigabytes_per_second
    if stack < 3:
        raise ValueError(f"--stack={stack} must be at least 3: two ends, and one in the middle")
    if gigabytes_per_second == 0:
        raise ValueError("--link_gigabytes_per_second=0 must be more: nothing would ever arrive")
    if max(devices) == 1 and given_link(latency_us, gigabytes_per_second) is None:
        raise ValueError(
            "one device has no links to measure: give --devices=2, or the links to predict for, "
            "--link_latency_us and --link_gigabytes_per_second"
        )
    depth = max(models.make(settings.model, num_classes=10).depth, stack)
    if frames < 2 * depth - 1:
        raise ValueError(
            f"--frames={frames} are too few for {depth} modules: Sideways needs {2 * depth - 1}; "
            "give more, or a lower --stack"
        )
    for number in devices:
        processes.check(number, forced=settings.forced)


def shown(result: list[dict]) -> list[dict]:
    """The rows for the terminal: all measured ones, and the comparisons of the paper."""
    return [
        row
        for row in result
        if row["measured"] is not None
        or row["rule"] == "sideways"
        or (row["link"] == "measured" and row["schedule"] in ("blocking", "1f1b"))
    ]


def rows(settings: Settings, progress: Progress) -> list[dict]:
    """Measures, and predicts; one row for each network, link, rule and number of devices."""
    clips = processes.clips_of(settings)
    numbers = sorted({1, *settings.devices})
    task = progress.add_task("numbers of devices", total=len(numbers))
    share = max(usable_cores() // max(numbers), 1)  # A device has the same cores for every N.
    runs = {}
    for number in numbers:
        runs[number] = processes.measured(
            number, forced=settings.forced, worker="scaling_worker.py", rounds=settings.rounds,
            stack=settings.stack, cores=number * share, **clips,
        )  # fmt: skip
        progress.advance(task)
    progress.remove_task(task)
    given = given_link(settings.link_latency_us, settings.link_gigabytes_per_second)
    return rows_of(runs, clips, given)


def given_link(latency_us: float | None, gigabytes_per_second: float | None) -> Link | None:
    """The link of the flags, or None; a number that is not given is a cost of zero.

    >>> given_link(8.0, 5.0)
    Link(latency=8e-06, seconds_per_byte=2e-10)
    """
    if latency_us is None and gigabytes_per_second is None:
        return None
    per_byte = 1e-9 / gigabytes_per_second if gigabytes_per_second else 0.0
    return Link((latency_us or 0.0) * 1e-6, per_byte)


class Case(NamedTuple):
    """One network on growing numbers of devices, or one that grows with them."""

    scaling: str  # "strong" or "weak"
    model: str
    frames: int
    devices: tuple[int, ...]
    modules: Callable[[int], Modules]  # of the network, by the number of devices
    measured: str | None  # its name in the result of the worker, or None


class Fitted(NamedTuple):
    """The costs that one run of the worker gives, beside those of modules."""

    link: Link | None  # None on one device
    overhead: dict[str, Overhead]  # by rule


def rows_of(runs: dict[int, dict], settings: dict[str, Any], given: Link | None) -> list[dict]:
    """The rows, from the results of the workers.

    Args:
      runs: results of `scaling_worker.measure`, by number of devices, with 1 among them.
      settings: of the benchmark, in every row.
      given: a link that the user has, or None.
    """
    fitted = {1: fit(runs[1])}
    fitted |= {number: fit(run, fitted[1]) for number, run in runs.items() if number > 1}
    links = {"measured": fitted[max(runs)].link, "given": given}
    return [
        {"suite": "scaling", **settings} | row
        for name, link in links.items()
        if link is not None
        for case in cases(runs, settings["model"], settings["frames"])
        for row in rows_of_case(case, name, link, runs, fitted)
    ]


def fit(run: dict, of_one: Fitted | None = None) -> Fitted:
    """The link and the overheads that explain the runs with almost no work.

    Args:
      run: of the worker.
      of_one: the result for one device, for runs with more: the cost of copying activations comes
        from it, since one device has no messages of that size. Gpipe copies messages alone.
    """
    link = None
    if run["link"]:
        sizes, seconds = zip(*((one["bytes"], one["seconds"]) for one in run["link"]), strict=True)
        link = cost_model.fit_link(sizes, seconds, run["devices"])
    overhead = {}
    for rule in RULES:
        steps, held, rest = [], [], []
        known = of_one and rule != "gpipe"
        per_signal_byte = of_one.overhead[rule].per_signal_byte if known else None
        # The last network is for the cost of activations.
        for number, light in enumerate(run["light"][:-1] if known else run["light"]):
            groups, modules = tuple(map(tuple, light["groups"])), modules_of(light)
            nothing = cost_model.predict(
                rule, modules, light["frames"], run["devices"], link or Link(0.0, 0.0),
                Overhead(0.0, 0.0, 0.0, 0.0), groups,
            )  # fmt: skip
            steps.append(cost_model.table_of(rule, light["frames"], run["devices"]).num_steps)
            held.append(cost_model.held_bytes(rule, modules, groups))
            measured = statistics.median(run["times"][f"light {number} {rule}"])
            rest.append(measured - nothing.seconds)
        overhead[rule] = cost_model.fit_overhead(steps, held, rest, per_signal_byte)
    return Fitted(link, overhead)


def modules_of(measured: dict) -> Modules:
    """The costs of a network's modules, from the result of the worker."""
    return Modules(*(tuple(measured[name]) for name in Modules._fields))


def cases(runs: dict[int, dict], model: str, frames: int) -> list[Case]:
    """The networks, and the numbers of devices for each."""
    last = runs[max(runs)]["networks"]

    def best_known(name):  # From the run with n devices, or else from the last one.
        return lambda n: modules_of(runs.get(n, runs[max(runs)])["networks"][name])

    stack = modules_of(last["stack"])
    middle = stack.depth // 2

    def equal(depth):
        return Modules(
            forward=(stack.forward[middle],) * depth,
            both=(stack.both[middle],) * depth,
            signal_bytes=(stack.signal_bytes[0],) * (depth - 1),
            param_bytes=(stack.param_bytes[middle],) * depth,
        )

    def one_each(devices):
        measured = runs.get(devices)
        return modules_of(measured["networks"]["one each"]) if measured else equal(devices)

    long = max(frames, 8 * DEEPEST)  # The lowest of 64 modules learns after a quarter of it.
    up_to = cost_model.numbers_of_devices
    depth = len(last["model"]["both"])
    beyond = tuple(n for n in up_to(DEEPEST) if n not in runs)
    return [
        Case("strong", model, frames, up_to(depth), best_known("model"), "model"),
        Case("strong", f"{stack.depth} equal", frames, up_to(stack.depth), best_known("stack"),
             "stack"),
        Case("strong", f"{DEEPEST} equal", long, up_to(DEEPEST), lambda n: equal(DEEPEST), None),
        Case("weak", "one each", frames, tuple(sorted(runs)), one_each, "one each"),
        Case("weak", "one each", long, beyond, one_each, None),
    ]  # fmt: skip


class Seconds(NamedTuple):
    """Seconds of a clip."""

    predicted: float
    measured: float | None

    @property
    def best_known(self) -> float:
        """Measured seconds if there are any, else predicted."""
        return self.measured or self.predicted


def speedup(slower: Seconds, faster: Seconds) -> float:
    """Measured over measured, or predicted over predicted, never mixed.

    >>> speedup(Seconds(predicted=8.0, measured=9.0), Seconds(predicted=4.0, measured=3.0))
    3.0
    >>> speedup(Seconds(predicted=8.0, measured=9.0), Seconds(predicted=4.0, measured=None))
    2.0
    """
    if slower.measured and faster.measured:
        return slower.measured / faster.measured
    return slower.predicted / faster.predicted


def rows_of_case(
    case: Case, link_name: str, link: Link, runs: dict[int, dict], fitted: dict[int, Fitted]
) -> list[dict]:
    """The rows of one network on one kind of link."""

    def overhead_of(rule, devices):
        return fitted[max(n for n in fitted if n <= devices)].overhead[rule]

    def predict(rule, modules, devices):
        overhead = overhead_of(rule, devices)
        groups = None  # None: balanced by the costs.
        if case.measured and devices in runs:
            ran = runs[devices]["networks"][case.measured]
            groups = tuple(map(tuple, ran["groups"])) if modules == modules_of(ran) else None
        return cost_model.predict(rule, modules, case.frames, devices, link, overhead, groups)

    def measured(rule, devices):
        if link_name != "measured" or case.measured is None or devices not in runs:
            return None
        seconds = runs[devices]["times"].get(f"{case.measured} {rule}")
        return statistics.median(seconds) if seconds else None

    predictions, seconds, one = {}, {}, {}
    for devices in case.devices:
        modules = case.modules(devices)
        for rule in RULES:
            key = rule, devices
            predictions[key] = predict(rule, modules, devices)
            seconds[key] = Seconds(predictions[key].seconds, measured(rule, devices))
        # All modules on one device. In weak scaling that network was not measured.
        of_one = predict("sideways", case.modules(1 if case.scaling == "strong" else devices), 1)
        same = case.scaling == "strong" or devices == 1
        one[devices] = Seconds(of_one.seconds, measured("sideways", 1) if same else None)

    return [
        row
        for rule in RULES
        for row in _rows_of_rule(
            rule, case, link_name, link,
            {devices: predictions[rule, devices] for devices in case.devices},
            {devices: seconds[rule, devices] for devices in case.devices},
            {devices: speedup(seconds["blocking", devices], seconds[rule, devices])
             for devices in case.devices},
            one,
            {devices: overhead_of(rule, devices) for devices in case.devices},
        )
    ]  # fmt: skip


def _rows_of_rule(
    rule, case, link_name, link, predictions, seconds, over_blocking, one, overheads
) -> list[dict]:
    """The rows of one rule; dictionaries are by number of devices."""
    useful = cost_model.useful_devices({n: known.predicted for n, known in seconds.items()})
    is_blocking = rule == "blocking"
    bandwidth = 1e-9 / link.seconds_per_byte if link.seconds_per_byte else None
    result = []
    for devices in case.devices:
        prediction, now = predictions[devices], seconds[devices]
        known, of_one = now.best_known, one[devices]
        result.append(
            {
                "scaling": case.scaling,
                "model": case.model,
                "link": link_name,
                "link_latency_us": link.latency * 1e6,
                "link_gigabytes_per_second": bandwidth,
                "rule": "sideways" if rule == "sideways" else "backprop",
                "schedule": None if rule == "sideways" else rule,
                "rule_or_schedule": rule,
                "execution": "depth_sharded",
                "devices": devices,
                "depth": sum(map(len, prediction.groups)),
                "groups": [len(group) for group in prediction.groups],
                "frames": case.frames,
                "measured": now.measured,
                "predicted": now.predicted,
                "error": now.predicted / now.measured - 1 if now.measured else None,
                "steps_per_second": 1 / known,
                "frames_per_second": case.frames / known,
                "speedup_over_one_device": speedup(of_one, now),
                "predicted_speedup": of_one.predicted / now.predicted,
                "measured_speedup": of_one.measured / now.measured
                if of_one.measured and now.measured
                else None,
                "speedup_over_blocking": over_blocking[devices],
                "ideal_speedup": prediction.ideal_speedup,
                "efficiency": None
                if is_blocking
                else over_blocking[devices] / prediction.ideal_speedup,
                "share_of_ideal_speed": None
                if is_blocking
                else case.frames * prediction.largest / known,
                "limit": prediction.limit,
                "predicted_terms": prediction.terms,
                "overhead": overheads[devices]._asdict(),
                "useful_devices": useful if case.scaling == "strong" else None,
            }
        )
    return result


SUITE = Suite(
    settings=Settings,
    check=prepare,
    rows=rows,
    picture=picture,
    columns=SHOWN,
    headers=HEADERS,
    shown=shown,
)
