"""Values as OpenTelemetry wraps them in JSON: `{"stringValue": …}`, lists of `{"key": …, "value": …}`.

The mapping is that of Protocol Buffers (https://protobuf.dev/programming-guides/json/): 64-bit numbers are text, bytes
are base64.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

_SINGLE = frozenset(["stringValue", "intValue", "doubleValue", "boolValue"])


def plain(value: object) -> object:
    """Return what is in a wrapped value, through all levels; any other value as it is.

    Bytes are text, with U+FFFD for what of them is not UTF-8.
    """
    if not isinstance(value, dict) or len(value) != 1:
        return value
    [(kind, inner)] = value.items()
    if kind in _SINGLE:
        return inner
    if kind == "bytesValue":
        return _text(inner)
    if not isinstance(inner, dict) or not isinstance(values := inner.get("values", []), list):
        return value
    if kind == "arrayValue":
        return [plain(each) for each in values]
    if kind == "kvlistValue" and all(map(_is_pair, values)):
        return {pair["key"]: plain(pair.get("value")) for pair in values}
    return value


def member(node: object, name: str, otherwise: object) -> object:
    """Return the value of a key in a list of pairs, or within a wrapped value that holds one."""
    if isinstance(node, list):
        for pair in node:
            if _is_pair(pair) and pair["key"] == name:
                return plain(pair.get("value"))
        return otherwise
    inside = plain(node)
    return inside.get(name, otherwise) if inside is not node and isinstance(inside, dict) else otherwise


def _text(encoded: object) -> object:
    try:
        return base64.b64decode(encoded, validate=True).decode(errors="replace")  # type: ignore[arg-type]
    except (TypeError, ValueError, binascii.Error):
        return encoded


def _is_pair(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("key"), str) and value.keys() <= {"key", "value"}
