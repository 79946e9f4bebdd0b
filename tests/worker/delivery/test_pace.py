"""Pauses and bursts in records: the same ones whatever happens to workers, and whoever goes on."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from detector.scoring.families import Verdict
from detector.scoring.pace import ANY, Pace, Timed
from detector.scoring.paced import Paced, paced
from tests.worker.delivery.test_loop import STEPS, by_partition, run_with, undisturbed
from tests.worker.processing.said import counts_of, feedback_on
from tests.worker.small_worker import INPUT, ODD, VOCABULARY, OddScorer, SmallWorker, memory_broker, outputs
from tests.worker.small_worker import settings as small_settings
from worker.delivery.memory import MemoryBroker
from worker.processing.records import Partition

# Five events end a session, and none is left for the end: when that is flushed goes by the wall clock.
RULES = ("sessions.gap=1h", "sessions.max_events=5", "worker.batch_records=3", "state.snapshot_interval=100ms")
READ = VOCABULARY.token_of("<*> read")
PACE = Pace(
    np.array([[READ, ANY, 1_000, 1_000, 4_000]], np.int64),
    np.array([[ODD, 1_000, 1_000, 1], [READ, 1_000, 1_000, 1]], np.int64),
)


class PacedScorer(OddScorer):
    """Its sessions are held to `PACE`, too."""

    def paced(self, sessions: Timed) -> Mapping[int, Paced]:
        """As the detector's."""
        return paced(PACE.unusual(sessions), None, VOCABULARY)


def filled(partitions: int = 2) -> MemoryBroker:
    """Of each partition one key waits and one pours out; some lines wait for the clock or are late."""
    broker = memory_broker(partitions)
    for number in range(60):
        key = "abc"[number % 3]
        word = "read" if key != "c" and number % 9 else "odd" if number % 18 == 0 else "open"
        at = 1_700_000_000_000 + {"a": 700, "b": 20, "c": 900}[key] * number
        if key == "a" and number > 20:
            at += 20_000
        far = 90_000_000 if number % 13 == 5 else 0
        broker.append(Partition(INPUT, number // 3 % partitions), f"{key} {word}".encode(), timestamp=at + far)
    return broker


def calm() -> list[dict[str, Any]]:
    return undisturbed(filled, *RULES, scorer=PacedScorer())


def test_records_tell_of_pauses_and_bursts() -> None:
    told = {record["reason"]["text"] for record in calm() if "reason" in record}
    assert any("a pause of 2" in each and each.endswith("100 % of sessions have at most 4 s there.") for each in told)
    assert any("within 1 s; 100 % of sessions with it have at most 1." in each for each in told)
    for record in calm():
        assert ("reason" in record) == (record["severity"] != "normal" and record["kind"] == "final")
        assert record["severity"] != "normal" or record["score"] < 0.7


@settings(max_examples=15, deadline=None)
@given(STEPS)
def test_crashes_aborts_and_rebalances_change_no_score(steps: list[str]) -> None:
    broker = filled()
    run_with(steps, broker, *RULES, scorer=PacedScorer())
    assert by_partition(broker) == calm()


@pytest.mark.parametrize("records", [2, 7, 100])
def test_however_records_are_cut_into_batches_the_scores_are_the_same(records: int) -> None:
    rules = (*RULES, f"worker.batch_records={records}")
    assert undisturbed(partial(filled), *rules, scorer=PacedScorer()) == calm()


@pytest.mark.parametrize("verdict", ["normal", "anomalous"])
def test_a_verdict_on_events_is_none_on_their_pace(verdict: Verdict) -> None:
    broker = memory_broker(1)
    for number in range(5):
        for key, waits in (("a", 20_000 if number > 2 else 0), ("b", 0)):
            at = 1_700_000_000_000 + 3_000 * number + waits
            broker.append(Partition(INPUT, 0), f"{key} read".encode(), timestamp=at)
    feedback = feedback_on({counts_of(VOCABULARY, *["<*> read"] * 5): verdict})
    use = small_settings(*RULES)
    SmallWorker(broker, use, scorer=PacedScorer(), feedback=feedback).run([None] * 20)
    found = {each["session"]: each for each in outputs(broker)}
    assert found["a"]["severity"] == "warning"
    assert "a pause of 2" in found["a"]["reason"]["text"]
    assert "pattern" not in found["a"]
    assert found["b"]["severity"] == ("critical" if verdict == "anomalous" else "normal")
