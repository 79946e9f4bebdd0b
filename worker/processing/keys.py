"""Session keys: the setting `sessions.key` over a batch of lines."""

import base64
import uuid
from collections.abc import Callable, Iterator, Mapping
from itertools import repeat
from typing import Final

import pyarrow as pa

from worker.formats.patterns import LinePattern
from worker.formats.pointers import JsonPointer
from worker.processing.lines import Batch, Lines
from worker.settings.session_keys import KeyEncoding, SessionKey

MAX_KEY_CHARACTERS = 1024
"""Of a session key: it stands twice in a score record, which must fit into a message however it is escaped."""

KEY_SEPARATOR: Final = "|"
"""Between the parts of a composed key; within a part it stands as `\\|`, and a backslash as `\\\\`."""


class _NotText(str):
    """Why the bytes of a key are not what the settings say; takes a key's place."""

    __slots__ = ()


_Keys = list[str]


class SessionKeys:
    """Finds the key of each line.

    Args:
        key: as the settings say it.

    Raises:
        ValueError: a pattern or a pointer that cannot be used.
    """

    def __init__(self, key: SessionKey) -> None:
        self._find = _finder(key)
        self._of_bytes = key.uses("record_key") or key.uses("header")

    def of(self, batch: Batch, lines: Lines) -> list[str]:
        """Return (n,) keys, empty for a line without; keys that cannot be used make dead letters."""
        keys = self._find(batch, lines)
        if not self._of_bytes and max(map(len, keys), default=0) <= MAX_KEY_CHARACTERS:
            return keys
        for index, item in enumerate(lines.items.tolist()):
            key = keys[index]
            if isinstance(key, _NotText):
                batch.fault(item, "bad_key", str(key))
                keys[index] = ""
            elif len(key) > MAX_KEY_CHARACTERS:
                told = f"the session key has {len(key)} characters; allowed: {MAX_KEY_CHARACTERS}"
                batch.fault(item, "long_key", told)
        return keys


_Finder = Callable[[Batch, Lines], _Keys]


def _finder(key: SessionKey) -> _Finder:
    if key.source == "any_of":
        if all(part.source == "pointer" and part.pattern is None for part in key.parts):
            return _first_pointer([JsonPointer(part.value) for part in key.parts])
        return _any_of([_finder(part) for part in key.parts])
    if key.source == "composed":
        return _composed([_finder(part) for part in key.parts])
    if key.source == "regex":
        pattern = LinePattern(key.value)
        return lambda _batch, lines: pattern.extract(lines.texts).to_pylist()
    cut = _no_cut if key.pattern is None else _cut(LinePattern(key.pattern))
    if key.source == "pointer":
        pointer = JsonPointer(key.value)
        return lambda _batch, lines: cut(
            [_key_text(pointer.resolve(lines.documents[item])) for item in lines.items.tolist()]
        )

    def of_rows(batch: Batch, lines: Lines) -> _Keys:
        keys = cut(_row_keys(key, batch))
        return [keys[row] for row in lines.rows.tolist()]

    return of_rows


def _first_pointer(pointers: list[JsonPointer]) -> _Finder:
    def find_one(document: object) -> str:
        for pointer in pointers:
            if key := _key_text(pointer.resolve(document)):
                return key
        return ""

    return lambda _batch, lines: [find_one(lines.documents[item]) for item in lines.items.tolist()]


def _any_of(finders: list[_Finder]) -> _Finder:
    def find(batch: Batch, lines: Lines) -> _Keys:
        columns = (finder(batch, lines) for finder in finders)
        keys = next(columns)
        for column in columns:
            keys = [key or other for key, other in zip(keys, column, strict=True)]
        return keys

    return find


def _composed(finders: list[_Finder]) -> _Finder:
    def find(batch: Batch, lines: Lines) -> _Keys:
        return [_joined(parts) for parts in zip(*(finder(batch, lines) for finder in finders), strict=True)]

    return find


def _joined(parts: tuple[str, ...]) -> str:
    for part in parts:
        if isinstance(part, _NotText):
            return part
    if not all(parts):
        return ""
    return KEY_SEPARATOR.join(part.replace("\\", "\\\\").replace(KEY_SEPARATOR, f"\\{KEY_SEPARATOR}") for part in parts)


def _no_cut(keys: _Keys) -> _Keys:
    return keys


def _cut(pattern: LinePattern) -> Callable[[_Keys], _Keys]:
    def cut(keys: _Keys) -> _Keys:
        found = pattern.extract(pa.array(keys, pa.string())).to_pylist()
        return [key if isinstance(key, _NotText) else part for key, part in zip(keys, found, strict=True)]

    return cut


def _key_text(value: object) -> str:
    """Return text and whole numbers as a key; nothing else is one."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) else ""


def _row_keys(key: SessionKey, batch: Batch) -> _Keys:
    """Return the key of each row, where it does not come from the value."""
    if key.source == "partition":
        return [f"{part.topic}[{part.partition}]" for part in batch.parts for _ in part.offsets]
    read = _READERS[key.encoding]
    told = f"{key.source} {key.value}".rstrip()
    keys: _Keys = []
    for written in _row_bytes(key, batch):
        if not written:
            keys.append("")
            continue
        try:
            keys.append(read(written))
        except ValueError as error:
            keys.append(_NotText(f"the session key ({told}) {error}"))
    return keys


def _row_bytes(key: SessionKey, batch: Batch) -> Iterator[bytes | None]:
    for part in batch.parts:
        if key.source == "record_key":
            yield from part.keys or repeat(None, len(part.offsets))
        else:
            for headers in part.headers or repeat(None, len(part.offsets)):
                yield dict(headers or ()).get(key.value)  # of several, the last


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
