"""Writes rar archives without compression; no free program does.

The format is RAR 2.0 to 4.x, that of UCF101 and HMDB51, documented in technote.txt of WinRAR 3.
Programs that read rar read these archives.
"""

import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

_MARKER = b"Rar!\x1a\x07\x00"
_UNIX, _STORED, _VERSION = 3, 0x30, 20
_HAS_DATA = 0x8000
_MODE = 0o100644


def write(path: os.PathLike[str] | str, files: Mapping[str, bytes]) -> None:
    """Writes an archive of `files`: names with "/" between folders (ASCII), and contents."""
    archive = _MARKER + _header(0x73, 0, bytes(6))
    for name, contents in files.items():
        encoded = name.encode("ascii")
        fields = struct.pack(
            "<LLBLLBBHL",
            len(contents),
            len(contents),
            _UNIX,
            zlib.crc32(contents),
            0x5A21_0000,  # modified on 2025-01-01
            _VERSION,
            _STORED,
            len(encoded),
            _MODE,
        )
        archive += _header(0x74, _HAS_DATA, fields + encoded) + contents
    Path(path).write_bytes(archive + _header(0x7B, 0x4000, b""))


def _header(kind: int, flags: int, fields: bytes) -> bytes:
    header = struct.pack("<BHH", kind, flags, 7 + len(fields)) + fields
    return struct.pack("<H", zlib.crc32(header) & 0xFFFF) + header
