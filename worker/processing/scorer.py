"""What scores event sequences, as the pipeline sees it, and the detector's, made from the settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from detector.errors import CheckpointError, DeviceError
from detector.reading import ReadingRecord
from detector.text.vocabulary import Vocabulary
from worker.errors import RunError, SettingsError
from worker.settings.document import Settings

if TYPE_CHECKING:
    from detector.scoring import scorer as detector_scorer


class EventScores(Protocol):
    """Scores of one event sequence (`detector.scoring.scorer.EventScores`)."""

    @property
    def surprises(self) -> npt.NDArray[np.float32]:
        """(n,) negative log-likelihood in nats of each event given those before it."""

    @property
    def scores(self) -> npt.NDArray[np.float32]:
        """(n,) calibrated score in [0, 1] of the events so far."""

    @property
    def final(self) -> float:
        """Calibrated score in [0, 1] of the complete session; NaN where it was never asked for."""


class Scorer(Protocol):
    """Scores event sequences; a pure function of the tokens and the checkpoint."""

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
    def cache_hits(self) -> int:
        """Sequences answered from memory so far."""

    @property
    def cache_misses(self) -> int:
        """Sequences the model was run on so far."""

    @property
    def batches_split(self) -> int:
        """Batches that did not fit the device's memory so far, and were split."""

    def score(
        self,
        sequences: Sequence[bytes],
        unfinished: Sequence[bytes] = (),
        after_pass: Callable[[], None] = lambda: None,
    ) -> Sequence[EventScores]:
        """Scores of sequences of int64 tokens in native byte order: complete sessions, then some that go on.

        Args:
            sequences: to score.
            unfinished: their final scores need not be worked out.
            after_pass: called after each forward pass of the model. What it raises ends the call.
        """


def load_scorer(settings: Settings) -> detector_scorer.Scorer:
    """Load the checkpoint of the settings onto their device.

    Raises:
        SettingsError: the settings name no checkpoint.
        RunError: naming the setting, when the checkpoint is refused or the device is not there.
    """
    model = settings.model
    if model.checkpoint is None:
        raise SettingsError(["model.checkpoint: is missing; allowed: the directory that `logmamba train` wrote"])
    # PyTorch takes seconds to import; only what scores waits for it.
    from detector.scoring.scorer import Scorer as DetectorScorer

    try:
        return DetectorScorer.load(
            model.checkpoint,
            device=model.device,
            precision=model.precision,
            kernels=model.kernels,
            batch_tokens=model.batch_tokens,
            cache_size=model.score_cache,
        )
    except CheckpointError as error:
        raise RunError(f"model.checkpoint: {error}") from error
    except DeviceError as error:
        raise RunError(f"model: {error}") from error
