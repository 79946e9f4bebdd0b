"""A block in few launches is the layer of the reference implementation, and sequences do not see each other."""

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from detector.model.model import Block, ModelConfig
from kernels.packing import Packing
from kernels.triton.inference.layer import LayerWeights, layer_forward
from tests.kernels.inputs import assert_close
from tests.kernels.streams import stream_of, sums_of_squares
from tests.shared import needs_shared, shared

CONFIG = ModelConfig(9, d_model=24, n_layers=1, d_state=16, headdim=16, mimo_rank=2)


def weights_of(parameters: dict[str, Tensor], norm: Tensor, dtype: torch.dtype, device: torch.device) -> LayerWeights:
    """From a layer's parameters by their names in its module."""
    named = {name.removesuffix(".weight"): t.detach().to(device) for name, t in parameters.items()}
    return LayerWeights.of(norm=norm.detach().to(device), dtype=dtype, **named)


def block(seed: int = 0) -> Block:
    torch.manual_seed(seed)
    made = Block(CONFIG)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return made


def packed(*lengths: int) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def ran(weights: LayerWeights, u: Tensor, cu_seqlens: Tensor) -> Tensor:
    stream = stream_of(u)
    layer_forward(stream, weights, Packing.of(cu_seqlens, u.device))
    assert_close("squares", stream.squares, sums_of_squares(stream.u.double()), 1e-6)
    return stream.u


@needs_shared
@pytest.mark.usefixtures("poisoned")
def test_the_layer_inside_is_that_of_the_golden_vectors(device: torch.device) -> None:
    vectors = load_file(shared("golden/layer_small.safetensors"))
    parameters = {name.removeprefix("param."): t for name, t in vectors.items() if name.startswith("param.")}
    u = vectors["in.u"]
    # The block normalises its input. One column more, which the layer ignores, gives all rows the same length, so that
    # the norm is a factor that its weight can undo.
    squares = (u * u).sum(1)
    longest = squares.max() + 1
    u = torch.cat((u, (longest - squares).sqrt()[:, None]), 1)
    norm = (longest / u.shape[1] + 1e-5).sqrt().expand(u.shape[1])
    parameters["in_proj.weight"] = torch.nn.functional.pad(parameters["in_proj.weight"], (0, 1))
    parameters["out_proj.weight"] = torch.nn.functional.pad(parameters["out_proj.weight"], (0, 0, 0, 1))
    stream = ran(weights_of(parameters, norm, torch.float32, device), u.to(device), vectors["in.cu_seqlens"])
    assert torch.equal(stream[:, -1].cpu(), u[:, -1])
    assert_close("y", (stream.cpu().double() - u.double())[:, :-1], vectors["out.y"], 1e-5)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)], ids=["f32", "bf16"])
def test_a_block_is_that_of_the_model_in_float64(dtype: torch.dtype, bound: float, device: torch.device) -> None:
    made = block()
    weights = weights_of(dict(made.mixer.named_parameters()), made.norm.weight, dtype, device)
    u = torch.randn(60, CONFIG.d_model, generator=torch.Generator().manual_seed(1)).to(dtype)
    bounds = packed(1, 20, 0, 37, 2)
    result = ran(weights, u.to(device), bounds)
    assert result.dtype == dtype
    with torch.inference_mode():
        expected = made.double()(u.double(), bounds, "reference")
    assert_close("u", result.cpu(), expected, bound)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.bfloat16, *([torch.float32] if torch.cuda.is_available() else [])], ids=str)
def test_a_sequences_bits_do_not_depend_on_its_neighbours(dtype: torch.dtype, device: torch.device) -> None:
    made = block()
    weights = weights_of(dict(made.mixer.named_parameters()), made.norm.weight, dtype, device)
    lengths = [5, 33, 18, 1]
    u = torch.randn(sum(lengths), CONFIG.d_model, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    parts = u.split(lengths)
    together = ran(weights, u, packed(*lengths)).split(lengths)
    for i, length in enumerate(lengths):
        assert torch.equal(ran(weights, parts[i], packed(length)), together[i])
    order = [2, 0, 3, 1]
    moved = ran(weights, torch.cat([parts[i] for i in order]), packed(*(lengths[i] for i in order)))
    for i, result in zip(order, moved.split([lengths[i] for i in order]), strict=True):
        assert torch.equal(result, together[i])


@pytest.mark.usefixtures("poisoned")
def test_rows_that_no_sequence_owns_leave_the_others_alone(device: torch.device) -> None:
    made = block()
    weights = weights_of(dict(made.mixer.named_parameters()), made.norm.weight, torch.float32, device)
    u = torch.randn(40, CONFIG.d_model, generator=torch.Generator().manual_seed(1)).to(device)
    expected = ran(weights, u[:30], packed(10, 20))
    packing = Packing.of(packed(10, 20), device)
    table = torch.cat((packing.segments, packing.segments.new_zeros(3, 4)))
    stream = stream_of(u)
    layer_forward(stream, weights, Packing(packing.cu_seqlens, 40, table, packing.first_segments))
    assert torch.equal(stream.u[:30], expected)
