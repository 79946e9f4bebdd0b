"""Random arguments for the operation, and how far results may differ."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import Mamba3State


@dataclass(frozen=True)
class Sizes:
    heads: int = 2
    headdim: int = 16
    d_state: int = 16
    rank: int = 2
    rope_fraction: float = 0.5

    @property
    def angles(self) -> int:
        return int(self.d_state * self.rope_fraction) // 2


def random_weights(sizes: Sizes, normal: Callable[..., Tensor]) -> dict[str, Tensor]:
    """The operation's weights around what a layer starts with, from numbers that `normal` draws."""
    H, P, N, R = sizes.heads, sizes.headdim, sizes.d_state, sizes.rank
    return {
        "C_bias": 1 + normal(H, R, N) / 4,
        "B_bias": 1 + normal(H, R, N) / 4,
        "mimo_x": (1 + normal(H, R, P) / 4) / R,
        "mimo_z": 1 + normal(H, R, P) / 4,
        "mimo_o": (1 + normal(H, R, P) / 4) / R,
        "D": normal(H),
    }


def random_arguments(
    sizes: Sizes, lengths: Sequence[int], seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Arguments as a layer in training makes them: decays from slow to fast, turns of both signs."""
    g = torch.Generator().manual_seed(seed)
    H, P, N, R, S, T = sizes.heads, sizes.headdim, sizes.d_state, sizes.rank, sizes.angles, sum(lengths)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    dt = torch.nn.functional.softplus(normal(T, H) * 2 - 1)
    arguments = {
        "C": normal(T, R, N),
        "B": normal(T, R, N),
        "x": normal(T, H, P),
        "z": normal(T, H, P),
        "adt": -dt * torch.exp(normal(T, H)),
        "dt": dt,
        "trap": normal(T, H),
        "angles": normal(T, S),
        **random_weights(sizes, normal),
    }
    arguments = {name: t.to(dtype) for name, t in arguments.items()}
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    return arguments | {"cu_seqlens": bounds}


def random_state(sizes: Sizes, n: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Mamba3State:
    g = torch.Generator().manual_seed(seed)
    H, P, N, R, S = sizes.heads, sizes.headdim, sizes.d_state, sizes.rank, sizes.angles
    shapes = ((S,), (P, N), (R, N), (P,))
    angle, ssm, k, x = (torch.randn(n, H, *shape, generator=g, dtype=torch.float64).to(dtype) for shape in shapes)
    return Mamba3State(torch.remainder(angle, 2 * math.pi), ssm, k, x)


def relative_error(result: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected; 0 where both are empty or zero."""
    difference = (result.detach().double() - expected.detach().double()).norm()
    return float(difference / expected.detach().double().norm().clamp(min=1e-30))


def assert_close(name: str, result: Tensor, expected: Tensor, bound: float) -> None:
    """Norms of the difference relative to the expected one; angles are compared around the circle."""
    assert result.shape == expected.shape, name
    if name.endswith("angle"):
        turn = result.detach().double() - expected.detach().double()
        result = expected.detach() + torch.remainder(turn + math.pi, 2 * math.pi) - math.pi
    error = relative_error(result, expected)
    assert error < bound, f"{name}: relative error {error:.2e}, allowed {bound:.0e}"
