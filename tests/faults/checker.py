"""Is the score topic exact? An independent answer, which shares no code with the worker.

From the raw records it computes, with the plain loop below, which sessions must exist (the rules are those of the
manual and of `config/worker.example.yaml`), and holds them against what a `read_committed` reader finds. It knows
HDFS-like text lines: `yymmdd HHMMSS … blk_… …`. It cannot compute scores; those come from `logmamba score`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
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
    causes: list[int] = field(default_factory=list)  # the record that each event was processed with
    after: list[int] = field(default_factory=list)  # how many sessions had closed before each event joined
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


class _Line(NamedTuple):
    key: str
    time: int
    offset: int


class _Clock:
    """When each line is processed.

    A line more than the skew ahead of the stream time waits until two more bear it out, a line contradicts it, or the
    input ends; so does every line before there is a stream time. A thousand lines in a row that are more than the
    skew behind turn it back.
    """

    def __init__(self, skew_ms: int, process: Callable[[_Line, int, int], None], turn: Callable[[int], None]) -> None:
        self._skew = skew_ms
        self._process = process  # a line, at this stream time, caused by the record of this offset
        self._turn = turn  # the stream time was turned back to this
        self._now: int | None = None
        self._waiting: list[_Line] = []
        self._behind: list[int] = []

    def read(self, line: _Line) -> None:
        self._read(line, line.offset)

    def end(self, offset: int) -> None:
        while self._waiting:
            self._jump(offset)

    def _refutes(self, line: _Line, earlier: _Line) -> bool:
        return earlier.time - line.time > self._skew

    def _sound(self) -> list[_Line]:
        """The waiting lines that no later one refutes."""
        sound: list[_Line] = []
        for line in self._waiting:
            sound = [*(each for each in sound if not self._refutes(line, each)), line]
        return sound

    def _read(self, line: _Line, cause: int) -> None:
        if self._now is None:
            self._waiting.append(line)
            if len(self._sound()) == 3 or len(self._waiting) == 1_000:
                self._jump(cause)
            return
        refuted = [each for each in self._waiting if self._refutes(line, each)]
        self._waiting = [each for each in self._waiting if each not in refuted]
        for each in refuted:
            self._process(each, self._now, cause)
        if line.time - self._now > self._skew:
            self._behind.clear()
            self._waiting.append(line)
            if len(self._waiting) == 3:
                self._jump(cause)
            return
        if self._now - line.time > self._skew:
            self._behind.append(line.time)
            if len(self._behind) == 1_000:
                self._now = max(self._behind)
                self._turn(self._now)
                self._behind.clear()
        else:
            self._behind.clear()
        # What waits and is not refuted is now within reach.
        self._now = max(self._now, line.time)
        within, self._waiting = [*self._waiting, line], []
        for each in within:
            self._now = max(self._now, each.time)
            self._process(each, self._now, cause)

    def _jump(self, cause: int) -> None:
        sound = self._sound()
        refuted = [each for each in self._waiting if each not in sound]
        self._waiting = []
        self._behind.clear()
        self._now = min(each.time for each in sound)
        for each in refuted:
            self._process(each, self._now, cause)
        for each in sound:
            self._read(each, cause)


def _follow(records: Sequence[RawRecord], rules: Rules, expected: Expected) -> None:
    opened: list[Session] = []  # in the order in which they opened

    def close(session: Session, closed_by: str, cause_offset: int) -> None:
        opened.remove(session)
        session.closed_by, session.cause_offset = closed_by, cause_offset
        expected.sessions.append(session)

    def process(line: _Line, now: int, cause: int) -> None:
        # (b) sessions whose time is over
        for session in _by_first_offset(each for each in opened if now - each.last_at >= rules.gap_ms):
            close(session, "gap", cause)
        for session in _by_first_offset(each for each in opened if now - each.opened_at >= rules.max_age_ms):
            close(session, "max_age", cause)
        # (c) the event joins its session, or opens one
        own = next((each for each in opened if each.key == line.key), None)
        if own is None:
            own = Session(records[0].partition, line.key, now, now)
            opened.append(own)
        own.last_at = now
        own.offsets.append(line.offset)
        own.times.append(line.time)
        own.causes.append(cause)
        own.after.append(len(expected.sessions))
        # (d) a full session
        if len(own.offsets) == rules.max_events:
            close(own, "max_events", cause)
        # (e) too many sessions
        while len(opened) > rules.max_open:
            close(_by_first_offset(opened)[0], "max_open", cause)

    def turn_back(now: int) -> None:
        for session in opened:
            session.opened_at, session.last_at = min(session.opened_at, now), min(session.last_at, now)

    # (a) when a line is processed
    clock = _Clock(rules.max_future_skew_ms, process, turn_back)
    for record in records:
        event = _event(record.value)
        if isinstance(event, str):
            expected.dead_letters.append(DeadLetter(record.partition, record.offset, event))
        else:
            clock.read(_Line(*event, record.offset))
    # … and an idle end believes what waits and closes what is left
    end = records[-1].offset + 1
    clock.end(end)
    for session in _by_first_offset(opened):
        close(session, "idle", end)


def _by_first_offset(sessions: Iterable[Session]) -> list[Session]:
    return sorted(sessions, key=lambda session: session.first_offset)


def _event(value: bytes | None) -> tuple[str, int] | str:
    """Key and time in ms of a line, or why it has none."""
    if value is None:
        return "null"
    try:
        line = value.decode()
    except UnicodeDecodeError:
        return "not_utf8"
    if not line.strip("\0").strip():
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
    of_name = {(each.partition, each.first_offset, each.key): each for each in expected.sessions}
    alerted: dict[tuple[int, int, str], list[str]] = {}
    for value in early:
        alerted.setdefault((value["source"]["partition"], *_session(value)), []).append(value["severity"])
        wanted[_identity(value)] = of_name[value["source"]["partition"], *_session(value)], value
    verdict.unexpected += [f"logmamba score alone has {name}" for name in said]

    found = Counter(_identity(score.content) for score in scores)
    verdict.missing += [_text(identity) for identity in wanted if identity not in found]
    verdict.unexpected += [_text(identity) for identity in found if identity not in wanted]
    verdict.duplicate += [_text(identity) for identity, count in found.items() if count > 1]

    place = _places(expected.sessions)
    latest: dict[tuple[int, int], tuple[int, float]] = {}
    for score in scores:
        identity = _identity(score.content)
        if identity not in wanted:
            continue
        session, value = wanted[identity]
        differences = _differences(score.content, session, value, topic)
        differences += _not_taken_back(score.content, session, alerted.get(identity[:3], ()), topic)
        verdict.different += [f"{_text(identity)}: {what}" for what in differences]
        if differences:
            continue  # it may not say what its place is
        # Of an event: the sessions whose time was over, its own early score, the sessions it ended.
        at = (
            session.after[score.content["events"] - 1] - 0.5 if score.content["kind"] == "early" else place[id(session)]
        )
        order = score.content["source"]["cause_offset"], at
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
        # Of the events that one record ended the waits of, any may have been the one that crossed the threshold.
        events = content["events"]
        if (events, cause) not in enumerate(session.causes, 1):
            return [f"events is {events!r}, but the cause of that event is not {cause}"]
    else:
        events, cause = len(session.offsets), session.cause_offset
    must: dict[str, object] = {
        "schema": "logmamba.score/1",
        "id": _id(session, topic, content["severity"] if early else ""),
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
        own = ("score", "severity", "thresholds", "surprise", "unknown_events", "top_events", "lines", "model", "kind")
        must |= {name: value[name] for name in own}
        # A file has no early scores, so nothing in it takes one back.
        if [name for name in content if name != "retracts"] != [name for name in value if name != "retracts"]:
            return [f"has {list(content)}, not {list(value)}"]
    wrong = [f"{name} is {content.get(name)!r}, not {it!r}" for name, it in must.items() if content.get(name) != it]
    if value is None:
        wrong.append("logmamba score has no such session")
    return wrong


_RANKS = ("normal", "warning", "critical")


def _id(session: Session, topic: str, told: str) -> str:
    """The id of its final record, or of the early one that told of a severity."""
    nth = int(session.causes[0] == session.cause_offset)  # the record that opened it also closed it
    place = topic, session.partition, session.offsets[0], nth, "early" if told else "final", told, session.key
    return sha256("\n".join(map(str, place)).encode()).hexdigest()[:32]


def _not_taken_back(content: Json, session: Session, alerted: Iterable[str], topic: str) -> list[str]:
    """Whether a final record takes back anything else than what it must of what early ones told."""
    above = [
        each for each in sorted(alerted, key=_RANKS.index) if _RANKS.index(each) > _RANKS.index(content["severity"])
    ]
    must = [{"id": _id(session, topic, each), "severity": each} for each in above if content["kind"] == "final"]
    found = content.get("retracts", [])
    return [] if found == must else [f"retracts is {found}, not {must}"]


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
