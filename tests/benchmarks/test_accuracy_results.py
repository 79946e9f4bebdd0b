"""Runs of `benchmarks.accuracy` and what is written of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from rich.console import Console

from benchmarks.accuracy import results
from benchmarks.accuracy.detectors import Product, detectors
from benchmarks.accuracy.protocols import Protocol, random_split
from benchmarks.accuracy.runner import run
from benchmarks.accuracy.tasks import Task
from detector.training.train import TrainingOptions
from tests.benchmarks.sessions import blocks

DATA = blocks(800, 60)
PROTOCOLS = {
    "with": Protocol("With labels", lambda: DATA, random_split, labelled=True),
    "without": Protocol("Without labels", lambda: DATA, random_split, labelled=False),
}
BASELINES = [each for name, each in detectors("tiny", "cpu").items() if name != "logmamba"]


def run_baselines(folder: Path, seeds: int) -> None:
    run(PROTOCOLS, BASELINES, range(seeds), folder, "command", Console(quiet=True))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("accuracy") / "results"
    run_baselines(folder, 2)
    return folder


def test_every_detector_runs_where_it_fits_with_every_seed(measured: Path) -> None:
    found = results.read_all(measured, PROTOCOLS)
    runs = {(each["protocol"], each["detector"]): [] for each in found}
    for each in found:
        runs[each["protocol"], each["detector"]].append(each["seed"])
    assert set(runs) == {
        *(("with", name) for name in ("logistic-regression", "random-forest", "decision-tree")),
        *(("without", name) for name in ("count-vector-novelty", "isolation-forest")),
    }
    assert all(seeds == [0, 1] for seeds in runs.values())


def test_a_learnable_fault_is_found(measured: Path) -> None:
    for result in results.read_all(measured, PROTOCOLS):
        if result["detector"] != "isolation-forest":
            assert result["figures"]["sessions"]["auprc"] > 0.99


def test_what_is_measured_is_not_measured_again(measured: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in measured.glob("*/*.json")}
    run_baselines(measured, 2)
    assert {path: path.stat().st_mtime_ns for path in measured.glob("*/*.json")} == before


def test_a_run_again_gives_the_same_figures(measured: Path, tmp_path: Path) -> None:
    run_baselines(tmp_path, 1)
    for path in tmp_path.glob("*/*.json"):
        first, again = (
            orjson.loads((folder / path.relative_to(tmp_path)).read_bytes()) for folder in (measured, tmp_path)
        )
        assert first["figures"] == again["figures"]


def test_the_tables_give_mean_and_range_over_the_seeds(measured: Path) -> None:
    found = results.read_all(measured, PROTOCOLS)
    areas = [each["figures"]["sessions"]["auprc"] for each in found if each["detector"] == "isolation-forest"]
    assert areas[0] != areas[1]
    text = results.tables(found)
    assert f"{np.mean(areas):.4f} ({min(areas):.4f} to {max(areas):.4f})" in text
    assert "## With labels" in text
    assert "## Without labels" in text


def test_the_tables_set_the_share_of_normals_at_a_threshold_beside_what_was_promised(measured: Path) -> None:
    found = results.read_all(measured, PROTOCOLS)
    without = [each for each in found if "p99.5" in each["figures"]["sessions"]["at"]]
    shares = [each["false_alarms"] / views["normal"] for each, views in at_percentile(without, "isolation-forest")]
    mean, low, high = (f"{figure:.2%}" for figure in (np.mean(shares), min(shares), max(shares)))
    shown = mean if low == high else f"{mean} ({low} to {high})"
    rows = results.tables(without).splitlines()
    assert any("isolation-forest | 2 | p99.5" in row and f"| {shown} | 0.5% |" in row for row in rows)


def at_percentile(found: list[results.Result], detector: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for each in found:
        if each["detector"] == detector:
            views = each["figures"]["sessions"]
            yield views["at"]["p99.5"], views


def test_the_report_keeps_what_stands_around_the_tables(measured: Path, tmp_path: Path) -> None:
    found = results.read_all(measured, PROTOCOLS)
    report = tmp_path / "accuracy.md"
    report.write_text(f"Before.\n{results.BEGIN}\nold figures\n{results.END}\nAfter.\n", encoding="utf-8")
    results.write_report(report, found)
    text = report.read_text(encoding="utf-8")
    assert text.startswith("Before.\n")
    assert text.endswith("\nAfter.\n")
    assert "old figures" not in text
    assert "random-forest" in text
    results.write_report(report, found)
    assert report.read_text(encoding="utf-8") == text


def test_a_report_without_a_place_for_the_tables_is_refused(tmp_path: Path) -> None:
    report = tmp_path / "accuracy.md"
    report.write_text("mine\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"accuracy\.md: has no"):
        results.write_report(report, [])
    assert report.read_text(encoding="utf-8") == "mine\n"


def test_a_result_of_another_version_is_refused(tmp_path: Path) -> None:
    path = results.path_of(tmp_path, "with", "old", 0)
    path.parent.mkdir()
    path.write_text('{"schema": "logmamba.accuracy/0"}')
    with pytest.raises(ValueError, match=r"old-0\.json"):
        results.read_all(tmp_path, PROTOCOLS)


def result(protocol: str, misses: list[str], false_alarms: list[str]) -> results.Result:
    return {
        "protocol": protocol,
        "detector": "any",
        "seed": 0,
        "headline": "validation",
        "data": {"sizes": {"test": {"normal": 8, "anomalous": 4}}},
        "figures": {"sessions": {"at": {"validation": {"f1": 0.5}}}},
        "mistakes": {"misses": misses, "false_alarms": false_alarms},
    }


def test_sessions_judged_otherwise_are_those_that_only_one_route_gets_wrong() -> None:
    raw = result(results.RAW_LINES, ["a", "b"], ["x"])
    parsed = result(results.PARSED_LINES, ["a"], ["y"])
    assert "| any | 0 | 0.5000 | 0.5000 | 3 of 12 |" in results.agreement([raw, parsed])


def test_the_product_learns_is_saved_and_scores_with_its_own_thresholds() -> None:
    few = blocks(200, 40)
    task = Task.of(Protocol("", lambda: few, random_split, labelled=False), 0)
    options = TrainingOptions(next_token_steps=40, learning_rate=1e-2, batch_tokens=1024)
    outcome = Product("tiny", "cpu", options).run(task, 0)
    assert len(outcome.validation) == len(task.validation)
    assert outcome.fixed == {"warning": 0.7, "critical": 0.95}
    assert set(outcome.early) == {"warning", "critical"}
    assert (outcome.test[task.test.anomalous] > 0.7).all()
    assert np.mean(outcome.test[~task.test.anomalous] > 0.7) < 0.1


def test_the_product_sets_aside_what_came_and_its_verdicts_are_those_of_the_examples_labels() -> None:
    few = blocks(1_400, 30)
    task = Task.of(Protocol("", lambda: few, random_split, labelled=False, as_they_come=True), 0)
    options = TrainingOptions(next_token_steps=20, learning_rate=1e-2, batch_tokens=1024)
    plain, judged = (Product("tiny", "cpu", options, verdicts=number).run(task, 0) for number in (0, 20))
    anomalous = task.test.anomalous
    assert (plain.headline, judged.headline) == ("warning", "critical")
    assert (plain.test[anomalous] >= 0.7).all()
    assert plain.test.max() < 0.95
    assert (judged.test[anomalous] >= 0.95).all()
    assert (judged.test[~anomalous] < 0.7).mean() > 0.98
    assert plain.notes["set_aside"] >= 15


def test_the_products_validation_scores_are_of_sessions_that_its_count_profile_does_not_know() -> None:
    task = Task.of(Protocol("", lambda: blocks(200, 40), random_split, labelled=False), 0)
    unheard_of = np.concatenate([task.validation.tokens[0]] * 9)
    validation, test = (replace(part, tokens=[unheard_of, *part.tokens[1:]]) for part in (task.validation, task.test))
    options = TrainingOptions(next_token_steps=20, learning_rate=1e-2, batch_tokens=1024)
    outcome = Product("tiny", "cpu", options).run(replace(task, validation=validation, test=test), 0)
    assert outcome.validation[0] > outcome.test[0], "the checkpoint knows it by the time of the test"
