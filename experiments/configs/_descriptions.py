"""What the fields of a config are for: the comments beside them, where they are set."""

import inspect
import re
from pathlib import Path

from ml_collections import ConfigDict

from experiments.configs import _recognition, autoencoder, common

# `config.a.b = value  # comment` and, in a dictionary, `"a": value,  # comment`.
_FIELD = re.compile(r'(?:config\.([\w.]+) = |"(\w+)": )(.*)')


def describe(config: ConfigDict, file: str | None = None) -> list[str]:
    """A line for every field: the flag that sets it, with its value, and its comment.

    Args:
      config: whose fields are shown.
      file: the config file, whose comments come first.
    """
    comments: dict[str, str] = {}
    sources = [Path(file).read_text(encoding="utf-8")] if file else []
    for shared in (_recognition, autoencoder):  # What they say is for configs made of them.
        name = shared.__name__.rpartition(".")[2]
        if name in "".join(sources):
            sources.append(inspect.getsource(shared))
    for source in (*sources, inspect.getsource(common)):
        comments = comments_in(source) | comments
    sets = Path(__file__).resolve().parents[2] / "data" / "sets"
    own = sets / f"{config.data.get('name', '')}.py"
    others = sets / "recorded.py", sets / "protocol.py", sets.parent / "video" / "files.py"
    for one in (own, *others, *sorted(sets.glob("*.py"))):
        if one.exists():
            comments = comments_in(one.read_text(encoding="utf-8"), "data.") | comments
    return list(_lines(config, comments, ""))


def comments_in(source: str, prefix: str = "") -> dict[str, str]:
    """The comments of fields, beside them or above them, by the names of the fields.

    >>> comments_in('config = {"a": {' + chr(10) + '  "b": 1,  # of b' + chr(10) + "}}", "data.")
    {'data.b': 'of b'}
    """
    found: dict[str, str] = {}
    outer: list[tuple[int, str]] = []
    above: list[str] = []
    for line in source.splitlines():
        text = line.strip()
        if text.startswith("#"):
            above.append(text[1:].strip())
            continue
        if match := _FIELD.match(text):
            dotted, key, value = match.groups()
            indent = len(line) - len(line.lstrip())
            while outer and outer[-1][0] >= indent:
                outer.pop()
            name = prefix + ".".join([*(name for _, name in outer), dotted or key])
            beside = value.partition("  # ")[2]
            if beside or above:
                found.setdefault(name, beside or " ".join(above))
            if value.startswith("{"):
                outer.append((indent, dotted or key))
        above = []
    return found


def _lines(config: ConfigDict, comments: dict[str, str], prefix: str):
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _lines(value, comments, f"{prefix}{name}.")
        else:
            shown = value if isinstance(value, str) else repr(value)
            flag = f"  --config.{prefix}{name}={shown}"
            comment = comments.get(prefix + name)
            if comment is None and prefix == "model.":  # From a function that configs share.
                comment = comments.get(name)
            yield f"{flag}  # {comment}" if comment else flag
