"""Where packed sequences lie, checked once and shared by every call on the same batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Tokens a program works through one chunk after the other; longer sequences are cut into segments of this many, which
# run at the same time. A cut at a multiple of it changes no bit of the results.
SEGMENT = 128
# The same of the reference: a whole number of its chunks. Shorter, so that what carries states has less to repeat; on a
# CPU no time is won by more at once.
REFERENCE_SEGMENT = 32


@dataclass(frozen=True)
class Packing:
    """Packed sequences cut into segments of at most `SEGMENT` tokens.

    Attributes:
        cu_seqlens: int32 (n + 1,), where each sequence starts and, last, T.
        n_tokens: T.
        segments: int32 (m, 4), of each segment its first token, its tokens, its index within its sequence, and its
            number among the segments of long sequences, -1 for others. Long sequences are those of more than one
            segment. A sequence's segments follow each other, an empty sequence has none.
        first_segments: int32 (n + 1,), which segment each sequence starts with and, last, m.
        longest_first: int32 (m,), the segments, those of long sequences first and then those with most tokens.
        tokens: int64 (m,) on the CPU, tokens of the segments in that order, `SEGMENT` + 1 for those of long sequences.
        long_segments: int32, the segments of long sequences.
        long_sequences: int32, the long sequences.

    The last four are None where a table is filled anew for every batch, of sequences that are not long; programs then
    look for themselves.
    """

    cu_seqlens: Tensor
    n_tokens: int
    segments: Tensor
    first_segments: Tensor
    longest_first: Tensor | None = None
    tokens: Tensor | None = None
    long_segments: Tensor | None = None
    long_sequences: Tensor | None = None

    @classmethod
    def of(cls, cu_seqlens: Tensor, device: torch.device | None = None) -> "Packing":
        """Check and cut sequences; one transfer where `cu_seqlens` is not on the CPU.

        Args:
            cu_seqlens: int32 (n + 1,), from 0, never decreasing.
            device: where the tables go, by default where `cu_seqlens` is.

        Raises:
            ValueError: cu_seqlens has another dtype or shape, decreases or does not begin with 0.
        """
        if cu_seqlens.dim() != 1 or cu_seqlens.numel() == 0 or cu_seqlens.dtype != torch.int32:
            raise ValueError(
                f"cu_seqlens is {cu_seqlens.dtype} of shape {tuple(cu_seqlens.shape)}; it must be int32 of shape "
                "(n + 1,)"
            )
        bounds = cu_seqlens.cpu().long()
        lengths = bounds.diff()
        if lengths.numel() and int(lengths.min()) < 0:
            i = int(torch.nonzero(lengths < 0)[0])
            before, after = bounds[i : i + 2].tolist()
            raise ValueError(f"cu_seqlens decreases from {before} to {after} at index {i + 1}")
        if int(bounds[0]) != 0:
            raise ValueError(f"cu_seqlens goes from {int(bounds[0])} to {int(bounds[-1])}; it must start at 0")

        per_sequence = (lengths + SEGMENT - 1) // SEGMENT
        sequences = torch.repeat_interleave(per_sequence)
        first = torch.zeros(len(bounds), dtype=torch.long)
        torch.cumsum(per_sequence, 0, out=first[1:])
        index = torch.arange(len(sequences)) - first[sequences]
        starts = bounds[sequences] + index * SEGMENT
        tokens = (bounds[sequences + 1] - starts).clamp(max=SEGMENT)
        is_long = per_sequence[sequences] > 1
        number = torch.where(is_long, is_long.cumsum(0) - 1, -1)
        descending, longest_first = torch.sort(tokens.masked_fill(is_long, SEGMENT + 1), descending=True, stable=True)
        target = cu_seqlens.device if device is None else device

        def on_device(table: Tensor) -> Tensor:
            # Not waiting for what the device has yet to do; the driver has read a table before it is gone.
            return table.int().to(target, non_blocking=True)

        return cls(
            cu_seqlens=on_device(bounds),
            n_tokens=int(bounds[-1]),
            segments=on_device(torch.stack((starts, tokens, index, number), 1)),
            first_segments=on_device(first),
            longest_first=on_device(longest_first),
            tokens=descending,
            long_segments=on_device(is_long.nonzero().squeeze(1)),
            long_sequences=on_device((per_sequence > 1).nonzero().squeeze(1)),
        )

    @property
    def n_sequences(self) -> int:
        """n."""
        return self.cu_seqlens.numel() - 1

    @property
    def n_long(self) -> int:
        """Segments of long sequences."""
        return 0 if self.long_segments is None else len(self.long_segments)

    def longer_than(self, tokens: int) -> int:
        """How many segments have more tokens or are of a long sequence: the first of `longest_first`, or all."""
        if self.tokens is None:
            return self.segments.shape[0]
        return int((self.tokens > tokens).sum())
