"""Training sessions laid end to end on the device, where batches are gathered without waiting for it."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from detector.model.inference import pack
from detector.text.vocabulary import UNK
from detector.training.data import TrainingSessions


class Batch(NamedTuple):
    """Some sessions, each as BOS, events, EOS, and what the model is to say about them.

    A target is an event or an end: every token but BOS.

    Attributes:
        tokens: int64 (T,).
        cu_seqlens: int32 (n + 1,) on the CPU, where each session starts and, last, T.
        positions: int64 (T - n,), of the targets in `tokens`.
        classes: int64 (T - n,), the targets' tokens, unknown lines as UNK.
        rows: int64 (T - n,), the index among the packed sessions of the one a target belongs to.
        unknown_lines: whether a token may be an unknown line.
    """

    tokens: Tensor
    cu_seqlens: Tensor
    positions: Tensor
    classes: Tensor
    rows: Tensor
    unknown_lines: bool

    @property
    def n_sessions(self) -> int:
        """How many sessions these are: n."""
        return len(self.cu_seqlens) - 1


class PackedSessions:
    """Sessions on a device.

    Args:
        sessions: each with at least one event.
        device: of the batches.
    """

    def __init__(self, sessions: TrainingSessions, device: torch.device) -> None:
        packed = pack(sessions.sequences, device)
        self.lengths = sessions.lengths
        self._device = device
        self._tokens = packed.tokens
        self._starts = packed.cu_seqlens[:-1].long()
        self._unknown_lines = any(bool((events < 0).any()) for events in sessions.sequences)
        self._sizes = packed.cu_seqlens.diff().long()

    def batch(self, chosen: npt.NDArray[np.int64]) -> Batch:
        """The sessions at these indices, (n,), in this order."""
        n = len(chosen)
        bounds = np.zeros(n + 1, dtype=np.int32)
        np.cumsum(self.lengths[chosen] + 2, out=bounds[1:])
        size = int(bounds[-1])
        rows = torch.from_numpy(chosen).to(self._device, non_blocking=True)
        sizes = self._sizes[rows]
        # Sizes that are known here spare `repeat_interleave` from asking the device.
        session = torch.repeat_interleave(sizes, output_size=size)
        moved = self._starts[rows] - (sizes.cumsum(0) - sizes)
        tokens = self._tokens[moved[session] + torch.arange(size, device=self._device)]
        session = torch.repeat_interleave(sizes - 1, output_size=size - n)
        positions = session + 1 + torch.arange(size - n, device=self._device)
        classes = tokens[positions]
        return Batch(
            tokens=tokens,
            cu_seqlens=torch.from_numpy(bounds),
            positions=positions,
            classes=classes.masked_fill(classes < 0, UNK),
            rows=rows[session],
            unknown_lines=self._unknown_lines,
        )
