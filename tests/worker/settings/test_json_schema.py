"""The JSON Schema that editors read is made of the settings, and takes what a worker takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from tests.worker.command_line import logmamba
from tests.worker.settings.written import load
from worker.errors import SettingsError
from worker.settings.document import Settings
from worker.settings.json_schema import settings_schema

ROOT = Path(__file__).parents[3]
SCHEMA = json.loads((ROOT / "config" / "worker.schema.json").read_text(encoding="utf-8"))
EXAMPLES = [ROOT / "config" / f"{name}.yaml" for name in ("worker.example", "hdfs", "json")]


def problems(text: str) -> list[str]:
    """What an editor underlines."""
    found = Draft202012Validator(SCHEMA).iter_errors(yaml.safe_load(text))
    return [".".join(map(str, each.absolute_path)) for each in found]


def test_the_file_is_what_the_settings_give() -> None:
    assert settings_schema() == SCHEMA, "run: make config-schema"
    Draft202012Validator.check_schema(SCHEMA)
    assert logmamba("example", "worker.schema.json").stdout == (ROOT / "config" / "worker.schema.json").read_text()


def test_an_editor_tells_what_each_setting_is_and_its_default_as_a_file_has_it() -> None:
    gap = SCHEMA["$defs"]["SessionsSettings"]["properties"]["gap"]
    assert gap["default"] == "10m"
    lines = [line.strip().removeprefix("# ") for line in EXAMPLES[0].read_text().splitlines()]
    assert "\n".join([gap["description"], "gap: 10m"]) in "\n".join(lines)
    for name, section in SCHEMA["properties"].items():
        assert section["description"], name


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_shipped_files_are_right_by_it_and_name_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert problems(text) == []
    first = text.partition("\n")[0]
    assert (path.parent / first.removeprefix("# yaml-language-server: $schema=")).is_file()


@pytest.mark.parametrize(
    "text",
    [
        yaml.safe_dump(Settings().describe()),
        "sessions:\nkafka: {bootstrap.servers: a}",
        "sessions: {gap: null, max_events: 5, key: [{header: h, as: hex}, record_key], end_events: E1}",
        "sessions: {key: {any_of: [{pointer: /a, pattern: b}, partition]}, max_age: 1.5h}\ninput: {format: json}",
        "input: {timestamp: {pattern: a(b), format: [iso8601], year: 2024}, only: {header: a, equals: 5}}",
        "input: {format: json, message: [/a, /b], split: /c/*, severity: /d, timestamp: /e}",
        "input: {topics: ^a, message: {pattern: (b)}, multiline: {start: a}, format: text}",
        "worker: {batch_records: '${SIZE}', linger: '${LINGER}'}\nobservability: {port: null}",
        "scoring: {adaptive: {target_rate: 0.001}, early: false}",
        "output: {format: avro, schema_registry: {url: 'http://a', basic.auth.user.info: '${LOGIN}'}}",
        "alert: {receivers: {a: {type: slack, url_file: /dev/null}}}\ntokenizer: {masks: []}",
        "tokenizer: {masks: [{pattern: a, name: ip}]}\nmodel: {checkpoint: a, device: 'cuda:1'}",
    ],
)
def test_what_a_worker_takes_is_right_by_it(tmp_path: Path, text: str) -> None:
    if "/dev/null" not in text:
        load(tmp_path, text, SIZE="5", LINGER="5ms", LOGIN="a:b")
    assert problems(text) == []


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("sessions: {gapp: 5m}", "sessions"),
        ("session: {}", ""),
        ("sessions: {gap: 5}", "sessions.gap"),
        ("sessions: {gap: 5 parsecs}", "sessions.gap"),
        ("sessions: {max_events: 0}", "sessions.max_events"),
        ("sessions: {key: {regexp: a}}", "sessions.key"),
        ("scoring: {warning: 2}", "scoring.warning"),
        ("scoring: {early: maybe}", "scoring.early"),
        ("input: {start: middle}", "input.start"),
        ("output: {topic: a b}", "output.topic"),
        ("output: {include: some}", "output.include"),
        ("observability: {port: 70000}", "observability.port"),
        ("alert: {receivers: {a: {type: pigeon}}}", "alert.receivers.a.type"),
        ("worker: {processes: 0}", "worker.processes"),
    ],
)
def test_an_editor_underlines_what_a_worker_refuses(tmp_path: Path, text: str, place: str) -> None:
    with pytest.raises(SettingsError):
        load(tmp_path, text)
    found: list[Any] = []
    for error in Draft202012Validator(SCHEMA).iter_errors(yaml.safe_load(text)):
        found += [error, *error.context]
    assert place in {".".join(map(str, each.absolute_path)) for each in found}
