"""What follows from the steps and angles alone: decays, weights and rotations of every token, and their gradients."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import Operands
from kernels.packing import Packing
from kernels.triton import tiles
from kernels.triton.activations import tanh
from kernels.triton.rotation import INVERSE_TURN, PI, TURN_HIGH, TURN_LOW, nearest, rotation, without_turns

LOG2_E = tl.constexpr(1.4426950408889634)
SMALLEST = tl.constexpr(1e-37)


class Timeline(NamedTuple):
    """Of every token and head, with logarithms to base 2.

    Attributes:
        weights: float32 (3, T, H): the sum of adt over the token's chunk up to and with it; that sum less the logarithm
            of the token's weight in all that comes later in its segment; the logarithm of its weight in its own update.
            So token i reads token j of its chunk with the weight 2 ** (weights[0, i] - weights[1, j]).
        turned: (T, H, 2, S) in the dtype of the products: cosine and sine of the rotation since the segment's start.
        turns: float32 (m, H, S), rotation of each segment in radians.
        decay: float32 (m, H), logarithm of each segment's decay.
    """

    weights: Tensor
    turned: Tensor
    turns: Tensor
    decay: Tensor


@triton.jit
def _timeline(
    adt, dt, trap, angles, stride_adt, stride_dt, stride_trap, stride_angles, segments,
    weights, plane, turned, turns, decay,
    H: tl.constexpr, S: tl.constexpr, L: tl.constexpr, CHUNKS: tl.constexpr,
    HEADS: tl.constexpr, ANGLES: tl.constexpr,
):  # fmt: skip
    """One segment, all heads. The last come first, so that of the first, which are read first, most is in the cache."""
    EXACT: tl.constexpr = turned.dtype.element_ty == tl.float32
    segment = tl.num_programs(0) - 1 - tl.program_id(0)
    start = tl.load(segments + 4 * segment).to(tl.int64)
    length = tl.load(segments + 4 * segment + 1)
    adt += start * stride_adt
    dt += start * stride_dt
    trap += start * stride_trap
    angles += start * stride_angles
    weights += start * H
    turned += start * (H * 2 * S)
    heads, slots, turning = tl.arange(0, HEADS), tl.arange(0, CHUNKS * L), tl.arange(0, ANGLES)
    is_head, is_angle = (heads < H)[None, :], (turning < S)[None, :]
    turn = tl.zeros((HEADS, ANGLES), tl.float64 if EXACT else tl.float32)
    total = tl.zeros((HEADS,), tl.float32)
    for first in range(0, length, CHUNKS * L):
        tokens = first + slots
        mask = (tokens < length)[:, None] & is_head
        has_next = (tokens + 1 < length)[:, None] & is_head
        steps = tl.load(adt + (tokens * stride_adt)[:, None] + heads[None, :], mask, 0.0).to(tl.float32) * LOG2_E
        at_dt = dt + (tokens * stride_dt)[:, None] + heads[None, :]
        at_trap = trap + (tokens * stride_trap)[:, None] + heads[None, :]
        d = tl.load(at_dt, mask, 0.0).to(tl.float32)
        own = d * tl.sigmoid(tl.load(at_trap, mask, 0.0).to(tl.float32))
        opening = tl.load(at_dt + stride_dt, has_next, 0.0).to(tl.float32)
        opening *= tl.sigmoid(-tl.load(at_trap + stride_trap, has_next, 0.0).to(tl.float32))
        c = tl.reshape(tl.cumsum(tl.reshape(steps, (CHUNKS, L, HEADS)), 1), (CHUNKS * L, HEADS))
        at = weights + (tokens * H)[:, None] + heads[None, :]
        tl.store(at, c, mask)
        tl.store(at + plane, c - tl.log2(tl.maximum(own + opening, SMALLEST)), mask)
        tl.store(at + 2 * plane, tl.log2(tl.maximum(own, SMALLEST)), mask)
        total += tl.sum(steps, 0)

        at = angles + (tokens * stride_angles)[:, None] + turning[None, :]
        raw = tl.load(at, (tokens < length)[:, None] & is_angle, 0.0).to(tl.float32)
        by_head = d[:, :, None]
        # tanh; over thousands of tokens its last bits and those of sums add up, where bfloat16 does not hide them.
        if EXACT:
            rate = raw.to(tl.float64)
            # The compiler would compute it once a head, for it thinks that cheaper than an exchange; but not a loop.
            rounds = 1
            while rounds > 0:
                rate = tanh(rate) * PI
                rounds -= 1
        else:
            rate = (1 - 2 / (1 + tl.exp2(2 * LOG2_E * raw))) * PI
        rates = rate.to(tl.float32)[:, None, :] * by_head
        # Less whole turns, so that sums stay small.
        whole = nearest(rates * INVERSE_TURN)
        rates = rates - whole * TURN_HIGH - whole * TURN_LOW
        cos, sin = rotation(turn.to(tl.float32)[None, :, :] + tl.cumsum(rates, 0))
        if EXACT:
            turn = without_turns(turn + tl.sum(rate[:, None, :] * by_head.to(tl.float64), 0))
        else:
            turn = without_turns(turn + tl.sum(rates, 0))
        at = turned + (tokens * (H * 2 * S))[:, None, None] + (heads * (2 * S))[None, :, None] + turning[None, None, :]
        mask = mask[:, :, None] & is_angle[None, :, :]
        tl.store(at, cos.to(turned.dtype.element_ty), mask)
        tl.store(at + S, sin.to(turned.dtype.element_ty), mask)
    tl.store(decay + segment * H + heads, total, heads < H)
    at = turns + (segment * H + heads)[:, None] * S + turning[None, :]
    tl.store(at, turn.to(tl.float32), (heads < H)[:, None] & is_angle)


def timeline(
    adt: Tensor, dt: Tensor, trap: Tensor, angles: Tensor, packing: Packing, L: int, dtype: torch.dtype
) -> Timeline:
    """Of chunks of L tokens, with rotations in `dtype`."""
    T, H = dt.shape
    S = angles.shape[1]
    m = packing.segments.shape[0]
    result = Timeline(
        weights=torch.empty(3, T, H, dtype=torch.float32, device=dt.device),
        turned=torch.empty(T, H, 2, S, dtype=dtype, device=dt.device),
        turns=torch.empty(m, H, S, dtype=torch.float32, device=dt.device),
        decay=torch.empty(m, H, dtype=torch.float32, device=dt.device),
    )
    if m:
        _timeline[(m,)](
            adt, dt, trap, angles, adt.stride(0), dt.stride(0), trap.stride(0), angles.stride(0), packing.segments,
            result.weights, T * H, result.turned, result.turns, result.decay,
            H=H, S=S, L=L, **tiles.timeline(H, S, L),
        )  # fmt: skip
    return result


@triton.jit
def _shares(dt, trap, stride_dt, stride_trap, tokens, heads, mask):
    """Each token's step, and the part of it that it gives to its own update, (tokens, heads)."""
    step = tl.load(dt + tokens[:, None] * stride_dt + heads[None, :], mask, 0.0).to(tl.float32)
    return step, tl.sigmoid(tl.load(trap + tokens[:, None] * stride_trap + heads[None, :], mask, 0.0).to(tl.float32))


@triton.jit
def _own(down, at, plane, mask, R: tl.constexpr):
    """What the ranks say of a token's reading itself."""
    result = tl.load(down + at, mask, 0.0)
    for rank in tl.static_range(1, R):
        result += tl.load(down + rank * plane + at, mask, 0.0)
    return result


@triton.jit
def _timeline_backward(
    dt, trap, angles, stride_dt, stride_trap, stride_angles, segments, order, m, sequences,
    along_q, along_k, down, plane, across_q, across_k, dlater, dlater_segments, dtotal, dtotal_segments, dtotal_out,
    dopening, dend, dangle_out, dadt, ddt, dtrap, dangles, stride_dtrap, stride_dangles,
    H: tl.constexpr, R: tl.constexpr, S: tl.constexpr, L: tl.constexpr, HALF: tl.constexpr,
    HEADS: tl.constexpr, ANGLES: tl.constexpr,
    ALL: tl.constexpr, RESUMED: tl.constexpr, ORDERED: tl.constexpr,
):  # fmt: skip
    """One segment, all heads. L tokens at a time, between which there are states."""
    segment = tl.program_id(0)
    if ORDERED:
        segment = tl.load(order + segment)
    start = tl.load(segments + 4 * segment).to(tl.int64)
    length = tl.load(segments + 4 * segment + 1)
    index = tl.load(segments + 4 * segment + 2)
    heads, slots, turning = tl.arange(0, HEADS), tl.arange(0, L), tl.arange(0, ANGLES)
    is_head, is_angle = (heads < H)[None, :], (turning < S)[None, :]
    angle_mask = (heads < H)[:, None] & is_angle
    in_heads = heads[:, None] * S + turning[None, :]
    # What the tokens after a chunk say of their common rotation.
    by_end = tl.zeros((HEADS, ANGLES), tl.float32)
    opening_first = tl.zeros((HEADS,), tl.float32)
    beyond = tl.zeros((HEADS, ANGLES), tl.float32)
    total_beyond = tl.zeros((HEADS,), tl.float32)
    is_followed = False
    if ALL:
        sequence = tl.load(sequences + segment)
        by_end = tl.load(dend + sequence * (H * S) + in_heads, angle_mask, 0.0)
        opening_first = tl.load(dopening + sequence * H + heads, heads < H, 0.0)
        beyond = tl.load(dangle_out + sequence * (H * S) + in_heads, angle_mask, 0.0)
        total_beyond = tl.load(dtotal_out + sequence * H + heads, heads < H, 0.0)
    if RESUMED:
        is_followed = tl.load(segments + 4 * (segment + 1) + 2, segment + 1 < m, 0) > 0
        if is_followed:
            number = segment if ALL else tl.load(segments + 4 * segment + 3)
            beyond = tl.load(dlater_segments + (number + 1) * (H * S) + in_heads, angle_mask, 0.0) + by_end
            total_beyond = tl.load(dtotal_segments + (number + 1) * H + heads, heads < H, 0.0)
    for first in range(0, length, L):
        tokens = first + slots
        mask = (tokens < length)[:, None] & is_head
        at = (start + tokens)[:, None] * H + heads[None, :]
        inner = first + L < length
        here = start // L + first // L + 1
        following = mask & ((tokens + 1 < length) | is_followed)[:, None]
        has_previous = mask & ((tokens > 0) | (index > 0))[:, None]
        in_angles = mask[:, :, None] & is_angle[None, :, :]
        # All loads before the first exchange between threads and the first store, for which later ones would wait.
        at_theta = at[:, :, None] * S + turning[None, None, :]
        theta_q, theta_k = tl.load(across_q + at_theta, in_angles, 0.0), tl.load(across_k + at_theta, in_angles, 0.0)
        # A chunk's decay counts in the state it leaves.
        at_total = (here * H + heads)[:, None] * (2 * HALF) + tl.arange(0, 2 * HALF)[None, :]
        by_total = tl.load(dtotal + at_total, (heads < H)[:, None] & inner, 0.0)
        at_later = dlater + (here * H + heads)[:, None] * (2 * HALF) + turning[None, :]
        after = tl.load(at_later, angle_mask & inner, 0.0) + tl.load(at_later + HALF, angle_mask & inner, 0.0)
        is_read, reads = tl.load(along_k + at, mask, 0.0), tl.load(along_q + at, mask, 0.0)
        before_is_read = tl.load(along_k + at - H, has_previous, 0.0)
        own_gradient = _own(down, at, plane, mask, R)
        before_own_gradient = _own(down, at - H, plane, has_previous, R)
        d, share = _shares(dt, trap, stride_dt, stride_trap, start + tokens, heads, mask)
        d_next, share_next = _shares(dt, trap, stride_dt, stride_trap, start + tokens + 1, heads, following)
        d_before, share_before = _shares(dt, trap, stride_dt, stride_trap, start + tokens - 1, heads, has_previous)
        raw = angles + (start + tokens)[:, None] * stride_angles + turning[None, :]
        rate = tanh(tl.load(raw, (tokens < length)[:, None] & is_angle, 0.0).to(tl.float32))

        by_later = (is_read - own_gradient) / tl.maximum(d * share + d_next * (1 - share_next), SMALLEST)
        by_own = own_gradient / tl.maximum(d * share, SMALLEST) + by_later
        by_opening = before_is_read - before_own_gradient
        by_opening /= tl.maximum(d_before * share_before + d * (1 - share), SMALLEST)
        by_opening += tl.where(has_previous, 0.0, opening_first[None, :])
        after = tl.where(inner, after + by_end, beyond)
        by_turn = (after[None, :, :] + tl.cumsum(theta_q + theta_k, 0, reverse=True)) * PI
        by_rate = tl.sum(by_turn * d[:, :, None], 1)
        by_step = share * by_own + (1 - share) * by_opening + tl.sum(by_turn * rate[:, None, :], 2)
        # A token's decay counts in all it reads, less in what is read of it; in both stands its own weight.
        by_total = tl.where(inner, tl.sum(by_total, 1), total_beyond)
        last = tl.minimum(first + L, length) - 1
        by_decay = reads - is_read + tl.where((tokens == last)[:, None], by_total[None, :], 0.0)
        tl.store(dadt + at, tl.cumsum(by_decay, 0, reverse=True), mask)
        tl.store(ddt + at, by_step, mask)
        by_trap = d * share * (1 - share) * (by_own - by_opening)
        at_trap = dtrap + (start + tokens)[:, None] * stride_dtrap + heads[None, :]
        tl.store(at_trap, by_trap.to(dtrap.dtype.element_ty), mask)
        by_angle = (by_rate * (1 - rate * rate)).to(dangles.dtype.element_ty)
        at_angle = dangles + (start + tokens)[:, None] * stride_dangles + turning[None, :]
        tl.store(at_angle, by_angle, (tokens < length)[:, None] & is_angle)


class SegmentGradients(NamedTuple):
    """What segments say of the timeline, float32.

    Chunks have slots as in `kernels.triton.operation.forward.Kept.states`.

    Attributes:
        along_q: (T, H), of a factor of all that a token reads.
        along_k: (T, H), of a factor of all that is read of it.
        down: (R, T, H), by rank of what a token reads of itself.
        across_q: (T, H, S), of the rotation of its q.
        across_k: (T, H, S), of the rotation of its k.
        dlater: (slots, H, 2 * HALF), what a chunk and those after it in the segment say of a common rotation, in
            two parts.
        dtotal: (slots, H, 2 * HALF), of a common factor of the state the chunk starts with, in parts.
        dlater_segments: (numbers, H, S), as dlater of whole segments; not looked at where all start from nothing.
        dtotal_segments: (numbers, H), as dtotal of whole segments.
    """

    along_q: Tensor
    along_k: Tensor
    down: Tensor
    across_q: Tensor
    across_k: Tensor
    dlater: Tensor
    dtotal: Tensor
    dlater_segments: Tensor
    dtotal_segments: Tensor


class StateGradients(NamedTuple):
    """What initial and final states say of the timeline, float32 for n sequences.

    Attributes:
        dopening: (n, H), of the first token's weight in its update of the initial state.
        dend: (n, H, S), what the final states say of a common rotation of all tokens and the state they find.
        dangle: (n, H, S), what they say of the rotation of the sequence.
        dtotal: (n, H), what they say of a common factor of the state.
    """

    dopening: Tensor
    dend: Tensor
    dangle: Tensor
    dtotal: Tensor


def timeline_backward(
    operands: Operands,
    packing: Packing,
    L: int,
    n_with_states: int,
    segments: SegmentGradients,
    states: StateGradients | None,
    resumed: bool,
    dtrap: Tensor,
    dangles: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of adt and dt in float32, and those of trap and angles where they are wanted.

    Args:
        operands: of the operation.
        packing: of the batch.
        L: tokens of a chunk.
        n_with_states: as `kernels.triton.operation.forward.with_states` gives; others have two chunks at most.
        segments: what they say.
        states: what initial and final states say, None where there are none.
        resumed: whether any segment starts from a state.
        dtrap: (T, H), gets the gradient of trap; here as in dangles, each token's numbers are contiguous.
        dangles: (T, S), gets that of angles.
    """
    dt, trap, angles = operands.dt, operands.trap, operands.angles
    T, H = dt.shape
    S = angles.shape[1]
    m = packing.segments.shape[0]
    dadt, ddt = (torch.empty(T, H, dtype=torch.float32, device=dt.device) for _ in range(2))
    sequence_of = packing.first_segments if states is None else torch.repeat_interleave(packing.first_segments.diff())
    # Without states nothing of them is looked at.
    dopening, dend, dangle, dtotal_out = (dadt,) * 4 if states is None else states

    def run(count: int, order: Tensor | None, L: int, resumed: bool) -> None:
        if count:
            _timeline_backward[(count,)](
                dt, trap, angles, dt.stride(0), trap.stride(0), angles.stride(0), packing.segments, order, m,
                sequence_of, segments.along_q, segments.along_k, segments.down, T * H,
                segments.across_q, segments.across_k,
                segments.dlater, segments.dlater_segments, segments.dtotal, segments.dtotal_segments, dtotal_out,
                dopening, dend, dangle, dadt, ddt, dtrap, dangles, dtrap.stride(0), dangles.stride(0),
                H=H, R=segments.down.shape[0], S=S, L=L, HALF=segments.dtotal.shape[2] // 2,
                ALL=states is not None, RESUMED=resumed, ORDERED=order is not None, **tiles.timeline_backward(H, S),
            )  # fmt: skip

    order = packing.longest_first
    run(n_with_states, order, L, resumed)
    if order is not None:
        run(m - n_with_states, order[n_with_states:], 2 * L, False)
    return dadt, ddt
