"""A chunk's q, k and v, and the weights of tokens in updates of the token before.

A program works on one head of one segment, chunk after chunk of L tokens. The rows of its tiles are the L tokens of
each rank, rank after rank: row r * L + t. In memory, a state has the two numbers of a rotated pair side by side, in the
rows 2 i and 2 i + 1 for the pair (i, i + N / 2).
"""

import triton
import triton.language as tl

from kernels.triton.bfloat16 import rounded_product
from kernels.triton.rotation import rotated


@triton.jit
def load(pointers, inside, WHOLE: tl.constexpr):
    """The tile, 0 outside; WHOLE where nothing is outside."""
    if WHOLE:
        return tl.load(pointers)
    else:
        return tl.load(pointers, inside, 0.0)


@triton.jit
def openings(dt, trap, stride_dt, stride_trap, tokens, stop):
    """Each token's weight in its update of the token before it, 0 from `stop` on."""
    valid = tokens < stop
    d = tl.load(dt + tokens * stride_dt, valid, 0.0).to(tl.float32)
    return d * tl.sigmoid(-tl.load(trap + tokens * stride_trap, valid, 0.0).to(tl.float32))


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
def chunk_qk(
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
