"""What a document says for people: its message as text."""

import re
from collections.abc import Iterable
from itertools import repeat

import numpy as np
import pyarrow as pa

from worker.formats.json_texts import compact_json
from worker.formats.pointers import MISSING, FirstPointer
from worker.processing.documents import Documents
from worker.processing.lines import Batch, Rows

_BYTES = range(256)
_WHITE = re.compile(r"\s+")


def rendered(value: object) -> str | None:
    """Return a value as text: None where there is none, which is also what null is.

    A list of whole numbers from 0 to 255 is the bytes of a text (journald writes texts with control characters
    so); what of it is not UTF-8 is U+FFFD. Anything else that is not text is its compact JSON with sorted names.

    Raises:
        ValueError: it is nested too deeply.
    """
    if isinstance(value, str):
        return value
    if value is None or value is MISSING:
        return None
    if isinstance(value, list) and value and all(type(each) is int and each in _BYTES for each in value):
        return bytes(value).decode(errors="replace")
    return compact_json(value)


class Messages:
    """Finds the message of each document; those without one become dead letters.

    Args:
        message: places of the message; the first is taken where something stands.
        severity: of a word that is put in front of it; none where nothing stands there.
    """

    def __init__(self, message: tuple[str, ...], severity: tuple[str, ...]) -> None:
        self._message = FirstPointer(message)
        self._severity = FirstPointer(severity) if severity else None

    def of(self, documents: Documents, batch: Batch) -> tuple[pa.StringArray, Rows]:
        """Return the messages of documents, and the item of each; those of other applications have none."""
        found = documents.at(self._message)
        gone = batch.faults.keys() | batch.skipped
        if not gone and self._severity is None and not found.others:
            return found.texts, np.arange(len(found.texts))
        severities: Iterable[object] = (
            repeat(None) if self._severity is None else documents.at(self._severity).as_objects()
        )
        items: list[int] = []
        texts: list[str] = []
        for item, (value, severity) in enumerate(zip(found.as_objects(), severities)):  # noqa: B905
            if item not in gone and (text := self._text(item, severity, value, batch)) is not None:
                items.append(item)
                texts.append(text)
        return pa.array(texts, pa.string()), np.array(items, np.int64)

    def _text(self, item: int, severity: object, found: object, batch: Batch) -> str | None:
        """The message of an item, in whose document these were found; None where it has none."""
        try:
            message = rendered(found)
            if message is None:
                what = "is missing" if found is MISSING else "is null"
                batch.fault(item, "no_message", f"the message at {self._message.pointer} {what}")
            elif self._severity is not None:
                word = _WHITE.sub("_", rendered(severity) or "")
                return f"{word} {message}" if word and message else message
        except ValueError as error:
            batch.fault(item, "no_message", f"the message at {self._message.pointer} cannot be read: {error}")
            return None
        return message
