"""Texts of lines in records: whatever happens to workers, and whoever goes on, a record has those of its own lines."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import pytest
from hypothesis import given, settings

from tests.worker.delivery.test_loop import RULES, STEPS, by_partition, run_with, undisturbed
from tests.worker.delivery.test_reload import REORDERED, Offers, ReadScorer, offer, worker_on
from tests.worker.small_worker import INPUT, Clock, OddScorer, SmallWorker, memory_broker, outputs
from tests.worker.small_worker import settings as small_settings
from worker.delivery.memory import MemoryBroker
from worker.processing.records import Partition

TEXTS = ("sessions.key={regex: '^[a-z]'}", "input.multiline=true", "output.line_text=30", "scoring.warning=0.4")
WORDS = ("open", "odd", "read", "odd", "close")


def filled(partitions: int, lines: int = 40) -> MemoryBroker:
    """No two lines are alike; some records hold two, and some lines wait for the clock or are late."""
    broker = memory_broker(partitions)
    for number in range(lines):
        line = f"{'abc'[number % 3]}{number} {WORDS[number % 5]}"
        if number % 4 == 0:
            line += f"\n{'abc'[number % 7 % 3]}{number}x {WORDS[number % 3]}"
        far = 9_000_000 if number % 11 == 5 else 0
        broker.append(Partition(INPUT, number % partitions), line.encode(), timestamp=1 + number * 40 + far)
    return broker


def lines_of(broker: MemoryBroker, record: dict[str, Any], offset: int) -> list[str]:
    log = broker._logs[Partition(INPUT, record["source"]["partition"])]
    lines = (log[offset].value or b"").decode().split("\n")
    return [line for line in lines if line.startswith(record["session"])]


@cache
def calm(partitions: int) -> list[dict[str, Any]]:
    return undisturbed(lambda: filled(partitions), *RULES, *TEXTS)


@settings(max_examples=40, deadline=None)
@given(STEPS)
def test_crashes_aborts_and_rebalances_change_no_text(steps: list[str]) -> None:
    broker = filled(2)
    run_with(steps, broker, *RULES, *TEXTS)
    assert by_partition(broker) == calm(2)


@pytest.mark.parametrize("partitions", [1, 2])
def test_every_listed_event_of_early_and_final_records_has_its_line(partitions: int) -> None:
    broker, records = filled(partitions), calm(partitions)
    assert {record["kind"] for record in records} == {"early", "final"}
    assert {record["severity"] for record in records} == {"normal", "warning", "critical"}
    for record in records:
        if record["severity"] == "normal":
            assert not any("text" in each for each in record["top_events"])
            continue
        found = [(each["offset"], each["text"], each["template"]) for each in record["top_events"]]
        assert len({text for _, text, _ in found}) == len(found), "no line twice"
        for offset, text, template in found:
            assert text in lines_of(broker, record, offset)
            assert text.split()[-1] == template.split()[-1]


@pytest.mark.parametrize("how", ["reload", "restart"])
def test_open_sessions_keep_their_texts_with_the_tokens_of_another_vocabulary(how: str) -> None:
    broker = memory_broker()
    for number, line in enumerate([b"a1 open", b"a2 odd", b"b3 read"]):
        broker.append(Partition(INPUT, 0), line, timestamp=1 + number)
    use = small_settings(*TEXTS, "scoring.warning=0", "scoring.early=false", "sessions.idle_flush=1ms")
    clock = Clock(tick_s=0)
    later = partial(setattr, clock, "now", 3600.0)
    if how == "reload":
        offers = Offers()
        script = [None, partial(offer, offers, use, ReadScorer()), later, *[None] * 3]
        worker_on(broker, use, offers, clock, OddScorer()).run(script)
        assert offers.ended == ["taken"]
    else:
        SmallWorker(broker, use, clock=clock).run([None] * 2)
        assert outputs(broker) == []
        SmallWorker(broker, use, clock=clock, vocabulary=REORDERED).run([None, later, *[None] * 3])
    assert {
        record["session"]: sorted((each["template"], each["text"]) for each in record["top_events"])
        for record in outputs(broker)
    } == {
        "a": [("<*> odd", "a2 odd"), ("<*> open", "a1 open")],
        "b": [("<*> read", "b3 read")],
    }
