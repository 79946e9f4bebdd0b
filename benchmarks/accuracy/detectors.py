"""The detectors: the product as `logmamba train` and the worker run it, and `detector.quality.baselines`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from benchmarks.accuracy.early import Early, early_detection, finals
from benchmarks.accuracy.tasks import Floats, Part, Task
from detector.quality.baselines import BASELINES, Baseline, count_vectors
from detector.scoring.calibration import CRITICAL_SCORE, WARNING_SCORE
from detector.scoring.count_profile import CountProfile
from detector.scoring.scorer import EventScores, Scorer
from detector.sessions_file import ANOMALOUS
from detector.training.train import Size, Trained, TrainingOptions, TrainingSessions, train

PRODUCT = "logmamba"
SEVERITIES = {"warning": WARNING_SCORE, "critical": CRITICAL_SCORE}


class Outcome(NamedTuple):
    """What a detector says after it learnt.

    Attributes:
        validation, test: scores of the parts, (n,), higher for more anomalous sessions.
        fixed: the detector's own thresholds, by name.
        early: of the test part by severity; empty for a detector without early scores.
    """

    validation: Floats
    test: Floats
    fixed: Mapping[str, float]
    early: Mapping[str, Early]


class Detector(Protocol):
    """Learns from the training part, may look at the validation part, scores both others."""

    @property
    def name(self) -> str:
        """For files and tables: lower case and hyphens."""

    @property
    def device(self) -> str:
        """What it computes on, as for the scorer."""

    def fits(self, *, labelled: bool) -> bool:
        """Whether it is of use where labels may (not) be learnt from."""

    def run(self, task: Task, seed: int) -> Outcome:
        """Learn and score."""


@dataclass(frozen=True)
class OnCounts:
    """A baseline on event counts."""

    name: str
    make: Callable[[int], Baseline]
    device: str = "cpu"

    def fits(self, *, labelled: bool) -> bool:
        """Where labels may be learnt from, what learns from them; elsewhere, what does not."""
        return self.make(0).uses_labels == labelled

    def run(self, task: Task, seed: int) -> Outcome:
        """Sessions weigh as at natural prevalence."""
        size = len(task.vocabulary)
        training, validation, test = (
            count_vectors(part.tokens, size) for part in (task.training, task.validation, task.test)
        )
        baseline = self.make(seed).fit(training, task.training.anomalous, task.training.weights)
        fixed = {"fixed": baseline.threshold}
        return Outcome(baseline.score(validation), baseline.score(test), fixed, early={})


@dataclass(frozen=True)
class Product:
    """logmamba itself, from training to a checkpoint to the worker's scorer."""

    size: Size
    device: str
    options: TrainingOptions = field(default_factory=TrainingOptions)

    @property
    def name(self) -> str:
        """With the size of the model."""
        return f"{PRODUCT}-{self.size}"

    def fits(self, *, labelled: bool) -> bool:
        """Everywhere."""
        del labelled
        return True

    def run(self, task: Task, seed: int) -> Outcome:
        """Thresholds are those of the worker's severities.

        A checkpoint's count profile knows the validation sessions too, so these are scored with that of the training
        part: a threshold has to come from sessions that are as new as the test's.
        """
        training = training_sessions(task.training)
        trained = train(
            training,
            task.vocabulary,
            size=self.size,
            seed=seed,
            device=self.device,
            options=self.options,
            validation=training_sessions(task.validation),
        )
        normal = training.select(training.labels != ANOMALOUS)
        held_out = replace(trained, profile=CountProfile.fit(normal.sequences, normal.counts))
        validation, test = self._scores(held_out, task.validation), self._scores(trained, task.test)
        early = {name: early_detection(task.test, test, threshold) for name, threshold in SEVERITIES.items()}
        return Outcome(finals(validation), finals(test), SEVERITIES, early)

    def _scores(self, trained: Trained, part: Part) -> list[EventScores]:
        """Through a checkpoint, as the worker does."""
        with tempfile.TemporaryDirectory() as folder:
            trained.save(Path(folder) / "checkpoint")
            return Scorer.load(Path(folder) / "checkpoint", device=self.device).score(part.sequences)


def detectors(size: Size, device: str) -> dict[str, Detector]:
    """All of them, by the name they are asked for."""
    found: dict[str, Detector] = {PRODUCT: Product(size, device)}
    for title, make in BASELINES.items():
        name = title.replace(" ", "-")
        found[name] = OnCounts(name, make)
    return found


def training_sessions(part: Part) -> TrainingSessions:
    """The same sessions, for a training."""
    return TrainingSessions.of(part.tokens, part.anomalous.astype(np.int8), part.counts)
