"""Training a detector: next-token prediction, the classifier where labels exist, calibration, checkpoint."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from detector import checkpoint
from detector.calibration import CRITICAL_SCORE, WARNING_SCORE, Calibration, SessionStatistics
from detector.checkpoint import TrainingRecord
from detector.errors import TrainingError
from detector.inference import Backend
from detector.metrics import Detection, average_precision
from detector.model import DetectorModel, ModelConfig
from detector.scorer import resolve_device
from detector.stages import Stage, Trainer, TrainingOptions, TrainingProgress
from detector.training_data import ANOMALOUS, NORMAL, UNLABELLED, TrainingSessions
from detector.vocabulary import Vocabulary

__all__ = [
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
_DEFAULTS = TrainingOptions()


@dataclass(frozen=True)
class Trained:
    """A trained and calibrated model."""

    model: DetectorModel
    vocabulary: Vocabulary
    calibration: Calibration
    record: TrainingRecord

    def save(self, directory: Path) -> str:
        """Write the checkpoint and return its digest.

        Raises:
            CheckpointError: as `detector.checkpoint.save`.
        """
        return checkpoint.save(
            directory,
            model=self.model,
            vocabulary=self.vocabulary,
            calibration=self.calibration,
            training=self.record,
        )


def train(
    sessions: TrainingSessions,
    vocabulary: Vocabulary,
    *,
    size: Size | ModelConfig = "tiny",
    seed: int = 0,
    device: str = "auto",
    kernels: Backend = "auto",
    options: TrainingOptions = _DEFAULTS,
    validation: TrainingSessions | None = None,
    progress: Callable[[TrainingProgress], None] | None = None,
) -> Trained:
    """Train a model; the same arguments on the same machine give the same weights.

    (Not so the reference kernels on a GPU: PyTorch adds some of their gradients up there in no fixed order.)

    Next-token prediction learns from every session that is not labelled anomalous. The classifier is
    trained when at least `MIN_ANOMALOUS_SESSIONS` training sessions are labelled anomalous; with fewer the
    result is that of an unlabelled training, and its record says so.

    Args:
        sessions: what to learn from.
        vocabulary: of their tokens.
        size: of the model, a preset or the sizes themselves.
        seed: of initial weights, order and the validation split.
        device: as for the scorer.
        kernels: as for the scorer.
        options: how long and how fast.
        validation: sessions to stop and calibrate by; none: a share of `sessions`.
        progress: called every few steps.

    Raises:
        TrainingError: there are too few sessions, a token is beyond the vocabulary, or training diverged.
        DeviceError: the device or kernels are not available here.
    """
    fitting, held_out = _parts(sessions, validation, options.validation_share, seed)
    for part in (fitting, held_out):
        _check_tokens(part, vocabulary)
    classifier = _enough_labels(fitting, held_out)
    target = resolve_device(device)
    with _seeded(seed, target):
        config = size if isinstance(size, ModelConfig) else ModelConfig.preset(size, len(vocabulary))
        model = DetectorModel(config, torch.from_numpy(vocabulary.template_features())).to(target)
        trainer = Trainer(model, held_out, kernels=kernels, options=options, seed=seed, progress=progress)
        trainer.inference().check()
        steps_after = options.steps("classifier", fitting) if classifier else 0
        trainer.next_token(fitting.select(fitting.labels != ANOMALOUS), steps_after=steps_after)
        if classifier:
            trainer.classifier(fitting)
    statistics = trainer.statistics()
    calibration = Calibration.fit(statistics, classifier=classifier)
    record = TrainingRecord(
        fingerprint=sessions.fingerprint(),
        seed=seed,
        mode="labelled" if classifier else "normals_only",
        sessions=int(sessions.counts.sum()),
        anomalous=int(sessions.counts[sessions.labels == ANOMALOUS].sum()),
        events=int(sessions.counts @ sessions.lengths),
        metrics=validation_metrics(calibration, statistics),
    )
    return Trained(model.cpu(), vocabulary, calibration, record)


def validation_metrics(calibration: Calibration, statistics: SessionStatistics) -> dict[str, float]:
    """What the scores of the validation sessions are worth, by name.

    ``normals.<severity>``: share of the sessions not labelled anomalous that reach the severity. Where both
    kinds are labelled also ``auprc`` and, for each severity, precision, recall and F1 of the final scores
    and (``early.…``) of the highest early scores.
    """
    final = calibration.final_scores(statistics.highest, statistics.logits)
    early = calibration.early_scores(statistics.early_highest, statistics.early_logits)
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


def _parts(
    sessions: TrainingSessions, validation: TrainingSessions | None, share: float, seed: int
) -> tuple[TrainingSessions, TrainingSessions]:
    """Training and validation sessions, equal ones merged."""
    normal = int(sessions.counts[sessions.labels != ANOMALOUS].sum())
    if normal < MIN_NORMAL_SESSIONS:
        raise TrainingError(f"{normal} normal sessions; at least {MIN_NORMAL_SESSIONS} are needed")
    distinct = sessions.distinct()
    fitting, held_out = distinct.split(share, seed) if validation is None else (distinct, validation.distinct())
    if not (held_out.labels != ANOMALOUS).any():
        raise TrainingError("no normal session among the validation sessions")
    return fitting, held_out


def _enough_labels(fitting: TrainingSessions, held_out: TrainingSessions) -> bool:
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


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Initial weights and masks depend on the seed alone, and the caller's generators stay as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
