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
from kernels.triton import tiles
from kernels.triton.chunk import openings
from kernels.triton.operation.timeline import Timeline
from kernels.triton.rotation import rotation, without_turns


@triton.jit
def _rotated(first, second, cos, sin):
    """Both numbers of pairs, turned."""
    return tl.fma(first, cos, -second * sin), tl.fma(first, sin, second * cos)


@triton.jit
def _last_k(B, B_bias, pairs, mask, cos, sin, N: tl.constexpr):
    """A rank's k of a token, both numbers of its pairs."""
    first = tl.load(B + pairs, mask, 0.0).to(tl.float32) + tl.load(B_bias + pairs, mask, 0.0).to(tl.float32)
    second = tl.load(B + N // 2 + pairs, mask, 0.0).to(tl.float32)
    second += tl.load(B_bias + N // 2 + pairs, mask, 0.0).to(tl.float32)
    return _rotated(first, second, cos, sin)


@triton.jit
def _taken(total, k, v):
    """total (PAIRS, BP) + what a rank of a token adds to it."""
    return tl.fma(k[:, None], v[None, :], total)


@triton.jit
def _scan(
    B, x, dt, trap, B_bias, mimo_x, stride_B, stride_x, stride_dt, stride_trap,
    segments, first_segments, long_sequences, left, turns, decay, entering,
    angle_in, ssm_in, k_in, x_in, angle_out, ssm_out, k_out, x_out,
    H, R: tl.constexpr, N: tl.constexpr, P: tl.constexpr, S: tl.constexpr,
    HALF: tl.constexpr, BP: tl.constexpr, PAIRS: tl.constexpr,
    ALL: tl.constexpr, INITIAL: tl.constexpr, FINAL: tl.constexpr, LEFT: tl.constexpr,
):  # fmt: skip
    """The states the segments of a sequence start with, for PAIRS of their columns, and the sequence's last state.

    Nothing is stored before all that the next segment needs is on its way: what is loaded after a store waits.
    """
    sequence, head = tl.program_id(0) // H, tl.program_id(0) % H
    if not ALL:
        sequence = tl.load(long_sequences + sequence)
    begin = tl.load(first_segments + sequence)
    count = tl.load(first_segments + sequence + 1) - begin
    pairs, lanes = tl.program_id(1) * PAIRS + tl.arange(0, PAIRS), tl.arange(0, BP)
    is_pair, is_lane, turned = pairs < N // 2, lanes < P, pairs < S
    inside = is_pair[:, None] & is_lane[None, :]
    place = (sequence * H + head).to(tl.int64)
    at_ssm = place * P * N + lanes[None, :] * N + pairs[:, None]
    B_bias += head * R * N
    mimo_x += head * R * P
    k_in += place * R * N
    dt += head
    trap += head
    x += head * P
    # All segments of a sequence but the last have as many tokens, and their numbers follow each other.
    start = tl.load(segments + 4 * begin, count > 0, 0).to(tl.int64)
    length = tl.load(segments + 4 * begin + 1, count > 0, 0)
    number = begin if ALL else tl.load(segments + 4 * begin + 3, count > 0, 0)

    theta = tl.zeros((PAIRS,), tl.float32)
    h_first = tl.zeros((PAIRS, BP), tl.float32)
    h_second = tl.zeros((PAIRS, BP), tl.float32)
    if INITIAL:
        theta = without_turns(tl.load(angle_in + place * S + pairs, turned, 0.0).to(tl.float32))
        h_first = tl.load(ssm_in + at_ssm, inside, 0.0).to(tl.float32)
        h_second = tl.load(ssm_in + at_ssm + N // 2, inside, 0.0).to(tl.float32)
        if count > 0:
            v = tl.load(x_in + place * P + lanes, is_lane, 0.0).to(tl.float32)
            v *= openings(dt, trap, stride_dt, stride_trap, start, start + 1)
            for rank in tl.static_range(R):
                rank_v = v * tl.load(mimo_x + rank * P + lanes, is_lane, 0.0).to(tl.float32)
                k_first = tl.load(k_in + rank * N + pairs, is_pair, 0.0).to(tl.float32)
                k_second = tl.load(k_in + rank * N + N // 2 + pairs, is_pair, 0.0).to(tl.float32)
                h_first, h_second = _taken(h_first, k_first, rank_v), _taken(h_second, k_second, rank_v)
    cos, sin = rotation(theta)
    at = (number * H + head).to(tl.int64) * (2 * HALF * BP) + 2 * pairs[:, None] * BP + lanes[None, :]
    decay += begin * H + head
    turns += (begin * H + head) * S + pairs
    has_left = (count > 0) & LEFT
    own_first, own_second = tl.load(left + at, has_left, 0.0), tl.load(left + at + BP, has_left, 0.0)
    kept, turn = tl.load(decay, count > 0, 0.0), tl.load(turns, turned & (count > 0), 0.0)
    for i in range(count):
        is_followed = i + 1 < count
        after = at + H * (2 * HALF * BP)
        next_first, next_second = tl.load(left + after, is_followed, 0.0), tl.load(left + after + BP, is_followed, 0.0)
        decay += H
        turns += H * S
        next_kept, next_turn = tl.load(decay, is_followed, 0.0), tl.load(turns, turned & is_followed, 0.0)
        enters_first, enters_second = _rotated(h_first, h_second, cos[:, None], -sin[:, None])
        own_first, own_second = _rotated(own_first, own_second, cos[:, None], sin[:, None])
        factor = tl.exp2(kept)
        h_first, h_second = tl.fma(h_first, factor, own_first), tl.fma(h_second, factor, own_second)
        theta = without_turns(theta + turn)
        cos, sin = rotation(theta)
        start += length
        if is_followed:
            v = tl.load(x + (start - 1) * stride_x + lanes, is_lane, 0.0).to(tl.float32)
            v *= openings(dt, trap, stride_dt, stride_trap, start, start + 1)
            for rank in tl.static_range(R):
                rank_v = v * tl.load(mimo_x + rank * P + lanes, is_lane, 0.0).to(tl.float32)
                at_B = B + (start - 1) * stride_B + rank * N
                k_first, k_second = _last_k(at_B, B_bias + rank * N, pairs, is_pair, cos, sin, N)
                h_first, h_second = _taken(h_first, k_first, rank_v), _taken(h_second, k_second, rank_v)
        tl.store(entering + at, enters_first)
        tl.store(entering + at + BP, enters_second)
        at = after
        own_first, own_second, kept, turn = next_first, next_second, next_kept, next_turn
    if FINAL:
        tl.store(ssm_out + at_ssm, h_first, inside)
        tl.store(ssm_out + at_ssm + N // 2, h_second, inside)
        tl.store(angle_out + place * S + pairs, theta, turned)
        segments += 4 * (begin + tl.maximum(count, 1) - 1)
        token = tl.load(segments, count > 0, 0).to(tl.int64) + tl.load(segments + 1, count > 0, 1) - 1
        v = tl.load(x + token * stride_x + lanes, is_lane & (count > 0), 0.0).to(tl.float32)
        if INITIAL:
            v = tl.where(count > 0, v, tl.load(x_in + place * P + lanes, is_lane, 0.0).to(tl.float32))
        tl.store(x_out + place * P + lanes, v, is_lane & (tl.program_id(1) == 0))
        for rank in tl.static_range(R):
            mask = is_pair & (count > 0)
            k_first, k_second = _last_k(B + token * stride_B + rank * N, B_bias + rank * N, pairs, mask, cos, sin, N)
            if INITIAL:
                k_first = tl.where(count > 0, k_first, tl.load(k_in + rank * N + pairs, is_pair, 0.0).to(tl.float32))
                given = tl.load(k_in + rank * N + N // 2 + pairs, is_pair, 0.0).to(tl.float32)
                k_second = tl.where(count > 0, k_second, given)
            at_k = k_out + (place * R + rank) * N + pairs
            tl.store(at_k, k_first, is_pair)
            tl.store(at_k + N // 2, k_second, is_pair)


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
        left: float32 (numbers, H, 2 * HALF, BP), what each segment leaves of its own tokens; not looked at where no
            segment is followed by another one and no final state is wanted.
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
        tile = tiles.scan()
        _scan[(sequences * H, entering.shape[2] // (2 * tile["PAIRS"]))](
            B, x, dt, trap, operands.B_bias, operands.mimo_x, B.stride(0), x.stride(0), dt.stride(0), trap.stride(0),
            packing.segments, packing.first_segments, packing.long_sequences,
            left, times.turns, times.decay, entering, *given, *(states or (left,) * 4), H,
            R=R, N=N, P=P, S=S, HALF=entering.shape[2] // 2, BP=BP,
            ALL=everything, INITIAL=initial_state is not None, FINAL=final, LEFT=final or packing.n_long > 0, **tile,
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
    tile = tiles.scan_backward()
    parts = BP // tile["PART"]
    by_part = torch.empty(numbers, H, parts, S, dtype=torch.float32, device=entering.device)
    total_by_part = torch.empty(numbers, H, parts, dtype=torch.float32, device=entering.device)
    _scan_backward[((n if everything else _count(packing)) * H, parts)](
        packing.segments, packing.first_segments, packing.long_sequences, entering, leaving,
        times.turns, times.decay, by_part, total_by_part,
        dssm if initial_state is None else initial_state.angle.contiguous(),
        dssm if dfinal is None else dfinal.ssm.contiguous(), dssm,
        H, N=N, P=P, S=S, HALF=width // 2, BP=BP,
        ALL=everything, INITIAL=initial_state is not None, FINAL=dfinal is not None, **tile,
    )  # fmt: skip
    return by_part.sum(2), total_by_part.sum(2)


def _count(packing: Packing) -> int:
    return 0 if packing.long_sequences is None else len(packing.long_sequences)
