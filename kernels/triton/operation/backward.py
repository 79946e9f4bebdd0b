"""The operation backward.

The forward pass has kept each rank's output before the gate and the states that chunks of longer segments start with.
From the former a kernel takes the ranks' gradients; then every segment's program goes back through its chunks with the
gradient of the state, which segments of long sequences get from a scan, as forward, and leaves the gradients of q, k
and v; short segments have a kernel that needs no state. Kernels of their own take these to what q, k and v are made
of. What a program cannot finish alone is summed afterwards, always in the same order.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import Operands
from kernels.packing import Packing
from kernels.state import Mamba3State
from kernels.triton import INTERPRETED, tiles
from kernels.triton.bfloat16 import product, rounded, widened
from kernels.triton.chunk import chunk_qk, chunk_turns, chunk_values
from kernels.triton.operation.forward import Aside, Kept, of_dtype, with_states
from kernels.triton.operation.gates_values_backward import gates_backward, values_backward
from kernels.triton.operation.qk_backward import qk_backward
from kernels.triton.operation.scan import scan_backward
from kernels.triton.operation.state_backward import state_backward
from kernels.triton.operation.timeline import SegmentGradients, timeline_backward
from kernels.triton.tiles import Blocks


@triton.jit
def _hidden(x):
    """int32 x, of which the compiler then knows nothing: what depends on it is not computed ahead for later rounds."""
    if INTERPRETED:
        return x
    else:
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def _store_qk(gradient, out, unit, row_at, row_valid, N: tl.constexpr):
    """Stores the gradient (R * L, 2 * HALF) of q or k; float16 in units, powers of two, of each row."""
    HALF: tl.constexpr = gradient.shape[1] // 2
    columns = tl.arange(0, 2 * HALF)[None, :]
    half, pair = columns // HALF, columns % HALF
    if out.dtype.element_ty == tl.float16:
        # The largest number becomes 2 ** 14 to 2 ** 15.
        exponent = tl.max(tl.abs(gradient), 1).to(tl.int32, bitcast=True) & 0x7F800000
        exponent = tl.maximum(exponent - (15 << 23), 0)
        gradient *= ((253 << 23) - exponent).to(tl.float32, bitcast=True)[:, None]
        tl.store(unit + row_at, (exponent + (1 << 23)).to(tl.float32, bitcast=True)[:, None], row_valid)
    tl.store(
        out + row_at * N + half * (N // 2) + pair, rounded(gradient, out.dtype.element_ty), row_valid & (pair < N // 2)
    )


@triton.jit
def _by_columns(dstate, found, state):
    """What the gradient dstate says of its columns' rotation and of a factor of each, of the state `found` at `state`.

    That is the product of their rows with those of the pair's other columns, and with the same.
    """
    HALF: tl.constexpr = found.shape[0] // 2
    BP: tl.constexpr = found.shape[1]
    columns, lanes = tl.arange(0, 2 * HALF), tl.arange(0, BP)
    half, pair = columns // HALF, columns % HALF
    if found.dtype == tl.float32:  # whose products do not fit into shared memory
        others = tl.load(state + (2 * pair + 1 - half)[:, None] * BP + lanes[None, :])
        by_other, by_same = tl.sum(dstate * others, 1), tl.sum(dstate * found, 1)
    else:
        products = product(dstate, tl.trans(found), tl.zeros((2 * HALF, 2 * HALF), tl.float32), found.dtype)
        other = (1 - half) * HALF + pair
        by_other = tl.sum(tl.where(other[:, None] == columns[None, :], products, 0.0), 1)
        by_same = tl.sum(tl.where(columns[:, None] == columns[None, :], products, 0.0), 1)
    return by_other * (1 - 2 * half), by_same


@triton.jit
def _decays_backward(weights, plane, H, first, length, R: tl.constexpr, L: tl.constexpr):
    """What a chunk's tokens, by row, are read less; and their weights within it, of each by the readers (R * L, L)."""
    slots, slot = tl.arange(0, L), tl.arange(0, R * L) % L
    c = tl.load(weights + tl.minimum(first + slots, length - 1) * H)
    source = tl.load(weights + plane + (first + slot) * H, first + slot < length, float("inf"))
    own = tl.load(weights + 2 * plane + (first + slot) * H, first + slot < length, float("-inf"))
    weight = tl.where(slots[None, :] > slot[:, None], c[None, :] - source[:, None], float("-inf"))
    return source, tl.exp2(tl.where(slot[:, None] == slots[None, :], own[:, None], weight))


@triton.jit
def _read_backward(q, k, v, dout, weight, R: tl.constexpr, L: tl.constexpr):
    """The scores of a chunk read by one, before their weights, and their gradients, both (R * L, R, L)."""
    zeros = tl.zeros((R * L, R * L), tl.float32)
    plain = tl.reshape(product(k, tl.trans(q), zeros, q.dtype), (R * L, R, L))
    return plain, tl.reshape(product(v, tl.trans(dout), zeros, q.dtype), (R * L, R, L)) * weight[:, None, :]


@triton.jit
def _own_backward(
    q, k, v, dout, weight, d_skip, down, plane, H, first, length, R: tl.constexpr, L: tl.constexpr
):  # fmt: skip
    """Scores and their gradients of a chunk that reads itself, (R * L, R * L) as products take them.

    What the tokens say of their own weights is stored.
    """
    slots, row = tl.arange(0, L), tl.arange(0, R * L)
    slot = row % L
    plain, dplain = _read_backward(q, k, v, dout, weight, R, L)
    by_own = tl.sum(tl.where(slot[:, None] == slots[None, :], tl.sum(dplain * plain, 1), 0.0), 1)
    tl.store(down + row // L * plane + (first + slot) * H, by_own, first + slot < length)
    # D lets a rank of a token read the same rank of the same token.
    scores = tl.reshape(plain * weight[:, None, :], (R * L, R * L))
    scores += tl.where((row + first)[:, None] == (row + first)[None, :], d_skip, 0.0)
    return rounded(scores, q.dtype), rounded(tl.reshape(dplain, (R * L, R * L)), q.dtype)


@triton.jit
def _short_backward(
    C, B, x, weights, turned, C_bias, B_bias, mimo_x, D,
    stride_C, stride_B, stride_x, plane, segments, order, by_out, dq, dk, dq_unit, dk_unit, down,
    H: tl.constexpr, R: tl.constexpr, N: tl.constexpr, P: tl.constexpr, S: tl.constexpr,
    L: tl.constexpr, HALF: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """As `_segments_backward`, of a segment of one or two chunks that starts from nothing and that nothing follows.

    The second chunk reads the first as it reads itself: there is no state.
    """
    head, segment = tl.program_id(0) % H, tl.load(order + tl.program_id(0) // H)
    start = tl.load(segments + 4 * segment).to(tl.int64)
    length = tl.load(segments + 4 * segment + 1)
    if length == 0:
        return
    compute: tl.constexpr = x.dtype.element_ty
    C += start * stride_C
    B += start * stride_B
    x += start * stride_x + head * P
    weights += start * H + head
    turned += (start * H + head) * (2 * S)
    by_out += (start * H + head) * (R * P)
    dq += (start * H + head) * (R * N)
    dk += (start * H + head) * (R * N)
    down += start * H + head
    dq_unit += (start * H + head) * R
    dk_unit += (start * H + head) * R
    C_bias += head * R * N
    B_bias += head * R * N
    mimo_x += head * R * P
    slots, row = tl.arange(0, L), tl.arange(0, R * L)
    rank, slot, lanes = row // L, row % L, tl.arange(0, BP)[None, :]
    d_skip = tl.load(D + head).to(tl.float32)

    tokens, row_tokens = tl.minimum(slots, length - 1), tl.minimum(slot, length - 1)
    cos, sin = chunk_turns(turned, H * 2 * S, tokens, R, S, L, HALF)
    k = chunk_qk(B, stride_B, B_bias, cos, sin, tokens, R, N, L, HALF)
    v = chunk_values(x, stride_x, mimo_x, row_tokens, R, P, L, BP)
    by_k = tl.zeros((R * L, 2 * HALF), tl.float32)
    dv = tl.zeros((R * L, BP), tl.float32)
    if length > L:
        own_tokens, row_tokens = tl.minimum(L + slots, length - 1), tl.minimum(L + slot, length - 1)
        row_valid = (L + slot < length)[:, None]
        row_at = ((L + slot) * (H * R) + rank)[:, None]
        at_out, in_lanes = by_out + row_at * P + lanes, row_valid & (lanes < P)
        own_cos, own_sin = chunk_turns(turned, H * 2 * S, own_tokens, R, S, L, HALF)
        q = chunk_qk(C, stride_C, C_bias, own_cos, own_sin, own_tokens, R, N, L, HALF)
        dout = tl.load(at_out, in_lanes, 0.0)
        own_k = chunk_qk(B, stride_B, B_bias, own_cos, own_sin, own_tokens, R, N, L, HALF)
        own_v = chunk_values(x, stride_x, mimo_x, row_tokens, R, P, L, BP)
        _, weight = _decays_backward(weights, plane, H, L, length, R, L)
        scores, dplain = _own_backward(q, own_k, own_v, dout, weight, d_skip, down, plane, H, L, length, R, L)
        own_dv = product(scores, dout, tl.zeros((R * L, BP), tl.float32), compute)
        tl.store(at_out, own_dv.to(compute), in_lanes)
        zeros = tl.zeros((R * L, 2 * HALF), tl.float32)
        _store_qk(product(dplain, q, zeros, compute), dk, dk_unit, row_at, row_valid, N)
        by_q = product(tl.trans(dplain), own_k, zeros, compute)
        # What the first chunk gives.
        c = tl.load(weights + own_tokens * H) + tl.load(weights + (L - 1) * H)
        weight = tl.exp2(c[None, :] - tl.load(weights + plane + slot * H)[:, None])
        plain, dplain_before = _read_backward(q, k, v, dout, weight, R, L)
        scores = rounded(tl.reshape(plain * weight[:, None, :], (R * L, R * L)), compute)
        dplain = rounded(tl.reshape(dplain_before, (R * L, R * L)), compute)
        dv = product(scores, dout, dv, compute)
        by_k = product(dplain, q, by_k, compute)
        by_q = product(tl.trans(dplain), k, by_q, compute)
        _store_qk(by_q, dq, dq_unit, row_at, row_valid, N)

    row_valid = (slot < length)[:, None]
    row_at = (slot * (H * R) + rank)[:, None]
    at_out, in_lanes = by_out + row_at * P + lanes, row_valid & (lanes < P)
    q = chunk_qk(C, stride_C, C_bias, cos, sin, tokens, R, N, L, HALF)
    dout = tl.load(at_out, in_lanes, 0.0)
    _, weight = _decays_backward(weights, plane, H, 0, length, R, L)
    scores, dplain = _own_backward(q, k, v, dout, weight, d_skip, down, plane, H, 0, length, R, L)
    tl.store(at_out, product(scores, dout, dv, compute).to(compute), in_lanes)
    _store_qk(product(dplain, q, by_k, compute), dk, dk_unit, row_at, row_valid, N)
    by_q = product(tl.trans(dplain), k, tl.zeros((R * L, 2 * HALF), tl.float32), compute)
    _store_qk(by_q, dq, dq_unit, row_at, row_valid, N)


@triton.jit
def _segments_backward(
    C, B, x, weights, turned, dt, trap, C_bias, B_bias, mimo_x, D,
    stride_C, stride_B, stride_x, stride_dt, stride_trap, plane, segments, order, m,
    entering, leaving, states, by_out, dq, dk, dq_unit, dk_unit, down, dlater, dtotal,
    H: tl.constexpr, R: tl.constexpr, N: tl.constexpr, P: tl.constexpr, S: tl.constexpr,
    L: tl.constexpr, HALF: tl.constexpr, BP: tl.constexpr,
    ALL: tl.constexpr, RESUMED: tl.constexpr, INITIAL: tl.constexpr, FINAL: tl.constexpr,
    ORDERED: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """Gradients of one segment's q, k and v, the last in place of the outputs' in by_out.

    With STATES it is only what the segment's own outputs say of the state it starts with.
    """
    head, segment = tl.program_id(0) % H, tl.program_id(0) // H
    if ORDERED:
        segment = tl.load(order + segment)
    start = tl.load(segments + 4 * segment).to(tl.int64)
    length = tl.load(segments + 4 * segment + 1)
    index = tl.load(segments + 4 * segment + 2)
    number = segment if ALL else tl.load(segments + 4 * segment + 3)
    compute: tl.constexpr = x.dtype.element_ty
    C += start * stride_C
    B += start * stride_B
    x += start * stride_x + head * P
    weights += start * H + head
    turned += (start * H + head) * (2 * S)
    by_out += (start * H + head) * (R * P)
    dq += (start * H + head) * (R * N)
    dk += (start * H + head) * (R * N)
    down += start * H + head
    dq_unit += (start * H + head) * R
    dk_unit += (start * H + head) * R
    C_bias += head * R * N
    B_bias += head * R * N
    mimo_x += head * R * P
    slots, row = tl.arange(0, L), tl.arange(0, R * L)
    rank, slot = row // L, row % L
    columns, lanes = tl.arange(0, 2 * HALF), tl.arange(0, BP)
    half, pair = columns // HALF, columns % HALF
    in_state = (2 * pair + half)[:, None] * BP + lanes[None, :]
    d_skip = tl.load(D + head).to(tl.float32)
    reads_first = (INITIAL or index > 0) if RESUMED else False
    at_number = (number * H + head).to(tl.int64) * (2 * HALF * BP) + in_state
    # Of the state that the chunk leaves, where anything reads it.
    dstate = tl.zeros((2 * HALF, BP), tl.float32)
    is_read = False
    followed = False
    if RESUMED and not STATES:
        followed = tl.load(segments + 4 * (segment + 1) + 2, segment + 1 < m, 0) > 0
        is_read = followed or FINAL
        if is_read:
            dstate = tl.load(leaving + at_number)

    remaining = (length + L - 1) // L
    while remaining > 0:
        remaining -= 1
        # Else the addresses of all later rounds take the registers that the tiles need.
        chunk = _hidden(remaining)
        first = chunk * L
        tokens, row_tokens = tl.minimum(first + slots, length - 1), tl.minimum(first + slot, length - 1)
        row_valid = (first + slot < length)[:, None]
        row_at = ((first + slot) * (H * R) + rank)[:, None]
        in_lanes = row_valid & (lanes < P)[None, :]
        cos, sin = chunk_turns(turned, H * 2 * S, tokens, R, S, L, HALF)
        q = chunk_qk(C, stride_C, C_bias, cos, sin, tokens, R, N, L, HALF)
        dout = tl.load(by_out + row_at * P + lanes[None, :], in_lanes, 0.0)
        read = tl.exp2(tl.load(weights + row_tokens * H))[:, None]
        total = tl.load(weights + (tl.minimum(first + L, length) - 1) * H)
        if not STATES:
            k = chunk_qk(B, stride_B, B_bias, cos, sin, tokens, R, N, L, HALF)
            v = chunk_values(x, stride_x, mimo_x, row_tokens, R, P, L, BP)
            source, weight = _decays_backward(weights, plane, H, first, length, R, L)
            scores, dplain = _own_backward(q, k, v, dout, weight, d_skip, down, plane, H, first, length, R, L)

            # To the state it leaves, each token adds v k^T times `left`.
            left = tl.exp2(total - source)
            if RESUMED:
                at_next = start + tl.where(followed, length, 0)
                opening = tl.load(dt + at_next * stride_dt + head, followed, 0.0).to(tl.float32)
                shut = tl.load(trap + at_next * stride_trap + head, followed, 0.0).to(tl.float32)
                left += tl.where(first + slot == length - 1, opening * tl.sigmoid(-shut), 0.0)

            dv = tl.zeros((R * L, BP), tl.float32)
            if is_read:
                dv = product(k, dstate, dv, compute) * left[:, None]
            dv = product(scores, dout, dv, compute)
            tl.store(by_out + row_at * P + lanes[None, :], dv.to(compute), in_lanes)
            by_k = tl.zeros((R * L, 2 * HALF), tl.float32)
            if is_read:
                by_k = product(v, tl.trans(dstate), by_k, compute) * left[:, None]
            by_k = product(dplain, q, by_k, compute)
            _store_qk(by_k, dk, dk_unit, row_at, row_valid, N)
            by_q = tl.zeros((R * L, 2 * HALF), tl.float32)
            if chunk > 0:
                at_slot = (start // L + chunk) * H + head
                found = tl.load(states + at_slot * (2 * HALF * BP) + in_state)
                by_q = product(dout, tl.trans(found), by_q, compute) * read
                dstate = product(tl.trans(q), widened(dout) * read, dstate * tl.exp2(total), compute)
                is_read = True
                by_turn, by_factor = _by_columns(dstate, found, states + at_slot * (2 * HALF * BP))
                at_column = at_slot * (2 * HALF) + columns
                tl.store(dlater + at_column, by_turn)
                tl.store(dtotal + at_column, by_factor)
            elif reads_first:
                found = tl.load(entering + at_number).to(compute)
                by_q = product(dout, tl.trans(found), by_q, compute) * read
            by_q = product(tl.trans(dplain), k, by_q, compute)
            _store_qk(by_q, dq, dq_unit, row_at, row_valid, N)
        else:
            dstate = product(tl.trans(q), widened(dout) * read, dstate * tl.exp2(total), compute)
    if STATES:
        tl.store(leaving + at_number, dstate)


class Columns(NamedTuple):
    """Operands that may be columns of one tensor, or their gradients: each token's numbers are contiguous.

    Attributes:
        x: (T, H, P).
        z: (T, H, P).
        trap: (T, H).
        angles: (T, S).
    """

    x: Tensor
    z: Tensor
    trap: Tensor
    angles: Tensor


@dataclass(frozen=True)
class Gradients:
    """Of the operands and of the initial state."""

    operands: Operands
    initial_state: Mamba3State | None


def mamba3_mimo_backward(
    operands: Operands,
    packing: Packing,
    initial_state: Mamba3State | None,
    kept: Kept,
    dy: Tensor,
    ends: tuple[Mamba3State, Mamba3State] | None,
    columns: Columns,
) -> Gradients:
    """Gradients of `mamba3_mimo_forward`.

    Args:
        operands: as given to it.
        packing: likewise.
        initial_state: likewise.
        kept: what it has kept.
        dy: (T, H, P) gradient of y.
        ends: if it returned final states, these and their gradients.
        columns: where the gradients of some operands go, in these operands' dtypes.

    Returns:
        Gradients in the operands' dtypes; the same bits for the same arguments.
    """
    C, B, x, z, _, dt, trap, angles, C_bias, B_bias, mimo_x, mimo_z, mimo_o, D = operands
    T, R, N = C.shape
    H, P = x.shape[1:]
    S = angles.shape[1]
    blocks = Blocks.of(R, N, P)
    m, n, device = packing.segments.shape[0], packing.n_sequences, x.device
    dfinal = None if ends is None else ends[1]
    resumed, everything = kept.entering is not None, initial_state is not None or dfinal is not None
    assert kept.ranked is not None
    assert kept.states is not None
    # As the forward pass has read them.
    C_bias, B_bias, mimo_x, mimo_z, mimo_o = of_dtype((C_bias, B_bias, mimo_x, mimo_z, mimo_o), x.dtype)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    by_out, dmimo_z, dmimo_o, dD = gates_backward(x, z, mimo_x, mimo_z, mimo_o, kept.ranked, dy, columns.z)
    # What tokens say of each other's rotations cancels, for which bfloat16 has too few bits.
    fine = torch.float16 if x.dtype == torch.bfloat16 else torch.float32
    dq, dk = empty(T, H, R, N, dtype=fine), empty(T, H, R, N, dtype=fine)
    dq_unit, dk_unit = empty(T, H, R), empty(T, H, R)
    down = empty(R, T, H)
    dlater, dtotal = (empty(T // blocks.L + 1, H, 2 * blocks.HALF) for _ in range(2))
    entering = kept.states if kept.entering is None else kept.entering
    leaving = kept.states if kept.entering is None else torch.empty_like(kept.entering)
    sizes = {"N": N, "P": P, "S": S, "HALF": blocks.HALF, "BP": blocks.BP, "ALL": everything}
    flags = {"INITIAL": initial_state is not None, "FINAL": dfinal is not None}

    n_with_states = with_states(packing, blocks, everything)

    def run_segments(count: int, order: Tensor | None, states_only: bool) -> None:
        if count:
            _segments_backward[(count * H,)](
                C, B, x, kept.timeline.weights, kept.timeline.turned, dt, trap, C_bias, B_bias, mimo_x, D,
                C.stride(0), B.stride(0), x.stride(0), dt.stride(0), trap.stride(0), T * H,
                packing.segments, order, m, entering, leaving, kept.states,
                by_out, dq, dk, dq_unit, dk_unit, down, dlater, dtotal,
                H=H, R=R, **sizes, L=blocks.L, RESUMED=resumed, **flags, ORDERED=order is not None,
                STATES=states_only, **tiles.segments_backward(x.dtype, blocks),
            )  # fmt: skip

    # What is not looked at where all segments start from nothing.
    dlater_segments, dtotal_segments = dlater, dtotal
    dssm = empty(0 if initial_state is None else n, H, P, N)
    if resumed and n:
        if everything:
            run_segments(m, None, states_only=True)
        else:
            run_segments(packing.n_long, packing.long_segments, states_only=True)
        dlater_segments, dtotal_segments = scan_backward(
            packing, kept.timeline, entering, leaving, initial_state, dfinal, dssm, P=P, N=N
        )
    # Few segments of many chunks leave most of the device idle, unless the others run meanwhile.
    aside = Aside(device) if 0 < n_with_states < m and device.type == "cuda" else nullcontext()
    if n_with_states < m:
        assert packing.longest_first is not None
        _short_backward[((m - n_with_states) * H,)](
            C, B, x, kept.timeline.weights, kept.timeline.turned, C_bias, B_bias, mimo_x, D,
            C.stride(0), B.stride(0), x.stride(0), T * H, packing.segments, packing.longest_first[n_with_states:],
            by_out, dq, dk, dq_unit, dk_unit, down,
            H=H, R=R, N=N, P=P, S=S, L=blocks.L, HALF=blocks.HALF, BP=blocks.BP,
            **tiles.segments_backward(x.dtype, blocks),
        )  # fmt: skip
    with aside:
        run_segments(n_with_states, packing.longest_first, states_only=False)
    dmimo_x = values_backward(x, mimo_x, by_out, columns.x)
    dC, dC_bias, along_q, across_q = qk_backward(C, C_bias, kept.timeline.turned, dq, dq_unit)
    dB, dB_bias, along_k, across_k = qk_backward(B, B_bias, kept.timeline.turned, dk, dk_unit)
    by_states, dinitial = None, None
    if everything:
        by_states, dinitial = state_backward(
            operands._replace(mimo_x=mimo_x), packing, initial_state, ends, dssm, dlater_segments,
            dB, dB_bias, columns.x, dmimo_x,
        )  # fmt: skip
    by_segments = SegmentGradients(
        along_q, along_k, down, across_q, across_k, dlater, dtotal, dlater_segments, dtotal_segments
    )
    dadt, ddt = timeline_backward(
        operands, packing, blocks.L, n_with_states, by_segments, by_states, resumed, columns.trap, columns.angles
    )
    gradients = (
        dC, dB, columns.x, columns.z, dadt, ddt, columns.trap, columns.angles,
        dC_bias, dB_bias, dmimo_x, dmimo_z, dmimo_o, dD,
    )  # fmt: skip
    return Gradients(Operands(*(d.to(t.dtype) for d, t in zip(gradients, operands, strict=True))), dinitial)
