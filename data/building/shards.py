"""Writes records to ArrayRecord files, as they come.

TFDS's own writer sorts everything first, for more than a gigabyte on the disk: it takes the space
twice and needs TensorFlow (4.9.10, `core/shuffle.py`). Here they come in order.
"""

import errno
import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

from array_record.python import array_record_module

# Every record can be read alone.
_OPTIONS = "group_size:1"
SHARD_BYTES = 512 * 2**20


class Written(NamedTuple):
    """What a split came to."""

    lengths: list[int]  # records of each file
    num_bytes: int


def write(
    records: Iterable[bytes],
    path: Callable[[int, int], str],
    shard_bytes: int = SHARD_BYTES,
) -> Written:
    """Writes all `records`, to files of about `shard_bytes` bytes.

    Args:
      records: in the order in which they will be read.
      path: the name of a file, from its number and how many there are.
      shard_bytes: a file that has so many gets no more.

    Raises:
      OSError: if they cannot be written, as when the disk is full.
    """
    parts, lengths, num_bytes, writer, size = [], [], 0, None, 0
    try:
        for record in records:
            if writer is None or size >= shard_bytes:
                if writer is not None:
                    writer.close()
                parts.append(f"{path(len(parts), 1)}.part")
                writer, size = array_record_module.ArrayRecordWriter(parts[-1], _OPTIONS), 0
                lengths.append(0)
            writer.write(record)
            lengths[-1] += 1
            size += len(record)
            num_bytes += len(record)
        if writer is not None:
            writer.close()
    except RuntimeError as error:  # ArrayRecord's word for everything
        if "write() failed" not in str(error) and "Failed to close" not in str(error):
            raise
        raise OSError(errno.EIO, f"the data set could not be written: {error}") from error
    for number, part in enumerate(parts):
        os.rename(part, path(number, len(parts)))
    return Written(lengths, num_bytes)
