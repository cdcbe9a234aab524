"""Things of the user's own, by their names in a config: `MODULE:NAME`, as Python writes it."""

import importlib.util
import pkgutil
from typing import Any


def imported(name: str, what: str) -> Any:
    """What `name` stands for, `MODULE:NAME` (or `MODULE:` for the module itself).

    The module has to be on Python's path; programs of `experiments/` add the current directory.

    Args:
      name: such as "mine:network" for `network` in mine.py.
      what: that it is, for messages.

    Raises:
      ValueError: if there is no such module, or nothing of that name in it.

    >>> imported("math:sqrt", "function")(4.0)
    2.0
    >>> imported("mtah:sqrt", "function")
    Traceback (most recent call last):
        ...
    ValueError: function 'mtah:sqrt': there is no module mtah on Python's path or in the current \
directory; run the command where mtah.py is, or add that folder to PYTHONPATH
    """
    module, _, attribute = name.partition(":")
    unclear = f"{what} {name!r}: give MODULE:NAME, mine:network for network in mine.py"
    if not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(unclear)
    top = module.partition(".")[0]
    if importlib.util.find_spec(top) is None:
        raise ValueError(
            f"{what} {name!r}: there is no module {top} on Python's path or in the current "
            f"directory; run the command where {top}.py is, or add that folder to PYTHONPATH"
        )
    try:
        return pkgutil.resolve_name(name)
    except AttributeError as error:
        raise ValueError(f"{what} {name!r}: {module} has no {attribute}") from error
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):  # Something that the module needs.
            raise
        raise ValueError(unclear) from error
