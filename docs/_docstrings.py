"""How the API reference reads our docstrings: an extension of griffe, named in mkdocs.yml.

Three habits of this repository are not Markdown, or not what griffe expects: doctests that follow a
paragraph, several arguments with one description, and comments behind the fields of a NamedTuple.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

SHARED = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +.*)*)", re.MULTILINE)
DOCTEST = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for everything that was found in the source."""
        del kwargs
        if obj.docstring is not None:
            obj.docstring.value = _fenced(_one_each(obj.docstring.value))
        elif obj.is_attribute and obj.parent is not None and obj.parent.is_class:
            comment = _comment(obj)
            if comment:
                obj.docstring = griffe.Docstring(comment, parent=obj)


def _one_each(text: str) -> str:
    """`a, b: what they are` as an entry for each."""

    def entries(match: re.Match) -> str:
        names = match[2].split(", ")
        return "\n".join(f"{match[1]}{name}: {match[3]}" for name in names)

    return SHARED.sub(entries, text)


def _fenced(text: str) -> str:
    """Doctests in fences: Markdown would take `>>>` for quotations."""
    return DOCTEST.sub(lambda match: f"```pycon\n{match[0]}\n```", text)


def _comment(field: griffe.Attribute) -> str:
    """The comment before a field or behind it, if it has one."""
    lines = field.lines_collection[field.filepath]
    before: list[str] = []
    for line in reversed(lines[: field.lineno - 1]):
        if not line.strip().startswith("#"):
            break
        before.insert(0, line.strip().lstrip("# "))
    behind = re.search(r"  # (.*)$", lines[field.lineno - 1])
    comment = " ".join([*before, *([behind[1]] if behind else [])])
    return comment[:1].upper() + comment[1:]
