"""The workdir of a run, and whether it belongs to the experiment that is about to use it."""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.configs._newer import completed
from experiments.workdir.files import BEST, LAST, write_atomically

# What may differ when a run goes on. None of them changes what has been computed so far: videos are
# compared by their contents, so that they may have moved.
MAY_CHANGE = (
    "train.",
    "data.num_workers",
    "data.path",
    "execution",
    "schedule",
    "recompute",
    "mesh.",
)


def check(config: ConfigDict, workdir: Path) -> None:
    """Raises ValueError if the workdir holds a run with another config that has saved something.

    The fields of `MAY_CHANGE` may differ: `train.num_steps` may grow, for example.
    """
    file = workdir / "config.json"
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"the workdir {workdir} is a file; give a directory, or a new name")
    if not file.exists():
        if _has_saved(workdir):
            raise ValueError(
                f"{workdir} has checkpoints but no config.json to say of which experiment; use "
                "another workdir"
            )
        return
    try:
        there = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); use another workdir") from error
    there = _flatten(_plain(completed(ConfigDict(there))))
    here = _flatten(_plain(config))
    if not _has_saved(workdir):
        return  # It had failed before anything was saved, of numbers that are not finite perhaps.
    differences = [
        f"{field} was {_show(there, field)} there and is {_show(here, field)} now"
        for field in sorted({*there, *here})
        if not field.startswith(MAY_CHANGE)
        and (field not in there or field not in here or there[field] != here[field])
    ]
    if differences:
        raise ValueError(
            f"{workdir} holds another experiment: {'; '.join(differences)}. Use another workdir, "
            "or the same config (only these may change: "
            f"{', '.join(f'{name}*' if name[-1] == '.' else name for name in MAY_CHANGE)})"
        )


def read(workdir: Path) -> ConfigDict:
    """The config of a run.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it is damaged.
    """
    file = workdir / "config.json"
    try:
        return completed(ConfigDict(_with_tuples(json.loads(file.read_text(encoding="utf-8")))))
    except OSError as error:
        raise FileNotFoundError(
            f"{workdir} is not the workdir of a run: {file.name} is not there. Give the --workdir "
            "of experiments/main.py"
        ) from error
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error})") from error


def _with_tuples(value: Any) -> Any:
    """JSON with a tuple for every list, as configs have them."""
    if isinstance(value, dict):
        return {name: _with_tuples(inner) for name, inner in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def _has_saved(workdir: Path) -> bool:
    """Whether there is a checkpoint; a run that ended before leaves empty folders."""
    found = (one for folder in (LAST, BEST) for one in (workdir / folder).glob("*"))
    return any(one.name.isdigit() for one in found)


def claim(config: ConfigDict, workdir: Path) -> None:
    """Writes `config.json`, in one go, so that a killed run leaves the old one or the new one."""
    workdir.mkdir(parents=True, exist_ok=True)
    write_atomically(workdir / "config.json", json.dumps(_plain(config), indent=2) + "\n")


def _plain(config: ConfigDict) -> dict[str, Any]:
    # Through JSON, so that a tuple compares equal to the list that it is read back as.
    return json.loads(json.dumps(config.to_dict()))


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The same values under dotted names.

    >>> _flatten({"seed": 0, "train": {"num_steps": 1}})
    {'seed': 0, 'train.num_steps': 1}
    """
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _show(flat: dict[str, Any], field: str) -> str:
    return json.dumps(flat[field]) if field in flat else "missing"
