"""When sessions end: `sessions.gap`, `max_age` and `idle_flush` from the pauses within a sample's own sessions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from detector.text.vocabulary import N_SPECIAL, Vocabulary
from worker.commands.suggestion.key_ideas import Kind
from worker.formats.durations import format_duration, parse_duration
from worker.processing.clock import NO_TIME
from worker.processing.session_columns import ClosedSession

_STEPS = [parse_duration(each) for each in ("1m", "2m", "5m", "10m", "15m", "30m", "1h", "2h", "6h", "12h", "1d")]
# Longer gaps than these would keep a process or a visitor together that has long begun something else.
_LONGEST: dict[Kind | None, str] = {
    "work": "6h",
    "id": "6h",
    "records": "6h",
    "process": "1h",
    "thread": "10m",
    "client": "30m",
    "host": "10m",
    "name": "10m",
    "number": "10m",
    None: "10m",
}
_AGES = [parse_duration(each) for each in ("1h", "2h", "6h", "12h", "1d")]
# What never rests would otherwise be scored a day late.
_OLDEST: dict[Kind | None, str] = {
    "client": "6h",
    "thread": "6h",
    "host": "1h",
    "name": "1h",
    "number": "1h",
    None: "10m",
}
_LIVE_ONCE: Final = ("work", "id", "records")
_SPLIT, _WHOLE = 1.25, 1.1  # sessions a key
_LEAST_PAUSES = 20
_DEFAULTS = "10m", "6h", "10m"
_IDLE_MS = parse_duration("10m")
_STILL_FALLS = 0.03
_JOINED = 0.2  # of the pauses: a gap that joins next to nothing is none
_LEAST_SESSIONS = 20
_ENDS_ALWAYS, _ENDS_MANY = 0.98, 0.2


@dataclass(frozen=True, slots=True)
class Endings:
    """Settings of `sessions` that end one, and why.

    Attributes:
        gap, max_age, idle_flush: as a settings file writes them.
        why: in words.
    """

    gap: str
    max_age: str
    idle_flush: str
    why: str


def find_endings(sessions: Sequence[ClosedSession], kind: Kind | None) -> Endings:
    """Find when sessions should end.

    The gap is the least of some round durations past which hardly any session would go on: with the next longer one
    there were at most 3 % fewer sessions.

    Args:
        sessions: with nothing but the sample's end to end them, one a key.
        kind: of the key; None for time windows.
    """
    columns = [_times(closed) for closed in sessions]
    pauses = np.concatenate([np.diff(times) for times in columns]) if columns else np.array([], np.int64)
    keys = sum(len(times) > 0 for times in columns)
    if not keys:
        return Endings(*_DEFAULTS, "the sample tells no times, so these are the defaults")
    if len(pauses) < max(_LEAST_PAUSES, keys / 10):
        return Endings(*_DEFAULTS, "hardly any key comes again in the sample, so these are the defaults")
    longest = parse_duration(_LONGEST[kind])
    steps = [step for step in _STEPS if step <= longest]
    counts = [keys + int(np.count_nonzero(pauses >= step)) for step in steps]
    gap = steps[-1]
    why = f"keys go on after pauses of any length, so this is a custom rather than a finding; at most {_LONGEST[kind]}"
    for (step, count), (_, later) in pairwise(zip(steps, counts, strict=True)):
        within = np.count_nonzero(pauses < step) / len(pauses)
        if later >= (1 - _STILL_FALLS) * count and within >= _JOINED:
            gap = step
            most = format_duration(_rounded(int(np.median(pauses))))
            why = (
                f"{within:.1%} of the pauses between two events of a key are shorter than this gap (half of them at "
                f"most {most}), and one a little longer would join hardly any more"
            )
            break
    if kind in _LIVE_ONCE and keys + np.count_nonzero(pauses >= gap) > _SPLIT * keys:
        whole = next((step for step in _STEPS if keys + np.count_nonzero(pauses >= step) <= _WHOLE * keys), None)
        if whole is not None:
            why += f". Keys come back later, though: with gap {format_duration(whole)} nearly each would be one session"
            why += ", whose score comes as much later"
    ages = [part[-1] - part[0] for times in columns for part in _parts(times, gap)]
    needed = max(2 * int(np.quantile(ages, 0.99)), 3 * gap)
    oldest = parse_duration(_OLDEST.get(kind, "1d"))
    age = next((step for step in _AGES if needed <= step <= oldest), max(oldest, gap))
    return Endings(format_duration(gap), format_duration(age), format_duration(max(gap, _IDLE_MS)), why)


def end_events(sessions: Sequence[ClosedSession], vocabulary: Vocabulary) -> list[str]:
    """Templates that are the last of many sessions and hardly ever anything but the last."""
    if len(sessions) < _LEAST_SESSIONS:
        return []
    ends, all_of = Counter[int](), Counter[int]()
    for closed in sessions:
        tokens = list(closed.session.tokens)
        all_of.update(tokens)
        if len(tokens) > 1:
            ends[tokens[-1]] += 1
    return [
        vocabulary.templates[token - N_SPECIAL]
        for token, count in ends.most_common(3)
        if token >= N_SPECIAL and count > _ENDS_ALWAYS * all_of[token] and count > _ENDS_MANY * len(sessions)
    ]


def _times(closed: ClosedSession) -> npt.NDArray[np.int64]:
    times = np.array(closed.session.times, np.int64)
    return np.sort(times[times != NO_TIME])


def _parts(times: npt.NDArray[np.int64], gap: int) -> list[npt.NDArray[np.int64]]:
    return [part for part in np.split(times, np.flatnonzero(np.diff(times) >= gap) + 1) if len(part)]


def _rounded(milliseconds: int) -> int:
    """Up to whole seconds, minutes or hours where it is that long."""
    for unit in (3_600_000, 60_000, 1000):
        if milliseconds >= 2 * unit:
            return -(-milliseconds // unit) * unit
    return milliseconds
