"""Training a detector: next-token prediction, the classifier where labels exist, calibration, checkpoint."""

import importlib.metadata
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from detector import checkpoint
from detector.checkpoint import EXPECTED_WARNINGS, TrainingRecord
from detector.errors import TrainingError
from detector.model.devices import Precision, compute_dtype, has_bfloat16, resolve_device
from detector.model.inference import Backend
from detector.model.model import DetectorModel, ModelConfig
from detector.quality.fingerprint import Fingerprint, Stream
from detector.quality.metrics import Detection, average_precision
from detector.quality.session_sketch import session_hash, session_sketch
from detector.reading import ReadingRecord
from detector.scoring.calibration import CRITICAL_SCORE, WARNING_SCORE, Calibration, SessionStatistics
from detector.scoring.count_profile import CountProfile
from detector.scoring.count_vectors import CountVectors
from detector.scoring.evidence import Evidences
from detector.scoring.judge import USUAL, Judge, scores
from detector.scoring.pace import Pace
from detector.scoring.score_histogram import score_histogram
from detector.sessions_file import ANOMALOUS, NORMAL, UNLABELLED
from detector.text.vocabulary import Vocabulary
from detector.training.alarm_bounds import bound, expected_share
from detector.training.data import TrainingSessions
from detector.training.loop import TrainingProgress
from detector.training.options import Stage, TrainingOptions
from detector.training.replay import sample
from detector.training.set_aside import SetAside, set_aside
from detector.training.state import TrainingState
from detector.training.trainer import Trainer

__all__ = [
    "History",
    "Stage",
    "Trained",
    "TrainingOptions",
    "TrainingProgress",
    "TrainingSessions",
    "train",
    "validation_metrics",
]

Size = Literal["tiny", "small", "reference"]

# With fewer the tail of the normal surprises is guesswork, and a classifier learns the sessions by heart.
MIN_NORMAL_SESSIONS = 20
MIN_ANOMALOUS_SESSIONS = 10
# Of normal sessions, those of another time among them, which may have counts as unusual as a doubtful session's.
DOUBTED = 0.001
_DEFAULTS = TrainingOptions()
_SHARE_DIGITS = 6


@dataclass(frozen=True)
class History:
    """The sessions of a training, in the order in which they ended.

    Attributes:
        stream: all of them.
        held_out: which are validation, (n,).
    """

    stream: Stream
    held_out: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Trained:
    """A trained and calibrated model.

    Attributes:
        model: in evaluation mode, float32, on the CPU.
        vocabulary: of its tokens.
        profile: of the counts in usual sessions: of training and, unless there is a classifier, of validation.
        calibration: of its scores.
        record: where it comes from.
        replay: sessions that stand for all of the training and the validation.
        set_aside: which sessions it did not learn from, and how others are held to what the rest has in common; None
            where labels took part or the sessions were vouched for.
        fingerprint: how its sessions were spread; None where there were too few or their order is not known.
        state: of the training that made it, where that was kept.
    """

    model: DetectorModel
    vocabulary: Vocabulary
    profile: CountProfile
    calibration: Calibration
    record: TrainingRecord
    replay: TrainingSessions
    set_aside: SetAside | None = None
    fingerprint: Fingerprint | None = None
    state: TrainingState | None = None

    def save(self, directory: Path, reading: ReadingRecord | None = None, pace: Pace | None = None) -> str:
        """Write the checkpoint and return its digest; the training's state is no longer needed and removed.

        Args:
            directory: where to.
            reading: how the sessions came about; None for parsed ones.
            pace: limits of their pauses and bursts.

        Raises:
            CheckpointError: as `detector.checkpoint.save`.
        """
        digest = checkpoint.save(
            directory,
            model=self.model,
            vocabulary=self.vocabulary,
            profile=self.profile,
            calibration=self.calibration,
            training=self.record,
            reading=reading,
            judge=None if self.set_aside is None else self.set_aside.judge,
            pace=pace,
            fingerprint=self.fingerprint,
            replay=self.replay,
        )
        if self.state is not None:
            self.state.remove()
        return digest


def train(
    sessions: TrainingSessions,
    vocabulary: Vocabulary,
    *,
    size: Size | ModelConfig = "tiny",
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "auto",
    kernels: Backend = "auto",
    options: TrainingOptions = _DEFAULTS,
    validation: TrainingSessions | None = None,
    history: History | None = None,
    normals: bool = False,
    progress: Callable[[TrainingProgress], None] | None = None,
    state: Path | None = None,
) -> Trained:
    """Train a model; the same arguments on the same machine give the same weights, killed in between or not.

    (Not so the reference kernels on a GPU: PyTorch adds some of their gradients up there in no fixed order.)

    Next-token prediction learns from every session that is not labelled anomalous. The classifier is
    trained when at least `MIN_ANOMALOUS_SESSIONS` training sessions are labelled anomalous; with fewer the
    others are taken for normal, and its record says so. Where no label is known at all, anomalies are among the
    sessions: those that stand out are set aside first (`detector.training.set_aside`), unless `normals` vouches for
    all.

    Args:
        sessions: what to learn from.
        vocabulary: of their tokens.
        size: of the model, a preset or the sizes themselves.
        seed: of initial weights, order and the validation split.
        device: as for the scorer.
        precision: of activations and matrix products; weights, gradients and validation are float32. "auto" is bfloat16
            on a GPU that has it, else float32.
        kernels: as for the scorer.
        options: how long and how fast.
        validation: sessions to stop and calibrate by; none: a share of `sessions`.
        history: the same sessions in order of time, for what drift is told by.
        normals: whether sessions without a label are known to be normal.
        progress: called every few steps.
        state: a file that the training is saved to after each validation. Where it is already there, this training goes
            on from it. Saving the result removes it.

    Raises:
        TrainingError: there are too few sessions, a token is beyond the vocabulary, training diverged, or the state is
            damaged, of another training or cannot be written.
        DeviceError: the device, precision or kernels are not available here.
    """
    fitting, held_out = _parts(sessions, validation, options.validation_share, seed)
    for part in (fitting, held_out):
        _check_tokens(part, vocabulary)
    replay = sample(fitting.joined(held_out), seed)
    found: SetAside | None = None
    if not normals and all((part.labels == UNLABELLED).all() for part in (fitting, held_out)):
        found = set_aside(vocabulary, fitting, held_out)
        fitting, held_out = found.kept
        _check_enough(fitting, held_out)
    classifier = enough_labels(fitting, held_out)
    target = resolve_device(device)
    config = size if isinstance(size, ModelConfig) else ModelConfig.preset(size, len(vocabulary))
    identity = _identity(fitting, held_out, vocabulary, config, seed, options)
    saved = None if state is None else TrainingState(state, identity)
    model = _initial(config, vocabulary, seed).to(target)
    trainer = Trainer(
        model,
        held_out,
        kernels=kernels,
        precision=training_dtype(precision, target),
        options=options,
        seed=seed,
        progress=progress,
        state=saved,
    )
    trainer.inference().check()
    normal = fitting.select(fitting.labels != ANOMALOUS)
    steps_after = options.steps("classifier", fitting) if classifier else 0
    trainer.next_token(normal, steps_after=steps_after)
    if classifier:
        trainer.classifier(fitting)
    # Where counts alone make alarms; where tolerances or labels have a part, these decide, and with labels counts add
    # to them what is rare at another time, too.
    alarms, rare = None, 0.0
    if found is None:
        parts = (sessions,) if validation is None else (sessions, validation)
        bounded = bound(*(part.select(part.labels != ANOMALOUS) for part in parts))
        if classifier:
            rare = bounded.later.rare(DOUBTED)
        else:
            alarms = bounded
    usual = fitting.usual()
    profile = CountProfile.fit(usual.sequences, usual.counts, alarms and alarms.bounds)
    left_out = TrainingSessions.of([]) if found is None else found.left_out[1]
    measured = calibrated(
        trainer,
        profile,
        held_out,
        left_out,
        None if found is None else found.judge,
        classifier=classifier,
        combine=options.combine,
        counted=alarms and alarms.alike,
        rare=rare,
    )
    if alarms is not None:
        measured.metrics[EXPECTED_WARNINGS] = expected_share(alarms.later, measured.calibration.evidence)
    record = TrainingRecord(
        fingerprint=sessions.fingerprint(),
        seed=seed,
        mode="labelled" if classifier else "normals_only" if found is None else "as_they_come",
        sessions=int(sessions.counts.sum()),
        anomalous=int(sessions.counts[sessions.labels == ANOMALOUS].sum()),
        events=int(sessions.counts @ sessions.lengths),
        metrics=measured.metrics,
        score_shares=measured.score_shares,
        sketch=_sketch(sessions, validation),
    )
    if not classifier:
        # What held-out sessions add is known to be normal, too; the shares measured without it are the higher ones.
        # With labels it would lower the scores of just these sessions, and a threshold chosen on them would be too low.
        usual = fitting.joined(held_out).usual()
        profile = CountProfile.fit(usual.sequences, usual.counts, alarms and alarms.bounds)
    fingerprint = None if history is None else fingerprint_of(history, measured.scored)
    return Trained(model.cpu(), vocabulary, profile, measured.calibration, record, replay, found, fingerprint, saved)


@dataclass(frozen=True)
class Calibrated:
    """How the scores of a trained model are calibrated, and what they say of the validation sessions.

    Attributes:
        calibration: of the scores.
        metrics: of `validation_metrics`.
        score_shares: as in `TrainingRecord`.
        scored: the score of each validation session, by its events, those that were set aside among them.
    """

    calibration: Calibration
    metrics: dict[str, float]
    score_shares: list[float]
    scored: dict[bytes, float]


def calibrated(
    trainer: Trainer,
    profile: CountProfile,
    held_out: TrainingSessions,
    left_out: TrainingSessions,
    judge: Judge | None,
    *,
    classifier: bool,
    combine: bool = False,
    counted: Evidences | None = None,
    rare: float = 0.0,
) -> Calibrated:
    """Calibrate by the trainer's validation sessions.

    Args:
        trainer: with the trained model.
        profile: of the training sessions.
        held_out: the validation sessions; none breaks a tolerance.
        left_out: those that were set aside.
        judge: with the tolerances; None where there are none.
        classifier: whether the model has one.
        combine: as in `TrainingOptions`.
        counted: as of `Calibration.fit`.
        rare: likewise.
    """
    statistics = trainer.statistics(profile)
    if judge is not None:  # what is evidence the tolerances say, and none of these sessions breaks one
        none = np.zeros(len(held_out))
        statistics = replace(statistics, unusual=none, early_unusual=none, seen=none.astype(np.bool_))
    cut = trainer.cut_logits() if classifier else None
    calibration = Calibration.fit(
        statistics, classifier=classifier, combine=combine, counted=counted, cut=cut, rare=rare
    )
    finals = _final_scores(calibration, statistics, judged=judge is not None)
    scored = by_sequence(held_out, finals)
    shares = score_histogram(finals, statistics.counts)
    if judge is not None and len(left_out):
        suspects = trainer.statistics(profile, left_out)
        levels = calibration.levels(suspects.highest, suspects.unusual, np.zeros_like(suspects.seen))
        standings = judge.standings(CountVectors.of_sequences(left_out.sequences))
        finals = scores(levels, *standings)
        scored |= by_sequence(left_out, finals)
        shares += score_histogram(finals, left_out.counts)
    metrics = validation_metrics(calibration, statistics, judged=judge is not None)
    return Calibrated(calibration, metrics, np.round(shares / shares.sum(), _SHARE_DIGITS).tolist(), scored)


def validation_metrics(
    calibration: Calibration, statistics: SessionStatistics, *, judged: bool = False
) -> dict[str, float]:
    """What the scores of the validation sessions are worth, by name; `judged` where tolerances take part.

    ``normals.<severity>``: share of the sessions not labelled anomalous that reach the severity. Where both
    kinds are labelled also ``auprc`` and, for each severity, precision, recall and F1 of the final scores
    and (``early.…``) of the highest early scores.
    """
    final = _final_scores(calibration, statistics, judged=judged)
    early = calibration.early_scores(statistics.early_highest, statistics.early_logits, statistics.early_unusual)
    thresholds = {"warning": WARNING_SCORE, "critical": CRITICAL_SCORE}
    normal, known = statistics.labels != ANOMALOUS, statistics.labels != UNLABELLED
    weights = statistics.counts[normal]
    metrics = {
        f"normals.{severity}": float(weights[final[normal] >= threshold].sum() / weights.sum())
        for severity, threshold in thresholds.items()
    }
    anomalous, counts = statistics.labels[known] == ANOMALOUS, statistics.counts[known]
    if anomalous.any() and not anomalous.all():
        metrics["auprc"] = average_precision(final[known], anomalous, counts)
        for prefix, scores in (("", final), ("early.", early)):
            for severity, threshold in thresholds.items():
                detection = Detection.at(threshold, scores[known], anomalous, counts)
                metrics |= {f"{prefix}{severity}.{name}": value for name, value in asdict(detection).items()}
    return metrics


def _final_scores(calibration: Calibration, statistics: SessionStatistics, *, judged: bool) -> npt.NDArray[np.float64]:
    """Of the validation sessions, none of which breaks a tolerance."""
    if not judged:
        return calibration.final_scores(statistics.highest, statistics.logits, statistics.unusual, statistics.seen)
    levels = calibration.levels(statistics.highest, statistics.unusual, statistics.seen)
    return scores(levels, np.full(len(levels), USUAL, np.int8), np.zeros(len(levels), np.int64))


def by_sequence(sessions: TrainingSessions, scores: npt.NDArray[np.float64]) -> dict[bytes, float]:
    """Scores of distinct sessions, (n,), by the bytes of their tokens."""
    return {events.tobytes(): score for events, score in zip(sessions.sequences, scores.tolist(), strict=True)}


def fingerprint_of(history: History, scored: dict[bytes, float]) -> Fingerprint | None:
    """Scores are those of held-out sessions: of what a model learnt from it thinks better than of what is to come."""
    stream = history.stream
    bounds = np.append(0, stream.ends)
    scores = np.full(len(stream), np.nan)
    for row in np.flatnonzero(history.held_out).tolist():
        scores[row] = scored.get(stream.tokens[bounds[row] : bounds[row + 1]].tobytes(), np.nan)
    return Fingerprint.of(stream, scores, history.held_out)


def _sketch(*parts: TrainingSessions | None) -> list[int] | None:
    hashes: list[int] = []
    for part in parts:
        if part is not None and part.keys is None:
            return None
        if part is not None and part.keys is not None:
            hashes += (session_hash(key, row.tobytes()) for key, row in zip(part.keys, part.sequences, strict=True))
    return session_sketch(hashes)


def _parts(
    sessions: TrainingSessions, validation: TrainingSessions | None, share: float, seed: int
) -> tuple[TrainingSessions, TrainingSessions]:
    """Training and validation sessions, equal ones merged."""
    distinct = sessions.distinct()
    fitting, held_out = distinct.split(share, seed) if validation is None else (distinct, validation.distinct())
    _check_enough(sessions, held_out)
    return fitting, held_out


def _check_enough(sessions: TrainingSessions, held_out: TrainingSessions) -> None:
    normal = int(sessions.counts[sessions.labels != ANOMALOUS].sum())
    if normal < MIN_NORMAL_SESSIONS:
        raise TrainingError(f"{normal} normal sessions; at least {MIN_NORMAL_SESSIONS} are needed")
    if not (held_out.labels != ANOMALOUS).any():
        raise TrainingError("no normal session among the validation sessions")


def enough_labels(fitting: TrainingSessions, held_out: TrainingSessions) -> bool:
    """Whether a classifier can be trained and calibrated.

    Raises:
        TrainingError: anomalous sessions are labelled but no normal ones.
    """
    anomalous, normal = (int(fitting.counts[fitting.labels == label].sum()) for label in (ANOMALOUS, NORMAL))
    if anomalous and not normal:
        raise TrainingError(f"{anomalous} sessions are labelled anomalous but none normal; label some of those too")
    return anomalous >= MIN_ANOMALOUS_SESSIONS and all((held_out.labels == x).any() for x in (ANOMALOUS, NORMAL))


def _check_tokens(sessions: TrainingSessions, vocabulary: Vocabulary) -> None:
    for events in sessions.sequences:
        if len(events) == 0:
            raise TrainingError("a training session has no events")
        if int(events.max()) >= len(vocabulary):
            raise TrainingError(f"token {int(events.max())} is beyond the vocabulary of {len(vocabulary)} tokens")


def _initial(config: ModelConfig, vocabulary: Vocabulary, seed: int) -> DetectorModel:
    """The model before training: its weights depend on the seed alone, and the caller's generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DetectorModel(config, torch.from_numpy(vocabulary.template_features()))


def training_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """What a training computes in: as `compute_dtype`, but ``auto`` is bfloat16 on a GPU that has it."""
    if precision == "auto" and device.type == "cuda" and has_bfloat16(device):
        return torch.bfloat16
    return compute_dtype(precision, device)


def _identity(
    fitting: TrainingSessions,
    held_out: TrainingSessions,
    vocabulary: Vocabulary,
    config: ModelConfig,
    seed: int,
    options: TrainingOptions,
) -> dict[str, object]:
    """All that decides what a training comes to, but for the last digits, which device and precision change."""
    return {
        "version": importlib.metadata.version("logmamba"),
        "seed": seed,
        "options": asdict(options),
        "model": asdict(config),
        "vocabulary": vocabulary.sha256,
        "sessions": fitting.fingerprint(),
        "validation sessions": held_out.fingerprint(),
    }
