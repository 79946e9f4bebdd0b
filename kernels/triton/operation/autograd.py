"""The operation with its gradients."""

from typing import Any

import torch
from torch import Tensor

from kernels.arguments import Operands
from kernels.packing import Packing
from kernels.state import Mamba3State
from kernels.triton.operation.backward import Columns, mamba3_mimo_backward
from kernels.triton.operation.forward import mamba3_mimo_forward

_OPERANDS = len(Operands._fields)


def mamba3_mimo_triton(
    operands: Operands, packing: Packing, initial_state: Mamba3State | None, return_final_state: bool
) -> tuple[Tensor, Mamba3State | None]:
    """The operation of `kernels.mamba3_mimo`, whose checks its arguments have passed."""
    state = () if initial_state is None else tuple(initial_state)
    # Triton launches on the current device, which need not be the tensors'. (Backward, autograd sees to it.)
    with torch.cuda.device_of(operands.x):
        y, *final = _Operation.apply(packing, return_final_state, *operands.with_contiguous_tokens(), *state)
    return y, Mamba3State(*final) if return_final_state else None


class _Operation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, packing: Packing, return_final_state: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
        operands, state = _operands_and_state(tensors)
        result = mamba3_mimo_forward(operands, packing, state, return_final_state, keep=any(ctx.needs_input_grad))
        # Results go with the saved tensors: they refer to this object, which would never be freed if it held them.
        final = result.final or ()
        ctx.packing, ctx.kept = packing, result.kept
        ctx.save_for_backward(*tensors, *final)
        return (result.y, *final)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *dfinal: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        n_inputs = len(saved) - len(dfinal)
        operands, state = _operands_and_state(saved[:n_inputs])
        ends = (Mamba3State(*saved[n_inputs:]), Mamba3State(*dfinal)) if dfinal else None
        x, z, trap, angles = operands.x, operands.z, operands.trap, operands.angles
        columns = Columns(*(torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (x, z, trap, angles)))
        gradients = mamba3_mimo_backward(operands, ctx.packing, state, ctx.kept, dy.contiguous(), ends, columns)
        return (None, None, *gradients.operands, *(gradients.initial_state or ()))


def _operands_and_state(tensors: tuple[Tensor, ...]) -> tuple[Operands, Mamba3State | None]:
    state = tensors[_OPERANDS:]
    return Operands(*tensors[:_OPERANDS]), Mamba3State(*state) if state else None
