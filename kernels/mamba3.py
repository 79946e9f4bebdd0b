"""The public entry of the Mamba-3 MIMO operation on whole sequences."""

import torch
from torch import Tensor

from kernels.arguments import (
    Backend,
    Operands,
    Sizes,
    check_operands,
    check_packing,
    check_states,
    choose_backend,
)
from kernels.packing import Packing
from kernels.reference import mamba3_mimo_reference
from kernels.state import Mamba3State

# What the Triton kernels have tiles for.
_TRITON_RANKS = (1, 2, 4, 8)
_TRITON_SIZES = range(16, 129)


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
    cu_seqlens: Tensor | Packing,
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
        cu_seqlens: (n + 1,) int32 from 0 to T, never decreasing; or the `Packing` made of it, which saves calls on
            the same batch a transfer from the device each.
        initial_state: what the sequences carry from an earlier call; None starts them afresh.
        return_final_state: whether to return the state after each sequence's last token.
        backend: "reference" is plain PyTorch and runs anywhere. "triton" runs on CUDA devices, for float32 and
            bfloat16, ranks 1, 2, 4 and 8, and N and P from 16 to 128; equal sequences get bit-equal results from it,
            whatever they are packed with, also when cut in two calls at a multiple of `kernels.packing.SEGMENT`
            tokens. On the CPU so they do from the reference, cut at one of `REFERENCE_SEGMENT`. "auto" is "triton"
            where that can run, else "reference".

    Returns:
        (T, H, P) in x's dtype, and the final states (an empty sequence's is its initial state) or None.

    Raises:
        ValueError: an argument's shape, dtype or device disagrees, cu_seqlens decreases or does not span 0 to T, or the
            backend is unknown or cannot run these arguments. The message names the argument and the numbers; nothing
            has been launched.

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
    operands = Operands(C, B, x, z, adt, dt, trap, angles, C_bias, B_bias, mimo_x, mimo_z, mimo_o, D)
    sizes = check_operands(operands, rows="T")
    packing = check_packing(cu_seqlens, sizes, x)
    if initial_state is not None:
        check_states("initial_state", initial_state, sizes, packing.n_sequences, "sequences", x)
    if choose_backend(backend, x, triton_obstacle(operands, sizes)) == "reference":
        return mamba3_mimo_reference(operands, packing.cu_seqlens, initial_state, return_final_state)
    from kernels.triton.operation.autograd import mamba3_mimo_triton

    return mamba3_mimo_triton(operands, packing, initial_state, return_final_state)


def triton_obstacle(operands: Operands, sizes: Sizes) -> str | None:
    """What of these arguments the Triton kernels have no tiles for, None if nothing."""
    for name, tensor in operands._asdict().items():
        if tensor.dtype == torch.float64:
            return f"take float32 and bfloat16, but {name} is torch.float64"
    wants_gradients = torch.is_grad_enabled() and any(t.is_cuda and t.requires_grad for t in operands)
    if wants_gradients and operands.x.dtype == torch.float32 and sizes.R > 4:
        return (
            "have gradients in float32 for ranks up to 4 (the tiles of rank 8 do not fit into shared memory); here "
            f"R={sizes.R}"
        )
    if wants_gradients and operands.x.dtype == torch.float32 and min(sizes.N, sizes.P) > 64:
        return (
            "have gradients in float32 where N or P is at most 64 (other states do not fit into shared memory in the "
            f"parts that their products take); here N={sizes.N} and P={sizes.P}"
        )
    return triton_size_obstacle(sizes.R, sizes.N, sizes.P)


def triton_size_obstacle(R: int, N: int, P: int) -> str | None:
    """What of these sizes the Triton kernels have no tiles for, None if nothing."""
    if R not in _TRITON_RANKS:
        return f"take ranks 1, 2, 4 and 8, not R={R}"
    for name, size in (("N", N), ("P", P)):
        if size not in _TRITON_SIZES:
            return f"take {name} from {_TRITON_SIZES.start} to {_TRITON_SIZES.stop - 1}, not {name}={size}"
    return None
