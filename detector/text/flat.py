"""Arrow's strings as flat bytes for compiled loops, and back."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Texts: TypeAlias = "pa.StringArray | pa.LargeStringArray"


def flat(texts: Texts) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the bytes of n texts without nulls, and the n + 1 bounds of the texts in them; the first is 0."""
    if not len(texts):  # such an array may have no buffers at all
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    _, bounds, data = texts.buffers()
    width = np.dtype(np.int32 if isinstance(texts, pa.StringArray) else np.int64)
    places = np.frombuffer(bounds, width)[texts.offset : texts.offset + len(texts) + 1]
    used = np.frombuffer(data, np.uint8)[places[0] : places[-1]] if places[0] < places[-1] else np.empty(0, np.uint8)
    # A loop is compiled for arrays that may be written to, as nearly all of Arrow's may.
    return used if used.flags.writeable else used.copy(), places.astype(np.int64) - places[0]


def strings_of(data: NDArray[np.uint8], bounds: NDArray[np.int64]) -> pa.StringArray:
    """Return n texts by their bytes, which are UTF-8, and their n + 1 bounds, of which the first is 0."""
    ends = bounds.astype(np.int32)
    return pa.StringArray.from_buffers(len(ends) - 1, pa.py_buffer(ends), pa.py_buffer(data))
