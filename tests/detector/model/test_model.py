"""The network's layer agrees with golden vectors; its sizes, inputs and outputs are what the configuration says."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from detector.model.model import DetectorModel, Mamba3Layer, ModelConfig
from detector.text import word_hashes as text
from detector.text.vocabulary import BOS, EOS, UNK
from tests.shared import SHARED, needs_shared

VOCABULARY = 12
CONFIG = ModelConfig(VOCABULARY, d_model=32, n_layers=2, d_state=16, headdim=16, mimo_rank=2)
FEATURES = torch.tensor([[0] * 5] * 3 + [[i, 2 * i, 4000 + i, 0, 0] for i in range(3, VOCABULARY)])


def model(seed: int = 0) -> DetectorModel:
    torch.manual_seed(seed)
    detector = DetectorModel(CONFIG, FEATURES)
    torch.nn.init.normal_(detector.class_head.weight)
    return detector


def outputs(detector: DetectorModel, *tokens: int, unknown_mask: Tensor | None = None) -> Tensor:
    cu_seqlens = torch.tensor([0, len(tokens)], dtype=torch.int32)
    next_token, class_logits = detector(torch.tensor(tokens), cu_seqlens, unknown_mask=unknown_mask)
    assert next_token.shape == (len(tokens), VOCABULARY)
    assert class_logits.shape == (len(tokens),)
    return torch.cat((next_token, class_logits[:, None]), 1).detach()


@needs_shared
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["f32", "f64"])
def test_the_layer_and_its_gradients_are_those_of_the_reference_implementation(
    dtype: torch.dtype, bound: float
) -> None:
    assert SHARED is not None
    path = SHARED / "golden" / "layer_small.safetensors"
    with safe_open(path, "pt") as file:
        sizes = file.metadata()
    rope_fraction = float(sizes.pop("rope_fraction"))
    vectors = load_file(path)
    layer = Mamba3Layer(**{name: int(size) for name, size in sizes.items()}, rope_fraction=rope_fraction)
    weights = {name.removeprefix("param."): t for name, t in vectors.items() if name.startswith("param.")}
    layer.load_state_dict(weights, strict=True)
    layer.to(dtype)
    u = vectors["in.u"].to(dtype).requires_grad_()

    y = layer(u, vectors["in.cu_seqlens"])
    (y * vectors["in.dy"].to(dtype)).sum().backward()

    results = {"out.y": y.detach(), "grad.u": u.grad}
    results |= {f"grad.{name}": parameter.grad for name, parameter in layer.named_parameters()}
    expected = {name: t for name, t in vectors.items() if name.startswith(("out.", "grad."))}
    assert results.keys() == expected.keys()
    for name, result in results.items():
        assert result is not None
        error = (result.double() - expected[name]).norm() / expected[name].norm()
        assert error < bound, name


def test_a_new_layer_starts_as_the_reference_implementation_does() -> None:
    torch.manual_seed(0)
    layer = Mamba3Layer(d_model=64, d_state=32, headdim=16, mimo_rank=4)
    steps = torch.nn.functional.softplus(layer.dt_bias.detach())
    assert 1e-3 <= float(steps.min()) < float(steps.max()) <= 1e-1
    for parameter, value in {"B_bias": 1, "C_bias": 1, "mimo_x": 1 / 4, "mimo_z": 1, "mimo_o": 1 / 4, "D": 1}.items():
        assert bool((getattr(layer, parameter) == value).all()), parameter


def test_the_reference_size_has_its_parameters_in_the_blocks() -> None:
    detector = DetectorModel(ModelConfig.preset("reference", 60), torch.zeros(60, 5, dtype=torch.int64))
    text_table = detector.text_embedding.weight.numel()
    assert text_table == text.TEXT_BUCKETS * 256
    assert round((sum(p.numel() for p in detector.parameters()) - text_table) / 1e6, 1) == 4.9


def test_a_tiny_checkpoint_is_small() -> None:
    detector = DetectorModel(ModelConfig.preset("tiny", 100), torch.zeros(100, 5, dtype=torch.int64))
    assert sum(t.nbytes for t in detector.state_dict().values()) < 2_000_000


def test_a_configuration_survives_json() -> None:
    for size in ("tiny", "small", "reference"):
        config = ModelConfig.preset(size, 61)
        assert config.vocabulary_size == 61
        assert ModelConfig(**json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 0}, "d_model is 0; it must be at least 1"),
        ({"mimo_rank": -1}, "mimo_rank is -1"),
        ({"vocabulary_size": 2}, "vocabulary_size is 2; BOS, EOS and UNK alone are 3"),
        ({"rope_fraction": 0.3}, r"rope_fraction is 0\.3; it must be 0\.5 or 1\.0"),
        ({"headdim": 48}, r"headdim 48 does not divide expand \* d_model = 64"),
        ({"d_state": 18}, "d_state is 18; it must be a multiple of 4"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changes)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (FEATURES[:-1], r"torch\.int64 \(11, 5\); it must be torch\.int64 \(12, 5\)"),
        (FEATURES.int(), r"template_features is torch\.int32"),
        (FEATURES - 1, "buckets from -1 to"),
        (FEATURES * 4096, "they must be from 0 to 4095"),
    ],
)
def test_template_features_that_do_not_fit_are_refused(features: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DetectorModel(CONFIG, features)


def test_weights_and_features_are_restored_from_the_state_dict() -> None:
    detector, other = model(0), DetectorModel(CONFIG, torch.zeros_like(FEATURES))
    other.load_state_dict(detector.state_dict())
    assert torch.equal(outputs(detector, BOS, 5, 7, EOS), outputs(other, BOS, 5, 7, EOS))


def test_an_unknown_line_means_its_text_and_nothing_but_its_text() -> None:
    detector = model()
    same, other = text.pack([7, 9]), text.pack([7, 10])
    assert not torch.equal(outputs(detector, BOS, same)[1], outputs(detector, BOS, other)[1])
    assert not torch.equal(outputs(detector, BOS, same)[1], outputs(detector, BOS, UNK)[1])
    with torch.no_grad():
        detector.text_embedding.weight.zero_()
    assert torch.equal(outputs(detector, BOS, same), outputs(detector, BOS, UNK))


def test_an_unknown_line_carries_the_buckets_that_the_tokenizer_packed() -> None:
    """Every bucket counts the same and none other does, so equal sets of buckets are equal lines."""
    detector = model()
    features = [1, 4095, 2048, 77, 3000]
    token = text.pack(features)
    before = outputs(detector, BOS, token)
    with torch.no_grad():
        kept = torch.zeros_like(detector.text_embedding.weight)
        kept[features] = detector.text_embedding.weight[features].mean(0)
        detector.text_embedding.weight.copy_(kept)
    assert torch.allclose(outputs(detector, BOS, token), before, rtol=1e-4, atol=1e-5)
    assert [column.tolist() for column in text.unpack(torch.tensor([token]))] == [[bucket] for bucket in features]


def test_where_there_are_no_unknown_lines_nobody_need_look_for_them() -> None:
    detector, tokens = model(), torch.tensor([BOS, 5, 7, EOS])
    cu_seqlens = torch.tensor([0, 4], dtype=torch.int32)
    looked, spared = (detector(tokens, cu_seqlens, unknown_lines=look)[0] for look in (True, False))
    assert torch.equal(looked, spared)


def test_a_masked_template_is_an_unknown_line_with_its_text() -> None:
    detector = model()
    as_unknown = outputs(detector, BOS, text.pack([5, 10, 4005]), 6)
    masked = outputs(detector, BOS, 5, 6, unknown_mask=torch.tensor([False, True, False]))
    assert torch.allclose(masked, as_unknown, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(masked, outputs(detector, BOS, 5, 6), rtol=1e-2, atol=1e-3)


def test_bucket_0_stays_empty_in_training() -> None:
    detector = model()
    next_token, class_logits = detector(torch.tensor([BOS, 3, 4]), torch.tensor([0, 3], dtype=torch.int32))
    (next_token.square().sum() + class_logits.sum()).backward()
    gradient = detector.text_embedding.weight.grad
    assert gradient is not None
    assert not gradient[0].any()
    assert bool(gradient[4003].any())
    missing = [name for name, parameter in detector.named_parameters() if parameter.grad is None]
    assert not missing


def test_no_sessions_have_no_outputs() -> None:
    next_token, class_logits = model()(torch.zeros(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int32))
    assert next_token.shape == (0, VOCABULARY)
    assert class_logits.shape == (0,)
