"""On the CPU a session's outputs are the same bits whatever shares its batch, and whatever comes after a position."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from detector.model.model import DetectorModel, ModelConfig
from detector.text.word_hashes import TEXT_BUCKETS, TEXT_FEATURES, pack

VOCABULARY = 61
LONGEST = 45  # several chunks, and not a whole number of them
CONFIGS = {
    "tiny": ModelConfig.preset("tiny", VOCABULARY),
    # Sizes that are no multiples of a vector register or of a matrix product's block.
    "odd": ModelConfig(VOCABULARY, d_model=36, n_layers=2, d_state=20, headdim=24, mimo_rank=3, rope_fraction=1.0),
}


def model_of(config: ModelConfig) -> DetectorModel:
    generator = torch.Generator().manual_seed(0)
    model = DetectorModel(config, torch.randint(0, TEXT_BUCKETS, (VOCABULARY, TEXT_FEATURES), generator=generator))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model.eval()


MODELS = {name: model_of(config) for name, config in CONFIGS.items()}
MODELS["bfloat16"] = model_of(CONFIGS["tiny"]).bfloat16()
tokens = st.integers(0, VOCABULARY - 1) | st.just(pack([7, 4095, 12]))
sequences = st.lists(tokens, max_size=LONGEST)


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@torch.inference_mode()
def outputs(model: DetectorModel, batch: list[list[int]]) -> list[Tensor]:
    """Of each sequence, next-token logits and class logit of each position, (length, VOCABULARY + 1)."""
    lengths = [len(sequence) for sequence in batch]
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    packed = torch.tensor([token for sequence in batch for token in sequence], dtype=torch.int64)
    next_token, class_logits = model(packed, cu_seqlens)
    return list(torch.cat((next_token, class_logits[:, None]), 1).split(lengths))


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(probe=sequences, before=st.lists(sequences, max_size=5), after=st.lists(sequences, max_size=5))
def test_a_session_is_scored_the_same_alone_and_among_others(
    name: str, threads: int, probe: list[int], before: list[list[int]], after: list[list[int]]
) -> None:
    alone = outputs(MODELS[name], [probe])[0]
    among = outputs(MODELS[name], [*before, probe, *after])[len(before)]
    assert torch.equal(alone, among)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(whole=st.lists(tokens, min_size=1, max_size=LONGEST), data=st.data())
def test_what_comes_after_a_position_does_not_change_it(
    name: str, threads: int, whole: list[int], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(whole)))
    assert torch.equal(outputs(MODELS[name], [whole[:k]])[0], outputs(MODELS[name], [whole])[0][:k])


@pytest.mark.parametrize("name", MODELS)
def test_a_session_is_scored_the_same_alone_and_in_a_batch_that_threads_share(name: str, threads: int) -> None:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(0, LONGEST, (150,), generator=generator).tolist()
    batch = [torch.randint(0, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    together = outputs(MODELS[name], batch)
    for probe in (0, 1, 77, 148, 149):
        assert torch.equal(outputs(MODELS[name], [batch[probe]])[0], together[probe])
    shuffled = torch.randperm(len(batch), generator=generator).tolist()
    for place, result in zip(shuffled, outputs(MODELS[name], [batch[i] for i in shuffled]), strict=True):
        assert torch.equal(result, together[place])


@pytest.mark.parametrize("name", MODELS)
def test_the_number_of_threads_does_not_change_scores(name: str) -> None:
    generator = torch.Generator().manual_seed(2)
    batch = [torch.randint(0, VOCABULARY, (length,), generator=generator).tolist() for length in (9, 40, 3, *[25] * 40)]
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(torch.cat(outputs(MODELS[name], batch)))
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
