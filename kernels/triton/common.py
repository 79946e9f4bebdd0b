"""What the forward and the backward kernels share: rotations, a chunk's q, k and v, products, sizes of blocks.

A program works on one head of one segment, chunk after chunk of L tokens. The rows of its tiles are the L tokens of
each rank, rank after rank: row r * L + t. In memory, a state has the two numbers of a rotated pair side by side, in the
rows 2 i and 2 i + 1 for the pair (i, i + N / 2).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import libdevice

from kernels.arguments import PER_TOKEN, Operands
from kernels.triton import INTERPRETED

LOG2_E = tl.constexpr(1.4426950408889634)
PI = tl.constexpr(3.141592653589793)
INVERSE_TURN = tl.constexpr(0.15915494309189535)
# 2 pi in two parts; the first has few bits, so that whole multiples of it are exact in float32.
TURN_HIGH = tl.constexpr(6.28125)
TURN_LOW = tl.constexpr(0.0019353071795864769)


# Which sums are fused with the product before them, and so their last bits, would depend on what else a launch does.
NO_FUSION = {"enable_fp_fusion": False}


@dataclass(frozen=True)
class Blocks:
    """Sizes of the tiles for an operation of rank R, state N x P and S angles, powers of two where Triton wants them.

    Attributes:
        R: rank.
        L: tokens of a chunk.
        HALF: pairs of columns, at least N / 2.
        BP: rows of the state, at least P.
    """

    R: int
    L: int
    HALF: int
    BP: int

    @classmethod
    def of(cls, R: int, N: int, P: int) -> "Blocks":
        """At least 32 columns and 64 rows of the state: what Triton 3.6 makes of smaller tiles computes amiss on sm_90.

        With 16 of either float32 products read memory that is not theirs; with 32 rows bfloat16 chunks read a wrong
        state of the chunk before.
        """
        return cls(
            R=R, L=max(16, 64 // R), HALF=max(16, triton.next_power_of_2(N // 2)), BP=max(64, triton.next_power_of_2(P))
        )

    @property
    def tile(self) -> int:
        """Numbers of the largest tile."""
        widest = max(self.R * self.L, 2 * self.HALF)
        return widest * max(widest, self.BP)


@triton.jit
def sine(x):
    """Of x in [-pi, pi]."""
    return tl.sin(x) if INTERPRETED else libdevice.fast_sinf(x)


@triton.jit
def cosine(x):
    """Of x in [-pi, pi]."""
    return tl.cos(x) if INTERPRETED else libdevice.fast_cosf(x)


def at_once(count: int) -> int:
    """How many numbers a program takes: interpreted 8 times `count`, for that saves operations, not numbers."""
    return 8 * count if INTERPRETED else count


@triton.jit
def product(a, b, total, COMPUTE: tl.constexpr):
    """total + a @ b in float32, with a and b rounded to COMPUTE; float32 as three products, nearly all its bits."""
    a, b = a.to(COMPUTE), b.to(COMPUTE)
    if INTERPRETED:  # whose product takes bfloat16 for integers
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="tf32x3" if COMPUTE.primitive_bitwidth == 32 else "ieee")


@triton.jit
def without_turns(x):
    """x modulo 2 pi, in [0, 2 pi]."""
    turns = tl.floor(x * INVERSE_TURN)
    return tl.maximum(x - turns * TURN_HIGH - turns * TURN_LOW, 0.0)


@triton.jit
def tanh(x):
    """In x's dtype, float32 or, under the interpreter, any."""
    if INTERPRETED:
        e = tl.exp(-2 * tl.abs(x))
        return tl.where(x < 0, e - 1, 1 - e) / (1 + e)
    else:
        return libdevice.tanh(x)


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
def openings(dt, trap, stride_dt, stride_trap, tokens, stop):
    """Each token's weight in its update of the token before it, 0 from `stop` on."""
    valid = tokens < stop
    d = tl.load(dt + tokens * stride_dt, valid, 0.0).to(tl.float32)
    return d * tl.sigmoid(-tl.load(trap + tokens * stride_trap, valid, 0.0).to(tl.float32))


@triton.jit
def load(pointers, inside, WHOLE: tl.constexpr):
    """The tile, 0 outside; WHOLE where nothing is outside."""
    if WHOLE:
        return tl.load(pointers)
    else:
        return tl.load(pointers, inside, 0.0)


@triton.jit
def widened(x):
    """In float32."""
    if x.dtype == tl.bfloat16 and not INTERPRETED:  # one instruction a number, not two
        return tl.inline_asm_elementwise(
            "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;", "=r,=r,r", [x],
            dtype=tl.float32, is_pure=True, pack=2,
        )  # fmt: skip
    else:
        return x.to(tl.float32)


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """Of float32, in `dtype`.

    The assembly says it is impure only so that the compiler leaves it where it is: else it moves a product's operand
    into the registers of the tensor cores from its loads on, and makes every number of it from two loads of two bytes.
    """
    if dtype == tl.bfloat16 and not INTERPRETED:
        return tl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", [x], dtype=tl.bfloat16, is_pure=False, pack=2
        )
    elif dtype == tl.float16 and not INTERPRETED:
        return tl.inline_asm_elementwise(
            "cvt.rn.f16x2.f32 $0, $2, $1;", "=r,f,f", [x], dtype=tl.float16, is_pure=False, pack=2
        )
    else:
        return x.to(dtype)


@triton.jit
def rounded_product(a, b):
    """a * b of one dtype, in that dtype; bfloat16 two at a time, impure for the reason given in `rounded`."""
    if a.dtype == tl.bfloat16 and not INTERPRETED:
        return tl.inline_asm_elementwise(
            "mul.rn.bf16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.bfloat16, is_pure=False, pack=2
        )
    else:
        return rounded(widened(a) * widened(b), a.dtype)


@triton.jit
def hidden(x):
    """int32 x, of which the compiler then knows nothing: what depends on it is not computed ahead for later rounds."""
    if INTERPRETED:
        return x
    else:
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def packed_sum(a, b):
    """a + b of bfloat16, two at a time."""
    return tl.inline_asm_elementwise(
        "add.rn.bf16x2 $0, $1, $2;", "=r,r,r", [a, b], dtype=tl.bfloat16, is_pure=True, pack=2
    )


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


@triton.jit
def twice_silu(half, dtype: tl.constexpr):
    """silu(2 * half) in float32; good to 5e-4 where it will be rounded to bfloat16."""
    if dtype == tl.bfloat16 and not INTERPRETED:
        tanh_half = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [half], dtype=tl.float32, is_pure=True, pack=1
        )
        return tl.fma(half, tanh_half, half)
    else:
        return 2 * half * tl.sigmoid(2 * half)


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
def chunk_turns(turned, distance, tokens, R: tl.constexpr, S: tl.constexpr, L: tl.constexpr, HALF: tl.constexpr):
    """Cosine and sine of a chunk's rotations since the segment's start, each (R, L, HALF).

    Here and for q and k every load has the shape of the tile, though it repeats numbers: then all have one layout, and
    nothing has to be exchanged between threads.
    """
    pairs = tl.arange(0, HALF)[None, None, :] + tl.zeros((R, L, HALF), tl.int32)
    turned += tokens[None, :, None] * distance + pairs
    return tl.load(turned, pairs < S, 1.0), tl.load(turned + S, pairs < S, 0.0)


@triton.jit
def chunk_directions(
    projection, stride, bias, cos, sin, tokens, R: tl.constexpr, N: tl.constexpr, L: tl.constexpr, HALF: tl.constexpr
):  # fmt: skip
    """q or k of a chunk, (R * L, 2 * HALF) in the dtype of cos and sin: the first of all pairs, then the second."""
    ranks, pairs = tl.arange(0, R)[:, None, None], tl.arange(0, HALF)[None, None, :]
    inside = pairs + tl.zeros((R, L, HALF), tl.int32) < N // 2
    bias += ranks * N + pairs + tl.zeros((R, L, HALF), tl.int32)
    projection += tokens[None, :, None] * stride + ranks * N + pairs
    first, second = load(projection, inside, 2 * HALF == N), load(projection + N // 2, inside, 2 * HALF == N)
    first_bias, second_bias = load(bias, inside, 2 * HALF == N), load(bias + N // 2, inside, 2 * HALF == N)
    first, second = rotated(first, second, first_bias, second_bias, cos, sin)
    return tl.reshape(tl.permute(tl.join(first, second), (0, 1, 3, 2)), (R * L, 2 * HALF))


@triton.jit
def chunk_values(x, stride, mimo_x, tokens, R: tl.constexpr, P: tl.constexpr, L: tl.constexpr, BP: tl.constexpr):
    """v of a chunk, (R * L, BP) in x's dtype; tokens (R * L,)."""
    rank, lanes = tl.arange(0, R * L) // L, tl.arange(0, BP)[None, :]
    inside = (tokens[:, None] >= 0) & (lanes < P)
    x = load(x + (tokens * stride)[:, None] + lanes, inside, BP == P)
    return rounded_product(x, load(mimo_x + rank[:, None] * P + lanes, inside, BP == P).to(x.dtype))


def with_contiguous_tokens(operands: Operands) -> Operands:
    """Copies what is not laid out as the kernels read it: weights as a whole, of the others each token's numbers."""
    per_token = (t if t[:1].is_contiguous() else t.contiguous() for t in operands[:PER_TOKEN])
    return Operands(*per_token, *(t.contiguous() for t in operands[PER_TOKEN:]))


def of_dtype(weights: Sequence[Tensor], dtype: torch.dtype) -> Sequence[Tensor]:
    """Copies, where they are not of that dtype, in two launches."""
    if all(t.dtype == dtype for t in weights):
        return weights
    parts = torch.cat([t.flatten() for t in weights]).to(dtype).split([t.numel() for t in weights])
    return [part.view_as(t) for part, t in zip(parts, weights, strict=True)]
