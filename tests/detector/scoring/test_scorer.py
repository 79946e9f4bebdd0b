"""Scores are the same bits whichever sequences share a call or a batch, in any order, cached or not."""

import math
from array import array
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from detector.checkpoint import Checkpoint
from detector.errors import CheckpointError, DeviceError
from detector.model.devices import resolve_device
from detector.model.inference import Inference, batches, flat, pack
from detector.model.model import DetectorModel
from detector.scoring import scored_sequences_loop as loop
from detector.scoring.count_profile import CountProfile
from detector.scoring.score_cache import MAX_CACHED_EVENTS
from detector.scoring.scorer import Scorer
from detector.scoring.scores import EventScores
from detector.text.vocabulary import BOS, EOS, UNK, Vocabulary
from tests.detector.small_models import PROFILE, TEMPLATES, VOCABULARY, encoded, random_checkpoint, save_random

UNKNOWN_LINE = VOCABULARY.sketch("Receiving replica <*> from <*>")
TOKENS = st.sampled_from([UNK, UNKNOWN_LINE, *range(3, len(VOCABULARY))])
SEQUENCES = st.lists(st.lists(TOKENS, max_size=40), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return random_checkpoint(tmp_path_factory.mktemp("scorer") / "model")


@pytest.fixture(scope="module")
def uncached(checkpoint: Checkpoint) -> Scorer:
    return Scorer(checkpoint, device="cpu", cache_size=0)


def bits(scores: EventScores) -> tuple[bytes, bytes, float]:
    return scores.surprises.tobytes(), scores.scores.tobytes(), scores.final


def alone(scorer: Scorer, tokens: list[int]) -> EventScores:
    return scorer.score([encoded(tokens)])[0]


@settings(max_examples=25)
@given(sequences=SEQUENCES, batch_tokens=st.integers(1, 120), data=st.data())
def test_scores_are_the_same_bits_for_any_split_order_and_cache(
    checkpoint: Checkpoint,
    uncached: Scorer,
    sequences: list[list[int]],
    batch_tokens: int,
    data: st.DataObject,
) -> None:
    expected = [bits(alone(uncached, tokens)) for tokens in sequences]
    cache_size = data.draw(st.sampled_from([0, 2, 100]))
    scorer = Scorer(checkpoint, device="cpu", batch_tokens=batch_tokens, cache_size=cache_size)
    for _ in range(2):
        order = data.draw(st.permutations(range(len(sequences))))
        cut = data.draw(st.integers(0, len(order)))
        for part in (order[:cut], order[cut:]):
            results = scorer.score([encoded(sequences[index]) for index in part])
            assert [bits(scores) for scores in results] == [expected[index] for index in part]


@settings(max_examples=40)
@given(tokens=st.lists(TOKENS, min_size=1, max_size=90), data=st.data())
def test_scores_of_a_prefix_are_the_leading_scores_of_the_longer_sequence(
    uncached: Scorer, tokens: list[int], data: st.DataObject
) -> None:
    n = data.draw(st.integers(0, len(tokens)))
    prefix, whole = uncached.score([encoded(tokens[:n]), encoded(tokens)])
    assert prefix.surprises.tobytes() == whole.surprises[:n].tobytes()
    assert prefix.scores.tobytes() == whole.scores[:n].tobytes()


def test_surprise_is_the_negative_log_likelihood_given_the_events_before(checkpoint: Checkpoint) -> None:
    tokens = [3, 5, UNKNOWN_LINE, 4, UNK, 7]
    model = checkpoint.build_model()
    packed = torch.tensor([BOS, *tokens, EOS]), torch.tensor([0, 8], dtype=torch.int32)
    with torch.inference_mode():
        logits, class_logits = model(*packed)
    log_p = logits.double().log_softmax(dim=1)
    classes = [3, 5, UNK, 4, UNK, 7, EOS]
    surprises = np.array([-log_p[position, token].item() for position, token in enumerate(classes)])

    scores = alone(Scorer(checkpoint, device="cpu"), tokens)
    assert scores.surprises == pytest.approx(surprises[:-1], abs=1e-5)
    calibration = checkpoint.manifest.calibration
    c = class_logits.double().numpy()
    unusual = PROFILE.judge(np.array(tokens), np.array([0, len(tokens)]))
    assert 0 < unusual.running[-1] <= unusual.final[0]
    highest, highest_logits = np.maximum.accumulate(surprises[:-1]), np.maximum.accumulate(c[1:-1])
    early = calibration.early_scores(highest, highest_logits, unusual.running)
    assert scores.scores == pytest.approx(early, abs=1e-5)
    final = calibration.final_scores(surprises.max(keepdims=True), c[-1:], unusual.final, unusual.seen)
    assert scores.final == pytest.approx(final[0], abs=1e-5)
    assert min(scores.scores) > 0.001
    assert 0.001 < scores.final < 0.999


@settings(max_examples=25)
@given(sequences=SEQUENCES, batch_tokens=st.integers(1, 120), data=st.data())
def test_a_session_asked_for_before_its_end_has_the_same_final_score_when_it_is_complete(
    checkpoint: Checkpoint, uncached: Scorer, sequences: list[list[int]], batch_tokens: int, data: st.DataObject
) -> None:
    expected = {tuple(tokens): bits(alone(uncached, tokens)) for tokens in sequences}
    cache_size = data.draw(st.sampled_from([0, 2, 100]))
    scorer = Scorer(checkpoint, device="cpu", batch_tokens=batch_tokens, cache_size=cache_size)
    for _ in range(3):
        complete = data.draw(st.lists(st.sampled_from(sequences), max_size=6))
        unfinished = data.draw(st.lists(st.sampled_from(sequences), max_size=6))
        results = scorer.score(list(map(encoded, complete)), list(map(encoded, unfinished)))
        for tokens, scores in zip([*complete, *unfinished], results, strict=True):
            assert bits(scores)[:2] == expected[tuple(tokens)][:2]
        for tokens, scores in zip(complete, results, strict=False):
            assert bits(scores) == expected[tuple(tokens)]


def test_no_counts_are_judged_of_a_session_that_goes_on_and_its_end_needs_no_model(checkpoint: Checkpoint) -> None:
    expected = bits(alone(Scorer(checkpoint, device="cpu"), [3, 4, 5, 3, 7]))
    profile = CountProfile(checkpoint.profile.vectors, checkpoint.profile.weights)
    scorer = Scorer(replace(checkpoint, profile=profile), device="cpu")
    sequence = encoded([3, 4, 5, 3, 7])

    def judges() -> bool:
        return "known" in vars(profile)  # made when the first session with new counts is complete

    (unfinished,) = scorer.score([], [sequence])
    assert math.isnan(unfinished.final)
    assert not judges()
    (complete,) = scorer.score([sequence])
    assert bits(complete) == expected
    assert judges()
    assert scorer.cache_misses == 1
    assert list(map(bits, scorer.score([sequence], [sequence]))) == [expected, expected]
    assert scorer.cache_misses == 1


@given(st.lists(st.lists(st.floats(0, 40, width=32) | st.just(math.nan), min_size=1, max_size=20), max_size=12))
def test_running_maxima_begin_anew_with_each_session(sessions: list[list[float]]) -> None:
    values = np.array([value for session in sessions for value in session], np.float32)
    bounds = np.cumsum([0, *map(len, sessions)])
    expected = [np.maximum.accumulate(np.array(session, np.float32)) for session in sessions]
    events, ends = np.empty(len(values) - len(sessions)), np.empty(len(sessions))
    loop.running_maxima(values, bounds, events, ends)
    assert np.array_equal(events, np.concatenate([*(each[:-1] for each in expected), np.empty(0)]), equal_nan=True)
    assert np.array_equal(ends, [each[-1] for each in expected], equal_nan=True)


def test_events_after_an_unknown_line_depend_on_its_text(uncached: Scorer) -> None:
    other = VOCABULARY.sketch("Deleting replica <*> file <*>")
    assert other != UNKNOWN_LINE
    first, second = alone(uncached, [3, UNKNOWN_LINE, 5]), alone(uncached, [3, other, 5])
    assert first.surprises[:2].tobytes() == second.surprises[:2].tobytes()
    assert first.surprises[2] != second.surprises[2]


def test_no_sequences_and_empty_sequences_are_allowed(uncached: Scorer) -> None:
    assert len(uncached.score([])) == 0
    empty, one = uncached.score([b"", encoded([3])])
    assert empty.surprises.shape == empty.scores.shape == (0,)
    assert 0 <= empty.final <= 1
    assert one.surprises.shape == one.scores.shape == (1,)


def test_results_are_read_only_float32(uncached: Scorer) -> None:
    first, _ = uncached.score([encoded([3, 4]), encoded([5] * 30)])
    for values in (first.surprises, first.scores):
        assert values.dtype == np.float32
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 0
    assert type(first.final) is float


def test_equal_sequences_in_one_call_are_run_once(checkpoint: Checkpoint) -> None:
    scorer = Scorer(checkpoint, device="cpu", cache_size=0)
    results = scorer.score([encoded([3, 4]), encoded([5]), encoded([3, 4]), encoded([3, 4])])
    assert bits(results[0]) == bits(results[2]) == bits(results[3])
    assert (scorer.cache_misses, scorer.cache_hits, scorer.events_scored) == (2, 2, 3)


def test_a_remembered_sequence_is_answered_without_the_model(checkpoint: Checkpoint) -> None:
    scorer = Scorer(checkpoint, device="cpu")
    first = scorer.score([encoded([3, 4]), encoded([5])])
    again = scorer.score([encoded([5]), encoded([3, 4])])
    assert bits(again[0]) == bits(first[1])
    assert bits(again[1]) == bits(first[0])
    assert (scorer.cache_misses, scorer.cache_hits, scorer.events_scored) == (2, 2, 3)


def test_the_sequence_asked_for_least_recently_is_forgotten_first(checkpoint: Checkpoint) -> None:
    scorer = Scorer(checkpoint, device="cpu", cache_size=2)
    scorer.score([encoded([3])])
    scorer.score([encoded([4])])
    scorer.score([encoded([3])])
    scorer.score([encoded([5])])
    misses = scorer.cache_misses
    scorer.score([encoded([3]), encoded([5])])
    assert scorer.cache_misses == misses
    scorer.score([encoded([4])])
    assert scorer.cache_misses == misses + 1


def test_one_call_may_bring_more_sequences_than_the_cache_holds(checkpoint: Checkpoint, uncached: Scorer) -> None:
    scorer = Scorer(checkpoint, device="cpu", cache_size=3)
    sequences = [encoded([3] * n) for n in range(1, 9)]
    for _ in range(2):
        expected = uncached.score(sequences)
        assert list(map(bits, scorer.score(sequences))) == list(map(bits, expected))


def test_sequences_beyond_the_documented_length_are_not_remembered(checkpoint: Checkpoint) -> None:
    scorer = Scorer(checkpoint, device="cpu")
    for length, remembered in ((MAX_CACHED_EVENTS, True), (MAX_CACHED_EVENTS + 1, False)):
        sequence = encoded([3, 4] * length)[: 8 * length]
        scorer.score([sequence])
        misses = scorer.cache_misses
        scorer.score([sequence])
        assert (scorer.cache_misses == misses) is remembered


def test_tokens_that_are_none_are_refused(uncached: Scorer) -> None:
    with pytest.raises(ValueError, match="beyond the vocabulary of 8 tokens"):
        uncached.score([encoded([3]), encoded([3, 8])])
    with pytest.raises(ValueError, match="multiple of"):
        uncached.score([b"1234567"])


@given(st.lists(st.integers(0, 30), max_size=30), st.integers(1, 60))
def test_batches_keep_order_hold_everything_once_and_stay_within_the_bound(lengths: list[int], bound: int) -> None:
    parts = list(batches(np.array(lengths, dtype=np.int64), bound))
    assert [index for part in parts for index in part] == list(range(len(lengths)))
    for part in parts:
        assert len(part) == 1 or sum(lengths[index] + 2 for index in part) <= bound


def test_packing_puts_bos_before_and_eos_after_each_session() -> None:
    packed = pack([np.array([3, -9]), np.array([], dtype=np.int64), np.array([4])], torch.device("cpu"))
    assert packed.tokens.tolist() == [BOS, 3, -9, EOS, BOS, EOS, BOS, 4, EOS]
    assert packed.cu_seqlens.tolist() == [0, 4, 6, 9]
    positions, classes = packed.targets()
    assert positions.tolist() == [1, 2, 3, 5, 7, 8]
    assert classes.tolist() == [3, UNK, EOS, EOS, 4, EOS]


class CrampedModel(DetectorModel):
    """A model on a device whose memory holds `room` tokens."""

    room: int

    def forward(self, tokens: torch.Tensor, *args: object, **kwargs: object) -> tuple[torch.Tensor, torch.Tensor]:
        if len(tokens) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(tokens, *args, **kwargs)


def cramped(checkpoint: Checkpoint, room: int, batch_tokens: int = 1_000) -> tuple[Inference, CrampedModel]:
    model = checkpoint.build_model()
    model.__class__ = CrampedModel
    assert isinstance(model, CrampedModel)
    model.room = room
    return Inference(model, batch_tokens=batch_tokens), model


def surprises(inference: Inference, sequences: list[np.ndarray]) -> dict[int, bytes]:
    return {
        index: measured.surprises[start:stop].tobytes()
        for measured in inference.measure(*flat(sequences))
        for index, start, stop in zip(measured.indices, measured.bounds, measured.bounds[1:], strict=False)
    }


def test_a_batch_that_exceeds_the_devices_memory_is_split_counted_and_scored_all_the_same(
    checkpoint: Checkpoint,
) -> None:
    rng = np.random.default_rng(1)
    sequences = [rng.integers(3, 8, length) for length in (12, 3, 30, 7, 18, 9, 22)]
    expected = surprises(Inference(checkpoint.build_model(), batch_tokens=1_000), sequences)
    inference, model = cramped(checkpoint, room=40)
    with capture_logs() as log:
        assert surprises(inference, sequences) == expected
    assert inference.batch_tokens <= 100
    assert inference.batches_split == 2
    told = {"event": "batch_did_not_fit", "log_level": "warning", "device": "cpu"}
    assert log == [{**told, "tokens": 115, "from_now": 57}, {**told, "tokens": 56, "from_now": 28}]
    model.room = 20
    with pytest.raises(DeviceError, match="not enough memory for one session of 30 events"):
        surprises(inference, sequences)


def test_after_memory_was_short_passes_grow_back_to_what_was_asked_for(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detector.model.inference._FEWEST_PASSES_BEFORE_GROWTH", 10)
    inference, model = cramped(checkpoint, room=40, batch_tokens=320)
    sequences = [np.array([3, 4, 5])] * 64  # 320 tokens
    surprises(inference, sequences)
    assert inference.batch_tokens == 40
    model.room = 1_000
    sizes = []
    for _ in range(50):
        surprises(inference, [np.array([3])])
        sizes.append(inference.batch_tokens)
    assert sorted(set(sizes)) == [40, 80, 160, 320]
    assert sizes == sorted(sizes)
    assert inference.batches_split == 3


def test_memory_that_is_short_for_good_is_tried_ever_more_seldom(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detector.model.inference._FEWEST_PASSES_BEFORE_GROWTH", 4)
    inference, _ = cramped(checkpoint, room=40, batch_tokens=80)
    sequences = [np.array([3, 4, 5])] * 16  # 80 tokens
    splits = []
    with capture_logs() as log:
        for turn in range(100):
            before = inference.batches_split
            surprises(inference, sequences)
            if inference.batches_split > before:
                splits.append(turn)
    gaps = np.diff(splits)
    assert len(gaps) > 3
    assert (gaps[1:] >= 1.9 * gaps[:-1]).all()
    assert len(log) == inference.batches_split == len(splits)


class ForgetfulModel(DetectorModel):
    """A model on a device that is short of memory only until what it keeps for later is freed."""

    fails = 1

    def forward(self, tokens: torch.Tensor, *args: object, **kwargs: object) -> tuple[torch.Tensor, torch.Tensor]:
        if self.fails:
            self.fails -= 1
            raise RuntimeError("Triton Error [CUDA]: out of memory")
        return super().forward(tokens, *args, **kwargs)


def test_one_session_alone_is_tried_again_before_it_is_given_up(checkpoint: Checkpoint) -> None:
    model = checkpoint.build_model()
    sequences = [np.array([3, 4, 5])]
    expected = surprises(Inference(model, batch_tokens=1_000), sequences)
    model.__class__ = ForgetfulModel
    assert surprises(Inference(model, batch_tokens=1_000), sequences) == expected


def test_a_large_vocabulary_is_measured_in_parts_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa")
    vocabulary = Vocabulary(tuple(f"{a} {b} {c}" for a in words for b in words for c in words))
    checkpoint = random_checkpoint(tmp_path / "model", vocabulary)
    rng = np.random.default_rng(2)
    sequences = [encoded(rng.integers(3, len(vocabulary), n).tolist()) for n in (4, 9, 1)]
    expected = [bits(scores) for scores in Scorer(checkpoint, device="cpu").score(sequences)]
    monkeypatch.setattr("detector.model.inference._SOFTMAX_LOGITS", 5 * len(vocabulary))
    assert [bits(scores) for scores in Scorer(checkpoint, device="cpu").score(sequences)] == expected


def test_bfloat16_is_close_to_float32_and_as_independent_of_the_batch(checkpoint: Checkpoint, uncached: Scorer) -> None:
    half = Scorer(checkpoint, device="cpu", precision="bfloat16", cache_size=0)
    rng = np.random.default_rng(3)
    sequences = [encoded(rng.integers(3, 8, n).tolist()) for n in (5, 17, 40)]
    together = half.score(sequences)
    assert list(map(bits, together)) == [bits(half.score([sequence])[0]) for sequence in sequences]
    for scores, exact in zip(together, uncached.score(sequences), strict=True):
        assert scores.surprises == pytest.approx(exact.surprises, abs=0.5)
        assert scores.surprises.tobytes() != exact.surprises.tobytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "tpu"}, "device 'tpu' is unknown; allowed: auto, cpu, cuda, cuda:N"),
        ({"device": "cuda:x"}, "device 'cuda:x' is unknown"),
        ({"device": "cuda:"}, "device 'cuda:' is unknown"),
        ({"device": "cpu:0"}, "device 'cpu:0' is unknown"),
        ({"device": "cuda:99"}, r"device 'cuda:99' is not here: PyTorch finds \d+ CUDA devices"),
        ({"device": "cpu", "precision": "float16"}, "precision 'float16' is unknown; allowed: auto, float32"),
        ({"device": "cpu", "kernels": "cuda"}, "the model does not run on cpu: .*cuda"),
    ],
)
def test_what_cannot_work_here_is_refused_when_the_scorer_is_made(
    checkpoint: Checkpoint, arguments: dict[str, str], message: str
) -> None:
    with pytest.raises(DeviceError, match=message):
        Scorer(checkpoint, **arguments)  # type: ignore[arg-type]


def test_auto_takes_cuda_where_there_is_one() -> None:
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_scorer_loads_from_a_directory_and_names_its_checkpoint(tmp_path: Path) -> None:
    digest = save_random(tmp_path / "model")
    scorer = Scorer.load(tmp_path / "model", device="cpu", cache_size=10)
    assert scorer.checkpoint == digest
    assert scorer.vocabulary.templates == TEMPLATES
    assert math.isfinite(scorer.score([array("q", [3]).tobytes()])[0].final)
    with pytest.raises(CheckpointError, match="no such directory"):
        Scorer.load(tmp_path / "nowhere")
