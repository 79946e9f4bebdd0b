"""Where the tokens of packed sequences lie once every sequence is cut into chunks of one fixed length."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Chunks:
    """The chunks of packed sequences, ordered by their index within their sequence (all first chunks come first).

    With c chunks of `length` slots, slot s of chunk i has the number i * length + s. The order makes the chunks that
    have a predecessor, a predecessor's predecessor and so on plain slices at the end.

    Attributes:
        length: slots in a chunk.
        count: c.
        tokens: (c * length,) packed token in each slot; a slot past its sequence's end repeats the chunk's first token.
        filled: (c, length) whether a slot holds a token.
        slots: (T,) slot of each packed token.
        sequences: (c,) sequence of each chunk.
        previous: (c,) chunk before each chunk in its sequence; 0 for a first chunk, where it means nothing.
        from_index: from_index[k] is the number of chunks whose index is less than k, for k = 0 .. the longest
            sequence's number of chunks; so `chunk[from_index[k]:]` are those with at least k predecessors.
    """

    length: int
    count: int
    tokens: Tensor
    filled: Tensor
    slots: Tensor
    sequences: Tensor
    previous: Tensor
    from_index: tuple[int, ...]

    @classmethod
    def of(cls, cu_seqlens: Tensor, length: int) -> "Chunks":
        """Cuts the sequences [cu_seqlens[i], cu_seqlens[i + 1]) into chunks; the last of each may be part empty."""
        device = cu_seqlens.device
        starts = cu_seqlens[:-1].long()
        lengths = cu_seqlens[1:].long() - starts
        per_sequence = (lengths + length - 1) // length
        sequences = torch.repeat_interleave(per_sequence)
        count = sequences.numel()
        first = per_sequence.cumsum(0) - per_sequence
        index = torch.arange(count, device=device) - first[sequences]
        order = torch.argsort(index, stable=True)
        place = torch.empty_like(order)
        place[order] = torch.arange(count, device=device)

        sequences, index = sequences[order], index[order]
        previous = place[(order - 1).clamp(min=0)].masked_fill(index == 0, 0)
        offsets = index[:, None] * length + torch.arange(length, device=device)
        filled = offsets < lengths[sequences, None]
        tokens = starts[sequences, None] + torch.where(filled, offsets, offsets[:, :1])
        numbers = torch.arange(count * length, device=device).view(count, length)
        slots = torch.empty(int(cu_seqlens[-1]), dtype=torch.long, device=device)
        slots[tokens[filled]] = numbers[filled]
        from_index = (0, *torch.bincount(index).cumsum(0).tolist())
        return cls(length, count, tokens.flatten(), filled, slots, sequences, previous, from_index)

    @property
    def n_first(self) -> int:
        """Number of chunks without a predecessor, which is the number of sequences with at least one token."""
        return self.from_index[1] if len(self.from_index) > 1 else 0

    def gather(self, packed: Tensor) -> Tensor:
        """(T, ...) to (c, length, ...)."""
        return packed.index_select(0, self.tokens).view(self.count, self.length, *packed.shape[1:])

    def scan(self, state: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
        """Runs state[i] += decay[i] * state[previous[i]] along every sequence, in log2(most chunks) steps.

        What a chunk gets depends on its own sequence and its index there only, bit for bit: the sums are associated by
        the chunk's index, and a step leaves every chunk alone that has too few predecessors.

        Args:
            state: (c, ...) what each chunk adds.
            decay: (c, ...) factor from the chunk before, broadcastable to `state`.

        Returns:
            The states, and of each chunk the product of the factors from its sequence's first chunk on.
        """
        previous, reach = self.previous, 1
        while reach < len(self.from_index) - 1:
            m = self.from_index[reach]
            before = previous[m:]
            (head, tail), (decay_head, decay_tail) = (torch.split(t, [m, self.count - m]) for t in (state, decay))
            state = torch.cat((head, tail + decay_tail * state.index_select(0, before)))
            decay = torch.cat((decay_head, decay_tail * decay.index_select(0, before)))
            previous = previous[previous]
            reach *= 2
        return state, decay
