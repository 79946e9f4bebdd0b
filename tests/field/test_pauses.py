"""Nights, weekends, outages and wrong clocks in a log: the sessions are those that a reader of its settings expects."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import orjson
import pytest

from tests.field.orders import SETTINGS, orders
from tests.worker.small_worker import INPUT, OddScorer, SmallWorker, memory_broker, outputs
from tests.worker.small_worker import settings as small_settings
from worker.commands.score import score_files
from worker.files.input_files import open_inputs
from worker.files.training_set import read_training_set
from worker.processing.records import Partition

WEEKS = [day for day in range(21) if day % 7 < 5]  # nights and weekends off

Sessions = Counter[tuple[int, str]]  # how many have so many events and were closed so


def in_file(lines: list[str], folder: Path, *overrides: str) -> Sessions:
    path, output = folder / "shop.log", folder / "scores.jsonl"
    path.write_text("\n".join(lines))
    score_files(small_settings(*SETTINGS, *overrides), OddScorer(), [path], output)
    records = map(orjson.loads, output.read_bytes().splitlines())
    return Counter((record["events"], record["closed_by"]) for record in records)


def in_stream(lines: list[str], *overrides: str) -> Sessions:
    broker = memory_broker()
    for line in lines:
        broker.append(Partition(INPUT, 0), line.encode())
    use = small_settings(*SETTINGS, "scoring.early=false", "worker.batch_records=100", *overrides)
    SmallWorker(broker, use).run([None] * (len(lines) // 100 + 3))
    return Counter((record["events"], record["closed_by"]) for record in outputs(broker))


def test_every_order_of_three_weeks_is_a_session_of_its_own_in_a_file(tmp_path: Path) -> None:
    lines = orders(WEEKS)
    assert in_file(lines, tmp_path) == {(4, "gap"): 899, (4, "end_of_input"): 1}


def test_every_order_of_three_weeks_is_a_session_of_its_own_in_a_stream() -> None:
    assert in_stream(orders(WEEKS)) == {(4, "gap"): 899}


def test_every_order_of_three_weeks_is_a_session_of_its_own_in_training(tmp_path: Path) -> None:
    path = tmp_path / "shop.log"
    path.write_text("\n".join(orders(WEEKS)))
    use = small_settings(*SETTINGS)
    learnt = read_training_set(use, open_inputs(use, [path]), None, seed=0)
    sessions = [len(each) for part in (learnt.training, learnt.validation) for each in part.sequences]
    assert Counter(sessions) == {4: 900}


@pytest.mark.parametrize("pause_days", [1, 30, 2_000])
def test_an_outage_however_long_ends_what_was_open_and_nothing_else(pause_days: int, tmp_path: Path) -> None:
    lines = orders([0, pause_days])
    assert in_file(lines, tmp_path) == {(4, "gap"): 119, (4, "end_of_input"): 1}
    assert in_stream(lines) == {(4, "gap"): 119}


@pytest.mark.parametrize("first", ["1970-01-01 00:00:03", "2099-01-01 00:00:03"])
def test_the_clock_of_the_first_line_decides_nothing(first: str, tmp_path: Path) -> None:
    lines = [f"{first} INFO ord-99999 received from shop", *orders([0, 1])]
    assert in_file(lines, tmp_path) == {(1, "gap"): 1, (4, "gap"): 119, (4, "end_of_input"): 1}
    assert in_stream(lines) == {(1, "gap"): 1, (4, "gap"): 119}


@pytest.mark.parametrize(("line", "year"), [(40, 1970), (300, 1970), (1, 2099), (40, 2099), (241, 2099), (470, 2099)])
def test_one_wrong_clock_later_splits_no_order(line: int, year: int, tmp_path: Path) -> None:
    lines = orders([0, 1])
    lines.insert(line, f"{year}-05-05 01:02:03 INFO ord-99999 payment accepted")
    assert in_file(lines, tmp_path) == {(1, "gap"): 1, (4, "gap"): 119, (4, "end_of_input"): 1}
    assert in_stream(lines) == {(1, "gap"): 1, (4, "gap"): 119}


def test_a_line_from_the_past_right_after_a_pause_speaks_against_it_and_costs_the_line_before_it() -> None:
    lines = orders([0, 1])
    lines.insert(241, "1970-05-05 01:02:03 INFO ord-99999 payment accepted")
    assert in_stream(lines) == {(1, "gap"): 2, (3, "gap"): 1, (4, "gap"): 118}


@pytest.mark.parametrize("lines", [1, 2, 3])
def test_a_file_of_very_few_lines_has_its_sessions(lines: int, tmp_path: Path) -> None:
    found = in_file(orders([0])[:lines], tmp_path)
    assert found == {(lines, "end_of_input"): 1}


def test_a_file_of_two_lines_a_day_apart_has_two_sessions(tmp_path: Path) -> None:
    both = orders([0, 1], a_day=1)
    assert in_file([both[0], both[-1]], tmp_path) == {(1, "gap"): 1, (1, "end_of_input"): 1}
    same_order = [both[0], both[-1].replace("ord-00002", "ord-00001")]
    assert in_file(same_order, tmp_path) == {(1, "gap"): 1, (1, "end_of_input"): 1}


def test_a_year_of_office_hours_with_one_wrong_clock_a_day_has_every_order_whole() -> None:
    lines: list[str] = []
    days = [day for day in range(365) if day % 7 < 5]
    for day in days:
        own = [line.replace("ord-", f"ord-{day:03d}") for line in orders([day], a_day=6)]
        wrong = "1970-01-01" if day % 2 else "2031-01-01"
        own.insert(3 + 7 * day % 20, f"{wrong} 00:00:01 INFO ord-9{day:07d} sensor")
        lines += own
    assert in_stream(lines) == {(4, "gap"): 6 * len(days) - 1, (1, "gap"): len(days)}
