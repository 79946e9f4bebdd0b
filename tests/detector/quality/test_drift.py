"""Drift: ordinary variation is no news, a change is seen within few sessions, a night that training saw is none."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from detector.quality.drift import RETRAIN_AFTER, DriftMonitor
from detector.quality.fingerprint import BLOCK, LEAST_BLOCKS, Fingerprint, Stream, Tail, divergences
from detector.text.vocabulary import UNK

DAY = 400  # sessions


class Made:
    """Sessions whose templates depend on the time of day, with times and scores."""

    def __init__(self, n: int, seed: int, *, nights: bool = True, slow: float = 1.0, first: int = 0) -> None:
        rng = np.random.default_rng(seed)
        sequences, times, self.ended = [], [], np.zeros(n, np.int64)
        for number in range(n):
            at = first + number
            night = nights and (at // (DAY // 2)) % 2 == 1
            body = rng.choice(
                [5, 6, 7, 8], 3 + rng.integers(6), p=[0.1, 0.1, 0.1, 0.7] if night else [0.4, 0.3, 0.2, 0.1]
            )
            events = np.concatenate([[3], body, [4] if rng.random() < 0.6 else []]).astype(np.int64)
            sequences.append(events)
            times.append(at * 6_000 + np.cumsum(rng.exponential(slow * 1_000, len(events))).astype(np.int64))
            self.ended[number] = times[-1][-1]
        self.sequences = sequences
        self.scores = rng.beta(1, 30, n)
        self.times = times

    @property
    def stream(self) -> Stream:
        ends = np.cumsum([len(each) for each in self.sequences])
        return Stream.timed(np.concatenate(self.sequences), ends, np.concatenate(self.times))

    def fingerprint(self) -> Fingerprint:
        held_out = np.arange(len(self.sequences)) % 5 == 0
        scores = np.where(held_out, self.scores, np.nan)
        found = Fingerprint.of(self.stream, scores, held_out)
        assert found is not None
        return found


TRAINING = Made(6 * DAY, 1)
FINGERPRINT = TRAINING.fingerprint()


def watched(made: Made, monitor: DriftMonitor | None = None, at_once: int = BLOCK) -> list[tuple[int, str]]:
    """Each verdict with the number of sessions after which it was given."""
    monitor = monitor or DriftMonitor(FINGERPRINT)
    verdicts: list[tuple[int, str]] = []
    stream = made.stream
    for first in range(0, len(stream), at_once):
        rows = np.arange(first, min(first + at_once, len(stream)))
        monitor.add(stream.select(rows), made.scores[rows], made.ended[rows])
        monitor.judge()
        if monitor.verdict is not None and (not verdicts or verdicts[-1][1] != monitor.verdict):
            verdicts.append((int(rows[-1]) + 1, monitor.verdict))
    return verdicts


def renamed(made: Made, template: int, to: int, first: int) -> Made:
    made.sequences = [
        np.where(events == template, to, events) if number >= first else events
        for number, events in enumerate(made.sequences)
    ]
    return made


def test_days_and_nights_that_training_saw_are_no_drift() -> None:
    assert watched(Made(20 * DAY, 2)) == [(LEAST_BLOCKS * BLOCK, "ok")]


def test_a_night_that_training_did_not_see_is_one() -> None:
    monitor = DriftMonitor(Made(6 * DAY, 1, nights=False).fingerprint())
    verdicts = watched(Made(DAY, 2), monitor)
    assert verdicts[1][1] == "watch"
    assert DAY // 2 < verdicts[1][0] <= DAY // 2 + 100
    assert monitor.look().because == ("tokens",)


@pytest.mark.parametrize(("to", "because"), [(-77, "unknown"), (UNK, "unknown"), (9, "tokens")])
def test_a_template_that_is_worded_anew_is_seen_within_100_sessions_and_named(to: int, because: str) -> None:
    first = 600
    monitor = DriftMonitor(FINGERPRINT)
    made = renamed(Made(2_000, 3), 3, to, first)
    verdicts = watched(made, monitor)
    assert [verdict for _, verdict in verdicts] == ["ok", "watch", "retrain"]
    assert first < verdicts[1][0] <= first + 100
    assert verdicts[2][0] == verdicts[1][0] + RETRAIN_AFTER * BLOCK
    drift = monitor.look()
    assert because in drift.because
    assert drift.moved[0][1:] == (1.0, 0.0)
    assert (drift.unknown, drift.new) == (1.0 if to <= UNK else 0.0, 1.0)
    assert drift.churn == pytest.approx(2 / 7)  # of seven templates, one came and one went
    assert drift.since_ms is not None
    assert abs(drift.since_ms - made.ended[verdicts[1][0] - 1]) < 60_000


@pytest.mark.parametrize("feature", ["pauses", "scores"])
def test_slower_and_higher_scored_sessions_are_seen_by_what_they_are(feature: str) -> None:
    made = Made(1_500, 4, slow=8.0 if feature == "pauses" else 1.0)
    if feature == "scores":
        made.scores = np.full(1_500, 0.8)
    monitor = DriftMonitor(FINGERPRINT)
    assert watched(made, monitor)[-1][1] == "retrain"
    assert monitor.look().because == (feature,)


def test_lower_scores_are_no_drift() -> None:
    made = Made(1_500, 4)
    made.scores[:] = 0.0
    assert watched(made) == [(LEAST_BLOCKS * BLOCK, "ok")]


def test_one_odd_block_is_no_verdict_and_what_is_over_is_ok_again() -> None:
    one = renamed(Made(2_000, 5), 3, -9, 10**9)
    one.sequences[600:625] = [np.array([-9, -9], np.int64)] * 25
    one.times[600:625] = [np.array([at * 6_000] * 2) for at in range(600, 625)]
    assert [verdict for _, verdict in watched(one)] == ["ok"]
    gone = Made(4_000, 5)
    gone.sequences = [
        np.where(each == 3, -9, each) if 600 <= at < 1_000 else each for at, each in enumerate(gone.sequences)
    ]
    verdicts = watched(gone)
    assert [verdict for _, verdict in verdicts] == ["ok", "watch", "ok"]
    assert verdicts[2][0] < 2_000


def test_what_is_said_does_not_depend_on_how_sessions_come_in() -> None:
    made = renamed(Made(1_500, 6), 3, -9, 700)
    looks = []
    for at_once in (1, 7, 1_500):
        monitor = DriftMonitor(FINGERPRINT)
        watched(made, monitor, at_once)
        looks.append(monitor.look())
    assert looks[0] == looks[1] == looks[2]


def test_of_many_sessions_at_a_time_a_block_is_wanted() -> None:
    monitor = DriftMonitor(FINGERPRINT)
    assert monitor.wanted(np.arange(10_000) // 100).tolist() == list(range(BLOCK))  # all within a tenth of a second
    assert len(monitor.wanted(np.arange(100, 20_000, 10))) == 0, "the same 20 seconds"
    assert len(monitor.wanted(np.arange(20_000, 60_000, 10))) == 2 * BLOCK
    assert monitor.wanted(np.arange(60_000, 100_000, 1_000)).tolist() == list(range(40)), "few are all wanted"


def test_nothing_is_said_of_few_sessions_and_too_few_make_no_fingerprint() -> None:
    monitor = DriftMonitor(FINGERPRINT)
    assert watched(Made(LEAST_BLOCKS * BLOCK - 1, 2), monitor) == []
    assert monitor.look().verdict is None
    few = Made(LEAST_BLOCKS * BLOCK - 1, 2)
    nothing = np.full(len(few.sequences), np.nan)
    assert Fingerprint.of(few.stream, nothing, np.zeros(len(few.sequences), np.bool_)) is None


def test_without_times_and_held_out_sessions_the_rest_is_judged() -> None:
    stream = Stream.of(TRAINING.sequences)
    found = Fingerprint.of(stream, np.full(len(stream), np.nan), np.zeros(len(stream), np.bool_))
    assert found is not None
    assert set(found.tails) == {"tokens", "lengths"}
    monitor = DriftMonitor(found)
    later = Stream.of(renamed(Made(1_000, 8), 3, -9, 0).sequences)
    monitor.add(later, np.zeros(1_000), np.zeros(1_000, np.int64))
    monitor.judge()
    assert (monitor.verdict, set(monitor.look().divergence)) == ("watch", {"tokens", "lengths"})


def test_a_fingerprint_outlives_json() -> None:
    adapter = TypeAdapter(Fingerprint)
    assert adapter.validate_json(adapter.dump_json(FINGERPRINT), strict=True) == FINGERPRINT
    assert len(json.dumps(adapter.dump_python(FINGERPRINT))) < 20_000


def test_templates_beyond_those_with_a_bin_are_one() -> None:
    rng = np.random.default_rng(1)
    sequences = [rng.integers(3, 600, 20) for _ in range(1_000)]
    found = Fingerprint.of(Stream.of(sequences), np.full(1_000, np.nan), np.zeros(1_000, np.bool_))
    assert found is not None
    assert len(found.templates) == len(found.tokens[0]) - 2 == 254
    monitor = DriftMonitor(found)
    monitor.add(Stream.of([rng.integers(3, 600, 20) for _ in range(1_000)]), np.zeros(1_000), np.arange(1_000) * 6_000)
    drift = monitor.look()
    assert (drift.verdict, drift.new, drift.churn) == ("ok", 0.0, 0.0)


@settings(max_examples=60)
@given(st.lists(st.floats(0, 1), min_size=LEAST_BLOCKS, max_size=300))
def test_a_tail_gives_no_block_of_the_training_less_probability_than_it_shows(values: list[float]) -> None:
    found = np.array(values)
    evidence = Tail.over(found, 0.02).evidence(found)
    for level in (1.0, 2.0, 3.0):
        assert (evidence > level + 1e-9).sum() <= (len(values) + 1) * 10**-level


def test_divergences_are_in_bits_and_nothing_is_no_distance_away() -> None:
    p = np.array([[1.0, 0, 0], [1, 1, 0], [0, 0, 0]])
    found = divergences(p, np.array([[0.0, 0, 4], [2, 0, 0]]))
    assert found[0] == pytest.approx([1.0, 0.0])
    assert found[1] == pytest.approx([1.0, 0.3112781])
    assert (found[2] == 0).all()
