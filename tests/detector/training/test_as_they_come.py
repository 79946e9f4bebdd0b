"""A training on sessions as they come, anomalies among them: from the sessions to the scores and verdicts on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detector.checkpoint import TOLERANCES_FILE, load, save_verdicts
from detector.errors import CheckpointError
from detector.model.model import ModelConfig
from detector.scoring.judge import Judge
from detector.scoring.scorer import Scorer
from detector.scoring.scores import Scores
from detector.training.data import TrainingSessions
from detector.training.options import TrainingOptions
from detector.training.train import Trained, train
from tests.detector.scoring.stream import COPIED, FAILED, READ, VOCABULARY, WRITTEN, stream
from tests.detector.small_models import encoded, save_random

SESSIONS, WRONG = stream(1_500)
FRESH, ODD = stream(400, share=0.2, seed=9)
SMALL = ModelConfig(len(VOCABULARY), d_model=32, n_layers=1, d_state=8, headdim=16, mimo_rank=2)
QUICK = TrainingOptions(next_token_steps=100, learning_rate=1e-2, batch_tokens=1024)


@pytest.fixture(scope="module")
def trained() -> Trained:
    return train(TrainingSessions.of(SESSIONS), VOCABULARY, size=SMALL, device="cpu", options=QUICK)


@pytest.fixture
def checkpoint(trained: Trained, tmp_path: Path) -> Path:
    trained.save(tmp_path / "model")
    return tmp_path / "model"


def scored(directory: Path, unfinished: bool = False) -> Scores:
    scorer, sequences = Scorer.load(directory, device="cpu"), [encoded(events.tolist()) for events in FRESH]
    if unfinished:  # an early look first, then the session as a whole
        scorer.score([], sequences)
    return scorer.score(sequences)


def finals(directory: Path) -> np.ndarray:
    return np.array([each.final for each in scored(directory)])


def kinds() -> np.ndarray:
    """How often each of the made-up faults shows in a session: too few copies, a failure, a write that is missing."""
    return np.array(
        [
            [
                (events == COPIED).sum() < 3,
                (events == FAILED).any(),
                (events == READ).sum() != (events == WRITTEN).sum(),
            ]
            for events in FRESH
        ]
    )


def judged(directory: Path, **verdicts: str) -> None:
    judge = load(directory).judge
    assert judge is not None
    families = judge.families
    for name, verdict in verdicts.items():
        breaks = {"failed": "+9", "copies": "<6", "writes": "4>5"}[name]
        families = families.judged(breaks, verdict, "2026-02-03")  # type: ignore[arg-type]
    save_verdicts(directory, Judge(judge.tolerances, families))


def test_what_is_wrong_is_a_warning_though_training_was_full_of_it(trained: Trained, checkpoint: Path) -> None:
    assert trained.record.mode == "as_they_come"
    assert trained.set_aside is not None
    assert trained.set_aside.set_aside == WRONG.sum()
    found = finals(checkpoint)
    assert (found[ODD] >= 0.7).all()
    assert (found[~ODD] >= 0.7).mean() <= 0.01
    assert found.max() < 0.95
    shares = np.array(trained.record.score_shares)  # of sessions like these, those that were set aside among them
    assert shares[14:].sum() == pytest.approx(WRONG.mean(), rel=0.5)
    assert shares[19] == 0


def test_who_vouches_for_all_sessions_gets_what_was_trained_before_there_were_tolerances(tmp_path: Path) -> None:
    few = TrainingSessions.of(SESSIONS[:300])
    options = TrainingOptions(next_token_steps=5)
    vouched = train(few, VOCABULARY, size=SMALL, device="cpu", options=options, normals=True)
    assert vouched.record.mode == "normals_only"
    assert vouched.set_aside is None
    known = TrainingSessions.of(SESSIONS[:300], np.zeros(300, np.int8))
    labelled_normal = train(known, VOCABULARY, size=SMALL, device="cpu", options=options)
    vouched.save(tmp_path / "vouched")
    assert not (tmp_path / "vouched" / TOLERANCES_FILE).exists()
    assert load(tmp_path / "vouched").manifest.version == 4
    labelled_normal.save(tmp_path / "known")
    assert load(tmp_path / "known").judge is None


def test_verdicts_change_scores_at_once_and_only_those_of_their_family(checkpoint: Path) -> None:
    before = finals(checkpoint)
    copies, failed, writes = kinds().T
    judged(checkpoint, failed="anomalous", copies="normal")
    after = finals(checkpoint)
    assert (after[failed] >= 0.95).all()
    assert (after[copies] < 0.7).all()
    np.testing.assert_array_equal(after[~(copies | failed)], before[~(copies | failed)])
    assert writes.any()


def test_an_early_score_is_no_higher_than_the_final_one_and_never_falls(checkpoint: Path) -> None:
    for verdicts in ({}, {"failed": "normal", "copies": "anomalous"}):
        judged(checkpoint, **verdicts)
        for each in scored(checkpoint):
            assert (np.diff(each.scores) >= 0).all()
            assert each.scores.max() <= np.float32(each.final)


def test_what_is_only_missing_so_far_is_no_early_alarm_and_what_failed_is_one(checkpoint: Path) -> None:
    copies, failed, writes = kinds().T
    at_failure = []
    for scores, events, is_failed, is_late in zip(scored(checkpoint), FRESH, failed, copies | writes, strict=True):
        if is_late:
            assert (scores.scores < 0.7).all()
            assert scores.final >= 0.7
        if is_failed:
            at_failure.append((scores.scores >= 0.7).tolist() == np.maximum.accumulate(events == FAILED).tolist())
    assert at_failure
    assert all(at_failure)


def test_a_score_is_the_same_whether_the_session_was_looked_at_before_its_end_or_not(checkpoint: Path) -> None:
    judged(checkpoint, failed="normal", copies="anomalous")
    at_once, in_two = scored(checkpoint), scored(checkpoint, unfinished=True)
    for one, other in zip(at_once, in_two, strict=True):
        assert one.final == other.final
        np.testing.assert_array_equal(one.scores, other.scores)


def test_the_scorer_says_why(checkpoint: Path) -> None:
    scorer = Scorer.load(checkpoint, device="cpu")
    for events, odd in zip(FRESH, ODD, strict=True):
        assert (scorer.reason(encoded(events.tolist())) is not None) == odd


def test_a_checkpoint_comes_back_with_its_tolerances_and_verdicts(trained: Trained, tmp_path: Path) -> None:
    digest = trained.save(tmp_path / "model")
    assert trained.set_aside is not None
    loaded = load(tmp_path / "model")
    assert loaded.digest == digest
    assert loaded.manifest.version == 4
    assert loaded.judge is not None
    assert loaded.judge.to_json() == trained.set_aside.judge.to_json()
    judged(tmp_path / "model", failed="anomalous")
    again = load(tmp_path / "model")
    assert again.digest != digest
    assert again.judge is not None
    assert again.judge.families.find("+9").verdict == "anomalous"  # type: ignore[union-attr]
    assert again.manifest.model_copy(update={"files": {}}) == loaded.manifest.model_copy(update={"files": {}})
    trained.save(tmp_path / "model")  # trained anew
    assert load(tmp_path / "model").digest == digest


def test_damaged_tolerances_are_found_and_missing_ones_too(checkpoint: Path) -> None:
    path = checkpoint / TOLERANCES_FILE
    data = path.read_bytes()
    path.write_bytes(data.replace(b"2", b"3", 1))
    with pytest.raises(CheckpointError, match=r"tolerances\.json is sha256:.* but manifest\.json was written for"):
        load(checkpoint)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"tolerances\.json"):
        load(checkpoint)


def test_an_older_checkpoint_is_served_as_before_and_takes_no_verdicts(tmp_path: Path) -> None:
    save_random(tmp_path / "old")
    loaded = load(tmp_path / "old")
    assert loaded.manifest.version == 2
    assert loaded.judge is None
    assert not (tmp_path / "old" / TOLERANCES_FILE).exists()
    assert Scorer(loaded, device="cpu").reason(encoded([3, 4])) is None
    judge = Judge.from_json(train_few().to_json())
    with pytest.raises(CheckpointError, match=r"has no tolerances\.json"):
        save_verdicts(tmp_path / "old", judge)


def train_few() -> Judge:
    """Any tolerances."""
    from detector.training.set_aside import set_aside

    return set_aside(VOCABULARY, TrainingSessions.of(SESSIONS[:50])).judge
