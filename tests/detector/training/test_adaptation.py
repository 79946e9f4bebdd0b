"""Learning on from recent sessions: what they do is usual afterwards, and what was found before still is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from detector import checkpoint
from detector.checkpoint import Checkpoint, load
from detector.errors import TrainingError
from detector.model.model import ModelConfig
from detector.scoring.count_vectors import CountVectors
from detector.scoring.families import Verdict, Way, name_of
from detector.scoring.judge import USUAL, Judge
from detector.scoring.scorer import Scorer
from detector.sessions_file import ANOMALOUS, NORMAL
from detector.text.vocabulary import Vocabulary
from detector.training.adaptation import AdaptationOptions, Adapted, adapt, adapted_judge, grown
from detector.training.data import TrainingSessions
from detector.training.options import TrainingOptions
from detector.training.set_aside import set_aside
from detector.training.train import train
from tests.detector.scoring.stream import COPIED, FAILED, SLOW, VOCABULARY, stream
from tests.detector.small_models import encoded

SESSIONS, WRONG = stream(1_000)
FRESH, ODD = stream(300, share=0.2, seed=9)
QUIET = [events for events in stream(2_000, share=0)[0] if SLOW not in events][:1_000]
SMALL = ModelConfig(len(VOCABULARY), d_model=32, n_layers=1, d_state=8, headdim=16, mimo_rank=2)
QUICK = TrainingOptions(next_token_steps=60, classifier_steps=60, learning_rate=1e-2, batch_tokens=1024)
OPTIONS = AdaptationOptions(next_token_steps=40, classifier_steps=40, learning_rate=5e-3)

# A new version says "stored a copy of" and not "copy of ... stored".
WIDER = VOCABULARY.merged(Vocabulary(("stored a copy of <*>",)))
STORED = len(VOCABULARY)


def reworded(sessions: list[np.ndarray]) -> list[np.ndarray]:
    return [np.where(events == COPIED, STORED, events) for events in sessions]


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("parent") / "model"
    train(TrainingSessions.of(SESSIONS), VOCABULARY, size=SMALL, device="cpu", options=QUICK).save(path)
    return load(path)


@pytest.fixture(scope="module")
def adapted(parent: Checkpoint) -> Adapted:
    usual = [events for events, wrong in zip(*stream(400, seed=3), strict=True) if not wrong]
    recent = TrainingSessions.of(reworded(usual))
    return adapt(parent, recent, TrainingSessions.of(SESSIONS), WIDER, device="cpu", options=OPTIONS)


def told_of(parent: Checkpoint, judged: list[np.ndarray], labels: np.ndarray) -> Scorer:
    """A scorer of what verdicts on sessions made of the checkpoint."""
    options = replace(OPTIONS, next_token_steps=0)
    recent = TrainingSessions.of(judged, labels)
    older = TrainingSessions.of(SESSIONS)
    found = adapt(parent, recent, older, VOCABULARY, verdicts=recent, device="cpu", options=options)
    return Scorer(found.checkpoint(parent), device="cpu")


def is_short(events: np.ndarray) -> bool:
    return bool((events == COPIED).sum() < 3)


def saved(adapted: Adapted, parent: Checkpoint, directory: Path) -> Path:
    checkpoint.save(
        directory,
        model=adapted.model,
        vocabulary=adapted.vocabulary,
        profile=adapted.profile,
        calibration=adapted.calibration,
        training=parent.manifest.training,
        judge=adapted.judge,
        verdict_weights=adapted.verdict_weights,
    )
    return directory


def finals(scorer: Scorer, sessions: list[np.ndarray]) -> np.ndarray:
    return np.array([each.final for each in scorer.score([encoded(events.tolist()) for events in sessions])])


def test_reworded_sessions_are_usual_afterwards_and_their_faults_are_found(
    parent: Checkpoint, adapted: Adapted, tmp_path: Path
) -> None:
    before = Scorer(replace(parent, vocabulary=WIDER), device="cpu")
    assert (finals(before, reworded(FRESH)) >= 0.7).all()
    found = finals(Scorer.load(saved(adapted, parent, tmp_path / "model"), device="cpu"), reworded(FRESH))
    assert (found[ODD] >= 0.7).mean() > 0.9
    assert (found[~ODD] >= 0.7).mean() < 0.02


def test_what_was_found_before_still_is_and_what_was_usual_stays_so(
    parent: Checkpoint, adapted: Adapted, tmp_path: Path
) -> None:
    found = finals(Scorer.load(saved(adapted, parent, tmp_path / "model"), device="cpu"), FRESH)
    assert (found[ODD] >= 0.7).all()
    assert (found[~ODD] >= 0.7).mean() < 0.02


def test_families_keep_names_and_verdicts(parent: Checkpoint) -> None:
    judge = told(parent, "+9", "anomalous")
    recent = TrainingSessions.of(stream(100, share=0)[0])
    options = replace(OPTIONS, next_token_steps=0)
    found = adapt(
        replace(parent, judge=judge), recent, TrainingSessions.of(SESSIONS), VOCABULARY, device="cpu", options=options
    )
    assert found.judge is not None
    assert found.judge.families.all[: len(judge.families.all)] == judge.families.all
    assert not found.trained


def test_what_an_older_alarm_breaks_is_accepted_for_no_other_older_session() -> None:
    """Slow disks come no more, so those of before are rare; one of them came with far too many."""
    older = [with_more(each, [SLOW] * (6 if row < 1 else row < 45)) for row, each in enumerate(QUIET)]
    known = set_aside(VOCABULARY, TrainingSessions.of(older)).judge
    assert np.flatnonzero(stand_out(known, older)).tolist() == [0]
    changed = {Way("missing", COPIED, 0), Way("rare", STORED, 0), Way("more", SLOW, 0)}
    found = judged_anew(known, reworded(QUIET), older, changed=changed)
    assert stand_out(found, older)[0]
    assert not stand_out(found, reworded(QUIET)).any()


def test_what_happens_to_be_a_little_more_frequent_excuses_no_older_alarm() -> None:
    """Of all sessions just not 3 % are refused at first, too many to be alarms; some of these fail, which are."""
    refused, failed = STORED + 1, FAILED
    wider = WIDER.merged(Vocabulary(("refused <*>",)))

    def day(of_them: int, fail: int) -> list[np.ndarray]:
        tails = [[refused, failed] if row < fail else [refused] if row < of_them else [] for row in range(len(QUIET))]
        return [with_more(*each) for each in zip(QUIET, tails, strict=True)]

    older, recent = day(28, 8), reworded(day(40, 0))
    judge = set_aside(wider, TrainingSessions.of(older)).judge
    name = name_of(judge.ways(older[10]))
    known = Judge(judge.tolerances, judge.families.judged(name, "normal", "2026-02-03"))
    assert np.flatnonzero(stand_out(known, older)).tolist() == list(range(8))
    assert stand_out(judged_anew(known, recent, older, wider), older)[:8].all()


def test_a_new_template_is_at_first_what_its_lines_were(parent: Checkpoint) -> None:
    model, events = grown(parent, WIDER.all_learned()), reworded([FRESH[0]])[0]
    before = parent.build_model()
    ends = torch.tensor([0, len(events)], dtype=torch.int32)
    features = model.template_features[: len(VOCABULARY)]
    assert torch.equal(features[3:6], before.template_features[3:6])
    with torch.no_grad():
        logits, _ = model.eval()(torch.from_numpy(events), ends)
    assert torch.equal(logits[:, STORED], logits[:, 2])


def test_verdicts_on_sessions_decide_of_others_like_them(parent: Checkpoint) -> None:
    judged, wrong = stream(60, share=0.5, seed=5)
    found = told_of(parent, judged, np.where(wrong, ANOMALOUS, NORMAL))
    scores = finals(found, FRESH)
    assert (scores[ODD] >= 0.7).all()
    assert (scores[[FAILED in events for events in FRESH]] >= 0.95).all()
    assert (scores[~ODD] >= 0.7).mean() < 0.02


def test_one_verdict_ends_its_false_alarms_and_hides_no_other_fault(parent: Checkpoint) -> None:
    failed, copies = (np.array([FAILED in events for events in FRESH]), np.array([is_short(each) for each in FRESH]))
    [one] = [events for events in stream(60, share=0.5, seed=5)[0] if FAILED in events][:1]
    scores = finals(told_of(parent, [one], np.array([NORMAL])), FRESH)
    assert (scores[failed] < 0.7).all()
    assert (scores[copies] >= 0.7).all()


def test_nothing_usual_to_learn_from_is_refused(parent: Checkpoint) -> None:
    wrong = [events for events, odd in zip(FRESH, ODD, strict=True) if odd]
    recent = TrainingSessions.of(wrong, [ANOMALOUS] * len(wrong))
    with pytest.raises(TrainingError, match="no session to learn from is usual"):
        adapt(parent, recent, TrainingSessions.of([]), VOCABULARY, device="cpu", options=OPTIONS)


def with_more(events: np.ndarray, more: list[int]) -> np.ndarray:
    return np.append(events, np.array(more, np.int64))


def stand_out(judge: Judge, sessions: list[np.ndarray]) -> np.ndarray:
    found: np.ndarray = judge.standings(CountVectors.of_sequences(sessions))[0] != USUAL
    return found


def judged_anew(
    known: Judge,
    recent: list[np.ndarray],
    older: list[np.ndarray],
    vocabulary: Vocabulary = WIDER,
    changed: set[Way] | None = None,
) -> Judge:
    """What is usual for who says that all of the recent sessions are."""
    new, old = (TrainingSessions.of(each).distinct() for each in (recent, older))
    usual = ~stand_out(known, list(old.sequences))
    return adapted_judge(known, new, (old, usual), new, vocabulary, n_known=len(VOCABULARY), changed=changed)


def told(parent: Checkpoint, name: str, verdict: Verdict) -> Judge:
    assert parent.judge is not None
    families = parent.judge.families.judged(name, verdict, "2026-02-03")
    return Judge(parent.judge.tolerances, families)
