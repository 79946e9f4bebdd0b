"""Training: what a model learns from, when it stops, and that one seed gives one result."""

from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detector.checkpoint import MODEL_FILE
from detector.errors import DeviceError, TrainingError
from detector.model.inference import Inference, flat
from detector.model.model import ModelConfig
from detector.quality.metrics import Detection, average_precision
from detector.scoring.scorer import Scorer
from detector.scoring.scores import Scores
from detector.sessions_file import read_sessions
from detector.text.vocabulary import UNK, Vocabulary
from detector.training.train import Trained, TrainingOptions, TrainingProgress, TrainingSessions, train
from detector.training.trainer import balanced_weights, novelty
from tests.detector.small_models import encoded
from tests.shared import SHARED, needs_shared

OPEN, READ, WRITE, CLOSE, FAIL = range(3, 8)
VOCABULARY = Vocabulary(("open <*>", "read <*>", "write <*>", "close <*>", "failure in <*>"))
SMALL = ModelConfig(len(VOCABULARY), d_model=32, n_layers=1, d_state=8, headdim=16, mimo_rank=2)
QUICK = TrainingOptions(next_token_steps=120, classifier_steps=80, learning_rate=1e-2, batch_tokens=1024)


def normal(rng: np.random.Generator) -> list[int]:
    """A file is opened, read and written a few times in turn, and closed."""
    return [OPEN, *([READ, WRITE] * int(rng.integers(1, 5))), CLOSE]


def faulty(rng: np.random.Generator) -> list[int]:
    """It fails half-way, or is never closed."""
    events = normal(rng)
    if rng.random() < 0.5:
        return [*events[: rng.integers(1, len(events))], FAIL]
    return events[:-1]


def sessions(n_normal: int, n_faulty: int, *, seed: int, labelled: bool = True) -> TrainingSessions:
    rng = np.random.default_rng(seed)
    made = [normal(rng) for _ in range(n_normal)] + [faulty(rng) for _ in range(n_faulty)]
    labels = np.repeat([0, 1], [n_normal, n_faulty])
    order = rng.permutation(len(made))
    sequences = [np.array(made[index], dtype=np.int64) for index in order]
    return TrainingSessions.of(sequences, labels[order].astype(np.int8) if labelled else None)


def scored(trained: Trained, directory: Path, sequences: list[list[int]]) -> Scores:
    trained.save(directory)
    return Scorer.load(directory, device="cpu").score([encoded(tokens) for tokens in sequences])


@pytest.fixture(scope="module")
def labelled() -> Trained:
    return train(sessions(600, 60, seed=1), VOCABULARY, size=SMALL, device="cpu", options=QUICK)


@pytest.fixture(scope="module")
def unlabelled() -> Trained:
    data = sessions(600, 0, seed=1, labelled=False)
    return train(data, VOCABULARY, size=SMALL, device="cpu", options=QUICK, normals=True)


def test_with_labels_faulty_sessions_are_told_from_normal_ones(labelled: Trained, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    fresh = [normal(rng) for _ in range(40)] + [faulty(rng) for _ in range(40)]
    finals = np.array([scores.final for scores in scored(labelled, tmp_path / "model", fresh)])
    assert (finals[:40] < 0.5).all()
    assert (finals[40:] >= 0.7).all()
    assert labelled.record.mode == "labelled"
    assert labelled.record.metrics["warning.f1"] > 0.9
    assert labelled.record.metrics["auprc"] > 0.95


def test_new_counts_are_in_doubt_only_where_sessions_enough_show_that_they_are_rare(labelled: Trained) -> None:
    assert labelled.calibration.doubt is None, "600 normal sessions do not show what one in a thousand has"
    data = sessions(600, 60, seed=1)
    many = train(
        replace(data, counts=data.counts * 10), VOCABULARY, size=SMALL, device="cpu", options=QUICK
    ).calibration
    assert many.doubt is not None


def test_with_labels_a_fault_shows_in_the_early_score_from_its_event_on(labelled: Trained, tmp_path: Path) -> None:
    (scores,) = scored(labelled, tmp_path / "model", [[OPEN, READ, WRITE, FAIL]])
    assert (scores.scores[:3] < 0.7).all()
    assert scores.scores[3] >= 0.7
    assert np.argmax(scores.surprises) == 3


def test_without_labels_what_never_happened_scores_high_and_few_normal_sessions_do(
    unlabelled: Trained, tmp_path: Path
) -> None:
    rng = np.random.default_rng(3)
    fresh = [normal(rng) for _ in range(200)] + [faulty(rng) for _ in range(40)]
    results = scored(unlabelled, tmp_path / "model", fresh)
    finals = np.array([scores.final for scores in results])
    assert (finals[:200] >= 0.7).mean() <= 0.02
    # None of the 120 held-out sessions has any evidence, so the share of those that have is known to be below 1 %.
    assert (finals[200:] >= 0.8).all()
    for scores in results:
        assert (scores.scores <= np.float32(scores.final)).all()
    assert unlabelled.record.mode == "normals_only"
    assert set(unlabelled.record.metrics) == {"normals.warning", "normals.critical", "normals.warning.later"}
    assert unlabelled.record.expected_warnings == 0
    shares = np.array(unlabelled.record.score_shares)
    assert shares.sum() == pytest.approx(1)
    assert shares[14:].sum() == pytest.approx(unlabelled.record.metrics["normals.warning"])


def test_an_unknown_line_is_as_surprising_as_templates_that_came_once_suggest() -> None:
    # One session in four has a template of its own, at the place of the first read.
    rare = [f"oddity {letter}{other}" for letter in "abcdefgh" for other in "abcdefgh"]
    vocabulary = Vocabulary((*VOCABULARY.templates, *rare))
    data = sessions(256, 0, seed=1, labelled=False)
    for index, token in enumerate(range(len(VOCABULARY), len(vocabulary))):
        data.sequences[4 * index][1] = token
    config = replace(SMALL, vocabulary_size=len(vocabulary))
    trained = train(data, vocabulary, size=config, device="cpu", options=QUICK, validation=data, normals=True)
    (measured,) = Inference(trained.model, batch_tokens=100).measure(
        *flat([np.array([OPEN, READ, UNK, READ, WRITE, CLOSE])])
    )
    assert novelty(data) > 0.03
    assert measured.surprises[2] == pytest.approx(-np.log(novelty(data)), rel=0.25)


def test_the_same_seed_gives_the_same_checkpoint_and_another_seed_another(tmp_path: Path) -> None:
    options = TrainingOptions(next_token_steps=12, classifier_steps=8, batch_tokens=512)
    data = sessions(100, 20, seed=4)
    digests = []
    for number, seed in enumerate((0, 0, 1)):
        torch.rand(number + 1)
        trained = train(data, VOCABULARY, size=SMALL, seed=seed, device="cpu", options=options)
        digests.append(trained.save(tmp_path / str(number)))
    assert digests[0] == digests[1] != digests[2]
    weights = [(tmp_path / str(number) / MODEL_FILE).read_bytes() for number in range(3)]
    assert weights[0] == weights[1] != weights[2]


def test_training_leaves_the_callers_random_numbers_alone() -> None:
    options = TrainingOptions(next_token_steps=2)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(sessions(40, 0, seed=4), VOCABULARY, size=SMALL, device="cpu", options=options)
    assert torch.equal(torch.rand(3), expected)


def test_counts_are_as_good_as_copies() -> None:
    options = TrainingOptions(next_token_steps=6, classifier_steps=4)
    copies = sessions(150, 30, seed=6)
    counted = copies.distinct()
    assert len(counted) < len(copies) / 3
    first, second = (train(data, VOCABULARY, size=SMALL, device="cpu", options=options) for data in (copies, counted))
    assert first.calibration == second.calibration
    assert first.record.metrics == second.record.metrics
    assert (first.record.sessions, first.record.anomalous) == (second.record.sessions, second.record.anomalous)


def test_progress_names_stage_losses_and_time_left() -> None:
    reports: list[TrainingProgress] = []
    options = TrainingOptions(next_token_steps=30, classifier_steps=20, validations=3)
    train(sessions(100, 20, seed=4), VOCABULARY, size=SMALL, device="cpu", options=options, progress=reports.append)
    stages = [report.stage for report in reports]
    assert stages == sorted(stages, reverse=True)
    for stage, steps in (("next_token", 30), ("classifier", 20)):
        of_stage = [report for report in reports if report.stage == stage]
        assert [report.step for report in of_stage] == sorted({report.step for report in of_stage})
        assert of_stage[-1].step == of_stage[-1].steps == steps
        assert of_stage[-1].validation_loss is not None
        assert sum(report.validation_loss is not None for report in of_stage) >= 3
        assert all(np.isfinite(report.loss) and report.seconds_left >= 0 for report in of_stage)
        rates = [report.learning_rate for report in of_stage]
        assert 0 < rates[-1] < 0.05 * max(rates)
        assert max(rates) <= options.learning_rate
    assert reports[0].seconds_left > 0
    assert reports[-1].seconds_left == 0
    for name in ("tokens", "seconds"):
        values = [getattr(report, name) for report in reports]
        assert values == sorted(set(values))
    assert all(report.tokens_per_s > 0 for report in reports)
    assert all(2**20 < report.peak_memory_bytes < 2**40 for report in reports)


def test_progress_counts_the_tokens_of_every_batch_with_begin_and_end() -> None:
    reports: list[TrainingProgress] = []
    data = TrainingSessions.of([np.array([OPEN, READ + n % 3, CLOSE]) for n in range(60)])
    options = TrainingOptions(next_token_steps=20, batch_tokens=5)
    train(data, VOCABULARY, size=SMALL, device="cpu", options=options, progress=reports.append)
    assert [(report.step, report.tokens) for report in reports if report.step % 10 == 0] == [(10, 50), (20, 100)]


def test_a_stage_ends_when_the_validation_loss_no_longer_falls() -> None:
    reports: list[TrainingProgress] = []
    options = TrainingOptions(next_token_steps=1_000, validations=100, patience=2, learning_rate=0.0)
    train(sessions(100, 0, seed=4), VOCABULARY, size=SMALL, device="cpu", options=options, progress=reports.append)
    assert reports[-1].step == 30


def test_a_stage_leaves_the_model_with_the_weights_of_its_best_validation() -> None:
    reports: list[TrainingProgress] = []
    options = TrainingOptions(next_token_steps=200, validations=100, patience=1, learning_rate=0.03)
    held_out = sessions(50, 0, seed=5)
    trained = train(
        sessions(100, 0, seed=4),
        VOCABULARY,
        size=SMALL,
        device="cpu",
        options=options,
        validation=held_out,
        progress=reports.append,
    )
    losses = [report.validation_loss for report in reports if report.validation_loss is not None]
    assert losses[-1] > min(losses)
    measured = list(Inference(trained.model, batch_tokens=10_000).measure(*flat(held_out.sequences)))
    surprises = np.concatenate([part.surprises for part in measured]).astype(float)
    assert surprises.mean() == pytest.approx(min(losses), rel=1e-5)


def test_the_class_is_learnt_after_each_event_and_not_at_the_end_alone() -> None:
    data, fresh = sessions(200, 100, seed=5), sessions(100, 100, seed=6)

    def early_loss(prefix_weight: float) -> float:
        options = TrainingOptions(
            next_token_steps=10,
            classifier_steps=60,
            learning_rate=1e-2,
            prefix_weight=prefix_weight,
            cuts=0,  # they teach what is normal before the end, too
            patience=100,
        )
        trained = train(data, VOCABULARY, size=SMALL, device="cpu", options=options)
        (measured,) = Inference(trained.model, batch_tokens=10_000).measure(*flat(fresh.sequences))
        signs = np.where(fresh.labels[measured.indices] == 1, -1.0, 1.0)
        losses = np.logaddexp(0.0, np.repeat(signs, np.diff(measured.bounds)) * measured.logits)
        return float(np.delete(losses, measured.bounds[1:] - 1).mean())

    assert early_loss(1.0) < 0.5 * early_loss(0.0)


def test_large_training_sets_are_passed_over_more_than_once_unless_the_steps_are_given() -> None:
    data = sessions(200, 0, seed=4).distinct()
    tokens = sum(len(events) + 2 for events in data.sequences)
    options = TrainingOptions(passes=1_000, batch_tokens=8)
    assert options.steps("next_token", data) == options.steps("classifier", data) == 1_000 * -(-tokens // 8)
    given = TrainingOptions(next_token_steps=5, classifier_steps=7, passes=1_000, batch_tokens=8)
    assert (given.steps("next_token", data), given.steps("classifier", data)) == (5, 7)
    assert TrainingOptions().steps("next_token", data) == 600


def test_too_few_anomalous_sessions_train_as_if_there_were_no_labels() -> None:
    options = TrainingOptions(next_token_steps=2)
    trained = train(sessions(60, 4, seed=4), VOCABULARY, size=SMALL, device="cpu", options=options)
    assert trained.record.mode == "normals_only"
    assert trained.record.anomalous == 4
    assert trained.calibration.final.logit_weight == 0
    assert "warning.recall" in trained.record.metrics


def test_sessions_without_a_label_teach_what_is_normal_but_not_what_is_anomalous() -> None:
    data = sessions(120, 60, seed=7)
    labels = data.labels.copy()
    labels[:40] = -1
    mixed = TrainingSessions.of(data.sequences, labels)
    weights = balanced_weights(mixed)
    assert (weights[labels == -1] == 0).all()
    assert weights[labels == 0].sum() == pytest.approx(weights[labels == 1].sum())
    options = TrainingOptions(next_token_steps=2, classifier_steps=2)
    trained = train(mixed, VOCABULARY, size=SMALL, device="cpu", options=options)
    assert trained.record.mode == "labelled"
    assert trained.record.anomalous == int((labels == 1).sum())


def test_a_few_labels_among_unlabelled_sessions_are_enough_to_tell_faults_apart(tmp_path: Path) -> None:
    # Faults among the unlabelled sessions too, as rare as in a real log.
    data = sessions(600, 60, seed=11)
    labels = np.full(len(data), -1, dtype=np.int8)
    for label, count in ((0, 40), (1, 45)):
        labels[np.flatnonzero(data.labels == label)[:count]] = label
    trained = train(TrainingSessions.of(data.sequences, labels), VOCABULARY, size=SMALL, device="cpu", options=QUICK)
    rng = np.random.default_rng(12)
    fresh = [normal(rng) for _ in range(40)] + [faulty(rng) for _ in range(40)]
    finals = np.array([scores.final for scores in scored(trained, tmp_path / "model", fresh)])
    assert trained.record.mode == "labelled"
    assert (finals[:40] < 0.5).all()
    assert (finals[40:] >= 0.7).all()


def test_given_validation_sessions_are_the_ones_that_calibrate() -> None:
    options = TrainingOptions(next_token_steps=2)
    held_out = sessions(30, 0, seed=9)
    odd = TrainingSessions.of([np.array([FAIL] * 5)] * 30, [0] * 30)
    first, second = (
        train(sessions(60, 0, seed=8), VOCABULARY, size=SMALL, device="cpu", options=options, validation=part)
        for part in (held_out, odd)
    )
    assert first.calibration != second.calibration


@pytest.mark.parametrize("n_faulty", [0, 30])
def test_with_labels_validation_sessions_get_the_scores_of_sessions_that_are_new(n_faulty: int) -> None:
    """Where their counts are known to be usual, a threshold chosen on them is too low for others."""
    options = TrainingOptions(next_token_steps=2, classifier_steps=2)
    data, odd = sessions(60, n_faulty, seed=8), [OPEN, READ, READ, CLOSE]
    held_out = sessions(30, n_faulty, seed=9).joined(TrainingSessions.of([np.array(odd)], [0]))
    trained = train(data, VOCABULARY, size=SMALL, device="cpu", options=options, validation=held_out)
    assert trained.profile.judge(np.array(odd), np.array([0, 4])).seen == [n_faulty == 0]


@pytest.mark.parametrize(
    ("data", "validation", "message"),
    [
        (sessions(19, 30, seed=1), None, "19 normal sessions; at least 20 are needed"),
        (TrainingSessions.of([np.array([OPEN])] * 20 + [np.array([], np.int64)]), None, "has no events"),
        (TrainingSessions.of([np.array([OPEN, 8])] * 30), None, "token 8 is beyond the vocabulary of 8 tokens"),
        (
            TrainingSessions.of([np.array([OPEN])] * 50, [-1] * 25 + [1] * 25),
            None,
            "20 sessions are labelled anomalous but none normal",
        ),
        (sessions(30, 0, seed=1), sessions(0, 3, seed=1), "no normal session among the validation sessions"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused_with_the_reason(
    data: TrainingSessions, validation: TrainingSessions | None, message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        train(data, VOCABULARY, size=SMALL, device="cpu", validation=validation)


def test_kernels_that_are_not_there_are_refused_before_training() -> None:
    with pytest.raises(DeviceError, match="does not run on cpu"):
        train(sessions(30, 0, seed=1), VOCABULARY, size=SMALL, device="cpu", kernels="cuda")  # type: ignore[arg-type]


@pytest.mark.parametrize(("steps", "found"), [(50, "loss of stage next_token is nan"), (1, "validation loss of stage")])
def test_diverging_training_is_an_error_and_not_a_checkpoint(steps: int, found: str) -> None:
    options = TrainingOptions(next_token_steps=steps, learning_rate=1e30, clip_norm=1e30)
    with pytest.raises(TrainingError, match=f"training diverged: the {found}"):
        train(sessions(60, 0, seed=1), VOCABULARY, size=SMALL, device="cpu", options=options)


@given(
    st.lists(st.tuples(st.sampled_from([-1, 0, 1]), st.integers(1, 50)), min_size=1, max_size=40),
    st.floats(0.05, 0.95),
    st.integers(0, 5),
)
def test_a_split_divides_every_label_in_the_share_asked_for_and_loses_nothing(
    rows: list[tuple[int, int]], share: float, seed: int
) -> None:
    data = TrainingSessions.of(
        [np.array([index + 3]) for index in range(len(rows))], [row[0] for row in rows], [row[1] for row in rows]
    )
    parts = data.split(share, seed)
    assert [part.fingerprint() for part in parts] == [part.fingerprint() for part in data.split(share, seed)]
    total = np.zeros(len(rows), dtype=np.int64)
    for part in parts:
        for events, label, count in zip(part.sequences, part.labels, part.counts, strict=True):
            assert label == rows[events[0] - 3][0]
            total[events[0] - 3] += count
    assert total.tolist() == [row[1] for row in rows]
    for label in (-1, 0, 1):
        whole = data.counts[data.labels == label].sum()
        held_out = parts[1].counts[parts[1].labels == label].sum()
        assert abs(held_out - share * whole) <= 1


def test_another_seed_holds_out_other_sessions() -> None:
    data = TrainingSessions.of([np.array([index]) for index in range(3, 103)])
    first, second = (data.split(0.2, seed)[1].fingerprint() for seed in (0, 1))
    assert first != second
    with pytest.raises(TrainingError, match="between 0 and 1"):
        data.split(1.0, 0)


def test_equal_sessions_of_one_label_are_merged_and_their_counts_added() -> None:
    data = TrainingSessions.of(
        [np.array([3, 4]), np.array([5]), np.array([3, 4]), np.array([3, 4])], [0, 0, 1, 0], [1, 2, 3, 4]
    )
    merged = data.distinct()
    assert [events.tolist() for events in merged.sequences] == [[3, 4], [5], [3, 4]]
    assert merged.labels.tolist() == [0, 0, 1]
    assert merged.counts.tolist() == [5, 2, 3]


def test_training_sessions_of_unequal_lengths_or_bad_values_are_refused() -> None:
    one = [np.array([3])]
    for labels, counts, message in (([0, 1], None, "labels"), ([2], None, "-1, 0, 1"), (None, [0], "below 1")):
        with pytest.raises(ValueError, match=message):
            TrainingSessions.of(one, labels, counts)


def test_novelty_is_the_share_of_events_whose_template_came_once() -> None:
    data = TrainingSessions.of([np.array([3, 4, 3]), np.array([5, -7])], None, [1, 2])
    # Of 7 events only token 4 came once: token 5 came twice by its count, and unknown lines do not repeat.
    assert novelty(data) == pytest.approx((1 + 1) / (7 + 1))


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(1, 4)), min_size=1, max_size=30))
def test_metrics_equal_their_definitions_session_by_session(rows: list[tuple[int, bool, int]]) -> None:
    scores, anomalous, counts = (np.array(column) for column in zip(*rows, strict=True))
    scores, counts = scores.astype(float), counts.astype(float)
    truth, value = np.repeat(anomalous, counts.astype(int)), np.repeat(scores, counts.astype(int))
    expected, recall = 0.0, 0.0
    for threshold in sorted(set(value), reverse=True):
        detection = Detection.at(threshold, scores, anomalous, counts)
        alert = value >= threshold
        assert detection.precision == pytest.approx(truth[alert].mean())
        assert detection.recall == pytest.approx(alert[truth].mean() if truth.any() else 0.0)
        if detection.precision and detection.recall:
            harmonic = 2 / (1 / detection.precision + 1 / detection.recall)
            assert detection.f1 == pytest.approx(harmonic)
        expected += (detection.recall - recall) * detection.precision
        recall = detection.recall
    assert average_precision(scores, anomalous, counts) == pytest.approx(expected)
    assert Detection.at(9.0, scores, anomalous, counts).precision == 0.0


@needs_shared
def test_on_real_hdfs_sessions_a_hundred_steps_find_nearly_all_anomalies(tmp_path: Path) -> None:
    assert SHARED is not None
    parsed = read_sessions(SHARED / "data/hdfs/sessions.tsv.gz")
    rng = np.random.default_rng(0)
    n_train = 2_000
    rows = np.concatenate(
        [rng.permutation(np.flatnonzero(parsed.labels == label))[:count] for label, count in ((0, 4_000), (1, 400))]
    )
    rows = rng.permutation(rows)
    vocabulary = Vocabulary(tuple(dict.fromkeys(chain.from_iterable(parsed.events))), kind="events")
    token = {name: index for index, name in enumerate(vocabulary.templates, start=3)}
    encoded_rows = [np.array([token[name] for name in parsed.events[row]], dtype=np.int64) for row in rows]
    labels = parsed.labels[rows]
    trained = train(
        TrainingSessions.of(encoded_rows[:n_train], labels[:n_train]),
        vocabulary,
        size="tiny",
        device="cpu",
        options=TrainingOptions(next_token_steps=50, classifier_steps=50, batch_tokens=1024, learning_rate=6e-3),
    )
    trained.save(tmp_path / "model")
    results = Scorer.load(tmp_path / "model", device="cpu").score([row.tobytes() for row in encoded_rows[n_train:]])
    finals, anomalous = np.array([scores.final for scores in results]), labels[n_train:] == 1
    detection = Detection.at(0.7, finals, anomalous, np.ones(len(finals)))

    assert detection.precision > 0.9
    assert detection.recall > 0.9


def test_a_normal_session_cut_short_is_not_taken_for_an_anomaly(tmp_path: Path) -> None:
    """A gap or a limit may end a session between its phases; among those to learn from none ended so."""
    rng = np.random.default_rng(1)
    whole = [normal(rng) for _ in range(600)]
    failed = [[*events[: rng.integers(1, 4)], FAIL, CLOSE] for events in whole[:60]]
    data = TrainingSessions.of([np.array(events) for events in whole + failed], [0] * 600 + [1] * 60)
    cut, also_failed = [OPEN, READ, WRITE, READ, WRITE], [OPEN, READ, WRITE, READ, FAIL]
    finals = []
    for cuts in (2_000, 0):
        trained = train(data, VOCABULARY, size=SMALL, device="cpu", options=replace(QUICK, cuts=cuts))
        finals.append([scores.final for scores in scored(trained, tmp_path / str(cuts), [cut, also_failed])])
    assert finals[0][0] < 0.2
    assert finals[0][1] > 0.7
    assert finals[0][0] < finals[1][0], "without such sessions the training has nothing to say of them"


@given(
    st.lists(st.tuples(st.lists(st.integers(3, 5), min_size=1, max_size=6), st.sampled_from([0, 1, -1])), min_size=1)
)
def test_sessions_are_cut_to_beginnings_of_normal_ones_that_no_anomalous_one_is_made_of(
    rows: list[tuple[list[int], int]],
) -> None:
    data = TrainingSessions.of([np.array(events) for events, _ in rows], [label for _, label in rows])
    cut = [events.tolist() for events in data.cut_short(5, seed=3).sequences]
    beginnings = [events[:n] for events, label in rows if label == 0 for n in phases(events)]
    assert all(events in beginnings for events in cut)
    assert len(cut) == len({tuple(events) for events in cut})
    anomalous = [sorted(events) for events, label in rows if label == 1]
    assert not any(sorted(events) in anomalous for events in cut)
    assert anomalous or bool(cut) == bool(beginnings)


def phases(events: list[int]) -> list[int]:
    """How long the beginnings are whose kinds of events come no more."""
    return [n for n in range(1, len(events)) if not set(events[:n]) & set(events[n:])]


def test_a_session_is_cut_between_its_phases_and_not_within_one() -> None:
    """One with a write of three that never came may well be an anomaly; one whose close has not come yet is none."""
    data = TrainingSessions.of([np.array([OPEN, READ, WRITE, READ, WRITE, WRITE, CLOSE])], [0])
    cut = [events.tolist() for events in data.cut_short(5, seed=3).sequences]
    assert sorted(cut) == [[OPEN], [OPEN, READ, WRITE, READ, WRITE, WRITE]]
