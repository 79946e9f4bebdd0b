"""What a layer does between its two projections, with its gradients, as one function.

Forward, a kernel normalises B and C and makes the steps; the operation reads x and z where the projection has left
them. Backward, the operation stores its gradients of x and z likewise among those of the projection, and a kernel adds
what is left. It sums the gradients of the norms' weights and of the steps' bias over the tokens that a program takes;
the programs' sums are added afterwards, always in the same order.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import constants
from kernels.arguments import PER_TOKEN, Operands
from kernels.packing import Packing
from kernels.triton import tiles
from kernels.triton.activations import rate, rate_backward, softplus
from kernels.triton.chunk import load
from kernels.triton.operation.backward import Columns, mamba3_mimo_backward
from kernels.triton.operation.forward import mamba3_mimo_forward

EPSILON = tl.constexpr(constants.EPSILON)


@triton.jit
def _weights(norm, N: tl.constexpr, FILLED: tl.constexpr):
    """A norm's in float32, (1, 1, FILLED)."""
    columns = tl.arange(0, FILLED)[None, None, :]
    return load(norm + columns, columns < N, FILLED == N).to(tl.float32)


@triton.jit
def _ranks(tokens, stride, R: tl.constexpr, N: tl.constexpr, FILLED: tl.constexpr):
    """Where the ranks of B or C of tokens lie that are `stride` apart, (tokens, R, FILLED)."""
    ranks, columns = tl.arange(0, R)[None, :, None], tl.arange(0, FILLED)[None, None, :]
    return (tokens * stride)[:, None, None] + ranks * N + columns


@triton.jit
def _in_ranks(inside, N: tl.constexpr, FILLED: tl.constexpr):
    """Which of their numbers there are."""
    return inside[:, None, None] & (tl.arange(0, FILLED) < N)[None, None, :]


@triton.jit
def _unit(projected, stride, tokens, mask, R: tl.constexpr, N: tl.constexpr, FILLED: tl.constexpr):
    """B or C of some tokens with a root mean square of 1 (tokens, R, FILLED), and what that has multiplied it by."""
    raw = tl.load(projected + _ranks(tokens, stride, R, N, FILLED), mask, 0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(raw * raw, 2) / N + EPSILON)[:, :, None]
    return raw * scale, scale


@triton.jit
def _normalise(
    projected, stride, norm, out, tokens, inside, R: tl.constexpr, N: tl.constexpr, FILLED: tl.constexpr
):  # fmt: skip
    """B or C of some tokens."""
    mask = _in_ranks(inside, N, FILLED)
    unit, _ = _unit(projected, stride, tokens, mask, R, N, FILLED)
    normal = unit * _weights(norm, N, FILLED)
    tl.store(out + _ranks(tokens, R * N, R, N, FILLED), normal.to(out.dtype.element_ty), mask)


@triton.jit
def _through_norm(
    projected, stride, norm, by_normal, tokens, inside, R: tl.constexpr, N: tl.constexpr, FILLED: tl.constexpr
):  # fmt: skip
    """The gradients of B or C of some tokens before their norm and of its weights, both (tokens, R, FILLED)."""
    mask = _in_ranks(inside, N, FILLED)
    by_normal = tl.load(by_normal + _ranks(tokens, R * N, R, N, FILLED), mask, 0.0).to(tl.float32)
    unit, scale = _unit(projected, stride, tokens, mask, R, N, FILLED)
    by_unit = by_normal * _weights(norm, N, FILLED)
    by_raw = scale * (by_unit - unit * (tl.sum(by_unit * unit, 2) / N)[:, :, None])
    return by_raw, by_normal * unit


@triton.jit(do_not_specialize=["n_tokens"])
def _before(
    projected, stride, dt_bias, B_norm, C_norm, B, C, dt, adt, n_tokens,
    INNER: tl.constexpr, H: tl.constexpr, R: tl.constexpr, N: tl.constexpr,
    TOKENS: tl.constexpr, FILLED: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """B and C normalised, dt and adt of some tokens, all contiguous."""
    tokens = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    inside = tokens < n_tokens
    projected += 2 * INNER
    _normalise(projected, stride, B_norm, B, tokens, inside, R, N, FILLED)
    _normalise(projected + R * N, stride, C_norm, C, tokens, inside, R, N, FILLED)
    heads = tl.arange(0, HEADS)[None, :]
    mask = inside[:, None] & (heads < H)
    projected += 2 * R * N + (tokens * stride)[:, None] + heads
    bias = tl.load(dt_bias + heads, heads < H, 0.0).to(tl.float32)
    step = softplus(tl.load(projected, mask, 0.0).to(tl.float32) + bias)
    forgets = rate(tl.load(projected + H, mask, 0.0).to(tl.float32))
    at = tokens[:, None] * H + heads
    tl.store(dt + at, step, mask)
    tl.store(adt + at, -forgets * step, mask)


@triton.jit(do_not_specialize=["n_tokens"])
def _after(
    projected, stride, dt_bias, B_norm, C_norm, dt, dB, dC, dadt, ddt, dprojected, width, sums, n_tokens,
    INNER: tl.constexpr, H: tl.constexpr, R: tl.constexpr, N: tl.constexpr, S: tl.constexpr, REST: tl.constexpr,
    TOKENS: tl.constexpr, FILLED: tl.constexpr, HEADS: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """The gradient of B, C, steps and rates before their norms and activations, and of the columns after the angles.

    Of dt_bias, B_norm and C_norm sums (programs, H + 2 * N) gets the program's.
    """
    dtype: tl.constexpr = dprojected.dtype.element_ty
    head, column, last = tl.arange(0, HEADS), tl.arange(0, FILLED), tl.arange(0, LAST)[None, :]
    heads = head[None, :]
    bias = tl.load(dt_bias + heads, heads < H, 0.0).to(tl.float32)
    sum_B = tl.zeros((TOKENS, R, FILLED), tl.float32)
    sum_C = tl.zeros((TOKENS, R, FILLED), tl.float32)
    sum_bias = tl.zeros((TOKENS, HEADS), tl.float32)
    first = tl.program_id(0) * TOKENS
    while first < n_tokens:
        tokens = first.to(tl.int64) + tl.arange(0, TOKENS)
        inside = tokens < n_tokens
        at, dat = projected + 2 * INNER, dprojected + 2 * INNER
        # All loads before the first store: for all the compiler knows they may read what it writes, and would wait.
        by_B, by_B_norm = _through_norm(at, stride, B_norm, dB, tokens, inside, R, N, FILLED)
        by_C, by_C_norm = _through_norm(at + R * N, stride, C_norm, dC, tokens, inside, R, N, FILLED)
        mask = inside[:, None] & (heads < H)
        at += 2 * R * N + (tokens * stride)[:, None] + heads
        here = tokens[:, None] * H + heads
        step, by_adt = tl.load(dt + here, mask, 0.0), tl.load(dadt + here, mask, 0.0).to(tl.float32)
        A = tl.load(at + H, mask, 0.0).to(tl.float32)
        forgets = rate(A)
        by_step = tl.load(ddt + here, mask, 0.0).to(tl.float32) - by_adt * forgets
        by_step *= tl.sigmoid(tl.load(at, mask, 0.0).to(tl.float32) + bias)
        by_A = rate_backward(-by_adt * step, A)
        sum_B += by_B_norm
        sum_C += by_C_norm
        sum_bias += by_step

        ranks, in_ranks = _ranks(tokens, width, R, N, FILLED), _in_ranks(inside, N, FILLED)
        tl.store(dat + ranks, by_B.to(dtype), in_ranks)
        tl.store(dat + R * N + ranks, by_C.to(dtype), in_ranks)
        dat += 2 * R * N + (tokens * width)[:, None]
        tl.store(dat + heads, by_step.to(dtype), mask)
        tl.store(dat + H + heads, by_A.to(dtype), mask)
        # Columns that nobody has looked at.
        zeros = tl.zeros((TOKENS, LAST), dtype)
        tl.store(dat + 3 * H + S + last, zeros, inside[:, None] & (last < REST))
        first += tl.num_programs(0) * TOKENS
    sums += tl.program_id(0) * (H + 2 * N)
    tl.store(sums + head, tl.sum(sum_bias, 0), head < H)
    tl.store(sums + H + column, tl.sum(tl.sum(sum_B, 1), 0), column < N)
    tl.store(sums + H + N + column, tl.sum(tl.sum(sum_C, 1), 0), column < N)


def mamba3_mixer_triton(
    projected: Tensor,
    n_angles: int,
    dt_bias: Tensor,
    B_norm: Tensor,
    C_norm: Tensor,
    weights: tuple[Tensor, ...],
    packing: Packing,
) -> Tensor:
    """`kernels.mamba3_mixer`, whose checks its arguments have passed; `weights` are the operation's, in its order."""
    contiguous = projected if projected[:1].is_contiguous() else projected.contiguous()
    norms = (t.contiguous() for t in (dt_bias, B_norm, C_norm, *weights))
    # Triton launches on the current device, which need not be the tensors'. (Backward, autograd sees to it.)
    with torch.cuda.device_of(projected):
        y: Tensor = _Mixer.apply(packing, n_angles, contiguous, *norms)
    return y


class _Mixer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        packing: Packing,
        n_angles: int,
        projected: Tensor,
        dt_bias: Tensor,
        B_norm: Tensor,
        C_norm: Tensor,
        *weights: Tensor,
    ) -> Tensor:
        H, R, N = weights[0].shape
        T, P = projected.shape[0], weights[2].shape[2]
        B, C = (torch.empty(T, R, N, dtype=projected.dtype, device=projected.device) for _ in range(2))
        dt, adt = (torch.empty(T, H, dtype=torch.float32, device=projected.device) for _ in range(2))
        if T:
            tile = tiles.mixer(H, R, N)
            _before[(triton.cdiv(T, tile["TOKENS"]),)](
                projected, projected.stride(0), dt_bias, B_norm, C_norm, B, C, dt, adt, T,
                INNER=H * P, H=H, R=R, N=N, **tile,
            )  # fmt: skip
        operands = _operands(projected, n_angles, B, C, dt, adt, weights)
        result = mamba3_mimo_forward(operands, packing, keep=any(ctx.needs_input_grad))
        ctx.packing, ctx.n_angles, ctx.kept = packing, n_angles, result.kept
        ctx.save_for_backward(projected, dt_bias, B_norm, C_norm, B, C, dt, adt, *weights)
        return result.y.flatten(1)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        projected, dt_bias, B_norm, C_norm, B, C, dt, adt, *weights = ctx.saved_tensors
        operands = _operands(projected, ctx.n_angles, B, C, dt, adt, tuple(weights))
        (T, H, P), (R, N), S = operands.x.shape, B.shape[1:], ctx.n_angles
        dy = dy.contiguous().view(T, H, P)
        dprojected = torch.empty(projected.shape, dtype=projected.dtype, device=projected.device)
        columns = _columns(dprojected, ctx.n_angles, H, P, R, N)
        by = mamba3_mimo_backward(operands, ctx.packing, None, ctx.kept, dy, None, columns).operands
        tile = tiles.mixer(H, R, N)
        programs = min(tiles.MIXER_PROGRAMS, triton.cdiv(T, tile["TOKENS"]))
        sums = torch.empty(programs, H + 2 * N, dtype=torch.float32, device=projected.device)
        if T:
            width = projected.shape[1]
            rest = width - 2 * H * P - 2 * R * N - 3 * H - S
            _after[(programs,)](
                projected, projected.stride(0), dt_bias, B_norm, C_norm, dt, by.B, by.C, by.adt, by.dt,
                dprojected, width, sums, T,
                INNER=H * P, H=H, R=R, N=N, S=S, REST=rest, LAST=triton.next_power_of_2(max(rest, 1)), **tile,
            )  # fmt: skip
        ddt_bias, dB_norm, dC_norm = (
            total.to(t.dtype) for total, t in zip(sums.sum(0).split([H, N, N]), (dt_bias, B_norm, C_norm), strict=True)
        )
        return (None, None, dprojected, ddt_bias, dB_norm, dC_norm, *by[PER_TOKEN:])


def _operands(
    projected: Tensor, n_angles: int, B: Tensor, C: Tensor, dt: Tensor, adt: Tensor, weights: tuple[Tensor, ...]
) -> Operands:
    """The operation's."""
    (H, R, N), P = weights[0].shape, weights[2].shape[2]
    x, z, trap, angles = _columns(projected, n_angles, H, P, R, N)
    return Operands(C, B, x, z, adt, dt, trap, angles, *weights)


def _columns(projected: Tensor, n_angles: int, H: int, P: int, R: int, N: int) -> Columns:
    """The columns of the projection, or of its gradient, that the operation reads and writes where they are."""
    sections = [H * P, H * P, 2 * R * N + 2 * H, H, n_angles]
    z, x, _, trap, angles, _ = torch.split(projected, [*sections, projected.shape[1] - sum(sections)], 1)
    return Columns(x.unflatten(1, (H, P)), z.unflatten(1, (H, P)), trap, angles)
