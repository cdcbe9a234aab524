"""Names that users choose from."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def check_name(what: str, name: str, valid: Iterable[str]) -> None:
    """Raises ValueError unless `name` is among the valid ones; it names the closest.

    >>> check_name("rule", "sidewise", ("sideways", "backprop"))
    Traceback (most recent call last):
    ...
    ValueError: unknown rule 'sidewise'; did you mean 'sideways'? Valid: 'sideways', 'backprop'
    """
    valid = tuple(valid)
    if name in valid:
        return
    close = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ValueError(f"unknown {what} {name!r}; {hint}Valid: {', '.join(map(repr, valid))}")
