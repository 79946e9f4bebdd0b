"""Watches how far the sessions of each topic have drifted from those that the checkpoint was trained on.

It takes columns of what was scored and changes none. What it has seen is gone after a
restart and after a reload: its windows fill anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from detector.quality.drift import Drift, DriftMonitor, Verdict
from detector.quality.fingerprint import Fingerprint, Stream
from detector.text.vocabulary import UNK, Vocabulary
from worker.observability.status import DriftStatus, MovedPause, MovedTemplate
from worker.processing.score_records import iso_time
from worker.processing.session_columns import SessionColumns


class DriftWatch:
    """The drift of each topic.

    Args:
        fingerprint: of the checkpoint's training; None where it has none, and then nothing is watched.
        vocabulary: of the sessions' tokens.
        timed: whether their events have times.
        changed: told of each new verdict of a topic, and the one before it; the first `ok` is none.
    """

    def __init__(
        self,
        fingerprint: Fingerprint | None,
        vocabulary: Vocabulary,
        *,
        timed: bool,
        changed: Callable[[DriftStatus, Verdict], None],
    ) -> None:
        self._fingerprint, self._vocabulary, self._timed = fingerprint, vocabulary, timed
        self._changed = changed
        self._topics: dict[str, DriftMonitor] = {}
        self._said: dict[str, Verdict] = {}
        self._looks: dict[str, tuple[int, DriftStatus]] = {}

    def ended(self, topics: Sequence[str], sessions: Sequence[SessionColumns], scores: NDArray[np.float64]) -> None:
        """Sessions have ended.

        Args:
            topics: of each part of them.
            sessions: the parts.
            scores: their final scores, part after part.
        """
        if self._fingerprint is None:
            return
        begin = 0
        for topic, part in zip(topics, sessions, strict=True):
            end = begin + len(part)
            if end > begin:
                self._add(self._fingerprint, topic, part, scores[begin:end])
            begin = end

    def _add(self, fingerprint: Fingerprint, topic: str, part: SessionColumns, scores: NDArray[np.float64]) -> None:
        monitor = self._topics.get(topic)
        if monitor is None:
            monitor = self._topics[topic] = DriftMonitor(fingerprint)
        tokens, _, times = part.events
        stream = Stream.timed(tokens, part.ends, times if self._timed else None)
        ended_ms = np.zeros(len(part), np.int64)
        if self._timed:
            ended_ms = times[part.ends - 1]
            rows = monitor.wanted(ended_ms)
            if len(rows) < len(part):
                stream, scores, ended_ms = stream.select(rows), scores[rows], ended_ms[rows]
        monitor.add(stream, scores, ended_ms)
        self._tell(topic)

    def _tell(self, topic: str) -> None:
        verdict = self._topics[topic].verdict
        if verdict is not None and verdict != (before := self._said.get(topic, "ok")):
            self._said[topic] = verdict
            self._changed(self._look(topic), before)

    def status(self) -> tuple[DriftStatus, ...] | None:
        """Of every topic with sessions; None where nothing is watched. What has become of them is told first."""
        if self._fingerprint is None:
            return None
        for topic, monitor in self._topics.items():
            monitor.judge()
            self._tell(topic)
        return tuple(self._look(topic) for topic in sorted(self._topics))

    def _look(self, topic: str) -> DriftStatus:
        monitor = self._topics[topic]
        at, known = self._looks.get(topic, (-1, None))
        if known is None or at != monitor.seen:
            known = self._status(topic, monitor.look())
            self._looks[topic] = monitor.seen, known
        return known

    def _status(self, topic: str, drift: Drift) -> DriftStatus:
        return DriftStatus(
            topic=topic,
            verdict=drift.verdict,
            since=iso_time(drift.since_ms) if drift.since_ms is not None and self._timed else None,
            because=drift.because,
            sessions=drift.sessions,
            unknown=drift.unknown,
            new=drift.new,
            churn=drift.churn,
            divergence={str(name): value for name, value in drift.divergence.items()},
            moved=tuple(
                MovedTemplate(_text(each.token, self._vocabulary), each.before, each.now) for each in drift.moved
            ),
            pauses=tuple(
                MovedPause(_text(each.token, self._vocabulary), each.before, each.now) for each in drift.waits
            ),
        )


def _text(token: int, vocabulary: Vocabulary) -> str:
    return "lines that no template matches" if token == UNK else vocabulary.text(token)
