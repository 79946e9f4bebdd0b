"""Texts and whole numbers at some places of many JSON documents at once, without a Python object for any of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detector.text.flat import flat, strings_of
from worker.formats import json_loop as loop
from worker.formats.pointers import names_of


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """What stands at one place of documents.

    Attributes:
        texts: (n,) of them; empty where none is.
        there: (n,) whether there is one.
        whole: (n,) whether it is a whole number, other than 0, as `str` writes it.
    """

    texts: pa.StringArray
    there: NDArray[np.bool_]
    whole: NDArray[np.bool_]


class Found:
    """What stands at the places of documents.

    Attributes:
        plain: (n,) whether each was read; nothing is said of the others.
    """

    def __init__(self, places: JsonPlaces, data: NDArray[np.uint8], plain: NDArray[np.bool_], rows: NDArray[np.int64]):
        self.plain = plain
        self._slots = places.slots
        self._data = data
        self._rows = rows

    def at(self, pointer: str) -> Column:
        """What stands at a place."""
        first = self._slots[pointer] * loop.FOUND
        kinds, begins, ends = self._rows.T[first : first + loop.FOUND].copy()
        bounds = np.zeros(len(kinds) + 1, np.int64)
        texts = np.empty(int((ends - begins).sum()), np.uint8)
        loop.cut_out(self._data, kinds, begins, ends, texts, bounds)
        return Column(strings_of(texts, bounds), kinds != loop.ABSENT, kinds == loop.WHOLE)


class JsonPlaces:
    """Places in documents, of which each is an object in objects.

    A document is read where orjson reads the same and every place has a text or a whole number, or is not there; where
    a pointer may mean something else than a member of a member (a list, a wrapped value), it is not read.

    Args:
        pointers: to the places.

    Attributes:
        slots: by pointer, its number.
    """

    def __init__(self, pointers: Iterable[str]) -> None:
        self.slots = {pointer: slot for slot, pointer in enumerate(dict.fromkeys(pointers))}
        nodes: dict[tuple[str, ...], int] = {(): loop.ROOT}
        slots: list[int] = []
        for pointer, slot in self.slots.items():
            names = tuple(names_of(pointer))
            for length in range(1, len(names) + 1):
                if names[:length] not in nodes:
                    nodes[names[:length]] = len(nodes)
                    slots.append(loop.NOWHERE)
            slots[nodes[names] - 1] = slot
        members = [path for path in nodes if path]
        texts = [path[-1].encode() for path in members]
        self._places = loop.Places(
            names=np.frombuffer(bytearray().join(texts), np.uint8),
            ends=np.cumsum([len(text) for text in texts], dtype=np.int64),
            parents=np.array([nodes[path[:-1]] for path in members], np.int64),
            slots=np.array(slots, np.int64),
        )

    def find(self, values: Sequence[bytes | None]) -> Found:
        """Find what stands there in documents; a value of None is none."""
        array = pa.array(values, pa.binary())
        if array.null_count:
            array = pc.fill_null(array, b"")
        ascii_only = False
        try:
            array.cast(pa.string())  # checks each value by itself
        except pa.ArrowInvalid:
            ascii_only = True
        # Nothing but the bytes is looked at.
        buffers = array.buffers()
        data, bounds = flat(pa.StringArray.from_buffers(len(array), buffers[1], buffers[2], offset=array.offset))
        plain = np.zeros(len(values), np.uint8)
        rows = np.zeros((len(values), loop.FOUND * len(self.slots)), np.int64)
        loop.walk_all(self._places, data, bounds, ascii_only, plain, rows)
        rows[plain == 0] = 0
        return Found(self, data, plain.view(np.bool_), rows)
