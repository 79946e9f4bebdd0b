"""The operation with its gradients."""

from typing import Any

import torch
from torch import Tensor

from kernels.packing import Packing
from kernels.state import Mamba3State
from kernels.triton.backward import mamba3_mimo_backward
from kernels.triton.forward import mamba3_mimo_forward

_INPUTS = 14


def mamba3_mimo_triton(
    *inputs: Tensor, packing: Packing, initial_state: Mamba3State | None, return_final_state: bool
) -> tuple[Tensor, Mamba3State | None]:
    """The operation of `kernels.mamba3_mimo` on C to D, which have passed its checks."""
    contiguous = tuple(_with_contiguous_tokens(t) for t in inputs)
    state = () if initial_state is None else tuple(initial_state)
    # Triton launches on the current device, which need not be the tensors'. (Backward, autograd sees to it.)
    with torch.cuda.device_of(inputs[0]):
        y, *final = _Operation.apply(packing, return_final_state, *contiguous, *state)
    return y, Mamba3State(*final) if return_final_state else None


def _with_contiguous_tokens(t: Tensor) -> Tensor:
    """The tensor, or a copy where the numbers of one token or head do not lie next to each other."""
    return t if t[:1].is_contiguous() and t.stride(-1) == 1 else t.contiguous()


class _Operation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, packing: Packing, return_final_state: bool, *tensors: Tensor) -> tuple[Tensor, ...]:
        inputs, state = tensors[:_INPUTS], tensors[_INPUTS:]
        initial = Mamba3State(*state) if state else None
        result = mamba3_mimo_forward(  # type: ignore[misc]  # how many inputs there are is not known to mypy
            *inputs,  # type: ignore[arg-type]
            packing=packing,
            initial_state=initial,
            return_final_state=return_final_state,
            keep=any(ctx.needs_input_grad),
        )
        ctx.packing, ctx.result = packing, result._replace(y=result.y[:0])
        ctx.save_for_backward(*tensors)
        return (result.y, *(result.final or ()))

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *dfinal: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        inputs, state = tensors[:_INPUTS], tensors[_INPUTS:]
        gradients = mamba3_mimo_backward(
            inputs,
            ctx.packing,
            Mamba3State(*state) if state else None,
            ctx.result,
            dy.contiguous(),
            Mamba3State(*dfinal) if dfinal else None,
        )
        return (None, None, *gradients.inputs, *(gradients.initial_state or ()))
