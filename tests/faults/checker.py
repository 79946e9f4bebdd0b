"""Is the score topic exact? An independent answer, which shares no code with the worker.

From the raw records it computes, with the plain loop below, which sessions must exist (the rules are those of the
README and of `config/worker.example.yaml`), and holds them against what a `read_committed` reader finds. It knows
HDFS-like text lines: `yymmdd HHMMSS … blk_… …`. It cannot compute scores; those come from `logmamba score`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

_BLOCK = re.compile(r"blk_-?\d+")
_STAMP = re.compile(r"\d{6} \d{6}")

Json = Mapping[str, Any]


class RawRecord(NamedTuple):
    """A record of the input topic."""

    partition: int
    offset: int
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Rules:
    """When sessions close; the same as in the worker's settings. Times in milliseconds."""

    gap_ms: int
    max_age_ms: int
    max_events: int
    max_open: int
    max_future_skew_ms: int = 3_600_000

    def as_settings(self) -> dict[str, object]:
        """The worker's `sessions` section that says the same."""
        return {
            "gap": f"{self.gap_ms}ms",
            "max_age": f"{self.max_age_ms}ms",
            "max_events": self.max_events,
            "max_open": self.max_open,
            "max_future_skew": f"{self.max_future_skew_ms}ms",
        }


@dataclass(slots=True)
class Session:
    """A session that must be scored, once it is closed."""

    partition: int
    key: str
    opened_at: int
    last_at: int
    offsets: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    closed_by: str = ""
    cause_offset: int = -1

    @property
    def first_offset(self) -> int:
        return self.offsets[0]


class DeadLetter(NamedTuple):
    """A record that must be in the dead-letter topic."""

    partition: int
    offset: int
    reason: str


@dataclass(frozen=True, slots=True)
class Expected:
    """What must come of the input.

    Attributes:
        sessions: of each partition, in the order of their causes.
        dead_letters: of each partition, by offset.
    """

    sessions: list[Session]
    dead_letters: list[DeadLetter]


@dataclass(frozen=True, slots=True)
class Score:
    """A record of the score topic.

    Attributes:
        partition: of the score topic.
        content: its value, parsed.
    """

    partition: int
    content: Json


@dataclass(slots=True)
class Verdict:
    """What is wrong with an output, one line of text each; nothing when it is exact."""

    missing: list[str] = field(default_factory=list)
    duplicate: list[str] = field(default_factory=list)
    out_of_order: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.missing or self.duplicate or self.out_of_order or self.different or self.unexpected)

    def __str__(self) -> str:
        kinds = ("missing", "duplicate", "out_of_order", "different", "unexpected")
        found = {kind: getattr(self, kind) for kind in kinds}
        return "\n".join(
            f"{len(lines)} {kind.replace('_', ' ')}: {'; '.join(lines[:5])}{' …' if len(lines) > 5 else ''}"
            for kind, lines in found.items()
            if lines
        )


def expected_of(records: Iterable[RawRecord], rules: Rules) -> Expected:
    """What must come of all these records, each partition's in offset order, once its end has been idle."""
    partitions: dict[int, list[RawRecord]] = {}
    for record in records:
        partitions.setdefault(record.partition, []).append(record)
    expected = Expected([], [])
    for number in sorted(partitions):
        _follow(partitions[number], rules, expected)
    return expected


def _follow(records: Sequence[RawRecord], rules: Rules, expected: Expected) -> None:
    stream_time: int | None = None
    opened: list[Session] = []  # by first offset

    def close(session: Session, closed_by: str, cause_offset: int) -> None:
        opened.remove(session)
        session.closed_by, session.cause_offset = closed_by, cause_offset
        expected.sessions.append(session)

    for record in records:
        event = _event(record.value)
        if isinstance(event, str):
            expected.dead_letters.append(DeadLetter(record.partition, record.offset, event))
            continue
        key, time = event
        # (a) time moves on, unless the event is too far in the future
        moved = stream_time is None or stream_time < time <= stream_time + rules.max_future_skew_ms
        if stream_time is None or moved:
            stream_time = time
        # (b) sessions whose time is over; nothing can be over while time stands still
        if moved:
            for session in [each for each in opened if stream_time - each.last_at >= rules.gap_ms]:
                close(session, "gap", record.offset)
            for session in [each for each in opened if stream_time - each.opened_at >= rules.max_age_ms]:
                close(session, "max_age", record.offset)
        # (c) the event joins its session, or opens one
        own = next((each for each in opened if each.key == key), None)
        if own is None:
            own = Session(record.partition, key, stream_time, stream_time)
            opened.append(own)
        own.last_at = stream_time
        own.offsets.append(record.offset)
        own.times.append(time)
        # (d) a full session
        if len(own.offsets) == rules.max_events:
            close(own, "max_events", record.offset)
        # (e) too many sessions
        while len(opened) > rules.max_open:
            close(opened[0], "max_open", record.offset)
    # … and an idle end closes what is left
    while opened:
        close(opened[0], "idle", records[-1].offset + 1)


def _event(value: bytes | None) -> tuple[str, int] | str:
    """Key and time in ms of a line, or why it has none."""
    if value is None:
        return "null"
    try:
        line = value.decode()
    except UnicodeDecodeError:
        return "not_utf8"
    if not line.strip():
        return "empty"
    block, stamp = _BLOCK.search(line), _STAMP.match(line)
    if block is None:
        return "no_key"
    time = None if stamp is None else _milliseconds(stamp.group())
    return "bad_timestamp" if time is None else (block.group(), time)


@lru_cache(100_000)
def _milliseconds(stamp: str) -> int | None:
    try:
        return int(datetime.strptime(stamp, "%y%m%d %H%M%S").replace(tzinfo=UTC).timestamp()) * 1000
    except ValueError:
        return None


_Identity = tuple[int, int, str, str]  # input partition, first offset, key, "final" or an early score's severity


def check(
    expected: Expected,
    *,
    topic: str,
    scores: Sequence[Score],
    dead_letters: Iterable[DeadLetter],
    values: Mapping[int, Sequence[Json]],
    early: Iterable[Json] = (),
) -> Verdict:
    """Hold an output against what must be there.

    Args:
        expected: what must come of the input.
        topic: name of the input topic.
        scores: the score topic, each of its partitions in offset order.
        dead_letters: the dead-letter topic.
        values: what `logmamba score` says of each input partition's records, written to a file one a line. The line's
            number must be the record's offset.
        early: early scores that must be there; they are no part of a file's scores.
    """
    verdict = Verdict()
    wanted: dict[_Identity, tuple[Session, Json | None]] = {}
    said = {(number, *_session(value)): value for number, part in values.items() for value in part}
    for session in expected.sessions:
        name = (session.partition, session.first_offset, session.key)
        wanted[*name, "final"] = session, said.pop(name, None)
    of_cause = {(each.partition, offset): each for each in expected.sessions for offset in each.offsets}
    for value in early:
        session = of_cause[value["source"]["partition"], value["source"]["cause_offset"]]
        wanted[_identity(value)] = session, value
    verdict.unexpected += [f"logmamba score alone has {name}" for name in said]

    found = Counter(_identity(score.content) for score in scores)
    verdict.missing += [_text(identity) for identity in wanted if identity not in found]
    verdict.unexpected += [_text(identity) for identity in found if identity not in wanted]
    verdict.duplicate += [_text(identity) for identity, count in found.items() if count > 1]

    place = _places(expected.sessions)
    latest: dict[tuple[int, int], tuple[int, int, int]] = {}
    for score in scores:
        identity = _identity(score.content)
        if identity not in wanted:
            continue
        session, value = wanted[identity]
        differences = _differences(score.content, session, value, topic)
        verdict.different += [f"{_text(identity)}: {what}" for what in differences]
        # Of an event: the sessions whose time was over, its own early score, the sessions it ended.
        rank = 1 if score.content["kind"] == "early" else 0 if session.closed_by in ("gap", "max_age", "idle") else 2
        order = score.content["source"]["cause_offset"], rank, place[id(session)]
        route = score.partition, session.partition
        if order < latest.get(route, order):
            verdict.out_of_order.append(f"{_text(identity)} after {latest[route]}")
        latest[route] = order

    letters = Counter(dead_letters)
    verdict.missing += [f"dead letter {letter}" for letter in expected.dead_letters if letter not in letters]
    verdict.duplicate += [f"dead letter {letter}" for letter, count in letters.items() if count > 1]
    verdict.unexpected += [f"dead letter {letter}" for letter in letters if letter not in set(expected.dead_letters)]
    return verdict


def _differences(content: Json, session: Session, value: Json | None, topic: str) -> list[str]:
    """Each field that is not what it must be."""
    early = content["kind"] == "early"
    cause = content["source"]["cause_offset"]
    if early:
        events = session.offsets.index(cause) + 1 if cause in session.offsets else 0
    else:
        events, cause = len(session.offsets), session.cause_offset
    if events == 0:
        return [f"its cause {cause} is no event of the session"]
    must: dict[str, object] = {
        "schema": "logmamba.score/1",
        "session": session.key,
        "events": events,
        "first_event_time": _iso(session.times[0]),
        "last_event_time": _iso(session.times[events - 1]),
        "closed_by": None if early else session.closed_by,
        "source": {
            "topic": topic,
            "partition": session.partition,
            "first_offset": session.offsets[0],
            "last_offset": session.offsets[events - 1],
            "cause_offset": cause,
        },
    }
    if value is not None:
        own = ("score", "severity", "thresholds", "surprise", "unknown_events", "top_events", "model", "kind")
        must |= {name: value[name] for name in own}
        if list(content) != list(value):
            return [f"has {list(content)}, not {list(value)}"]
    wrong = [f"{name} is {content.get(name)!r}, not {it!r}" for name, it in must.items() if content.get(name) != it]
    if value is None:
        wrong.append("logmamba score has no such session")
    return wrong


def _places(sessions: Sequence[Session]) -> dict[int, int]:
    return {id(session): place for place, session in enumerate(sessions)}


def _session(content: Json) -> tuple[int, str]:
    return content["source"]["first_offset"], content["session"]


def _identity(content: Json) -> _Identity:
    what = "final" if content["kind"] == "final" else content["severity"]
    return content["source"]["partition"], *_session(content), what


def _text(identity: _Identity) -> str:
    partition, first_offset, key, what = identity
    return f"{what} score of {key} at {partition}:{first_offset}"


def _iso(milliseconds: int) -> str:
    time = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return time.strftime("%Y-%m-%dT%H:%M:%S.") + f"{milliseconds % 1000:03d}Z"
