"""The picture of the suite `scaling`: strong and weak scaling, next to each other."""

from __future__ import annotations

from experiments.benchmarks.rig.suite import COLOURS
from experiments.benchmarks.scaling_model.cost_model import RULES

LINKS = {"measured": "-", "given": ":"}


def draw(result: list[dict], path: str) -> None:
    """Speedup over one device against N, one plot for every network, as a PNG.

    Lines are predicted, markers measured, dashes the ideal; dots are for the user's own links.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator

    plots = list(dict.fromkeys((row["scaling"], row["model"]) for row in result))
    figure = Figure(figsize=(3.4 * len(plots) + 1.6, 3.9), layout="constrained")
    axes = figure.subplots(1, len(plots), squeeze=False)
    for axis, (kind, model) in zip(axes[0], plots, strict=True):
        shown = [row for row in result if (row["scaling"], row["model"]) == (kind, model)]
        for rule in RULES:
            for link, style in LINKS.items():
                line = [r for r in shown if (r["rule_or_schedule"], r["link"]) == (rule, link)]
                points = sorted((r["devices"], r["predicted_speedup"]) for r in line)
                if points:
                    axis.plot(*zip(*points, strict=True), style, color=COLOURS[rule], linewidth=1.4)
                marks = [(r["devices"], r["measured_speedup"]) for r in line]
                marks = sorted(pair for pair in marks if pair[1] is not None)
                if marks:
                    axis.plot(
                        *zip(*marks, strict=True), "o", color=COLOURS[rule], markersize=7,
                        markerfacecolor="white", markeredgewidth=1.6, zorder=3,
                    )  # fmt: skip
        ideal = sorted({(row["devices"], row["ideal_speedup"]) for row in shown})
        axis.plot(*zip(*dict(ideal).items(), strict=True), "k--", linewidth=1, zorder=1)
        numbers = sorted({row["devices"] for row in shown})
        axis.set(xscale="log", yscale="log", xlabel="devices N")
        axis.set_title(_title(kind, model, shown), fontsize=10)
        axis.set_xticks(numbers, numbers, minor=False)
        axis.xaxis.set_minor_formatter("")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("")
        axis.grid(alpha=0.25)
    axes[0][0].set_ylabel("speed over Sideways on one device")
    handles = [Line2D([], [], color=COLOURS[rule], label=rule) for rule in RULES]
    handles.append(Line2D([], [], color="k", linestyle="--", linewidth=1, label="ideal"))
    handles.append(Line2D([], [], color="grey", label="predicted"))
    handles.append(
        Line2D([], [], color="grey", marker="o", linestyle="", markerfacecolor="white",
               markersize=7, markeredgewidth=1.6, label="measured")
    )  # fmt: skip
    given = next((row for row in result if row["link"] == "given"), None)
    if given:
        label = f"predicted, for links of\n{_link(given)}"
        handles.append(Line2D([], [], color="grey", linestyle=":", label=label))
    figure.legend(handles=handles, fontsize=8, loc="outside right upper")
    first = result[0]
    settings = f"batch {first['batch']}, {first['size']}x{first['size']}"
    here = f"; links here: {_link(first)}" if first["link"] == "measured" else ""
    figure.suptitle(settings + here, fontsize=10)
    figure.savefig(path, dpi=90)


def _link(row: dict) -> str:
    bandwidth = row["link_gigabytes_per_second"]
    size = f" and {bandwidth:.2g} GB/s" if bandwidth else ""
    return f"{row['link_latency_us']:.3g} us{size}"


def _title(kind: str, model: str, shown: list[dict]) -> str:
    if kind == "weak":
        return "weak: D = N equal modules"
    name = model if "equal" in model else f"{model}, {shown[0]['depth']}"
    return f"strong: {name} modules"
