"""The public entry of what a layer does between its two projections: norms, step activations and the operation."""

import torch
from torch import Tensor
from torch.nn import functional

from kernels.arguments import Backend, Operands, check, check_operands, check_packing, choose_backend
from kernels.constants import EPSILON, LEAST_RATE
from kernels.mamba3 import mamba3_mimo, triton_obstacle
from kernels.packing import Packing


def mamba3_mixer(
    projected: Tensor,
    n_angles: int,
    dt_bias: Tensor,
    B_norm: Tensor,
    C_norm: Tensor,
    C_bias: Tensor,
    B_bias: Tensor,
    mimo_x: Tensor,
    mimo_z: Tensor,
    mimo_o: Tensor,
    D: Tensor,
    cu_seqlens: Tensor | Packing,
    backend: Backend = "auto",
) -> Tensor:
    """Runs `kernels.mamba3_mimo` on what a layer's first projection gives, and returns what its second one takes.

    Sizes are named as there. The columns of `projected` are z (H * P), x (H * P), B (R * N), C (R * N) and, each before
    its activation, the heads' steps (H), A (H) and trapezoids' weights (H) and the angles (S). There may be more, which
    are ignored and get a gradient of 0. It computes what state-spaces/mamba's `Mamba3` does:

        B, C = each rank's N columns with a root mean square of 1, times B_norm or C_norm
        dt   = softplus(step + dt_bias)
        adt  = -max(max(A, 0) + 1 / (1 - min(A, 0)), 1e-4) * dt

    B and C are rounded to the dtype of `projected`; dt and adt are float32 (float64 where `projected` is), whatever the
    weights are. The result is differentiable in `projected` and all weights.

    Args:
        projected: (T, at least 2 * H * P + 2 * R * N + 3 * H + S).
        n_angles: S.
        dt_bias: (H,).
        B_norm: (N,).
        C_norm: (N,).
        C_bias: (H, R, N).
        B_bias: (H, R, N).
        mimo_x: (H, R, P).
        mimo_z: (H, R, P).
        mimo_o: (H, R, P).
        D: (H,).
        cu_seqlens: as for `kernels.mamba3_mimo`.
        backend: likewise. "triton" is few launches forward and backward; the same arguments give the same bits.

    Returns:
        (T, H * P) in the dtype of `projected`.

    Raises:
        ValueError: as `kernels.mamba3_mimo`.
    """
    for name, tensor, dims in (("projected", projected, 2), ("B_bias", B_bias, 3), ("mimo_x", mimo_x, 3)):
        if tensor.dim() != dims:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must have {dims} dimensions")
    if n_angles < 0:
        raise ValueError(f"n_angles is {n_angles}; it must be at least 0")
    (H, R, N), P = B_bias.shape, mimo_x.shape[2]
    least = 2 * H * P + 2 * R * N + 3 * H + n_angles
    if projected.shape[1] < least:
        raise ValueError(
            f"projected has shape {tuple(projected.shape)}; with H={H}, P={P}, N={N}, R={R} and S={n_angles} it must "
            f"have at least {least} columns"
        )
    weights = (C_bias, B_bias, mimo_x, mimo_z, mimo_o, D)
    # Of the right shapes; what becomes of step and A is decided below.
    operands = Operands.projected(projected, n_angles, weights)
    sizes = check_operands(operands, rows="T")
    for name, tensor, size in (("dt_bias", dt_bias, H), ("B_norm", B_norm, N), ("C_norm", C_norm, N)):
        check(name, tensor, (size,), f"H={H} and N={N}", projected)
    packing = check_packing(cu_seqlens, sizes, projected)
    if choose_backend(backend, projected, triton_obstacle(operands, sizes)) == "triton":
        from kernels.triton.mixer import mamba3_mixer_triton

        return mamba3_mixer_triton(projected, n_angles, dt_bias, B_norm, C_norm, weights, packing)
    y, _ = mamba3_mimo(*activated(operands, dt_bias, B_norm, C_norm), packing, backend="reference")
    return y.flatten(1)


def activated(operands: Operands, dt_bias: Tensor, B_norm: Tensor, C_norm: Tensor) -> Operands:
    """The operation's arguments in plain PyTorch, of a projection's columns.

    Args:
        operands: as they come from the projection (`Operands.projected`).
        dt_bias: (H,).
        B_norm: (N,).
        C_norm: (N,).
    """
    wide = torch.float64 if operands.x.dtype == torch.float64 else torch.float32
    dt = _softplus(operands.dt.to(wide) + dt_bias)
    A = operands.adt.to(wide)
    rate = _positive(A) + 1 / (1 + _positive(-A))
    C, B = rms_norm(operands.C, C_norm), rms_norm(operands.B, B_norm)
    return operands._replace(C=C, B=B, adt=-rate.clamp(min=LEAST_RATE) * dt, dt=dt)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Scales vectors (..., n) to a root mean square of 1, times a weight (n,) each.

    The result is of x's dtype; the mean is taken in at least float32.
    """
    if x.is_cuda and x.dtype == weight.dtype:  # of different dtypes PyTorch's is not one launch either
        return functional.rms_norm(x, weight.shape, weight, EPSILON)
    wide = x if x.dtype == torch.float64 else x.float()
    scale = torch.rsqrt((wide * wide).mean(-1, keepdim=True) + EPSILON)
    return (wide * scale * weight).to(x.dtype)


def _softplus(x: Tensor) -> Tensor:
    """Put together from functions whose bits do not depend on the place in the tensor."""
    return _positive(x) + torch.log1p(torch.exp(-x.abs()))


def _positive(x: Tensor) -> Tensor:
    """max(x, 0), whose gradient at 0 is the mean of both sides'; bfloat16 has such numbers."""
    return (x + x.abs()) / 2
