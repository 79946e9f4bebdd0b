"""What well-known shippers write, read by the name of each and nothing more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from tests.field.reading import read
from worker.formats.presets import FORMATS
from worker.settings.document import load_settings

AT = 1_705_312_800_123
ISO = "2024-01-15T10:00:00.123456789Z"
TRACE_ID = "5b8efff798038103d269b633813fc60c"


def otlp(record: dict[str, Any]) -> dict[str, Any]:
    scope = {"name": "shop.sessions", "version": "1.4.0"}
    service = {"key": "service.name", "value": {"stringValue": "shop"}}
    resource = {"attributes": [service, {"key": "process.pid", "value": {"intValue": "77"}}]}
    return {"resourceLogs": [{"resource": resource, "scopeLogs": [{"scope": scope, "logRecords": [record]}]}]}


# Of each shipper the records that it writes, by the way in which it was set up: record, message and key.
SAMPLES: dict[str, dict[str, tuple[str | dict[str, Any], str, str]]] = {
    "vector": {
        "kubernetes_logs": (
            {
                "file": "/var/log/pods/shop_web-1_0a1b/web/0.log",
                "kubernetes": {
                    "container_id": "containerd://f24c8",
                    "container_name": "web",
                    "pod_labels": {"app": "shop"},
                    "pod_name": "web-1",
                    "pod_namespace": "shop",
                    "pod_uid": "0a1b",
                },
                "message": "user signed in",
                "source_type": "kubernetes_logs",
                "stream": "stdout",
                "timestamp": ISO,
            },
            "user signed in",
            "0a1b",
        ),
        "syslog": (
            {
                "appname": "su",
                "facility": "auth",
                "host": "web-1",
                "hostname": "web-1",
                "message": "user signed in",
                "msgid": "ID47",
                "procid": 77,
                "severity": "info",
                "source_type": "syslog",
                "timestamp": ISO,
            },
            "info user signed in",
            "web-1",
        ),
        "docker_logs, timestamp_format: unix_ms": (
            {"container_id": "9b6", "container_name": "web", "message": "user signed in", "timestamp": AT},
            "user signed in",
            "9b6",
        ),
    },
    "fluent_bit": {
        "tail with the filter kubernetes": (
            {
                "@timestamp": 1705312800.123,
                "log": "user signed in\n",
                "stream": "stdout",
                "_p": "F",
                "kubernetes": {"pod_name": "web-1", "namespace_name": "shop", "docker_id": "f24c8"},
            },
            "user signed in",
            "web-1",
        ),
        "systemd, Timestamp_Format iso8601_ns": (
            {"@timestamp": ISO, "MESSAGE": "user signed in", "PRIORITY": "6", "hostname": "web-1"},
            "user signed in",
            "web-1",
        ),
        "Fluentd with <inject>": (
            {"time": 1705312800.123456, "tag": "app.web", "message": "user signed in", "level": "info"},
            "info user signed in",
            "app.web",
        ),
        "Merge_Log": (
            {"date": 1705312800.123, "log": {"event": "signed in", "user": 7}, "tag": "app.web"},
            '{"event":"signed in","user":7}',
            "app.web",
        ),
    },
    "filebeat": {
        "filestream": (
            {
                "@timestamp": "2024-01-15T10:00:00.123Z",
                "@metadata": {"beat": "filebeat", "type": "_doc", "version": "8.12.0"},
                "agent": {"id": "a1", "type": "filebeat", "version": "8.12.0"},
                "ecs": {"version": "8.0.0"},
                "host": {"name": "web-1"},
                "input": {"type": "filestream"},
                "log": {"file": {"path": "/var/log/app.log"}, "level": "error", "offset": 1042},
                "message": "user signed in",
            },
            "error user signed in",
            "/var/log/app.log",
        ),
        "an ECS logger, names not expanded": (
            {
                "@timestamp": "2024-01-15T10:00:00.123Z",
                "log.level": "WARN",
                "message": "user signed in",
                "container": {"id": "f24c8"},
            },
            "WARN user signed in",
            "f24c8",
        ),
    },
    "logstash": {
        "ECS": (
            {
                "@timestamp": ISO,
                "@version": "1",
                "event": {"original": "10:00 INFO user signed in"},
                "host": {"name": "web-1"},
                "log": {"file": {"path": "/var/log/app.log"}, "level": "INFO"},
                "message": "user signed in",
            },
            "INFO user signed in",
            "/var/log/app.log",
        ),
        "before ECS": (
            {"@timestamp": ISO, "@version": "1", "host": "web-1", "message": "user signed in", "loglevel": "INFO"},
            "INFO user signed in",
            "web-1",
        ),
    },
    "otlp_json": {
        "text": (
            otlp(
                {
                    "timeUnixNano": "1705312800123456789",
                    "observedTimeUnixNano": "1705312999000000000",
                    "severityNumber": 9,
                    "severityText": "INFO",
                    "body": {"stringValue": "user signed in"},
                    "attributes": [{"key": "user", "value": {"intValue": "7"}}],
                    "flags": 1,
                    "traceId": TRACE_ID,
                    "spanId": "eee19b7ec3c1b174",
                }
            ),
            "INFO user signed in",
            TRACE_ID,
        ),
        "a time that is not known, numbers as numbers": (
            otlp(
                {
                    "timeUnixNano": 0,
                    "observedTimeUnixNano": 1705312800123456789,
                    "body": {"stringValue": "user signed in"},
                    "traceId": "",
                    "spanId": "",
                }
            ),
            "user signed in",
            "shop",
        ),
        "bytes": (
            otlp(
                {
                    "timeUnixNano": "0",
                    "observedTimeUnixNano": "1705312800123456789",
                    "body": {"bytesValue": "dXNlciBz/w=="},
                }
            ),
            "user s\ufffd",
            "shop",
        ),
    },
    "journald": {
        "text": (
            {
                "__CURSOR": "s=739ad4;i=4ece7",
                "__REALTIME_TIMESTAMP": "1705312800999999",
                "__MONOTONIC_TIMESTAMP": "21415215982",
                "_BOOT_ID": "6c7c6013",
                "_HOSTNAME": "web-1",
                "_SOURCE_REALTIME_TIMESTAMP": "1705312800123456",
                "_SYSTEMD_INVOCATION_ID": "0a1b2c",
                "_SYSTEMD_UNIT": "web.service",
                "_TRANSPORT": "syslog",
                "MESSAGE": "user signed in",
                "PRIORITY": "6",
                "SYSLOG_IDENTIFIER": "web",
            },
            "user signed in",
            "0a1b2c",
        ),
        "bytes": (
            {
                "__REALTIME_TIMESTAMP": "1705312800123456",
                "MESSAGE": list(b"user \x1b[1msigned\x1b[0m in"),
                "SYSLOG_IDENTIFIER": "kernel",
            },
            "user signed in",
            "kernel",
        ),
        "a field that was given twice": (
            {"__REALTIME_TIMESTAMP": "1705312800123456", "MESSAGE": ["user", "signed in"], "_HOSTNAME": "web-1"},
            '["user","signed in"]',
            "web-1",
        ),
    },
    "docker": {
        "json-file": ({"log": "user signed in\n", "stream": "stdout", "time": ISO}, "user signed in", "k"),
        "json-file with labels": (
            {"log": "user signed in\r\n", "stream": "stderr", "attrs": {"app": "shop"}, "time": ISO},
            "user signed in",
            "k",
        ),
    },
    "gelf": {
        "short": (
            {
                "version": "1.1",
                "host": "web-1",
                "short_message": "user signed in",
                "timestamp": 1705312800.123,
                "level": 6,
                "_line": 17,
            },
            "user signed in",
            "web-1",
        ),
        "full": (
            {
                "version": "1.1",
                "host": "web-1",
                "short_message": "user sig",
                "full_message": "user signed in",
                "timestamp": "1705312800.123",
                "_container_id": "f24c8",
            },
            "user signed in",
            "f24c8",
        ),
    },
    "azure": {
        "a service": (
            {
                "records": [
                    {
                        "time": "2024-01-15T10:00:00.1230000Z",
                        "resourceId": "/SUBSCRIPTIONS/1/RESOURCEGROUPS/SHOP",
                        "category": "AuditEvent",
                        "operationName": "SecretGet",
                        "resultType": "Success",
                        "resultDescription": "user signed in",
                        "level": "Informational",
                        "correlationId": "c0ffee",
                        "properties": {"id": "https://shop.example/secret"},
                    }
                ]
            },
            "Informational user signed in",
            "c0ffee",
        ),
        "Kubernetes": (
            {
                "records": [
                    {
                        "time": "2024-01-15T10:00:00.123Z",
                        "resourceId": "/SUBSCRIPTIONS/1/AKS",
                        "category": "kube-apiserver",
                        "operationName": "Microsoft.ContainerService/managedClusters/diagnosticLogs/Read",
                        "properties": {"log": "user signed in\n", "stream": "stderr", "pod": "kube-apiserver-1"},
                    }
                ]
            },
            "user signed in",
            "/SUBSCRIPTIONS/1/AKS",
        ),
    },
    "windows_event": {
        "Winlogbeat": (
            {
                "@timestamp": "2024-01-15T10:00:00.123Z",
                "event": {"code": "4624", "provider": "Microsoft-Windows-Security-Auditing", "kind": "event"},
                "host": {"name": "pc-1.shop"},
                "log": {"level": "information"},
                "message": "An account was logged on.\r\n",
                "winlog": {"channel": "Security", "computer_name": "pc-1", "event_id": "4624", "record_id": 12},
            },
            "information An account was logged on.",
            "pc-1",
        ),
        "NXLog": (
            {
                "EventTime": "2024-01-15 10:00:00.123456",
                "Hostname": "pc-1",
                "EventID": 4624,
                "Severity": "INFO",
                "SourceName": "Microsoft-Windows-Security-Auditing",
                "Message": "An account was logged on.",
            },
            "INFO An account was logged on.",
            "pc-1",
        ),
        "Vector": (
            {
                "channel": "Security",
                "computer": "pc-1",
                "event_id": 4624,
                "level": "Information",
                "message": "An account was logged on.",
                "source_type": "windows_event_log",
                "timestamp": ISO,
            },
            "Information An account was logged on.",
            "pc-1",
        ),
    },
    "cri": {
        "containerd": ("2024-01-15T11:00:00.123456789+01:00 stdout F user signed in", "user signed in", "k"),
        "more tags": ("2024-01-15T10:00:00.123Z stderr F:v2 user signed in", "user signed in", "k"),
    },
    "syslog_5424": {
        "structured data and a byte order mark": (
            '<34>1 2024-01-15T10:00:00.123Z web-1 su 77 ID47 [a@1 b="c\\"]" d="[e\\]"][f@1] \ufeffuser signed in',
            "user signed in",
            "web-1 su 77",
        ),
        "nothing but a message": (
            "<165>1 2024-01-15T10:00:00.123456Z - - - - - user signed in",
            "user signed in",
            "- - -",
        ),
    },
}
KEYS_OF_RECORDS = ("docker", "cri")  # their lines do not say whose they are


@pytest.mark.parametrize(("name", "setup"), [(name, setup) for name, setups in SAMPLES.items() for setup in setups])
def test_a_shippers_record_is_read_by_the_name_of_the_shipper(name: str, setup: str) -> None:
    record, message, key = SAMPLES[name][setup]
    value = record.encode() if isinstance(record, str) else orjson.dumps(record)
    more = ["sessions.key=record_key"] if name in KEYS_OF_RECORDS else []
    found = read([value], f"input.format={name}", *more, keys=[b"k"])
    assert found.dead_letters == []
    assert (found.messages, found.keys, found.times) == ([message], [key], [AT])


def test_every_shipper_has_a_sample() -> None:
    assert {*SAMPLES, "text", "json", "tokens"} == set(FORMATS)  # token records no shipper writes


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_spelled_out_means_the_same(name: str, tmp_path: Path) -> None:
    settings = load_settings(None, [f"input.format={name}"])
    file = tmp_path / "worker.yaml"
    file.write_text(yaml.safe_dump(settings.describe()))
    assert load_settings(file) == settings
    base = load_settings(None, [f"input.format={'json' if settings.input.documents else 'text'}"])
    described = settings.describe()["input"]
    assert isinstance(described, dict)
    written = yaml.safe_dump(
        {"input": described | {"format": base.input.format}, "sessions": settings.describe()["sessions"]}
    )
    file.write_text(written)
    assert load_settings(file).input == settings.input.model_copy(update={"format": base.input.format})


def test_what_is_written_beside_a_format_wins() -> None:
    settings = load_settings(None, ["input.format=filebeat", "input.message=/text", "sessions.key={pointer: /id}"])
    assert settings.input.message == ("/text",)
    assert settings.input.severity == ("/log/level", "/log.level")
    assert settings.sessions.key.value == "/id"


def test_of_text_a_pattern_says_what_makes_the_template_and_keys_are_found_in_the_whole_line() -> None:
    lines = [b"job-1 [web] started", b"job-2 nothing in brackets"]
    found = read(lines, r"input.message={pattern: '\] (.*)'}", r"sessions.key={regex: '^job-\d'}")
    assert (found.messages, found.keys) == (["started", "job-2 nothing in brackets"], ["job-1", "job-2"])
