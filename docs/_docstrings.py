"""How the API reference reads our docstrings: an extension of griffe, named in mkdocs.yml.

Three habits of this repository are not Markdown, or not what griffe expects: doctests that follow a
paragraph, several arguments with one description, and fields of a class with a comment behind them.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

SHARED = re.compile(r"^( +)((?:[*\w]+,\s+)+[*\w]+): (.*(?:\n\1 +.*)*)", re.MULTILINE)
DOCTEST = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for everything that was found in the source."""
        del kwargs
        if obj.docstring is None:
            return
        text = obj.docstring.value
        if obj.is_class and not re.search(r"^(Args|Attributes):$", text, re.MULTILINE):
            text += _fields(obj)
        obj.docstring.value = _fenced(_one_each(text))


def _one_each(text: str) -> str:
    """`a, b: what they are` as an entry for each."""

    def entries(match: re.Match) -> str:
        names = re.split(r",\s+", match[2])
        return "\n".join(f"{match[1]}{name}: {match[3]}" for name in names)

    return SHARED.sub(entries, text)


def _fenced(text: str) -> str:
    """Doctests in fences: Markdown would take `>>>` for quotations."""
    return DOCTEST.sub(lambda match: f"```pycon\n{match[0]}\n```", text)


def _fields(record: griffe.Object) -> str:
    """A section with the fields of a class that have a comment."""
    comments = {name: _comment(field) for name, field in record.attributes.items()}
    entries = [f"  {name}: {comment}" for name, comment in comments.items() if comment]
    return "\n\nAttributes:\n" + "\n".join(entries) if entries else ""


def _comment(field: griffe.Attribute) -> str:
    """The comment before a field, and the one behind it."""
    if field.lineno is None or field.docstring is not None:
        return ""
    lines = field.lines_collection[field.filepath]
    comments: list[str] = []
    for line in reversed(lines[: field.lineno - 1]):
        if not line.strip().startswith("#"):
            break
        comments.insert(0, line.strip().lstrip("# "))
    if behind := re.search(r"  # (.*)$", lines[field.lineno - 1]):
        comments.append(behind[1])
    return " ".join(comments)
