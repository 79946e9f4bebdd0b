"""JSON pointers (RFC 6901), compiled once and resolved against many documents."""

import re
from typing import Final

_INDEX = re.compile(r"0|[1-9][0-9]*")


class _Missing:
    __slots__ = ()


MISSING: Final = _Missing()
"""What a pointer resolves to in a document that lacks the place it names."""


def check_pointer(pointer: object) -> str:
    """Return a JSON pointer that names a member.

    Raises:
        ValueError: a sentence: it is none.
    """
    if not isinstance(pointer, str) or not pointer.startswith("/") or re.search("~(?![01])", pointer):
        raise ValueError(
            "is not a JSON pointer; allowed: /name or /outer/inner, with ~1 for / and ~0 for ~ inside a name"
        )
    return pointer


class JsonPointer:
    """A place in a JSON document.

    Args:
        pointer: such as `/log/lines/0`; `~1` stands for `/` and `~0` for `~`; the empty pointer is the whole document.

    Raises:
        ValueError: as `check_pointer`.
    """

    def __init__(self, pointer: str) -> None:
        if pointer:
            check_pointer(pointer)
        self.pointer = pointer
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
