"""What operators said of sessions (schema `logmamba.feedback/1`), and what it makes of scores at once.

A verdict is about a pattern (`detector.scoring.session_pattern`), the one of the session that it was given for. It
leaves scores as they are and changes severities:

- *normal* mutes: a final record of the pattern has severity normal whatever its score. An early one is held back as
  long as the session may still become one of the pattern, so nothing else is told later than it would have been.
- *anomalous* raises: a final record of the pattern is critical whatever its score.

The record says so (`feedback`), and which severity its score alone gives. Each pattern has one verdict, the latest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, get_args

import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from detector.scoring.families import Verdict
from detector.scoring.session_pattern import events_of, is_pattern, may_become
from worker.errors import RunError

SCHEMA: Final = "logmamba.feedback/1"
VERDICTS: Final[tuple[Verdict, ...]] = get_args(Verdict)

Severity = Literal["normal", "warning", "critical"]

_SEVERITIES: Final[Mapping[Verdict, Severity]] = {"normal": "normal", "anomalous": "critical"}
_NAME_DIGITS: Final = 12


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class JudgedSession(_Part):
    """The session that a verdict was given for."""

    key: str
    topic: str
    partition: Annotated[int, Field(ge=0)]
    first_offset: Annotated[int, Field(ge=0)]


class FeedbackRecord(_Part):
    """A verdict on a pattern: the value of a record of the feedback topic, whose key is the pattern."""

    schema_: Literal["logmamba.feedback/1"] = Field(SCHEMA, alias="schema")
    pattern: Annotated[str, StringConstraints(max_length=4_096)]
    verdict: Verdict
    at: Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$")]
    by: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    note: Annotated[str | None, StringConstraints(max_length=2_000)] = None
    reason: Annotated[str | None, StringConstraints(max_length=2_000)] = None
    session: JudgedSession | None = None
    checkpoint: str | None = None

    @field_validator("pattern")
    @classmethod
    def _is_pattern(cls, value: str) -> str:
        if not is_pattern(value):
            raise ValueError("is no pattern of a score record")
        return value

    @property
    def name(self) -> str:
        """What people call its pattern by: the beginning of a hash of it."""
        return sha256(self.pattern.encode()).hexdigest()[:_NAME_DIGITS]

    def to_json(self) -> bytes:
        """The record; the same bytes for the same content."""
        return orjson.dumps(self.model_dump(by_alias=True, exclude_none=True))


def read_record(value: bytes) -> FeedbackRecord:
    """A record of the feedback topic, or a line of a file.

    Raises:
        ValueError: what is wrong with it first.
    """
    try:
        return FeedbackRecord.model_validate_json(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from None


def read_feedback_file(path: Path) -> Feedback:
    """The verdicts of a file of such records, a line each; of two on one pattern the later line counts.

    Raises:
        RunError: the file cannot be read, or a line is no such record.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from error
    found: dict[str, FeedbackRecord] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                record = read_record(line)
            except ValueError as error:
                raise RunError(f"{path}, line {number}: no record of {SCHEMA}: {error}") from None
            found[record.pattern] = record
    return Feedback(found)


@dataclass(frozen=True)
class Feedback:
    """The verdicts that hold.

    Attributes:
        records: of each pattern its verdict.
        version: how much of the feedback topic they are made of: the offset behind the latest record, of all its
            partitions together.
    """

    records: Mapping[str, FeedbackRecord] = field(default_factory=dict)
    version: int = 0

    def with_changes(self, changes: Iterable[tuple[str, FeedbackRecord | None]], version: int) -> Feedback:
        """These with what came since, in its order; None takes the verdict on a pattern back."""
        records = dict(self.records)
        for pattern, record in changes:
            records.pop(pattern, None)
            if record is not None:
                records[pattern] = record
        return replace(self, records=records, version=version)

    def verdict(self, pattern: str | None) -> Verdict | None:
        """What was said of a pattern."""
        found = None if pattern is None else self.records.get(pattern)
        return None if found is None else found.verdict

    def holds_back(self, so_far: str) -> bool:
        """Whether a session of which this is certain may still become one of a pattern that is normal."""
        return any(may_become(so_far, pattern) for pattern in self._normal)

    @cached_property
    def _normal(self) -> tuple[str, ...]:
        return tuple(each.pattern for each in self.records.values() if each.verdict == "normal")

    @cached_property
    def raised_lengths(self) -> frozenset[int]:
        """How many events a session has that may be critical though its score is not, as far as patterns say."""
        lengths = (events_of(each.pattern) for each in self.records.values() if each.verdict == "anomalous")
        return frozenset(each for each in lengths if each is not None)

    def counts(self) -> dict[str, int]:
        """How many patterns have each verdict."""
        return {verdict: sum(each.verdict == verdict for each in self.records.values()) for verdict in VERDICTS}


class Applied(NamedTuple):
    """What a score record says of its pattern.

    Attributes:
        pattern: of the session.
        verdict: on it; None where there is none.
        scored: the severity that its score alone gives.
    """

    pattern: str
    verdict: Verdict | None
    scored: Severity

    @property
    def severity(self) -> Severity:
        """The one that holds."""
        return self.scored if self.verdict is None else _SEVERITIES[self.verdict]

    def members(self) -> dict[str, Any]:
        """The members of a record that say so."""
        if self.verdict is None:
            return {"pattern": self.pattern}
        return {"pattern": self.pattern, "feedback": {"verdict": self.verdict, "scored": self.scored}}
