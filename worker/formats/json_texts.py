"""JSON as producers write it, with what orjson refuses and can be read all the same."""

import json
import re
from collections.abc import Iterator

import orjson

# Python's json.dumps writes these numbers, and a producer that cuts texts leaves half of a pair behind.
_READABLE = re.compile(rb"NaN|Infinity|\\u[dD][89a-fA-F]")
_HALF = re.compile("[\ud800-\udfff]")
_BOM = b"\xef\xbb\xbf"
_MARK_BYTES = 5
_BLANK = b"\0 \t\r\n"


def parse_json(text: bytes) -> object:
    r"""Return the document of a JSON text.

    NaN, Infinity and -Infinity are numbers; half of a surrogate pair (`\ud83d` alone) is U+FFFD.

    Raises:
        ValueError: a sentence: it is not JSON.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if not _READABLE.search(text):
            raise ValueError(str(error)) from None
        try:
            whole = json.dumps(json.loads(text.decode()), ensure_ascii=False)
            return json.loads(_HALF.sub("\ufffd", whole))
        except (ValueError, RecursionError):
            raise ValueError(str(error)) from None


def bare_texts(value: bytes) -> Iterator[bytes]:
    """Yield what may be the JSON text of a value, the likeliest first: without what stands around it.

    That is the mark of a schema registry (a zero byte and the four of the schema's number), a byte order mark, zero
    bytes and white space at the ends.
    """
    if value.startswith(b"\0"):
        marked = _stripped(value[_MARK_BYTES:])
        if marked.startswith((b"{", b"[")):
            yield marked
    yield _stripped(value)


def _stripped(text: bytes) -> bytes:
    return text.strip(_BLANK).removeprefix(_BOM).strip(_BLANK)


def schema_number(value: bytes) -> int | None:
    """The schema's number in a value of a schema registry that holds no JSON; None for any other."""
    looks_like_json = any(text.startswith((b"{", b"[")) for text in bare_texts(value))
    if len(value) > _MARK_BYTES and value[0] == 0 and not looks_like_json:
        return int.from_bytes(value[1:_MARK_BYTES], "big")
    return None


def json_lines(text: bytes) -> list[tuple[int, bytes]] | None:
    """The lines of a text, numbered from 1, without blank ones, where its first one is a document by itself."""
    lines = [(number, line) for number, line in enumerate(text.split(b"\n"), 1) if line.strip(_BLANK)]
    if len(lines) < 2 or not lines[0][1].strip(_BLANK).startswith((b"{", b"[")):
        return None
    try:
        parse_json(lines[0][1].strip(_BLANK))
    except ValueError:
        return None
    return lines


def element_json(element: object) -> bytes:
    """The JSON text of a document, in ASCII, so that it is the same in any encoding."""
    try:
        text = orjson.dumps(element)
    except orjson.JSONEncodeError:  # a number too large for it, or more levels
        text = b"\xff"
    return text if text.isascii() else json.dumps(element, separators=(",", ":")).encode()


def compact_json(value: object) -> str:
    """The one JSON text of a value: compact, names sorted.

    Raises:
        ValueError: it is nested too deeply.
    """
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    except orjson.JSONEncodeError:  # a number too large for it, or more levels
        try:
            return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
