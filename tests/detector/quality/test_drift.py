"""Drift: ordinary variation is no news, a change is seen within few sessions, a night that training saw is none."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from detector.quality.drift import RETRAIN_AFTER, DriftMonitor
from detector.quality.fingerprint import BLOCK, LEAST_BLOCKS, Fingerprint, Stream, Tail, nearest
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


def test_higher_scored_sessions_are_seen_by_their_scores() -> None:
    made = Made(1_500, 4)
    made.scores = np.full(1_500, 0.8)
    monitor = DriftMonitor(FINGERPRINT)
    assert watched(made, monitor)[-1][1] == "retrain"
    assert monitor.look().because == ("scores",)


@pytest.mark.parametrize(("times", "within"), [(0.3, 200), (2.0, 400), (3.0, 200)])
def test_pauses_before_one_template_that_are_longer_or_shorter_are_seen_and_named(times: float, within: int) -> None:
    made, first = Made(2_500, 4), 500
    for number in range(first, 2_500):
        pauses = np.diff(made.times[number], prepend=made.times[number][0]).astype(np.float64)
        pauses[made.sequences[number] == 7] *= times
        made.times[number] = made.times[number][0] + np.cumsum(pauses).astype(np.int64)
    monitor = DriftMonitor(FINGERPRINT)
    verdicts = watched(made, monitor)
    assert [verdict for _, verdict in verdicts][:2] == ["ok", "watch"]
    assert first < verdicts[1][0] <= first + within
    drift = monitor.look()
    assert drift.because == ("pauses",)
    assert [each.token for each in drift.waits] == [7]
    assert drift.waits[0].now / drift.waits[0].before == pytest.approx(times, rel=0.2)


def test_pauses_that_vary_as_in_the_training_are_none_and_those_of_old_checkpoints_are_not_judged() -> None:
    assert watched(Made(20 * DAY, 9)) == [(LEAST_BLOCKS * BLOCK, "ok")]
    old = dataclasses.replace(FINGERPRINT, waits=[])
    monitor = DriftMonitor(old)
    assert watched(Made(1_000, 4, slow=8), monitor) == [(LEAST_BLOCKS * BLOCK, "ok")]
    assert "pauses" in monitor.look().divergence


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


def test_who_begins_anywhere_in_usual_sessions_says_ok_as_soon_as_anything() -> None:
    made = Made(10 * DAY, 10)
    stream, most = made.stream, 2 * LEAST_BLOCKS * BLOCK
    for first in range(0, len(stream) - most, 130):
        monitor = DriftMonitor(FINGERPRINT)
        said = set()
        for begin in range(first, first + most, 40):
            rows = np.arange(begin, begin + 40)
            monitor.add(stream.select(rows), made.scores[rows], made.ended[rows])
            monitor.judge()
            said.add((begin + 40 - first >= LEAST_BLOCKS * BLOCK, monitor.verdict))
        assert said == {(False, None), (True, "ok")}, first


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
    evidence = Tail.over(found[:, None], 0.02).evidence(found)
    for level in (1.0, 2.0, 3.0):
        assert (evidence > level + 1e-9).sum() <= (len(values) + 1) * 10**-level


def test_divergences_are_in_bits_and_nothing_is_no_distance_away() -> None:
    rows = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0]])
    assert nearest(rows, np.array([[0, 0, 4]])).ravel() == pytest.approx([1, 1, 0])
    assert nearest(rows, np.array([[0, 0, 4], [2, 0, 0]])).ravel() == pytest.approx([0, 0.3112781, 0])
    p, q = np.random.default_rng(1).integers(1, 9, (2, 7))
    p[2] = q[3] = 0
    mixed = (p / p.sum() + q / q.sum()) / 2
    expected = sum(
        share * np.log2(share / both)
        for of in (p, q)
        for share, both in zip(of / of.sum(), mixed, strict=True)
        if share > 0
    )
    assert nearest(p[None], q[None]).item() == pytest.approx(expected / 2)


def test_a_block_is_compared_with_stretches_that_it_is_neither_in_nor_next_to() -> None:
    a, b, c = np.eye(3, dtype=np.int64)
    own = np.arange(5)
    alike = np.array([a, a, b, b, c])
    assert nearest(alike, alike, own=own).ravel().tolist() == [1, 1, 1, 1, 1], "what is alike is next to each other"
    again = np.array([a, b, a, c, b])
    assert nearest(again, again, own=own).ravel().tolist() == [0, 0, 0, 1, 0]
    assert nearest(alike[:3], alike[:3], own=own[:3]).ravel().tolist() == [0, 0, 1], "of few all but its own"
