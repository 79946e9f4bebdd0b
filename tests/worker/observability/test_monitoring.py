"""Code, manual, dashboard and alert rules speak of the same metrics, and the rules fire when they should."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.monitoring_tools import tool
from tests.worker.observability.every_metric import every_metric, series_named

ROOT = Path(__file__).resolve().parents[3]
MONITORING = ROOT / "config" / "monitoring"
MANUAL = ROOT / "docs" / "metrics.md"
RULES = MONITORING / "alerts.yaml"
RULES_TEST = MONITORING / "alerts.test.yaml"


def rules() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    return found


def queries() -> Iterator[str]:
    """Those of the dashboard and of the rules."""
    for panel in json.loads((MONITORING / "dashboard.json").read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]
    for rule in rules():
        yield rule["expr"]


def test_the_manual_has_a_row_for_every_metric() -> None:
    rows = [line for line in MANUAL.read_text().splitlines() if line.startswith("| `logmamba_")]
    assert rows == [each.row() for each in every_metric()]


@pytest.mark.parametrize(
    "path",
    [MANUAL, *(ROOT / "docs" / f"{name}.md" for name in ("concepts", "operations", "records")), RULES],
    ids=lambda path: path.name,
)
def test_a_text_names_metrics_that_there_are(path: Path) -> None:
    known = {name for each in every_metric() for name in (each.name, *each.series)}
    named = series_named(path.read_text())
    assert named
    assert named <= known


def test_queries_ask_for_series_that_there_are() -> None:
    known = {name for each in every_metric() for name in each.series}
    for query in [*queries(), RULES_TEST.read_text()]:
        assert series_named(query) <= known, query


def test_queries_ask_for_values_of_labels_that_there_are() -> None:
    known: dict[str, set[str]] = {}
    for each in every_metric():
        for name, values in each.labels.items():
            known.setdefault(name, set()).update(values)
    asked = [
        (name, value)
        for query in queries()
        for name, values in re.findall(r'(\w+)(?:=|!=|=~|!~)"([^"]*)"', query)
        if known.get(name)
        for value in values.split("|")
    ]
    assert len(asked) > 5
    assert [(name, value) for name, value in asked if value not in known[name]] == []


def test_every_metric_is_on_the_dashboard() -> None:
    shown = series_named((MONITORING / "dashboard.json").read_text())
    assert [each.name for each in every_metric() if not each.series & shown] == []


def test_each_alert_says_what_is_wrong_and_what_to_do_and_has_a_test() -> None:
    tested = {
        name
        for test in yaml.safe_load(RULES_TEST.read_text())["tests"]
        for asked in test["promql_expr_test"]
        for sample in asked["exp_samples"]
        for name in re.findall(r'alertname="(\w+)"', sample["labels"])
    }
    assert {rule["alert"] for rule in rules()} == tested
    for rule in rules():
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}, rule["alert"]
        assert rule["labels"]["severity"] in {"page", "ticket"}, rule["alert"]


def test_the_rules_are_sound_and_each_fires_when_it_should_and_only_then() -> None:
    promtool = tool("promtool")
    commands = (
        ("check", "config", MONITORING / "prometheus.yaml"),
        ("test", "rules", RULES_TEST),
    )
    for command in commands:
        done = subprocess.run([promtool, *command], capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_panels_of_the_dashboard_stand_side_by_side() -> None:
    taken: set[tuple[int, int]] = set()
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
