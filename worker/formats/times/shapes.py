"""Numbers of many texts at once: texts that differ in their digits only have one shape, and their numbers stand alike.

A shape is a text whose digits are all 0: the shape of `7:30 CET` is `0:00 CET`. How to read a shape is found once,
however many texts have it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_ZERO = ord("0")
_TO_SHAPE = np.arange(256, dtype=np.uint8)
_TO_SHAPE[_ZERO : _ZERO + 10] = _ZERO


@dataclass(frozen=True, slots=True)
class Alike:
    """Texts of one shape.

    Attributes:
        shape: their text with 0 for each digit. ASCII, so that a character is a byte.
        rows: (n,) which of the texts they are.
    """

    shape: str
    rows: NDArray[np.int64]
    _characters: NDArray[np.uint8]  # (n, length)

    def number(self, start: int, stop: int) -> NDArray[np.int64]:
        """(n,) the numbers that stand from `start` to `stop`: digits only, 18 at most."""
        values = np.zeros(len(self.rows), np.int64)
        for place in range(start, stop):
            values *= 10
            values += self._characters[:, place]
        values -= _ZERO * ((10 ** (stop - start) - 1) // 9)  # what each digit's code was too large by
        return values


def by_shape(texts: pa.StringArray, longest: int) -> Iterator[Alike]:
    """Yield the texts by their shape; empty ones, those with other than ASCII and those longer than `longest` not.

    Args:
        texts: (n,) without nulls.
        longest: characters.
    """
    lengths = np.diff(text_ends(texts))
    kept = np.flatnonzero((lengths > 0) & (lengths <= longest))
    if len(kept) == 0:
        return
    if len(kept) < len(texts):
        texts = texts.take(pa.array(kept))  # long ones stay out of what is copied and hashed below
    ends = text_ends(texts)
    data = np.frombuffer(texts.buffers()[2], np.uint8)[ends[0] : ends[-1]]
    starts = ends[:-1] - ends[0]
    offsets = (ends - ends[0]).astype(np.int32)
    zeroed = pa.StringArray.from_buffers(len(texts), pa.py_buffer(offsets), pa.py_buffer(_TO_SHAPE[data]))
    encoded = zeroed.dictionary_encode()
    shapes: list[str] = encoded.dictionary.to_pylist()
    which = encoded.indices.to_numpy()
    if len(shapes) == 1:
        if shapes[0].isascii():
            yield Alike(shapes[0], kept, data.reshape(len(texts), -1))
        return
    order = np.argsort(which, kind="stable")
    bounds = np.cumsum(np.bincount(which, minlength=len(shapes)))
    for shape, rows in zip(shapes, np.split(order, bounds[:-1]), strict=True):
        if shape.isascii():
            yield Alike(shape, kept[rows], data[starts[rows, None] + np.arange(len(shape))])


def text_ends(texts: pa.StringArray) -> NDArray[np.int64]:
    """(n + 1,) where the first of n texts begins in their buffer, and where each of them ends; bytes."""
    ends = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return ends.astype(np.int64)
