"""The gradients of what q and k are made of are those of the formula in float64."""

from __future__ import annotations

import pytest
import torch

from kernels.triton.operation.qk_backward import qk_backward
from tests.kernels.inputs import assert_close

pytestmark = pytest.mark.usefixtures("poisoned")

BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_more_heads_than_a_program_takes_share_a_projection_as_few_do(dtype: torch.dtype, device: torch.device) -> None:
    T, H, R, N, S = 3, 19, 8, 128, 32
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g)

    projection, bias, angle = normal(T, R, N).to(dtype), normal(H, R, N).to(dtype), normal(T, H, 1, S)
    turned = torch.cat([angle.cos(), angle.sin()], 2).to(dtype)
    gradient, unit = normal(T, H, R, N), torch.ones(T, H, R)
    if dtype == torch.bfloat16:
        gradient, unit = gradient.half(), 2.0 ** torch.randint(-2, 3, (T, H, R), generator=g)
    given = (t.to(device) for t in (projection, bias, turned, gradient, unit))
    results = qk_backward(*given)

    d = gradient.double() * unit.double().unsqueeze(-1)
    cos, sin = torch.ones(T, H, 1, N // 2, dtype=torch.double), torch.zeros(T, H, 1, N // 2, dtype=torch.double)
    cos[..., :S], sin[..., :S] = turned.double().split(1, 2)
    first, second = (projection.double().unsqueeze(1) + bias.double()).chunk(2, -1)
    first, second = first * cos - second * sin, first * sin + second * cos
    d_first, d_second = d.chunk(2, -1)
    back = torch.cat([d_first * cos + d_second * sin, d_second * cos - d_first * sin], -1)
    along = (d_first * first + d_second * second).sum((2, 3))
    across = (d_second * first - d_first * second).sum(2)[..., :S]
    expected = {"projection": back.sum(1), "bias": back.sum(0), "factor": along, "rotation": across}
    for result, (name, tensor) in zip(results, expected.items(), strict=True):
        assert_close(name, result.cpu(), tensor, BOUNDS[dtype])
