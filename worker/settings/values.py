"""The kinds of value that a setting can have.

Each kind is an annotated type, made of pydantic's own constraints where they can say it, and has one sentence on what
is wrong and what is allowed. It follows the setting's path and value in an error line, so it starts with a verb:
`is not a duration; allowed: …`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, NamedTuple, Never

import yaml
from annotated_types import Ge, GroupedMetadata, Le
from pydantic import (
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    PlainValidator,
    Strict,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from worker.formats.durations import PATTERN, format_duration, parse_duration
from worker.formats.patterns import check_pattern

#: In the JSON Schema of the settings, which an editor reads before `${NAME}` is looked up in the environment.
Reference = Annotated[str, Field(pattern=r"\$\{")]
_Duration = Annotated[str, Field(pattern=rf"^\s*{PATTERN}\s*$")]
_Filled = Annotated[str, Field(min_length=1)]


class Problem(NamedTuple):
    """One thing that is wrong inside a setting: where below it, and the sentence."""

    path: tuple[str | int, ...]
    text: str
    value_shown: bool = True


def refuse(*problems: Problem) -> Never:
    """Reports several problems of one setting, or one that lies deeper than the setting itself."""
    raise PydanticCustomError("problems", "has several problems", {"problems": list(problems)})


class _OrReference:
    """Says in the JSON Schema that a reference may stand in the value's place."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        written = handler(schema)
        kinds = written.get("anyOf", [written])
        reference = {"pattern": r"\$\{", "type": "string"}
        return {"anyOf": kinds if reference in kinds else [*kinds, reference]}


@dataclass(frozen=True)
class Told(GroupedMetadata):
    """Whatever the constraints before it refuse, the sentence is the error."""

    sentence: str

    def __iter__(self) -> Iterator[object]:
        """For pydantic."""
        yield WrapValidator(self._validate)
        yield _OrReference()

    def _validate(self, value: object, constraints: ValidatorFunctionWrapHandler) -> object:
        try:
            return constraints(value)
        except ValidationError:
            raise ValueError(self.sentence) from None


@dataclass(frozen=True)
class Whole(GroupedMetadata):
    """A whole number from `least` to `most`; digits in quotes count, true and false do not.

    `Annotated[int, Whole(1, 10)]`, and `Annotated[int | None, Whole(1, 10, " or null")]`.
    """

    least: int
    most: int
    otherwise: str = ""

    def __iter__(self) -> Iterator[object]:
        """The constraints, for pydantic."""
        yield from (Strict(), Ge(self.least), Le(self.most), BeforeValidator(_digits))
        allowed = f"from {self.least:,} to {self.most:,}".replace(",", "_")
        yield from Told(f"is not a whole number {allowed}{self.otherwise}")


def _digits(value: object) -> object:
    return int(value) if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,18}", value) else value


def _number(value: object) -> object:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _boolean(value: object) -> object:
    return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value


@dataclass(frozen=True)
class Duration(GroupedMetadata):
    """A duration from `least` to `most`, such as 10m, as whole milliseconds.

    `Annotated[int, Duration("0ms", "1d")]`, and `Annotated[int | None, Duration("1ms", "1d", " or null")]`.
    """

    least: str
    most: str
    otherwise: str = ""

    def __iter__(self) -> Iterator[object]:
        """For pydantic."""
        written = _Duration | Reference | None if self.otherwise else _Duration | Reference
        yield PlainValidator(self._validate, json_schema_input_type=written)
        yield PlainSerializer(_written, when_used="json")

    def _validate(self, value: object) -> int | None:
        if value is None and self.otherwise:
            return None
        try:
            milliseconds = parse_duration(value if isinstance(value, str) else "")
        except ValueError as error:
            raise ValueError(f"{error}{self.otherwise}") from None
        if not parse_duration(self.least) <= milliseconds <= parse_duration(self.most):
            raise ValueError(f"is out of range; allowed: {self.least} to {self.most}{self.otherwise}")
        return milliseconds


def _written(milliseconds: int | None) -> str | None:
    return None if milliseconds is None else format_duration(milliseconds)


def written_pointers(pointers: tuple[str, ...]) -> str | list[str]:
    """Pointers as a settings file writes them."""
    return pointers[0] if len(pointers) == 1 else list(pointers)


def flow_yaml(value: object) -> str:
    """A value as a settings file writes it, on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=1_000_000, allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


Fraction = Annotated[float, Strict(), Ge(0), Le(1), BeforeValidator(_number), Told("is not a number from 0 to 1")]
Flag = Annotated[bool, Strict(), BeforeValidator(_boolean), Told("is not true or false")]
Text = Annotated[
    str,
    StringConstraints(strict=True, pattern=r"\S"),
    Told("is not a text; allowed: characters, in quotes where they look like a number"),
]
Name = Annotated[
    str,
    StringConstraints(strict=True, pattern=r"^[A-Za-z0-9._-]{1,128}$"),
    Told("is not a name; allowed: up to 128 letters, digits, dots, underscores and hyphens"),
]
Topic = Annotated[
    str,
    StringConstraints(strict=True, pattern=r"^(\.*[A-Za-z0-9_-][A-Za-z0-9._-]*|\.{3,})$", max_length=249),
    Told("is not a topic name; allowed: up to 249 letters, digits, dots, underscores and hyphens"),
]
Pattern = Annotated[str, PlainValidator(check_pattern, json_schema_input_type=_Filled)]


Device = Annotated[
    str,
    StringConstraints(strict=True, pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$"),
    Told("is not a device; allowed: auto, cpu, cuda or cuda:N"),
]

_topic: TypeAdapter[str] = TypeAdapter(Topic)


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
            _topic.validate_python(name)
        except ValidationError as error:
            problems.append(Problem((), f"holds {name!r}, which {error.errors()[0]['ctx']['error']}"))
    if problems:
        refuse(*problems)
    return tuple(dict.fromkeys(names))


Topics = Annotated[
    tuple[str, ...],
    PlainValidator(_topics, json_schema_input_type=str | list[str]),
    PlainSerializer(list, when_used="json"),
]
