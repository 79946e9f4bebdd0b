"""A drifting log: what is new shows when and where it should, the truth says so, and health stays health."""

import csv
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from tests.worker.command_line import logmamba
from tests.worker.generator.test_log import event, lines_and_truths, lives
from worker.generator.lines import UNSEEN_POOLS, Step
from worker.generator.log import DayAndNight, Drift, GeneratedLine, GeneratedLog, Truth, write_files

HOUR_MS = 3_600_000


def new_and_old(
    lines: list[GeneratedLine], truths: dict[str, Truth]
) -> tuple[list[GeneratedLine], list[GeneratedLine]]:
    """The lines that the truth calls new, and the others."""
    seen: Counter[str] = Counter()
    parts: tuple[list[GeneratedLine], list[GeneratedLine]] = [], []
    for line in lines:
        parts[seen[line.block] not in truths[line.block].new_lines].append(line)
        seen[line.block] += 1
    return parts


def test_the_truth_says_of_every_line_whether_the_version_before_wrote_such_lines() -> None:
    before = {event(line) for line in GeneratedLog(blocks=4_000, seed=9, anomaly_rate=0.3)}
    drift = Drift(after_s=300, rollout_s=600, reworded=0.5, new_service=True, slowdown=2)
    new, old = new_and_old(*lines_and_truths(GeneratedLog(blocks=2_500, anomaly_rate=0.2, drift=drift)))
    assert len(new) > 5_000
    assert not {event(line) for line in new} & before
    assert {event(line) for line in old} <= before


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_a_share_of_the_templates_is_worded_anew_and_about_that_share_of_the_lines(share: float) -> None:
    log = GeneratedLog(blocks=2_000, anomaly_rate=0.3, drift=Drift(reworded=share))
    new, old = new_and_old(*lines_and_truths(log))
    assert len({event(line) for line in new}) == round(share * len(Step))
    assert len({event(line) for line in old}) == len(Step) - round(share * len(Step)) + len(UNSEEN_POOLS[0])
    assert abs(len(new) / (len(new) + len(old)) - share) < 0.1


def test_a_release_spreads_host_by_host_and_no_host_goes_back() -> None:
    start = next(iter(GeneratedLog(lines=13))).time_ms
    drift = Drift(after_s=1_000, rollout_s=2_000, reworded=1)
    new, old = new_and_old(*lines_and_truths(GeneratedLog(blocks=8_000, drift=drift)))
    assert min(line.time_ms for line in new) >= start + 1_000_000

    def hosts(lines: list[GeneratedLine], words: str) -> dict[str, list[int]]:
        times = defaultdict(list)
        for line in lines:
            if words in line.text:
                times[line.text.split(words)[1].split(",")[0].split(":")[0]].append(line.time_ms)
        return times

    first_new, last_old = hosts(new, "to the disk of "), hosts(old, "complete on ")
    both = first_new.keys() & last_old.keys()
    assert len(both) > 200
    assert all(max(last_old[host]) < min(first_new[host]) for host in both)
    takes = np.array([min(first_new[host]) - start for host in both]) / 1_000
    shares = np.histogram(takes, [1_000, 1_500, 2_000, 2_500, 3_000])[0] / len(both)
    assert (shares > 0.15).all()


def test_a_log_is_the_same_up_to_the_release_but_for_what_is_renamed() -> None:
    plain = list(GeneratedLog(lines=30_000, seed=4, anomaly_rate=0.1))
    drifted = list(GeneratedLog(lines=30_000, seed=4, anomaly_rate=0.1, drift=Drift(reworded=0.3)))
    assert [line[1:] for line in plain] == [line[1:] for line in drifted]
    later = list(GeneratedLog(lines=30_000, seed=4, anomaly_rate=0.1, drift=Drift(after_s=10**6, reworded=0.3)))
    assert plain == later


def test_the_new_service_shows_in_two_of_five_blocks_once_all_hosts_have_it() -> None:
    log = GeneratedLog(blocks=4_000, anomaly_rate=0, drift=Drift(after_s=500, new_service=True))
    truths = list(lines_and_truths(log)[1].values())
    assert not any(truth.new_lines for truth in truths[:900])
    assert 0.35 < np.mean([bool(truth.new_lines) for truth in truths[1_100:]]) < 0.45


def test_writing_slows_down_gradually_and_no_life_pauses_as_long_as_the_gap() -> None:
    log = GeneratedLog(blocks=6_000, anomaly_rate=0.1, drift=Drift(rollout_s=3_000, slowdown=5))
    granted: dict[str, int] = {}
    stored: dict[str, int] = {}
    latest: dict[str, int] = {}
    for line in log:
        assert line.time_ms - latest.get(line.block, line.time_ms) < 360_000
        latest[line.block] = line.time_ms
        if "granted" in line.text:
            granted[line.block] = line.time_ms
        if "complete on" in line.text:
            stored.setdefault(line.block, line.time_ms)
    blocks = [block for block in granted if block in stored]
    took = np.array([stored[block] - granted[block] for block in blocks])
    first, middle, last = (np.median(part) for part in np.array_split(took, 3))
    assert 1.5 * first < middle
    assert 1.2 * middle < last


def test_lives_stay_complete_and_faults_stay_faults_under_drift() -> None:
    drift = Drift(after_s=200, rollout_s=300, reworded=0.5, new_service=True, slowdown=3)
    lines, truths = lines_and_truths(GeneratedLog(lines=20_001, anomaly_rate=0, drift=drift))
    assert len(lines) == 20_001
    for events in lives(lines).values():
        assert sum("complete on" in each or "to the disk" in each for each in events) in (3, 6)
    assert not any(truth.label for truth in truths.values())
    faults = Counter(truth.fault for truth in lines_and_truths(GeneratedLog(blocks=2_000, drift=drift))[1].values())
    assert len(faults) == 6


def test_days_are_busier_than_nights_and_nights_verify_more() -> None:
    log = GeneratedLog(
        blocks=6_000, anomaly_rate=0, blocks_per_second=0.02, day_night=DayAndNight(0.8), start_ms=20_000 * 24 * HOUR_MS
    )
    hours: Counter[int] = Counter()
    night: Counter[bool] = Counter()
    day: Counter[bool] = Counter()
    for line in log:
        hour = line.time_ms // HOUR_MS % 24
        hours[hour] += "granted" in line.text
        if hour in (23, 0, 1):
            night["matches its checksum" in line.text] += 1
        if hour in (11, 12, 13):
            day["matches its checksum" in line.text] += 1
    assert sum(hours[hour] for hour in (11, 12, 13)) > 4 * sum(hours[hour] for hour in (23, 0, 1))
    assert night[True] / night[False] > 2 * day[True] / day[False]
    seconds = 6_000 / 0.02
    assert abs((line.time_ms - log.start_ms) / 1_000 - seconds) < 0.1 * seconds


def test_a_drifting_log_comes_in_order_and_is_written_with_its_truth(tmp_path: Path) -> None:
    log = GeneratedLog(
        lines=40_000,
        blocks_per_second=0.5,
        day_night=DayAndNight(0.9),
        drift=Drift(600, 3_600, 0.3, new_service=True, slowdown=2),
    )
    times = [line.time_ms for line in log]
    assert times == sorted(times)
    truths = write_files(log, tmp_path / "out.log", tmp_path / "labels.csv")
    with (tmp_path / "labels.csv").open(encoding="utf-8") as file:
        rows = [row["new_lines"] for row in csv.DictReader(file)]
    assert rows == [" ".join(map(str, truth.new_lines)) for truth in truths]
    assert any(rows)


@pytest.mark.parametrize(
    "arguments", [{"after_s": -1}, {"rollout_s": -1}, {"reworded": 1.1}, {"slowdown": 0.5}, {"slowdown": 6}]
)
def test_a_drift_that_makes_no_sense_is_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"after_s|reworded|slowdown"):
        Drift(**arguments)  # type: ignore[arg-type]


def test_a_day_without_a_mean_is_refused() -> None:
    with pytest.raises(ValueError, match="day_night is 1"):
        DayAndNight(1)


def test_the_command_writes_a_drifting_log_and_refuses_what_is_no_duration(tmp_path: Path) -> None:
    log, labels = tmp_path / "new.log", tmp_path / "new.csv"
    drift = ["--reworded", 0.3, "--new-service", "--slowdown", 2, "--after", "2m", "--rollout", "1m"]
    done = logmamba("generate", "--lines", 5_000, "--output", log, "--labels", labels, *drift)
    assert done.returncode == 0, done.stderr
    expected = GeneratedLog(lines=5_000, drift=Drift(120, 60, 0.3, new_service=True, slowdown=2))
    assert log.read_text() == "".join(f"{line.text}\n" for line in expected)
    new = sum(len(truth.new_lines) for batch in expected.batches() for truth in batch.truths)
    assert f"{new:,} lines of the new release" in done.stderr
    refused = logmamba("generate", "--lines", 10, "--output", log, "--after", "soon")
    assert refused.returncode == 2
    assert "'soon' is not a duration" in refused.stderr
