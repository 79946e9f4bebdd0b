"""The scans over the segments of sequences: forward the states that segments start with, backward their gradients.

A batch's long sequences take part, or with initial or final states all of them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import Operands
from kernels.packing import Packing
from kernels.state import Mamba3State
from kernels.triton.common import NO_FUSION, openings, rotation, without_turns
from kernels.triton.timeline import Timeline

# Rows of the state that a program takes; both kinds of blocks are multiples of it.
_PART = 16


@triton.jit
def _scan(
    B, x, dt, trap, B_bias, mimo_x, stride_B, stride_x, stride_dt, stride_trap,
    segments, first_segments, long_sequences, left, turns, decay, entering,
    angle_in, ssm_in, k_in, x_in, angle_out, ssm_out, k_out, x_out,
    H, R: tl.constexpr, N: tl.constexpr, P: tl.constexpr, S: tl.constexpr,
    HALF: tl.constexpr, BP: tl.constexpr, PART: tl.constexpr,
    ALL: tl.constexpr, INITIAL: tl.constexpr, FINAL: tl.constexpr,
):  # fmt: skip
    """The states the segments of a sequence start with, for PART rows of the state, and the sequence's last state."""
    sequence, head = tl.program_id(0) // H, tl.program_id(0) % H
    if not ALL:
        sequence = tl.load(long_sequences + sequence)
    begin, end = tl.load(first_segments + sequence), tl.load(first_segments + sequence + 1)
    pairs, ranks = tl.arange(0, HALF), tl.arange(0, R)
    lanes = tl.program_id(1) * PART + tl.arange(0, PART)
    inside, turned = (lanes < P)[None, :], pairs < S
    paired = (pairs < N // 2)[:, None]
    place = (sequence * H + head).to(tl.int64)
    at_ssm = place * P * N + lanes[None, :] * N + pairs[:, None]
    at_k = ranks[:, None] * N + pairs[None, :]
    k_mask = (pairs < N // 2)[None, :]
    B_bias += head * R * N
    bias_first = tl.load(B_bias + at_k, k_mask, 0.0).to(tl.float32)
    bias_second = tl.load(B_bias + at_k + N // 2, k_mask, 0.0).to(tl.float32)
    weights = tl.load(mimo_x + head * R * P + ranks[:, None] * P + lanes[None, :], inside, 0.0).to(tl.float32)
    at_k += place * R * N

    theta = tl.zeros((HALF,), tl.float32)
    h_first = tl.zeros((HALF, PART), tl.float32)
    h_second = tl.zeros((HALF, PART), tl.float32)
    k_first = tl.zeros((R, HALF), tl.float32)
    k_second = tl.zeros((R, HALF), tl.float32)
    x_last = tl.zeros((PART,), tl.float32)
    if INITIAL:
        theta = without_turns(tl.load(angle_in + place * S + pairs, turned, 0.0).to(tl.float32))
        h_first = tl.load(ssm_in + at_ssm, paired & inside, 0.0).to(tl.float32)
        h_second = tl.load(ssm_in + at_ssm + N // 2, paired & inside, 0.0).to(tl.float32)
        k_first = tl.load(k_in + at_k, k_mask, 0.0).to(tl.float32)
        k_second = tl.load(k_in + at_k + N // 2, k_mask, 0.0).to(tl.float32)
        x_last = tl.load(x_in + place * P + lanes, lanes < P, 0.0).to(tl.float32)
    for segment in range(begin, end):
        start = tl.load(segments + 4 * segment).to(tl.int64)
        stop = start + tl.load(segments + 4 * segment + 1)
        number = segment if ALL else tl.load(segments + 4 * segment + 3)
        scratch = (number * H + head).to(tl.int64)
        if INITIAL or segment > begin:
            opening = openings(dt + head, trap + head, stride_dt, stride_trap, start, stop)
            v = (x_last[None, :] * weights * opening)[:, None, :]
            h_first += tl.sum(k_first[:, :, None] * v, 0)
            h_second += tl.sum(k_second[:, :, None] * v, 0)
        cos, sin = rotation(theta)
        cos, sin = cos[:, None], sin[:, None]
        at = scratch * (2 * HALF * BP) + 2 * pairs[:, None] * BP + lanes[None, :]
        tl.store(entering + at, h_first * cos + h_second * sin)
        tl.store(entering + at + BP, h_second * cos - h_first * sin)
        own_first, own_second = tl.load(left + at), tl.load(left + at + BP)
        kept = tl.exp2(tl.load(decay + segment * H + head))
        h_first = h_first * kept + (own_first * cos - own_second * sin)
        h_second = h_second * kept + (own_first * sin + own_second * cos)
        theta = without_turns(theta + tl.load(turns + (segment * H + head) * S + pairs, turned, 0.0))
        cos, sin = rotation(theta)
        cos, sin = cos[None, :], sin[None, :]
        row = B + (stop - 1) * stride_B + ranks[:, None] * N + pairs[None, :]
        first = tl.load(row, k_mask, 0.0).to(tl.float32) + bias_first
        second = tl.load(row + N // 2, k_mask, 0.0).to(tl.float32) + bias_second
        k_first = first * cos - second * sin
        k_second = first * sin + second * cos
        x_last = tl.load(x + (stop - 1) * stride_x + head * P + lanes, lanes < P, 0.0).to(tl.float32)
    if FINAL:
        tl.store(ssm_out + at_ssm, h_first, paired & inside)
        tl.store(ssm_out + at_ssm + N // 2, h_second, paired & inside)
        tl.store(x_out + place * P + lanes, x_last, lanes < P)
        if tl.program_id(1) == 0:
            tl.store(angle_out + place * S + pairs, theta, turned)
            tl.store(k_out + at_k, k_first, k_mask)
            tl.store(k_out + at_k + N // 2, k_second, k_mask)


@triton.jit
def _scan_backward(
    segments, first_segments, long_sequences, entering, leaving, turns, decay, dlater, dtotal,
    angle_in, dssm_out, dssm_in,
    H, N: tl.constexpr, P: tl.constexpr, S: tl.constexpr, HALF: tl.constexpr, BP: tl.constexpr, PART: tl.constexpr,
    ALL: tl.constexpr, INITIAL: tl.constexpr, FINAL: tl.constexpr,
):  # fmt: skip
    """From what segments say of their first state to the gradients of the states they leave, in place."""
    sequence, head = tl.program_id(0) // H, tl.program_id(0) % H
    if not ALL:
        sequence = tl.load(long_sequences + sequence)
    begin, end = tl.load(first_segments + sequence), tl.load(first_segments + sequence + 1)
    pairs = tl.arange(0, HALF)
    lanes = tl.program_id(1) * PART + tl.arange(0, PART)
    mask, turned = (pairs < N // 2)[:, None] & (lanes < P)[None, :], pairs < S
    place = (sequence * H + head).to(tl.int64)
    at_ssm = place * P * N + lanes[None, :] * N + pairs[:, None]

    start_angle = tl.zeros((HALF,), tl.float32)
    if INITIAL:
        start_angle = without_turns(tl.load(angle_in + place * S + pairs, turned, 0.0).to(tl.float32))
    d_first = tl.zeros((HALF, PART), tl.float32)
    d_second = tl.zeros((HALF, PART), tl.float32)
    if FINAL:
        # From the frame of the sequence's end to that of its last segment.
        theta = start_angle
        for segment in range(begin, end - 1):
            theta = without_turns(theta + tl.load(turns + (segment * H + head) * S + pairs, turned, 0.0))
        cos, sin = rotation(theta)
        cos, sin = cos[:, None], sin[:, None]
        first = tl.load(dssm_out + at_ssm, mask, 0.0)
        second = tl.load(dssm_out + at_ssm + N // 2, mask, 0.0)
        d_first, d_second = first * cos + second * sin, second * cos - first * sin
    for back in range(end - begin):
        segment = end - 1 - back
        number = segment if ALL else tl.load(segments + 4 * segment + 3)
        at = (number * H + head).to(tl.int64) * (2 * HALF * BP) + 2 * pairs[:, None] * BP + lanes[None, :]
        own_first, own_second = tl.load(leaving + at), tl.load(leaving + at + BP)
        tl.store(leaving + at, d_first)
        tl.store(leaving + at + BP, d_second)
        kept = tl.exp2(tl.load(decay + segment * H + head))
        d_first, d_second = d_first * kept + own_first, d_second * kept + own_second
        first, second = tl.load(entering + at), tl.load(entering + at + BP)
        by_later = tl.sum(d_first * second - d_second * first, 1)
        at = (number * H + head) * (BP // PART) + tl.program_id(1)
        tl.store(dlater + at * S + pairs, by_later, turned)
        tl.store(dtotal + at, tl.sum(tl.sum(d_first * first + d_second * second, 1), 0))
        # To the frame of the segment before, or of the sequence's start.
        theta = start_angle
        if segment > begin:
            theta = tl.load(turns + ((segment - 1) * H + head) * S + pairs, turned, 0.0)
        cos, sin = rotation(theta)
        cos, sin = cos[:, None], sin[:, None]
        d_first, d_second = d_first * cos - d_second * sin, d_first * sin + d_second * cos
    if INITIAL:
        if end == begin and FINAL:  # nothing happened between its frame and the end's
            cos, sin = rotation(start_angle)
            cos, sin = cos[:, None], sin[:, None]
            d_first, d_second = d_first * cos - d_second * sin, d_first * sin + d_second * cos
        tl.store(dssm_in + at_ssm, d_first, mask)
        tl.store(dssm_in + at_ssm + N // 2, d_second, mask)


def scan(
    operands: Operands,
    packing: Packing,
    times: Timeline,
    left: Tensor,
    entering: Tensor,
    initial_state: Mamba3State | None,
    *,
    final: bool,
) -> Mamba3State | None:
    """Fills `entering` with the states that segments start with.

    Args:
        operands: of the operation.
        packing: of the batch.
        times: of the batch.
        left: float32 (numbers, H, 2 * HALF, BP), what each segment leaves of its own tokens.
        entering: of the same shape.
        initial_state: as for the operation.
        final: whether the final states are wanted.

    Returns:
        The final states in float32, or None.
    """
    B, x, dt, trap = operands.B, operands.x, operands.dt, operands.trap
    R, N = B.shape[1:]
    H, P = x.shape[1:]
    S, BP, n = times.turns.shape[2], entering.shape[3], packing.n_sequences
    # What is not given or not wanted is not looked at.
    given = (left,) * 4 if initial_state is None else tuple(t.contiguous() for t in initial_state)
    states = None
    if final:
        shapes = ((S,), (P, N), (R, N), (P,))
        states = Mamba3State(*(torch.empty(n, H, *s, dtype=torch.float32, device=x.device) for s in shapes))
    everything = final or initial_state is not None
    sequences = n if everything else _count(packing)
    if sequences:
        _scan[(sequences * H, BP // _PART)](
            B, x, dt, trap, operands.B_bias, operands.mimo_x, B.stride(0), x.stride(0), dt.stride(0), trap.stride(0),
            packing.segments, packing.first_segments, packing.long_sequences,
            left, times.turns, times.decay, entering, *given, *(states or (left,) * 4), H,
            R=R, N=N, P=P, S=S, HALF=entering.shape[2] // 2, BP=BP, PART=_PART,
            ALL=everything, INITIAL=initial_state is not None, FINAL=final, num_warps=1, num_stages=1, **NO_FUSION,
        )  # fmt: skip
    return states


def scan_backward(
    packing: Packing,
    times: Timeline,
    entering: Tensor,
    leaving: Tensor,
    initial_state: Mamba3State | None,
    dfinal: Mamba3State | None,
    dssm: Tensor,
    *,
    P: int,
    N: int,
) -> tuple[Tensor, Tensor]:
    """From what segments say of their first state to the gradients of the states they leave, in place in `leaving`.

    Args:
        packing: of the batch, of at least one sequence.
        times: of the batch.
        entering: as `scan` has filled it.
        leaving: of the same shape.
        initial_state: as for the operation.
        dfinal: gradients of the final states, if there are any.
        dssm: float32 (n, H, P, N), is filled with the gradient of the initial ssm; empty without initial states.
        P: rows of the state.
        N: columns of it.

    Returns:
        What each segment and those after it say of a common rotation, (numbers, H, S), and of a common factor of the
        state they find, (numbers, H).
    """
    numbers, H, width, BP = entering.shape
    S, n = times.turns.shape[2], packing.n_sequences
    everything = initial_state is not None or dfinal is not None
    by_part = torch.empty(numbers, H, BP // _PART, S, dtype=torch.float32, device=entering.device)
    total_by_part = torch.empty(numbers, H, BP // _PART, dtype=torch.float32, device=entering.device)
    _scan_backward[((n if everything else _count(packing)) * H, BP // _PART)](
        packing.segments, packing.first_segments, packing.long_sequences, entering, leaving,
        times.turns, times.decay, by_part, total_by_part,
        dssm if initial_state is None else initial_state.angle.contiguous(),
        dssm if dfinal is None else dfinal.ssm.contiguous(), dssm,
        H, N=N, P=P, S=S, HALF=width // 2, BP=BP, PART=_PART,
        ALL=everything, INITIAL=initial_state is not None, FINAL=dfinal is not None, num_warps=1, num_stages=1,
    )  # fmt: skip
    return by_part.sum(2), total_by_part.sum(2)


def _count(packing: Packing) -> int:
    return 0 if packing.long_sequences is None else len(packing.long_sequences)
