"""The operation forward: every segment a program a head, and a scan over the segments of long sequences.

A segment's program turns q and k by their angle since the segment's start, so that it needs no other segment for its
scores. Batches without long sequences and states need nothing else. For others two launches come first: what each
segment leaves of its own tokens, and a scan over each sequence's segments that gives every one the state it starts
with. The scan does at a cut what carrying a state from one call to the next does, number for number.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import Operands
from kernels.packing import Packing
from kernels.state import Mamba3State
from kernels.triton import tiles
from kernels.triton.activations import twice_silu
from kernels.triton.bfloat16 import product, rounded_product, widened
from kernels.triton.chunk import chunk_qk, chunk_turns, chunk_values, load
from kernels.triton.operation import first_tokens
from kernels.triton.operation.scan import scan
from kernels.triton.operation.timeline import Timeline, timeline
from kernels.triton.tiles import Blocks


@triton.jit
def _parameters(mimo, L: tl.constexpr, P: tl.constexpr, BP: tl.constexpr):
    """A rank's, repeated to (L, BP) so that they come in the layout of z."""
    lanes = tl.arange(0, BP)[None, :] + tl.zeros((L, BP), tl.int32)
    return load(mimo + lanes, lanes < P, BP == P)


@triton.jit
def _gated(out, total, half, mimo_z, mimo_o, dtype: tl.constexpr, STEP: tl.constexpr, R: tl.constexpr, P: tl.constexpr):
    """total (L, BP) + the sum over the ranks of their gated outputs (L, BP, R), with half of z (L, BP)."""
    L: tl.constexpr = half.shape[0]
    BP: tl.constexpr = half.shape[1]
    if R == 1:
        gate = twice_silu(widened(rounded_product(half, _parameters(mimo_z, L, P, BP))), dtype)
        gate *= widened(_parameters(mimo_o, L, P, BP))
        return tl.fma(tl.reshape(out, (L, BP)), gate, total)
    else:
        even, odd = tl.split(tl.reshape(out, (L, BP, R // 2, 2)))
        total = _gated(even, total, half, mimo_z, mimo_o, dtype, 2 * STEP, R // 2, P)
        return _gated(odd, total, half, mimo_z + STEP * P, mimo_o + STEP * P, dtype, 2 * STEP, R // 2, P)


@triton.jit
def _attended(q, k, v, weight, skip, out, R: tl.constexpr, L: tl.constexpr):
    """out + what a chunk's tokens read of a chunk: weight is (R * L, L), skip (R * L, R, L) added to the scores."""
    scores = product(q, tl.trans(k), tl.zeros((R * L, R * L), tl.float32), q.dtype)
    scores = tl.fma(tl.reshape(scores, (R * L, R, L)), weight[:, None, :], skip)
    return product(tl.reshape(scores, (R * L, R * L)), v, out, q.dtype)


@triton.jit
def _advanced(state, k, v, weights, plane, H, first, length, R: tl.constexpr, L: tl.constexpr):
    """The state after a chunk."""
    tokens = first + tl.arange(0, R * L) % L
    total = tl.load(weights + (tl.minimum(first + L, length) - 1) * H)
    remaining = tl.load(weights + plane + tokens * H, tokens < length, float("inf"))
    v = widened(v) * tl.exp2(total - remaining)[:, None]
    return product(tl.trans(k), v, state * tl.exp2(total), k.dtype)


@triton.jit
def _decays(weights, plane, H, first, length, R: tl.constexpr, L: tl.constexpr):
    """A chunk's sums of decays by row, and its weights within itself (R * L, L)."""
    slots, row = tl.arange(0, L), tl.arange(0, R * L)
    slot = row % L
    tokens = first + slots
    valid = tokens < length
    c = tl.load(weights + tl.minimum(first + slot, length - 1) * H)
    source = tl.load(weights + plane + tokens * H, valid, float("inf"))
    own = tl.load(weights + 2 * plane + tokens * H, valid, float("-inf"))
    weight = tl.where(slot[:, None] > slots[None, :], c[:, None] - source[None, :], float("-inf"))
    return c, tl.exp2(tl.where(slot[:, None] == slots[None, :], own[None, :], weight))


@triton.jit
def _give(
    out, z, stride, mimo_z, mimo_o, y, ranked, H, first, length,
    R: tl.constexpr, P: tl.constexpr, L: tl.constexpr, BP: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Gate a chunk's outputs (R * L, BP), sum them over the ranks and store them."""
    dtype: tl.constexpr = y.dtype.element_ty
    tokens, lanes = first + tl.arange(0, L), tl.arange(0, BP)[None, :]
    if KEEP:
        row = tl.arange(0, R * L)
        row_tokens = first + row % L
        at = (row_tokens * (H * R) + row // L)[:, None] * P + lanes
        tl.store(ranked + at, out.to(dtype), (row_tokens < length)[:, None] & (lanes < P))
    z += (tl.minimum(tokens, length - 1) * stride)[:, None] + lanes
    half = load(z, (tokens[:, None] >= 0) & (lanes < P), BP == P).to(dtype)
    half = rounded_product(half, tl.full((L, BP), 0.5, tl.float32).to(dtype))
    # Multiplied where a thread has all ranks of a number.
    out = tl.permute(tl.reshape(out, (R, L, BP)), (1, 2, 0))
    out = _gated(out, tl.zeros((L, BP), tl.float32), half, mimo_z, mimo_o, dtype, 1, R, P)
    tl.store(y + (tokens * (H * P))[:, None] + lanes, out.to(dtype), (tokens < length)[:, None] & (lanes < P))


@triton.jit
def _segments(
    C, B, x, z, weights, turned, C_bias, B_bias, mimo_x, mimo_z, mimo_o, D,
    stride_C, stride_B, stride_x, stride_z, plane, segments, order, entering, y, left, ranked, states,
    H: tl.constexpr, R: tl.constexpr, N: tl.constexpr, P: tl.constexpr, S: tl.constexpr,
    L: tl.constexpr, HALF: tl.constexpr, BP: tl.constexpr,
    ALL: tl.constexpr, RESUMED: tl.constexpr, INITIAL: tl.constexpr, SPLIT: tl.constexpr, BEGUN: tl.constexpr,
    LONG: tl.constexpr, ORDERED: tl.constexpr, STATES: tl.constexpr,
    KEEP: tl.constexpr,
):  # fmt: skip
    """A segment's outputs, and with KEEP what their gradients need; with STATES what it leaves of its own tokens.

    With SPLIT the second chunk reads the first as it reads itself, so that segments of two chunks need no state; those
    of more, LONG, make one for the chunks that follow. With BEGUN the outputs of the first BEGUN tokens are there
    already, where these start from nothing. What a token gets does not depend on those after it.
    """
    head, segment = tl.program_id(0) % H, tl.program_id(0) // H
    if ORDERED:
        segment = tl.load(order + segment)
    start = tl.load(segments + 4 * segment).to(tl.int64)
    length = tl.load(segments + 4 * segment + 1)
    index = tl.load(segments + 4 * segment + 2)
    number = tl.load(segments + 4 * segment + 3)
    is_long = (length > 2 * L) | (number >= 0)
    if ALL:
        number = segment
    if length == 0 or (SPLIT and is_long != LONG) or (STATES and number < 0):
        return
    reads = (INITIAL or index > 0) if RESUMED else False
    begun = 0
    if BEGUN:
        begun = tl.where(reads, 0, BEGUN) if RESUMED else BEGUN
        # With KEEP and ALL the state that the second chunk starts with is wanted.
        if length <= tl.minimum(begun, L if KEEP and ALL else BEGUN):
            return
    compute: tl.constexpr = x.dtype.element_ty
    C += start * stride_C
    B += start * stride_B
    x += start * stride_x + head * P
    z += start * stride_z + head * P
    weights += start * H + head
    turned += (start * H + head) * (2 * S)
    y += (start * H + head) * P
    ranked += (start * H + head) * (R * P)
    C_bias += head * R * N
    B_bias += head * R * N
    mimo_x += head * R * P
    mimo_z += head * R * P
    mimo_o += head * R * P
    slots, row = tl.arange(0, L), tl.arange(0, R * L)
    rank, slot = row // L, row % L
    columns, lanes = tl.arange(0, 2 * HALF), tl.arange(0, BP)
    in_state = (columns % HALF * 2 + columns // HALF)[:, None] * BP + lanes[None, :]
    at_state = (number * H + head).to(tl.int64) * (2 * HALF * BP) + in_state
    states += (start // L * H + head) * (2 * HALF * BP)
    # D lets a rank of a token read the same rank of the same token.
    skip = tl.where(slot[:, None] == slots[None, :], tl.load(D + head).to(tl.float32), 0.0)
    skip = skip[:, None, :] * tl.where(rank[:, None] == tl.arange(0, R)[None, :], 1.0, 0.0)[:, :, None]

    state = tl.zeros((2 * HALF, BP), tl.float32)
    if RESUMED and reads:
        state = tl.load(entering + at_state)
    first = 0
    if SPLIT:
        tokens, row_tokens = tl.minimum(slots, length - 1), tl.minimum(slot, length - 1)
        cos, sin = chunk_turns(turned, H * 2 * S, tokens, R, S, L, HALF)
        k = chunk_qk(B, stride_B, B_bias, cos, sin, tokens, R, N, L, HALF)
        q = chunk_qk(C, stride_C, C_bias, cos, sin, tokens, R, N, L, HALF)
        v = chunk_values(x, stride_x, mimo_x, row_tokens, R, P, L, BP)
        c, weight = _decays(weights, plane, H, 0, length, R, L)
        out = tl.zeros((R * L, BP), tl.float32)
        if RESUMED and reads:
            out = product(q, state, out, compute) * tl.exp2(c)[:, None]
        out = _attended(q, k, v, weight, skip, out, R, L)
        if (KEEP and ALL) or LONG:
            after = _advanced(state, k, v, weights, plane, H, 0, length, R, L)
            if KEEP and length > L:
                tl.store(states + H * (2 * HALF * BP) + in_state, after.to(compute))
        _give(out, z, stride_z, mimo_z, mimo_o, y, ranked, H, 0, length, R, P, L, BP, KEEP)
        if length > L:
            total = tl.load(weights + (L - 1) * H)
            source = tl.load(weights + plane + slots * H)
            tokens, row_tokens = tl.minimum(L + slots, length - 1), tl.minimum(L + slot, length - 1)
            cos, sin = chunk_turns(turned, H * 2 * S, tokens, R, S, L, HALF)
            q = chunk_qk(C, stride_C, C_bias, cos, sin, tokens, R, N, L, HALF)
            own_k = chunk_qk(B, stride_B, B_bias, cos, sin, tokens, R, N, L, HALF)
            c, weight = _decays(weights, plane, H, L, length, R, L)
            c += total
            out = tl.zeros((R * L, BP), tl.float32)
            if RESUMED and reads:  # loaded again, which is cheaper than held
                out = product(q, tl.load(entering + at_state), out, compute) * tl.exp2(c)[:, None]
            before = tl.exp2(c[:, None] - source[None, :])
            out = _attended(q, k, v, before, 0.0, out, R, L)
            v = chunk_values(x, stride_x, mimo_x, row_tokens, R, P, L, BP)
            out = _attended(q, own_k, v, weight, skip, out, R, L)
            if LONG:
                state = _advanced(after, own_k, v, weights, plane, H, L, length, R, L)
            _give(out, z, stride_z, mimo_z, mimo_o, y, ranked, H, L, length, R, P, L, BP, KEEP)
        if not LONG:
            return
        first = 2 * L
        reads = True

    stop = length
    if BEGUN:  # of a last chunk whose outputs are there only the state that it starts with is wanted
        stop = tl.where(length <= begun, length - L, length)
    # Not `for`: there the compiler carries the state twice.
    while first < stop:
        tokens, row_tokens = tl.minimum(first + slots, length - 1), tl.minimum(first + slot, length - 1)
        cos, sin = chunk_turns(turned, H * 2 * S, tokens, R, S, L, HALF)
        k = chunk_qk(B, stride_B, B_bias, cos, sin, tokens, R, N, L, HALF)
        v = chunk_values(x, stride_x, mimo_x, row_tokens, R, P, L, BP)
        if KEEP and first > 0:
            tl.store(states + (first // L * H).to(tl.int64) * (2 * HALF * BP) + in_state, state.to(compute))
        gives = not STATES if BEGUN == 0 else first >= begun
        if gives:
            q = chunk_qk(C, stride_C, C_bias, cos, sin, tokens, R, N, L, HALF)
            c, weight = _decays(weights, plane, H, first, length, R, L)
            out = tl.zeros((R * L, BP), tl.float32)
            if reads:
                out = product(q, state, out, compute) * tl.exp2(c)[:, None]
            out = _attended(q, k, v, weight, skip, out, R, L)
            # Before the gates, so that they find more registers free.
            if first + L < length:
                state = _advanced(state, k, v, weights, plane, H, first, length, R, L)
            _give(out, z, stride_z, mimo_z, mimo_o, y, ranked, H, first, length, R, P, L, BP, KEEP)
        elif STATES or first + L < length:
            state = _advanced(state, k, v, weights, plane, H, first, length, R, L)
        reads = True
        first += L
    if STATES:
        tl.store(left + at_state, state)
    elif BEGUN and KEEP:  # noqa: SIM102, settled when it is compiled
        if stop < length:
            tl.store(states + (first // L * H).to(tl.int64) * (2 * HALF * BP) + in_state, state.to(compute))


class Kept(NamedTuple):
    """What a backward pass needs of a forward pass, besides its arguments and final states.

    Attributes:
        timeline: of the batch.
        entering: float32 (numbers, H, 2 * HALF, BP): what the segments start with, for those of long sequences or, with
            states, for all; in the frame that has turned as far as the segment's start, with the share of the token
            before that the segment's first token takes. None where all start from nothing.
        ranked: (T, H, R, P) in x's dtype: each rank's output before the gate. None where nobody asked for gradients.
        states: (about T / L, H, 2 * HALF, BP) in x's dtype: what the chunks but each segment's first start with, that
            of a chunk which is c chunks after its segment's start s at s // L + c, of the segments `with_states`.
            Likewise.
    """

    timeline: Timeline
    entering: Tensor | None
    ranked: Tensor | None
    states: Tensor | None


class Forward(NamedTuple):
    """What a forward pass gives.

    Attributes:
        y: (T, H, P) in x's dtype, contiguous.
        final: states in float32, if asked for.
        kept: for the gradients.
    """

    y: Tensor
    final: Mamba3State | None
    kept: Kept


def of_dtype(weights: Sequence[Tensor], dtype: torch.dtype) -> Sequence[Tensor]:
    """Copies, where they are not of that dtype, in two launches."""
    if all(t.dtype == dtype for t in weights):
        return weights
    parts = torch.cat([t.flatten() for t in weights]).to(dtype).split([t.numel() for t in weights])
    return [part.view_as(t) for part, t in zip(parts, weights, strict=True)]


def with_states(packing: Packing, blocks: Blocks, everything: bool) -> int:
    """How many segments keep the states of their chunks for the gradients, the first of `longest_first`, or all.

    The others start from nothing, nothing follows them, and they have two chunks at most, of which the second reads
    the first as it reads itself. `everything` says that there are states before or after all of them.
    """
    if everything or not blocks.are_small or packing.longest_first is None:
        return packing.segments.shape[0]
    return packing.longer_than(2 * blocks.L)


class Aside:
    """A stream beside the current one, whose launches start as soon as the current one's up to here have ended."""

    def __init__(self, device: torch.device) -> None:
        self._current = torch.cuda.current_stream(device)
        self._stream = _urgent_stream(device)
        self._stream.wait_stream(self._current)

    def __enter__(self) -> None:
        torch.cuda.set_stream(self._stream)

    def __exit__(self, *_: object) -> None:
        torch.cuda.set_stream(self._current)
        self._current.wait_stream(self._stream)


@cache
def _urgent_stream(device: torch.device) -> torch.cuda.Stream:
    # Of high priority: else its few programs would queue behind the many of the current stream.
    return torch.cuda.Stream(device, priority=-1)


def mamba3_mimo_forward(
    operands: Operands,
    packing: Packing,
    initial_state: Mamba3State | None = None,
    return_final_state: bool = False,
    keep: bool = False,
) -> Forward:
    """The operation of `kernels.mamba3_mimo` on arguments that have passed its checks, without autograd.

    Tokens may be any distance apart, but each token's numbers must be contiguous. Nothing is synchronised; without long
    sequences and states it is two or three launches, which a CUDA graph can hold. With `keep` the gradients can be
    computed.
    """
    C, B, x, z, adt, dt, trap, angles, C_bias, B_bias, mimo_x, mimo_z, mimo_o, D = operands
    T, R, N = C.shape
    H, P = x.shape[1:]
    S = angles.shape[1]
    blocks = Blocks.of(R, N, P)
    m, device = packing.segments.shape[0], x.device
    # The kernels read weights again and again: of half the bytes, they are read in half the time.
    C_bias, B_bias, mimo_x, mimo_z, mimo_o = of_dtype((C_bias, B_bias, mimo_x, mimo_z, mimo_o), x.dtype)
    operands = operands._replace(C_bias=C_bias, B_bias=B_bias, mimo_x=mimo_x, mimo_z=mimo_z, mimo_o=mimo_o)
    times = timeline(adt, dt, trap, angles, packing, blocks.L, x.dtype)
    y = torch.empty(T, H, P, dtype=x.dtype, device=device)
    everything = initial_state is not None or return_final_state
    resumed = everything or packing.n_long > 0
    sizes = {"R": R, "N": N, "P": P, "S": S, "HALF": blocks.HALF, "BP": blocks.BP, "ALL": everything}

    ranked = states = None
    if keep:
        ranked = torch.empty(T, H, R, P, dtype=x.dtype, device=device)
        states = torch.empty(T // blocks.L + 1, H, 2 * blocks.HALF, blocks.BP, dtype=x.dtype, device=device)

    quick = first_tokens.takes(x, R, N)
    split = blocks.are_small and not quick
    begun = first_tokens.TOKENS if quick and initial_state is None else 0
    if begun:
        n_long = packing.longer_than(blocks.L if keep and everything else begun)
    else:
        n_long = packing.longer_than(2 * blocks.L) if split else m

    def run_segments(
        count: int, order: Tensor | None, entering: Tensor, left: Tensor, long: bool, states_only: bool = False
    ) -> None:
        if count:
            reads = resumed and not states_only and (long or everything)
            _segments[(count * H,)](
                C, B, x, z, times.weights, times.turned, C_bias, B_bias, mimo_x, mimo_z, mimo_o, D,
                C.stride(0), B.stride(0), x.stride(0), z.stride(0), T * H,
                packing.segments, order, entering, y, left,
                y if ranked is None else ranked, y if states is None else states,
                H, **sizes, L=blocks.L, RESUMED=reads, INITIAL=initial_state is not None,
                SPLIT=split and not states_only, BEGUN=0 if states_only else begun,
                LONG=long, ORDERED=order is not None, STATES=states_only, KEEP=keep and not states_only,
                **tiles.segments(x.dtype, blocks, long=long, states_only=states_only, keep=keep),
            )  # fmt: skip

    def run_others(entering: Tensor, left: Tensor) -> None:
        """All segments, or with SPLIT those that need no state: of those that start from nothing the first tokens."""
        if begun:
            first_tokens.run(operands, packing, times, y, ranked)
        elif split:
            run_segments(m, None, entering, left, long=False)

    order = packing.longest_first if split or begun else None
    if not resumed:
        run_others(y, y)
        run_segments(n_long, order, y, y, long=True)
        return Forward(y, None, Kept(times, None, ranked, states))

    # Made before the streams part, so that whatever else the current one does with their memory is over by then.
    shape = (m if everything else packing.n_long, H, 2 * blocks.HALF, blocks.BP)
    entering, left = (torch.empty(shape, dtype=torch.float32, device=device) for _ in range(2))
    # The few long segments wait for each other, and most of the device for them, unless the others run meanwhile.
    overlaps = not everything and (begun > 0 or (split and n_long < m))
    aside = Aside(device) if overlaps and device.type == "cuda" else nullcontext()
    if overlaps:
        run_others(y, y)
    with aside:
        if everything:
            if return_final_state or packing.n_long:  # else nothing comes after a segment
                run_segments(m, None, entering, left, long=True, states_only=True)
        else:
            run_segments(packing.n_long, packing.long_segments, entering, left, long=True, states_only=True)
        final = scan(operands, packing, times, left, entering, initial_state, final=return_final_state)
        if everything:
            run_others(entering, left)
        run_segments(n_long, order, entering, left, long=True)
    return Forward(y, final, Kept(times, entering, ranked, states))
