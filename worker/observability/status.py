"""A worker's state right now, for `/status` and the status page: no log lines, no secrets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

MOSTLY_UNKNOWN = 0.5
"""Share of unknown events from which on scores mean little."""


@dataclass(frozen=True, slots=True)
class PartitionStatus:
    """A partition that the worker holds.

    Attributes:
        topic: of the partition.
        partition: its number.
        state: `replaying` while its sessions are being restored, `live` afterwards.
        position: offset after the last record that was processed.
        lag: records still to be read; None while that is not known.
        open_sessions: how many.
    """

    topic: str
    partition: int
    state: Literal["live", "replaying"]
    position: int
    lag: int | None
    open_sessions: int


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A worker at one moment; the loop publishes a new one, so readers in other threads see no half of it.

    Attributes:
        application_id: from the settings.
        instance: the worker's name within the application.
        started_at: ISO 8601.
        versions: of the software by name.
        checkpoint: digest of the checkpoint.
        vocabulary: digest of its vocabulary.
        joined: whether the group has given this worker its share, be it none.
        broker_away: whether the broker was last found not to answer.
        partitions: those that it holds.
        totals: counts since the start by what they count.
        unknown_share: share of the latest thousand events or more that fit no template; None before the first thousand.
    """

    application_id: str
    instance: str
    started_at: str
    versions: Mapping[str, str]
    checkpoint: str
    vocabulary: str
    joined: bool = False
    broker_away: bool = False
    partitions: tuple[PartitionStatus, ...] = ()
    totals: Mapping[str, int] = field(default_factory=dict)
    unknown_share: float | None = None

    @property
    def ready(self) -> bool:
        """Whether the broker answers and everything that the worker holds is live."""
        return self.joined and not self.broker_away and all(each.state == "live" for each in self.partitions)
