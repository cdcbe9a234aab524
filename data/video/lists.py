"""Lists of videos in CSV files, as they come: of Kinetics, of a spreadsheet, of a script.

Cells are separated by commas, semicolons or tabs, in UTF-8 or, with a byte order mark, in UTF-16.
"""

import codecs
import csv
import functools
import io
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from data.video import decoding

COLUMNS = ("path", "label", "start", "end")
# What else a column may be called, in lower case and with spaces. Kinetics has the ids of videos.
_NAMES = {
    "path": ("path", "file", "filename", "file name", "video path", "video", "clip"),
    "youtube id": ("youtube id", "youtube identifier"),
    "label": ("label", "class", "class name", "class label", "category", "action"),
    "start": ("start", "time start", "start time"),
    "end": ("end", "time end", "end time"),
    "split": ("split",),
}
_SEPARATORS = (",", ";", "\t")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class Row(NamedTuple):
    """One line of the list."""

    path: str  # relative to the root
    label: str
    start: float  # seconds
    end: float  # seconds; infinity for the end of the file
    where: str  # file and line, for messages


def read(path: str, root: str) -> list[Row]:
    """The lines of a list.

    Args:
      path: the list. A first line with the names of the columns may be there.
      root: the folder of the videos. Of Kinetics' own lists, which have no paths, the files are
        looked for in it; see `_kinetics_file`.

    Raises:
      FileNotFoundError: if it does not exist.
      ValueError: if a line makes no sense, or there is none; the message has its number.
    """
    path = os.path.expanduser(path)
    shown = decoding.printable(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"the list of videos {shown} does not exist")
    with open(path, "rb") as file:
        text = _decoded(file.read(), shown)
    tables = [_table(text, separator, shown) for separator in _SEPARATORS]
    tables = [table for table in tables if table]
    if not tables:
        raise ValueError(f"{shown} lists no videos")
    for table in tables:
        if columns := _header(table[0][1]):
            lines = table[1:]
            break
    else:
        columns = list(COLUMNS)
        lines = next((table for table in tables if _is_file(root, table[0][1])), tables[0])
        if not _is_file(root, lines[0][1]):
            raise ValueError(
                f"{shown}, line {lines[0][0]}: {','.join(lines[0][1])[:200]!r} begins with no "
                "video, and names no columns that are known: a header has path and label, or, as "
                "that of Kinetics, label, youtube_id, time_start and time_end"
            )
    if not lines:
        raise ValueError(f"{shown} lists no videos")
    # A list of Kinetics has 240,000 lines; every folder is looked into once.
    videos_of = functools.cache(functools.partial(_videos_of, root))
    return [_row(f"{shown}, line {number}", line, columns, videos_of) for number, line in lines]


def _decoded(content: bytes, shown: str) -> str:
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{shown}, line {line}: {content[error.start : error.end]!r} is not {encoding}; save "
            "the list as UTF-8. If Windows made it: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"{shown}, line {line}: a byte of zeros is no text; save it as UTF-8")
    return text


def _table(text: str, separator: str, shown: str) -> list[tuple[int, list[str]]]:
    """The lines that are not empty, with their numbers, as lists of cells."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        return [
            (reader.line_num, [cell.strip() for cell in line])
            for line in reader
            if any(cell.strip() for cell in line)
        ]
    except csv.Error as error:
        raise ValueError(f"{shown}, line {reader.line_num}: {error}") from None


def _header(line: Sequence[str]) -> list[str] | None:
    """What the columns are, in our words; None if this is not a line of names.

    >>> _header(["Label", "youtube_id", "time_start", "time_end", "split", "is_cc"])
    ['label', 'youtube id', 'start', 'end', 'split', 'is cc']
    """
    cells = [cell.lower().replace("_", " ").replace("-", " ") for cell in line]
    columns = list(cells)
    for name, others in _NAMES.items():
        if found := next((other for other in others if other in cells), None):
            columns[cells.index(found)] = name
    named = "label" in columns and ("path" in columns or "youtube id" in columns)
    return columns if named else None


def _is_file(root: str, line: Sequence[str]) -> bool:
    """Whether the line begins with a video, by its name or because it is there."""
    first = line[0]
    return not first or first.lower().endswith(decoding.EXTENSIONS) or _exists(root, first)


def _exists(root: str, file: str) -> bool:
    return os.path.isfile(os.path.join(root, file))


def _row(where: str, line: Sequence[str], columns: Sequence[str], videos_of: Callable) -> Row:
    if len(line) > len(columns):
        raise ValueError(f"{where}: {len(line)} columns, not {len(columns)}: {','.join(columns)}")
    cells = dict(zip(columns, line, strict=False))
    if not (cells.get("path") or cells.get("youtube id")) or not cells.get("label"):
        raise ValueError(f"{where}: {','.join(line)!r} should be path,label[,start,end]")
    try:
        # Spreadsheets of many languages write 1,5.
        start, end = (
            float((cells.get(name) or default).replace(",", "."))
            for name, default in (("start", "0"), ("end", "inf"))
        )
    except ValueError:
        raise ValueError(f"{where}: start and end must be numbers, in seconds") from None
    if not 0 <= start < end:
        raise ValueError(f"{where}: start is {start:g} and end is {end:g}; 0 <= start < end")
    if path := cells.get("path"):
        return Row(path, cells["label"], start, end, where)
    path, is_cut = _kinetics_file(
        videos_of, cells["youtube id"], cells["label"], cells.get("split", ""), start, end
    )
    if is_cut:
        start, end = 0.0, float("inf")
    return Row(path, cells["label"], start, end, where)


def _kinetics_file(
    videos_of: Callable, video: str, label: str, split: str, start: float, end: float
) -> tuple[str, bool]:
    """The file of a video of Kinetics, relative to the root, and whether it is cut out already.

    Downloaders cut parts out and call them ID_000010_000020.mp4, with the seconds of start and end,
    or keep whole videos as ID.mp4. They are in the root or in a folder SPLIT, CLASS or SPLIT/CLASS
    of it, where CLASS has spaces or underscores.
    """
    cut = video
    if end < float("inf"):
        cut = f"{video}_{int(start):06d}_{int(end):06d}"
    parts = ["", split, *(("val", "validate") if split.startswith("val") else ())]
    classes = ["", label, label.replace(" ", "_")]
    folders = dict.fromkeys(os.path.join(part, name) for part in parts for name in classes)
    for stem in dict.fromkeys([cut, video]):
        for folder in folders:
            if file := videos_of(folder).get(stem):
                return os.path.join(folder, file), stem != video
    return f"{cut}.mp4", True


def _videos_of(root: str, folder: str) -> dict[str, str]:
    """The videos in a folder of the root, by their names without extensions."""
    try:
        names = sorted(os.listdir(os.path.join(root, folder)))
    except OSError:
        return {}
    videos = [name for name in names if name.lower().endswith(decoding.EXTENSIONS)]
    return {os.path.splitext(name)[0]: name for name in videos}
