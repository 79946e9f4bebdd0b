"""Mamba-3 MIMO in plain PyTorch: chunked, vectorised over packed sequences, on any device and with autograd.

Inside a chunk, with c the running sum of adt, output i reads source j < i with the weight
exp(c_i - c_j) * (gamma_j + dt_{j+1} * (1 - lambda_{j+1})) and itself with gamma_i: the share of token j that the
trapezoid of token j + 1 takes is added to token j's own. The state handed from chunk to chunk has the same weights. It
already holds the share of its last token that the next chunk's first token takes, and is read with exp(c_i) alone.

On the CPU equal sequences get bit-equal results, whatever they are packed with and whatever comes after a position.
This takes three things. Every matrix product has a shape that follows from the layer's sizes alone: the number of
chunks is a batch dimension. Sums over time are associated by the position in the sequence. And of the transcendental
functions only those are used that give a value the same bits wherever it lies in its tensor (exp, tanh, sin, cos: one
vector routine computes them, ends included); sigmoid, silu and softplus run other code on the last elements of a
tensor or of a thread's share of it.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.arguments import Operands
from kernels.chunks import Chunks
from kernels.state import Mamba3State

# The scores of a chunk cost (rank * length)^2 and a sequence leaves half a chunk empty, but every chunk has a state to
# hand on. On CPUs sessions of a few dozen tokens run fastest with 8; sequences of a thousand are as fast with 8 as 16.
_CHUNK_LENGTH = 8

# exp of more is infinite in float32, and its gradient not a number; 1 / (1 + exp(80)) is as good as 0.
_LARGEST_EXPONENT = 80.0


def mamba3_mimo_reference(
    operands: Operands,
    cu_seqlens: Tensor,
    initial_state: Mamba3State | None = None,
    return_final_state: bool = False,
) -> tuple[Tensor, Mamba3State | None]:
    """The operation of `kernels.mamba3_mimo`, whose checks its arguments have passed."""
    out_dtype = operands.x.dtype
    dtype = torch.float64 if out_dtype == torch.float64 else torch.float32
    C, B, x, z, adt, dt, trap, angles, C_bias, B_bias, mimo_x, mimo_z, mimo_o, D = (t.to(dtype) for t in operands)
    if initial_state is not None:
        initial_state = Mamba3State(*(t.to(dtype) for t in initial_state))

    chunks = Chunks.of(cu_seqlens, _CHUNK_LENGTH)
    initial = None
    if initial_state is not None:
        initial = Mamba3State(*(t.index_select(0, chunks.sequences[: chunks.n_first]) for t in initial_state))
    weights = _Weights.of(chunks, adt, dt, trap, cu_seqlens)
    theta = _rotations(chunks, angles, weights.dt, None if initial is None else initial.angle)
    cos, sin = theta.cos(), theta.sin()
    q = _rotated(chunks.gather(C), C_bias, cos, sin)
    k = _rotated(chunks.gather(B), B_bias, cos, sin)
    x = chunks.gather(x).transpose(1, 2).contiguous()  # (c, H, L, P)
    v = x.unsqueeze(2) * _per_slot(mimo_x)  # (c, H, R, L, P)

    y = torch.matmul(_scores(q, k, weights, D), v.flatten(2, 3)).view_as(v)
    state = None
    if chunks.count > chunks.n_first or initial is not None or return_final_state:
        state, entering = _states(chunks, k, v, weights, initial, mimo_x)
        later = slice(chunks.count - entering.shape[0], None)
        reading = q[later] * torch.exp(weights.decay[later])[:, :, None, None]
        y[later] += torch.matmul(reading.flatten(3).mT, entering).view_as(y[later])
    out = _gated(y, chunks.gather(z).transpose(1, 2).contiguous(), mimo_z, mimo_o)
    out = out.transpose(1, 2).flatten(0, 1).index_select(0, chunks.slots).to(out_dtype)
    if not return_final_state:
        return out, None

    assert state is not None
    last = cu_seqlens[1:].long().index_select(0, chunks.sequences[: chunks.n_first]) - 1
    slots = chunks.slots.index_select(0, last)
    chunk, slot = slots // chunks.length, slots % chunks.length
    reached = Mamba3State(
        angle=torch.remainder(theta[chunk, :, :, slot], 2 * math.pi),
        ssm=state[chunk].mT,
        k=k[chunk, ..., slot].mT,
        x=x[chunk, :, slot],
    )
    if initial_state is None:
        n = cu_seqlens.numel() - 1
        start = Mamba3State(*(t.new_zeros(n, *t.shape[1:]) for t in reached))
    else:
        start = initial_state._replace(angle=torch.remainder(initial_state.angle, 2 * math.pi))
    final = (s.index_copy(0, chunks.sequences[: chunks.n_first], t) for s, t in zip(start, reached, strict=True))
    return out, Mamba3State(*final)


@dataclass(frozen=True)
class _Weights:
    """What the heads weigh the tokens in the slots with, each (c, H, L), zero where a slot is empty.

    Attributes:
        dt: steps.
        decay: sum of adt over the chunk up to and with the slot.
        gamma: a token's weight in its own update.
        source: its weight in all that comes later, before decay.
        opening: weight in its update of the token before it.
    """

    dt: Tensor
    decay: Tensor
    gamma: Tensor
    source: Tensor
    opening: Tensor

    @classmethod
    def of(cls, chunks: Chunks, adt: Tensor, dt: Tensor, trap: Tensor, cu_seqlens: Tensor) -> "_Weights":
        """From the packed (T, H) arguments."""
        H = dt.shape[1]
        share = 1 / (1 + torch.exp((-trap).clamp(max=_LARGEST_EXPONENT)))
        opening = dt * (1 - share)
        has_next = torch.ones(dt.shape[0], 1, dtype=torch.bool, device=dt.device)
        has_next[cu_seqlens[1:][cu_seqlens.diff() > 0].long() - 1] = False
        source = dt * share + torch.where(has_next, opening.roll(-1, 0), 0)
        per_slot = chunks.gather(torch.cat((adt, dt, dt * share, source, opening), 1))
        # Zeros after a sequence's end keep its state and rotation as its last token left them.
        per_slot = torch.where(chunks.filled.unsqueeze(-1), per_slot, 0).transpose(1, 2).contiguous()
        adt, dt, gamma, source, opening = torch.split(per_slot, H, 1)
        return cls(dt, adt.cumsum(-1), gamma, source, opening)


def _rotations(chunks: Chunks, angles: Tensor, dt: Tensor, initial: Tensor | None) -> Tensor:
    """Rotations (c, H, S, L) from packed angles (T, S), steps (c, H, L) and initial rotations (n_first, H, S)."""
    rates = torch.tanh(chunks.gather(angles)).transpose(1, 2).contiguous()
    half_turns = (rates.unsqueeze(1) * dt.unsqueeze(2)).cumsum(-1)
    n = chunks.n_first
    if chunks.count > n or initial is not None:
        # Across chunks in float64, one number a chunk and angle: a long sequence makes many turns.
        first, rest = torch.split(half_turns[..., -1].double(), [n, chunks.count - n])
        start = torch.zeros_like(first) if initial is None else initial.double() / math.pi
        totals = torch.cat((start + first, rest))
        totals = chunks.scan(torch.ones_like(totals[:, :1, :1]), totals)
        before = torch.cat((start, totals.index_select(0, chunks.previous[n:])))
        half_turns = half_turns + torch.remainder(before, 2).to(half_turns.dtype).unsqueeze(-1)
    return math.pi * half_turns


def _rotated(projection: Tensor, bias: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Adds the bias of head and rank and turns the pairs (i, i + N / 2): (c, L, R, N) to (c, H, N, R, L).

    Slots come last, so that a head's rotations run over long contiguous rows however few angles there are.
    """
    c, L, R, N = projection.shape
    H, S = cos.shape[1:3]
    columns = projection.permute(0, 3, 2, 1).contiguous().unsqueeze(1)  # (c, 1, N, R, L)
    turned = columns + bias.mT.unsqueeze(-1).expand(H, N, R, L).contiguous()
    cos, sin = (t.unsqueeze(3).expand(c, H, S, R, L).contiguous() for t in (cos, sin))
    first, between, second, rest = torch.split(turned, [S, N // 2 - S, S, N // 2 - S], 2)
    return torch.cat((first * cos - second * sin, between, first * sin + second * cos, rest), 2)


def _scores(q: Tensor, k: Tensor, weights: _Weights, D: Tensor) -> Tensor:
    """How outputs read the values of their own chunk, (c, H, R * L, R * L), D included."""
    c, H, _, R, L = q.shape
    later = torch.ones(L, L, dtype=torch.bool, device=q.device).triu()
    reach = (weights.decay.unsqueeze(-1) - weights.decay.unsqueeze(-2)).masked_fill(later, -math.inf)
    weight = torch.exp(reach) * weights.source.unsqueeze(-2) + torch.diag_embed(weights.gamma)
    weight = weight.unsqueeze(-2).expand(c, H, L, R, L).contiguous().unsqueeze(2)
    scores = torch.matmul(q.flatten(3).mT, k.flatten(3)).view(c, H, R, L, R, L) * weight
    scores = scores.view(c, H, R * L, R * L)
    scores.diagonal(dim1=2, dim2=3).add_(D.unsqueeze(-1))
    return scores


def _states(
    chunks: Chunks, k: Tensor, v: Tensor, weights: _Weights, initial: Mamba3State | None, mimo_x: Tensor
) -> tuple[Tensor, Tensor]:
    """Each chunk's state after its last token, and the states the last m chunks start with: all those that have one.

    Returns:
        (c, H, N, P) and (m, H, N, P).
    """
    n = chunks.n_first
    left = torch.exp(weights.decay[..., -1:] - weights.decay) * weights.source
    state = torch.matmul((k * left[:, :, None, None]).flatten(3), v.flatten(2, 3))
    through = torch.exp(weights.decay[..., -1])[..., None, None]
    if initial is None:
        state = chunks.scan(through, state)
        return state, state.index_select(0, chunks.previous[n:])
    v_last = initial.x.unsqueeze(2) * mimo_x
    carried = torch.matmul(initial.k.mT * weights.opening[:n, :, 0, None, None], v_last)
    start = initial.ssm.mT + carried
    first, rest = torch.split(state, [n, chunks.count - n])
    state = chunks.scan(through, torch.cat((first + through[:n] * start, rest)))
    return state, torch.cat((start, state.index_select(0, chunks.previous[n:])))


def _gated(y: Tensor, z: Tensor, mimo_z: Tensor, mimo_o: Tensor) -> Tensor:
    """Sum over the ranks of mimo_o * y * silu(z * mimo_z): (c, H, R, L, P) and (c, H, L, P) to (c, H, L, P).

    One rank at a time: the steps in between then hold a rank's share of the numbers.
    """
    out = torch.zeros_like(z)
    z_weights, o_weights = _per_slot(-mimo_z).unbind(1), _per_slot(mimo_z * mimo_o).unbind(1)
    for y_r, z_r, o_r in zip(y.unbind(2), z_weights, o_weights, strict=True):
        out = out + y_r * (z * o_r / (1 + torch.exp((z * z_r).clamp(max=_LARGEST_EXPONENT))))
    return out


def _per_slot(weights: Tensor) -> Tensor:
    """(H, R, P) to (H, R, L, P), laid out in full: products with it then run over long contiguous rows."""
    return weights.unsqueeze(2).expand(-1, -1, _CHUNK_LENGTH, -1).contiguous()
