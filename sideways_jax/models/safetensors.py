"""Files of arrays in the format safetensors: a header of JSON, then the bytes of all arrays.

https://github.com/huggingface/safetensors says what is in a file: 8 bytes, the length of the header
as a little-endian integer; the header, for every name the dtype, the shape, and where the bytes
begin and end behind it; and the bytes, little-endian, in C order. That is all, so no package is
needed to read one.
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import jax.numpy as jnp
import numpy as np

DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": jnp.dtype(jnp.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}


def read(file: os.PathLike[str] | str) -> dict[str, np.ndarray]:
    """The arrays of a file by their names; they are read when they are used.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is something else, is cut off, or has arrays of another dtype than `DTYPES`.
    """
    file = Path(file)
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > size - 8:
                raise ValueError(f"its header has {length} bytes, of {size} of the file")
            header = json.loads(opened.read(length))
        header.pop("__metadata__", None)
        places = {name: (one["dtype"], one["shape"], one["data_offsets"])
                  for name, one in header.items()}  # fmt: skip
    except (ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file} is no whole file in the format safetensors ({error}): give such a file, often "
            "called model.safetensors"
        ) from error
    content = np.memmap(file, np.uint8, "r", offset=8 + length) if size > 8 + length else b""
    arrays = {}
    for name, (dtype, shape, (start, stop)) in places.items():
        if dtype not in DTYPES:
            raise ValueError(f"{file}: {name} is of {dtype}; it can be {', '.join(DTYPES)}")
        wanted = DTYPES[dtype].itemsize * int(np.prod(shape, dtype=np.int64))
        if stop - start != wanted or stop > len(content):
            raise ValueError(
                f"{file} is damaged: {name} has {wanted} bytes, and its place is {start} to {stop} "
                f"of {len(content)}; get it once more"
            )
        arrays[name] = np.frombuffer(content[start:stop], DTYPES[dtype]).reshape(shape)
    return arrays
