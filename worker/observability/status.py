"""A worker's state right now, for `/status` and the status page: no log lines, no secrets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Literal, NamedTuple

MOSTLY_UNKNOWN = 0.5
"""Share of unknown events from which on scores mean little."""

NO_FINGERPRINT = "no fingerprint: train again with this version, on 200 sessions or more in their order of time"
"""What a checkpoint has by which no drift can be told."""


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
        lag_seconds: how far behind the newest record it is at most, by the Kafka timestamps of records; None while
            that is not known.
    """

    topic: str
    partition: int
    state: Literal["live", "replaying"]
    position: int
    lag: int | None
    open_sessions: int
    lag_seconds: float | None = None


class GroupMember(NamedTuple):
    """A worker of the application, as the group knows it.

    Attributes:
        client_id: of its client.
        instance: its name; None where its client does not tell.
        host: from where it is connected.
        partitions: how many it has.
    """

    client_id: str
    instance: str | None
    host: str
    partitions: int


@dataclass(frozen=True, slots=True)
class ReloadStatus:
    """What became of the latest reload.

    Attributes:
        result: whether what was read holds now; `waiting` until every partition is live.
        at: since when that is so; ISO 8601.
        checkpoint: digest of the one that was read; None where that was not possible.
        reason: why it was refused; None where it was not.
    """

    result: Literal["taken", "refused", "waiting"]
    at: str
    checkpoint: str | None = None
    reason: str | None = None


ProcessState = Literal["starting", "running", "restarting", "given_up"]


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """One of a worker's processes (`worker.processes`).

    Attributes:
        name: its own `worker.instance`.
        pid: its number; None while it is not there.
        state: `starting` until it first tells of itself, then `running`; `restarting` while it is not there and will
            be again; `given_up` once it will not.
        restarts: how often it was started again.
        reason: why it ended last; None where it has not.
        partitions: how many it holds.
    """

    name: str
    pid: int | None
    state: ProcessState
    restarts: int = 0
    reason: str | None = None
    partitions: int = 0


@dataclass(frozen=True, slots=True)
class MovedTemplate:
    """A template that more or fewer sessions have than in the training.

    Attributes:
        template: its text.
        before: share of the training's sessions that have it.
        now: of the latest ones.
    """

    template: str
    before: float
    now: float


@dataclass(frozen=True, slots=True)
class MovedPause:
    """A template whose events come sooner after those before them than in the training, or later.

    Attributes:
        template: its text.
        before_ms: their usual pause, the geometric mean.
        now_ms: of the latest ones.
    """

    template: str
    before_ms: float
    now_ms: float


@dataclass(frozen=True, slots=True)
class DriftStatus:
    """How far a topic's latest sessions are from those of the training (`detector.quality.drift.Drift`).

    Attributes:
        topic: of the sessions.
        verdict: None until there were sessions enough.
        since: time of the session from which on it is `ok`, or is not, ISO 8601; None where sessions have no times.
        because: features that it is for.
        sessions: that the figures are of, the latest hour's; no verdict is theirs alone.
        unknown: share of them with a line that no template matches.
        new: share of them with a line that the training did not have.
        churn: share of the templates that came or went.
        divergence: Jensen-Shannon divergence by feature, 0 to 1.
        moved: the three templates that moved most.
        pauses: the three before whose events pauses are longest or shortest, where these are a reason.
    """

    topic: str
    verdict: Literal["ok", "watch", "retrain"] | None
    since: str | None = None
    because: tuple[str, ...] = ()
    sessions: int = 0
    unknown: float = 0.0
    new: float = 0.0
    churn: float = 0.0
    divergence: Mapping[str, float] = field(default_factory=dict)
    moved: tuple[MovedTemplate, ...] = ()
    pauses: tuple[MovedPause, ...] = ()


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
        trained_score_shares: how the scores of the checkpoint's training are spread
            (`detector.scoring.score_histogram`); None where it does not say.
        joined: whether the group has given this worker its share, be it none.
        broker_away: whether the broker was last found not to answer.
        missing_topics: input topics that are not there, or the pattern that matches none; the worker goes on without.
        partitions: those that it holds.
        totals: counts since the start by what they count.
        unknown_share: share of the latest thousand events or more that fit no template; None before the first thousand.
        drift: of each topic; None where the checkpoint has no fingerprint of its training.
        reload: the latest one of settings or checkpoint; None before the first.
        processes: those that it consists of; none where it is a single one.
    """

    application_id: str
    instance: str
    started_at: str
    versions: Mapping[str, str]
    checkpoint: str
    vocabulary: str
    trained_score_shares: Sequence[float] | None = None
    joined: bool = False
    broker_away: bool = False
    missing_topics: tuple[str, ...] = ()
    partitions: tuple[PartitionStatus, ...] = ()
    totals: Mapping[str, int] = field(default_factory=dict)
    unknown_share: float | None = None
    drift: tuple[DriftStatus, ...] | None = None
    reload: ReloadStatus | None = None
    processes: tuple[ProcessStatus, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether the broker answers, every process runs and everything that the worker holds is live."""
        return (
            self.joined
            and not self.broker_away
            and all(each.state == "live" for each in self.partitions)
            and all(each.state == "running" for each in self.processes)
        )


def versions() -> dict[str, str]:
    """Of the software that a worker is made of, by name."""
    return {name: version(name) for name in ("logmamba", "confluent-kafka", "torch")}
