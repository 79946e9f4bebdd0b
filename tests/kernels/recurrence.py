"""Mamba-3 MIMO as its recurrence, one token at a time in float64: what the kernels are measured against."""

import math
from itertools import pairwise

import torch
from torch import Tensor

from kernels import Mamba3State


def rotate(vectors: Tensor, theta: Tensor) -> Tensor:
    """Turns the pairs (i, i + N / 2) of (H, R, N) by theta[i] of (H, S)."""
    S, half = theta.shape[-1], vectors.shape[-1] // 2
    turned = vectors.clone()
    cos, sin = theta.cos()[:, None], theta.sin()[:, None]
    first, second = vectors[..., :S], vectors[..., half : half + S]
    turned[..., :S] = first * cos - second * sin
    turned[..., half : half + S] = first * sin + second * cos
    return turned


def mamba3_mimo_recurrence(
    arguments: dict[str, Tensor], initial_state: Mamba3State | None = None
) -> tuple[Tensor, Mamba3State]:
    """`kernels.mamba3_mimo` of arguments by name, with its final states."""
    a = {name: t.double() if t.is_floating_point() else t for name, t in arguments.items()}
    H, R, N = a["C_bias"].shape
    P, S = a["mimo_x"].shape[2], a["angles"].shape[1]
    bounds = a["cu_seqlens"].tolist()
    outputs: list[Tensor] = []
    final: list[tuple[Tensor, ...]] = []
    for i, (start, stop) in enumerate(pairwise(bounds)):
        if initial_state is None:
            theta, h, k, x = (torch.zeros(H, *shape).double() for shape in ((S,), (P, N), (R, N), (P,)))
        else:
            theta, h, k, x = (t[i].double() for t in initial_state)
        for t in range(start, stop):
            dt, share = a["dt"][t], torch.sigmoid(a["trap"][t])
            alpha = torch.exp(a["adt"][t])
            update = torch.einsum("hrp,hrn->hpn", x[:, None] * a["mimo_x"], k)
            theta = theta + math.pi * torch.tanh(a["angles"][t]) * dt[:, None]
            k, q = rotate(a["B"][t] + a["B_bias"], theta), rotate(a["C"][t] + a["C_bias"], theta)
            x = a["x"][t]
            v = x[:, None] * a["mimo_x"]
            h = alpha[:, None, None] * h + ((1 - share) * dt * alpha)[:, None, None] * update
            h = h + (share * dt)[:, None, None] * torch.einsum("hrp,hrn->hpn", v, k)
            y = torch.einsum("hpn,hrn->hrp", h, q) + a["D"][:, None, None] * v
            gate = torch.nn.functional.silu(a["z"][t][:, None] * a["mimo_z"])
            outputs.append((a["mimo_o"] * y * gate).sum(1))
        final.append((torch.remainder(theta, 2 * math.pi), h, k, x))
    y = torch.stack(outputs) if outputs else torch.zeros(0, H, P).double()
    return y, Mamba3State(*(torch.stack(parts) for parts in zip(*final, strict=True)))
