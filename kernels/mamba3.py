"""The public entry of the Mamba-3 MIMO operation: argument checks and the choice of a backend."""

from typing import Literal, get_args

import torch
from torch import Tensor

from kernels.reference import mamba3_mimo_reference
from kernels.state import Mamba3State

Backend = Literal["auto", "triton", "reference"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def mamba3_mimo(
    C: Tensor,
    B: Tensor,
    x: Tensor,
    z: Tensor,
    adt: Tensor,
    dt: Tensor,
    trap: Tensor,
    angles: Tensor,
    C_bias: Tensor,
    B_bias: Tensor,
    mimo_x: Tensor,
    mimo_z: Tensor,
    mimo_o: Tensor,
    D: Tensor,
    cu_seqlens: Tensor,
    initial_state: Mamba3State | None = None,
    return_final_state: bool = False,
    backend: Backend = "auto",
) -> tuple[Tensor, Mamba3State | None]:
    """Runs the Mamba-3 MIMO recurrence over packed sequences.

    T tokens, n sequences, H heads of width P (headdim), N = d_state, R = rank, S rotation angles (at most N / 2).
    It is Mamba-3's exponential-trapezoidal update. Per head, with alpha = exp(adt), lambda = sigmoid(trap),
    v_r = x * mimo_x_r, and k_r and q_r the vectors B_r + B_bias_r and C_r + C_bias_r whose pairs (i, i + N / 2) are
    turned by theta_i for i < S, theta being the running sum of pi * tanh(angles) * dt modulo 2 pi:

        h_t     = alpha_t h_{t-1} + (1 - lambda_t) dt_t alpha_t sum_r v_{t-1,r} k_{t-1,r}^T
                                  + lambda_t dt_t sum_r v_{t,r} k_{t,r}^T
        y_{t,r} = h_t q_{t,r} + D v_{t,r}
        y_t     = sum_r mimo_o_r * y_{t,r} * silu(z_t * mimo_z_r)

    Sequence i is the tokens cu_seqlens[i] up to cu_seqlens[i + 1]; it may be empty. Float inputs may be float32,
    bfloat16 or float64, also mixed; everything summed over time is summed in float32 (float64 where x is float64).
    The result is differentiable in every float input, the initial state included.

    Args:
        C: (T, R, N), shared by the heads.
        B: (T, R, N), shared by the heads.
        x: (T, H, P).
        z: (T, H, P), the gate before its SiLU.
        adt: (T, H), A times dt, at most 0.
        dt: (T, H), positive.
        trap: (T, H), the trapezoid's weight before its sigmoid.
        angles: (T, S), before their tanh, shared by the heads.
        C_bias: (H, R, N).
        B_bias: (H, R, N).
        mimo_x: (H, R, P).
        mimo_z: (H, R, P).
        mimo_o: (H, R, P).
        D: (H,).
        cu_seqlens: (n + 1,) int32 from 0 to T, never decreasing.
        initial_state: what the sequences carry from an earlier call; None starts them afresh.
        return_final_state: whether to return the state after each sequence's last token.
        backend: "reference" is plain PyTorch and runs anywhere; "auto" takes the best there is for the device.

    Returns:
        (T, H, P) in x's dtype, and the final states (an empty sequence's is its initial state) or None.

    Raises:
        ValueError: an argument's shape, dtype or device disagrees, cu_seqlens decreases or does not span 0 to T, or the
            backend is unknown or missing. The message names the argument and the numbers.

    Example:
        >>> T, H, P, N, R, S = 5, 2, 16, 16, 4, 4
        >>> B, C = torch.randn(2, T, R, N)
        >>> x, z = torch.randn(2, T, H, P)
        >>> dt = torch.rand(T, H)
        >>> bias, mimo = torch.ones(H, R, N), torch.ones(H, R, P)
        >>> packed = torch.tensor([0, 2, 5], dtype=torch.int32)  # a sequence of 2 tokens and one of 3
        >>> y, state = mamba3_mimo(C, B, x, z, -dt, dt, torch.zeros(T, H), torch.randn(T, S), bias, bias, mimo, mimo,
        ...                        mimo, torch.ones(H), packed, return_final_state=True)
        >>> y.shape, state.ssm.shape
        (torch.Size([5, 2, 16]), torch.Size([2, 2, 16, 16]))
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend is {backend!r}; it must be one of {', '.join(get_args(Backend))}")
    if backend == "triton":
        raise ValueError("backend is 'triton', but this version has no Triton backend; use 'auto' or 'reference'")
    _check_sizes(C, x, angles)
    T, R, N = C.shape
    H, P = x.shape[1:]
    S = angles.shape[1]
    if cu_seqlens.dim() != 1 or cu_seqlens.numel() == 0 or cu_seqlens.dtype != torch.int32:
        raise ValueError(
            f"cu_seqlens is {cu_seqlens.dtype} of shape {tuple(cu_seqlens.shape)}; it must be int32 of shape (n + 1,)"
        )
    n = cu_seqlens.numel() - 1
    shapes: dict[str, tuple[Tensor, tuple[int, ...]]] = {
        "C": (C, (T, R, N)),
        "B": (B, (T, R, N)),
        "x": (x, (T, H, P)),
        "z": (z, (T, H, P)),
        "adt": (adt, (T, H)),
        "dt": (dt, (T, H)),
        "trap": (trap, (T, H)),
        "angles": (angles, (T, S)),
        "C_bias": (C_bias, (H, R, N)),
        "B_bias": (B_bias, (H, R, N)),
        "mimo_x": (mimo_x, (H, R, P)),
        "mimo_z": (mimo_z, (H, R, P)),
        "mimo_o": (mimo_o, (H, R, P)),
        "D": (D, (H,)),
    }
    if initial_state is not None:
        for name, state, shape in zip(initial_state._fields, initial_state, ((S,), (P, N), (R, N), (P,)), strict=True):
            shapes[f"initial_state.{name}"] = (state, (n, H, *shape))
    for name, (tensor, expected) in shapes.items():
        if tensor.shape != expected:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; with T={T}, H={H}, P={P}, N={N}, R={R}, S={S} and {n} "
                f"sequences it must have {expected}"
            )
        if tensor.dtype not in _DTYPES:
            raise ValueError(f"{name} is {tensor.dtype}; it must be float32, bfloat16 or float64")
        _check_device(name, tensor, x)
    _check_device("cu_seqlens", cu_seqlens, x)
    _check_spans(cu_seqlens, T)
    return mamba3_mimo_reference(
        C,
        B,
        x,
        z,
        adt,
        dt,
        trap,
        angles,
        C_bias,
        B_bias,
        mimo_x,
        mimo_z,
        mimo_o,
        D,
        cu_seqlens,
        initial_state,
        return_final_state,
    )


def _check_sizes(C: Tensor, x: Tensor, angles: Tensor) -> None:
    """What the sizes are read from must have its number of dimensions, and the sizes must be possible."""
    for name, tensor, dims in (("C", C, "(T, R, N)"), ("x", x, "(T, H, P)"), ("angles", angles, "(T, S)")):
        if tensor.dim() != dims.count(",") + 1:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be {dims}")
    sizes = {"T": x.shape[0], "H": x.shape[1], "P": x.shape[2], "R": C.shape[1], "N": C.shape[2]}
    for name, size in sizes.items():
        if size == 0 and name != "T":
            raise ValueError(f"C has shape {tuple(C.shape)} and x {tuple(x.shape)}, so {name} is 0")
    if C.shape[2] % 2:
        raise ValueError(f"C has d_state N={C.shape[2]}; it must be even, since rotations turn pairs")
    if angles.shape[1] > C.shape[2] // 2:
        raise ValueError(
            f"angles has S={angles.shape[1]} angles; d_state N={C.shape[2]} has only {C.shape[2] // 2} pairs"
        )


def _check_device(name: str, tensor: Tensor, x: Tensor) -> None:
    if tensor.device != x.device:
        raise ValueError(f"{name} is on {tensor.device} but x is on {x.device}")


def _check_spans(cu_seqlens: Tensor, T: int) -> None:
    """Refuses bounds that are not 0 .. T without a decrease; one transfer from the device where all is well."""
    lengths = cu_seqlens.diff()
    if lengths.numel() and int(lengths.min()) < 0:
        i = int(torch.nonzero(lengths < 0)[0])
        before, after = cu_seqlens[i : i + 2].tolist()
        raise ValueError(f"cu_seqlens decreases from {before} to {after} at index {i + 1}")
    first, last = int(cu_seqlens[0]), int(cu_seqlens[-1])
    if first != 0 or last != T:
        raise ValueError(f"cu_seqlens goes from {first} to {last}; with T={T} tokens it must go from 0 to {T}")
