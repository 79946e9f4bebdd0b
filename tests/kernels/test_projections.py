"""The products around the operation are right, and no row's bits depend on other rows."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kernels.triton.inference.projections import InProjection, OutProjection
from tests.kernels.inputs import assert_close
from tests.kernels.streams import stream_of, sums_of_squares

BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
dtypes = pytest.mark.parametrize("dtype", BOUNDS, ids=["f32", "bf16"])


@dataclass(frozen=True)
class Sizes:
    d_model: int
    heads: int
    headdim: int
    rank: int
    d_state: int
    angles: int

    @property
    def inner(self) -> int:
        return self.heads * self.headdim

    @property
    def sections(self) -> list[int]:
        """Columns of z, x, B, C, dt, A, trap, angle."""
        BC = self.rank * self.d_state
        return [self.inner, self.inner, BC, BC, self.heads, self.heads, self.heads, self.angles]


SIZES = {
    "even": Sizes(d_model=64, heads=2, headdim=64, rank=2, d_state=32, angles=8),
    # Neither columns nor groups fill their tiles, and there are more steps than a tile holds.
    "odd": Sizes(d_model=36, heads=21, headdim=4, rank=3, d_state=20, angles=10),
    # And the residual stream's last part is not whole.
    "wide": Sizes(d_model=136, heads=1, headdim=16, rank=1, d_state=128, angles=64),
}
sizes_of = pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def in_weights(sizes: Sizes, device: torch.device) -> dict[str, Tensor]:
    weights = {
        "weight": normal(sum(sizes.sections), sizes.d_model, seed=1, scale=sizes.d_model**-0.5),
        "norm_weight": 1 + normal(sizes.d_model, seed=2, scale=0.2),
        "dt_bias": normal(sizes.heads, seed=3, scale=2.0) - 4,
        "B_norm": 1 + normal(sizes.d_state, seed=4, scale=0.2),
        "C_norm": 1 + normal(sizes.d_state, seed=5, scale=0.2),
    }
    return {name: t.to(device) for name, t in weights.items()}


def in_projection(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> InProjection:
    return InProjection.of(**in_weights(sizes, device), inner=sizes.inner, rank=sizes.rank, dtype=dtype)


def projected(projection: InProjection, sizes: Sizes, u: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs, in memory that was NaN before."""
    T, columns = len(u), sizes.sections
    out = torch.full((T, sum(columns[:4])), torch.nan, dtype=u.dtype, device=u.device)
    steps = torch.full((T, sum(columns[4:])), torch.nan, dtype=torch.float32, device=u.device)
    projection(stream_of(u), out, steps)
    return out, steps


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5) * weight


@dtypes
@sizes_of
def test_in_projection_is_norm_product_norms_and_step_activations(
    sizes: Sizes, dtype: torch.dtype, device: torch.device
) -> None:
    u = (normal(150, sizes.d_model) * torch.linspace(0.01, 10, 150)[:, None]).to(device, dtype)
    out, steps = projected(in_projection(sizes, dtype, device), sizes, u)

    w = {name: t.double() for name, t in in_weights(sizes, device).items()}
    sections = (rms_norm(u.double(), w["norm_weight"]) @ w["weight"].T).split(sizes.sections, 1)
    z, x, B, C, dt_raw, a_raw, trap, angles = sections
    groups = (len(u), sizes.rank, sizes.d_state)
    B, C = (rms_norm(t.view(groups), w[norm]).flatten(1) for t, norm in ((B, "B_norm"), (C, "C_norm")))
    dt = functional.softplus(dt_raw + w["dt_bias"])
    adt = -torch.where(a_raw >= 0, 1 + a_raw, 1 / (1 - a_raw)).clamp(min=1e-4) * dt
    for name, result, expected in zip(
        ("z", "x", "B", "C"), out.split(sizes.sections[:4], 1), (z, x, B, C), strict=True
    ):
        assert_close(name, result, expected, BOUNDS[dtype])
    for name, result, expected in zip(
        ("dt", "adt", "trap", "angles"), steps.split(sizes.sections[4:], 1), (dt, adt, trap, angles), strict=True
    ):
        assert_close(name, result, expected, BOUNDS[dtype])


def test_tiny_steps_keep_their_relative_precision(device: torch.device) -> None:
    sizes = SIZES["even"]
    weights = in_weights(sizes, device) | {"dt_bias": torch.tensor([-16.0, -9.0], device=device)}
    weights["weight"] *= 0.1
    u = normal(20, sizes.d_model).to(device)
    projection = InProjection.of(**weights, inner=sizes.inner, rank=sizes.rank, dtype=torch.float32)
    dt = projected(projection, sizes, u)[1][:, :2]
    w = {name: t.double() for name, t in weights.items()}
    raw = (rms_norm(u.double(), w["norm_weight"]) @ w["weight"].T).split(sizes.sections, 1)[4]
    expected = functional.softplus(raw + w["dt_bias"])
    assert float(expected.max()) < 1e-3
    assert float(((dt - expected) / expected).abs().max()) < 1e-5


@dtypes
@sizes_of
def test_out_projection_adds_the_product_to_the_residual_stream_and_sums_its_squares(
    sizes: Sizes, dtype: torch.dtype, device: torch.device
) -> None:
    weight = normal(sizes.d_model, sizes.inner, seed=1, scale=sizes.inner**-0.5).to(device)
    y, u = normal(150, sizes.inner, seed=2).to(device, dtype), normal(150, sizes.d_model, seed=3).to(device, dtype)
    expected = u.double() + y.double() @ weight.double().T
    stream = stream_of(u)
    stream.squares.fill_(torch.nan)
    OutProjection.of(weight, dtype=dtype)(y, stream)
    assert_close("u", stream.u, expected, BOUNDS[dtype])
    # Of the numbers as they are stored: bfloat16's rounding would show.
    assert_close("squares", stream.squares, sums_of_squares(stream.u.double()), 1e-6)


@dtypes
@sizes_of
def test_a_rows_bits_do_not_depend_on_other_rows_or_their_number(
    sizes: Sizes, dtype: torch.dtype, device: torch.device
) -> None:
    enter = in_projection(sizes, dtype, device)
    leave = OutProjection.of(normal(sizes.d_model, sizes.inner, seed=1).to(device), dtype=dtype)
    u = normal(140, sizes.d_model).to(device, dtype)
    y = normal(140, sizes.inner).to(device, dtype)

    def results(rows: Tensor) -> list[Tensor]:
        out, steps = projected(enter, sizes, u[rows])
        stream = stream_of(u[rows])
        leave(y[rows], stream)
        return [out, steps, *stream]

    together = results(torch.arange(140, device=device))
    for rows in ([7], [139, 0, 131], torch.randperm(140, generator=torch.Generator().manual_seed(1))[:129].tolist()):
        apart = results(torch.tensor(rows, device=device))
        assert all(torch.equal(whole[rows], part) for whole, part in zip(together, apart, strict=True))


def test_no_rows_are_no_work(device: torch.device) -> None:
    sizes = SIZES["even"]
    u = torch.empty(0, sizes.d_model, device=device)
    projected(in_projection(sizes, torch.float32, device), sizes, u)
    leave = OutProjection.of(normal(sizes.d_model, sizes.inner).to(device), dtype=torch.float32)
    leave(u.new_empty(0, sizes.inner), stream_of(u))


def test_a_group_wider_than_a_tile_is_refused(device: torch.device) -> None:
    sizes = Sizes(d_model=32, heads=1, headdim=16, rank=1, d_state=132, angles=66)
    with pytest.raises(ValueError, match="d_state is 132; these kernels take at most 128"):
        in_projection(sizes, torch.float32, device)
