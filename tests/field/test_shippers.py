"""What well-known shippers write, read by the name of each and nothing more."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
import yaml

from tests.field.reading import read
from worker.formats.presets import FORMATS
from worker.settings.document import load_settings

AT = 1_705_312_800_123
SAMPLES = {
    "vector": (
        {"message": "user signed in", "level": "info", "timestamp": "2024-01-15T10:00:00.123456789Z", "host": "web-1"},
        "info user signed in",
        "web-1",
    ),
    "fluent_bit": (
        {"@timestamp": 1705312800.123, "log": "user signed in\n", "kubernetes": {"pod_name": "web-1"}},
        "user signed in",
        "web-1",
    ),
    "filebeat": (
        {
            "@timestamp": "2024-01-15T10:00:00.123Z",
            "message": "user signed in",
            "log": {"level": "error", "file": {"path": "/var/log/app.log"}},
            "host": {"name": "web-1"},
        },
        "error user signed in",
        "/var/log/app.log",
    ),
    "logstash": (
        {"@timestamp": "2024-01-15T10:00:00.123Z", "@version": "1", "message": "user signed in", "host": "web-1"},
        "user signed in",
        "web-1",
    ),
    "journald": (
        {
            "__REALTIME_TIMESTAMP": "1705312800123456",
            "MESSAGE": list(b"user \x1b[1msigned\x1b[0m in"),
            "_SYSTEMD_UNIT": "web",
        },
        "user signed in",
        "web",
    ),
    "docker": (
        {"log": "user signed in\n", "stream": "stdout", "time": "2024-01-15T10:00:00.123456789Z"},
        "user signed in",
        "k",
    ),
    "gelf": (
        {"version": "1.1", "host": "web-1", "short_message": "user signed in", "timestamp": 1705312800.123, "level": 6},
        "user signed in",
        "web-1",
    ),
    "azure": (
        {
            "records": [
                {
                    "time": "2024-01-15T10:00:00.1230000Z",
                    "level": "Error",
                    "operationName": "Signed in",
                    "resourceId": "/S",
                }
            ]
        },
        "Error Signed in",
        "/S",
    ),
    "windows_event": (
        {
            "@timestamp": "2024-01-15T10:00:00.123Z",
            "message": "An account was logged on.\r\n",
            "log": {"level": "information"},
            "winlog": {"event_id": 4624, "computer_name": "pc-1"},
        },
        "information An account was logged on.",
        "pc-1",
    ),
    "cri": ("2024-01-15T11:00:00.123456789+01:00 stdout F user signed in", "user signed in", "k"),
    "syslog_5424": (
        '<34>1 2024-01-15T10:00:00.123Z web-1 su 77 ID47 [a b="c\\"]"][d] \ufeffuser signed in',
        "user signed in",
        "web-1 su 77",
    ),
}
KEYS_OF_RECORDS = ("docker", "cri")  # their lines do not say whose they are


@pytest.mark.parametrize("name", SAMPLES)
def test_a_shippers_record_is_read_by_the_name_of_the_shipper(name: str) -> None:
    record, message, key = SAMPLES[name]
    value = record.encode() if isinstance(record, str) else orjson.dumps(record)
    more = ["sessions.key=record_key"] if name in KEYS_OF_RECORDS else []
    found = read([value], f"input.format={name}", *more, keys=[b"k"])
    assert found.dead_letters == []
    assert (found.messages, found.keys, found.times) == ([message], [key], [AT])


def test_every_shipper_has_a_sample() -> None:
    assert {*SAMPLES, "text", "json", "otlp_json"} == set(FORMATS)  # the last is in test_batches


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
    assert settings.input.severity == ("/log/level",)
    assert settings.sessions.key.value == "/id"


def test_of_text_a_pattern_says_what_makes_the_template_and_keys_are_found_in_the_whole_line() -> None:
    lines = [b"job-1 [web] started", b"job-2 nothing in brackets"]
    found = read(lines, r"input.message={pattern: '\] (.*)'}", r"sessions.key={regex: '^job-\d'}")
    assert (found.messages, found.keys) == (["started", "job-2 nothing in brackets"], ["job-1", "job-2"])
