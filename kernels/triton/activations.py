"""Activations of angles, gates, steps and rates."""

import triton
import triton.language as tl
from triton.language.extra.cuda import libdevice

from kernels import constants
from kernels.triton import INTERPRETED

LEAST_RATE = tl.constexpr(constants.LEAST_RATE)


@triton.jit
def tanh(x):
    """In x's dtype, float32 or, under the interpreter, any."""
    if INTERPRETED:
        e = tl.exp(-2 * tl.abs(x))
        return tl.where(x < 0, e - 1, 1 - e) / (1 + e)
    else:
        return libdevice.tanh(x)


@triton.jit
def twice_silu(half, dtype: tl.constexpr):
    """silu(2 * half) in float32; good to 5e-4 where it will be rounded to bfloat16, else to 1e-6."""
    if dtype == tl.bfloat16 and not INTERPRETED:
        tanh_half = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [half], dtype=tl.float32, is_pure=True, pack=1
        )
        return tl.fma(half, tanh_half, half)
    elif not INTERPRETED:
        # Without what exp and a quotient do for the smallest numbers, which 1 is added to.
        return tl.inline_asm_elementwise(
            """{
                .reg .f32 e;
                mul.f32 e, $1, 0fC038AA3B;
                ex2.approx.ftz.f32 e, e;
                add.f32 e, e, 0f3F800000;
                rcp.approx.ftz.f32 e, e;
                add.f32 $0, $1, $1;
                mul.f32 $0, $0, e;
            }""",
            "=f,f", [half], dtype=tl.float32, is_pure=True, pack=1,
        )  # fmt: skip
    else:
        return 2 * half * tl.sigmoid(2 * half)


@triton.jit
def packed_twice_silu(half):
    """silu(2 * half) of bfloat16, two at a time."""
    return tl.inline_asm_elementwise(
        "{ .reg .b32 t; tanh.approx.bf16x2 t, $1; fma.rn.bf16x2 $0, $1, t, $1; }", "=r,r", [half],
        dtype=tl.bfloat16, is_pure=True, pack=2,
    )  # fmt: skip


@triton.jit
def sigmoid_of_twice(half, dtype: tl.constexpr):
    """sigmoid(2 * half) in float32; good to 5e-4 where what it gives will be rounded to bfloat16."""
    if dtype == tl.bfloat16 and not INTERPRETED:
        tanh_half = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [half], dtype=tl.float32, is_pure=True, pack=1
        )
        return 0.5 + 0.5 * tanh_half
    else:
        return tl.sigmoid(2 * half)


@triton.jit
def softplus(x):
    """log(1 + exp(x)) with all its bits for small results, too: log1p(e) = 2 artanh(e / (2 + e)), as a series."""
    e = tl.exp(-tl.abs(x))
    s = e / (2 + e)  # at most 1 / 3, so that what is left out after eight terms is below 1e-9 of the sum
    q = s * s
    series = 1 / 15 + tl.zeros_like(q)
    for i in tl.static_range(7):
        series = series * q + 1 / (13 - 2 * i)
    return tl.maximum(x, 0.0) + 2 * s * series


@triton.jit
def _unbounded_rate(A):
    return tl.maximum(A, 0.0) + 1 / (1 - tl.minimum(A, 0.0))


@triton.jit
def rate(A):
    """How fast a head forgets, per unit of dt: 1 + A, where A is below 0 1 / (1 - A), but at least the least rate."""
    return tl.maximum(_unbounded_rate(A), LEAST_RATE)


@triton.jit
def rate_backward(by_rate, A):
    """The gradient of A from that of its rate; of the least rate it is 0."""
    inverse = 1 / (1 - tl.minimum(A, 0.0))
    return tl.where(_unbounded_rate(A) >= LEAST_RATE, by_rate, 0.0) * inverse * inverse
