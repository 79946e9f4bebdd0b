"""The kinds of value that a setting can have.

Each kind is an annotated type whose validator says in one sentence what is wrong and what is allowed. The
sentence follows the setting's path and value in an error line, so it starts with a verb:
`is not a duration; allowed: …`.
"""

import re
from collections.abc import Callable
from typing import Annotated, NamedTuple, Never

from pydantic import BeforeValidator, PlainSerializer, PlainValidator
from pydantic_core import PydanticCustomError

from worker.formats.durations import format_duration, parse_duration
from worker.formats.patterns import check_pattern


class Problem(NamedTuple):
    """One thing that is wrong inside a setting: where below it, and the sentence."""

    path: tuple[str | int, ...]
    text: str
    value_shown: bool = True


def refuse(*problems: Problem) -> Never:
    """Reports several problems of one setting, or one that lies deeper than the setting itself."""
    raise PydanticCustomError("problems", "has several problems", {"problems": list(problems)})


def whole(least: int, most: int) -> PlainValidator:
    """A whole number from `least` to `most`; digits in quotes count, true and false do not."""
    sentence = f"is not a whole number from {least:,} to {most:,}".replace(",", "_")

    def validate(value: object) -> int:
        if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,18}", value):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(sentence)
        return value

    return PlainValidator(validate)


def _fraction(value: object) -> float:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            value = None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError("is not a number from 0 to 1")
    return float(value)


def _flag(value: object) -> bool:
    if value is True or value == "true":
        return True
    if value is False or value == "false":
        return False
    raise ValueError("is not true or false")


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("is not a text; allowed: characters, in quotes where they look like a number")
    return value


def _name(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9._-]{1,128}", value):
        raise ValueError("is not a name; allowed: up to 128 letters, digits, dots, underscores and hyphens")
    return value


def _topic(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", value) or value in {".", ".."}:
        raise ValueError("is not a topic name; allowed: up to 249 letters, digits, dots, underscores and hyphens")
    return value


def duration(least: str, most: str) -> PlainValidator:
    """A duration in milliseconds within two durations."""
    validate = _duration_within(least, most)
    return PlainValidator(validate)


def optional_duration(least: str, most: str) -> PlainValidator:
    """As `duration`, or null."""
    validate = _duration_within(least, most, " or null")
    return PlainValidator(lambda value: None if value is None else validate(value))


def _duration_within(least: str, most: str, otherwise: str = "") -> Callable[[object], int]:
    least_ms, most_ms = parse_duration(least), parse_duration(most)

    def validate(value: object) -> int:
        try:
            milliseconds = parse_duration(value if isinstance(value, str) else "")
        except ValueError as error:
            raise ValueError(f"{error}{otherwise}") from None
        if not least_ms <= milliseconds <= most_ms:
            raise ValueError(f"is out of range; allowed: {least} to {most}{otherwise}")
        return milliseconds

    return validate


def _written(milliseconds: int | None) -> str | None:
    return None if milliseconds is None else format_duration(milliseconds)


def _optional_name(value: object) -> str | None:
    return None if value is None else _name(value)


def _optional_topic(value: object) -> str | None:
    return None if value is None else _topic(value)


def written_pointers(pointers: tuple[str, ...]) -> str | list[str]:
    """Pointers as a settings file writes them."""
    return pointers[0] if len(pointers) == 1 else list(pointers)


Fraction = Annotated[float, PlainValidator(_fraction)]
Flag = Annotated[bool, PlainValidator(_flag)]
Text = Annotated[str, PlainValidator(_text)]
Name = Annotated[str, PlainValidator(_name)]
OptionalName = Annotated[str | None, PlainValidator(_optional_name)]
Topic = Annotated[str, PlainValidator(_topic)]
OptionalTopic = Annotated[str | None, PlainValidator(_optional_topic)]
Pattern = Annotated[str, PlainValidator(check_pattern)]
as_duration = PlainSerializer(_written, when_used="json")


def _device(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", value):
        raise ValueError("is not a device; allowed: auto, cpu, cuda or cuda:N")
    return value


Device = Annotated[str, PlainValidator(_device)]


def _topics(value: object) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names:
        raise ValueError("is not a list of topics; allowed: topic names, or one pattern that starts with ^")
    if len(names) == 1 and isinstance(names[0], str) and names[0].startswith("^"):
        if r"\d" in names[0]:
            raise ValueError(r"uses \d; allowed: a POSIX extended pattern, which has [0-9] for a digit")
        return (check_pattern(names[0]),)
    problems = []
    for name in names:
        if isinstance(name, str) and name.startswith("^"):
            problems.append(Problem((), f"holds {name!r} beside other topics; allowed: one pattern alone"))
            continue
        try:
            _topic(name)
        except ValueError as error:
            problems.append(Problem((), f"holds {name!r}, which {error}"))
    if problems:
        refuse(*problems)
    return tuple(dict.fromkeys(names))


Topics = Annotated[tuple[str, ...], PlainValidator(_topics), PlainSerializer(list, when_used="json")]


def _masks(value: object) -> object:
    return () if value == "default" else value


default_masks = BeforeValidator(_masks)
