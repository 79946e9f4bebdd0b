"""The status page of a worker, for a person on call: what is anomalous now, and whether the worker is well."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

from detector.scoring.score_histogram import BINS
from worker.observability.history import Hour
from worker.observability.metrics import DELAY_BOUNDS
from worker.observability.recent_alerts import MOST_SESSIONS, Alert
from worker.observability.slow_look import Seen
from worker.observability.status import MOSTLY_UNKNOWN, NO_FINGERPRINT, GroupMember, WorkerStatus
from worker.pages.charts import Line, spread_chart, time_chart
from worker.pages.html import environment
from worker.pages.wording import compact, duration, number, share

_SHOWN_GROUPS, _SHOWN_SESSIONS = 6, 3  # the others are behind a click
_SHOWN_EVENTS = 3
_HUNG_S = 30.0  # the loop comes round every second, and while it scores or waits every few
_HIGH = 0.7  # scores from the default warning threshold on; an edge of a bin

# Of the axes of charts, in seconds and as shares; above the last one they are 1, 2 and 5 times powers of ten.
_DURATIONS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0)
_SHARES = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)

_PAGE = environment().get_template("status.html")


@dataclass(frozen=True, slots=True)
class AlertGroup:
    """Sessions that alerted for one reason, the latest first.

    Attributes:
        name: of its place in the page; it stays while the reason does.
        text: the reason, in words.
        events: the surprising ones of the latest session, as its record has them.
        severity: the highest.
        past: whether their final records took the alerts back.
        latest_s, first_s: how long ago the latest and the first of them was published.
    """

    name: str
    text: str
    events: Sequence[Mapping[str, Any]]
    alerts: Sequence[Alert]
    severity: str
    past: bool
    latest_s: float
    first_s: float

    @property
    def highest(self) -> float:
        """Score among them."""
        return max(float(alert.record["score"]) for alert in self.alerts)


def render_status(
    status: WorkerStatus,
    hour: Hour,
    alerts: Sequence[Alert],
    members: Seen[Sequence[GroupMember]],
    heartbeat_age_s: float,
    now: Callable[[], float] = time.time,
    *,
    with_lines: bool = True,
) -> str:
    """The page.

    Args:
        status: of the worker.
        hour: the last one.
        alerts: the latest first.
        members: of its application.
        heartbeat_age_s: since its loop last came round.
        now: seconds since 1970.
        with_lines: whether the texts that records have of lines are shown beside the templates.
    """
    groups = group_alerts(alerts, now())
    return _PAGE.render(
        status=status,
        hour=hour,
        groups=groups,
        with_lines=with_lines,
        most_kept=MOST_SESSIONS,
        alerting=sum(len(group.alerts) for group in groups if not group.past),
        shown=_SHOWN_SESSIONS,
        shown_groups=_SHOWN_GROUPS,
        members=members,
        hung_s=heartbeat_age_s if heartbeat_age_s >= _HUNG_S else 0,
        state=_state(status, heartbeat_age_s),
        notices=list(_notices(status, members.failure, heartbeat_age_s)),
        latest=_latest(status, hour),
        delays=[_delay(hour.all_delay), _delay(hour.all_slow_delay)],
        scores=_scores(status, hour),
        charts=_charts(status, hour),
        no_fingerprint=NO_FINGERPRINT,
        now=now(),
    )


def group_alerts(alerts: Iterable[Alert], now: float) -> list[AlertGroup]:
    """By reason: critical ones before warnings, the latest first, those that were taken back last."""
    found: dict[tuple[bool, str], list[Alert]] = {}
    for alert in alerts:
        found.setdefault((alert.taken_back, _reason(alert.record)), []).append(alert)
    groups = [
        AlertGroup(
            name=f"group-{crc32(reason.encode(errors='replace')):x}{'-past' if past else ''}",
            text=_words(kept[0].record),
            events=kept[0].record["top_events"][:_SHOWN_EVENTS],
            alerts=kept,
            severity="critical" if any(alert.severity == "critical" for alert in kept) else "warning",
            past=past,
            latest_s=now - max(alert.published_at for alert in kept),
            first_s=now - min(alert.published_at for alert in kept),
        )
        for (past, reason), kept in found.items()
    ]
    return sorted(groups, key=lambda group: (group.past, group.severity != "critical", group.latest_s))


def _family(record: Mapping[str, Any]) -> str | None:
    return (record.get("reason") or {}).get("family")


def _reason(record: Mapping[str, Any]) -> str:
    """What sessions of one reason have in common: the family of the reason, else what surprised most."""
    return _family(record) or "\0".join(sorted({event["template"] for event in record["top_events"]}))


def _words(record: Mapping[str, Any]) -> str:
    if reason := record.get("reason"):
        return str(reason["text"])
    unknown, events = record["unknown_events"], record["events"]
    told = f"{unknown:,} of its {events:,} events match no template of the checkpoint. " if unknown else ""
    return told + ("What the model expected least:" if record["top_events"] else "Its record names no events.")


@dataclass(frozen=True, slots=True)
class _State:
    name: str
    mood: str


def _state(status: WorkerStatus, heartbeat_age_s: float) -> _State:
    if heartbeat_age_s >= _HUNG_S:
        return _State("hung", "critical")
    if status.broker_away:
        return _State("no broker", "critical")
    if not status.joined:
        return _State("joining", "warning")
    return _State("ready", "good") if status.ready else _State("restoring", "warning")


def _notices(status: WorkerStatus, no_members: str, heartbeat_age_s: float) -> Iterator[tuple[str, str]]:
    if heartbeat_age_s >= _HUNG_S:
        yield (
            "critical",
            f"The loop has not come round for {duration(heartbeat_age_s)}. What stands below is from then.",
        )
    if status.broker_away:
        yield "critical", "No broker answers. The worker waits, and goes on with what is committed once one does."
    elif no_members:
        yield "warning", f"Kafka does not say who is in the group: {no_members}"
    if status.unknown_share is not None and status.unknown_share >= MOSTLY_UNKNOWN:
        yield (
            "warning",
            f"{status.unknown_share:.0%} of the latest events are unknown to the checkpoint: their scores mean little. "
            "Was it trained on logs of this kind?",
        )
    for topic in status.drift or ():
        if topic.verdict == "retrain":
            yield (
                "warning",
                f"The sessions of {topic.topic} are no longer like those of the training, and stay so: train again.",
            )
    for each in status.processes:
        if each.state in ("restarting", "given_up"):
            what = "It is started again." if each.state == "restarting" else "It is not started again."
            yield (
                "critical" if each.state == "given_up" else "warning",
                f"Process {each.name} ended: {each.reason}. {what}",
            )
    reload = status.reload
    if reload is not None and reload.result == "refused":
        text = f"The reload of {reload.at} was refused: {reload.reason}. The worker goes on with what it had."
        yield "warning", text
    if reload is not None and reload.result == "waiting":
        yield (
            "warning",
            f"What was reloaded waits since {reload.at} until every partition is live, and holds from then on.",
        )
    if status.missing_topics:
        names = ", ".join(status.missing_topics)
        yield "warning", f"No such input topic: {names}. The worker goes on with the others."


def _latest(status: WorkerStatus, hour: Hour) -> dict[str, object]:
    """What stands beside the charts: the newest values."""

    def last(values: Sequence[float]) -> float:
        return values[-1] if values else math.nan

    lags = [each.lag for each in status.partitions]
    behind = [each.lag_seconds for each in status.partitions if each.lag_seconds is not None]
    known = bool(lags) and None not in lags
    return {
        "records": last(hour.records),
        "alerts": last(hour.alerts),
        "lag": number(sum(each or 0 for each in lags)) if known else "not known",
        "lag_note": f"records still to be read; at most {duration(max(behind))} behind"
        if behind
        else "records still to be read",
        "unknown": hour.all_unknown if status.unknown_share is None else status.unknown_share,
    }


def _delay(seconds: float) -> str:
    return ("over " if seconds >= DELAY_BOUNDS[-1] else "") + duration(seconds)


def _scores(status: WorkerStatus, hour: Hour) -> dict[str, object]:
    trained, total = status.trained_score_shares, sum(hour.scores)
    edge = round(_HIGH * BINS)
    note = f"of {number(total)} sessions score {_HIGH} or more; " if total else "no session has ended yet; "
    if trained is None:
        note += "the checkpoint does not say how its training's did"
    else:
        note += f"of those that the training was tested on {share(sum(trained[edge:]))}"
    return {"high": sum(hour.scores[edge:]) / total if total else math.nan, "note": note}


def _charts(status: WorkerStatus, hour: Hour) -> dict[str, str]:
    def over_time(title: str, unit: Callable[[float], str], *lines: Line, tops: Sequence[float] = ()) -> str:
        return time_chart(title, hour.ago, hour.span_s, lines, unit, tops)

    total = sum(hour.scores)
    return {
        "records": over_time("records a second", compact, Line("records", hour.records)),
        "lag": over_time("lag in records", compact, Line("lag", hour.lag)),
        "delay": over_time(
            "delay", duration, Line("delay", hour.delay), Line("second", hour.slow_delay), tops=_DURATIONS
        ),
        "alerts": over_time("alerts a minute", compact, Line("alerts", hour.alerts)),
        "unknown": over_time("share of unknown events", share, Line("unknown", hour.unknown), tops=_SHARES),
        "scores": spread_chart(
            "share of final scores by score",
            [each / total for each in hour.scores] if total else (),
            status.trained_score_shares,
        ),
    }
