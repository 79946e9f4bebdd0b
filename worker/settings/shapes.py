"""Settings of `input` that say what a record looks like: where its events, their messages and their owners are."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import PlainSerializer, PlainValidator

from worker.formats.patterns import check_pattern
from worker.formats.pointers import check_pointer, check_pointers, check_split
from worker.settings.values import Problem, Reference, refuse, written_pointers


@dataclass(frozen=True, slots=True)
class LinePart:
    """The part of a line that makes its template: a pattern's first group, or the whole match."""

    pattern: str


@dataclass(frozen=True, slots=True)
class EventStart:
    """A pattern that the first line of an event matches, and no other line."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Only:
    """Which records are this application's.

    Attributes:
        source, where: a JSON pointer or the name of a header.
        test, wanted: the text that has to stand there, or a pattern that has to be found in it.
    """

    source: Literal["pointer", "header"]
    where: str
    test: Literal["equals", "matches"]
    wanted: str


def _message(value: object) -> tuple[str, ...] | LinePart:
    if isinstance(value, LinePart):
        return value
    if isinstance(value, dict) and set(value) == {"pattern"}:
        return LinePart(_below("pattern", check_pattern, value["pattern"]))
    try:
        return check_pointers(value)
    except ValueError as error:
        raise ValueError(f"{error}; a list of them; for lines of text {{pattern: …}}") from None


def _written_message(message: tuple[str, ...] | LinePart) -> object:
    return {"pattern": message.pattern} if isinstance(message, LinePart) else written_pointers(message)


def _multiline(value: object) -> bool | EventStart:
    if isinstance(value, EventStart):
        return value
    if value is True or value == "true":
        return True
    if value is False or value == "false":
        return False
    if isinstance(value, dict) and set(value) == {"start"}:
        return EventStart(_below("start", check_pattern, value["start"]))
    raise ValueError("is not true or false, nor {start: …} with a pattern of the lines with which events begin")


def _only(value: object) -> Only | None:
    if value is None or isinstance(value, Only):
        return value
    if isinstance(value, dict) and len(value) == 2:
        for source in ("pointer", "header"):
            for test in ("equals", "matches"):
                if set(value) == {source, test}:
                    return _checked_only(source, value[source], test, value[test])
    raise ValueError(
        "does not say which records are meant; allowed: null, {pointer: …, equals: …}, {header: …, equals: …}, or "
        "either with matches: PATTERN in place of equals"
    )


def _checked_only(
    source: Literal["pointer", "header"], where: object, test: Literal["equals", "matches"], wanted: object
) -> Only:
    problems = []
    if source == "pointer":
        try:
            check_pointer(where)
        except ValueError as error:
            problems.append(Problem((source,), str(error)))
    elif not isinstance(where, str) or not where:
        problems.append(Problem((source,), "is not the name of a record header"))
    if test == "matches":
        try:
            check_pattern(wanted)
        except ValueError as error:
            problems.append(Problem((test,), str(error)))
    elif isinstance(wanted, bool) or not isinstance(wanted, str | int):
        problems.append(Problem((test,), "is not a text or a whole number"))
    if problems:
        refuse(*problems)
    return Only(source, str(where), test, str(wanted))


def _below(name: str, check: Callable[[object], str], value: object) -> str:
    try:
        return check(value)
    except ValueError as error:
        refuse(Problem((name,), str(error)))


def _optional(check: Callable[[object], object]) -> PlainValidator:
    return PlainValidator(
        lambda value: None if value is None else check(value), json_schema_input_type=str | list[str] | None
    )


Message = Annotated[
    tuple[str, ...] | LinePart,
    PlainValidator(_message, json_schema_input_type=str | list[str] | dict[Literal["pattern"], str]),
    PlainSerializer(_written_message, when_used="json"),
]
OptionalPointers = Annotated[
    tuple[str, ...] | None,
    _optional(check_pointers),
    PlainSerializer(lambda pointers: pointers and written_pointers(pointers), when_used="json"),
]
OptionalSplit = Annotated[str | None, _optional(check_split)]
Multiline = Annotated[
    bool | EventStart,
    PlainValidator(_multiline, json_schema_input_type=bool | Reference | dict[Literal["start"], str]),
    PlainSerializer(
        lambda value: {"start": value.pattern} if isinstance(value, EventStart) else value, when_used="json"
    ),
]
OnlySetting = Annotated[
    Only | None,
    PlainValidator(
        _only, json_schema_input_type=dict[Literal["pointer", "header", "equals", "matches"], str | int] | None
    ),
    PlainSerializer(lambda only: only and {only.source: only.where, only.test: only.wanted}, when_used="json"),
]
