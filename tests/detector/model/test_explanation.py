"""An explanation agrees with the score that it explains, and its expectations are the model's own."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.checkpoint import Checkpoint
from detector.errors import DeviceError
from detector.model import explanation
from detector.model.explanation import Explanation, expectations
from detector.model.inference import Inference, flat
from detector.model.model import DetectorModel
from detector.scoring.scorer import Scorer
from detector.text.vocabulary import BOS, EOS, UNK
from tests.detector.small_models import VOCABULARY, encoded, random_checkpoint, random_model

UNKNOWN_LINE = VOCABULARY.sketch("Receiving replica <*> from <*>")
TOKENS = st.sampled_from([UNK, UNKNOWN_LINE, *range(3, len(VOCABULARY))])
EVERY = len(VOCABULARY) - 1  # tokens that may come next: all but BOS


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return random_checkpoint(tmp_path_factory.mktemp("explanation") / "model")


@pytest.fixture(scope="module")
def scorer(checkpoint: Checkpoint) -> Scorer:
    return Scorer(checkpoint, device="cpu")


def classes(tokens: list[int]) -> list[int]:
    """What the model could have expected: every unknown line is UNK, and the end comes last."""
    return [max(token, UNK) for token in tokens] + [EOS]


def probability(found: Explanation, row: int, token: int) -> float:
    return float(found.probabilities[row, found.expected[row].tolist().index(token)])


@settings(max_examples=25)
@given(st.lists(TOKENS, max_size=40))
def test_surprises_and_scores_are_those_of_the_score_to_the_bit(scorer: Scorer, tokens: list[int]) -> None:
    [scores] = scorer.score([encoded(tokens)])
    found = scorer.explain(encoded(tokens))
    assert found.surprises.dtype == np.float32
    assert found.surprises[:-1].tobytes() == scores.surprises.tobytes()
    assert found.scores.tobytes() == scores.scores.tobytes()
    assert found.final == scores.final


@settings(max_examples=25)
@given(st.lists(TOKENS, max_size=40))
def test_every_surprise_is_to_the_bit_the_one_that_the_score_was_made_of(
    checkpoint: Checkpoint, scorer: Scorer, tokens: list[int]
) -> None:
    events = np.array(tokens, dtype=np.int64)
    [measured] = Inference(checkpoint.build_model(), batch_tokens=1_000).measure(*flat([events]))
    found = expectations(checkpoint.build_model(), events, 1, "auto")
    assert found.surprises.tobytes() == measured.surprises.tobytes()
    assert scorer.explain(encoded(tokens)).surprises.tobytes() == measured.surprises.tobytes()


@settings(max_examples=25)
@given(st.lists(TOKENS, max_size=40))
def test_the_probability_of_what_came_is_what_its_surprise_says(scorer: Scorer, tokens: list[int]) -> None:
    found = scorer.explain(encoded(tokens), k=EVERY)
    for row, token in enumerate(classes(tokens)):
        assert probability(found, row, token) == pytest.approx(np.exp(-found.surprises[row]), rel=1e-6)


def test_expected_tokens_are_all_that_can_come_next_the_likeliest_first(scorer: Scorer) -> None:
    tokens = [3, 5, UNKNOWN_LINE, 4]
    found = scorer.explain(encoded(tokens), k=1_000)
    assert (found.expected.shape, found.expected.dtype) == ((5, EVERY), np.int64)
    assert (found.probabilities.shape, found.probabilities.dtype) == ((5, EVERY), np.float32)
    for row in found.expected.tolist():
        assert sorted(row) == [token for token in range(len(VOCABULARY)) if token != BOS]
    assert (np.diff(found.probabilities) <= 0).all()
    assert (found.probabilities.sum(axis=1) < 1).all()  # what is left is for the beginning, which never comes
    few = scorer.explain(encoded(tokens))
    assert few.expected.tolist() == found.expected[:, :3].tolist()
    assert few.probabilities.tolist() == found.probabilities[:, :3].tolist()


def test_what_is_expected_depends_on_the_events_before_alone(scorer: Scorer) -> None:
    short, long = scorer.explain(encoded([3, 5])), scorer.explain(encoded([3, 5, 7, UNKNOWN_LINE]))
    assert short.expected.tolist() == long.expected[:3].tolist()
    assert short.probabilities.tobytes() == long.probabilities[:3].tobytes()


def test_of_equally_likely_tokens_the_first_of_the_vocabulary_comes_first() -> None:
    model = random_model()
    torch.nn.init.zeros_(model.next_token_head.weight)
    found = expectations(model, np.array([4, 4]), 3, "auto")
    assert found.expected.tolist() == [[EOS, UNK, 3]] * 3


def test_a_session_without_events_has_an_end(scorer: Scorer) -> None:
    found = scorer.explain(b"")
    assert (len(found.surprises), len(found.scores), len(found.expected)) == (1, 0, 1)
    assert found.final == scorer.score([b""])[0].final


def test_a_long_session_is_ranked_in_parts_with_the_same_result(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequence = encoded(np.random.default_rng(1).integers(3, len(VOCABULARY), 50).tolist())
    whole = scorer.explain(sequence)
    monkeypatch.setattr(explanation, "_RANKED_LOGITS", 7 * len(VOCABULARY))
    for one, other in zip(scorer.explain(sequence), whole, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("sequence", "k", "message"),
    [
        (encoded([3]), 0, "k is 0; it must be at least 1"),
        (encoded([3, 8]), 3, "beyond the vocabulary of 8 tokens"),
        (b"1234567", 3, "multiple of"),
    ],
)
def test_what_cannot_be_explained_is_refused(scorer: Scorer, sequence: bytes, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scorer.explain(sequence, k)


class FullModel(DetectorModel):
    """A model on a device without memory."""

    def forward(self, *args: object, **kwargs: object) -> tuple[torch.Tensor, torch.Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_session_too_long_for_the_devices_memory_is_an_error_with_its_length() -> None:
    model = random_model()
    model.__class__ = FullModel
    with pytest.raises(DeviceError, match="not enough memory for one session of 2 events"):
        expectations(model, np.array([4, 4]), 3, "auto")


# Rows that fill a batch up belong to no session: Triton's interpreter computes with what it finds there, here NaN.
@pytest.mark.usefixtures("poisoned")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_where_kernels_score_without_logits_the_explanation_has_them(
    checkpoint: Checkpoint, scorer: Scorer, device: torch.device
) -> None:
    tokens = [3, 5, UNKNOWN_LINE, 4, 7]
    fused = Scorer(checkpoint, device=str(device), precision="bfloat16", kernels="triton")
    found, plain = fused.explain(encoded(tokens), k=EVERY), scorer.explain(encoded(tokens), k=EVERY)
    [scores] = fused.score([encoded(tokens)])
    assert found.surprises[:-1].tobytes() == scores.surprises.tobytes()
    assert (found.scores.tobytes(), found.final) == (scores.scores.tobytes(), scores.final)
    # Those of the plain model in float32, whatever the precision of the scores.
    assert found.surprises[-1] == pytest.approx(plain.surprises[-1], abs=1e-4)
    for row, token in enumerate(classes(tokens)):
        assert probability(found, row, token) == pytest.approx(probability(plain, row, token), abs=1e-4)
