"""Generated logs: complete lives in time order, truth for each block, faults that show in the lines."""

import csv
import gzip
import re
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.generator.blocks import FAULTS
from worker.generator.lines import UNSEEN_POOLS
from worker.generator.log import GeneratedLine, GeneratedLog, Truth, write_files

_BLOCK = re.compile(r"blk_-?\d+")
_DIGITS = re.compile(r"\d+")


def lines_and_truths(log: GeneratedLog) -> tuple[list[GeneratedLine], dict[str, Truth]]:
    truths = [truth for batch in log.batches() for truth in batch.truths]
    assert len({truth.block for truth in truths}) == len(truths)
    return list(log), {truth.block: truth for truth in truths}


def event(line: GeneratedLine) -> str:
    """What a line says without what varies: level, component and words."""
    return _DIGITS.sub("#", _BLOCK.sub("BLOCK", line.text[14:])).lstrip("# ")


def lives(lines: list[GeneratedLine]) -> dict[str, list[str]]:
    events: dict[str, list[str]] = defaultdict(list)
    for line in lines:
        events[line.block].append(event(line))
    return events


def test_a_line_has_time_level_component_and_the_one_block_it_belongs_to() -> None:
    for line in GeneratedLog(lines=3_000, anomaly_rate=0.3):
        assert re.match(r"\d{6} \d{6} \d+ (INFO|WARN|ERROR) [a-z]+\.[A-Z][a-z]+: \S", line.text)
        assert _BLOCK.findall(line.text) == [line.block]
        assert "{" not in line.text


def test_lines_come_in_the_order_of_the_times_they_bear() -> None:
    log = list(GeneratedLog(lines=60_000))  # more than one batch of blocks
    assert all(before.time_ms <= after.time_ms for before, after in pairwise(log))
    assert log[0].text.startswith("240301 120000 ")
    assert len({line.text[:13] for line in log}) == len({line.time_ms // 1000 for line in log})


def test_the_same_arguments_give_the_same_log_and_another_seed_another() -> None:
    assert list(GeneratedLog(lines=2_000, seed=5)) == list(GeneratedLog(lines=2_000, seed=5))
    assert list(GeneratedLog(lines=2_000, seed=5)) != list(GeneratedLog(lines=2_000, seed=6))


@settings(max_examples=25)
@given(st.integers(0, 300), st.integers(0, 50))
def test_a_log_has_exactly_as_many_lines_as_asked_for(lines: int, seed: int) -> None:
    log = GeneratedLog(lines=lines, seed=seed)
    generated, truths = lines_and_truths(log)
    assert len(generated) == lines
    assert {line.block for line in generated} == set(truths)


@pytest.mark.parametrize("lines", [39_000, 39_013, 80_001])
def test_a_log_of_several_batches_has_exactly_as_many_lines_as_asked_for(lines: int) -> None:
    assert sum(len(batch.texts) for batch in GeneratedLog(lines=lines).batches()) == lines


def test_a_log_has_exactly_as_many_blocks_as_asked_for() -> None:
    assert len(lines_and_truths(GeneratedLog(blocks=2_500))[1]) == 2_500
    assert list(GeneratedLog(blocks=0)) == []


def test_every_life_is_complete_even_the_last_ones() -> None:
    lines, truths = lines_and_truths(GeneratedLog(lines=7_001, anomaly_rate=0))
    assert all(truth == Truth(truth.block, 0, None) for truth in truths.values())
    for events in lives(lines).values():
        assert sum("complete on" in each for each in events) in (3, 6)
        assert sum("registered at" in each for each in events) >= 3
        assert sum("granted" in each for each in events) == 1


def test_no_life_pauses_as_long_as_the_gap_that_ends_a_session() -> None:
    latest: dict[str, int] = {}
    for line in GeneratedLog(lines=80_000, anomaly_rate=0.2):
        assert line.time_ms - latest.get(line.block, line.time_ms) < 360_000
        latest[line.block] = line.time_ms


def test_the_share_of_faults_is_as_asked_for_and_no_kind_is_rare() -> None:
    truths = lines_and_truths(GeneratedLog(blocks=6_000, anomaly_rate=0.1))[1].values()
    faulty = [truth for truth in truths if truth.label]
    assert 450 < len(faulty) < 750
    for fault in FAULTS:
        assert sum(truth.fault == fault for truth in faulty) > 60
    assert all((truth.fault is not None) == bool(truth.label) for truth in truths)


def test_pools_of_unseen_lines_have_nothing_in_common() -> None:
    healthy = {event(line) for line in GeneratedLog(blocks=3_000, anomaly_rate=0)}
    seen = []
    for pool in range(len(UNSEEN_POOLS)):
        lines, truths = lines_and_truths(GeneratedLog(blocks=3_000, anomaly_rate=0.2, unseen_pool=pool))
        unseen = [line for line in lines if truths[line.block].fault == "unseen_line"]
        seen.append({event(line) for line in unseen} - healthy)
        assert len(seen[-1]) == len(UNSEEN_POOLS[pool])
        assert all(set(each) - healthy for each in lives(unseen).values())
    assert not seen[0] & seen[1]


def flawed(events: list[str]) -> bool:
    """Judges a life by its events alone, by rules that know nothing of how lives are made."""

    def places(words: str) -> list[int]:
        return [at for at, each in enumerate(events) if words in each]

    stored, indexed, granted = places("complete on"), places("registered at"), places("granted")
    reopened, cloned = len(places("reopened")), len(places("arrived at"))
    ordered, removed, sealed = places("be dropped"), places("unlinked"), places("sealed")
    return (
        any(each.startswith("ERROR") or "waiting for" in each for each in events)
        or len(stored) != 3 * (1 + reopened)
        or len(indexed) != len(stored) + cloned
        or len(places("ended cleanly")) != len(stored)
        or granted[0] > stored[0]
        or indexed[0] < stored[0]
        or bool(sealed and sealed[0] < stored[0])
        or bool(removed and removed[0] < ordered[0])
        or len(places("asking once more")) > 2
        or len(places("extended its lease")) > 2
    )


def test_the_events_alone_tell_a_fault_from_health() -> None:
    lines, truths = lines_and_truths(GeneratedLog(blocks=4_000, anomaly_rate=0.2))
    known = {event(line) for line in GeneratedLog(blocks=3_000, seed=9, anomaly_rate=0)}
    verdicts = {block: flawed(events) or not set(events) <= known for block, events in lives(lines).items()}
    hits = sum(verdicts[block] and truth.label for block, truth in truths.items())
    f1 = 2 * hits / (sum(verdicts.values()) + sum(truth.label for truth in truths.values()))
    assert f1 > 0.99
    for fault in FAULTS:
        assert all(verdicts[truth.block] for truth in truths.values() if truth.fault == fault), fault


def test_single_lines_do_not_tell_a_fault_from_health() -> None:
    lines, truths = lines_and_truths(GeneratedLog(blocks=4_000, anomaly_rate=0.2))
    known = {event(line) for line in GeneratedLog(blocks=3_000, seed=9, anomaly_rate=0)}
    strange = {line.block for line in lines if event(line) not in known}
    assert len(strange) < 0.65 * sum(truth.label for truth in truths.values())
    warned = {line.block for line in lines if " WARN " in line.text}
    assert sum(not truths[block].label for block in warned) > 0.3 * len(warned)


@pytest.mark.parametrize("name", ["out.log", "out.log.gz"])
def test_a_log_and_its_truth_are_written_to_files(tmp_path: Path, name: str) -> None:
    log = GeneratedLog(lines=5_000, seed=2, anomaly_rate=0.1)
    written: list[int] = []
    truths = write_files(log, tmp_path / name, tmp_path / "labels.csv", written.append)
    data = (tmp_path / name).read_bytes()
    text = (gzip.decompress(data) if name.endswith(".gz") else data).decode()
    assert text == "".join(f"{line.text}\n" for line in log)
    assert sum(written) == 5_000
    with (tmp_path / "labels.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [Truth(row["block_id"], int(row["label"]), row["fault"] or None) for row in rows] == truths  # type: ignore[arg-type]
    write_files(log, tmp_path / f"again-{name}")
    if not name.endswith(".gz"):
        assert (tmp_path / f"again-{name}").read_bytes() == data


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"lines": 1, "blocks": 1},
        {"lines": -1},
        {"lines": 1, "anomaly_rate": 1.5},
        {"lines": 1, "unseen_pool": 2},
        {"lines": 1, "blocks_per_second": 0},
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"lines|anomaly_rate|unseen_pool|blocks_per_second"):
        GeneratedLog(**arguments)  # type: ignore[arg-type]
