"""The detectors: the product as `logmamba train` and the worker run it, and `detector.quality.baselines`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from benchmarks.accuracy import protocols
from benchmarks.accuracy.early import Early, early_detection, finals
from benchmarks.accuracy.tasks import Floats, Part, Task
from benchmarks.accuracy.unsupervised import Invariants, Pca
from detector.quality.baselines import BASELINES, Baseline, count_vectors
from detector.scoring.calibration import CRITICAL_SCORE, WARNING_SCORE
from detector.scoring.count_profile import CountProfile
from detector.scoring.count_vectors import CountVectors
from detector.scoring.evidence import MAX_LEVEL
from detector.scoring.families import Verdict
from detector.scoring.judge import Judge, scores
from detector.scoring.scorer import Scorer
from detector.scoring.scores import Scores
from detector.training.set_aside import SetAside, set_aside
from detector.training.train import Size, Trained, TrainingOptions, TrainingSessions, train

PRODUCT = "logmamba"
VERDICTS = 20
SEVERITIES = {"warning": WARNING_SCORE, "critical": CRITICAL_SCORE}


class Outcome(NamedTuple):
    """What a detector says after it learnt.

    Attributes:
        validation, test: scores of the parts, (n,), higher for more anomalous sessions.
        fixed: the detector's own thresholds, by name.
        early: of the test part by severity; empty for a detector without early scores.
        headline: the threshold to show where sessions came as they were.
        notes: what else is worth knowing.
    """

    validation: Floats
    test: Floats
    fixed: Mapping[str, float]
    early: Mapping[str, Early]
    headline: str = "fixed"
    notes: Mapping[str, Any] = {}


class Detector(Protocol):
    """Learns from the training part, may look at the validation part, scores both others."""

    @property
    def name(self) -> str:
        """For files and tables: lower case and hyphens."""

    @property
    def device(self) -> str:
        """What it computes on, as for the scorer."""

    def fits(self, protocol: protocols.Protocol) -> bool:
        """Whether it is of use there."""

    def run(self, task: Task, seed: int) -> Outcome:
        """Learn and score."""


@dataclass(frozen=True)
class OnCounts:
    """A baseline on event counts."""

    name: str
    make: Callable[[int], Baseline]
    device: str = "cpu"
    as_they_come: bool = False

    def fits(self, protocol: protocols.Protocol) -> bool:
        """Where labels may be learnt from, what learns from them; elsewhere, what does not.

        What is made for sessions as they come is of no other use.
        """
        return self.make(0).uses_labels == protocol.labelled and (protocol.as_they_come or not self.as_they_come)

    def run(self, task: Task, seed: int) -> Outcome:
        """Sessions weigh as at natural prevalence."""
        size = len(task.vocabulary)
        training, validation, test = (
            count_vectors(part.tokens, size) for part in (task.training, task.validation, task.test)
        )
        known = task.training.anomalous & (not task.as_they_come)
        baseline = self.make(seed).fit(training, known, task.training.weights)
        fixed = {"fixed": baseline.threshold}
        return Outcome(baseline.score(validation), baseline.score(test), fixed, early={})


@dataclass(frozen=True)
class Product:
    """logmamba itself, from training to a checkpoint to the worker's scorer."""

    size: Size
    device: str
    options: TrainingOptions = field(default_factory=TrainingOptions)
    verdicts: int = 0

    @property
    def name(self) -> str:
        """With the size of the model."""
        return f"{PRODUCT}-{self.size}" + (f"-{self.verdicts}-verdicts" if self.verdicts else "")

    def fits(self, protocol: protocols.Protocol) -> bool:
        """Everywhere, but with verdicts only where there is something to judge."""
        return not self.verdicts or protocol.as_they_come

    def run(self, task: Task, seed: int) -> Outcome:
        """Thresholds are those of the worker's severities.

        A checkpoint's count profile knows the validation sessions too, so these are scored with that of the training
        part: a threshold has to come from sessions that are as new as the test's.
        """
        training = training_sessions(task.training)
        trained = _trained(task, self.size, seed, self.device, self.options)
        if task.as_they_come:
            return self._as_they_come(task, trained)
        usual = training.usual()
        held_out = replace(trained, profile=CountProfile.fit(usual.sequences, usual.counts, trained.profile.bounds))
        validation, test = self._scores(held_out, task.validation), self._scores(trained, task.test)
        early = {name: early_detection(task.test, test, threshold) for name, threshold in SEVERITIES.items()}
        return Outcome(finals(validation), finals(test), SEVERITIES, early)

    def _as_they_come(self, task: Task, trained: Trained) -> Outcome:
        assert trained.set_aside is not None
        judge = _with_verdicts(task, trained.set_aside.judge, self.verdicts)
        judged = replace(trained, set_aside=replace(trained.set_aside, judge=judge))
        test = self._scores(judged, task.test)
        early = {name: early_detection(task.test, test, threshold) for name, threshold in SEVERITIES.items()}
        return _outcome(task, trained.set_aside, finals(test), self.verdicts)._replace(early=early)

    def _scores(self, trained: Trained, part: Part) -> Scores:
        """Through a checkpoint, as the worker does."""
        with tempfile.TemporaryDirectory() as folder:
            trained.save(Path(folder) / "checkpoint")
            return Scorer.load(Path(folder) / "checkpoint", device=self.device).score(part.sequences)


@dataclass(frozen=True)
class TolerancesAlone:
    """Which sessions the product warns of, without its model: the evidence ranks."""

    verdicts: int = 0
    device: str = "cpu"

    @property
    def name(self) -> str:
        """With how many verdicts."""
        return "tolerances" + (f"-{self.verdicts}-verdicts" if self.verdicts else "")

    def fits(self, protocol: protocols.Protocol) -> bool:
        """Where sessions come as they are."""
        return protocol.as_they_come

    def run(self, task: Task, seed: int) -> Outcome:
        """The seed decides nothing."""
        del seed
        parts = (training_sessions(part, as_they_come=True).distinct() for part in (task.training, task.validation))
        found = set_aside(task.vocabulary, *parts)
        judge = _with_verdicts(task, found.judge, self.verdicts)
        evidence = judge.tolerances.judge(CountVectors.of_sequences(task.test.tokens)).evidence
        standings, broken = judge.standings(CountVectors.of_sequences(task.test.tokens))
        return _outcome(task, found, scores(np.minimum(evidence, MAX_LEVEL), standings, broken), self.verdicts)


def _with_verdicts(task: Task, judge: Judge, number: int) -> Judge:
    """With verdicts on the largest families: anomalous where the label of any of its examples says so."""
    parts = (task.training, task.validation)
    truth = {key: bool(label) for part in parts for key, label in zip(part.keys, part.anomalous, strict=True)}
    families = judge.families
    for each in judge.families.all[:number]:
        verdict: Verdict = "anomalous" if any(truth[example.key] for example in each.examples) else "normal"
        families = families.judged(each.name, verdict, "2026-01-01")
    return Judge(judge.tolerances, families)


def _outcome(task: Task, found: SetAside, test: Floats, verdicts: int) -> Outcome:
    """Of the scores of the test part, with what else is worth knowing of what was set aside."""
    normal = ~task.test.anomalous
    notes = {
        "families": len(found.judge.families.all),
        "accepted": sum(each.accepted for each in found.judge.families.all),
        "set_aside": found.set_aside,
        "unseen_share_promised": found.unseen_share,
        "normals_at": {
            name: float(np.average(test[normal] >= at, weights=task.test.weights[normal]))
            for name, at in SEVERITIES.items()
        },
    }
    headline = "critical" if verdicts else "warning"
    return Outcome(np.zeros(len(task.validation)), test, SEVERITIES, {}, headline, notes)


def detectors(size: Size, device: str) -> dict[str, Detector]:
    """All of them, by the name they are asked for."""
    found: dict[str, Detector] = {
        PRODUCT: Product(size, device),
        f"{PRODUCT}-{VERDICTS}-verdicts": Product(size, device, verdicts=VERDICTS),
        "tolerances": TolerancesAlone(),
        f"tolerances-{VERDICTS}-verdicts": TolerancesAlone(VERDICTS),
    }
    for title, make in BASELINES.items():
        name = title.replace(" ", "-")
        found[name] = OnCounts(name, make)
    for k in (2, 3, 5, 8):
        found[f"pca-{k}"] = OnCounts(f"pca-{k}", lambda _seed, k=k: Pca(k), as_they_come=True)  # type: ignore[misc]
    found["invariants"] = OnCounts("invariants", lambda _seed: Invariants(), as_they_come=True)
    return found


def training_sessions(part: Part, *, as_they_come: bool = False) -> TrainingSessions:
    """The same sessions, for a training; as they come without their labels."""
    labels = None if as_they_come else part.anomalous.astype(np.int8)
    return TrainingSessions.of(part.tokens, labels, part.counts, part.keys)


@lru_cache(maxsize=1)
def _trained(task: Task, size: Size, seed: int, device: str, options: TrainingOptions) -> Trained:
    """What one training gave serves with verdicts and without."""
    training, validation = (
        training_sessions(part, as_they_come=task.as_they_come) for part in (task.training, task.validation)
    )
    return train(training, task.vocabulary, size=size, seed=seed, device=device, options=options, validation=validation)
