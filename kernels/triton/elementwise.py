"""What the backward pass does number by number: gates, values, and the rotations of q and k.

Tiles have the ranks or heads last, where a thread has all of a number's and sums over them alone. Sums over tokens are
taken by program, each of every so manieth piece of the tokens, and then over the programs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.common import load, rotated, rounded, sigmoid_of_twice, widened

# Most programs a head, or in all where a program takes all heads.
_PROGRAMS = 512


@triton.jit
def _joined(even, odd, COUNT: tl.constexpr):
    """What every second one of COUNT has, and what the others, as one tile (A, B, COUNT); of single ones (A, B)."""
    return tl.reshape(tl.join(even, odd), (even.shape[0], even.shape[1], COUNT))


@triton.jit
def _halves(tile, COUNT: tl.constexpr):
    """`_joined` undone."""
    return tl.split(tl.reshape(tile, (tile.shape[0], tile.shape[1], COUNT // 2, 2)))


@triton.jit
def _gate_backward(
    dy, half, x, out, by_out, mimo_x, mimo_z, mimo_o, inside, mask, P: tl.constexpr, STEP: tl.constexpr, R: tl.constexpr
):  # fmt: skip
    """Stores the gradient of the ranks' outputs, to which `out` points, in by_out.

    Returns:
        Gradients of z and D (L, BP), of mimo_z and mimo_o (L, BP, R).
    """
    if R == 1:
        whole: tl.constexpr = half.shape[1] == P
        dtype: tl.constexpr = out.dtype.element_ty
        by_rank = widened(load(mimo_z, inside, whole))
        passed = sigmoid_of_twice(half * by_rank, dtype)
        silu = 2 * half * by_rank * passed
        by_silu = dy * widened(load(mimo_o, inside, whole))
        out_rank = widened(load(out, inside, whole))
        by_gate = by_silu * out_rank * (passed + silu * (1 - passed))
        by_out_rank = by_silu * silu
        tl.store(by_out, rounded(by_out_rank, dtype), mask)
        by_D = x * by_out_rank * widened(load(mimo_x, inside, whole))
        return by_gate * by_rank, by_D, 2 * half * by_gate, dy * out_rank * silu
    else:
        even = _gate_backward(dy, half, x, out, by_out, mimo_x, mimo_z, mimo_o, inside, mask, P, 2 * STEP, R // 2)
        d: tl.constexpr = STEP * P
        odd = _gate_backward(
            dy, half, x, out + d, by_out + d, mimo_x + d, mimo_z + d, mimo_o + d, inside, mask, P, 2 * STEP, R // 2
        )  # fmt: skip
        return even[0] + odd[0], even[1] + odd[1], _joined(even[2], odd[2], R), _joined(even[3], odd[3], R)


@triton.jit
def _gates_backward(
    x, z, mimo_x, mimo_z, mimo_o, ranked, dy, stride_x, stride_z, tokens, by_out, dz, dweights,
    H: tl.constexpr, R: tl.constexpr, P: tl.constexpr, BT: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """A head's pieces; dweights (programs, H, 2 R P + 1) gets the sums of mimo_z, mimo_o and D."""
    head, program, programs = tl.program_id(0) % H, tl.program_id(0) // H, tl.num_programs(0) // H
    whole: tl.constexpr = BP == P
    slots, lanes = tl.arange(0, BT), tl.arange(0, BP)
    inside = (lanes < P)[None, :] & (slots >= 0)[:, None]
    repeated = head * R * P + lanes[None, :] + tl.zeros((BT, BP), tl.int32)
    sum_D = tl.zeros((BT, BP), tl.float32)
    sum_mz = tl.zeros((BT, BP, R), tl.float32)
    sum_mo = tl.zeros((BT, BP, R), tl.float32)
    first = program * BT
    while first < tokens:
        token = tl.minimum(first + slots, tokens - 1).to(tl.int64)[:, None]
        mask = (first + slots < tokens)[:, None] & (lanes < P)[None, :]
        at = (token * H + head) * P + lanes[None, :]
        ranks = (token * H + head) * (R * P) + lanes[None, :]
        by_y = widened(tl.load(dy + at, mask, 0.0))
        half = 0.5 * widened(load(z + token * stride_z + head * P + lanes[None, :], inside, whole))
        x_token = widened(load(x + token * stride_x + head * P + lanes[None, :], inside, whole))
        by_z, by_D, by_mz, by_mo = _gate_backward(
            by_y, half, x_token, ranked + ranks, by_out + ranks,
            mimo_x + repeated, mimo_z + repeated, mimo_o + repeated, inside, mask, P, 1, R,
        )  # fmt: skip
        sum_D += by_D
        sum_mz += tl.reshape(by_mz, (BT, BP, R))
        sum_mo += tl.reshape(by_mo, (BT, BP, R))
        tl.store(dz + at, by_z.to(dz.dtype.element_ty), mask)
        first += programs * BT
    dweights += (program * H + head) * (2 * R * P + 1)
    at = tl.arange(0, R)[None, :] * P + lanes[:, None]
    tl.store(dweights + at, tl.sum(sum_mz, 0), (lanes < P)[:, None])
    tl.store(dweights + R * P + at, tl.sum(sum_mo, 0), (lanes < P)[:, None])
    tl.store(dweights + 2 * R * P, tl.sum(tl.sum(sum_D, 1), 0))


def gates_backward(
    x: Tensor, z: Tensor, mimo_x: Tensor, mimo_z: Tensor, mimo_o: Tensor, ranked: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Through the gates, the sum over the ranks and D.

    Args:
        x: (T, H, P).
        z: (T, H, P).
        mimo_x: (H, R, P).
        mimo_z: (H, R, P).
        mimo_o: (H, R, P).
        ranked: (T, H, R, P), each rank's output before the gate.
        dy: (T, H, P), contiguous.

    Returns:
        Gradients of `ranked` and z in x's dtype, of mimo_z, mimo_o and D (H,) in float32.
    """
    T, H, R, P = ranked.shape
    BP = max(32, triton.next_power_of_2(P))
    BT = 256 // BP
    programs = min(triton.cdiv(T, BT), _PROGRAMS)
    by_out, dz = torch.empty_like(ranked), torch.empty_like(dy, dtype=x.dtype)
    dweights = torch.empty(programs, H, 2 * R * P + 1, dtype=torch.float32, device=x.device)
    if T:
        _gates_backward[(H * programs,)](
            x, z, mimo_x, mimo_z, mimo_o, ranked, dy, x.stride(0), z.stride(0), T, by_out, dz, dweights,
            H=H, R=R, P=P, BT=BT, BP=BP, num_warps=2,
        )  # fmt: skip
    sums = dweights.sum(0)
    dmimo_z, dmimo_o = sums[:, :-1].unflatten(1, (2, R, P)).unbind(1)
    return by_out, dz, dmimo_z, dmimo_o, sums[:, -1]


@triton.jit
def _value_backward(dv, x, mimo_x, inside, mask, P: tl.constexpr, STEP: tl.constexpr, R: tl.constexpr):
    """Gradient of x (BT, BP), and the tokens' of mimo_x (BT, BP, R); dv points to the first rank's."""
    if R == 1:
        by_rank = widened(tl.load(dv, mask, 0.0))
        return by_rank * widened(load(mimo_x, inside, x.shape[1] == P)), by_rank * x
    else:
        even = _value_backward(dv, x, mimo_x, inside, mask, P, 2 * STEP, R // 2)
        odd = _value_backward(dv + STEP * P, x, mimo_x + STEP * P, inside, mask, P, 2 * STEP, R // 2)
        return even[0] + odd[0], _joined(even[1], odd[1], R)


@triton.jit
def _values_backward(
    x, mimo_x, dv, stride_x, tokens, dx, dweights,
    H: tl.constexpr, R: tl.constexpr, P: tl.constexpr, BT: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """A head's pieces; dweights (programs, H, R, P) gets the sums of mimo_x."""
    head, program, programs = tl.program_id(0) % H, tl.program_id(0) // H, tl.num_programs(0) // H
    whole: tl.constexpr = BP == P
    slots, lanes = tl.arange(0, BT), tl.arange(0, BP)
    inside = (lanes < P)[None, :] & (slots >= 0)[:, None]
    repeated = head * R * P + lanes[None, :] + tl.zeros((BT, BP), tl.int32)
    sum_mx = tl.zeros((BT, BP, R), tl.float32)
    first = program * BT
    while first < tokens:
        token = tl.minimum(first + slots, tokens - 1).to(tl.int64)[:, None]
        mask = (first + slots < tokens)[:, None] & (lanes < P)[None, :]
        x_token = widened(load(x + token * stride_x + head * P + lanes[None, :], inside, whole))
        ranks = dv + (token * H + head) * (R * P) + lanes[None, :]
        by_x, by_mx = _value_backward(ranks, x_token, mimo_x + repeated, inside, mask, P, 1, R)
        sum_mx += tl.reshape(by_mx, (BT, BP, R))
        tl.store(dx + (token * H + head) * P + lanes[None, :], by_x.to(dx.dtype.element_ty), mask)
        first += programs * BT
    at = (program * H + head) * (R * P) + tl.arange(0, R)[None, :] * P + lanes[:, None]
    tl.store(dweights + at, tl.sum(sum_mx, 0), (lanes < P)[:, None])


def values_backward(x: Tensor, mimo_x: Tensor, dv: Tensor) -> tuple[Tensor, Tensor]:
    """Through v_r = mimo_x_r * x.

    Args:
        x: (T, H, P).
        mimo_x: (H, R, P).
        dv: (T, H, R, P).

    Returns:
        Gradients of x in its dtype and of mimo_x in float32.
    """
    T, H, R, P = dv.shape
    BP = max(32, triton.next_power_of_2(P))
    BT = 1024 // BP
    programs = min(triton.cdiv(T, BT), _PROGRAMS)
    dx = torch.empty(T, H, P, dtype=x.dtype, device=x.device)
    dweights = torch.empty(programs, H, R, P, dtype=torch.float32, device=x.device)
    if T:
        _values_backward[(H * programs,)](
            x, mimo_x, dv, x.stride(0), T, dx, dweights, H=H, R=R, P=P, BT=BT, BP=BP, num_warps=4
        )  # fmt: skip
    return dx, dweights.sum(0)


@triton.jit
def _join_heads(even, odd, HEADS: tl.constexpr):
    """What every second one of HEADS has, and what the others, as one tile (BT, R, HALF, HEADS)."""
    return tl.reshape(tl.join(even, odd), (even.shape[0], even.shape[1], even.shape[2], HEADS))


@triton.jit
def _heads_backward(
    first, second, bias, turned, gradient, low, along, across, tokens, pairs, mask, heads,
    N: tl.constexpr, S: tl.constexpr, STEP: tl.constexpr, FIRST: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Stores what concerns one head alone.

    Returns:
        Gradients of first and second (BT, R, HALF, HEADS), of one head (BT, R, HALF); 0 from `heads` on.
    """
    R: tl.constexpr = first.shape[1]
    if HEADS == 1:
        mask = mask & (heads > FIRST)
        is_turned = mask & (pairs < S)
        cos, sin = tl.load(turned, is_turned, 1.0), tl.load(turned + S, is_turned, 0.0)
        d_first, d_second = widened(tl.load(gradient, mask, 0.0)), widened(tl.load(gradient + N // 2, mask, 0.0))
        wide_cos, wide_sin = widened(cos), widened(sin)
        back_first, back_second = d_first * wide_cos + d_second * wide_sin, d_second * wide_cos - d_first * wide_sin
        # What tokens say of each other's rotations cancels, so it is taken with all bits and of the numbers that the
        # products have taken.
        if cos.dtype != tl.float32:
            d_first += widened(tl.load(low, is_turned, 0.0))
            d_second += widened(tl.load(low + S, is_turned, 0.0))
        first_bias, second_bias = tl.load(bias, mask, 0.0), tl.load(bias + N // 2, mask, 0.0)
        first, second = rotated(first, second, first_bias, second_bias, cos, sin)
        first, second = widened(first), widened(second)
        is_token = (tokens >= 0) & (heads > FIRST)
        pair = tl.arange(0, first.shape[2])[None, :]
        by_turn = tl.sum(d_second * first - d_first * second, 1)
        tl.store(across + tl.maximum(tokens, 0)[:, None] * S + pair, by_turn, is_token[:, None] & (pair < S))
        by_length = tl.sum(tl.sum(d_first * first + d_second * second, 2), 1)
        tl.store(along + tl.maximum(tokens, 0), by_length, is_token)
        return back_first, back_second
    else:
        even = _heads_backward(
            first, second, bias, turned, gradient, low, along, across, tokens, pairs, mask, heads,
            N, S, 2 * STEP, FIRST, HEADS // 2,
        )  # fmt: skip
        odd = _heads_backward(
            first, second, bias + STEP * (R * N), turned + STEP * (2 * S), gradient + STEP * (R * N),
            low + STEP * (R * 2 * S), along + STEP, across + STEP * S, tokens, pairs, mask, heads,
            N, S, 2 * STEP, FIRST + STEP, HEADS // 2,
        )  # fmt: skip
        return _join_heads(even[0], odd[0], HEADS), _join_heads(even[1], odd[1], HEADS)


@triton.jit
def _directions_backward(
    projection, stride, bias, turned, gradient, low, tokens, total, along, across, dbias,
    H: tl.constexpr, HEADS: tl.constexpr, R: tl.constexpr, N: tl.constexpr, S: tl.constexpr,
    HALF: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """Pieces of the tokens, and a group of HEADS heads; a thread has all heads of a number.

    Sums over heads go to total (groups, T, R, N), sums over tokens to dbias (programs, H, R, N).
    """
    program, programs, group = tl.program_id(0), tl.num_programs(0), tl.program_id(1)
    head, heads = group * HEADS, H - group * HEADS
    bias += head * (R * N)
    turned += head * (2 * S)
    gradient += head * (R * N)
    low += head * (R * 2 * S)
    along += head
    across += head * S
    total += group.to(tl.int64) * tokens * (R * N)
    ranks, pair = tl.arange(0, R)[None, :, None], tl.arange(0, HALF)[None, None, :]
    pairs = pair + tl.zeros((BT, R, HALF), tl.int32)
    at_rank = ranks * N + pairs
    sum_first = tl.zeros((BT, R, HALF, HEADS), tl.float32)
    sum_second = tl.zeros((BT, R, HALF, HEADS), tl.float32)
    first = program * BT
    while first < tokens:
        token = (first + tl.arange(0, BT)).to(tl.int64)
        valid = token < tokens
        at = token[:, None, None]
        mask = valid[:, None, None] & (pairs < N // 2)
        at_projection = projection + at * stride + at_rank
        back_first, back_second = _heads_backward(
            tl.load(at_projection, mask, 0.0), tl.load(at_projection + N // 2, mask, 0.0), bias + at_rank,
            turned + at * (H * 2 * S) + pairs, gradient + at * (H * R * N) + at_rank,
            low + at * (H * R * 2 * S) + ranks * (2 * S) + pairs, along, across, tl.where(valid, token * H, -1),
            pairs, mask, heads, N, S, 1, 0, HEADS,
        )  # fmt: skip
        back_first = tl.reshape(back_first, (BT, R, HALF, HEADS))
        back_second = tl.reshape(back_second, (BT, R, HALF, HEADS))
        sum_first += back_first
        sum_second += back_second
        at_total = total + at * (R * N) + at_rank
        tl.store(at_total, tl.sum(back_first, 3).to(total.dtype.element_ty), mask)
        tl.store(at_total + N // 2, tl.sum(back_second, 3).to(total.dtype.element_ty), mask)
        first += programs * BT
    of_group = tl.arange(0, HEADS)[None, None, :]
    ranks, pair = tl.arange(0, R)[:, None, None], tl.arange(0, HALF)[None, :, None]
    at_bias = dbias + (program * H + head + of_group) * (R * N) + ranks * N + pair
    in_bias = (of_group < heads) & (ranks < R) & (pair < N // 2)
    tl.store(at_bias, tl.sum(sum_first, 0), in_bias)
    tl.store(at_bias + N // 2, tl.sum(sum_second, 0), in_bias)


def directions_backward(
    projection: Tensor, bias: Tensor, turned: Tensor, gradient: Tensor, low: Tensor, HALF: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Through q or k, the rotated sum of a projection that all heads share and a bias.

    Args:
        projection: (T, R, N), C or B.
        bias: (H, R, N).
        turned: (T, H, 2, S), as `kernels.triton.timeline.Timeline.turned`.
        gradient: (T, H, R, N), of q or k.
        low: (T, H, R, 2, S), of the pairs that turn what rounding the gradient has left; in float32 anything.
        HALF: a power of two, at least N / 2.

    Returns:
        Gradients of the projection in its dtype and of the bias in float32 and, float32, of a factor of all of a
        token's numbers (T, H) and of its rotation (T, H, S).
    """
    T, H, R, N = gradient.shape
    S, device = turned.shape[3], gradient.device
    # One warp a program, which sums over ranks and pairs by itself; its threads have a few numbers of each head.
    BT = max(1, 128 // (R * HALF))
    HEADS = min(triton.next_power_of_2(H), max(1, 1024 // (BT * R * HALF)))
    groups, programs = triton.cdiv(H, HEADS), min(triton.cdiv(T, BT), 8 * _PROGRAMS)
    total = torch.empty(groups, T, R, N, dtype=gradient.dtype if groups == 1 else torch.float32, device=device)
    along, across, dbias = (
        torch.empty(shape, dtype=torch.float32, device=device) for shape in ((T, H), (T, H, S), (programs, H, R, N))
    )
    if T:
        _directions_backward[(programs, groups)](
            projection, projection.stride(0), bias, turned, gradient, low, T, total, along, across, dbias,
            H=H, HEADS=HEADS, R=R, N=N, S=S, HALF=HALF, BT=BT, num_warps=1, maxnreg=168,
        )  # fmt: skip
    return total[0] if groups == 1 else total.sum(0).to(gradient.dtype), dbias.sum(0), along, across
