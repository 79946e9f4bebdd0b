"""What the public entries have in common: checks of their arguments and the choice of a backend."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor

from kernels.packing import Packing
from kernels.state import Mamba3State

Backend = Literal["auto", "triton", "reference"]

# How many of the operands come first that have a row for every token; the others are weights.
PER_TOKEN = 8

_DTYPES = (torch.float32, torch.bfloat16, torch.float64)


class Operands(NamedTuple):
    """The tensors that every entry takes; `kernels.mamba3_mimo` says what they are."""

    C: Tensor
    B: Tensor
    x: Tensor
    z: Tensor
    adt: Tensor
    dt: Tensor
    trap: Tensor
    angles: Tensor
    C_bias: Tensor
    B_bias: Tensor
    mimo_x: Tensor
    mimo_z: Tensor
    mimo_o: Tensor
    D: Tensor

    @classmethod
    def projected(cls, projected: Tensor, n_angles: int, weights: Sequence[Tensor]) -> Self:
        """Columns of a projection, as `kernels.mamba3_mixer` has them, and the weights in order; A stands for adt."""
        (H, R, N), P, T = weights[0].shape, weights[2].shape[2], projected.shape[0]
        sections = [H * P, H * P, R * N, R * N, H, H, H, n_angles]
        parts = torch.split(projected, [*sections, projected.shape[1] - sum(sections)], 1)
        z, x, B, C, step, A, trap, angles, _ = parts
        return cls(C.view(T, R, N), B.view(T, R, N), x.view(T, H, P), z.view(T, H, P), A, step, trap, angles, *weights)

    def with_contiguous_tokens(self) -> "Operands":
        """Copies what the Triton kernels do not read as it lies: weights as a whole, else each token's numbers."""
        per_token = (t if t[:1].is_contiguous() else t.contiguous() for t in self[:PER_TOKEN])
        return Operands(*per_token, *(t.contiguous() for t in self[PER_TOKEN:]))


@dataclass(frozen=True)
class Sizes:
    """Sizes of a call: `rows` tokens, H heads of width P, N = d_state, R = rank, S rotation angles."""

    rows: int
    H: int
    P: int
    N: int
    R: int
    S: int


def check_operands(operands: Operands, rows: str) -> Sizes:
    """Check the operands against each other.

    Args:
        operands: of a call.
        rows: what messages call the number of tokens.

    Raises:
        ValueError: a shape, dtype or device disagrees; the message names the tensor and the numbers.
    """
    C, x, angles = operands.C, operands.x, operands.angles
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
    per_token = ((T, R, N), (T, R, N), (T, H, P), (T, H, P), (T, H), (T, H), (T, H), (T, S))
    weights = ((H, R, N), (H, R, N), (H, R, P), (H, R, P), (H, R, P), (H,))
    for name, tensor, expected in zip(operands._fields, operands, (*per_token, *weights), strict=True):
        check(name, tensor, expected, f"{rows}={T}, H={H}, P={P}, N={N}, R={R} and S={S}", x)
    return Sizes(T, H, P, N, R, S)


def check_states(name: str, states: Mamba3State, sizes: Sizes, count: int, of: str, x: Tensor) -> None:
    """Check the parts of `count` states; arguments as for `check_operands`, `of` being what each state belongs to.

    Raises:
        ValueError: a part's shape, dtype or device disagrees; the message names the part and the numbers.
    """
    H, P, N, R, S = sizes.H, sizes.P, sizes.N, sizes.R, sizes.S
    for part, tensor, shape in zip(states._fields, states, ((S,), (P, N), (R, N), (P,)), strict=True):
        given = f"H={H}, P={P}, N={N}, R={R}, S={S} and {count} {of}"
        check(f"{name}.{part}", tensor, (count, H, *shape), given, x)


def check_packing(cu_seqlens: Tensor | Packing, sizes: Sizes, x: Tensor) -> Packing:
    """The packing of a call, made where it was not given.

    Raises:
        ValueError: as `Packing.of`; it is not on x's device or does not span the rows.
    """
    packing = cu_seqlens if isinstance(cu_seqlens, Packing) else Packing.of(cu_seqlens)
    if packing.cu_seqlens.device != x.device:
        raise ValueError(f"cu_seqlens is on {packing.cu_seqlens.device} but x is on {x.device}")
    if packing.n_tokens != sizes.rows:
        raise ValueError(
            f"cu_seqlens goes from 0 to {packing.n_tokens}; with T={sizes.rows} tokens it must go from 0 to "
            f"{sizes.rows}"
        )
    return packing


def choose_backend(backend: Backend, x: Tensor, obstacle: str | None = None) -> Literal["triton", "reference"]:
    """Which backend computes: for "auto" Triton on CUDA devices, but for float64, and else the reference.

    Args:
        backend: what was asked for.
        x: of the call.
        obstacle: what of the call the Triton kernels do not take, None if nothing.

    Raises:
        ValueError: the backend is unknown, or is "triton" where Triton cannot compute.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend is {backend!r}; it must be one of {', '.join(get_args(Backend))}")
    if backend == "auto":
        return "triton" if x.is_cuda and x.dtype != torch.float64 and obstacle is None else "reference"
    if backend == "triton" and x.dtype == torch.float64:
        raise ValueError("backend is 'triton', which computes in float32, but x is torch.float64; use 'reference'")
    if backend == "triton" and not x.is_cuda and not _is_interpreted():
        raise ValueError(
            f"backend is 'triton' but x is on {x.device}; Triton needs a CUDA device, or TRITON_INTERPRET=1 in the "
            "environment before the first import"
        )
    if backend == "triton" and obstacle is not None:
        raise ValueError(f"backend is 'triton', whose kernels {obstacle}; use 'auto' or 'reference'")
    return backend


def _is_interpreted() -> bool:
    """Whether Triton's kernels are run by its interpreter, which is settled when they are first imported."""
    try:
        from kernels.triton import INTERPRETED
    except ImportError:
        return False
    return bool(INTERPRETED.value)


def check(name: str, tensor: Tensor, expected: tuple[int, ...], given: str, x: Tensor) -> None:
    """Check a tensor of a call whose sizes are those `given` in words.

    Raises:
        ValueError: its shape, dtype or device disagrees with `expected` and x.
    """
    if tensor.shape != expected:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; with {given} it must have {expected}")
    if tensor.dtype not in _DTYPES:
        raise ValueError(f"{name} is {tensor.dtype}; it must be float32, bfloat16 or float64")
    if tensor.device != x.device:
        raise ValueError(f"{name} is on {tensor.device} but x is on {x.device}")
