"""A whole block for inference: one launch for norm and in_proj, the operation, one for out_proj and residual."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.arguments import Operands
from kernels.carried import Pieces, carried_on
from kernels.packing import Packing
from kernels.state import Mamba3State
from kernels.triton.inference.projections import InProjection, OutProjection, Stream
from kernels.triton.operation.forward import mamba3_mimo_forward


class HeadWeights(NamedTuple):
    """What the heads weigh with in the operation, named as in `kernels.mamba3_mimo`, in x's dtype, but D in float32."""

    C_bias: Tensor
    B_bias: Tensor
    mimo_x: Tensor
    mimo_z: Tensor
    mimo_o: Tensor
    D: Tensor


@dataclass(frozen=True)
class LayerWeights:
    """A block's weights, laid out once.

    Attributes:
        in_projection: RMSNorm, in_proj and what follows it.
        out_projection: out_proj.
        heads: the operation's.
    """

    in_projection: InProjection
    out_projection: OutProjection
    heads: HeadWeights

    @classmethod
    def of(
        cls,
        *,
        norm: Tensor,
        in_proj: Tensor,
        out_proj: Tensor,
        dt_bias: Tensor,
        B_norm: Tensor,
        C_norm: Tensor,
        B_bias: Tensor,
        C_bias: Tensor,
        mimo_x: Tensor,
        mimo_z: Tensor,
        mimo_o: Tensor,
        D: Tensor,
        dtype: torch.dtype,
    ) -> "LayerWeights":
        """Lay copies of a block's parameters out, named as in `detector.model.model.Mamba3Layer`.

        Args:
            norm: (d_model,) weight of the RMSNorm before the layer.
            in_proj: (2 * H * P + 2 * R * N + 3 * H + S, d_model).
            out_proj: (d_model, H * P).
            dt_bias: (H,).
            B_norm: (N,).
            C_norm: (N,).
            B_bias: (H, R, N).
            C_bias: (H, R, N).
            mimo_x: (H, R, P).
            mimo_z: (H, R, P).
            mimo_o: (H, R, P).
            D: (H,).
            dtype: of the residual stream and of the products, bfloat16 or float32.

        Raises:
            ValueError: the sizes are beyond what the kernels take.
        """
        C_bias, B_bias, mimo_x, mimo_z, mimo_o = (
            t.to(dtype, copy=True).contiguous() for t in (C_bias, B_bias, mimo_x, mimo_z, mimo_o)
        )
        return cls(
            in_projection=InProjection.of(
                in_proj, norm, dt_bias, B_norm, C_norm, inner=out_proj.shape[1], rank=B_bias.shape[1], dtype=dtype
            ),
            out_projection=OutProjection.of(out_proj, dtype=dtype),
            heads=HeadWeights(C_bias, B_bias, mimo_x, mimo_z, mimo_o, D.float().clone()),
        )


def layer_forward(stream: Stream, weights: LayerWeights, packing: Packing) -> None:
    """Run one block over packed sequences; nothing is synchronised.

    Args:
        stream: of d_model columns in the weights' dtype; the layer's output is added to it in place. Rows that
            belong to no segment of `packing` end up with anything.
        weights: the block's.
        packing: where the sequences lie.
    """
    weights.out_projection(mamba3_mimo_forward(_entering(stream, weights), packing).y, stream)


def layer_carried_on(stream: Stream, weights: LayerWeights, pieces: Pieces, states: Mamba3State) -> Mamba3State | None:
    """Run one block over sequences that go on, as `layer_forward`.

    Args:
        stream: as there.
        weights: the block's.
        pieces: where the sequences lie.
        states: the block's, of all slots.

    Returns:
        As `kernels.carried.carried_on`.
    """
    y, after = carried_on(_entering(stream, weights), pieces, states, _operation)
    weights.out_projection(y, stream)
    return after


def _entering(stream: Stream, weights: LayerWeights) -> Operands:
    """What the operation takes of the stream."""
    u, enter = stream.u, weights.in_projection
    N, R, S, H = enter.d_state, enter.groups // 2, enter.n_angles, enter.dt_bias.numel()
    T, P = u.shape[0], enter.inner // H
    projected = torch.empty(T, 2 * H * P + 2 * R * N, dtype=u.dtype, device=u.device)
    steps = torch.empty(T, 3 * H + S, dtype=torch.float32, device=u.device)
    enter(stream, projected, steps)
    z, x, B, C = torch.split(projected, [H * P, H * P, R * N, R * N], 1)
    dt, adt, trap, angles = torch.split(steps, [H, H, H, S], 1)
    C, B, x, z = C.view(T, R, N), B.view(T, R, N), x.view(T, H, P), z.view(T, H, P)
    return Operands(C, B, x, z, adt, dt, trap, angles, *weights.heads)


def _operation(
    operands: Operands, packing: Packing, initial: Mamba3State, final: bool
) -> tuple[Tensor, Mamba3State | None]:
    ran = mamba3_mimo_forward(operands, packing, initial, final)
    return ran.y, ran.final
