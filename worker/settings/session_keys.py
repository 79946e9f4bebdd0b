"""The setting `sessions.key`: where the session key of an event comes from."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import PlainSerializer, PlainValidator

from worker.formats.patterns import check_pattern
from worker.formats.pointers import check_pointer
from worker.settings.values import Problem, refuse

Source = Literal["regex", "pointer", "record_key", "header", "partition", "any_of", "composed"]
KeyEncoding = Literal["utf-8", "hex", "base64", "int64", "uuid"]

_ENCODINGS: tuple[KeyEncoding, ...] = get_args(KeyEncoding)
_FORMS = (
    "{regex: …}, {pointer: /path}, record_key, {header: name}, partition, "
    "a list of them (all joined) or {any_of: [ … ]}"
)


@dataclass(frozen=True, slots=True)
class SessionKey:
    """Where an event's session key comes from.

    Attributes:
        source: which kind.
        value: the pattern, the JSON pointer or the header's name; empty for the others.
        encoding: of `record_key` and `header`: what their bytes are.
        pattern: of `record_key`, `header` and `pointer`: the part of the text that is the key (first group or match).
        parts: of `any_of`, of which the first that is there is the key, and of `composed`, which needs them all.
    """

    source: Source
    value: str = ""
    encoding: KeyEncoding = "utf-8"
    pattern: str | None = None
    parts: tuple["SessionKey", ...] = ()

    def uses(self, source: Source) -> bool:
        """Whether this key or a part of it comes from a source."""
        return self.source == source or any(part.uses(source) for part in self.parts)

    @property
    def needs_records(self) -> bool:
        """Whether a line of a file, which is nothing but a value, can never have this key."""
        if self.parts:
            needs = [part.needs_records for part in self.parts]
            return all(needs) if self.source == "any_of" else any(needs)
        return self.source in ("record_key", "header")

    def __str__(self) -> str:
        if self.parts:
            between = " or " if self.source == "any_of" else " and "
            return f"({between.join(map(str, self.parts))})"
        return f"{self.source} {self.value}".rstrip()


def _session_key(value: object) -> SessionKey:
    problems: list[Problem] = []
    key = value if isinstance(value, SessionKey) else _read(value, (), problems)
    if problems or key is None:
        if problems == [Problem((), _NO_SOURCE)]:
            raise ValueError(_NO_SOURCE)
        refuse(*problems)
    return key


_NO_SOURCE = f"is not a source of session keys; allowed: one of {_FORMS}"


def _read(value: object, path: tuple[str | int, ...], problems: list[Problem]) -> SessionKey | None:
    """The key that a value says; None after a problem."""
    if isinstance(value, SessionKey):
        return value
    if value == "record_key" or value == "partition":
        return SessionKey(value)
    if isinstance(value, list | tuple):
        return _several("composed", value, path, problems)
    if isinstance(value, dict) and set(value) == {"any_of"}:
        return _several("any_of", value["any_of"], (*path, "any_of"), problems)
    sources = [
        name for name in ("regex", "pointer", "record_key", "header") if isinstance(value, dict) and name in value
    ]
    if not isinstance(value, dict) or len(sources) != 1 or not set(value) <= {sources[0], *_OPTIONS[sources[0]]}:
        problems.append(Problem(path, _NO_SOURCE))
        return None
    before = len(problems)
    problems.extend(Problem((*path, *where), text) for where, text in _problems(sources[0], value))
    if len(problems) > before:
        return None
    pattern = value.get("pattern")
    if sources[0] == "record_key":
        return SessionKey("record_key", encoding=value["record_key"], pattern=pattern)
    return SessionKey(sources[0], value[sources[0]], value.get("as", "utf-8"), pattern)  # type: ignore[arg-type]


_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "regex": (),
    "pointer": ("pattern",),
    "record_key": ("pattern",),
    "header": ("as", "pattern"),
}


def _problems(source: str, value: Mapping[str, object]) -> Iterator[tuple[tuple[str, ...], str]]:
    where = value[source]
    try:
        if source == "regex":
            check_pattern(where)
        elif source == "pointer":
            check_pointer(where)
    except ValueError as error:
        yield (source,), str(error)
    if source == "header" and (not isinstance(where, str) or not where):
        yield (source,), "is not the name of a record header"
    for name in ("record_key",) if source == "record_key" else ("as",) if "as" in value else ():
        if value[name] not in _ENCODINGS:
            yield (name,), f"is not a way to read a key's bytes; allowed: {', '.join(_ENCODINGS)}"
    if "pattern" in value:
        try:
            check_pattern(value["pattern"])
        except ValueError as error:
            yield ("pattern",), str(error)


def _several(
    source: Literal["any_of", "composed"], values: object, path: tuple[str | int, ...], problems: list[Problem]
) -> SessionKey | None:
    if not isinstance(values, list | tuple) or not values:
        problems.append(Problem(path, "is not a list of sources of session keys"))
        return None
    parts = [_read(value, (*path, index), problems) for index, value in enumerate(values)]
    found = tuple(part for part in parts if part is not None)
    return SessionKey(source, parts=found) if len(found) == len(parts) else None


def written_key(key: SessionKey) -> object:
    """A key as a settings file writes it."""
    if key.source == "composed":
        return [written_key(part) for part in key.parts]
    if key.source == "any_of":
        return {"any_of": [written_key(part) for part in key.parts]}
    if key.source == "record_key":
        plain = key.encoding == "utf-8" and key.pattern is None
        written: dict[str, object] = {} if plain else {"record_key": key.encoding}
    else:
        written = {key.source: key.value} if key.value else {}
        if key.encoding != "utf-8":
            written["as"] = key.encoding
    if key.pattern is not None:
        written["pattern"] = key.pattern
    return written or key.source


_Members = Literal["regex", "pointer", "record_key", "header", "any_of", "as", "pattern"]
_Written = Literal["record_key", "partition"] | dict[_Members, str | list[Any]] | list[Any]

SessionKeySetting = Annotated[
    SessionKey,
    PlainValidator(_session_key, json_schema_input_type=_Written),
    PlainSerializer(written_key, when_used="json"),
]
