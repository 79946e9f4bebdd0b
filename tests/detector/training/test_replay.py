"""The sample of sessions that a checkpoint keeps: bounded, the same for the same sessions, and true to their shares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save as columns

from detector.checkpoint import load, save
from detector.errors import CheckpointError
from detector.training import replay
from detector.training.data import TrainingSessions
from tests.detector.small_models import CALIBRATION, PROFILE, RECORD, VOCABULARY, random_model


def test_few_sessions_are_all_kept_equal_ones_once() -> None:
    events = [np.array([3, 4, -5]), np.array([4]), np.array([3, 4, -5])]
    kept = replay.sample(TrainingSessions.of(events, [-1, 1, -1], [2, 1, 3], ["a", "b", "c"]))
    assert [each.tolist() for each in kept.sequences] == [[3, 4, -5], [4]]
    assert kept.counts.tolist() == [5, 1]
    assert kept.labels.tolist() == [-1, 1]
    assert kept.keys is None


def test_of_many_a_bounded_number_of_events_stands_for_all_of_each_kind() -> None:
    rng = np.random.default_rng(3)
    usual = [np.array([3, 4, 5]), np.array([3, 5])]
    odd = [np.append(rng.integers(3, 8, 9), [7, token]) for token in rng.integers(100, 10_000, 4_000)]
    sessions = TrainingSessions.of([*usual, *odd], None, [60_000, 30_000, *[1] * 4_000])
    for seed in range(5):
        kept = replay.sample(sessions, seed, most_events=2_000)
        assert kept.lengths.sum() <= 2_000
        assert kept.lengths.sum() > 1_500
        first = {each.tobytes(): count for each, count in zip(kept.sequences, kept.counts.tolist(), strict=True)}
        assert [first[each.tobytes()] for each in usual] == [60_000, 30_000]
        assert kept.counts.sum() - 90_000 == pytest.approx(4_000, rel=0.25)
        again = replay.sample(sessions, seed, most_events=2_000)
        assert replay.to_bytes(again) == replay.to_bytes(kept)


def test_a_session_that_would_leave_no_room_for_others_is_left_out() -> None:
    kept = replay.sample(TrainingSessions.of([np.full(5_000, 3), np.array([4])]))
    assert [len(each) for each in kept.sequences] == [1]


def written(place: Path, sessions: TrainingSessions | None) -> Path:
    save(
        place,
        model=random_model(),
        vocabulary=VOCABULARY,
        profile=PROFILE,
        calibration=CALIBRATION,
        training=RECORD,
        replay=sessions,
    )
    return place


def test_a_checkpoint_holds_it_proven_as_all_its_files_are(tmp_path: Path) -> None:
    sessions = TrainingSessions.of([np.array([3, -9, 7]), np.array([2])], [0, 1], [7, 1])
    place = written(tmp_path / "model", sessions)
    found = load(place).replay
    assert found is not None
    assert found.fingerprint() == sessions.fingerprint()
    assert load(place).manifest.version == 4
    path = place / replay.REPLAY_FILE
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=replay.REPLAY_FILE):
        load(place)
    assert load(written(place, None)).replay is None
    assert not path.exists()


def test_what_is_no_such_sample_is_refused_with_the_reason() -> None:
    good = {
        "tokens": np.array([3, 4]),
        "lengths": np.array([1, 1]),
        "labels": np.array([0, -1], np.int8),
        "counts": np.array([1, 2]),
    }
    assert len(replay.from_bytes(columns(good), 5)) == 2
    wrong = {
        "beyond the vocabulary of 4 tokens": ({}, 4),
        "do not fit": ({"lengths": np.array([2, 1])}, 5),
        "a label or a count": ({"counts": np.array([0, 1])}, 5),
        "not tokens, lengths": ({"labels": np.array([0, 1])}, 5),
    }
    for told, (change, tokens) in wrong.items():
        with pytest.raises(ValueError, match=told):
            replay.from_bytes(columns(good | change), tokens)
