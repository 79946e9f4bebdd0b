"""What initial and final states say of the operation's gradients."""

import torch
from torch import Tensor

from kernels.arguments import Operands
from kernels.packing import Packing
from kernels.state import Mamba3State
from kernels.triton.operation.timeline import StateGradients


def state_backward(
    operands: Operands,
    packing: Packing,
    initial: Mamba3State | None,
    ends: tuple[Mamba3State, Mamba3State] | None,
    dssm: Tensor,
    dlater_segments: Tensor,
    dB: Tensor,
    dB_bias: Tensor,
    dx: Tensor,
    dmimo_x: Tensor,
) -> tuple[StateGradients, Mamba3State | None]:
    """Adds to dB (T, R, N), dB_bias (H, R, N), dx (T, H, P) and dmimo_x (H, R, P) what states say of them.

    Args:
        operands: of the operation, mimo_x as the forward pass has read it.
        packing: of the batch of n sequences.
        initial: the states it started with, if any.
        ends: final states and their gradients, if it returned them.
        dssm: float32 (n, H, P, N), gradient of the state that each sequence starts with, the share of the token before
            included; not looked at without initial states.
        dlater_segments: as `kernels.triton.operation.timeline.SegmentGradients.dlater_segments`.
        dB: gradient of B.
        dB_bias: of its bias.
        dx: of x.
        dmimo_x: of x's weights.

    Returns:
        What they say of the timeline, and the gradients of the initial states.
    """
    dt, trap, mimo_x = operands.dt, operands.trap, operands.mimo_x
    H, S = dt.shape[1], operands.angles.shape[1]
    n, device = packing.n_sequences, dt.device
    dangle = dend = torch.zeros(n, H, S, device=device)
    dopening = dtotal = torch.zeros(n, H, device=device)
    filled = packing.cu_seqlens.diff() > 0
    if ends is not None:
        final, dfinal = ends
        last = packing.cu_seqlens[1:].long()[filled] - 1
        dangle, dend = _through_final_state(dfinal, final, filled, last, dB, dB_bias, dx)
        dtotal = (dfinal.ssm.float() * final.ssm).sum((2, 3))
    if initial is None:
        return StateGradients(dopening, dend, dangle, dtotal), None
    starts = packing.cu_seqlens[:-1].long()[filled]
    opening = torch.zeros(n, H, device=device)
    opening[filled] = (dt[starts] * torch.sigmoid(-trap[starts])).float()
    dinitial, dopening = _through_initial_state(initial, dssm, opening, mimo_x, dmimo_x)
    dangle_in = torch.zeros(n, H, S, device=device)
    dangle_in[filled] = dlater_segments[packing.first_segments[:-1].long()[filled]] + dend[filled]
    if ends is not None:
        # An empty sequence's final state is its initial one; its ssm went through the scan.
        empty_ones = (t.float().masked_fill(filled.view(-1, *[1] * (t.dim() - 1)), 0) for t in ends[1])
        through = Mamba3State(*empty_ones)
        dangle_in += through.angle
        dinitial = dinitial._replace(k=dinitial.k + through.k, x=dinitial.x + through.x)
    dinitial = dinitial._replace(angle=dangle_in)
    dinitial = Mamba3State(*(d.to(t.dtype) for d, t in zip(dinitial, initial, strict=True)))
    return StateGradients(dopening, dend, dangle, dtotal), dinitial


def _through_final_state(
    dfinal: Mamba3State, final: Mamba3State, filled: Tensor, last: Tensor, dB: Tensor, dB_bias: Tensor, dx: Tensor
) -> tuple[Tensor, Tensor]:
    """Adds what the final k and x say of the last tokens to the gradients.

    Returns:
        What the final angle and k say of the sequence's rotation, (n, H, S), and with it what the final ssm says of a
        common rotation of all tokens and the state they find.
    """
    S, N = final.angle.shape[-1], final.k.shape[-1]
    dk, k = dfinal.k.float(), final.k
    first, second = slice(0, S), slice(N // 2, N // 2 + S)
    dangle = dfinal.angle + (dk[..., second] * k[..., first] - dk[..., first] * k[..., second]).sum(2)
    h, dh = final.ssm, dfinal.ssm.float()
    dend = dangle + (dh[..., second] * h[..., first] - dh[..., first] * h[..., second]).sum(2)
    cos, sin = final.angle.cos().unsqueeze(2), final.angle.sin().unsqueeze(2)
    unturned = dk.clone()
    unturned[..., first] = dk[..., first] * cos + dk[..., second] * sin
    unturned[..., second] = dk[..., second] * cos - dk[..., first] * sin
    unturned = unturned[filled]
    dB.index_add_(0, last, unturned.sum(1).to(dB.dtype))
    dx.index_add_(0, last, dfinal.x[filled].to(dx.dtype))
    dB_bias += unturned.sum(0)
    return dangle.contiguous(), dend.contiguous()


def _through_initial_state(
    initial: Mamba3State, dssm: Tensor, opening: Tensor, mimo_x: Tensor, dmimo_x: Tensor
) -> tuple[Mamba3State, Tensor]:
    """The first token adds opening * sum over r of v_r k_r^T to the state it finds; dssm is the gradient of the sum.

    Returns:
        The gradient of the state, without its angle's, and of `opening` (n, H).
    """
    x, k, weights = initial.x.float(), initial.k.float(), mimo_x.float()
    v = x.unsqueeze(2) * weights
    by_k = torch.einsum("nhpc,nhrp->nhrc", dssm, v)
    dopening = (by_k * k).sum((2, 3))
    dv = torch.einsum("nhpc,nhrc->nhrp", dssm, k) * opening[..., None, None]
    dmimo_x += (dv * x.unsqueeze(2)).sum(0)
    dk, dx = by_k * opening[..., None, None], (dv * weights).sum(2)
    return Mamba3State(initial.angle, dssm, dk, dx), dopening
