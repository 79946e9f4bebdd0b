"""Adaptation after adaptation on traffic that somebody poisons: what was found is found, what is new is learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from detector.checkpoint import Checkpoint, load
from detector.model.model import ModelConfig
from detector.scoring.judge import Judge
from detector.scoring.scorer import Scorer
from detector.text.vocabulary import Vocabulary
from detector.training.data import TrainingSessions
from detector.training.gate import compare
from detector.training.options import TrainingOptions
from detector.training.renewal import MOST_RECENT, Recent, Renewal, RenewalOptions, TooLittle, renew
from detector.training.train import train
from tests.detector.scoring.stream import CLOSED, COPIED, FAILED, OPENED, READ, VOCABULARY, WRITTEN, stream
from tests.detector.small_models import encoded

SMALL = ModelConfig(len(VOCABULARY), d_model=32, n_layers=1, d_state=8, headdim=16, mimo_rank=2)
QUICK = TrainingOptions(next_token_steps=60, learning_rate=1e-2, batch_tokens=1024)
OPTIONS = RenewalOptions(steps=20, device="cpu")
NEW = Vocabulary(("rollout of <*> done", "login refused for <*>"))
ROLLED, REFUSED = len(VOCABULARY), len(VOCABULARY) + 1
ATTACK = np.array([OPENED, READ, WRITTEN, COPIED, COPIED, COPIED, FAILED, CLOSED])
NEW_ATTACK = np.array([OPENED, REFUSED, REFUSED, CLOSED])
FRESH, ODD = stream(300, share=0.5, seed=9)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    place = tmp_path_factory.mktemp("renewal") / "model"
    sessions, _ = stream(1_500)
    train(TrainingSessions.of(sessions), VOCABULARY, size=SMALL, device="cpu", options=QUICK).save(place)
    return load(place)


def day(
    parent: Checkpoint,
    output: Path,
    number: int,
    rolled: float,
    attacks: Sequence[np.ndarray],
    *,
    attack_share: float = 0.2,
    options: RenewalOptions = OPTIONS,
) -> Renewal:
    """Adapt to a day of 600 sessions, a share of which has a new template, and attacks of each kind besides."""
    rng = np.random.default_rng(number)
    sessions, _ = stream(600, seed=number)
    rows = [np.append(each, ROLLED) if rng.random() < rolled else each for each in sessions]
    rows += [each for attack in attacks for each in [attack] * round(600 * attack_share / (1 - attack_share))]
    keys = [f"{number}/{row}" for row in range(len(rows))]
    recent = Recent(
        TrainingSessions.of(rows, None, None, keys),
        np.full(len(rows), 20_000 + number),
        parent.vocabulary.merged(NEW),
        lambda key: int(key.rpartition("/")[2]) % 5 == 0,
    )
    assert parent.replay is not None
    return renew(parent, recent, parent.replay, output, options=options)


def finals(checkpoint: Checkpoint, sessions: Sequence[np.ndarray]) -> np.ndarray:
    scorer = Scorer(checkpoint, device="cpu")
    return np.array([each.final for each in scorer.score([encoded(events.tolist()) for events in sessions])])


def test_three_days_of_a_repeated_anomaly_hide_nothing_while_a_rollout_is_learnt(
    parent: Checkpoint, tmp_path: Path
) -> None:
    now, done = parent, []
    for number in range(3):
        done.append(day(now, tmp_path / str(number), number, rolled=0.4, attacks=[ATTACK]))
        assert not done[-1].worse
        now = load(tmp_path / str(number))
        assert now.digest == done[-1].digest
        assert finals(now, [ATTACK])[0] >= 0.7
    found = finals(now, FRESH)
    assert (found[ODD] >= 0.7).mean() >= 0.99
    assert (found[~ODD] >= 0.7).mean() <= 0.01
    rolled = finals(now, [np.append(each, ROLLED) for each in FRESH])
    assert (rolled[ODD] >= 0.7).mean() >= 0.99
    assert (rolled[~ODD] >= 0.7).mean() <= 0.02
    # Each manifest lists what the day changed and what it did not.
    usual = [[each.name for each in of.usual] for of in now.manifest.history]
    assert usual == [[], [], [f"+{ROLLED}"]]
    assert all(f"+{FAILED}" in {each.name for each in of.held_back} for of in now.manifest.history)
    assert now.manifest.history[0].parent == parent.digest
    assert now.vocabulary.only_adds_to(parent.vocabulary)
    assert now.manifest.model.vocabulary_size == len(VOCABULARY) + 2


def test_a_day_of_a_new_anomaly_leaves_it_an_alarm_by_its_own_name(parent: Checkpoint, tmp_path: Path) -> None:
    done = day(parent, tmp_path / "one", 0, rolled=0, attacks=[NEW_ATTACK])
    now = load(tmp_path / "one")
    assert finals(now, [NEW_ATTACK])[0] >= 0.7
    [name] = {each.name for each in done.adaptation.held_back if f"+{REFUSED}" in each.name}
    reason = Scorer(now, device="cpu").reason(encoded(NEW_ATTACK.tolist()))
    assert reason is not None
    assert reason.family == name
    assert f"+{REFUSED}" in done.adaptation.watched
    # What is said of it holds for it, and in later adaptations, too.
    assert now.judge is not None
    told = replace(now, judge=Judge(now.judge.tolerances, now.judge.families.judged(name, "normal", "2026-02-03")))
    assert finals(told, [NEW_ATTACK])[0] < 0.7
    day(told, tmp_path / "two", 1, rolled=0, attacks=[NEW_ATTACK])
    assert finals(load(tmp_path / "two"), [NEW_ATTACK])[0] < 0.7


def test_a_checkpoint_with_labels_keeps_them_and_learns_from_what_is_no_alarm(tmp_path: Path) -> None:
    sessions, wrong = stream(800, share=0.1)
    options = replace(QUICK, classifier_steps=60)
    labelled = TrainingSessions.of(sessions, wrong.astype(np.int8))
    train(labelled, VOCABULARY, size=SMALL, device="cpu", options=options).save(tmp_path / "labelled")
    parent = load(tmp_path / "labelled")
    assert parent.judge is None
    assert parent.replay is not None
    done = day(parent, tmp_path / "one", 0, rolled=0, attacks=[ATTACK])
    assert not done.worse
    now = load(tmp_path / "one")
    assert now.manifest.training.mode == "labelled"
    assert now.manifest.calibration.doubt is parent.manifest.calibration.doubt is None, "of what too few have shown"
    assert now.replay is not None
    assert (now.replay.labels == 1).any()
    assert done.adaptation.held_back[0].sessions >= 150
    before, after = ((finals(each, FRESH) >= 0.7)[ODD].mean() for each in (parent, now))
    assert after >= 0.99 * before > 0.9
    assert finals(now, [ATTACK])[0] >= 0.7


def test_what_is_kept_for_replay_is_bounded_and_of_both(parent: Checkpoint, tmp_path: Path) -> None:
    day(parent, tmp_path / "one", 0, rolled=0, attacks=[])
    kept, before = load(tmp_path / "one").replay, parent.replay
    assert kept is not None
    assert before is not None
    assert before.counts.sum() < kept.counts.sum() <= before.counts.sum() / MOST_RECENT
    known = {each.tobytes() for each in kept.sequences}
    assert sum(each.tobytes() in known for each in before.sequences) == len(before)


def test_too_few_sessions_that_may_be_learnt_from_are_refused(parent: Checkpoint, tmp_path: Path) -> None:
    rows = [ATTACK] * 49 + [np.delete(ATTACK, 6)] * 49
    recent = Recent(
        TrainingSessions.of(rows, None, None, [f"k{row}" for row in range(98)]),
        np.full(98, 20_000),
        VOCABULARY,
        lambda key: False,
    )
    assert parent.replay is not None
    with pytest.raises(TooLittle, match="of 98 recent sessions 49 may be learnt from"):
        renew(parent, recent, parent.replay, tmp_path / "model", options=OPTIONS)
    assert not (tmp_path / "model").exists()


def test_days_on_which_nothing_can_be_learnt_count_until_what_all_do_is_usual(
    parent: Checkpoint, tmp_path: Path
) -> None:
    rolled, now, learnt = [np.append(each, ROLLED) for each in FRESH], parent, []
    for number in range(3):
        before = finals(replace(now, vocabulary=parent.vocabulary.merged(NEW)), [*FRESH, *rolled])
        done = day(now, tmp_path / str(number), number, rolled=1, attacks=[])
        assert not done.worse
        learnt.append(done.learnt)
        now = load(tmp_path / str(number))
        if number < 2:
            assert list(done.adaptation.watched[f"+{ROLLED}"]) == ["2024-10-04", "2024-10-05"][: number + 1]
            after = finals(now, [*FRESH, *rolled])
            assert (after >= 0.7).tolist() == (before >= 0.7).tolist()
            assert now.manifest.fingerprint == parent.manifest.fingerprint
            assert now.vocabulary.templates[-2:] == NEW.templates
    assert learnt[:2] == [0, 0] < learnt[2:]
    found = finals(now, rolled)
    assert (found[~ODD] >= 0.7).mean() <= 0.02
    assert (found[ODD] >= 0.7).mean() >= 0.99


def test_what_was_set_aside_and_all_do_now_is_usual_for_who_vouches(parent: Checkpoint, tmp_path: Path) -> None:
    options = replace(OPTIONS, planned=True, steps=80)
    done = day(parent, tmp_path / "one", 0, rolled=0, attacks=[ATTACK], attack_share=0.6, options=options)
    assert not done.worse
    assert f"+{FAILED}" in {each.name for each in done.adaptation.usual}
    assert finals(load(tmp_path / "one"), [ATTACK])[0] < 0.7


def test_a_checkpoint_that_finds_less_or_expects_less_is_told_by_the_figure(parent: Checkpoint) -> None:
    assert parent.judge is not None
    sessions = TrainingSessions.of(FRESH)
    usual, odd = sessions.select(~ODD), sessions.select(ODD)
    before = Scorer(parent, device="cpu")
    assert all(each.ok for each in compare(before, before, sessions, usual, odd))

    families = parent.judge.families
    for family in families.all:
        families = families.judged(family.name, "normal", "2026-02-03")
    blind = Scorer(replace(parent, judge=Judge(parent.judge.tolerances, families)), device="cpu")
    found = compare(before, blind, sessions, usual, odd)
    assert [each.name for each in found if not each.ok] == ["old.found", "held_back.found"]

    weights = dict(parent.weights) | {"next_token_head.weight": parent.weights["next_token_head.weight"] * 0}
    dull = Scorer(replace(parent, weights=weights), device="cpu")
    found = compare(before, dull, sessions, usual, odd)
    assert [each.name for each in found if not each.ok] == ["old.nats", "recent.nats"]
