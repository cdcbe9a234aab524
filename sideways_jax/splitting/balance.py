"""Where to cut, if every module is to cost about the same and little is to cross."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SLACK = 1.1  # by how much the largest module may exceed the least possible, to send fewer bytes


def balanced_cuts(
    costs: Sequence[float],
    places: Sequence[int],
    crossing: Sequence[float],
    modules: int,
    slack: float = SLACK,
    below: Sequence[int] | None = None,
) -> tuple[int, ...]:
    """Cuts a list of costs into contiguous parts.

    Of all cuts whose largest part costs at most `slack` times the least that is possible, it is one
    where the fewest bytes cross; if possible, one where every part has a parameter.

    Args:
      costs: of every equation.
      places: where it can be cut: place c is before equation c. Ascending, at least `modules` - 1.
      crossing: for every one of `places`, the bytes that cross there.
      modules: D.
      slack: at least 1.
      below: for every one of `places`, how many parameters are below it, and then how many there
        are; None to ignore them.

    Returns:
      D-1 of the places.

    >>> balanced_cuts([1, 1, 1, 1], [1, 2, 3], [1, 1, 1], 2)
    (2,)
    >>> balanced_cuts([10, 1, 1, 10], [1, 2, 3], [1, 9, 1], 2)
    (1,)
    """
    before = np.concatenate([[0.0], np.cumsum(np.asarray(costs, float))])
    sums = before[[0, *places, len(costs)]]  # of the costs below every node
    limit = slack * _least_limit(sums, modules) * (1 + 1e-9)
    first = np.searchsorted(sums, sums - limit)
    last = np.arange(len(sums))
    bytes_at = np.array([0.0, *crossing, 0.0])
    nodes = None
    if below is not None:
        nodes = _cheapest(bytes_at, first, np.searchsorted([0, *below], [0, *below]), modules)
    if nodes is None:
        nodes = _cheapest(bytes_at, first, last, modules)
    assert nodes is not None, "the least limit can always be kept"
    return tuple(places[node - 1] for node in nodes)


def _cheapest(
    bytes_at: np.ndarray, first: np.ndarray, last: np.ndarray, modules: int
) -> list[int] | None:
    """The nodes where the fewest bytes cross; None if there are none.

    Args:
      bytes_at: of every node; the first is the start and the last the end.
      first, last: a part that ends at node i starts at a node from `first[i]` to `last[i]` - 1.
      modules: the number of parts.
    """
    count = len(bytes_at)
    sent = np.full(count, np.inf)  # by the parts so far, if they end at a node
    sent[0] = 0.0
    chosen = []  # for every part and the node where it ends, the node where it starts
    for _ in range(modules):
        new, best = np.full(count, np.inf), np.zeros(count, int)
        for i in range(1, count):
            if first[i] < last[i]:
                best[i] = first[i] + int(np.argmin(sent[first[i] : last[i]]))
                new[i] = sent[best[i]] + bytes_at[i]
        sent = new
        chosen.append(best)
    if not np.isfinite(sent[-1]):
        return None
    nodes, node = [], count - 1
    for best in reversed(chosen[1:]):
        node = int(best[node])
        nodes.append(node)
    return nodes[::-1]


def _least_limit(sums: np.ndarray, modules: int) -> float:
    """The least cost of the largest of `modules` parts, to 1e-6."""
    low, high = float(np.max(np.diff(sums))), float(sums[-1])
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        if _parts(sums, middle) <= modules:
            high = middle
        else:
            low = middle
    return high


def _parts(sums: np.ndarray, limit: float) -> int:
    """How many parts are needed if none may cost more than a limit, which all steps keep to."""
    count, node, last = 0, 0, len(sums) - 1
    while node < last:
        furthest = int(np.searchsorted(sums, sums[node] + limit * (1 + 1e-12), side="right")) - 1
        node, count = max(min(furthest, last), node + 1), count + 1
    return count
