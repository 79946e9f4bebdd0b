"""Sequences that go on from states in a pool, for which each segment's end is a place to carry a state from.

What is computed of a sequence's tokens is, bit for bit, what one call on the whole sequence computes: sequences are cut
where calls may be cut (`kernels.packing.SEGMENT`, of the reference `REFERENCE_SEGMENT`). So the tokens since the latest
such place come again with each call, and its whole segments are run before the rest, since the rest starts from what
they leave.
"""

from collections.abc import Callable
from typing import NamedTuple, Self

import torch
from torch import Tensor

from kernels.arguments import PER_TOKEN, Operands
from kernels.packing import Packing
from kernels.state import Mamba3State

# The operation on arguments that need no checks: operands, packing, initial state and whether the final one is wanted.
Operation = Callable[[Operands, Packing, Mamba3State, bool], tuple[Tensor, Mamba3State | None]]


class Pieces(NamedTuple):
    """Where the tokens of n sequences lie that go on: all whole segments first, then the rest of each sequence.

    Attributes:
        whole: of the a sequences with whole segments; None where there are none.
        rest: of all, counted from the first token after those; none is empty.
        slots: int64 (n,), where in the pool the state of each is.
        continued: int64 (a,), which of the n sequences those of `whole` are.
    """

    whole: Packing | None
    rest: Packing
    slots: Tensor
    continued: Tensor

    @classmethod
    def of(cls, whole: Tensor, rest: Tensor, slots: Tensor, continued: Tensor, device: torch.device) -> Self:
        """From tables on the CPU, bounds as of `Packing.of`."""
        return cls(
            Packing.of(whole, device) if continued.numel() else None,
            Packing.of(rest, device),
            slots.to(device, non_blocking=True),
            continued.to(device, non_blocking=True),
        )


def carried_on(
    operands: Operands, pieces: Pieces, pool: Mamba3State, operation: Operation
) -> tuple[Tensor, Mamba3State | None]:
    """Run the operation on sequences that go on.

    Args:
        operands: of the operation, a row a token, in the order of `pieces`.
        pieces: where the sequences lie.
        pool: float32, the states of all slots; they are read.
        operation: what runs it.

    Returns:
        (T, H, P), and the states after the whole segments, which `put_back` takes; None where there are none.
    """
    before = Mamba3State(*(part.index_select(0, pieces.slots) for part in pool))
    if pieces.whole is None:
        return operation(operands, pieces.rest, before, False)
    T = pieces.whole.n_tokens
    per_token, weights = operands[:PER_TOKEN], operands[PER_TOKEN:]
    given = Mamba3State(*(part.index_select(0, pieces.continued) for part in before))
    y, after = operation(Operands(*(t[:T] for t in per_token), *weights), pieces.whole, given, True)
    assert after is not None
    before = Mamba3State(*(s.index_copy(0, pieces.continued, t) for s, t in zip(before, after, strict=True)))
    rest, _ = operation(Operands(*(t[T:] for t in per_token), *weights), pieces.rest, before, False)
    return torch.cat((y, rest)), after


def put_back(pieces: Pieces, pool: Mamba3State, after: Mamba3State) -> None:
    """Let the sequences go on, from the next call on, from where their whole segments end."""
    slots = pieces.slots.index_select(0, pieces.continued)
    for part, state in zip(pool, after, strict=True):
        part.index_copy_(0, slots, state)
