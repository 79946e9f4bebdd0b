"""Rotations: angles less whole turns, and the pairs of q and k turned."""

import triton
import triton.language as tl
from triton.language.extra.cuda import libdevice

from kernels.triton import INTERPRETED
from kernels.triton.bfloat16 import packed_sum, rounded, widened

PI = tl.constexpr(3.141592653589793)
INVERSE_TURN = tl.constexpr(0.15915494309189535)
# 2 pi in two parts; the first has few bits, so that whole multiples of it are exact in float32.
TURN_HIGH = tl.constexpr(6.28125)
TURN_LOW = tl.constexpr(0.0019353071795864769)


@triton.jit
def sine(x):
    """Of x in [-pi, pi]."""
    return tl.sin(x) if INTERPRETED else libdevice.fast_sinf(x)


@triton.jit
def cosine(x):
    """Of x in [-pi, pi]."""
    return tl.cos(x) if INTERPRETED else libdevice.fast_cosf(x)


@triton.jit
def without_turns(x):
    """x modulo 2 pi, in [0, 2 pi]."""
    turns = tl.floor(x * INVERSE_TURN)
    return tl.maximum(x - turns * TURN_HIGH - turns * TURN_LOW, 0.0)


@triton.jit
def nearest(x):
    """The whole number nearest to float32 x below 2 ** 22, by two sums: an instruction that rounds takes longer."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def rotation(theta):
    """Cosine and sine of any angle."""
    turns = nearest(theta * INVERSE_TURN)
    reduced = theta - turns * TURN_HIGH - turns * TURN_LOW
    return cosine(reduced), sine(reduced)


@triton.jit
def packed_turn(first, second, cos, sin):
    """Rotated pairs of bfloat16, two pairs at a time; impure for the reason given in `rounded`."""
    return tl.inline_asm_elementwise(
        """{
            .reg .b32 t;
            neg.bf16x2 t, $5;
            mul.rn.bf16x2 t, $3, t;
            fma.rn.bf16x2 $0, $2, $4, t;
            mul.rn.bf16x2 t, $3, $4;
            fma.rn.bf16x2 $1, $2, $5, t;
        }""",
        "=r,=r,r,r,r,r", [first, second, cos, sin],
        dtype=(tl.bfloat16, tl.bfloat16), is_pure=False, pack=2,
    )  # fmt: skip


@triton.jit
def rotated(first, second, first_bias, second_bias, cos, sin):
    """Pairs of q or k as the products take them, in the dtype of cos and sin, of a projection and a bias."""
    compute: tl.constexpr = cos.dtype
    if compute == tl.bfloat16 and not INTERPRETED:
        first = packed_sum(first.to(compute), first_bias.to(compute))
        second = packed_sum(second.to(compute), second_bias.to(compute))
        first, second = packed_turn(first, second, cos, sin)
    else:
        cos, sin = widened(cos), widened(sin)
        first, second = widened(first) + widened(first_bias), widened(second) + widened(second_bias)
        first, second = rounded(first * cos - second * sin, compute), rounded(first * sin + second * cos, compute)
    return first, second


@triton.jit
def biased(x, bias, compute: tl.constexpr):
    """Of q or k what does not rotate, as the products take it."""
    if compute == tl.bfloat16 and not INTERPRETED:
        return packed_sum(x.to(compute), bias.to(compute))
    else:
        return rounded(widened(x) + widened(bias), compute)
