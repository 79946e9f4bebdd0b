"""JSON pointers (RFC 6901), compiled once and resolved against many documents; and pointers to many places at once."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from worker.formats.any_values import member, plain

_INDEX = re.compile(r"0|[1-9][0-9]*")
_EACH = "*"
_PLAINLY: Final = frozenset([str, int, float, bool])  # types of values that are what they are wherever they stand


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


def check_pointers(pointers: object) -> tuple[str, ...]:
    """Return one JSON pointer or a list of them, of which the first that is there is meant.

    Raises:
        ValueError: a sentence: it is neither.
    """
    if not isinstance(pointers, list | tuple):
        return (check_pointer(pointers),)
    if not pointers:
        raise ValueError("is an empty list; allowed: JSON pointers")
    for pointer in pointers:
        try:
            check_pointer(pointer)
        except ValueError as error:
            raise ValueError(f"holds {pointer!r}, which {error}") from None
    return tuple(pointers)


def check_split(pointer: object) -> str:
    """Return a JSON pointer in which `*` stands for every element of a list.

    Raises:
        ValueError: a sentence: it is none.
    """
    try:
        if _EACH in check_pointer(pointer).split("/"):
            return str(pointer)
    except ValueError:
        pass
    raise ValueError("is not a pointer to events; allowed: a JSON pointer with * for every element, such as /records/*")


class JsonPointer:
    """A place in a JSON document.

    In a list of objects with `key` and `value` (OpenTelemetry's attributes) a name finds the value of that key, and
    OpenTelemetry's wrapped values (`{"stringValue": …}`) are what is in them.

    Args:
        pointer: such as `/log/lines/0`; `~1` stands for `/` and `~0` for `~`; the empty pointer is the whole document.

    Raises:
        ValueError: as `check_pointer`.
    """

    def __init__(self, pointer: str) -> None:
        if pointer:
            check_pointer(pointer)
        self.pointer = pointer
        self._names = names_of(pointer)

    def resolve(self, document: object) -> object:
        """Return what the pointer names in a parsed document, or `MISSING`."""
        for name in self._names:
            if isinstance(document, dict):
                found = document.get(name, MISSING)
                document = member(document, name, MISSING) if found is MISSING and len(document) == 1 else found
            elif isinstance(document, list) and _INDEX.fullmatch(name) and len(name) < 10:
                index = int(name)
                document = document[index] if index < len(document) else MISSING
            elif isinstance(document, list):
                document = member(document, name, MISSING)
            else:
                return MISSING
        return plain(document) if isinstance(document, dict) else document

    def resolve_each(self, documents: Sequence[object]) -> list[object]:
        """Return what the pointer names in each document; objects in objects, as most are, cost least."""
        if not self._names:
            return list(map(self.resolve, documents))
        *outer, last = self._names
        around: Sequence[object] = documents
        for name in outer:
            around = [each.get(name) if type(each) is dict else None for each in around]
        resolve, plainly = self.resolve, _PLAINLY
        return [
            value if type(each) is dict and type(value := each.get(last)) in plainly else resolve(document)
            for each, document in zip(around, documents, strict=True)
        ]


class FirstPointer:
    """The first of some places in a document where something stands that is no word for nothing, as null is.

    Args:
        pointers: at least one.
    """

    def __init__(self, pointers: Sequence[str]) -> None:
        self.pointer = " or ".join(pointers)
        self.pointers = tuple(pointers)
        self._pointers = [JsonPointer(pointer) for pointer in pointers]

    def resolve(self, document: object, nothing: tuple[object, ...] = (None,)) -> object:
        """Return what stands there.

        Args:
            document: a parsed one.
            nothing: values that stand for none; the first of them is returned where there is no other value, and
                `MISSING` where there is nothing at all.
        """
        found: object = MISSING
        for pointer in self._pointers:
            value = pointer.resolve(document)
            if value is not MISSING:
                if value not in nothing:
                    return value
                found = value if found is MISSING else found
        return found

    def resolve_each(self, documents: Sequence[object], nothing: tuple[object, ...] = (None,)) -> list[object]:
        """Return what stands there in each document."""
        first = self._pointers[0].resolve_each(documents)
        if len(self._pointers) == 1:
            return first
        return [
            value if type(value) is str and value not in nothing else self.resolve(document, nothing)
            for value, document in zip(first, documents, strict=True)
        ]


Path = tuple[str | int, ...]


class Part(NamedTuple):
    """One of the elements that a split finds, or what stands where a list should be.

    Attributes:
        path: names and indices that lead to it.
        element: with the members of the objects around it that it lacks.
        problem: why it is no element; empty for one.
    """

    path: Path
    element: object
    problem: str = ""


class Split:
    """Every element of the lists at a pointer with `*`.

    Args:
        pointer: such as `/resourceLogs/*/scopeLogs/*/logRecords/*`; other names than `*` are members of objects.

    Raises:
        ValueError: as `check_split`.
    """

    def __init__(self, pointer: str) -> None:
        self.pointer = check_split(pointer)
        self._names = names_of(pointer)

    def of(self, document: object) -> Iterator[Part]:
        """Yield the elements in their order. Where a part of the way is missing or null, there are none."""
        return self._parts(document, 0, {}, ())

    def _parts(self, node: object, step: int, around: Mapping[str, object], path: Path) -> Iterator[Part]:
        if step == len(self._names):
            yield Part(path, {**around, **node} if isinstance(node, dict) else node)
            return
        name = self._names[step]
        if node is None or node is MISSING:
            return
        if name == _EACH and isinstance(node, list):
            for index, each in enumerate(node):
                yield from self._parts(each, step + 1, around, (*path, index))
        elif name != _EACH and isinstance(node, dict):
            outer = {**around, **{key: value for key, value in node.items() if key != name}}
            yield from self._parts(node.get(name, MISSING), step + 1, outer, (*path, name))
        else:
            wanted = "a list" if name == _EACH else "an object"
            yield Part(path, node, f"what stands there is not {wanted}, so {self.pointer} finds no events in it")


def written_path(path: Path) -> str:
    """The JSON pointer of a path."""
    return "".join(
        [f"/{step}" if isinstance(step, int) else "/" + step.replace("~", "~0").replace("/", "~1") for step in path]
    )


def alone(node: object, path: Path) -> object:
    """Return a document in which each list that a path leads through holds nothing but what is on the path."""
    if not path:
        return node
    step, rest = path[0], path[1:]
    if isinstance(node, list) and isinstance(step, int):
        return [alone(node[step], rest)]
    if isinstance(node, dict) and isinstance(step, str):
        return {**node, step: alone(node[step], rest)}
    return node


def names_of(pointer: str) -> list[str]:
    """The names of a pointer, without its escapes."""
    return [name.replace("~1", "/").replace("~0", "~") for name in pointer.split("/")[1:]]
