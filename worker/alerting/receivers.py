"""What each kind of receiver is sent: JSON bodies for one address."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import orjson

from worker.alerting.alerts import Alert, Notification
from worker.formats.printable import cut, printable
from worker.settings.alerts import ReceiverSettings, ReceiverType
from worker.settings.kafka_properties import REDACTED

SCHEMA = "logmamba.alert/1"

_MOST_SHOWN = 5  # sessions or reasons in a text; the rest is counted
_MOST_LABEL = 200
_LEAST_SECRET = 8  # characters; shorter parts of an address are words


@dataclass(frozen=True, slots=True)
class Request:
    """A POST to the receiver's address.

    Attributes:
        url: http or https.
        headers: beside those of the connection; may hold secrets.
        body: JSON.
        answered: whether what comes back may be verdicts (`worker.alerting.answers`).
    """

    url: str
    headers: Mapping[str, str]
    body: Any
    answered: bool = False

    def content(self) -> bytes:
        """The body's bytes."""
        return orjson.dumps(self.body)

    def hidden(self, text: str) -> str:
        """A text of the receiver's without what only we should know, should it repeat that."""
        parts = urlsplit(self.url)
        secrets = [parts.path.removesuffix("/"), parts.query, *self.headers.values()]
        if isinstance(self.body, dict) and (key := self.body.get("routing_key")):
            secrets.append(str(key))
        for secret in sorted(secrets, key=len, reverse=True):
            if len(secret) >= _LEAST_SECRET:
                text = text.replace(secret, REDACTED)
        return text


class Receiver(Protocol):
    """A kind of receiver, at one address.

    Attributes:
        by_session: whether it is told of each session by itself, to open and close something for it.
    """

    by_session: bool

    def requests(self, notification: Notification, now: datetime) -> Iterator[Request]:
        """What to send, in order, for one notification."""


def receiver_of(settings: ReceiverSettings) -> Receiver:
    """The receiver that the settings describe."""
    return _KINDS[settings.type](settings)


class _Webhook:
    """Generic JSON (`config/alert-webhook.schema.json`), one POST for each notification."""

    by_session = False

    def __init__(self, settings: ReceiverSettings) -> None:
        self._url, self._headers, self._answered = settings.address, settings.headers, settings.answers

    def requests(self, notification: Notification, now: datetime) -> Iterator[Request]:
        first = notification.alerts[0]
        body = {
            "schema": SCHEMA,
            "status": notification.status,
            "application": first.application,
            "severity": first.severity,
            "reason": first.reason if _one_reason(notification) else None,
            "text": "\n".join(lines(notification)),
            "sessions": notification.sessions,
            "sent_at": _time(now),
            "alerts": [_details(alert) | {"id": alert.id} for alert in notification.alerts],
        }
        yield Request(self._url, self._headers, body, self._answered)


class _Slack:
    """An incoming webhook: `text` with Slack's three characters escaped.

    https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks and, for the escapes,
    https://docs.slack.dev/messaging/formatting-message-text: a log line must not be able to mention a channel.
    """

    by_session = False

    def __init__(self, settings: ReceiverSettings) -> None:
        self._url = settings.address

    def requests(self, notification: Notification, now: datetime) -> Iterator[Request]:  # noqa: ARG002
        head, *rest = (_escaped(line) for line in lines(notification))
        yield Request(self._url, {}, {"text": "\n".join([f"*{head}*", *rest])})


class _PagerDuty:
    """Events API v2: an event for each session, whose `dedup_key` opens an incident, finds it again and resolves it.

    https://developer.pagerduty.com/docs/events-api-v2-overview; fields and limits:
    https://github.com/PagerDuty/api-schema/blob/main/reference/events-v2/openapiv3.json. To resolve what is not open
    does nothing.
    """

    by_session = True

    def __init__(self, settings: ReceiverSettings) -> None:
        self._url, self._routing_key = settings.address, settings.routing_key

    def requests(self, notification: Notification, now: datetime) -> Iterator[Request]:  # noqa: ARG002
        if notification.status == "resolved":
            for alert in notification.alerts:
                yield self._event("resolve", alert.id)
            return
        first = notification.alerts[0]
        summary, *rest = lines(notification)
        payload = {
            "summary": cut(summary, 1024),
            "severity": "info" if notification.status == "test" else first.severity,
            "source": first.topic,
            "component": first.application,
            "group": first.application,
            "class": first.group if _one_reason(notification) else "several reasons",
            "custom_details": _details(first) if notification.sessions == 1 else {"sessions": "\n".join(rest)},
        }
        # A summary has an incident of its own, which a person closes.
        key = f"{first.id}-more" if notification.mixed else first.id
        yield self._event("trigger", key, payload=payload, client="logmamba")

    def _event(self, action: str, dedup_key: str, **more: object) -> Request:
        body = {"routing_key": self._routing_key, "event_action": action, "dedup_key": dedup_key, **more}
        return Request(self._url, {}, body)


class _Alertmanager:
    """API v2: an alert for each session, found again by its labels; Alertmanager groups and limits by them itself.

    https://prometheus.io/docs/alerting/latest/clients/ and
    https://github.com/prometheus/alertmanager/blob/main/api/v2/openapi.yaml (`postableAlerts`). A session is over when
    it is reported, so instead of being sent again and again it is said when the alert ends by itself.
    """

    by_session = False

    def __init__(self, settings: ReceiverSettings) -> None:
        self._url = f"{settings.address.removesuffix('/').removesuffix(_ALERTS_PATH)}{_ALERTS_PATH}"
        self._headers, self._lasts = settings.headers, timedelta(milliseconds=settings.lasts_ms)

    def requests(self, notification: Notification, now: datetime) -> Iterator[Request]:
        times = {"endsAt": _time(now)}
        if notification.status != "resolved":
            times = {"startsAt": _time(now), "endsAt": _time(now + self._lasts)}
        alerts: list[dict[str, object]] = []
        for alert in notification.alerts:
            labels = {
                "alertname": "LogAnomalyTest" if notification.status == "test" else "LogAnomaly",
                "application": alert.application,
                "severity": alert.severity,
                "reason": cut(alert.reason, _MOST_LABEL),
                "session": alert.session,
                "id": alert.id,
            }
            if alert.group != alert.reason:
                labels["family"] = cut(alert.group, _MOST_LABEL)
            annotations = {"summary": headline(alert), "description": alert.reason}
            told = _details(alert) | ({"lines": "\n".join(alert.lines)} if alert.lines else {})
            annotations |= {name: str(value) for name, value in told.items() if value is not None}
            alerts.append({"labels": labels, "annotations": annotations, **times})
        if notification.unlisted:
            first = notification.alerts[0]
            labels = {
                "alertname": "LogAnomalies",
                "application": first.application,
                "severity": first.severity,
                "id": f"{first.id}-more",
            }
            text = f"and {notification.unlisted:,} more sessions in {first.application}"
            alerts.append({"labels": labels, "annotations": {"summary": text}, **times})
        yield Request(self._url, self._headers, alerts)


_ALERTS_PATH: Final = "/api/v2/alerts"

_KINDS: Final[Mapping[ReceiverType, type[_Webhook | _Slack | _PagerDuty | _Alertmanager]]] = {
    "webhook": _Webhook,
    "slack": _Slack,
    "pagerduty": _PagerDuty,
    "alertmanager": _Alertmanager,
}


def headline(alert: Alert) -> str:
    """One session in a line."""
    return printable(f"{alert.severity} {alert.score:.4f} in {alert.application}: session {alert.session}")


def lines(notification: Notification) -> Iterator[str]:
    """A notification in words: what it is about in the first line, its sessions or reasons in the next ones.

    A line is one whatever a session's key or a template holds.
    """
    return map(printable, _lines(notification))


def _lines(notification: Notification) -> Iterator[str]:
    first, count = notification.alerts[0], notification.sessions
    if notification.status == "test":
        yield f"test of logmamba alert for {first.application}: nothing is wrong"
    elif notification.status == "resolved" and count == 1:
        yield f"resolved in {first.application}: session {first.session} ended as a usual one"
    elif notification.status == "resolved":
        yield f"resolved in {first.application}: {count:,} sessions ended as usual ones"
        yield from _sessions(notification)
    elif notification.mixed:
        reasons = Counter(alert.reason for alert in notification.alerts)
        yield f"{first.application}: and {count:,} more sessions, {first.severity} at worst"
        yield from (f"{times:,} of: {reason}" for reason, times in reasons.most_common(_MOST_SHOWN))
        if len(reasons) > _MOST_SHOWN or notification.unlisted:
            yield "and others"
    elif count == 1:
        yield headline(first)
        yield first.reason
        yield from first.lines
        yield f"{first.events:,} events" + ("" if first.kind == "final" else ", still open")
    else:
        yield f"{first.severity} in {first.application}: {count:,} sessions"
        yield first.reason
        yield from _sessions(notification)


def _sessions(notification: Notification) -> Iterator[str]:
    shown = notification.alerts[:_MOST_SHOWN]
    yield from (f"{alert.severity} {alert.score:.4f} {alert.session}" for alert in shown)
    if notification.sessions > len(shown):
        yield f"and {notification.sessions - len(shown):,} more"


def _details(alert: Alert) -> dict[str, object]:
    return {
        "session": alert.session,
        "severity": alert.severity,
        "score": alert.score,
        "kind": alert.kind,
        "reason": alert.reason,
        **({"lines": [*alert.lines]} if alert.lines else {}),
        "events": alert.events,
        "first_event_time": alert.first_event_time,
        "last_event_time": alert.last_event_time,
        "topic": alert.topic,
        "partition": alert.partition,
        "first_offset": alert.first_offset,
        "last_offset": alert.last_offset,
        **({} if alert.pattern is None else {"pattern": alert.pattern}),
    }


def _one_reason(notification: Notification) -> bool:
    return len({alert.group for alert in notification.alerts}) == 1 and not notification.mixed


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
