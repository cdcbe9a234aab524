"""The closest valid name to an unknown one."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """A hint for an error, before the list of valid names; empty if no name is close.

    For dotted names, such as fields of a config, it compares the last parts as well.

    >>> did_you_mean("train.nmu_steps", ["train.num_steps", "train.log_every"])
    "did you mean 'train.num_steps'? "
    >>> did_you_mean("learning_rte", ["seed", "optimizer.learning_rate"])
    "did you mean 'optimizer.learning_rate'? "
    """

    def similarity(candidate: str) -> float:
        pairs = (name, candidate), (name.split(".")[-1], candidate.split(".")[-1])
        whole, last = (difflib.SequenceMatcher(None, a, b).ratio() for a, b in pairs)
        # The whole name counts for a little more: it decides between equal last parts.
        return max(whole, 0.9 * last + 0.1 * whole)

    best = max(valid, key=similarity, default=None)
    if best is None or similarity(best) < 0.5:
        return ""
    return f"did you mean {best!r}? "
