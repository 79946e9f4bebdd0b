"""JSON pointers (RFC 6901), compiled once and resolved against many documents."""

import re
from typing import Final

_INDEX = re.compile(r"0|[1-9][0-9]*")


class _Missing:
    __slots__ = ()


MISSING: Final = _Missing()
"""What a pointer resolves to in a document that lacks the place it names."""


class JsonPointer:
    """A place in a JSON document.

    Args:
        pointer: such as `/log/lines/0`; `~1` stands for `/` and `~0` for `~`; the empty pointer is the whole document.

    Raises:
        ValueError: not a JSON pointer.
    """

    def __init__(self, pointer: str) -> None:
        if (pointer and not pointer.startswith("/")) or re.search("~(?![01])", pointer):
            raise ValueError(f"{pointer!r} is not a JSON pointer")
        self._names = [name.replace("~1", "/").replace("~0", "~") for name in pointer.split("/")[1:]]

    def resolve(self, document: object) -> object:
        """Return what the pointer names in a parsed document, or `MISSING`."""
        for name in self._names:
            if isinstance(document, dict):
                document = document.get(name, MISSING)
            elif isinstance(document, list) and _INDEX.fullmatch(name) and len(name) < 10:
                index = int(name)
                document = document[index] if index < len(document) else MISSING
            else:
                return MISSING
        return document
