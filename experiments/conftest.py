"""Doctests of scripts are not collected: two that define the same flag cannot share a process."""

from pathlib import Path

_HERE = Path(__file__).parent
collect_ignore = [
    str(file.relative_to(_HERE))
    for file in _HERE.rglob("*.py")
    if file != Path(__file__)
    and any(word in file.read_text(encoding="utf-8") for word in ("app.run(", "flags.DEFINE_"))
]
