"""The public entry of one token for many sequences: argument checks, the choice of a backend, and the plain version."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from kernels.arguments import Backend, Operands, check_operands, check_states, choose_backend
from kernels.state import Mamba3State


@torch.no_grad()
def mamba3_mimo_step(
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
    pool: Mamba3State,
    slots: Tensor,
    backend: Backend = "auto",
) -> Tensor:
    """Feeds one token to each of m sequences, whose states stay in a pool and are updated there.

    The update is that of `kernels.mamba3_mimo`, computed in the pool's precision and without gradients. Sequence i has
    its state in slot slots[i]; a slot of zeros is a sequence before its first token. Other slots are left alone.

    `slots` is checked on the CPU before anything is launched. Give it there: then a CUDA device is not waited for.
    Slots on a CUDA device are fetched first, which waits until it has done all that was asked of it.

    Args:
        C: (m, R, N), shared by the heads.
        B: (m, R, N), shared by the heads.
        x: (m, H, P).
        z: (m, H, P), the gate before its SiLU.
        adt: (m, H), A times dt, at most 0.
        dt: (m, H), positive.
        trap: (m, H), the trapezoid's weight before its sigmoid.
        angles: (m, S), before their tanh, shared by the heads.
        C_bias: (H, R, N).
        B_bias: (H, R, N).
        mimo_x: (H, R, P).
        mimo_z: (H, R, P).
        mimo_o: (H, R, P).
        D: (H,).
        pool: the states of any number of slots, float32 (float64 where x is float64) and contiguous; updated in place.
        slots: (m,) int32 or int64, distinct, from 0 to the pool's last slot.
        backend: as of `kernels.mamba3_mimo`.

    Returns:
        (m, H, P) in x's dtype.

    Raises:
        ValueError: an argument's shape, dtype or device disagrees, a slot is not in the pool or comes twice, or the
            backend is unknown or missing. The message names the argument and the numbers; nothing is updated.

    Example:
        >>> m, H, P, N, R, S = 3, 2, 16, 16, 4, 4
        >>> pool = Mamba3State(*(torch.zeros(10, H, *shape) for shape in ((S,), (P, N), (R, N), (P,))))
        >>> B, C = torch.randn(2, m, R, N)
        >>> x, z = torch.randn(2, m, H, P)
        >>> dt = torch.rand(m, H)
        >>> bias, mimo = torch.ones(H, R, N), torch.ones(H, R, P)
        >>> y = mamba3_mimo_step(C, B, x, z, -dt, dt, torch.zeros(m, H), torch.randn(m, S), bias, bias, mimo, mimo,
        ...                      mimo, torch.ones(H), pool, torch.tensor([7, 0, 2]))
        >>> y.shape
        torch.Size([3, 2, 16])
    """
    operands = Operands(C, B, x, z, adt, dt, trap, angles, C_bias, B_bias, mimo_x, mimo_z, mimo_o, D)
    chosen = choose_backend(backend, x)
    sizes = check_operands(operands, "m")
    count = pool.ssm.shape[0] if pool.ssm.dim() else 0
    check_states("pool", pool, sizes, count, "slots", x)
    precision = torch.float64 if x.dtype == torch.float64 else torch.float32
    for name, part in pool._asdict().items():
        if part.dtype != precision:
            raise ValueError(f"pool.{name} is {part.dtype}; with x of {x.dtype} it must be {precision}")
        if not part.is_contiguous():
            raise ValueError(f"pool.{name} has strides {part.stride()}; it must be contiguous, to be updated in place")
    _check_slots(slots, sizes.rows, count)
    slots = slots.to(x.device, non_blocking=True)
    if chosen == "reference":
        return _step_reference(operands, pool, slots)
    # Here, since Triton is not there on every machine that the reference runs on.
    from kernels.triton.step import mamba3_mimo_step_triton

    return mamba3_mimo_step_triton(operands, pool, slots)


def _check_slots(slots: Tensor, m: int, count: int) -> None:
    if slots.shape != (m,) or slots.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"slots is {slots.dtype} of shape {tuple(slots.shape)}; with m={m} it must be int32 or int64 of shape "
            f"({m},)"
        )
    if m == 0:
        return
    ordered = slots.cpu().sort().values
    for slot in (int(ordered[0]), int(ordered[-1])):
        if not 0 <= slot < count:
            raise ValueError(f"slots has {slot}; the pool's slots go from 0 to {count - 1}")
    twice = ordered[1:][ordered.diff() == 0]
    if twice.numel():
        raise ValueError(f"slots has {int(twice[0])} twice; a slot takes one token at a time")


def _step_reference(operands: Operands, pool: Mamba3State, slots: Tensor) -> Tensor:
    """The recurrence in plain PyTorch, whose checks its arguments have passed."""
    out_dtype, dtype = operands.x.dtype, pool.ssm.dtype
    C, B, x, z, adt, dt, trap, angles, C_bias, B_bias, mimo_x, mimo_z, mimo_o, D = (t.to(dtype) for t in operands)
    before = Mamba3State(*(part.index_select(0, slots) for part in pool))

    share = torch.sigmoid(trap)
    alpha, gamma = torch.exp(adt), share * dt
    beta = (1 - share) * dt * alpha
    # In float64: the rounding of pi alone would show after a few thousand tokens that turn the same way.
    turned = before.angle.double() + math.pi * (torch.tanh(angles)[:, None] * dt[..., None]).double()
    theta = torch.remainder(turned, 2 * math.pi).to(dtype)
    theta = theta.masked_fill(theta >= 2 * math.pi, 0)  # what rounding made a whole turn
    q, k = _rotated(C, C_bias, theta), _rotated(B, B_bias, theta)
    v = x[:, :, None] * mimo_x  # (m, H, R, P)
    v_before = before.x[:, :, None] * mimo_x
    ssm = alpha[..., None, None] * before.ssm
    ssm += torch.matmul((beta[..., None, None] * v_before).mT, before.k)
    ssm += torch.matmul((gamma[..., None, None] * v).mT, k)
    y = torch.matmul(q, ssm.mT) + D[:, None, None] * v
    out = (mimo_o * y * functional.silu(z[:, :, None] * mimo_z)).sum(2)
    for part, after in zip(pool, Mamba3State(theta, ssm, k, x), strict=True):
        part.index_copy_(0, slots.long(), after)
    return out.to(out_dtype)


def _rotated(projection: Tensor, bias: Tensor, theta: Tensor) -> Tensor:
    """Adds the bias of head and rank and turns the pairs (i, i + N / 2) for i < S: (m, R, N) to (m, H, R, N)."""
    S, half = theta.shape[-1], projection.shape[-1] // 2
    first, between, second, rest = torch.split(projection[:, None] + bias, [S, half - S, S, half - S], -1)
    cos, sin = theta.cos()[:, :, None], theta.sin()[:, :, None]
    return torch.cat((first * cos - second * sin, between, first * sin + second * cos, rest), -1)
