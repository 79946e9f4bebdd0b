"""JSON values to documents, one for each event of theirs, each with its place in the record.

A value is one document, or several on lines of their own (NDJSON). A document that is a list stands for its elements,
and `input.split` says where further ones are.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from worker.formats.encodings import Encoding, in_utf8
from worker.formats.json_places import Found, JsonPlaces
from worker.formats.json_texts import bare_texts, element_json, json_lines, parse_json, schema_number
from worker.formats.pointers import MISSING, FirstPointer, Path, Split, alone, written_path
from worker.processing.lines import Batch, Flags, Reason, Rows

_NO_DOCUMENT: object = MISSING


class _Place(NamedTuple):
    """Where in its record an item stands, as `worker.processing.lines.Place` asks."""

    line: int | None
    path: Path
    root: object
    text: bytes  # of the line or the value, in case it is no document

    def __str__(self) -> str:
        path = f"at {written_path(self.path)}" if self.path else ""
        return path if self.line is None else f"line {self.line} {path}".rstrip()

    def alone(self) -> bytes:
        return self.text if self.root is _NO_DOCUMENT else element_json(alone(self.root, self.path))


class _Item(NamedTuple):
    document: object
    reason: Reason | None = None
    message: str = ""
    place: _Place | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Values:
    """What stands at a pointer in documents.

    Attributes:
        texts: (n,) what is a text or a whole number; empty where something else stands.
        whole: (n,) whether it is a whole number.
        others: by number, what is neither, `MISSING` included.
    """

    texts: pa.StringArray
    whole: Flags
    others: Mapping[int, object]

    def take(self, rows: Rows) -> "Values":
        """Those of some documents, in any order and as often as wanted."""
        if np.array_equal(rows, np.arange(len(self.whole))):
            return self
        others = self.others
        if others:
            others = {at: others[row] for at, row in enumerate(rows.tolist()) if row in others}
        return Values(self.texts.take(pa.array(rows)), self.whole[rows], others)

    def as_objects(self) -> list[object]:
        """Each value; a whole number as its text."""
        found: list[object] = self.texts.to_pylist()
        for at, value in self.others.items():
            found[at] = value
        return found


class Documents:
    """The documents of a batch, one an item; most are never parsed as a whole.

    Args:
        values: of the rows.
        rows: of the items.
        found: in the rows.
        parsed: by item, the documents that nothing was found in.
    """

    def __init__(self, values: Sequence[bytes | None], rows: Rows, found: Found, parsed: Mapping[int, object]) -> None:
        self._values = values
        self._rows = rows
        self._found = found
        self._parsed = parsed

    def whole(self) -> list[object]:
        """Each document, parsed."""
        return [
            self._parsed[item] if item in self._parsed else orjson.loads(self._values[row] or b"")
            for item, row in enumerate(self._rows.tolist())
        ]

    def at(self, pointer: FirstPointer, nothing: tuple[object, ...] = (None,)) -> Values:
        """What the pointer names in each document, as `FirstPointer.resolve_each`."""
        found = self._first(pointer.pointers, nothing)
        if not self._parsed:
            return found
        found = found.take(self._rows)
        others = {item: value for item, value in found.others.items() if item not in self._parsed}
        resolved = pointer.resolve_each(list(self._parsed.values()), nothing)
        texts: dict[int, str] = {}
        for item, value in zip(self._parsed, resolved, strict=True):
            if isinstance(value, str):
                texts[item] = value
            else:
                others[item] = value
        mask = np.zeros(len(self._rows), bool)
        mask[list(texts)] = True
        replaced = pc.replace_with_mask(found.texts, pa.array(mask), pa.array(texts.values(), pa.string()))
        return Values(replaced, found.whole, others)

    def _first(self, pointers: Sequence[str], nothing: tuple[object, ...]) -> Values:
        """What the first of the pointers names in each row where something stands, as the walk tells."""
        first = self._found.at(pointers[0])
        texts, there, whole = first.texts, first.there, first.whole
        if len(pointers) == 1:
            return Values(texts, whole, dict.fromkeys(np.flatnonzero(~there).tolist(), MISSING))
        words = pa.array([word for word in nothing if isinstance(word, str)], pa.string())

        def is_nothing(texts: pa.StringArray) -> Flags:
            flags: Flags = pc.is_in(texts, words).to_numpy(zero_copy_only=False)
            return flags

        good = there & ~is_nothing(texts)
        for pointer in pointers[1:]:
            if good.all():
                break
            other = self._found.at(pointer)
            other_good = other.there & ~is_nothing(other.texts)
            # Where only words for nothing stand, the first of them is told.
            further = ~good & (other_good | (other.there & ~there))
            texts = pc.if_else(pa.array(further), other.texts, texts)
            whole = np.where(further, other.whole, whole)
            good, there = good | other_good, there | other.there
        return Values(texts, whole, dict.fromkeys(np.flatnonzero(~there).tolist(), MISSING))


class DocumentReader:
    """Reads the documents of a batch.

    Args:
        split: where the events of a document are; None: it is one, or a list of them.
        encoding: of the values.
        pointers: that the documents will be asked for.

    Raises:
        ValueError: a pointer that cannot be used.
    """

    def __init__(self, split: str | None, encoding: Encoding, pointers: Iterable[str]) -> None:
        self._split = None if split is None else Split(split)
        self._each = Split("/*")
        self._encoding = encoding
        self._places = JsonPlaces(pointers)

    def read(self, batch: Batch, skipped: Collection[int]) -> Documents:
        """Return the document of each item, and tell the batch which items there are.

        Args:
            batch: its items, their places and faults are set.
            skipped: rows that are not read; each is one item, without a document.
        """
        values = batch.values()
        if self._encoding != "utf-8":
            values = [None if value is None else in_utf8(value, self._encoding) for value in values]
        found = self._places.find(values)
        if self._split is not None:
            found.plain[:] = False
        found.plain[list(skipped)] = False
        parsed: dict[int, object] = {}
        counts, more = np.ones(len(values), np.int64), 0
        for row in np.flatnonzero(~found.plain).tolist():
            items = [_Item(_NO_DOCUMENT)] if row in skipped else self._of(values[row])
            for number, item in enumerate(items, row + more):
                parsed[number] = item.document
                if row in skipped:
                    batch.skipped.add(number)
                if item.reason is not None:
                    batch.fault(number, item.reason, item.message)
                if len(items) > 1 and item.place is not None:
                    batch.places[number] = item.place
            counts[row] = len(items)
            more += len(items) - 1
        batch.item_rows = np.repeat(np.arange(len(values)), counts)
        return Documents(values, batch.item_rows, found, parsed)

    def _of(self, text: bytes | None) -> list[_Item]:
        """The items of a value."""
        try:
            document = orjson.loads(text or b"")
            if self._split is None and not isinstance(document, list):
                return [_Item(document)]
            items = list(self._parts(None, document, text or b""))
        except orjson.JSONDecodeError:
            items = list(self._items(text))
        if not items:
            what = "list of events is" if self._split is None else f"list at {self._split.pointer} is missing or"
            items = [_Item(_NO_DOCUMENT, "empty", f"there is no event: the {what} empty")]
        return items

    def _items(self, value: bytes | None) -> Iterator[_Item]:
        """Yield what a value holds that is not one JSON document as it stands."""
        if value is None:
            yield _Item(_NO_DOCUMENT, "null", "the value is null")
            return
        text = b""
        why = ""
        for text in bare_texts(value):
            try:
                document = parse_json(text)
            except ValueError as error:
                why = str(error)
                lines = json_lines(text)
                if lines is None:
                    continue
                for number, line in lines:
                    yield from self._line(number, line)
                return
            yield from self._parts(None, document, text)
            return
        yield _unreadable(value, text, why)

    def _line(self, number: int, line: bytes) -> Iterator[_Item]:
        try:
            document = parse_json(line)
        except ValueError as error:
            place = _Place(number, (), _NO_DOCUMENT, line)
            yield _unreadable(line, line, str(error))._replace(place=place)
        else:
            yield from self._parts(number, document, line)

    def _parts(self, line: int | None, document: object, text: bytes) -> Iterator[_Item]:
        """Yield the items of a document."""
        outer = self._each.of(document) if isinstance(document, list) else [((), document, "")]
        for outer_path, element, _ in outer:
            inner = [((), element, "")] if self._split is None else self._split.of(element)
            for path, each, problem in inner:
                place = _Place(line, (*outer_path, *path), document, text)
                if problem:
                    yield _Item(_NO_DOCUMENT, "no_message", problem, place)
                else:
                    yield _Item(each, place=place)


def _unreadable(value: bytes, text: bytes, why: str) -> _Item:
    if not text:
        return _Item(_NO_DOCUMENT, "empty", "there is no text")
    number = schema_number(value)
    if number is not None:
        told = (
            f"the value is not JSON but what a schema registry's serialiser wrote (schema {number}: Avro or Protobuf)"
        )
        return _Item(_NO_DOCUMENT, "bad_json", told)
    try:
        value.decode()
    except UnicodeDecodeError as error:
        return _Item(_NO_DOCUMENT, "not_utf8", f"the value is not UTF-8: {error.reason} at byte {error.start}")
    return _Item(_NO_DOCUMENT, "bad_json", f"the value is not JSON: {why}")
