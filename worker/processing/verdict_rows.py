"""Which scores a verdict of an operator is about (`worker.processing.feedback`), in the order of the outputs."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from worker.processing.feedback import Applied, Feedback, Severity
from worker.processing.scorer import Scorer
from worker.processing.session_columns import SessionColumns
from worker.processing.session_state import Column
from worker.processing.severity_loop import MUTED, RAISED

_REMEMBERED: Final = 4_096  # sequences whose pattern is known: most of those that alert are alike
_VERDICTS: Final = {None: 0, "normal": MUTED, "anomalous": RAISED}


class Judged(NamedTuple):
    """Scores as columns of equal length, in the order of the outputs."""

    sessions: Column  # their numbers
    events: Column  # how many of the session's events each is about
    early: NDArray[np.bool_]
    alerting: NDArray[np.bool_]  # whether the score reaches a threshold
    as_told: NDArray[np.bool_]  # early ones that were judged before, nobody knows by which verdicts


class VerdictRows:
    """Applies verdicts.

    Args:
        feedback: those that hold.
        scorer: tells patterns.
    """

    def __init__(self, feedback: Feedback, scorer: Scorer) -> None:
        self._feedback = feedback
        self._pattern = lru_cache(_REMEMBERED)(scorer.pattern)
        self._so_far = scorer.pattern_so_far

    def of(self, sessions: SessionColumns, rows: Judged) -> Column:
        """Of each row MUTED, RAISED or 0, as `worker.processing.severity_loop` takes them."""
        found = np.zeros(len(rows.events), np.int64)
        if not self._feedback.records:
            return found
        lengths = np.fromiter(self._feedback.raised_lengths, np.int64)
        looked_at = ~rows.early & (rows.alerting | np.isin(rows.events, lengths))
        for row in np.flatnonzero(looked_at).tolist():
            verdict = self._feedback.verdict(self._pattern(_sequence(sessions, rows, row)))
            found[row] = _VERDICTS[verdict]
        of_session: defaultdict[int, list[int]] = defaultdict(list)
        for row in np.flatnonzero(rows.early & rows.alerting & ~rows.as_told).tolist():
            of_session[int(rows.sessions[row])].append(row)
        for mine in of_session.values():
            mine.sort(key=rows.events.__getitem__)
            # What a session has so far only grows: once it is beyond every such pattern it stays so.
            held = bisect_left(mine, True, key=lambda row: not self._holds_back(_sequence(sessions, rows, row)))
            found[mine[:held]] = MUTED
        return found

    def applied(self, sequence: bytes, scored: Severity) -> Applied | None:
        """What the final record of a session says of its pattern, by its events; None where it has none."""
        pattern = self._pattern(sequence)
        return None if pattern is None else Applied(pattern, self._feedback.verdict(pattern), scored)

    def _holds_back(self, sequence: bytes) -> bool:
        return self._feedback.holds_back(self._so_far(sequence))


def _sequence(sessions: SessionColumns, rows: Judged, row: int) -> bytes:
    number = rows.sessions[row]
    begin = sessions.ends[number] - sessions.lengths[number]
    return sessions.events[0, begin : begin + rows.events[row]].tobytes()
