"""What the public entries have in common: checks of their arguments and the choice of a backend."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from kernels.state import Mamba3State

Backend = Literal["auto", "triton", "reference"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Sizes:
    """Sizes of a call: `rows` tokens, H heads of width P, N = d_state, R = rank, S rotation angles."""

    rows: int
    H: int
    P: int
    N: int
    R: int
    S: int


def check_tensors(tensors: Mapping[str, Tensor], rows: str) -> Sizes:
    """Check the fourteen tensors that every entry takes, by name, against each other.

    Args:
        tensors: C, B, x, z, adt, dt, trap, angles, C_bias, B_bias, mimo_x, mimo_z, mimo_o and D.
        rows: what messages call the number of tokens.

    Raises:
        ValueError: a shape, dtype or device disagrees; the message names the tensor and the numbers.
    """
    C, x, angles = tensors["C"], tensors["x"], tensors["angles"]
    for name, tensor, dims in (("C", C, "R, N"), ("x", x, "H, P"), ("angles", angles, "S")):
        if tensor.dim() != dims.count(",") + 2:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be ({rows}, {dims})")
    T, H, P = x.shape
    R, N = C.shape[1:]
    S = angles.shape[1]
    for name, size in (("H", H), ("P", P), ("R", R), ("N", N)):
        if size == 0:
            raise ValueError(f"C has shape {tuple(C.shape)} and x {tuple(x.shape)}, so {name} is 0")
    if N % 2:
        raise ValueError(f"C has d_state N={N}; it must be even, since rotations turn pairs")
    if S > N // 2:
        raise ValueError(f"angles has S={S} angles; d_state N={N} has only {N // 2} pairs")
    expected: dict[str, tuple[int, ...]] = {
        "C": (T, R, N),
        "B": (T, R, N),
        "x": (T, H, P),
        "z": (T, H, P),
        "adt": (T, H),
        "dt": (T, H),
        "trap": (T, H),
        "angles": (T, S),
        "C_bias": (H, R, N),
        "B_bias": (H, R, N),
        "mimo_x": (H, R, P),
        "mimo_z": (H, R, P),
        "mimo_o": (H, R, P),
        "D": (H,),
    }
    for name, tensor in tensors.items():
        _check(name, tensor, expected[name], f"{rows}={T}, H={H}, P={P}, N={N}, R={R} and S={S}", x)
    return Sizes(T, H, P, N, R, S)


def check_states(name: str, states: Mamba3State, sizes: Sizes, count: int, of: str, x: Tensor) -> None:
    """Check the parts of `count` states; arguments as for `check_tensors`, `of` being what each state belongs to.

    Raises:
        ValueError: a part's shape, dtype or device disagrees; the message names the part and the numbers.
    """
    H, P, N, R, S = sizes.H, sizes.P, sizes.N, sizes.R, sizes.S
    for part, tensor, shape in zip(states._fields, states, ((S,), (P, N), (R, N), (P,)), strict=True):
        given = f"H={H}, P={P}, N={N}, R={R}, S={S} and {count} {of}"
        _check(f"{name}.{part}", tensor, (count, H, *shape), given, x)


def choose_backend(backend: Backend, x: Tensor) -> Literal["triton", "reference"]:
    """Which backend computes: for "auto" Triton on CUDA devices, but for float64, and else the reference.

    Raises:
        ValueError: the backend is unknown, or is "triton" where Triton cannot compute.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend is {backend!r}; it must be one of {', '.join(get_args(Backend))}")
    if backend == "auto":
        return "triton" if x.is_cuda and x.dtype != torch.float64 else "reference"
    if backend == "triton" and x.dtype == torch.float64:
        raise ValueError("backend is 'triton', which computes in float32, but x is torch.float64; use 'reference'")
    if backend == "triton" and not x.is_cuda and not _is_interpreted():
        raise ValueError(
            f"backend is 'triton' but x is on {x.device}; Triton needs a CUDA device, or TRITON_INTERPRET=1 in the "
            "environment before the first import"
        )
    return backend


def _is_interpreted() -> bool:
    """Whether Triton's kernels are run by its interpreter, which is settled when they are first imported."""
    try:
        from kernels.triton.common import INTERPRETED
    except ImportError:
        return False
    return bool(INTERPRETED.value)


def _check(name: str, tensor: Tensor, expected: tuple[int, ...], given: str, x: Tensor) -> None:
    if tensor.shape != expected:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; with {given} it must have {expected}")
    if tensor.dtype not in _DTYPES:
        raise ValueError(f"{name} is {tensor.dtype}; it must be float32, bfloat16 or float64")
    if tensor.device != x.device:
        raise ValueError(f"{name} is on {tensor.device} but x is on {x.device}")
