"""Names that users choose from."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def check_name(what: str, name: str | None, valid: Iterable[str]) -> str:
    """The name itself; ValueError, which names the closest, unless it is among the valid ones.

    >>> check_name("rule", "sidewise", ("sideways", "backprop"))
    Traceback (most recent call last):
    ...
    ValueError: unknown rule 'sidewise'; did you mean 'sideways'? Valid: 'sideways', 'backprop'
    """
    valid = tuple(valid)
    if name in valid:
        return name
    close = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ValueError(f"unknown {what} {name!r}; {hint}Valid: {', '.join(map(repr, valid))}")
