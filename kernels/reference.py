"""Mamba-3 MIMO in plain PyTorch: chunked, vectorised over packed sequences, on any device and with autograd.

Inside a chunk, with c the running sum of adt, output i reads source j < i with the weight
exp(c_i - c_j) * (gamma_j + dt_{j+1} * (1 - lambda_{j+1})) and itself with gamma_i: the share of token j that the
trapezoid of token j + 1 takes is added to token j's own. The state handed from chunk to chunk has the same weights. It
already holds the share of its last token that the next chunk's first token takes, and is read with exp(c_i) alone.

Chunks are worked through in segments of `REFERENCE_SEGMENT` tokens, each of which starts from the state that the one
before it leaves. At these cuts the very steps are taken that carry a state from one call to the next.

On the CPU equal sequences get bit-equal results, whatever they are packed with, whatever comes after a position, and
also when they are cut in two calls at the end of a segment.
This takes three things. Every matrix product has a shape that follows from the layer's sizes alone: the number of
chunks is a batch dimension. Sums over time are associated by the position in the segment. And of the transcendental
functions only those are used that give a value the same bits wherever it lies in its tensor (exp, tanh, sin, cos: one
vector routine computes them, ends included); sigmoid, silu and softplus run other code on the last elements of a
tensor or of a thread's share of it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.arguments import Operands
from kernels.chunks import Chunks
from kernels.packing import REFERENCE_SEGMENT
from kernels.state import Mamba3State

# The scores of a chunk cost (rank * length)^2 and a sequence leaves half a chunk empty, but every chunk has a state to
# hand on. On CPUs sessions of a few dozen tokens run fastest with 8; sequences of a thousand are as fast with 8 as 16.
_CHUNK_LENGTH = 8

# exp of more is infinite in float32, and its gradient not a number; 1 / (1 + exp(80)) is as good as 0.
_LARGEST_EXPONENT = 80.0


def mamba3_mimo_reference(
    operands: Operands,
    cu_seqlens: Tensor,
    initial_state: Mamba3State | None = None,
    return_final_state: bool = False,
) -> tuple[Tensor, Mamba3State | None]:
    """The operation of `kernels.mamba3_mimo`, whose checks its arguments have passed."""
    out_dtype = operands.x.dtype
    dtype = torch.float64 if out_dtype == torch.float64 else torch.float32
    C, B, x, z, adt, dt, trap, angles, C_bias, B_bias, mimo_x, mimo_z, mimo_o, D = (t.to(dtype) for t in operands)
    if initial_state is not None:
        initial_state = Mamba3State(*(t.to(dtype) for t in initial_state))

    segments = _Segments.of(cu_seqlens)
    chunks = Chunks.of(segments.bounds, _CHUNK_LENGTH)
    initial = None
    if initial_state is not None:
        initial = Mamba3State(*(t.index_select(0, segments.opened) for t in initial_state))
    last = segments.last_slots(chunks)
    weights = _Weights.of(chunks, adt, dt, trap, segments)
    theta = _rotations(chunks, segments, last, angles, weights.dt, None if initial is None else initial.angle)
    cos, sin = theta.cos(), theta.sin()
    q = _rotated(chunks.gather(C), C_bias, cos, sin)
    k = _rotated(chunks.gather(B), B_bias, cos, sin)
    x = chunks.gather(x).transpose(1, 2).contiguous()  # (c, H, L, P)
    v = x.unsqueeze(2) * _per_slot(mimo_x)  # (c, H, R, L, P)

    y = torch.matmul(_scores(q, k, weights, D), v.flatten(2, 3)).view_as(v)
    state = None
    if chunks.count > segments.opened.numel() or initial is not None or return_final_state:
        state, entering, readers = _states(chunks, segments, last, k, x, v, weights, initial, mimo_x)
        reading = q[readers] * torch.exp(weights.decay[readers])[:, :, None, None]
        read = torch.matmul(reading.flatten(3).mT, entering)
        if isinstance(readers, slice):
            y[readers] += read.view_as(y[readers])
        else:
            y = y.index_add(0, readers, read.view(-1, *y.shape[1:]))
    out = _gated(y, chunks.gather(z).transpose(1, 2).contiguous(), mimo_z, mimo_o)
    out = out.transpose(1, 2).flatten(0, 1).index_select(0, chunks.slots).to(out_dtype)
    if not return_final_state:
        return out, None

    assert state is not None
    chunk, slot = (place.index_select(0, segments.closing) for place in last)
    reached = Mamba3State(
        angle=torch.remainder(theta[chunk, :, :, slot], 2 * math.pi),
        ssm=state[chunk].mT,
        k=k[chunk, ..., slot].mT,
        x=x[chunk, :, slot],
    )
    if initial_state is None:
        n = cu_seqlens.numel() - 1
        start = Mamba3State(*(t.new_zeros(n, *t.shape[1:]) for t in reached))
    else:
        start = initial_state._replace(angle=torch.remainder(initial_state.angle, 2 * math.pi))
    final = (s.index_copy(0, segments.opened, t) for s, t in zip(start, reached, strict=True))
    return out, Mamba3State(*final)


@dataclass(frozen=True)
class _Segments:
    """The segments of packed sequences, m of them, one sequence's after the other's.

    Attributes:
        bounds: int32 (m + 1,), where each starts and, last, T.
        levels: of each index within a sequence from 0 on, the segments that have it.
        opened: the sequences that have tokens, in their order: those of the segments of the first level.
        closing: the last segment of each of these.
    """

    bounds: Tensor
    levels: tuple[Tensor, ...]
    opened: Tensor
    closing: Tensor

    @classmethod
    def of(cls, cu_seqlens: Tensor) -> "_Segments":
        lengths = cu_seqlens.diff().long()
        per_sequence = (lengths + REFERENCE_SEGMENT - 1) // REFERENCE_SEGMENT
        opened = per_sequence.nonzero().squeeze(1)
        per_sequence = per_sequence[opened]
        ends = per_sequence.cumsum(0)
        sequences = torch.repeat_interleave(per_sequence)
        index = torch.arange(sequences.numel(), device=lengths.device) - (ends - per_sequence)[sequences]
        starts = cu_seqlens[opened].index_select(0, sequences) + index * REFERENCE_SEGMENT
        most = int(per_sequence.max()) if opened.numel() else 1
        return cls(
            bounds=torch.cat((starts.int(), cu_seqlens[-1:])),
            levels=tuple((index == level).nonzero().squeeze(1) for level in range(most)),
            opened=opened,
            closing=ends - 1,
        )

    def last_slots(self, chunks: Chunks) -> tuple[Tensor, Tensor]:
        """The chunk, and the place in it, of the last token of each segment, each (m,)."""
        slots = chunks.slots.index_select(0, self.bounds[1:].long() - 1)
        return slots // chunks.length, slots % chunks.length

    def carried(self, first: Tensor, following: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """What each segment starts with, (m, ...).

        Args:
            first: what those of the first level do, (sequences, ...).
            following: makes of what some segments start with, and their numbers, what those after them start with.
        """
        found, segments = [first], self.levels[0]
        for level in self.levels[1:]:
            going_on = torch.isin(segments, level - 1, assume_unique=True)
            found.append(following(found[-1][going_on], level - 1))
            segments = level
        if len(found) == 1:
            return first
        order = torch.argsort(torch.cat(self.levels))
        return torch.cat(found).index_select(0, order)


@dataclass(frozen=True)
class _Weights:
    """What the heads weigh the tokens in the slots with, each (c, H, L), zero where a slot is empty.

    Attributes:
        dt: steps.
        decay: sum of adt over the chunk up to and with the slot.
        gamma: a token's weight in its own update.
        source: its weight in all that comes later, before decay.
        opening: weight in its update of the token before it.
    """

    dt: Tensor
    decay: Tensor
    gamma: Tensor
    source: Tensor
    opening: Tensor

    @classmethod
    def of(cls, chunks: Chunks, adt: Tensor, dt: Tensor, trap: Tensor, segments: _Segments) -> "_Weights":
        """From the packed (T, H) arguments."""
        H = dt.shape[1]
        share = 1 / (1 + torch.exp((-trap).clamp(max=_LARGEST_EXPONENT)))
        opening = dt * (1 - share)
        has_next = torch.ones(dt.shape[0], 1, dtype=torch.bool, device=dt.device)
        has_next[segments.bounds[1:].long() - 1] = False
        source = dt * share + torch.where(has_next, opening.roll(-1, 0), 0)
        per_slot = chunks.gather(torch.cat((adt, dt, dt * share, source, opening), 1))
        # Zeros after a segment's end keep its state and rotation as its last token left them.
        per_slot = torch.where(chunks.filled.unsqueeze(-1), per_slot, 0).transpose(1, 2).contiguous()
        adt, dt, gamma, source, opening = torch.split(per_slot, H, 1)
        return cls(dt, adt.cumsum(-1), gamma, source, opening)


def _rotations(
    chunks: Chunks,
    segments: _Segments,
    last: tuple[Tensor, Tensor],
    angles: Tensor,
    dt: Tensor,
    initial: Tensor | None,
) -> Tensor:
    """Rotations (c, H, S, L) from packed angles (T, S), steps (c, H, L) and initial rotations (sequences, H, S)."""
    rates = torch.tanh(chunks.gather(angles)).transpose(1, 2).contiguous()
    half_turns = (rates.unsqueeze(1) * dt.unsqueeze(2)).cumsum(-1)
    n = chunks.n_first
    if chunks.count == segments.opened.numel() and initial is None:
        return math.pi * half_turns
    # Across chunks in float64, one number a chunk and angle: a long sequence makes many turns.
    totals = half_turns[..., -1].double()
    totals, _ = chunks.scan(totals, torch.ones_like(totals[:, :1, :1]))
    before = torch.cat((torch.zeros_like(totals[:n]), totals.index_select(0, chunks.previous[n:])))
    chunk, slot = last
    own, own_before = half_turns[chunk, ..., slot], before.index_select(0, chunk)

    def following(start: Tensor, numbers: Tensor) -> Tensor:
        rest = torch.remainder(start.double() / math.pi + own_before[numbers], 2).to(own.dtype)
        return torch.remainder(math.pi * (own[numbers] + rest), 2 * math.pi)

    first = torch.zeros_like(half_turns[: segments.opened.numel(), ..., 0]) if initial is None else initial
    starts = segments.carried(first, following).double() / math.pi
    before = starts.index_select(0, chunks.sequences) + before
    return math.pi * (half_turns + torch.remainder(before, 2).to(half_turns.dtype).unsqueeze(-1))


def _rotated(projection: Tensor, bias: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Adds the bias of head and rank and turns the pairs (i, i + N / 2): (c, L, R, N) to (c, H, N, R, L).

    Slots come last, so that a head's rotations run over long contiguous rows however few angles there are.
    """
    c, L, R, N = projection.shape
    H, S = cos.shape[1:3]
    columns = projection.permute(0, 3, 2, 1).contiguous().unsqueeze(1)  # (c, 1, N, R, L)
    turned = columns + bias.mT.unsqueeze(-1).expand(H, N, R, L).contiguous()
    cos, sin = (t.unsqueeze(3).expand(c, H, S, R, L).contiguous() for t in (cos, sin))
    first, between, second, rest = torch.split(turned, [S, N // 2 - S, S, N // 2 - S], 2)
    return torch.cat((first * cos - second * sin, between, first * sin + second * cos, rest), 2)


def _scores(q: Tensor, k: Tensor, weights: _Weights, D: Tensor) -> Tensor:
    """How outputs read the values of their own chunk, (c, H, R * L, R * L), D included."""
    c, H, _, R, L = q.shape
    later = torch.ones(L, L, dtype=torch.bool, device=q.device).triu()
    reach = (weights.decay.unsqueeze(-1) - weights.decay.unsqueeze(-2)).masked_fill(later, -math.inf)
    weight = torch.exp(reach) * weights.source.unsqueeze(-2) + torch.diag_embed(weights.gamma)
    weight = weight.unsqueeze(-2).expand(c, H, L, R, L).contiguous().unsqueeze(2)
    scores = torch.matmul(q.flatten(3).mT, k.flatten(3)).view(c, H, R, L, R, L) * weight
    scores = scores.view(c, H, R * L, R * L)
    scores.diagonal(dim1=2, dim2=3).add_(D.unsqueeze(-1))
    return scores


def _states(
    chunks: Chunks,
    segments: _Segments,
    last: tuple[Tensor, Tensor],
    k: Tensor,
    x: Tensor,
    v: Tensor,
    weights: _Weights,
    initial: Mamba3State | None,
    mimo_x: Tensor,
) -> tuple[Tensor, Tensor, slice | Tensor]:
    """Each chunk's state after its last token, the states that m chunks start with, and which these are: all that have.

    Returns:
        (c, H, N, P), (m, H, N, P), and the m chunks.
    """
    n = chunks.n_first
    left = torch.exp(weights.decay[..., -1:] - weights.decay) * weights.source
    state = torch.matmul((k * left[:, :, None, None]).flatten(3), v.flatten(2, 3))
    through = torch.exp(weights.decay[..., -1])[..., None, None]
    state, through = chunks.scan(state, through)
    if initial is None and len(segments.levels) < 2:
        return state, state.index_select(0, chunks.previous[n:]), slice(n, None)

    chunk, slot = last

    def given(k_last: Tensor, x_last: Tensor, numbers: Tensor) -> Tensor:
        """What the token before these segments gives through the update of their first one."""
        opening = weights.opening[numbers, :, 0, None, None]
        return torch.matmul(k_last * opening, x_last.unsqueeze(2) * mimo_x)

    later = torch.cat((chunk.new_empty(0), *segments.levels[1:]))
    before, at = chunk[later - 1], slot[later - 1]
    given_later, place = given(k[before, ..., at], x[before, :, at], later), torch.empty_like(chunk)
    place[later] = torch.arange(later.numel(), device=k.device)

    def following(start: Tensor, numbers: Tensor) -> Tensor:
        end = chunk[numbers]
        return state[end] + through[end] * start + given_later[place[numbers + 1]]

    first = segments.levels[0]
    if initial is None:
        start = state.new_zeros(first.numel(), *state.shape[1:])
    else:
        start = initial.ssm.mT + given(initial.k.mT, initial.x, first)
    starts = segments.carried(start, following)
    # Chunks of segments that start from nothing are left as they are.
    has_start = torch.ones(n, dtype=torch.bool, device=k.device)
    has_start[first] = initial is not None
    of_chunks = has_start[chunks.sequences]
    going_on = of_chunks.nonzero().squeeze(1)
    of_going_on = chunks.sequences[going_on]
    state = state.index_add(0, going_on, through[going_on] * starts[of_going_on])
    opening = going_on[going_on < n]
    readers = torch.cat((opening, torch.arange(n, chunks.count, device=k.device)))
    entering = state.index_select(0, chunks.previous[n:])
    return state, torch.cat((starts[opening], entering)), readers


def _gated(y: Tensor, z: Tensor, mimo_z: Tensor, mimo_o: Tensor) -> Tensor:
    """Sum over the ranks of mimo_o * y * silu(z * mimo_z): (c, H, R, L, P) and (c, H, L, P) to (c, H, L, P).

    One rank at a time: the steps in between then hold a rank's share of the numbers.
    """
    out = torch.zeros_like(z)
    z_weights, o_weights = _per_slot(-mimo_z).unbind(1), _per_slot(mimo_z * mimo_o).unbind(1)
    for y_r, z_r, o_r in zip(y.unbind(2), z_weights, o_weights, strict=True):
        out = out + y_r * (z * o_r / (1 + torch.exp((z * z_r).clamp(max=_LARGEST_EXPONENT))))
    return out


def _per_slot(weights: Tensor) -> Tensor:
    """(H, R, P) to (H, R, L, P), laid out in full: products with it then run over long contiguous rows."""
    return weights.unsqueeze(2).expand(-1, -1, _CHUNK_LENGTH, -1).contiguous()
