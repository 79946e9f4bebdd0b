"""Residual streams of given numbers."""

import torch
from torch import Tensor
from torch.nn import functional

from kernels.triton.inference.projections import Stream
from kernels.triton.tiles import STREAM_PART


def sums_of_squares(u: Tensor) -> Tensor:
    """(T, D) to (T, parts), in u's dtype."""
    filled = functional.pad(u, (0, -u.shape[1] % STREAM_PART.value))
    return filled.unflatten(1, (-1, STREAM_PART.value)).square().sum(2)


def stream_of(u: Tensor) -> Stream:
    """A copy of u (T, D) in bfloat16 or float32 as the residual stream."""
    return Stream(u.clone(), sums_of_squares(u.float()))


def empty_stream(T: int, D: int, dtype: torch.dtype, device: torch.device) -> Stream:
    """Full of NaN."""
    return Stream(*(t.fill_(torch.nan) for t in Stream.empty(T, D, dtype, device)))
