"""What follows from the steps and angles alone, once for all heads: decays, weights and rotations of every token."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.packing import Packing
from kernels.triton.common import (
    INVERSE_TURN,
    LOG2_E,
    PI,
    TURN_HIGH,
    TURN_LOW,
    rotation,
    tanh,
    without_turns,
)

SMALLEST = tl.constexpr(1e-37)

# Tokens a program takes at once, and its warps.
_TILE, _WARPS = 32, 4


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
    """One segment, all heads."""
    segment = tl.program_id(0)
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
    turn = tl.zeros((HEADS, ANGLES), tl.float64)
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
        rate, by_head = tanh(raw), d[:, :, None]
        rates = (rate * PI)[:, None, :] * by_head
        # Less whole turns, so that sums stay small; from tile to tile in float64: rotations of one sign add up to many
        # turns, of which only the rest counts.
        whole = tl.floor(rates * INVERSE_TURN + 0.5)
        rates = rates - whole * TURN_HIGH - whole * TURN_LOW
        cos, sin = rotation(turn.to(tl.float32)[None, :, :] + tl.cumsum(rates, 0))
        exact = (rate.to(tl.float64) * PI)[:, None, :] * by_head.to(tl.float64)
        turn = without_turns(turn + tl.sum(exact, 0))
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
            H=H, S=S, L=L, CHUNKS=max(1, _TILE // L),
            HEADS=triton.next_power_of_2(H), ANGLES=triton.next_power_of_2(max(S, 1)), num_warps=_WARPS,
        )  # fmt: skip
    return result
