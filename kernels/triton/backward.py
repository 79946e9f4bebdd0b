"""The operation backward.

The forward pass has kept each rank's output before the gate and the states its chunks start with. One kernel takes the
gates' gradients from the former; in another every segment's program goes back through its chunks with the gradient of
the state, which segments of long sequences get from a scan, as forward. What a program cannot finish alone is summed
afterwards, always in the same order: gradients of B and C over the heads, of weights over programs, of the angles over
the tokens that come later.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import Operands
from kernels.packing import Packing
from kernels.state import Mamba3State
from kernels.triton.common import (
    Blocks,
    load,
    product,
    rounded,
    sigmoid_of_twice,
    twice_silu,
    widened,
)
from kernels.triton.forward import Kept
from kernels.triton.scan import scan_backward
from kernels.triton.timeline import EndGradients, SegmentGradients, timeline_backward

# Programs a head: each takes every so manieth segment, or piece of the tokens, and sums gradients of weights over them.
_PROGRAMS = 512


def _options(dtype: torch.dtype, tile: int) -> dict[str, int]:
    """How `_segments_backward` is compiled, with tiles of at most that many numbers.

    Few registers let three programs share a multiprocessor.
    """
    if dtype == torch.bfloat16 and tile <= 64 * 64:
        return {"num_warps": 4, "num_stages": 1, "maxnreg": 168}
    return {"num_warps": 8, "num_stages": 1}


@triton.jit
def _halves(tile, R: tl.constexpr):
    """(A, B, R) as those of even and those of odd ranks."""
    return tl.split(tl.reshape(tile, (tile.shape[0], tile.shape[1], R // 2, 2)))


@triton.jit
def _joined(even, odd, R: tl.constexpr):
    """`_halves` undone; of single ranks (A, B). A thread that has their numbers has all ranks of them."""
    return tl.reshape(tl.join(even, odd), (even.shape[0], even.shape[1], R))


@triton.jit
def _vectors(
    projection, bias, inside, cos, sin, N: tl.constexpr, HALF: tl.constexpr, STEP: tl.constexpr, R: tl.constexpr
):  # fmt: skip
    """The two halves of q's or k's pairs, each (L, HALF, R) in the dtype of cos and sin."""
    if R == 1:
        whole: tl.constexpr = 2 * HALF == N
        first = widened(load(projection, inside, whole)) + widened(load(bias, inside, whole))
        second = widened(load(projection + N // 2, inside, whole)) + widened(load(bias + N // 2, inside, whole))
        compute: tl.constexpr = cos.dtype
        cos, sin = widened(cos), widened(sin)
        # Rounded as the products take them: what tokens say of each other's rotations then cancels as it should.
        return rounded(first * cos - second * sin, compute), rounded(first * sin + second * cos, compute)
    else:
        even = _vectors(projection, bias, inside, cos, sin, N, HALF, 2 * STEP, R // 2)
        odd = _vectors(projection + STEP * N, bias + STEP * N, inside, cos, sin, N, HALF, 2 * STEP, R // 2)
        return _joined(even[0], odd[0], R), _joined(even[1], odd[1], R)


@triton.jit
def _values(x, mimo_x, inside, dtype: tl.constexpr, P: tl.constexpr, STEP: tl.constexpr, R: tl.constexpr):
    """v (L, BP, R) of x (L, BP)."""
    if R == 1:
        return rounded(x * widened(load(mimo_x, inside, x.shape[1] == P)), dtype)
    else:
        even = _values(x, mimo_x, inside, dtype, P, 2 * STEP, R // 2)
        odd = _values(x, mimo_x + STEP * P, inside, dtype, P, 2 * STEP, R // 2)
        return _joined(even, odd, R)


@triton.jit
def _through_gates(
    dy, half, mimo_z, mimo_o, inside, dtype: tl.constexpr, P: tl.constexpr, STEP: tl.constexpr, R: tl.constexpr
):  # fmt: skip
    """Gradients of the ranks' outputs (L, BP, R), of dy and half of z (L, BP)."""
    if R == 1:
        whole: tl.constexpr = half.shape[1] == P
        gate = twice_silu(half * widened(load(mimo_z, inside, whole)), dtype)
        return rounded(dy * (gate * widened(load(mimo_o, inside, whole))), dtype)
    else:
        even = _through_gates(dy, half, mimo_z, mimo_o, inside, dtype, P, 2 * STEP, R // 2)
        odd = _through_gates(dy, half, mimo_z + STEP * P, mimo_o + STEP * P, inside, dtype, P, 2 * STEP, R // 2)
        return _joined(even, odd, R)


@triton.jit
def _scaled(tile, factor, dtype: tl.constexpr, R: tl.constexpr):
    """(L, BP, R) times (L, BP)."""
    if R == 1:
        return rounded(widened(tl.reshape(tile, factor.shape)) * factor, dtype)
    else:
        even, odd = _halves(tile, R)
        return _joined(_scaled(even, factor, dtype, R // 2), _scaled(odd, factor, dtype, R // 2), R)


@triton.jit
def _through_values(dv, x, mimo_x, inside, P: tl.constexpr, STEP: tl.constexpr, R: tl.constexpr):
    """Gradient of x (L, BP), and the tokens' of mimo_x (L, BP, R)."""
    if R == 1:
        dv = tl.reshape(dv, x.shape)
        return dv * widened(load(mimo_x, inside, x.shape[1] == P)), dv * x
    else:
        even, odd = _halves(dv, R)
        even = _through_values(even, x, mimo_x, inside, P, 2 * STEP, R // 2)
        odd = _through_values(odd, x, mimo_x + STEP * P, inside, P, 2 * STEP, R // 2)
        return even[0] + odd[0], _joined(even[1], odd[1], R)


@triton.jit
def _turned_back(
    gradient, first, second, cos, sin, pointers, mask, N: tl.constexpr, STEP: tl.constexpr, R: tl.constexpr
):  # fmt: skip
    """Turns the gradient (L, 2 HALF, R) of q or k back and stores it.

    Returns:
        Its products with the vectors and with the vectors turned by a quarter, summed over the ranks, (L, HALF).
    """
    L: tl.constexpr = cos.shape[0]
    HALF: tl.constexpr = cos.shape[1]
    if R == 1:
        d_first, d_second = tl.split(tl.permute(tl.reshape(gradient, (L, 2, HALF)), (0, 2, 1)))
        dtype = pointers.dtype.element_ty
        tl.store(pointers, (d_first * cos + d_second * sin).to(dtype), mask)
        tl.store(pointers + N // 2, (d_second * cos - d_first * sin).to(dtype), mask)
        first, second = widened(tl.reshape(first, (L, HALF))), widened(tl.reshape(second, (L, HALF)))
        return d_first * first + d_second * second, d_second * first - d_first * second
    else:
        even, odd = _halves(gradient, R)
        even_first, odd_first = _halves(first, R)
        even_second, odd_second = _halves(second, R)
        even = _turned_back(even, even_first, even_second, cos, sin, pointers, mask, N, 2 * STEP, R // 2)
        odd = _turned_back(odd, odd_first, odd_second, cos, sin, pointers + STEP * N, mask, N, 2 * STEP, R // 2)
        return even[0] + odd[0], even[1] + odd[1]


@triton.jit
def _rows(tile, L: tl.constexpr, W: tl.constexpr, R: tl.constexpr):
    """(L, W, R) as (R * L, W).

    Neighbouring columns are joined last: the compiler takes for contiguous what was joined last, and if it were the
    ranks it would store the tile for the tensor cores number by number.
    """
    even, odd = tl.split(tl.permute(tl.reshape(tile, (L, W // 2, 2, R)), (0, 1, 3, 2)))
    return tl.reshape(tl.permute(tl.join(even, odd), (2, 0, 1, 3)), (R * L, W))


@triton.jit
def _of_ranks(rows, R: tl.constexpr, L: tl.constexpr):
    """`_rows` undone."""
    return tl.permute(tl.reshape(rows, (R, L, rows.shape[1])), (1, 2, 0))


@triton.jit
def _row_pairs(first, second, L: tl.constexpr, HALF: tl.constexpr, R: tl.constexpr):
    """The halves of pairs, (L, HALF, R), as (R * L, 2 * HALF)."""
    pairs = tl.reshape(tl.join(first, second), (L, HALF, R, 2))
    return tl.reshape(tl.permute(pairs, (2, 0, 3, 1)), (R * L, 2 * HALF))


@triton.jit
def _gate_backward(
    dy, half, x, out, mimo_x, mimo_z, mimo_o, inside, P: tl.constexpr, STEP: tl.constexpr, R: tl.constexpr
):  # fmt: skip
    """Gradient of z, of D (L, BP), and of mimo_z and mimo_o (L, BP, R); `out` points to the ranks' outputs."""
    if R == 1:
        whole: tl.constexpr = half.shape[1] == P
        by_rank = widened(load(mimo_z, inside, whole))
        passed = sigmoid_of_twice(half * by_rank, out.dtype.element_ty)
        silu = 2 * half * by_rank * passed
        by_silu = dy * widened(load(mimo_o, inside, whole))
        out_rank = widened(load(out, inside, whole))
        by_gate = by_silu * out_rank * (passed + silu * (1 - passed))
        by_D = x * by_silu * silu * widened(load(mimo_x, inside, whole))
        return by_gate * by_rank, by_D, 2 * half * by_gate, dy * out_rank * silu
    else:
        even = _gate_backward(dy, half, x, out, mimo_x, mimo_z, mimo_o, inside, P, 2 * STEP, R // 2)
        d: tl.constexpr = STEP * P
        odd = _gate_backward(
            dy, half, x, out + d, mimo_x + d, mimo_z + d, mimo_o + d, inside, P, 2 * STEP, R // 2
        )  # fmt: skip
        return even[0] + odd[0], even[1] + odd[1], _joined(even[2], odd[2], R), _joined(even[3], odd[3], R)


@triton.jit
def _gates_backward(
    x, z, mimo_x, mimo_z, mimo_o, ranked, dy, stride_x, stride_z, tokens, dz, dgates,
    H: tl.constexpr, R: tl.constexpr, P: tl.constexpr, BT: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Gradients of z and, summed over the program's tokens, of mimo_z, mimo_o and D: dgates (programs, H, 2RP + 1)."""
    head, program, programs = tl.program_id(0) % H, tl.program_id(0) // H, tl.num_programs(0) // H
    whole: tl.constexpr = BP == P
    slots, lanes = tl.arange(0, BT), tl.arange(0, BP)
    inside = (lanes < P)[None, :] & (slots >= 0)[:, None]
    repeated = lanes[None, :] + tl.zeros((BT, BP), tl.int32)
    mimo_x += head * R * P + repeated
    mimo_z += head * R * P + repeated
    mimo_o += head * R * P + repeated
    x += head * P + lanes[None, :]
    z += head * P + lanes[None, :]
    sum_D = tl.zeros((BT, BP), tl.float32)
    sum_mz = tl.zeros((BT, BP, R), tl.float32)
    sum_mo = tl.zeros((BT, BP, R), tl.float32)
    first = program * BT
    while first < tokens:
        token = tl.minimum(first + slots, tokens - 1).to(tl.int64)[:, None]
        mask = (first + slots < tokens)[:, None] & (lanes < P)[None, :]
        at = (token * H + head) * P + lanes[None, :]
        by_y = widened(tl.load(dy + at, mask, 0.0))
        half = 0.5 * widened(load(z + token * stride_z, inside, whole))
        x_token = widened(load(x + token * stride_x, inside, whole))
        out = ranked + (token * H + head) * (R * P) + lanes[None, :]
        by_z, by_D, by_mz, by_mo = _gate_backward(by_y, half, x_token, out, mimo_x, mimo_z, mimo_o, inside, P, 1, R)
        sum_D += by_D
        sum_mz += tl.reshape(by_mz, (BT, BP, R))
        sum_mo += tl.reshape(by_mo, (BT, BP, R))
        tl.store(dz + at, by_z.to(dz.dtype.element_ty), mask)
        first += programs * BT
    dgates += (program * H + head) * (2 * R * P + 1)
    at = tl.arange(0, R)[None, :] * P + lanes[:, None]
    tl.store(dgates + at, tl.sum(sum_mz, 0), (lanes < P)[:, None])
    tl.store(dgates + R * P + at, tl.sum(sum_mo, 0), (lanes < P)[:, None])
    tl.store(dgates + 2 * R * P, tl.sum(tl.sum(sum_D, 1), 0))


@triton.jit
def _segments_backward(
    C, B, x, z, weights, turned, dt, trap, C_bias, B_bias, mimo_x, mimo_z, mimo_o, D, dy,
    stride_C, stride_B, stride_x, stride_z, stride_dt, stride_trap, plane, segments, m, programs,
    entering, leaving, states, dC, dB, dx, ddecay, dread, down, dtheta, dlater, dtotal, dweights,
    H: tl.constexpr, R: tl.constexpr, N: tl.constexpr, P: tl.constexpr, S: tl.constexpr,
    L: tl.constexpr, HALF: tl.constexpr, BP: tl.constexpr,
    ALL: tl.constexpr, RESUMED: tl.constexpr, INITIAL: tl.constexpr, FINAL: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """Gradients of segments; with STATES only what their own outputs say of the state they start with.

    Elementwise work is done on tiles (L, W, R), where a thread has all ranks of a number and sums over them alone.
    """
    head, program = tl.program_id(0) % H, tl.program_id(0) // H
    compute: tl.constexpr = x.dtype.element_ty
    columns, lanes, slots, pairs = tl.arange(0, 2 * HALF), tl.arange(0, BP), tl.arange(0, L), tl.arange(0, HALF)
    row = tl.arange(0, R * L)
    rank, slot = row // L, row % L
    in_lanes, in_pairs = (slots >= 0)[:, None] & (lanes < P)[None, :], (slots >= 0)[:, None] & (pairs < N // 2)[None, :]
    whole: tl.constexpr = BP == P
    repeated = pairs[None, :] + tl.zeros((L, HALF), tl.int32)
    C_bias += head * R * N + repeated
    B_bias += head * R * N + repeated
    repeated = lanes[None, :] + tl.zeros((L, BP), tl.int32)
    mimo_x += head * R * P + repeated
    mimo_z += head * R * P + repeated
    mimo_o += head * R * P + repeated
    in_state = (columns % HALF * 2 + columns // HALF)[:, None] * BP + lanes[None, :]
    in_pair = pairs[:, None] * (2 * BP) + lanes[None, :]
    d_skip = tl.load(D + head).to(tl.float32)
    sum_mx = tl.zeros((L, BP, R), tl.float32)
    segment = program
    while segment < m:
        start = tl.load(segments + 4 * segment).to(tl.int64)
        length = tl.load(segments + 4 * segment + 1)
        index = tl.load(segments + 4 * segment + 2)
        number = segment if ALL else tl.load(segments + 4 * segment + 3)
        reads_first = (INITIAL or index > 0) if RESUMED else False
        followed = False
        if RESUMED:
            followed = tl.load(segments + 4 * (segment + 1) + 2, segment + 1 < m, 0) > 0
        n_chunks = (length + L - 1) // L
        if STATES:
            n_chunks = tl.where(number >= 0, n_chunks, 0)
        at_number = (number * H + head).to(tl.int64) * (2 * HALF * BP) + in_state
        dstate = tl.zeros((2 * HALF, BP), tl.float32)
        is_read = False
        if RESUMED and not STATES:
            is_read = followed or FINAL
            if is_read:
                dstate = tl.load(leaving + at_number)

        chunk = n_chunks - 1
        while chunk >= 0:
            begin = chunk * L
            here = start * H + head
            valid, row_valid = begin + slots < length, begin + slot < length
            tokens = tl.minimum(begin + slots, length - 1)
            at_turn = turned + here * (2 * S) + tokens[:, None] * (H * 2 * S) + pairs[None, :]
            is_turned = (slots >= 0)[:, None] & (pairs < S)[None, :]
            cos, sin = tl.load(at_turn, is_turned, 1.0), tl.load(at_turn + S, is_turned, 0.0)
            at = C + start * stride_C + tokens[:, None] * stride_C + pairs[None, :]
            q_first, q_second = _vectors(at, C_bias, in_pairs, cos, sin, N, HALF, 1, R)
            q = _row_pairs(q_first, q_second, L, HALF, R)
            at_lanes = here * P + (tokens * (H * P))[:, None] + lanes[None, :]
            at_z = z + start * stride_z + head * P + (tokens * stride_z)[:, None] + lanes[None, :]
            half = 0.5 * widened(load(at_z, in_lanes, whole))
            by_y = widened(tl.load(dy + at_lanes, valid[:, None] & in_lanes, 0.0))
            douts = _through_gates(by_y, half, mimo_z, mimo_o, in_lanes, compute, P, 1, R)
            dout = _rows(douts, L, BP, R)
            at_weights = weights + here + (begin + slot) * H
            c_row = tl.load(at_weights, row_valid, float("-inf"))
            last = tl.minimum(begin + L, length) - 1
            total = tl.load(weights + here + last * H)
            if not STATES:
                at = B + start * stride_B + tokens[:, None] * stride_B + pairs[None, :]
                k_first, k_second = _vectors(at, B_bias, in_pairs, cos, sin, N, HALF, 1, R)
                k = _row_pairs(k_first, k_second, L, HALF, R)
                at_x = x + start * stride_x + head * P + (tokens * stride_x)[:, None] + lanes[None, :]
                v = _values(widened(load(at_x, in_lanes, whole)), mimo_x, in_lanes, compute, P, 1, R)
                v = _rows(v, L, BP, R)

                # The scores, and what their weights and factors get.
                at = weights + here + (begin + slots) * H
                source = tl.load(at + plane, valid, float("inf"))
                own = tl.load(at + 2 * plane, valid, float("-inf"))
                same = slot[:, None] == slots[None, :]
                weight = tl.where(slot[:, None] > slots[None, :], c_row[:, None] - source[None, :], float("-inf"))
                weight = tl.exp2(tl.where(same, own[None, :], weight))
                zeros = tl.zeros((R * L, R * L), tl.float32)
                plain = tl.reshape(product(q, tl.trans(k), zeros, compute), (R * L, R, L))
                dplain = tl.reshape(product(dout, tl.trans(v), zeros, compute), (R * L, R, L))
                dplain *= weight[:, None, :]
                by_own = tl.sum(tl.where(same, tl.sum(dplain * plain, 1), 0.0), 1)
                tl.store(down + rank * plane + here + (begin + slot) * H, by_own, row_valid)
                is_own = (rank[:, None] == tl.arange(0, R)[None, :])[:, :, None] & same[:, None, :]
                scores = plain * weight[:, None, :] + tl.where(is_own, d_skip, 0.0)
                scores = rounded(tl.reshape(scores, (R * L, R * L)), compute)
                dplain = rounded(tl.reshape(dplain, (R * L, R * L)), compute)

                # To the state it leaves, each token adds v k^T times `left`.
                left = tl.exp2(total - tl.load(at_weights + plane, row_valid, float("inf")))
                if RESUMED:
                    at_next = start + tl.where(followed, length, 0)
                    opening = tl.load(dt + at_next * stride_dt + head, followed, 0.0).to(tl.float32)
                    shut = tl.load(trap + at_next * stride_trap + head, followed, 0.0).to(tl.float32)
                    left += tl.where(begin + slot == length - 1, opening * tl.sigmoid(-shut), 0.0)

                dv = tl.zeros((R * L, BP), tl.float32)
                if is_read:
                    dv = product(k, dstate, dv, compute) * left[:, None]
                dv = product(tl.trans(scores), dout, dv, compute)
                x_tokens = widened(load(at_x, in_lanes, whole))
                by_x, by_mx = _through_values(_of_ranks(dv, R, L), x_tokens, mimo_x, in_lanes, P, 1, R)
                sum_mx += tl.reshape(by_mx, (L, BP, R))
                tl.store(dx + at_lanes, by_x.to(compute), valid[:, None] & in_lanes)

                stored = valid[:, None] & in_pairs
                at = here * (R * N) + (tokens * (H * R * N))[:, None] + pairs[None, :]
                wide_cos, wide_sin = widened(cos), widened(sin)
                dk = tl.zeros((R * L, 2 * HALF), tl.float32)
                if is_read:
                    dk = product(v, tl.trans(dstate), dk, compute) * left[:, None]
                dk = product(tl.trans(dplain), q, dk, compute)
                by_k, turn_k = _turned_back(
                    _of_ranks(dk, R, L), k_first, k_second, wide_cos, wide_sin, dB + at, stored, N, 1, R
                )
                dq = tl.zeros((R * L, 2 * HALF), tl.float32)
                if chunk > 0 or reads_first:
                    if chunk > 0:
                        found = tl.load(states + ((start // L + chunk) * H + head) * (2 * HALF * BP) + in_state)
                    else:
                        found = tl.load(entering + at_number).to(compute)
                    dq = product(dout, tl.trans(found), dq, compute) * tl.exp2(c_row)[:, None]
                dq = product(dplain, k, dq, compute)
                by_q, turn_q = _turned_back(
                    _of_ranks(dq, R, L), q_first, q_second, wide_cos, wide_sin, dC + at, stored, N, 1, R
                )
                at = here * S + (tokens * (H * S))[:, None] + pairs[None, :]
                tl.store(dtheta + at, turn_k + turn_q, valid[:, None] & is_turned)
                # A token's decay counts in all it reads, less in what is read of it; in both stands its own weight.
                at = here + tokens * H
                tl.store(ddecay + at, tl.sum(by_q - by_k, 1), valid)
                tl.store(dread + at, tl.sum(by_k, 1), valid)
            if STATES or chunk > 0:
                c = tl.load(weights + here + (begin + slots) * H, valid, float("-inf"))
                weighted = _scaled(douts, tl.exp2(c)[:, None] + tl.zeros((L, BP), tl.float32), compute, R)
                dstate = product(tl.trans(q), _rows(weighted, L, BP, R), dstate * tl.exp2(total), compute)
                is_read = True
                if not STATES:
                    at_here = (start // L + chunk) * H + head
                    at_state = states + at_here * (2 * HALF * BP) + in_pair
                    s_first, s_second = widened(tl.load(at_state)), widened(tl.load(at_state + BP))
                    d_first, d_second = tl.split(tl.permute(tl.reshape(dstate, (2, HALF, BP)), (1, 2, 0)))
                    by_later = tl.sum(d_first * s_second - d_second * s_first, 1)
                    tl.store(dlater + at_here * S + pairs, by_later, pairs < S)
                    tl.store(dtotal + at_here * HALF + pairs, tl.sum(d_first * s_first + d_second * s_second, 1))
            chunk -= 1
        if STATES and number >= 0:
            tl.store(leaving + at_number, dstate)
        segment += programs

    if not STATES:
        dweights += (program * H + head).to(tl.int64) * (R * P)
        by_rank = tl.sum(sum_mx, 0)
        tl.store(dweights + tl.arange(0, R)[None, :] * P + lanes[:, None], by_rank, (lanes < P)[:, None])


@triton.jit
def _heads(
    per_head, mask, W: tl.constexpr, STEP: tl.constexpr, H: tl.constexpr, FIRST: tl.constexpr, HEADS: tl.constexpr
):  # fmt: skip
    """(BT, BW, HEADS) of pointers to the first head's numbers; 0 from H on."""
    if HEADS == 1:
        return widened(tl.load(per_head, mask & (FIRST < H), 0.0))
    else:
        even = _heads(per_head, mask, W, 2 * STEP, H, FIRST, HEADS // 2)
        odd = _heads(per_head + STEP * W, mask, W, 2 * STEP, H, FIRST + STEP, HEADS // 2)
        return _joined(even, odd, HEADS)


@triton.jit
def _sum_heads(
    per_head, tokens, total, dbias,
    H: tl.constexpr, HEADS: tl.constexpr, W: tl.constexpr, BT: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """(T, H, W) summed over the heads to (T, W), and over the program's tokens to (programs, H, W)."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    lanes = tl.program_id(1) * BW + tl.arange(0, BW)
    by_head = tl.zeros((BT, BW, HEADS), tl.float32)
    first = program * BT
    while first < tokens:
        token = (first + tl.arange(0, BT)).to(tl.int64)
        mask = (token < tokens)[:, None] & (lanes < W)[None, :]
        part = _heads(per_head + token[:, None] * (H * W) + lanes[None, :], mask, W, 1, H, 0, HEADS)
        part = tl.reshape(part, (BT, BW, HEADS))
        by_head += part
        tl.store(total + token[:, None] * W + lanes[None, :], tl.sum(part, 2).to(total.dtype.element_ty), mask)
        first += programs * BT
    heads = tl.arange(0, HEADS)[None, :]
    at = (program * H + heads) * W + lanes[:, None]
    tl.store(dbias + at, tl.sum(by_head, 0), (heads < H) & (lanes < W)[:, None])


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
) -> Gradients:
    """Gradients of `mamba3_mimo_forward`.

    Args:
        operands: as given to it.
        packing: likewise.
        initial_state: likewise.
        kept: what it has kept.
        dy: (T, H, P) gradient of y.
        ends: if it returned final states, these and their gradients.

    Returns:
        Gradients in the operands' dtypes; the same bits for the same arguments.
    """
    C, B, x, z, _, dt, trap, angles, C_bias, B_bias, mimo_x, mimo_z, mimo_o, D = operands
    T, R, N = C.shape
    H, P = x.shape[1:]
    S = angles.shape[1]
    blocks = Blocks.of(R, N, P)
    m, n, device = packing.segments.shape[0], packing.n_sequences, x.device
    final, dfinal = ends or (None, None)
    resumed, everything = kept.entering is not None, initial_state is not None or dfinal is not None
    programs = min(m, _PROGRAMS)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    dC, dB = empty(T, H, R, N, dtype=x.dtype), empty(T, H, R, N, dtype=x.dtype)
    dx, dz = empty(T, H, P, dtype=x.dtype), empty(T, H, P, dtype=x.dtype)
    ddecay, dread, down, dtheta = empty(T, H), empty(T, H), empty(R, T, H), empty(T, H, S)
    dlater, dtotal = empty(T // blocks.L + 1, H, S), empty(T // blocks.L + 1, H, blocks.HALF)
    dweights, dgates = empty(programs, H, R, P), empty(programs, H, 2 * R * P + 1)
    assert kept.ranked is not None
    assert kept.states is not None
    entering = kept.states if kept.entering is None else kept.entering
    leaving = kept.states if kept.entering is None else torch.empty_like(kept.entering)
    sizes = {"N": N, "P": P, "S": S, "HALF": blocks.HALF, "BP": blocks.BP, "ALL": everything}
    flags = {"INITIAL": initial_state is not None, "FINAL": dfinal is not None}

    def run_segments(states: bool) -> None:
        if m:
            _segments_backward[(programs * H,)](
                C, B, x, z, kept.timeline.weights, kept.timeline.turned, dt, trap,
                C_bias, B_bias, mimo_x, mimo_z, mimo_o, D, dy,
                C.stride(0), B.stride(0), x.stride(0), z.stride(0), dt.stride(0), trap.stride(0), T * H,
                packing.segments, m, programs, entering, leaving, kept.states,
                dC, dB, dx, ddecay, dread, down, dtheta, dlater, dtotal, dweights,
                H=H, R=R, **sizes, L=blocks.L, RESUMED=resumed, **flags, STATES=states,
                **_options(x.dtype, blocks.tile),
            )  # fmt: skip

    dlater_segments, dtotal_segments = dlater, dtotal
    dssm = empty(0 if initial_state is None else n, H, P, N)
    if resumed and n:
        run_segments(states=True)
        dlater_segments, dtotal_segments = scan_backward(
            packing, kept.timeline, entering, leaving, initial_state, dfinal, dssm, P=P, N=N
        )
    run_segments(states=False)
    if m:
        _gates_backward[(H * programs,)](
            x, z, mimo_x, mimo_z, mimo_o, kept.ranked, dy, x.stride(0), z.stride(0), T, dz, dgates,
            H=H, R=R, P=P, BT=512 // blocks.BP, BP=blocks.BP, num_warps=4,
        )  # fmt: skip

    dC, dC_bias = _over_heads(dC)
    dB, dB_bias = _over_heads(dB)
    by_gates = dgates.sum(0)
    dmimo_z, dmimo_o = by_gates[:, :-1].unflatten(1, (2, R, P)).unbind(1)
    sums = {"dB": dB, "dx": dx, "dB_bias": dB_bias, "dmimo_x": dweights.sum(0)}
    dangle = dend = torch.zeros(n, H, S, device=device)
    dopening = dtotal_out = torch.zeros(n, H, device=device)
    filled = packing.cu_seqlens.diff() > 0
    if final is not None and dfinal is not None:
        last = packing.cu_seqlens[1:].long()[filled] - 1
        dangle, dend = _through_final_state(dfinal, final, filled, last, sums)
        dtotal_out = (dfinal.ssm.float() * final.ssm).sum((2, 3))
    dinitial = None
    if initial_state is not None:
        starts = packing.cu_seqlens[:-1].long()[filled]
        opening = torch.zeros(n, H, device=device)
        opening[filled] = (dt[starts] * torch.sigmoid(-trap[starts])).float()
        dinitial, dopening = _through_initial_state(initial_state, dssm, opening, mimo_x, sums)
        dangle_in = torch.zeros(n, H, S, device=device)
        dangle_in[filled] = dlater_segments[packing.first_segments[:-1].long()[filled]] + dend[filled]
        if dfinal is not None:
            # An empty sequence's final state is its initial one; its ssm went through the scan.
            empty_ones = (t.float().masked_fill(filled.view(-1, *[1] * (t.dim() - 1)), 0) for t in dfinal)
            through = Mamba3State(*empty_ones)
            dangle_in += through.angle
            dinitial = dinitial._replace(k=dinitial.k + through.k, x=dinitial.x + through.x)
        dinitial = dinitial._replace(angle=dangle_in)
        dinitial = Mamba3State(*(d.to(t.dtype) for d, t in zip(dinitial, initial_state, strict=True)))
    by_segments = SegmentGradients(ddecay, dread, down, dtheta, dlater, dtotal, dlater_segments, dtotal_segments)
    by_ends = EndGradients(dopening, dend, dangle, dtotal_out) if everything else None
    dadt, ddt, dtrap, dangles = timeline_backward(operands, packing, blocks.L, by_segments, by_ends, resumed)
    gradients = (
        dC, sums["dB"], sums["dx"], dz, dadt, ddt, dtrap, dangles,
        dC_bias, sums["dB_bias"], sums["dmimo_x"], dmimo_z, dmimo_o, by_gates[:, -1],
    )  # fmt: skip
    return Gradients(Operands(*(d.to(t.dtype) for d, t in zip(gradients, operands, strict=True))), dinitial)


def _over_heads(per_head: Tensor) -> tuple[Tensor, Tensor]:
    """(T, H, R, N) summed over the heads to (T, R, N), and over the tokens to (H, R, N) in float32."""
    T, H, R, N = per_head.shape
    BW = min(256, triton.next_power_of_2(R * N))
    BT = 512 // BW
    total = torch.empty(T, R, N, dtype=per_head.dtype, device=per_head.device)
    blocks = min(triton.cdiv(T, BT), 2 * _PROGRAMS)
    dbias = torch.empty(blocks, H, R, N, dtype=torch.float32, device=per_head.device)
    if T:
        grid = (blocks, triton.cdiv(R * N, BW))
        sizes = {"H": H, "HEADS": triton.next_power_of_2(H), "W": R * N, "BT": BT, "BW": BW}
        _sum_heads[grid](per_head, T, total, dbias, **sizes, num_warps=4)
    return total, dbias.sum(0)


def _through_final_state(
    dfinal: Mamba3State, final: Mamba3State, filled: Tensor, last: Tensor, sums: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Adds what the final k and x say of the last tokens.

    Returns:
        What the final angle and k say of the sequence's rotation, (n, H, S), and with it what the final ssm says of a
        common rotation of all tokens and the state they find.
    """
    S, N = final.angle.shape[-1], final.k.shape[-1]
    dk, k = dfinal.k.float(), final.k
    first, second = slice(0, S), slice(N // 2, N // 2 + S)
    dangle = dfinal.angle + (dk[..., second] * k[..., first] - dk[..., first] * k[..., second]).sum(2)
    h, dh = final.ssm, dfinal.ssm.float()
    dend = dangle + (dh[..., second] * h[..., first] - dh[..., first] * h[..., second]).sum(2)
    cos, sin = final.angle.cos().unsqueeze(2), final.angle.sin().unsqueeze(2)
    unturned = dk.clone()
    unturned[..., first] = dk[..., first] * cos + dk[..., second] * sin
    unturned[..., second] = dk[..., second] * cos - dk[..., first] * sin
    unturned = unturned[filled]
    sums["dB"] = sums["dB"].index_add(0, last, unturned.sum(1).to(sums["dB"].dtype))
    sums["dx"] = sums["dx"].index_add(0, last, dfinal.x[filled].to(sums["dx"].dtype))
    sums["dB_bias"] = sums["dB_bias"] + unturned.sum(0)
    return dangle.contiguous(), dend.contiguous()


def _through_initial_state(
    initial: Mamba3State, dssm: Tensor, opening: Tensor, mimo_x: Tensor, sums: dict[str, Tensor]
) -> tuple[Mamba3State, Tensor]:
    """The first token adds opening * sum over r of v_r k_r^T to the state it finds; dssm is the gradient of the sum.

    Returns:
        The gradient of the state, without its angle's, and of `opening` (n, H).
    """
    x, k, weights = initial.x.float(), initial.k.float(), mimo_x.float()
    v = x.unsqueeze(2) * weights
    by_k = torch.einsum("nhpc,nhrp->nhrc", dssm, v)
    dopening = (by_k * k).sum((2, 3))
    dv = torch.einsum("nhpc,nhrc->nhrp", dssm, k) * opening[..., None, None]
    sums["dmimo_x"] = sums["dmimo_x"] + (dv * x.unsqueeze(2)).sum(0)
    dk, dx = by_k * opening[..., None, None], (dv * weights).sum(2)
    return Mamba3State(initial.angle, dssm, dk, dx), dopening
