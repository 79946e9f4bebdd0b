"""Adaptive thresholds reach their rate, follow what stays and not what bursts, and depend on the scores alone."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.text.vocabulary import Vocabulary
from tests.worker.small_worker import OddScorer
from tests.worker.small_worker import settings as small_settings
from worker.commands.score import score_files
from worker.processing.adaptive import AdaptiveState, AdaptiveThresholds
from worker.processing.score_records import Thresholds

Floats = npt.NDArray[np.float64]

FIXED = Thresholds(0.7, 0.95)
RATE = 0.01
BLOCK = 500  # sessions
CHECKPOINT = "sha256:one"


def adaptive(
    state: AdaptiveState | None = None, *, rate: float = RATE, checkpoint: str = CHECKPOINT
) -> AdaptiveThresholds:
    return AdaptiveThresholds(FIXED, rate, checkpoint, state)


def learn(thresholds: AdaptiveThresholds, scores: Floats) -> tuple[float, float]:
    """Shares of the scores that were at least a warning and critical by the thresholds in force at their time."""
    alerts = critical = 0
    for score in scores.tolist():
        severity = thresholds.in_force.severity(score)
        alerts += severity != "normal"
        critical += severity == "critical"
        thresholds.learn(score)
    return alerts / len(scores), critical / len(scores)


def drawn(sessions: int, *, decades: float = 0.0, seed: int = 0) -> Floats:
    """Scores with an exponential tail, as calibrated ones: 1 % from 0.7 and 0.1 % from 0.95 on, times 10^decades."""
    level = np.random.default_rng(seed).exponential(1 / np.log(10), sessions) + decades
    return 1 / (1 + np.exp(3.347 - 2.097 * level))


def test_the_fixed_thresholds_hold_until_most_blocks_are_complete() -> None:
    thresholds = adaptive()
    scores = drawn(9 * BLOCK, decades=2)
    learn(thresholds, scores[: 5 * BLOCK - 1])
    assert thresholds.in_force == FIXED
    thresholds.learn(scores[5 * BLOCK - 1])
    assert thresholds.in_force.warning > FIXED.warning
    assert thresholds.in_force.critical > FIXED.critical


@pytest.mark.parametrize("decades", [1, 2, 3])
def test_the_rate_is_reached_whatever_the_scores_of_the_stream(decades: float) -> None:
    thresholds = adaptive()
    learn(thresholds, drawn(9 * BLOCK, decades=decades))
    alerts, critical = learn(thresholds, drawn(100_000, decades=decades, seed=1))
    assert 0.95 < alerts / (10 * RATE) < 1.05
    assert 0.85 < critical / RATE < 1.05


def test_a_block_proposes_the_lowest_thresholds_that_fewer_than_5_and_50_of_its_sessions_reach() -> None:
    thresholds = adaptive()
    block = np.concatenate((np.linspace(0.8, 0.9, 100, endpoint=False), np.zeros(BLOCK - 100)))
    learn(thresholds, np.tile(block, 9))
    warning, critical = thresholds.in_force
    shown = block.round(6)
    for threshold, fewer_than in ((warning, 50), (critical, 5)):
        assert (shown >= threshold).sum() == fewer_than - 1
        assert (shown >= threshold - 1.000001e-6).sum() >= fewer_than


def test_scores_that_repeat_never_bring_more_than_the_rate() -> None:
    """Three in ten sessions share one score and a twentieth another; all of a kind are reported or none."""
    scores = np.random.default_rng(0).choice([0.1, 0.81, 0.96, 0.97, 0.99], 40_000, p=[0.643, 0.3, 0.05, 0.006, 0.001])
    thresholds = adaptive()
    learn(thresholds, scores[: 9 * BLOCK])
    alerts, critical = learn(thresholds, scores[9 * BLOCK :])
    assert thresholds.in_force == (0.810001, 0.960001)
    assert alerts == pytest.approx(0.057, rel=0.05)
    assert critical == pytest.approx(0.007, rel=0.15)


def test_a_score_of_1_is_always_critical_and_no_threshold_falls_below_one_half() -> None:
    thresholds = adaptive()
    learn(thresholds, np.full(9 * BLOCK, 0.9999997))
    assert thresholds.in_force == (1.0, 1.0)
    assert thresholds.in_force.severity(0.9999997) == "critical"
    learn(thresholds, np.full(9 * BLOCK, 0.01))
    assert thresholds.in_force == (0.5, 0.5)


CALM = drawn(13 * BLOCK, decades=1)


@cache
def asked_by_calm_blocks() -> list[Thresholds]:
    """The fixed thresholds, and what each block of the calm stream would bring about alone."""
    asked = [FIXED]
    for block in CALM.reshape(-1, BLOCK):
        thresholds = adaptive()
        learn(thresholds, np.tile(block, 9))
        asked.append(thresholds.in_force)
    return asked


@settings(max_examples=30)
@given(st.integers(0, 13 * BLOCK), st.integers(1, 3 * BLOCK), st.floats(0.5, 1))
def test_a_burst_takes_no_threshold_above_what_a_block_without_it_asks_for(
    begin: int, sessions: int, score: float
) -> None:
    struck, thresholds = CALM.copy(), adaptive()
    struck[begin : begin + sessions] = score
    for block in struck.reshape(-1, BLOCK):
        learn(thresholds, block)
        assert thresholds.in_force.warning <= max(each.warning for each in asked_by_calm_blocks())
        assert thresholds.in_force.critical <= max(each.critical for each in asked_by_calm_blocks())


def test_what_is_new_and_stays_is_followed_and_what_was_is_forgotten() -> None:
    thresholds = adaptive()
    learn(thresholds, drawn(20 * BLOCK))
    before = thresholds.in_force
    _, critical = learn(thresholds, drawn(5 * BLOCK, decades=2, seed=1))
    assert critical > 10 * RATE, "the change is one that the thresholds have to follow"
    learn(thresholds, drawn(4 * BLOCK, decades=2, seed=2))
    alerts, critical = learn(thresholds, drawn(60_000, decades=2, seed=3))
    assert 0.95 < alerts / (10 * RATE) < 1.05
    assert 0.85 < critical / RATE < 1.05
    learn(thresholds, drawn(20 * BLOCK))
    assert thresholds.in_force == before


scores_of_streams = st.lists(st.sampled_from([0.0, 0.3, 0.55, 0.8, 0.9, 0.96, 0.999, 1.0]), min_size=1, max_size=40)


@settings(max_examples=50)
@given(scores_of_streams, st.sets(st.integers(0, 1200), max_size=6))
def test_thresholds_that_are_saved_and_restored_anywhere_are_those_of_an_unbroken_run(
    pattern: list[float], cuts: set[int]
) -> None:
    scores = np.resize(np.array(pattern), 1200)
    unbroken, restored = adaptive(rate=0.05), adaptive(rate=0.05)
    for at, score in enumerate(scores.tolist()):
        if at in cuts:
            saved = AdaptiveState.model_validate_json(restored.state().model_dump_json())
            restored = adaptive(saved, rate=0.05)
        assert restored.in_force == unbroken.in_force
        in_force, holds = unbroken.in_force, unbroken.holds_for(1)
        restored.learn(score)
        unbroken.learn(score)
        assert unbroken.in_force == in_force or not holds
    assert restored.state() == unbroken.state()


@pytest.mark.parametrize(("rate", "checkpoint"), [(0.02, CHECKPOINT), (RATE, "sha256:two")])
def test_what_was_learnt_for_another_rate_or_checkpoint_is_not_gone_on_with(rate: float, checkpoint: str) -> None:
    thresholds = adaptive()
    learn(thresholds, drawn(9 * BLOCK + 3, decades=2))
    anew = adaptive(thresholds.state(), rate=rate, checkpoint=checkpoint)
    assert anew.in_force == FIXED
    assert anew.state() == adaptive(rate=rate, checkpoint=checkpoint).state()


def test_a_file_of_parsed_sessions_is_one_partition(tmp_path: Path) -> None:
    sessions = [("read odd" if number % 7 else "odd") for number in range(1200)]
    parsed = tmp_path / "sessions.tsv"
    parsed.write_text("session_id\tevents\n" + "".join(f"s{number}\t{each}\n" for number, each in enumerate(sessions)))
    scorer = OddScorer(Vocabulary(("open", "read", "odd", "close"), kind="events"))
    output = tmp_path / "scores.jsonl"
    score_files(small_settings("scoring.adaptive={target_rate: 0.05}"), scorer, [parsed], output)
    thresholds = [orjson.loads(line)["thresholds"] for line in output.read_bytes().splitlines()]
    assert thresholds[:500] == [{"warning": 0.7, "critical": 0.95}] * 500
    assert thresholds[500:] == [{"warning": 0.500001, "critical": 1.0}] * 700
