"""Session keys: the setting `sessions.key` over a batch of lines."""

import base64
import uuid
from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from worker.formats.line_patterns import LinePattern
from worker.formats.pointers import FirstPointer
from worker.processing.documents import Values
from worker.processing.lines import Batch, Flags, Lines, Rows
from worker.settings.session_keys import KeyEncoding, SessionKey

MAX_KEY_CHARACTERS = 1024
"""Of a session key: it stands twice in a score record, which must fit into a message however it is escaped."""

KEY_SEPARATOR: Final = "|"
"""Between the parts of a composed key; within a part it stands as `\\|`, and a backslash as `\\\\`."""

_CONTROL: Final = r"[\x00-\x1f\x7f-\x{9f}]"


class _Found(NamedTuple):
    """Keys, empty where there is none.

    Attributes:
        keys: (n,) texts.
        unread: by row, why the bytes of a key are not what the settings say; such a key is empty.
    """

    keys: pa.StringArray
    unread: Mapping[int, str]

    def there(self) -> Flags:
        """(n,) whether something stands where the key is looked for."""
        there: Flags = pc.binary_length(self.keys).to_numpy() > 0
        if self.unread:
            there |= np.isin(np.arange(len(there)), list(self.unread))
        return there

    def take(self, rows: Rows) -> "_Found":
        """Some of them, in any order and as often as wanted."""
        keys = self.keys.take(pa.array(rows))
        if not self.unread:
            return _Found(keys, {})
        return _Found(keys, {at: self.unread[row] for at, row in enumerate(rows.tolist()) if row in self.unread})


class SessionKeys:
    """Finds the key of each line.

    Args:
        key: as the settings say it.

    Raises:
        ValueError: a pattern or a pointer that cannot be used.
    """

    def __init__(self, key: SessionKey) -> None:
        self._find = _finder(key)

    def of(self, batch: Batch, lines: Lines) -> pa.StringArray:
        """Return (n,) keys, empty for a line without; keys that cannot be used make dead letters."""
        keys, unread = self._find(batch, lines)
        bad = dict(unread)
        if pc.binary_length(keys).to_numpy().max(initial=0) > MAX_KEY_CHARACTERS:
            characters = pc.utf8_length(keys).to_numpy()
            for line in np.flatnonzero(characters > MAX_KEY_CHARACTERS).tolist():
                bad[line] = f"the session key has {characters[line]} characters; allowed: {MAX_KEY_CHARACTERS}"
        for line in sorted(bad):
            batch.fault(int(lines.items[line]), "bad_key" if line in unread else "long_key", bad[line])
        return keys


_Finder = Callable[[Batch, Lines], _Found]


def _finder(key: SessionKey) -> _Finder:
    if key.source == "any_of":
        if all(part.source == "pointer" and part.pattern is None for part in key.parts):
            return _in_documents([part.value for part in key.parts])
        return _any_of([_finder(part) for part in key.parts])
    if key.source == "composed":
        return _composed([_finder(part) for part in key.parts])
    if key.source == "regex":
        pattern = LinePattern(key.value)
        return lambda _batch, lines: _Found(pattern.extract(lines.texts), {})
    whole = _in_documents([key.value]) if key.source == "pointer" else _of_records(key)
    return whole if key.pattern is None else _cut(whole, LinePattern(key.pattern))


def key_pointers(key: SessionKey) -> list[str]:
    """The pointers that a key asks documents for."""
    if key.source in ("any_of", "composed"):
        return [pointer for part in key.parts for pointer in key_pointers(part)]
    return [key.value] if key.source == "pointer" else []


def _in_documents(pointers: Sequence[str]) -> _Finder:
    places = [FirstPointer([pointer]) for pointer in pointers]

    def find(_batch: Batch, lines: Lines) -> _Found:
        assert lines.documents is not None
        keys, *others = (_key_texts(lines.documents.at(place).take(lines.items)) for place in places)
        for other in others:
            keys = pc.if_else(pa.array(pc.binary_length(keys).to_numpy() > 0), keys, other)
        return _Found(keys, {})

    return find


def _key_texts(values: Values) -> pa.StringArray:
    """Text and whole numbers as keys; nothing else is one."""
    texts = {at: str(value) for at, value in values.others.items() if type(value) is int}
    if not texts:
        return values.texts
    mask = np.zeros(len(values.whole), bool)
    mask[list(texts)] = True
    return pc.replace_with_mask(values.texts, pa.array(mask), pa.array(texts.values(), pa.string()))


def _of_records(key: SessionKey) -> _Finder:
    def find(batch: Batch, lines: Lines) -> _Found:
        found = _record_keys(key, batch)
        return found if np.array_equal(lines.rows, np.arange(len(found.keys))) else found.take(lines.rows)

    return find


def _any_of(finders: list[_Finder]) -> _Finder:
    def find(batch: Batch, lines: Lines) -> _Found:
        found, *others = (finder(batch, lines) for finder in finders)
        for other in others:
            there = found.there()
            further = {row: why for row, why in other.unread.items() if not there[row]}
            found = _Found(pc.if_else(pa.array(there), found.keys, other.keys), {**found.unread, **further})
        return found

    return find


def _composed(finders: list[_Finder]) -> _Finder:
    def find(batch: Batch, lines: Lines) -> _Found:
        parts = [finder(batch, lines) for finder in finders]
        joined = pc.binary_join_element_wise(*(_escaped(part.keys) for part in parts), KEY_SEPARATOR)
        whole = np.logical_and.reduce([pc.binary_length(part.keys).to_numpy() > 0 for part in parts])
        unread = {row: why for part in reversed(parts) for row, why in part.unread.items()}
        return _Found(pc.if_else(pa.array(whole), joined, ""), unread)

    return find


def _escaped(keys: pa.StringArray) -> pa.StringArray:
    for special in ("\\", KEY_SEPARATOR):
        keys = pc.replace_substring(keys, special, f"\\{special}")
    return keys


def _cut(find_whole: _Finder, pattern: LinePattern) -> _Finder:
    def find(batch: Batch, lines: Lines) -> _Found:
        whole = find_whole(batch, lines)
        return whole._replace(keys=pattern.extract(whole.keys))

    return find


def _record_keys(key: SessionKey, batch: Batch) -> _Found:
    """Return the key of each row, where it does not come from the value."""
    if key.source == "partition":
        names = pa.array([f"{part.topic}[{part.partition}]" for part in batch.parts], pa.string())
        return _Found(names.take(pa.array(np.repeat(np.arange(len(names)), np.diff(batch.starts)))), {})
    written = _row_bytes(key, batch)
    if key.encoding == "utf-8" and (texts := _texts(written)) is not None:
        return _Found(texts, {})
    read = _READERS[key.encoding]
    told = f"{key.source} {key.value}".rstrip()
    keys: list[str] = []
    unread: dict[int, str] = {}
    for row, each in enumerate(written):
        try:
            keys.append(read(each) if each else "")
        except ValueError as error:
            keys.append("")
            unread[row] = f"the session key ({told}) {error}"
    return _Found(pa.array(keys, pa.string()), unread)


def _row_bytes(key: SessionKey, batch: Batch) -> list[bytes | None]:
    if key.source == "record_key":
        return [each for part in batch.parts for each in part.keys or repeat(None, len(part.offsets))]
    return [
        dict(headers or ()).get(key.value)  # of several, the last
        for part in batch.parts
        for headers in part.headers or repeat(None, len(part.offsets))
    ]


def _texts(written: Sequence[bytes | None]) -> pa.StringArray | None:
    """As `_text` reads each of them, empty for none; None where there is one that it does not read."""
    try:
        texts = pc.fill_null(pa.array(written, pa.binary()).cast(pa.string()), "")
    except pa.ArrowInvalid:
        return None
    return None if pc.any(pc.match_substring_regex(texts, _CONTROL)).as_py() else texts


def _text(written: bytes) -> str:
    # A number's bytes are control characters for the most part. Some of them as keys and others as dead letters, by
    # nothing but their value, would help nobody.
    how = "; sessions.key can say how its bytes are to be read: hex, base64, int64 or uuid"
    try:
        text = written.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"is not text: {error.reason} at byte {error.start}{how}") from None
    for place, character in enumerate(text):
        if character < " " or "\x7f" <= character < "\xa0":
            raise ValueError(f"is not text: it has the control character {ord(character)} at {place}{how}")
    return text


def _int64(written: bytes) -> str:
    if len(written) != 8:
        raise ValueError(f"has {len(written)} bytes; allowed for int64: 8")
    return str(int.from_bytes(written, "big", signed=True))


def _uuid(written: bytes) -> str:
    if len(written) != 16:
        raise ValueError(f"has {len(written)} bytes; allowed for uuid: 16")
    return str(uuid.UUID(bytes=written))


_READERS: Mapping[KeyEncoding, Callable[[bytes], str]] = {
    "utf-8": _text,
    "hex": bytes.hex,
    "base64": lambda written: base64.b64encode(written).decode(),
    "int64": _int64,
    "uuid": _uuid,
}
