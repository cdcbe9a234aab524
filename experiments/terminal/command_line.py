"""The command line of the programs; a mistake in it ends in one or two lines."""

import os
import re
import sys
from collections.abc import Callable, Iterator

from absl import app, flags, logging
from ml_collections import ConfigDict
from rich.console import Console

from experiments.terminal.closest import did_you_mean

# `--config.field.other=value`, `-config.field`, `--noconfig.flag`.
_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)")
_HELP = {"--help", "-help", "-h", "--helpshort", "-helpshort"}


def quiet() -> None:
    """Hides log lines of libraries below a warning, unless `--verbosity` is given."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)


def console() -> Console:
    """A console for tables on stdout; in a file, which has no width, 140 columns."""
    return Console(width=None if sys.stdout.isatty() else 140)


def parse_flags(
    argv: list[str], describe: Callable[[ConfigDict, str], list[str]] | None = None
) -> list[str]:
    """Parses the flags as `absl.app.run` does, for its `flags_parser`.

    `describe(config, file)` gives the lines about the fields of a config that `--help` shows, if
    the program takes one.

    An unknown field of the config, or a config that is not there, ends the program with a message
    that names the closest valid one; `absl` and `ml_collections` would show a traceback.
    """
    path = config_path(argv)
    if path is not None and not os.path.isfile(path):
        folder = os.path.dirname(path) or "."
        files = os.listdir(folder) if os.path.isdir(folder) else []
        configs = [os.path.join(folder, name) for name in files if name.endswith(".py")]
        _fail(f"--config={path}: there is no such file; {did_you_mean(path, configs)}".rstrip("; "))
    if _HELP.intersection(argv):
        _help(argv, path, describe)
    try:
        left = app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError):
        message = _unknown_field(argv)
        if message is None:
            raise
        _fail(message)
    if len(left) > 1:
        _fail(f"unexpected argument {left[1]!r}: everything is given by flags, --name=value")
    return left


def config_path(argv: list[str]) -> str | None:
    """The file that `--config=FILE:ARGUMENTS` names; None without this flag."""
    value = _config_value(argv)
    return None if value is None else value.split(":", 1)[0]


def fields(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    """The dotted names of all fields, inner nodes included.

    >>> list(fields(ConfigDict({"seed": 0, "train": {"num_steps": 1}})))
    ['seed', 'train', 'train.num_steps']
    """
    for name, value in config.items():
        yield prefix + name
        if isinstance(value, ConfigDict):
            yield from fields(value, f"{prefix}{name}.")


def _config_value(argv: list[str]) -> str | None:
    for argument, following in zip(argv, [*argv[1:], None], strict=True):
        name, has_value, value = argument.partition("=")
        if name in ("--config", "-config"):
            return value if has_value else following
    return None


def _unknown_field(argv: list[str]) -> str | None:
    config = flags.FLAGS["config"].parser.parse(_config_value(argv))
    valid = list(fields(config))
    for match in filter(None, map(_OVERRIDE.match, argv)):
        name = match.group(1)
        if name not in valid:
            parent = _parent(name, valid)
            siblings = [field for field in valid if field.rpartition(".")[0] == parent]
            return (
                f"unknown config field {name!r}; {did_you_mean(name, valid)}"
                f"Valid: {', '.join(siblings)}"
            )
    return None


def _help(argv: list[str], path: str | None, describe: Callable | None) -> None:
    """Prints what the program does, its flags, and the fields of the config; ends the program."""
    app.usage(shorthelp=True, writeto_stdout=True)
    if describe is None:
        sys.exit(0)
    if path is None:
        print("The fields of a config: --config=FILE --help, such as")
        print("  --config=experiments/configs/quickstart.py --help")
        sys.exit(0)
    config = flags.FLAGS["config"].parser.parse(_config_value(argv))
    print(f"The fields of {path}, with their values:", *describe(config, path), sep="\n")
    sys.exit(0)


def _parent(name: str, valid: list[str]) -> str:
    """The longest beginning of a dotted name that is a field with others inside."""
    while name:
        name = name.rpartition(".")[0]
        if any(field.startswith(f"{name}.") for field in valid):
            return name
    return ""


def _fail(message: str) -> None:
    print(f"FATAL Flags parsing error: {message}", file=sys.stderr)
    sys.exit(1)
