"""One token for many sequences, whose states are updated in place.

A program works on one head of one sequence, BLOCK_P rows of its state after the other, in float32 on the CUDA cores:
the state is read and written once, and that is nearly all the time there is to spend. With w_r = mimo_o_r * silu(z *
mimo_z_r) the outputs are sum_n h[p, n] * (sum_r w_r[p] * q_r[n]), so that only one sum runs across threads.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import PER_TOKEN, Operands
from kernels.state import Mamba3State
from kernels.triton import tiles
from kernels.triton.activations import tanh
from kernels.triton.rotation import INVERSE_TURN, PI, rotation


@triton.jit
def _pairs(vectors, o_n, m_n, HALF_N: tl.constexpr):
    """Both numbers of each pair (i, i + N / 2) of a vector, each (BLOCK_N,) in float32."""
    b_first = tl.load(vectors + o_n, m_n, 0.0).to(tl.float32)
    b_second = tl.load(vectors + HALF_N + o_n, m_n, 0.0).to(tl.float32)
    return b_first, b_second


@triton.jit
def _rotated(vectors, bias, b_cos, b_sin, o_n, m_n, HALF_N: tl.constexpr):
    """A row of B or C with the head's bias, its pairs turned."""
    b_first, b_second = _pairs(vectors, o_n, m_n, HALF_N)
    b_first_bias, b_second_bias = _pairs(bias, o_n, m_n, HALF_N)
    b_first += b_first_bias
    b_second += b_second_bias
    return b_first * b_cos - b_second * b_sin, b_first * b_sin + b_second * b_cos


@triton.jit
def _part(p_ssm, i_p, P: tl.constexpr, N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr):
    """Where the first numbers of the pairs of BLOCK_P rows are, and which of them there are, (BLOCK_P, BLOCK_N)."""
    o_p, o_n = i_p + tl.arange(0, BLOCK_P)[:, None], tl.arange(0, BLOCK_N)[None, :]
    return p_ssm + o_p * N + o_n, (o_p < P) & (o_n < N // 2)


@triton.jit
def _step(
    p_C, p_B, p_x, p_z, p_adt, p_dt, p_trap, p_angles, p_C_bias, p_B_bias, p_mimo_x, p_mimo_z, p_mimo_o, p_D,
    p_theta, p_ssm, p_k, p_x_state, p_slots, p_y,
    stride_C, stride_B, stride_x, stride_z, stride_adt, stride_dt, stride_trap, stride_angles,
    H, P: tl.constexpr, N: tl.constexpr, R: tl.constexpr, S: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, ALL_P: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    i_m = tl.program_id(0).to(tl.int64) // H
    i_h = tl.program_id(0) % H
    i_state = tl.load(p_slots + i_m).to(tl.int64) * H + i_h
    HALF_N: tl.constexpr = N // 2
    o_n = tl.arange(0, BLOCK_N)
    m_n = o_n < HALF_N
    m_s = o_n < S
    p_C += i_m * stride_C
    p_B += i_m * stride_B
    p_C_bias += i_h * R * N
    p_B_bias += i_h * R * N
    p_ssm += i_state * P * N
    p_k += i_state * R * N
    p_theta += i_state * S
    p_x_state += i_state * P
    p_x += i_m * stride_x + i_h * P
    p_z += i_m * stride_z + i_h * P
    p_mimo_x += i_h * R * P
    p_mimo_z += i_h * R * P
    p_mimo_o += i_h * R * P
    p_y += (i_m * H + i_h) * P

    # What takes longest first: a part of the state is on its way while what is to be done with the one before is found.
    p_next, m_next = _part(p_ssm, 0, P, N, BLOCK_P, BLOCK_N)
    b_next_first, b_next_second = tl.load(p_next, m_next, 0.0), tl.load(p_next + HALF_N, m_next, 0.0)
    dt = tl.load(p_dt + i_m * stride_dt + i_h).to(tl.float32)
    alpha = tl.exp(tl.load(p_adt + i_m * stride_adt + i_h).to(tl.float32))
    share = tl.sigmoid(tl.load(p_trap + i_m * stride_trap + i_h).to(tl.float32))
    gamma, beta = share * dt, (1 - share) * dt * alpha
    D = tl.load(p_D + i_h).to(tl.float32)
    b_rate = tanh(tl.load(p_angles + i_m * stride_angles + o_n, m_s, 0.0).to(tl.float32))
    # In float64: the rounding of pi alone would show after a few thousand tokens that turn the same way.
    b_turned = tl.load(p_theta + o_n, m_s, 0.0).to(tl.float64) + PI * (b_rate * dt).to(tl.float64)
    b_theta = (b_turned - 2 * PI * tl.floor(b_turned * INVERSE_TURN)).to(tl.float32)
    b_theta = tl.where(b_theta < 2 * PI, b_theta, 0.0)
    b_cos, b_sin = rotation(b_theta)  # pairs from S on have the angle 0, and stay as they are
    # Found once for all parts; the last token's k, which is only loaded, would cost more registers than it saves.
    b_k, b_q = (), ()
    for i_r in tl.static_range(R):
        b_k += (_rotated(p_B + i_r * N, p_B_bias + i_r * N, b_cos, b_sin, o_n, m_n, HALF_N),)  # type: ignore[assignment]
        b_q += (_rotated(p_C + i_r * N, p_C_bias + i_r * N, b_cos, b_sin, o_n, m_n, HALF_N),)  # type: ignore[assignment]

    for begin in range(0, P, PARTS * BLOCK_P):
        for part in tl.static_range(PARTS):
            i_p = begin + part * BLOCK_P
            o_p = i_p + tl.arange(0, BLOCK_P)
            m_p = o_p < P
            p_first, m_pn = p_next, m_next
            b_first, b_second = b_next_first * alpha, b_next_second * alpha
            p_next, m_next = _part(p_ssm, i_p + BLOCK_P, P, N, BLOCK_P, BLOCK_N)
            b_next_first, b_next_second = tl.load(p_next, m_next, 0.0), tl.load(p_next + HALF_N, m_next, 0.0)
            b_x_before = beta * tl.load(p_x_state + o_p, m_p, 0.0)
            b_x = tl.load(p_x + o_p, m_p, 0.0).to(tl.float32)
            b_z = tl.load(p_z + o_p, m_p, 0.0).to(tl.float32)
            b_read_first = tl.zeros((BLOCK_P, BLOCK_N), tl.float32)
            b_read_second = tl.zeros((BLOCK_P, BLOCK_N), tl.float32)
            b_skip = tl.zeros((BLOCK_P,), tl.float32)
            for i_r in tl.static_range(R):
                b_mimo_x = tl.load(p_mimo_x + i_r * P + o_p, m_p, 0.0).to(tl.float32)
                b_gate = b_z * tl.load(p_mimo_z + i_r * P + o_p, m_p, 0.0).to(tl.float32)
                b_weight = tl.load(p_mimo_o + i_r * P + o_p, m_p, 0.0).to(tl.float32) * b_gate * tl.sigmoid(b_gate)
                b_v, b_v_before = b_x * b_mimo_x, (b_x_before * b_mimo_x)[:, None]
                b_skip += b_weight * b_v
                b_v = (gamma * b_v)[:, None]
                b_before_first, b_before_second = _pairs(p_k + i_r * N, o_n, m_n, HALF_N)
                b_first += b_v_before * b_before_first[None, :]
                b_second += b_v_before * b_before_second[None, :]
                b_first += b_v * b_k[i_r][0][None, :]
                b_second += b_v * b_k[i_r][1][None, :]
                b_read_first += b_weight[:, None] * b_q[i_r][0][None, :]
                b_read_second += b_weight[:, None] * b_q[i_r][1][None, :]
            b_y = tl.sum(b_first * b_read_first + b_second * b_read_second, 1) + D * b_skip
            tl.store(p_first, b_first, m_pn)
            tl.store(p_first + HALF_N, b_second, m_pn)
            tl.store(p_y + o_p, b_y, m_p)

    # Threads may hold copies of what others are about to overwrite: all must have read before one writes. (Of a part of
    # the state no two have the same number, so that it could be written before.)
    tl.debug_barrier()
    tl.store(p_theta + o_n, b_theta, m_s)
    o_p = tl.arange(0, ALL_P)
    tl.store(p_x_state + o_p, tl.load(p_x + o_p, o_p < P, 0.0).to(tl.float32), o_p < P)
    for i_r in tl.static_range(R):
        tl.store(p_k + i_r * N + o_n, b_k[i_r][0], m_n)
        tl.store(p_k + i_r * N + HALF_N + o_n, b_k[i_r][1], m_n)


def mamba3_mimo_step_triton(operands: Operands, pool: Mamba3State, slots: Tensor) -> Tensor:
    """The step of `kernels.mamba3_mimo_step`, whose checks its arguments have passed; slots are on x's device.

    It waits for nothing and can be captured in a CUDA graph. The per-token arguments may be views whose tokens are any
    distance apart.
    """
    x = operands.x
    m, H, P = x.shape
    R, N = operands.C.shape[1:]
    y = torch.empty((m, H, P), dtype=x.dtype, device=x.device)
    if m == 0:
        return y
    given = operands.with_contiguous_tokens()
    with torch.cuda.device_of(x):
        _step[(m * H,)](
            *given, *pool, slots, y, *(t.stride(0) for t in given[:PER_TOKEN]),
            H=H, P=P, N=N, R=R, S=operands.angles.shape[1], **tiles.step(R, N, P),
        )  # fmt: skip
    return y
