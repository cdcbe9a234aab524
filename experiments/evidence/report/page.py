"""The report: one HTML page with the tables, pictures and answers of all studies.

It needs no network and no other file, and is readable on a phone. What it says comes from the rows,
by rules that were written with the studies; nothing in it is written by hand.
"""

from __future__ import annotations

import base64
import html
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.evidence import catalogue
from experiments.evidence.report.style import STYLE
from experiments.evidence.report.tables import answer_of, tables_of
from experiments.evidence.study import Row, Study, Table
from experiments.terminal.names import printable
from experiments.workdir.files import write_atomically

DPI = 110
TITLE = "The claims of Sideways, measured again"
SENTENCES = 5  # of the paragraph that answers a question; the others are folded
_FIELDS = {
    "processor": "{}",
    "cores": "{} cores",
    "device": "{}",
    "jax": "jax {}",
    "python": "Python {}",
    "system": "{}",
}


class Section(NamedTuple):
    """What the page says of one study."""

    name: str
    study: Study
    plan: str  # the docstring of its file
    rows: list[Row]
    missing: int
    complete: bool


def write(workdir: Path, settings: catalogue.Settings) -> Path:
    """Writes `report/index.html` from the rows of a workdir, and gives its path.

    Args:
      workdir: with a file of rows for each study; those without are named as missing.
      settings: with which the studies were computed.

    Raises:
      ValueError: for a file of another program.
      OSError: if it cannot be written.
    """
    sections = [_section(workdir, name, settings) for name in catalogue.STUDIES]
    folder = workdir / "report"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "index.html"
    write_atomically(file, page(sections))
    return file


def _section(workdir: Path, name: str, settings: catalogue.Settings) -> Section:
    study = catalogue.study_of(name)
    there = catalogue.rows_of(workdir, name, settings)
    plan = sys.modules[study.measure.__module__].__doc__ or ""
    return Section(name, study, plan, there.rows, there.missing, there.complete)


def page(sections: Sequence[Section]) -> str:
    """The whole page."""
    shown = [one for one in sections if one.rows]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{TITLE}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{TITLE}</h1>
{_introduction()}
<h2 id="questions">Questions</h2>
{_contents(sections)}
{"".join(map(_of_section, shown))}
{_closing(sections)}
</main>
</body>
</html>
"""


def _introduction() -> str:
    return """<p>Sideways (Malinowski et al., CVPR 2020) trains video networks in a pipeline without
keeping activations, with gradients that are not exact. <b>Pipelined backprop</b> has the same
pipeline with exact gradients, and <b>backprop</b> has no pipeline. What Sideways and pipelined
backprop differ in is the price of wrong gradients; what pipelined backprop and backprop differ in
is the price of the pipeline.</p>
<p>These are small networks on small data, trained for minutes, not the paper's networks on its data
sets. Each answer below is made from the numbers by a rule that was written down before they were
there (&ldquo;What was planned&rdquo;); what was added later says so. Intervals are 95%, Student's t
over seeds; differences are paired by seed. Nothing is claimed where an interval has zero in it.
Intervals are not corrected for their number: of twenty comparisons without an effect, one is
expected to look like one.
<span class="paper">The paper's own numbers look like this.</span></p>"""


def _contents(sections: Sequence[Section]) -> str:
    items = []
    for one in sections:
        question = html.escape(one.study.question or one.study.title)
        if one.rows:
            items.append(f'<li><a href="#{one.name}">{question}</a> {_state(one)}</li>')
        else:
            items.append(f"<li>{question} <span class='missing'>not measured yet</span></li>")
    return f"<ul>{''.join(items)}</ul>"


def _state(one: Section) -> str:
    if one.complete:
        return ""
    return f"<span class='missing'>{one.missing} runs or more are missing</span>"


def _of_section(one: Section) -> str:
    return f"""<section id="{one.name}">
<h2>{html.escape(one.study.title)}</h2>
<p class="question">{html.escape(one.study.question)}</p>
{_answer(one)}
{_picture(one)}
{"".join(map(_table, tables_of(one.study, one.rows)))}
<details><summary>What was planned</summary><pre>{html.escape(one.plan.strip())}</pre></details>
<p class="small">{_provenance(one)}</p>
</section>
"""


def _answer(one: Section) -> str:
    """A paragraph of the first sentences, and the others folded."""
    sentences = answer_of(one.study, one.rows)
    if not sentences:
        sentences = ["No comparison yet: the runs that are there are of a search."]
    first, others = sentences[:SENTENCES], sentences[SENTENCES:]
    text = f'<p class="answer">{html.escape(" ".join(first))}</p>'
    if others:
        items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in others)
        title = f"More comparisons that were planned: {len(others)}"
        text += f"\n<details><summary>{title}</summary><ul>{items}</ul></details>"
    return text


def _picture(one: Section) -> str:
    """The picture as a part of the page."""
    stream = io.BytesIO()
    figure = one.study.picture(one.rows)
    figure.savefig(stream, format="png", dpi=DPI)
    data = base64.b64encode(stream.getvalue()).decode()
    width, height = (round(DPI * inches) for inches in figure.get_size_inches())
    text = html.escape(f"Picture: {one.study.title}. The table has its numbers.")
    source = f"data:image/png;base64,{data}"
    # On a phone the letters of a wide picture stay readable, and it scrolls.
    style = f"min-width: min({width}px, {4.5 * figure.get_size_inches()[0]:.0f}rem)"
    size = f'width="{width}" height="{height}" style="{style}"'
    return f'<div class="wide"><img alt="{text}" src="{source}" {size}></div>\n'


def _table(one: Table) -> str:
    of_paper = [name in one.paper for name in one.header]

    def cells(tag: str, texts: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=paper' * mark}>{html.escape(printable(text))}</{tag}>"
            for text, mark in zip(texts, of_paper, strict=True)
        )

    head = f"<thead><tr>{cells('th', one.header)}</tr></thead>"
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in one.rows)
    table = f'<div class="wide"><table>{head}<tbody>{body}</tbody></table></div>\n'
    title = html.escape(one.title)
    if one.aside:
        return f"<details><summary>{title}</summary>{table}</details>\n"
    return f'<p class="caption">{title}</p>\n{table}'


def _provenance(one: Section) -> str:
    """Runs, seeds, time, machine and command."""
    machines = {
        ", ".join(
            text.format(row["machine"][name])
            for name, text in _FIELDS.items()
            if name in row["machine"]
        )
        for row in one.rows
    }
    dates = sorted({row["machine"]["date"] for row in one.rows})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    seconds = [row["seconds"] for row in one.rows if "seconds" in row]
    took = f", {sum(seconds) / 60:.0f} minutes" if len(seconds) == len(one.rows) else ""
    seeds = sorted({row["seed"] for row in one.rows})
    text = (
        f"{len(one.rows)} runs{took}, {when}; seeds {', '.join(map(str, seeds))}; "
        f"{'; '.join(sorted(machines))}"
    )
    command = f"python experiments/reproduce.py {one.name} --workdir=DIR"
    command += " --videos=FOLDER" * any(row.get("videos") for row in one.rows)
    state = "" if one.complete else f" {_state(one)}"
    return f"{html.escape(text)}. <code>{command}</code>{state}"


def _closing(sections: Sequence[Section]) -> str:
    absent = [one.name for one in sections if not one.rows]
    parts = [one.name for one in sections if one.rows and not one.complete]
    said = []
    if absent:
        said.append(f"not measured: {', '.join(absent)}")
    if parts:
        said.append(f"with runs missing: {', '.join(parts)}")
    text = "; ".join(said) or "nothing of what was planned"
    return f"""<h2 id="missing">What is missing</h2>
<p>Of these studies: {text}. In all of them: the paper's data (UCF101, HMDB51, CATER), networks of
their full width, 112x112 and 240x240 pixels, and 1e5 updates;
<code>python experiments/reproduce.py table1 --full --data_dir=DATA --workdir=DIR</code> trains with
the paper's protocol where the data are.</p>"""
