"""Backward through the gates and the values, number by number.

Tiles have the ranks last, where a thread has all of a number's and sums over them alone. Sums over tokens are taken by
program, each of every so manieth piece of the tokens, and then over the programs. A piece's loads come before its first
store: for all the compiler knows they may read what that writes, and would have to wait for it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton import tiles
from kernels.triton.activations import sigmoid_of_twice
from kernels.triton.bfloat16 import rounded, widened
from kernels.triton.chunk import load


@triton.jit
def _join_ranks(at, mask, WHOLE: tl.constexpr, STEP: tl.constexpr, R: tl.constexpr):
    """As `_load_ranks`, of one rank (A, B)."""
    if R == 1:
        return widened(load(at, mask, WHOLE))
    else:
        even = _join_ranks(at, mask, WHOLE, 2 * STEP, R // 2)
        odd = _join_ranks(at + STEP, mask, WHOLE, 2 * STEP, R // 2)
        return tl.reshape(tl.join(even, odd), (at.shape[0], at.shape[1], R))


@triton.jit
def _load_ranks(at, mask, WHOLE: tl.constexpr, STEP: tl.constexpr, R: tl.constexpr):
    """Float32 (A, B, R): R tiles that lie STEP apart, the first where `at` (A, B) points to."""
    return tl.reshape(_join_ranks(at, mask, WHOLE, STEP, R), (at.shape[0], at.shape[1], R))


@triton.jit
def _store_ranks(at, tile, mask, STEP: tl.constexpr):
    """The numbers (A, B, R) to where `_load_ranks` loads them from."""
    A: tl.constexpr = tile.shape[0]
    B: tl.constexpr = tile.shape[1]
    R: tl.constexpr = tile.shape[2]
    if R == 1:
        tl.store(at, rounded(tl.reshape(tile, (A, B)), at.dtype.element_ty), mask)
    else:
        even, odd = tl.split(tl.reshape(tile, (A, B, R // 2, 2)))
        _store_ranks(at, even, mask, 2 * STEP)
        _store_ranks(at + STEP, odd, mask, 2 * STEP)


@triton.jit
def _gates_backward(
    x, z, mimo_x, mimo_z, mimo_o, ranked, dy, stride_x, stride_z, stride_dz, tokens, by_out, dz, dweights,
    H: tl.constexpr, R: tl.constexpr, P: tl.constexpr, BT: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """A head's pieces; dweights (programs, H, 2 R P + 1) gets the sums of mimo_z, mimo_o and D."""
    head, program, programs = tl.program_id(0) % H, tl.program_id(0) // H, tl.num_programs(0) // H
    dtype: tl.constexpr = by_out.dtype.element_ty
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
        in_head = head * P + lanes[None, :]
        at_ranks = (token * H + head) * (R * P) + lanes[None, :]
        by_y = widened(tl.load(dy + token * (H * P) + in_head, mask, 0.0))[:, :, None]
        half = 0.5 * widened(load(z + token * stride_z + in_head, inside, whole))[:, :, None]
        x_token = widened(load(x + token * stride_x + in_head, inside, whole))
        out = _load_ranks(ranked + at_ranks, inside, whole, P, R)
        weight_x = _load_ranks(mimo_x + repeated, inside, whole, P, R)
        weight_z = _load_ranks(mimo_z + repeated, inside, whole, P, R)
        weight_o = _load_ranks(mimo_o + repeated, inside, whole, P, R)
        passed = sigmoid_of_twice(half * weight_z, dtype)
        silu = 2 * half * weight_z * passed
        by_silu = by_y * weight_o
        by_gate = by_silu * out * (passed + silu * (1 - passed))
        by_out_ranks = by_silu * silu
        sum_D += x_token * tl.sum(by_out_ranks * weight_x, 2)
        sum_mz += 2 * half * by_gate
        sum_mo += by_y * out * silu
        _store_ranks(by_out + at_ranks, by_out_ranks, mask, P)
        tl.store(dz + token * stride_dz + in_head, rounded(tl.sum(by_gate * weight_z, 2), dtype), mask)
        first += programs * BT
    dweights += (program * H + head) * (2 * R * P + 1)
    at = tl.arange(0, R)[None, :] * P + lanes[:, None]
    tl.store(dweights + at, tl.sum(sum_mz, 0), (lanes < P)[:, None])
    tl.store(dweights + R * P + at, tl.sum(sum_mo, 0), (lanes < P)[:, None])
    tl.store(dweights + 2 * R * P, tl.sum(tl.sum(sum_D, 1), 0))


def gates_backward(
    x: Tensor, z: Tensor, mimo_x: Tensor, mimo_z: Tensor, mimo_o: Tensor, ranked: Tensor, dy: Tensor, dz: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Through the gates, the sum over the ranks and D.

    Args:
        x: (T, H, P).
        z: (T, H, P).
        mimo_x: (H, R, P).
        mimo_z: (H, R, P).
        mimo_o: (H, R, P).
        ranked: (T, H, R, P), each rank's output before the gate.
        dy: (T, H, P), contiguous.
        dz: (T, H, P), gets the gradient of z, rounded to x's dtype; each token's numbers are contiguous.

    Returns:
        Gradients of `ranked` in x's dtype, of mimo_z, mimo_o and D (H,) in float32.
    """
    T, H, R, P = ranked.shape
    tile = tiles.gates_backward(R, P, x.dtype)
    programs = min(triton.cdiv(T, tile["BT"]), max(1, tiles.GATES_PROGRAMS // H))
    by_out = torch.empty_like(ranked)
    dweights = torch.empty(programs, H, 2 * R * P + 1, dtype=torch.float32, device=x.device)
    if T:
        _gates_backward[(H * programs,)](
            x, z, mimo_x, mimo_z, mimo_o, ranked, dy, x.stride(0), z.stride(0), dz.stride(0), T, by_out, dz, dweights,
            H=H, R=R, P=P, **tile,
        )  # fmt: skip
    sums = dweights.sum(0)
    dmimo_z, dmimo_o = sums[:, :-1].unflatten(1, (2, R, P)).unbind(1)
    return by_out, dmimo_z, dmimo_o, sums[:, -1]


@triton.jit
def _values_backward(
    x, mimo_x, dv, stride_x, stride_dx, tokens, dx, dweights,
    H: tl.constexpr, R: tl.constexpr, P: tl.constexpr, BT: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """A head's pieces; dweights (programs, H, R, P) gets the sums of mimo_x."""
    head, program, programs = tl.program_id(0) % H, tl.program_id(0) // H, tl.num_programs(0) // H
    whole: tl.constexpr = BP == P
    slots, lanes = tl.arange(0, BT), tl.arange(0, BP)
    inside = (lanes < P)[None, :] & (slots >= 0)[:, None]
    repeated = head * R * P + lanes[None, :] + tl.zeros((BT, BP), tl.int32)
    weight = _load_ranks(mimo_x + repeated, inside, whole, P, R)
    sum_mx = tl.zeros((BT, BP, R), tl.float32)
    first = program * BT
    while first < tokens:
        token = tl.minimum(first + slots, tokens - 1).to(tl.int64)[:, None]
        mask = (first + slots < tokens)[:, None] & (lanes < P)[None, :]
        in_head = head * P + lanes[None, :]
        x_token = widened(load(x + token * stride_x + in_head, inside, whole))
        at_ranks = dv + (token * H + head) * (R * P) + lanes[None, :]
        by_ranks = _load_ranks(at_ranks, mask, False, P, R)
        sum_mx += by_ranks * x_token[:, :, None]
        tl.store(dx + token * stride_dx + in_head, rounded(tl.sum(by_ranks * weight, 2), dx.dtype.element_ty), mask)
        first += programs * BT
    at = (program * H + head) * (R * P) + tl.arange(0, R)[None, :] * P + lanes[:, None]
    tl.store(dweights + at, tl.sum(sum_mx, 0), (lanes < P)[:, None])


def values_backward(x: Tensor, mimo_x: Tensor, dv: Tensor, dx: Tensor) -> Tensor:
    """Through v_r = mimo_x_r * x.

    Args:
        x: (T, H, P).
        mimo_x: (H, R, P).
        dv: (T, H, R, P).
        dx: (T, H, P) in x's dtype, gets the gradient of x; each token's numbers are contiguous.

    Returns:
        Gradient of mimo_x in float32.
    """
    T, H, R, P = dv.shape
    tile = tiles.values_backward(P)
    programs = min(triton.cdiv(T, tile["BT"]), max(1, tiles.VALUES_PROGRAMS // H))
    dweights = torch.empty(programs, H, R, P, dtype=torch.float32, device=x.device)
    if T:
        _values_backward[(H * programs,)](
            x, mimo_x, dv, x.stride(0), dx.stride(0), T, dx, dweights, H=H, R=R, P=P, **tile
        )  # fmt: skip
    return dweights.sum(0)
