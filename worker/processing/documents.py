"""JSON values to documents, one for each event of theirs, each with its place in the record.

A value is one document, or several on lines of their own (NDJSON). A document that is a list stands for its elements,
and `input.split` says where further ones are.
"""

from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np
import orjson

from worker.formats.encodings import Encoding, in_utf8
from worker.formats.json_texts import bare_texts, element_json, json_lines, parse_json, schema_number
from worker.formats.pointers import MISSING, Path, Split, alone, written_path
from worker.processing.lines import Batch, Reason

_NO_DOCUMENT: object = MISSING


class _Place(NamedTuple):
    """Where in its record an item stands, as `worker.processing.lines.Place` asks."""

    line: int | None
    path: Path
    root: object
    text: bytes  # of the line or the value, in case it is no document

    def __str__(self) -> str:
        line = "" if self.line is None else f"line {self.line}"
        path = f"at {written_path(self.path)}" if self.path else ""
        return " ".join(filter(None, (line, path)))

    def alone(self) -> bytes:
        return self.text if self.root is _NO_DOCUMENT else element_json(alone(self.root, self.path))


class _Item(NamedTuple):
    document: object
    reason: Reason | None = None
    message: str = ""
    place: _Place | None = None


class DocumentReader:
    """Reads the documents of a batch.

    Args:
        split: where the events of a document are; None: it is one, or a list of them.
        encoding: of the values.

    Raises:
        ValueError: a pointer that cannot be used.
    """

    def __init__(self, split: str | None, encoding: Encoding) -> None:
        self._split = None if split is None else Split(split)
        self._each = Split("/*")
        self._encoding = encoding

    def read(self, batch: Batch, skipped: Collection[int]) -> list[object]:
        """Return the document of each item, and tell the batch which items there are.

        Args:
            batch: its items, their places and faults are set.
            skipped: rows that are not read; each is one item, without a document.
        """
        documents: list[object] = []
        rows: list[int] = []
        whole = self._split is None
        for row, value in enumerate(batch.values()):
            if row in skipped:
                batch.skipped.add(len(documents))
                documents.append(_NO_DOCUMENT)
                rows.append(row)
                continue
            text = value if value is None or self._encoding == "utf-8" else in_utf8(value, self._encoding)
            try:
                document = orjson.loads(text or b"")
                if whole and not isinstance(document, list):
                    documents.append(document)
                    rows.append(row)
                    continue
                items = list(self._parts(None, document, text or b""))
            except orjson.JSONDecodeError:
                items = list(self._items(text))
            if not items:
                what = "list of events is" if self._split is None else f"list at {self._split.pointer} is missing or"
                items = [_Item(_NO_DOCUMENT, "empty", f"there is no event: the {what} empty")]
            for item in items:
                number = len(documents)
                documents.append(item.document)
                rows.append(row)
                if item.reason is not None:
                    batch.fault(number, item.reason, item.message)
                if len(items) > 1 and item.place is not None:
                    batch.places[number] = item.place
        batch.item_rows = np.array(rows, np.int64)
        return documents

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
