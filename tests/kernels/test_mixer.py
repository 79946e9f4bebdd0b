"""A layer between its projections in Triton is that of the reference in float64, with its gradients."""

from __future__ import annotations

import gc
import weakref
from itertools import product

import pytest
import torch
from torch import Tensor

from detector.model.model import Mamba3Layer
from kernels import mamba3_mixer
from kernels.mixer import rms_norm
from kernels.packing import SEGMENT, Packing
from tests.kernels.inputs import Sizes, assert_close, random_weights

pytestmark = pytest.mark.usefixtures("poisoned")

ON_GPU = torch.cuda.is_available()
LENGTHS = [19, 0, 1, SEGMENT + 3] if ON_GPU else [17, 0, 1]
SMALL = Sizes(heads=2, headdim=16, d_state=16, rank=2)
# Of the projection, and of the weights; the last is autocast's.
PRECISIONS = {
    "float32": (torch.float32, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "mixed": (torch.bfloat16, torch.float32),
}
# Sizes and precisions: all, or each of them once.
SIZES = [SMALL, Sizes(heads=1, headdim=24, d_state=24, rank=4), Sizes(3, 16, 20, rank=1, rope_fraction=1.0)]
CASES = list(zip(SIZES, PRECISIONS, strict=True))
if ON_GPU:
    SIZES += [Sizes(heads=8, headdim=64, d_state=64, rank=4), Sizes(1, 16, 16, rank=1, rope_fraction=1.0)]
    CASES = list(product(SIZES, PRECISIONS))
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
EXTRA = 5  # columns that nobody looks at


def random_mixer(sizes: Sizes, tokens: int, precision: str, seed: int = 0) -> dict[str, Tensor]:
    """Arguments, the first of which is the projection."""
    g = torch.Generator().manual_seed(seed)
    H, P, N, R, S = sizes.heads, sizes.headdim, sizes.d_state, sizes.rank, sizes.angles

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g)

    projected, weights = PRECISIONS[precision]
    arguments = {
        "projected": normal(tokens, 2 * H * P + 2 * R * N + 3 * H + S + EXTRA).to(projected),
        "dt_bias": normal(H) - 3,  # steps as a layer starts with
        "B_norm": 1 + normal(N) / 4,
        "C_norm": 1 + normal(N) / 4,
        **random_weights(sizes, normal),
    }
    return {name: t if name == "projected" else t.to(weights) for name, t in arguments.items()}


def random_dy(sizes: Sizes, tokens: int) -> Tensor:
    return torch.randn(tokens, sizes.heads * sizes.headdim, generator=torch.Generator().manual_seed(7))


def first_step(sizes: Sizes) -> int:
    """Which column of the projection."""
    return 2 * sizes.heads * sizes.headdim + 2 * sizes.rank * sizes.d_state


def with_gradients(
    arguments: dict[str, Tensor], dy: Tensor, cu_seqlens: Tensor | Packing, n_angles: int, backend: str
) -> dict[str, Tensor]:
    leaves = {name: t.detach().requires_grad_() for name, t in arguments.items()}
    y = mamba3_mixer(**leaves, n_angles=n_angles, cu_seqlens=cu_seqlens, backend=backend)  # type: ignore[arg-type]
    assert y.dtype == leaves["projected"].dtype
    found = torch.autograd.grad(y, list(leaves.values()), dy.to(y))
    return {"y": y.detach()} | {f"gradient of {name}": t for name, t in zip(leaves, found, strict=True)}


def assert_all_close(results: dict[str, Tensor], expected: dict[str, Tensor], sizes: Sizes, bound: float) -> None:
    for name, tensor in expected.items():
        result = results[name].cpu()
        if name == "gradient of dt_bias":  # a sum of numbers that may cancel each other: by the size of these
            summed = expected["gradient of projected"][:, first_step(sizes) :][:, : sizes.heads]
            assert float((result - tensor).norm()) < bound * float(summed.norm())
        else:
            assert_close(name, result, tensor, bound)


def packed(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def test_steps_and_rates_of_exactly_zero_have_the_gradient_of_their_neighbours() -> None:
    arguments = {name: t.double() for name, t in random_mixer(SMALL, 5, "float32").items()}
    H, first = SMALL.heads, first_step(SMALL)
    arguments["dt_bias"] = torch.zeros(H, dtype=torch.float64)

    def gradient(of: float) -> Tensor:
        arguments["projected"][:, first : first + 2 * H] = of
        found = with_gradients(arguments, random_dy(SMALL, 5), packed([5]), SMALL.angles, "reference")
        return found["gradient of projected"][:, first : first + 2 * H]

    assert torch.allclose(gradient(0.0), (gradient(1e-6) + gradient(-1e-6)) / 2, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("sizes", "precision"), CASES, ids=str)
def test_outputs_and_gradients_are_those_of_the_reference_in_float64(
    sizes: Sizes, precision: str, device: torch.device
) -> None:
    arguments = random_mixer(sizes, sum(LENGTHS), precision)
    dy = random_dy(sizes, sum(LENGTHS)).to(arguments["projected"].dtype)
    wide = {name: t.double() for name, t in arguments.items()}
    expected = with_gradients(wide, dy, packed(LENGTHS), sizes.angles, "reference")
    given = {name: t.to(device) for name, t in arguments.items()}
    results = with_gradients(given, dy.to(device), packed(LENGTHS).to(device), sizes.angles, "triton")
    assert_all_close(results, expected, sizes, BOUNDS[arguments["projected"].dtype])
    for name, tensor in arguments.items():
        assert results[f"gradient of {name}"].dtype == tensor.dtype
    assert not results["gradient of projected"][:, -EXTRA:].any()


def test_a_second_run_gives_the_same_bits(device: torch.device) -> None:
    lengths = [20] * 500 if ON_GPU else [17, 3]
    given = {name: t.to(device) for name, t in random_mixer(SMALL, sum(lengths), "mixed").items()}
    dy, bounds = random_dy(SMALL, sum(lengths)).to(device), packed(lengths).to(device)
    first, second = (with_gradients(given, dy, bounds, SMALL.angles, "triton") for _ in range(2))
    for name, tensor in first.items():
        assert torch.equal(second[name], tensor), name


@pytest.mark.parametrize("lengths", [[], [0], [0, 0]], ids=str)
def test_without_tokens_weights_have_gradients_of_0(lengths: list[int], device: torch.device) -> None:
    arguments = {name: t.to(device) for name, t in random_mixer(SMALL, 0, "float32").items()}
    dy = torch.zeros(0, SMALL.heads * SMALL.headdim, device=device)
    results = with_gradients(arguments, dy, packed(lengths).to(device), SMALL.angles, "triton")
    assert results["y"].shape == dy.shape
    for name, tensor in results.items():
        assert not tensor.any(), name


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # NumPy's, where the kernels are interpreted
def test_steps_and_rates_beyond_the_range_of_exp_have_the_gradients_of_the_reference(device: torch.device) -> None:
    """At the least rate, which A far below 0 comes to, nothing depends on A."""
    sizes = Sizes(heads=3, headdim=16, d_state=16, rank=1)
    arguments, at = random_mixer(sizes, 20, "float32"), first_step(sizes)
    steps = arguments["projected"][:, at : at + 2 * sizes.heads]
    spread = torch.rand(20, 2 * sizes.heads, generator=torch.Generator().manual_seed(0))
    steps[:] = torch.tensor([2.0, -200.0, 1.0, -1e6, 1.0, 30.0]) * (1 + spread)
    dy = random_dy(sizes, 20)
    wide = {name: t.double() for name, t in arguments.items()}
    expected = with_gradients(wide, dy, packed([20]), sizes.angles, "reference")
    given = {name: t.to(device) for name, t in arguments.items()}
    results = with_gradients(given, dy.to(device), packed([20]).to(device), sizes.angles, "triton")
    assert_all_close(results, expected, sizes, 1e-5)
    assert not results["gradient of projected"][:, at + sizes.heads].any()


def test_outputs_are_the_same_without_gradients(device: torch.device) -> None:
    arguments = {name: t.to(device) for name, t in random_mixer(SMALL, sum(LENGTHS), "float32").items()}
    given = {"n_angles": SMALL.angles, "cu_seqlens": packed(LENGTHS).to(device), "backend": "triton"}
    y = mamba3_mixer(**arguments, **given)  # type: ignore[arg-type]
    leaves = {name: t.requires_grad_() for name, t in arguments.items()}
    differentiable = mamba3_mixer(**leaves, **given)  # type: ignore[arg-type]
    assert differentiable.requires_grad
    assert torch.equal(differentiable.detach(), y)


def test_what_is_kept_for_gradients_goes_with_the_results(device: torch.device) -> None:
    """Else a training holds the memory of every step it has taken."""
    leaves = {n: t.to(device).requires_grad_() for n, t in random_mixer(SMALL, sum(LENGTHS), "float32").items()}
    packing = Packing.of(packed(LENGTHS), device)
    y = mamba3_mixer(**leaves, n_angles=SMALL.angles, cu_seqlens=packing, backend="triton")
    torch.autograd.grad(y.sum(), [leaves["projected"]])
    result = weakref.ref(y)
    del y
    gc.collect()
    assert result() is None


@pytest.mark.parametrize("precision", PRECISIONS)
def test_vectors_are_normalised_in_float32_whatever_their_type_and_that_of_the_weights(
    precision: str, device: torch.device
) -> None:
    types = PRECISIONS[precision]
    g = torch.Generator().manual_seed(0)
    x, weight, dy = (torch.randn(*shape, generator=g) for shape in ((300, 24), (24,), (300, 24)))
    x, weight, dy = x.to(types[0]), weight.to(types[1]), dy.to(types[0])

    def results(*tensors: Tensor) -> list[Tensor]:
        x, weight, dy = (t.detach().requires_grad_() for t in tensors)
        y = rms_norm(x, weight)
        return [y, *torch.autograd.grad(y, [x, weight], dy)]

    expected = results(x.double(), weight.double(), dy.double())
    found = results(x.to(device), weight.to(device), dy.to(device))
    assert [t.dtype for t in found] == [types[0], *types]
    for result, wanted in zip(found, expected, strict=True):
        assert_close("rms_norm", result.cpu(), wanted, 4e-3 if types[0] == torch.bfloat16 else 1e-6)


def test_a_layer_under_autocast_has_gradients_in_float32(device: torch.device) -> None:
    torch.manual_seed(0)
    layer = Mamba3Layer(d_model=24, d_state=16, headdim=16, mimo_rank=2).to(device)
    u, dy = torch.randn(2, sum(LENGTHS), 24, device=device)
    bounds = packed(LENGTHS).to(device)
    leaves = {"u": u.requires_grad_(), **dict(layer.named_parameters())}
    with torch.autocast(device.type, torch.bfloat16):
        y = layer(u, bounds, "triton")
    found = torch.autograd.grad((y * dy).sum(), list(leaves.values()))
    expected = torch.autograd.grad((layer(u, bounds, "reference") * dy).sum(), list(leaves.values()))
    for name, gradient, wanted in zip(leaves, found, expected, strict=True):
        assert gradient.dtype == torch.float32
        assert_close(name, gradient, wanted, 2e-2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"projected": torch.zeros(20, 137)}, r"projected has shape \(20, 137\); with H=2, P=16, N=16, R=2 and S=4 it"),
        ({"projected": torch.zeros(2, 20, 150)}, r"projected has shape \(2, 20, 150\); it must have 2 dimensions"),
        ({"B_norm": torch.ones(15)}, r"B_norm has shape \(15,\); with H=2 and N=16 it must have \(16,\)"),
        ({"dt_bias": torch.ones(2).half()}, "dt_bias is torch.float16; it must be float32, bfloat16 or float64"),
        ({"mimo_z": torch.ones(2, 2, 15)}, r"mimo_z has shape \(2, 2, 15\); with T=20, H=2"),
        ({"B_bias": torch.ones(2, 32)}, r"B_bias has shape \(2, 32\); it must have 3 dimensions"),
        ({"n_angles": 9}, "angles has S=9 angles; d_state N=16 has only 8 pairs"),
        ({"n_angles": -1}, "n_angles is -1; it must be at least 0"),
        ({"cu_seqlens": torch.tensor([0, 19], dtype=torch.int32)}, "cu_seqlens goes from 0 to 19; with T=20 tokens"),
    ],
)
@pytest.mark.usefixtures("no_launch")
def test_wrong_arguments_are_refused_before_any_launch(changes: dict[str, Tensor], message: str) -> None:
    arguments = random_mixer(SMALL, 20, "float32") | {"n_angles": SMALL.angles, "cu_seqlens": packed([20])}
    with pytest.raises(ValueError, match=message):
        mamba3_mixer(**(arguments | changes), backend="triton")  # type: ignore[arg-type]
