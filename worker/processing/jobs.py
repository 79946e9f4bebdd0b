"""Partitions that the pipeline works on, and what the records of one give to score."""

from __future__ import annotations

from dataclasses import dataclass, field

from worker.processing.adaptive import AdaptiveThresholds
from worker.processing.early_told import EarlyTold
from worker.processing.line_texts import LineTexts
from worker.processing.origins import EVENT_BITS, OriginsOfOpen
from worker.processing.records import Partition, Records
from worker.processing.session_columns import ClosedSessions, SessionColumns
from worker.processing.sessions import GrownSessions, Sessions, SharedCause


@dataclass(slots=True)
class OpenPartition:
    """A partition that the pipeline works on."""

    sessions: Sessions
    position: int  # offset after the last record that was processed
    live_from: int  # outputs with an earlier cause are already published
    replay_from: int
    opened_at: float  # monotonic seconds
    adaptive: AdaptiveThresholds | None
    texts: LineTexts | None  # where records have them
    told: EarlyTold  # by early records of the sessions, since the snapshot
    newest_ms: int | None = None  # Kafka timestamp of the latest record
    same_feedback: bool = True  # whether what was told since the snapshot was judged by the verdicts that hold now
    late_events: int = 0  # of those of the sessions, what is counted already
    skewed_events: int = 0
    origins: OriginsOfOpen | None = None  # of events of token records, whose offsets and causes are numbers of events

    @property
    def event_bits(self) -> int:
        """By how many bits an event's offset, and a cause's, is greater than the record's."""
        return 0 if self.origins is None else EVENT_BITS

    @property
    def looks_back(self) -> bool:
        """Whether what was told early before it was live is still to be found out, by scoring what was read again."""
        return self.told.since is None and self.position >= self.live_from

    @property
    def live_cause(self) -> int:
        """The least cause whose outputs are not published already."""
        return self.live_from << self.event_bits

    @property
    def replay_cause(self) -> int:
        """The least cause that is not from before the snapshot."""
        return self.replay_from << self.event_bits


@dataclass(slots=True)
class Job:
    """What one partition's records give to score."""

    partition: Partition
    opened: OpenPartition
    closed: ClosedSessions
    records: Records | None = None  # those that caused it, where records did
    touched: SessionColumns | None = None  # open ones with new events that may cross a threshold
    grown: GrownSessions | None = None  # long open ones with new events, before it is known which may
    # By offset and time, the events of which several have the same record as their cause: it ended a wait. Events that
    # have both in common share the cause, too.
    shared: dict[tuple[int, int], SharedCause] = field(default_factory=dict)
