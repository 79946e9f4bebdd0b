"""Each kind of receiver is sent what its documentation asks for."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, FormatChecker

from tests.worker.alerting.receiving import score_record
from worker.alerting.alerts import Alert, Notification, ScoreRecord, alert_of
from worker.alerting.receivers import Request, receiver_of
from worker.settings.alerts import ReceiverSettings

NOW = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
KEY = "0123456789abcdef0123456789abcdef"
WEBHOOK_SCHEMA = json.loads((Path(__file__).parents[3] / "config" / "alert-webhook.schema.json").read_text())

_SHORT = {"type": "string", "minLength": 1}

# https://github.com/PagerDuty/api-schema/blob/main/reference/events-v2/openapiv3.json (createV2Event), with the limits
# of https://developer.pagerduty.com/docs/events-api-v2/trigger-events/: a dedup_key of 255 characters, a summary of
# 1,024, and a payload for each trigger.
PAGERDUTY_SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["routing_key", "event_action", "dedup_key"],
    "properties": {
        "routing_key": {"type": "string", "minLength": 32, "maxLength": 32},
        "event_action": {"enum": ["trigger", "acknowledge", "resolve"]},
        "dedup_key": {"type": "string", "minLength": 1, "maxLength": 255},
        "client": {"type": "string"},
        "payload": {
            "type": "object",
            "additionalProperties": False,
            "required": ["summary", "severity", "source"],
            "properties": {
                "summary": {"type": "string", "minLength": 1, "maxLength": 1024},
                "timestamp": {"type": "string", "format": "date-time"},
                "severity": {"enum": ["critical", "warning", "error", "info"]},
                "source": _SHORT,
                "component": _SHORT,
                "group": _SHORT,
                "class": _SHORT,
                "custom_details": {"type": "object"},
            },
        },
    },
    "if": {"properties": {"event_action": {"const": "trigger"}}},
    "then": {"required": ["payload"]},
}

# https://github.com/prometheus/alertmanager/blob/main/api/v2/openapi.yaml (postableAlerts), and
# https://prometheus.io/docs/alerting/latest/alerts_api/: alertname is required, labels and annotations are texts.
ALERTMANAGER_SCHEMA = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "additionalProperties": False,
        "required": ["labels"],
        "properties": {
            "labels": {
                "type": "object",
                "required": ["alertname"],
                "propertyNames": {"pattern": "^[a-zA-Z_][a-zA-Z0-9_]*$"},
                "additionalProperties": _SHORT,
            },
            "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
            "startsAt": {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$"},
            "endsAt": {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$"},
            "generatorURL": {"type": "string", "format": "uri"},
        },
    },
}

# https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks: a JSON object with a text.
SLACK_SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["text"],
    "properties": {"text": {"type": "string", "minLength": 1, "maxLength": 40_000}},
}
SCHEMAS = {
    "webhook": WEBHOOK_SCHEMA,
    "slack": SLACK_SCHEMA,
    "pagerduty": PAGERDUTY_SCHEMA,
    "alertmanager": ALERTMANAGER_SCHEMA,
}


def alert(session: str, *arguments: Any, **other: Any) -> Alert:
    return alert_of("shop", ScoreRecord.model_validate_json(score_record(session, *arguments, **other)))


def sent(kind: str, notification: Notification, **settings: Any) -> list[Request]:
    own = {"routing_key": KEY} if kind == "pagerduty" else {"url": "http://receiver"}
    receiver = receiver_of(ReceiverSettings.model_validate({"type": kind, **own, **settings}))
    return list(receiver.requests(notification, NOW))


def bodies(kind: str, notification: Notification, **settings: Any) -> list[Any]:
    return [json.loads(request.content()) for request in sent(kind, notification, **settings)]


LONG = "x" * 100_000
NOTIFICATIONS = {
    "one": Notification("firing", (alert("a"),)),
    "early": Notification("firing", (alert("a", "warning", "early", first_event_time=None, last_event_time=None),)),
    "group": Notification("firing", tuple(alert(f"s{number}") for number in range(100)), unlisted=114),
    "mixed": Notification("firing", (alert("a", reason="one"), alert("b", reason="two")), unlisted=214, mixed=True),
    "resolved": Notification("resolved", tuple(alert(f"s{number}", "warning", "early") for number in range(30))),
    "test": Notification("test", (alert("test", "warning"),)),
    "long": Notification(
        "firing", (alert(LONG, top_events=[{"offset": 1, "template": LONG, "surprise": 1.0}] * 3),) * 2
    ),
    "bare": Notification("firing", (alert("a", top_events=[]),)),
    "odd": Notification("firing", (alert("\0\u202e<!channel>\n", reason="```<@U1> & *x*\x1b[31m"),)),
}


def test_the_records_of_these_tests_are_score_records() -> None:
    schema = json.loads((Path(__file__).parents[3] / "config" / "score-record.schema.json").read_text())
    for arguments in (("a",), ("a", "normal"), ("a", "warning", "early")):
        Draft202012Validator(schema).validate(json.loads(score_record(*arguments)))


@pytest.mark.parametrize("name", NOTIFICATIONS)
@pytest.mark.parametrize("kind", SCHEMAS)
def test_every_message_fits_the_schema_of_its_receiver(kind: str, name: str) -> None:
    validator = Draft202012Validator(SCHEMAS[kind], format_checker=FormatChecker())
    found = bodies(kind, NOTIFICATIONS[name])
    assert found
    for body in found:
        validator.validate(body)
        assert len(json.dumps(body)) < 100_000


def test_a_webhook_gets_the_whole_story() -> None:
    [body] = bodies("webhook", NOTIFICATIONS["one"])
    assert body == {
        "schema": "logmamba.alert/1",
        "status": "firing",
        "application": "shop",
        "severity": "critical",
        "reason": "Receiving block <*>",
        "text": "critical 0.9987 in shop: session a\nReceiving block <*>\n19 events",
        "sessions": 1,
        "sent_at": "2026-11-30T12:00:00.000Z",
        "alerts": [
            {
                "id": alert("a").id,
                "session": "a",
                "severity": "critical",
                "score": 0.9987,
                "kind": "final",
                "reason": "Receiving block <*>",
                "events": 19,
                "first_event_time": "2008-11-09T20:36:15.000Z",
                "last_event_time": "2008-11-09T20:36:42.000Z",
                "topic": "raw-logs",
                "partition": 3,
                "first_offset": alert("a").first_offset,
                "last_offset": 10**9,
            }
        ],
    }


def test_headers_go_to_those_who_take_some() -> None:
    headers = {"Authorization": "Bearer x"}
    assert sent("webhook", NOTIFICATIONS["one"], headers=headers)[0].headers == headers
    assert sent("alertmanager", NOTIFICATIONS["one"], headers=headers)[0].headers == headers


def test_slack_cannot_be_told_by_a_log_to_mention_anyone() -> None:
    [body] = bodies("slack", NOTIFICATIONS["odd"])
    assert "<" not in body["text"]
    assert all(line.isprintable() for line in body["text"].split("\n"))
    assert body["text"].count("\n") == 2
    assert "&lt;!channel&gt;" in body["text"]
    assert "&lt;@U1&gt; &amp; " in body["text"]


def test_a_message_about_many_counts_those_that_it_does_not_name() -> None:
    [body] = bodies("slack", NOTIFICATIONS["group"])
    assert body["text"].splitlines()[0] == "*critical in shop: 214 sessions*"
    assert body["text"].splitlines()[-1] == "and 209 more"
    [mixed] = bodies("slack", NOTIFICATIONS["mixed"])
    assert mixed["text"].splitlines() == [
        "*shop: and 216 more sessions, critical at worst*", "1 of: one", "1 of: two", "and others"
    ]  # fmt: skip


def test_pagerduty_opens_and_resolves_by_the_same_key_without_a_memory() -> None:
    early, again = alert("a", "critical", "early"), alert("a", "warning", "early", reason="another")
    [trigger] = bodies("pagerduty", Notification("firing", (early,)))
    [resolve] = bodies("pagerduty", Notification("resolved", (again,)))
    assert resolve == {"routing_key": KEY, "event_action": "resolve", "dedup_key": trigger["dedup_key"]}
    assert (trigger["event_action"], trigger["payload"]["severity"]) == ("trigger", "critical")
    assert (trigger["payload"]["group"], trigger["payload"]["class"]) == ("shop", "Receiving block <*>")
    assert bodies("pagerduty", Notification("firing", (alert("b"),)))[0]["dedup_key"] != trigger["dedup_key"]
    assert sent("pagerduty", NOTIFICATIONS["one"])[0].url == "https://events.pagerduty.com/v2/enqueue"


def test_pagerduty_gets_what_is_beyond_the_limit_as_an_incident_of_its_own() -> None:
    [body] = bodies("pagerduty", NOTIFICATIONS["mixed"])
    assert body["dedup_key"] == f"{alert('a').id}-more"
    assert body["payload"]["summary"] == "shop: and 216 more sessions, critical at worst"


def test_alertmanager_resolves_by_the_labels_that_fired() -> None:
    early = alert("a", "critical", "early")
    [[fired]] = bodies("alertmanager", Notification("firing", (early,)), lasts="30m")
    [[resolved]] = bodies("alertmanager", Notification("resolved", (early,)), lasts="30m")
    assert fired["labels"] == resolved["labels"]
    assert (fired["startsAt"], fired["endsAt"]) == ("2026-11-30T12:00:00.000Z", "2026-11-30T12:30:00.000Z")
    assert (resolved.get("startsAt"), resolved["endsAt"]) == (None, "2026-11-30T12:00:00.000Z")


@pytest.mark.parametrize("url", ["http://am:9093", "http://am:9093/", "http://am:9093/api/v2/alerts"])
def test_alertmanager_is_named_with_or_without_the_path_of_its_interface(url: str) -> None:
    assert sent("alertmanager", NOTIFICATIONS["one"], url=url)[0].url == "http://am:9093/api/v2/alerts"


def test_a_reason_is_the_records_own_or_the_templates_that_surprise_most() -> None:
    top = [{"offset": 1, "template": template, "surprise": 1.0} for template in "aabcd"]
    assert alert("s", top_events=top).reason == "a; b; c"
    assert alert("s", top_events=top, reason="in words").reason == "in words"
    of_family = alert("s", reason={"text": "Closed 2 times.", "family": "F1"})
    assert (of_family.reason, of_family.group) == ("Closed 2 times.", "F1")


def test_people_get_the_lines_of_which_the_record_has_the_text() -> None:
    top = [
        {"offset": 1, "template": "disk <*>", "surprise": 9.0, "text": text}
        for text in ("disk <sda>\n", LONG, "c", "d")
    ]
    one = Notification("firing", (alert("s", top_events=top),))
    lines = ["disk <sda>\n", f"{'x' * 199}…", "c"]
    [webhook], [slack] = bodies("webhook", one), bodies("slack", one)
    [pagerduty], [[alertmanager]] = bodies("pagerduty", one), bodies("alertmanager", one)
    assert webhook["alerts"][0]["lines"] == pagerduty["payload"]["custom_details"]["lines"] == lines
    assert alertmanager["annotations"]["lines"] == "\n".join(lines)
    assert webhook["text"].splitlines()[1:] == ["disk <*>", r"disk <sda>\n", *lines[1:], "19 events"]
    assert r"disk &lt;sda&gt;\n" in slack["text"]
    for kind, body in (
        ("webhook", webhook),
        ("slack", slack),
        ("pagerduty", pagerduty),
        ("alertmanager", [alertmanager]),
    ):
        Draft202012Validator(SCHEMAS[kind]).validate(body)


def test_those_that_group_by_themselves_can_do_so_by_a_family_of_reasons() -> None:
    of_family = Notification("firing", (alert("s", reason={"text": "Closed 2 times.", "family": "F1"}),))
    [[for_alertmanager]] = bodies("alertmanager", of_family)
    assert (for_alertmanager["labels"]["reason"], for_alertmanager["labels"]["family"]) == ("Closed 2 times.", "F1")
    [for_pagerduty] = bodies("pagerduty", of_family)
    assert for_pagerduty["payload"]["class"] == "F1"
    assert for_pagerduty["payload"]["custom_details"]["reason"] == "Closed 2 times."
