"""What scores event sequences, as the pipeline sees it, and the detector's, made from the settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from detector.errors import CheckpointError, DeviceError
from detector.quality.fingerprint import Fingerprint
from detector.reading import ReadingRecord
from detector.scoring.pace import Timed
from detector.scoring.scores import Growth, Scores, Sequences
from detector.text.vocabulary import Vocabulary
from worker.errors import RunError, SettingsError
from worker.observability.collectors import GpuUsage
from worker.settings.document import Settings

if TYPE_CHECKING:
    from detector.checkpoint import Checkpoint
    from detector.scoring import scorer as detector_scorer


class EventScores(Protocol):
    """Scores of one event sequence (`detector.scoring.scores.EventScores`)."""

    @property
    def surprises(self) -> npt.NDArray[np.float32]:
        """(n,) negative log-likelihood in nats of each event given those before it."""

    @property
    def scores(self) -> npt.NDArray[np.float32]:
        """(n,) calibrated score in [0, 1] of the events so far."""

    @property
    def final(self) -> float:
        """Calibrated score in [0, 1] of the complete session; NaN where it was never asked for."""


class Reason(Protocol):
    """Why a session stands out (`detector.scoring.reasons.Reason`)."""

    @property
    def text(self) -> str:
        """Sentences."""

    @property
    def family(self) -> str:
        """A name that `logmamba verdicts` takes an answer for."""


class Paced(Protocol):
    """A session that stands out by its pace (`detector.scoring.paced.Paced`)."""

    @property
    def score(self) -> float:
        """Below which its own cannot be."""

    @property
    def reason(self) -> Reason:
        """Why."""


class Scorer(Protocol):
    """Scores event sequences; a pure function of the tokens, of the times for `paced`, and the checkpoint."""

    @property
    def checkpoint(self) -> str:
        """Digest of the checkpoint, "sha256:…"."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Of the tokens it scores."""

    @property
    def reading(self) -> ReadingRecord | None:
        """How the sessions that the checkpoint was trained on came about; None where that is not known."""

    @property
    def trained_score_shares(self) -> Sequence[float] | None:
        """How final scores were spread in the training (`TrainingRecord.score_shares`); None where nobody knows."""

    @property
    def fingerprint(self) -> Fingerprint | None:
        """How the training's sessions were spread (`Manifest.fingerprint`); None where nobody knows."""

    @property
    def trained_sketch(self) -> Sequence[int] | None:
        """Which sessions the training had (`TrainingRecord.sketch`); None where nobody knows."""

    @property
    def expected_warnings(self) -> float | None:
        """Share of later normal sessions that the training expects to be warnings; None where it does not say."""

    @property
    def cache_hits(self) -> int:
        """Sequences answered from memory so far."""

    @property
    def cache_misses(self) -> int:
        """Sequences the model was run on so far."""

    @property
    def batches_split(self) -> int:
        """Batches that did not fit the device's memory so far, and were split."""

    def score_columns(
        self,
        sequences: Sequences,
        complete: int,
        after_pass: Callable[[], None] = lambda: None,
        numbers: npt.NDArray[np.int64] | None = None,
    ) -> Scores:
        """Scores of event sequences in the order given.

        Args:
            sequences: to score.
            complete: how many, from the first on, are complete; final scores of the others need not be worked out.
            after_pass: called after each forward pass of the model. What it raises ends the call.
            numbers: of the sessions, as of `Growth`; 0 for one that has none.
        """

    def known_events(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """How many events of sessions, by their numbers, `go_on` need not be given again."""

    def go_on(self, growth: Growth, after_pass: Callable[[], None] = lambda: None) -> npt.NDArray[np.float32]:
        """Early scores of the events of sessions that go on, the same bits as `score_columns` gives, (events,).

        Args:
            growth: the sessions, each from an event on that is at most `known_events`.
            after_pass: as of `score_columns`.
        """

    def reason(self, sequence: bytes) -> Reason | None:
        """Why a complete session stands out; None where it does not, or nothing can be said of it.

        Args:
            sequence: the int64 tokens of its events in native byte order.
        """

    def pattern(self, sequence: bytes) -> str | None:
        """What a complete session has in common with those that a verdict on it is also about; None for nothing.

        Args:
            sequence: the int64 tokens of its events in native byte order.
        """

    def pattern_so_far(self, sequence: bytes) -> str:
        """What is certain of the pattern of a session that goes on (`detector.scoring.session_pattern.may_become`)."""

    def paced(self, sessions: Timed) -> Mapping[int, Paced]:
        """Which of complete sessions stand out by pauses or bursts, by number; no final score of theirs is lower."""

    def gpu_usage(self) -> GpuUsage | None:
        """How the GPU is used that it scores on; None on a CPU. Only for the thread that scores."""


def load_scorer(settings: Settings) -> detector_scorer.Scorer:
    """Load the checkpoint of the settings onto their device.

    Raises:
        SettingsError: the settings name no checkpoint.
        RunError: naming the setting, when the checkpoint is refused or the device is not there.
    """
    return scorer_of(settings, read_checkpoint(settings))


def checkpoint_stamp(settings: Settings) -> object:
    """What differs from what it was once files of the checkpoint of the settings have been written or replaced."""
    from detector.checkpoint import stamp

    return None if settings.model.checkpoint is None else stamp(settings.model.checkpoint)


def checkpoint_place(settings: Settings) -> Path:
    """Where the checkpoint of the settings is.

    Raises:
        SettingsError: they name none.
    """
    if settings.model.checkpoint is None:
        raise SettingsError(["model.checkpoint: is missing; allowed: the directory that `logmamba train` wrote"])
    return settings.model.checkpoint


def read_checkpoint(settings: Settings) -> Checkpoint:
    """Read and check the checkpoint of the settings; may be called in any thread.

    Raises:
        SettingsError: the settings name no checkpoint.
        RunError: naming the setting, when the checkpoint is refused.
    """
    place = checkpoint_place(settings)
    # PyTorch takes seconds to import; only what scores waits for it.
    from detector.checkpoint import load

    try:
        return load(place)
    except CheckpointError as error:
        raise RunError(f"model.checkpoint: {error}") from error


def scorer_of(settings: Settings, checkpoint: Checkpoint) -> detector_scorer.Scorer:
    """Put a checkpoint onto the device of the settings, in the thread that scores.

    Raises:
        RunError: the device is not there, or its memory does not hold the model.
    """
    from detector.scoring.scorer import Scorer as DetectorScorer

    model = settings.model
    try:
        return DetectorScorer(
            checkpoint,
            device=model.device,
            precision=model.precision,
            kernels=model.kernels,
            batch_tokens=model.batch_tokens,
            cache_size=model.score_cache,
            growing=model.growing_sessions,
        )
    except DeviceError as error:
        raise RunError(f"model: {error}") from error
