"""What the model expected instead of each event of a session, and instead of its end."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from detector.errors import DeviceError
from detector.model.inference import Backend, log_probabilities, pack
from detector.model.model import DetectorModel
from detector.text.vocabulary import BOS

# Rows of logits that are ranked at a time: bounds the memory for large vocabularies.
_RANKED_LOGITS = 1 << 22


class Explanation(NamedTuple):
    """One session of n events; row n of the arrays of n + 1 rows is its end.

    Attributes:
        surprises: nats of each event, as in `EventScores`, and of the end, float32 (n + 1,).
        scores: calibrated score in [0, 1] of events 0 to i, the session going on, float32 (n,).
        final: calibrated score of the session complete with its n events.
        expected: the tokens that were the likeliest given the events before, the likeliest first: templates,
            UNK and, for the session's end, EOS; int64 (n + 1, k).
        probabilities: of each of these, float32 (n + 1, k).
        unusual_counts: by token, the nats of evidence that how often it came (or that it did not) is, beside what
            normal sessions hold; the greatest first. Empty for usual ones.
    """

    surprises: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    final: float
    expected: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]
    unusual_counts: Mapping[int, float]


class Expectations(NamedTuple):
    """What a model expects before each event of a session and before its end.

    Attributes:
        surprises, expected, probabilities: as in `Explanation`.
    """

    surprises: npt.NDArray[np.float32]
    expected: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]


@torch.inference_mode()
def expectations(model: DetectorModel, events: npt.NDArray[np.int64], k: int, backend: Backend) -> Expectations:
    """Run the model over one session, with the logits of every next token.

    Args:
        model: on its device, in the dtype it computes in.
        events: the session's tokens, (n,).
        k: how many tokens to give a row; fewer are given where the vocabulary has no more.
        backend: which kernels to use.

    Raises:
        ValueError: k is below 1.
        DeviceError: the device's memory does not hold the session.
    """
    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1")
    device = next(model.parameters()).device
    try:
        packed = pack([events], device)
        logits, _ = model(packed.tokens, packed.cu_seqlens, backend=backend)
        _, classes = packed.targets()
        rows = max(1, _RANKED_LOGITS // logits.shape[1])
        parts = [
            _ranked(part, targets, k)
            for part, targets in zip(torch.split(logits[:-1], rows), torch.split(classes, rows), strict=True)
        ]
    except torch.OutOfMemoryError as error:
        raise DeviceError(f"{device} has not enough memory for one session of {len(events)} events") from error
    surprises, expected, probabilities = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    return Expectations(surprises, expected, probabilities)


def _ranked(logits: Tensor, targets: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """(rows, vocabulary_size) logits and (rows,) classes to the columns of `Expectations`."""
    log_p = log_probabilities(logits)
    surprises = -log_p.gather(1, targets[:, None]).squeeze(1)
    log_p = log_p[:, : logits.shape[1]].clone()
    log_p[:, BOS] = -torch.inf  # nothing is followed by a beginning
    # A stable sort: of equally likely tokens the first comes first, on any device.
    ranked, tokens = log_p.sort(dim=1, descending=True, stable=True)
    k = min(k, logits.shape[1] - 1)
    return surprises, tokens[:, :k], ranked[:, :k].exp()
