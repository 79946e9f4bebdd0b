"""Backward through q and k, the rotated sums of a projection and a bias.

Tiles have the heads last, where a thread has all of a number's and sums over them alone; for the rest as in
`kernels.triton.operation.gates_values_backward`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton import tiles
from kernels.triton.bfloat16 import widened
from kernels.triton.rotation import biased, rotated


@triton.jit
def _join_heads(even, odd, HEADS: tl.constexpr):
    """What every second one of HEADS has, and what the others, as one tile with the heads last."""
    joined = tl.join(even, odd)
    if len(joined.shape) == 5:
        return tl.reshape(joined, (even.shape[0], even.shape[1], even.shape[2], HEADS))
    elif HEADS > 2 and len(joined.shape) == 4:
        return tl.reshape(joined, (even.shape[0], even.shape[1], HEADS))
    else:
        return joined


@triton.jit
def _heads_backward(
    first, second, bias, turned, gradient, unit, mask, valid, heads,
    N: tl.constexpr, S: tl.constexpr, TURNING: tl.constexpr,
    STEP: tl.constexpr, FIRST: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Of some pairs of q or k, TURNING if they rotate.

    Returns:
        Gradients of first and second (BT, R, PAIRS, HEADS), of a factor of a rank's pairs (BT, R, HEADS) and of the
        rotation (BT, PAIRS, HEADS), of one head without the last dimension; 0 from `heads` on.
    """
    if HEADS == 1:
        compute: tl.constexpr = turned.dtype.element_ty
        mask, valid = mask & (heads > FIRST), valid & (heads > FIRST)
        d_first, d_second = tl.load(gradient, mask, 0.0), tl.load(gradient + N // 2, mask, 0.0)
        first_bias, second_bias = tl.load(bias, mask, 0.0), tl.load(bias + N // 2, mask, 0.0)
        d_first, d_second = d_first.to(tl.float32), d_second.to(tl.float32)
        if gradient.dtype.element_ty == tl.float16:
            scale = tl.load(unit, valid, 0.0)
            d_first, d_second = d_first * scale, d_second * scale
        # The numbers that the products have taken: what tokens say of each other's rotations cancels.
        if TURNING:
            cos, sin = tl.load(turned, mask, 1.0), tl.load(turned + S, mask, 0.0)
            first, second = rotated(first, second, first_bias, second_bias, cos, sin)
            cos, sin = widened(cos), widened(sin)
            back_first, back_second = d_first * cos + d_second * sin, d_second * cos - d_first * sin
        else:
            first, second = biased(first, first_bias, compute), biased(second, second_bias, compute)
            back_first, back_second = d_first, d_second
        first, second = widened(first), widened(second)
        by_length = tl.sum(d_first * first + d_second * second, 2)
        by_turn = tl.sum(d_second * first - d_first * second, 1)
        return back_first, back_second, by_length, by_turn
    else:
        even = _heads_backward(
            first, second, bias, turned, gradient, unit, mask, valid, heads, N, S, TURNING, 2 * STEP, FIRST, HEADS // 2
        )
        R: tl.constexpr = first.shape[1]
        odd = _heads_backward(
            first, second, bias + STEP * (R * N), turned + STEP * (2 * S), gradient + STEP * (R * N), unit + STEP * R,
            mask, valid, heads, N, S, TURNING, 2 * STEP, FIRST + STEP, HEADS // 2,
        )  # fmt: skip
        return (
            _join_heads(even[0], odd[0], HEADS), _join_heads(even[1], odd[1], HEADS),
            _join_heads(even[2], odd[2], HEADS), _join_heads(even[3], odd[3], HEADS),
        )  # fmt: skip


@triton.jit
def _qk_backward(
    projection, stride, bias, turned, gradient, unit, tokens, total, along, across, dbias,
    H: tl.constexpr, HEADS: tl.constexpr, R: tl.constexpr, N: tl.constexpr, S: tl.constexpr,
    TURNS: tl.constexpr, RESTS: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """Pieces of the tokens, and a group of HEADS heads; a thread has all heads of a number.

    TURNS pairs hold those that rotate, RESTS pairs the others. Sums over heads go to total (groups, T, R, N), sums over
    tokens to dbias (programs, H, R, N).
    """
    program, programs, group = tl.program_id(0), tl.num_programs(0), tl.program_id(1)
    head = group * HEADS
    heads = H - head if HEADS < H else H
    bias += head * (R * N)
    turned += head * (2 * S)
    gradient += head * (R * N)
    unit += head * R
    along += head
    across += head * S
    total += group.to(tl.int64) * tokens * (R * N)
    ranks, of_group = tl.arange(0, R)[None, :, None], tl.arange(0, HEADS)
    turn = tl.arange(0, TURNS)[None, None, :] + tl.zeros((BT, R, TURNS), tl.int32)
    rest = tl.arange(0, RESTS)[None, None, :] + tl.zeros((BT, R, RESTS), tl.int32)
    at_turn, at_rest = ranks * N + turn, ranks * N + S + rest
    turn_first = tl.zeros((BT, R, TURNS, HEADS), tl.float32)
    turn_second = tl.zeros((BT, R, TURNS, HEADS), tl.float32)
    rest_first = tl.zeros((BT, R, RESTS, HEADS), tl.float32)
    rest_second = tl.zeros((BT, R, RESTS, HEADS), tl.float32)
    first = program * BT
    while first < tokens:
        token = (first + tl.arange(0, BT)).to(tl.int64)
        at, valid = token[:, None, None], (token < tokens)[:, None, None]
        is_turn, is_rest = valid & (turn < S), valid & (rest < N // 2 - S)
        at_token, by_token = projection + at * stride, gradient + at * (H * R * N)
        turn_parts = _heads_backward(
            tl.load(at_token + at_turn, is_turn, 0.0), tl.load(at_token + N // 2 + at_turn, is_turn, 0.0),
            bias + at_turn, turned + at * (H * 2 * S) + turn, by_token + at_turn, unit + at * (H * R) + ranks,
            is_turn, valid, heads, N, S, True, 1, 0, HEADS,
        )  # fmt: skip
        rest_parts = _heads_backward(
            tl.load(at_token + at_rest, is_rest, 0.0), tl.load(at_token + N // 2 + at_rest, is_rest, 0.0),
            bias + at_rest, turned, by_token + at_rest, unit + at * (H * R) + ranks,
            is_rest, valid, heads, N, S, False, 1, 0, HEADS,
        )  # fmt: skip
        by_turn_first = tl.reshape(turn_parts[0], (BT, R, TURNS, HEADS))
        by_turn_second = tl.reshape(turn_parts[1], (BT, R, TURNS, HEADS))
        by_rest_first = tl.reshape(rest_parts[0], (BT, R, RESTS, HEADS))
        by_rest_second = tl.reshape(rest_parts[1], (BT, R, RESTS, HEADS))
        turn_first += by_turn_first
        turn_second += by_turn_second
        rest_first += by_rest_first
        rest_second += by_rest_second
        at_total = total + at * (R * N)
        dtype: tl.constexpr = total.dtype.element_ty
        tl.store(at_total + at_turn, tl.sum(by_turn_first, 3).to(dtype), is_turn)
        tl.store(at_total + N // 2 + at_turn, tl.sum(by_turn_second, 3).to(dtype), is_turn)
        tl.store(at_total + at_rest, tl.sum(by_rest_first, 3).to(dtype), is_rest)
        tl.store(at_total + N // 2 + at_rest, tl.sum(by_rest_second, 3).to(dtype), is_rest)
        by_length = tl.sum(tl.reshape(turn_parts[2] + rest_parts[2], (BT, R, HEADS)), 1)
        is_head = (of_group < heads)[None, :] & (token < tokens)[:, None]
        tl.store(along + token[:, None] * H + of_group[None, :], by_length, is_head)
        by_turn = tl.trans(tl.reshape(turn_parts[3], (BT, TURNS, HEADS)), 0, 2, 1)
        at_across = across + (at * H + of_group[None, :, None]) * S + tl.arange(0, TURNS)[None, None, :]
        tl.store(at_across, by_turn, is_head[:, :, None] & (tl.arange(0, TURNS) < S)[None, None, :])
        first += programs * BT
    dbias += (program * H + head) * (R * N)
    _store_bias(dbias, turn_first, turn_second, heads, N, S)
    _store_bias(dbias + S, rest_first, rest_second, heads, N, N // 2 - S)


@triton.jit
def _store_bias(dbias, first, second, heads, N: tl.constexpr, COUNT: tl.constexpr):
    """The sums over the tokens of COUNT pairs (BT, R, PAIRS, HEADS)."""
    R: tl.constexpr = first.shape[1]
    PAIRS: tl.constexpr = first.shape[2]
    HEADS: tl.constexpr = first.shape[3]
    head, pair = tl.arange(0, HEADS)[None, None, :], tl.arange(0, PAIRS)[None, :, None]
    at = dbias + head * (R * N) + tl.arange(0, R)[:, None, None] * N + pair
    tl.store(at, tl.sum(first, 0), (head < heads) & (pair < COUNT))
    tl.store(at + N // 2, tl.sum(second, 0), (head < heads) & (pair < COUNT))


def qk_backward(
    projection: Tensor, bias: Tensor, turned: Tensor, gradient: Tensor, unit: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Through q or k, the rotated sum of a projection that all heads share and a bias.

    Args:
        projection: (T, R, N), C or B.
        bias: (H, R, N).
        turned: (T, H, 2, S), as `kernels.triton.operation.timeline.Timeline.turned`.
        gradient: (T, H, R, N), of q or k; in float16 in units of each rank.
        unit: float32 (T, H, R), the units; of float32 gradients anything.

    Returns:
        Gradients of the projection in its dtype and of the bias in float32 and, float32, of a factor of all of a
        token's numbers (T, H) and of its rotation (T, H, S).
    """
    T, H, R, N = gradient.shape
    S, device = turned.shape[3], gradient.device
    tile = tiles.qk_backward(H, R, N, S)
    groups, programs = triton.cdiv(H, tile["HEADS"]), min(triton.cdiv(T, tile["BT"]), tiles.QK_PROGRAMS)
    total = torch.empty(groups, T, R, N, dtype=projection.dtype if groups == 1 else torch.float32, device=device)
    along, across, dbias = (
        torch.empty(shape, dtype=torch.float32, device=device) for shape in ((T, H), (T, H, S), (programs, H, R, N))
    )
    if T:
        _qk_backward[(programs, groups)](
            projection, projection.stride(0), bias, turned, gradient, unit, T, total, along, across, dbias,
            H=H, R=R, N=N, S=S, **tile,
        )  # fmt: skip
    return total[0] if groups == 1 else total.sum(0).to(projection.dtype), dbias.sum(0), along, across
