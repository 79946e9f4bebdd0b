"""The first 32 tokens of segments that start from nothing, at the sizes where it pays: two warps, and no state.

In Gluon, for what this kernel saves it saves by layouts. A program takes segment after segment of one head, 8 tokens at
a time, which read themselves and the tiles before them; their k and v stay in shared memory, laid out as the tensor
cores take them, so that no number changes threads: not the scores, which go from one product into the next, nor the
outputs, of which a thread has all ranks.

The rows of a tile, of q and of k, are bits from the highest: half of the tokens, half of the ranks, 4 tokens, 2 ranks.
What a token gets depends on nothing but itself and those before it.
"""

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2

from kernels.arguments import Operands
from kernels.packing import Packing
from kernels.triton import INTERPRETED, tiles
from kernels.triton.activations import packed_twice_silu, twice_silu
from kernels.triton.bfloat16 import rounded, rounded_product, tf32_parts, widened
from kernels.triton.operation.timeline import Timeline
from kernels.triton.rotation import rotated

TOKENS = 32
"""At most of a segment."""

# Rows and pairs of q and k.
_PAIRS = gl.constexpr(
    gl.DistributedLinearLayout(
        [[0, 1], [0, 2], [0, 4], [8, 0]], [[0, 8], [0, 16], [1, 0], [2, 0], [4, 0]], [[16, 0]], [], [32, 32]
    )
)
# Tokens, ranks and columns of v and of the outputs.
_VALUES = gl.constexpr(
    gl.DistributedLinearLayout(
        [[0, 0, 1], [0, 0, 2], [0, 0, 4], [0, 1, 0], [0, 2, 0]],
        [[1, 0, 0], [2, 0, 0], [0, 0, 8], [0, 0, 16], [0, 0, 32]],
        [[4, 0, 0]],
        [],
        [8, 4, 64],
    )
)
# Readers and what they read; columns and readers.
_SCORES = gl.constexpr(gl.NVMMADistributedLayout([2, 0], [2, 1], [16, 8]))
_OUT = gl.constexpr(gl.NVMMADistributedLayout([2, 0], [1, 2], [16, 8]))
_Q, _K = (gl.constexpr(gl.DotOperandLayout(i, _SCORES.value, 8)) for i in range(2))
_V, _READ = (gl.constexpr(gl.DotOperandLayout(i, _OUT.value, 2)) for i in range(2))


def _shared(first: list[list[int]], lanes: list[list[int]], rest: list[list[int]]) -> gl.constexpr:
    """So that a thread finds 16 bytes, `first`, that the tensor cores take together, beside those of its neighbour."""
    return gl.constexpr(gl.SharedLinearLayout([*first, *lanes, *rest]))


def _from_shared(registers: list[list[int]], lanes: list[list[int]], shape: list[int]) -> gl.constexpr:
    """How it is read: by both warps the same."""
    return gl.constexpr(gl.DistributedLinearLayout(registers, lanes, [[0] * len(shape)], [], shape))


# Of bfloat16 16 bytes are 8 numbers, of float32, WIDE, 4.
_K_LANES, _V_LANES = _PAIRS.value.lane_bases, _VALUES.value.lane_bases
_X_LANES = [[1, 0], [2, 0], [0, 8], [0, 16], [0, 32]]
_K_FIRST, _K_REST = [[0, 1], [0, 32], [0, 2]], [[0, 4], [8, 0], [16, 0]]
_K_FIRST_WIDE, _K_REST_WIDE = [[0, 32], [0, 1]], [[0, 2], [0, 4], [8, 0], [16, 0]]
_V_FIRST, _V_REST = [[0, 1, 0], [0, 0, 1], [0, 2, 0]], [[0, 0, 2], [0, 0, 4], [4, 0, 0]]
_K_SHARED = _shared(_K_FIRST, _K_LANES, _K_REST)
_K_SHARED_WIDE = _shared(_K_FIRST_WIDE, _K_LANES, _K_REST_WIDE)
_V_SHARED = _shared(_V_FIRST, _V_LANES, _V_REST)
_X_SHARED_WIDE = _shared([[0, 1], [0, 2]], _X_LANES, [[0, 4], [4, 0]])
_K_THREADS = _from_shared([*_K_FIRST, *_K_REST], _K_LANES, [32, 64])
_K_THREADS_WIDE = _from_shared([*_K_FIRST_WIDE, *_K_REST_WIDE], _K_LANES, [32, 64])
_V_THREADS = _from_shared([*_V_FIRST, *_V_REST], _V_LANES, [8, 4, 64])


@gluon.jit
def _product(a, b, total):
    if a.dtype == gl.float32:
        large_a, small_a = tf32_parts(a)
        large_b, small_b = tf32_parts(b)
        total = mma_v2(small_a, large_b, total, input_precision="tf32")
        total = mma_v2(large_a, small_b, total, input_precision="tf32")
        return mma_v2(large_a, large_b, total, input_precision="tf32")
    else:
        return mma_v2(a, b, total)


@gluon.jit
def _qk(projection, first_bias, second_bias, cos, sin, N: gl.constexpr):
    """q or k, (32, 64): the first of all pairs, then the second."""
    first, second = gl.load(projection), gl.load(projection + N // 2)
    first, second = rotated(first, second, first_bias, second_bias, cos, sin)
    both = gl.reshape(gl.permute(gl.join(first, second), [0, 2, 1]), [32, 64])
    return gl.convert_layout(both, _Q, assert_trivial=True)


@gluon.jit
def _store_all(shared, numbers):
    """Numbers of all tiles, where they will be read tile by tile."""
    shared._reinterpret(gl.float32, [32], shared.layout).store(numbers)  # noqa: SLF001, it has no other name


@gluon.jit
def _of_ranks(weights, P: gl.constexpr, LAYOUT: gl.constexpr):
    """A head's weights of all ranks and columns (1, 4, 64), in a layout of tokens, ranks and columns."""
    RANKS: gl.constexpr = gl.SliceLayout(0, LAYOUT)
    at = gl.arange(0, 4, layout=gl.SliceLayout(1, RANKS))[:, None] * P
    return gl.load(weights + at + gl.arange(0, 64, layout=gl.SliceLayout(0, RANKS))[None, :])[None, :, :]


@gluon.jit
def _attended(q, k, v, mimo_x, c, source, own, skip, out, P: gl.constexpr, DIAGONAL: gl.constexpr):
    """out + what tokens read of a tile in shared memory, with DIAGONAL of their own; v is x where it is WIDE."""
    WIDE: gl.constexpr = q.dtype == gl.float32
    k = gl.permute(k.load(_K_THREADS_WIDE if WIDE else _K_THREADS), [1, 0])
    scores = _product(q, gl.convert_layout(k, _K, assert_trivial=True), gl.zeros([32, 32], gl.float32, _SCORES))
    # Tokens and ranks of the readers, tokens and ranks read.
    scores = gl.permute(gl.reshape(scores, [2, 2, 4, 2, 2, 2, 4, 2]), [0, 2, 1, 3, 4, 6, 5, 7])
    scores = gl.reshape(scores, [8, 4, 8, 4])
    ALL: gl.constexpr = scores.type.layout
    BOTH: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(3, ALL))
    weight = c.load(gl.SliceLayout(1, BOTH))[:, None] - source.load(gl.SliceLayout(0, BOTH))[None, :]
    if DIAGONAL:
        reader = gl.arange(0, 8, layout=gl.SliceLayout(1, BOTH))[:, None]
        read = gl.arange(0, 8, layout=gl.SliceLayout(0, BOTH))[None, :]
        weight = gl.where(reader > read, weight, float("-inf"))
        weight = gl.exp2(gl.where(reader == read, own.load(gl.SliceLayout(0, BOTH))[None, :], weight))
        # D lets a rank of a token read the same rank of the same token.
        skip = gl.where(reader == read, skip, 0.0)[:, None, :, None]
        reader = gl.arange(0, 4, layout=gl.SliceLayout(0, gl.SliceLayout(2, gl.SliceLayout(3, ALL))))
        read = gl.arange(0, 4, layout=gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(2, ALL))))
        skip = gl.where(reader[None, :, None, None] == read[None, None, None, :], skip, 0.0)
        scores, weight = gl.broadcast(scores, weight[:, None, :, None])
        scores = gl.fma(scores, weight, skip)
    else:
        scores *= gl.exp2(weight)[:, None, :, None]
    # Rows are what is read, columns the readers: half of the ranks, half of the tokens, 4 tokens, 2 ranks.
    scores = gl.reshape(rounded(scores, q.dtype), [2, 4, 2, 2, 2, 4, 2, 2])
    scores = gl.reshape(gl.permute(scores, [4, 6, 5, 7, 2, 0, 1, 3]), [32, 32])
    if WIDE:
        v = v.load(gl.SliceLayout(1, _V_THREADS))[:, None, :] * _of_ranks(mimo_x, P, _V_THREADS)
    else:
        v = v.load(_V_THREADS)
    v = gl.permute(gl.reshape(v, [2, 4, 2, 2, 8, 4, 2]), [5, 6, 4, 0, 2, 1, 3])
    v = gl.reshape(v, [64, 32])
    v, scores = gl.convert_layout(v, _V, assert_trivial=True), gl.convert_layout(scores, _READ, assert_trivial=True)
    return _product(v, scores, out)


@gluon.jit
def _ranks(x):
    """The ranks of (8, 4, 64), each (8, 64)."""
    even, odd = gl.split(gl.permute(gl.reshape(x, [8, 2, 2, 64]), [0, 1, 3, 2]))
    even, odd = gl.permute(even, [0, 2, 1]), gl.permute(odd, [0, 2, 1])
    first, third = gl.split(even)
    second, fourth = gl.split(odd)
    return first, second, third, fourth


@gluon.jit
def _gates(z, mimo_z, mimo_o):
    """Of tokens and ranks, z (8, 1, 64) the others (1, 4, 64), in float32."""
    if z.dtype == gl.float32:
        return twice_silu((0.5 * z) * mimo_z, z.dtype) * mimo_o
    else:
        half = rounded_product(z, gl.full_like(z, 0.5))
        return widened(rounded_product(packed_twice_silu(rounded_product(half, mimo_z)), mimo_o))


@gluon.jit(do_not_specialize=["plane", "m"])
def _first_tokens(
    C, B, x, z, weights, turned, C_bias, B_bias, mimo_x, mimo_z, mimo_o, D,
    stride_C, stride_B, stride_x, stride_z, plane, segments, m, y, ranked,
    H: gl.constexpr, N: gl.constexpr, P: gl.constexpr, S: gl.constexpr, KEEP: gl.constexpr, SEGMENTS: gl.constexpr,
):  # fmt: skip
    """A head of SEGMENTS segments."""
    dtype: gl.constexpr = x.dtype.element_ty
    WIDE: gl.constexpr = dtype == gl.float32
    LINE: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    head = gl.program_id(0) % H
    # WIDE, v would take twice the shared memory: then there is x, and v is made wherever it is read.
    ks = gl.allocate_shared_memory(dtype, [4, 32, 64], _K_SHARED_WIDE if WIDE else _K_SHARED)
    if WIDE:
        vs = gl.allocate_shared_memory(dtype, [4, 8, 64], _X_SHARED_WIDE)
    else:
        vs = gl.allocate_shared_memory(dtype, [4, 8, 4, 64], _V_SHARED)
    cs = gl.allocate_shared_memory(gl.float32, [4, 8], LINE)
    sources = gl.allocate_shared_memory(gl.float32, [4, 8], LINE)
    owns = gl.allocate_shared_memory(gl.float32, [4, 8], LINE)

    row = gl.arange(0, 32, layout=gl.SliceLayout(1, _PAIRS))
    pair = gl.arange(0, 32, layout=gl.SliceLayout(0, _PAIRS))[None, :]
    row_slot = row // 16 * 4 + row % 8 // 2
    in_token = ((row % 16 // 8 * 2 + row % 2) * N)[:, None] + pair
    TOKENS_COLUMNS: gl.constexpr = gl.SliceLayout(1, _VALUES)
    slot = gl.arange(0, 8, layout=gl.SliceLayout(1, TOKENS_COLUMNS))
    lane = gl.arange(0, 64, layout=gl.SliceLayout(0, TOKENS_COLUMNS))[None, :]
    at_once = gl.arange(0, 32, layout=gl.BlockedLayout([1], [32], [2], [0]))
    B_bias += head * (4 * N) + in_token
    C_bias += head * (4 * N) + in_token
    mimo_x += head * (4 * P)
    mimo_z += head * (4 * P)
    mimo_o += head * (4 * P)
    skip = gl.load(D + head).to(gl.float32)
    # Held over all tiles, for which WIDE there are no registers.
    z_weights = _of_ranks(mimo_z, P, _VALUES)
    B_first, B_second = gl.load(B_bias), gl.load(B_bias + N // 2)
    C_first, C_second = gl.load(C_bias), gl.load(C_bias + N // 2)

    for number in range(SEGMENTS):
        segment = gl.program_id(0) // H * SEGMENTS + number
        start = gl.load(segments + 4 * segment, segment < m, 0).to(gl.int64)
        length = gl.minimum(gl.load(segments + 4 * segment + 1, segment < m, 0), 32)
        # The first of their sequence.
        length = gl.where(gl.load(segments + 4 * segment + 2, segment < m, 0) == 0, length, 0)
        last = gl.maximum(length - 1, 0)
        at_weights = weights + (start * H + head) + at_once * H
        # Decays are summed up anew after 16 tokens.
        before = gl.where(at_once < 16, 0.0, gl.load(weights + (start + 15) * H + head, length > 16, 0.0))
        is_token = at_once < length
        _store_all(cs, gl.load(at_weights, is_token, 0.0) + before)
        _store_all(sources, gl.load(at_weights + plane, is_token, float("inf")) + before)
        _store_all(owns, gl.load(at_weights + 2 * plane, is_token, float("-inf")))

        for tile in range((length + 7) // 8):
            row_token = gl.minimum(8 * tile + row_slot, last)[:, None]
            at = turned + (start * H + head) * (2 * S) + (row_token * (H * 2 * S) + pair)
            turns = gl.broadcast(pair < S, row_token)[0]
            cos, sin = gl.load(at, turns, 1.0), gl.load(at + S, turns, 0.0)
            if WIDE:
                B_first, B_second = gl.load(B_bias), gl.load(B_bias + N // 2)
            k = _qk(B + start * stride_B + (row_token * stride_B + in_token), B_first, B_second, cos, sin, N)
            ks.index(tile).store(k)
            if WIDE:
                C_first, C_second = gl.load(C_bias), gl.load(C_bias + N // 2)
            q = _qk(C + start * stride_C + (row_token * stride_C + in_token), C_first, C_second, cos, sin, N)
            token = gl.minimum(8 * tile + slot, last)[:, None]
            values = gl.load(x + (start * stride_x + head * P) + (token * stride_x + lane))
            # Here, not where it is used, so that nobody waits for it there.
            gates = gl.load(z + (start * stride_z + head * P) + (token * stride_z + lane))[:, None, :]
            if WIDE:
                vs.index(tile).store(values)
            else:
                vs.index(tile).store(rounded_product(values[:, None, :], _of_ranks(mimo_x, P, _VALUES)))
            c = cs.index(tile)
            out = gl.zeros([64, 32], gl.float32, _OUT)
            for other in range(tile):
                out = _attended(
                    q, ks.index(other), vs.index(other), mimo_x, c, sources.index(other), owns.index(other),
                    skip, out, P, DIAGONAL=False,
                )  # fmt: skip
            out = _attended(
                q, ks.index(tile), vs.index(tile), mimo_x, c, sources.index(tile), owns.index(tile),
                skip, out, P, DIAGONAL=True,
            )  # fmt: skip
            if WIDE:
                z_weights = _of_ranks(mimo_z, P, _VALUES)
            gates = _gates(gates, z_weights, _of_ranks(mimo_o, P, _VALUES))
            # Tokens, ranks and columns.
            out = gl.permute(gl.reshape(out, [4, 2, 8, 2, 2, 4, 2]), [4, 5, 3, 6, 2, 0, 1])
            out = gl.convert_layout(gl.reshape(out, [8, 4, 64]), _VALUES, assert_trivial=True)
            token = (8 * tile + slot)[:, None]
            if KEEP:
                rank = gl.arange(0, 4, layout=gl.SliceLayout(1, gl.SliceLayout(0, _VALUES)))[:, None][None, :, :]
                at = ranked + (start * H + head) * (4 * P) + (token * (H * 4 * P) + lane)[:, None, :] + rank * P
                gl.store(at, rounded(out, dtype), (token < length)[:, None, :])
            out0, out1, out2, out3 = _ranks(out)
            gate0, gate1, gate2, gate3 = _ranks(gates)
            total = gl.fma(out3, gate3, gl.fma(out2, gate2, gl.fma(out1, gate1, out0 * gate0)))
            total = gl.convert_layout(rounded(total, dtype), TOKENS_COLUMNS, assert_trivial=True)
            gl.store(y + (start * H + head) * P + (token * (H * P) + lane), total, token < length)


def takes(x: Tensor, R: int, N: int) -> bool:
    """Whether there is a kernel for these x (T, H, P), rank and d_state."""
    return not INTERPRETED and x.dtype in (torch.bfloat16, torch.float32) and (R, N, x.shape[2]) == (4, 64, 64)


def run(operands: Operands, packing: Packing, times: Timeline, y: Tensor, ranked: Tensor | None) -> None:
    """Fill in what `mamba3_mimo_forward` gives of these tokens, where no segment starts from a state.

    Args:
        operands: weights in x's dtype, but D.
        packing: of the batch.
        times: its timeline.
        y: (T, H, P), gets the results.
        ranked: (T, H, R, P) or None, gets each rank's output before the gate.
    """
    C, B, x, z, _, _, _, _, C_bias, B_bias, mimo_x, mimo_z, mimo_o, D = operands
    T, H, P = x.shape
    m, options = packing.segments.shape[0], tiles.first_tokens(x.dtype)
    if m:
        _first_tokens[(triton.cdiv(m, options["SEGMENTS"]) * H,)](
            C, B, x, z, times.weights, times.turned, C_bias, B_bias, mimo_x, mimo_z, mimo_o, D,
            C.stride(0), B.stride(0), x.stride(0), z.stride(0), T * H, packing.segments, m,
            y, y if ranked is None else ranked,
            H=H, N=C.shape[2], P=P, S=operands.angles.shape[1], KEEP=ranked is not None, **options,
        )  # fmt: skip
