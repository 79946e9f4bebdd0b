"""A model prepared for a GPU says what the model says, the same bits whatever the batch, in a fixed shape or not."""

import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import triton.language as tl

from detector.checkpoint import Checkpoint
from detector.errors import DeviceError
from detector.model import cuda_inference as prepared
from detector.model.inference import Backend, Inference, flat
from detector.model.model import DetectorModel, ModelConfig
from detector.scoring.scorer import Scorer
from detector.text.vocabulary import BOS, EOS
from detector.text.word_hashes import TEXT_FEATURES
from tests.detector.small_models import VOCABULARY, encoded, random_checkpoint, random_model

UNKNOWN_LINE = VOCABULARY.sketch("Receiving replica <*> from <*>")
SEQUENCES = [np.array(s, dtype=np.int64) for s in ([3, 5, UNKNOWN_LINE, 4, 2, 7], [], [6] * 20, [4, 4, 3])]
Results = list[tuple[bytes, bytes]]
# Rows that fill a batch up belong to no session and compute with what they find, here NaN.
pytestmark = [pytest.mark.usefixtures("poisoned"), pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")]


def inference(
    device: torch.device,
    *,
    dtype: torch.dtype = torch.float32,
    batch_tokens: int = 1_000,
    backend: Backend = "triton",
) -> Inference:
    return Inference(random_model().to(device), batch_tokens=batch_tokens, backend=backend, dtype=dtype)


def measured(inference: Inference, sequences: list[np.ndarray] = SEQUENCES) -> list[tuple[np.ndarray, np.ndarray]]:
    """Surprises and class logits of each sequence."""
    found = {}
    for batch in inference.measure(*flat(sequences)):
        for index, start, stop in zip(batch.indices, batch.bounds, batch.bounds[1:], strict=False):
            found[int(index)] = batch.surprises[start:stop], batch.logits[start:stop]
    return [found[index] for index in range(len(sequences))]


def bits(inference: Inference, sequences: list[np.ndarray] = SEQUENCES) -> Results:
    return [(surprises.tobytes(), logits.tobytes()) for surprises, logits in measured(inference, sequences)]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)], ids=["f32", "bf16"])
def test_a_prepared_model_says_what_the_model_says(dtype: torch.dtype, bound: float, device: torch.device) -> None:
    expected = measured(inference(torch.device("cpu"), backend="reference"))
    for (surprises, logits), right in zip(measured(inference(device, dtype=dtype)), expected, strict=True):
        assert surprises.dtype == logits.dtype == np.float32
        assert surprises == pytest.approx(right[0], abs=bound)
        assert logits == pytest.approx(right[1], abs=bound)


@pytest.mark.parametrize("dtype", [torch.bfloat16, *([torch.float32] if torch.cuda.is_available() else [])], ids=str)
def test_a_sessions_bits_are_the_same_in_any_batch_and_at_any_use_of_a_shape(
    dtype: torch.dtype, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    among = inference(device, dtype=dtype)
    expected = bits(among)
    # On a GPU the second use captures a graph and the third replays it.
    assert bits(among, SEQUENCES[::-1])[::-1] == expected
    assert bits(among) == expected
    assert bits(inference(device, dtype=dtype, batch_tokens=20)) == expected
    monkeypatch.setattr(prepared, "MOST_SHAPED_TOKENS", 0)
    assert bits(inference(device, dtype=dtype)) == expected


def test_nothing_of_an_earlier_batch_shows_in_a_later_one(device: torch.device) -> None:
    session, empty = SEQUENCES[3:4], SEQUENCES[1:2]
    fresh = bits(inference(device), session)
    used = inference(device)
    bits(used, empty * 3)  # sessions of the same shape where now there is one
    assert bits(used, session) == fresh
    bits(used, [np.full(80, 6)] * 2)  # a larger shape
    assert bits(used, session) == fresh


def test_what_a_pass_says_can_be_read_once_the_next_one_has_begun(device: torch.device) -> None:
    model = prepared.PreparedModel(random_model().to(device), torch.float32)
    passes = [np.array([BOS, *events, EOS]) for events in ([3, 4, 5], [6, 6, 6], [5, 3, 4])]
    bounds = np.array([0, 5], np.int32)
    alone = [model.begin(tokens, bounds)()[0].tobytes() for tokens in passes]
    assert len(set(alone)) == 3
    before, found = None, []
    for tokens in passes:
        begun = model.begin(tokens, bounds)
        if before is not None:
            found.append(before()[0].tobytes())
        before = begun
    assert before is not None
    assert [*found, before()[0].tobytes()] == alone


def test_a_long_session_is_measured_among_few_tokens_as_among_many(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    sequences = [rng.integers(3, 8, 150), SEQUENCES[0]]
    expected = measured(inference(torch.device("cpu"), backend="reference"), sequences)
    results = measured(inference(device), sequences)
    for (surprises, logits), right in zip(results, expected, strict=True):
        assert surprises == pytest.approx(right[0], abs=1e-4)
        assert logits == pytest.approx(right[1], abs=1e-4)
    monkeypatch.setattr(prepared, "MOST_SHAPED_TOKENS", 0)
    for result, (surprises, logits) in zip(bits(inference(device), sequences), results, strict=True):
        assert result == (surprises.tobytes(), logits.tobytes())


def test_shapes_are_few_and_forgotten_when_long_unused(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[int] = []
    monkeypatch.setattr(prepared._Shape, "run", lambda self, _: launched.append(self._packing.n_tokens))
    monkeypatch.setattr(prepared, "_MOST_SHAPES", 2)
    model = prepared.PreparedModel(random_model().to(device), torch.float32)
    for n in (2, 100, 128, 129, 192, 193, 256, 257, 3000):
        model.begin(np.zeros(n, dtype=np.int64), np.linspace(0, n, n // 50 + 2, dtype=np.int32))()
    assert launched == [128, 128, 128, 192, 192, 256, 256, 384, 3072]
    assert len(model._shapes._shapes) == 2


Launch = Callable[[], None]


class Graphs:
    """Captures as a GPU does, but for the first ones, whose memory runs out amid the launches."""

    def __init__(self, fails: int) -> None:
        self.fails = fails
        self.captured = 0

    def __call__(self, launch: Launch) -> Launch:
        if self.fails:
            self.fails -= 1
            launch()  # what it leaves behind must not show
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.captured += 1
        return launch


def test_memory_that_runs_out_amid_a_capture_splits_the_batch_and_leaves_no_graph(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared, "_USES_BEFORE_ANOTHER_CAPTURE", 3)
    measuring = inference(device)
    expected = bits(measuring)
    assert measuring._prepared is not None
    shapes = measuring._prepared._shapes
    graphs = shapes._capture = Graphs(fails=1)
    assert bits(measuring) == expected
    assert (measuring.batches_split, graphs.fails, graphs.captured) == (1, 0, 0)
    assert [shape._replay for shape in shapes._shapes.values()] == [None]
    for _ in range(2):  # after some more uses it is captured
        assert bits(measuring) == expected
    assert (measuring.batches_split, graphs.captured) == (1, 1)


def test_memory_that_runs_out_amid_the_capture_of_one_session_is_no_reason_to_give_it_up(device: torch.device) -> None:
    measuring, session = inference(device), SEQUENCES[:1]
    expected = bits(measuring, session)
    assert measuring._prepared is not None
    measuring._prepared._shapes._capture = Graphs(fails=1)
    assert bits(measuring, session) == expected


def test_kernels_that_need_a_gpu_are_refused_without_one(
    tmp_path: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared, "INTERPRETED", tl.constexpr(False))
    with pytest.raises(DeviceError, match="the model does not run on cpu: backend is 'triton', which needs a CUDA"):
        Scorer(random_checkpoint(tmp_path / "model"), device="cpu", kernels="triton")


@pytest.mark.parametrize(
    ("sizes", "obstacle"),
    [
        ({"d_state": 16, "headdim": 16, "mimo_rank": 3}, "take ranks 1, 2, 4 and 8, not R=3"),
        ({"d_state": 12, "headdim": 16, "mimo_rank": 2}, "take N from 16 to 128, not N=12"),
        ({"d_state": 16, "headdim": 8, "mimo_rank": 2}, "take P from 16 to 128, not P=8"),
    ],
    ids=["rank", "d_state", "headdim"],
)
def test_sizes_the_kernels_do_not_take_are_refused_by_triton_and_left_to_the_model_by_auto(
    sizes: dict[str, int], obstacle: str, device: torch.device
) -> None:
    config = ModelConfig(8, d_model=16, n_layers=1, **sizes)
    model = DetectorModel(config, torch.zeros(8, TEXT_FEATURES, dtype=torch.int64)).to(device)
    with pytest.raises(DeviceError, match=f"backend is 'triton', whose kernels {obstacle}; use 'auto'"):
        Inference(model, batch_tokens=100, backend="triton").check()
    Inference(model, batch_tokens=100).check()
    on_gpu = Inference(model, batch_tokens=100)
    on_gpu._device = torch.device("cuda")  # where auto takes the kernels
    assert on_gpu._prepared is None


def test_later_changes_of_the_model_do_not_reach_what_was_prepared(device: torch.device) -> None:
    model = random_model().to(device)
    measuring = Inference(model, batch_tokens=1_000, backend="triton")
    expected = bits(measuring)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert bits(measuring) == expected


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return random_checkpoint(tmp_path_factory.mktemp("prepared") / "model")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("precision", "bound"), [("float32", 1e-3), ("bfloat16", 0.1)])
def test_scores_on_the_gpu_are_those_on_the_cpu(precision: str, bound: float, checkpoint: Checkpoint) -> None:
    sequences = [encoded(sequence.tolist()) for sequence in SEQUENCES]
    right = Scorer(checkpoint, device="cpu").score(sequences)
    on_gpu = Scorer(checkpoint, device="cuda", precision=precision).score(sequences)  # type: ignore[arg-type]
    for scores, expected in zip(on_gpu, right, strict=True):
        assert scores.scores == pytest.approx(expected.scores, abs=bound)
        assert scores.final == pytest.approx(expected.final, abs=bound)


def test_on_a_cpu_there_is_no_use_of_a_gpu_to_tell_of(checkpoint: Checkpoint) -> None:
    assert Scorer(checkpoint, device="cpu").gpu_usage() is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_use_of_a_gpu_is_told(checkpoint: Checkpoint) -> None:
    scorer = Scorer(checkpoint, device="cuda")
    before = scorer.gpu_usage()
    scorer.score([encoded(sequence.tolist()) for sequence in SEQUENCES])
    after = scorer.gpu_usage()
    assert before is not None
    assert after is not None
    assert 0 == before.busy_s < after.busy_s
    assert after.memory_bytes == torch.cuda.mem_get_info()[1]
    assert 0 < after.reserved_bytes <= after.memory_bytes - after.free_bytes


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_graph_that_becomes_garbage_amid_the_capture_of_another_does_not_break_it() -> None:
    counter = torch.zeros(1, device="cuda")
    pool = torch.cuda.graph_pool_handle()

    def count() -> None:
        counter.add_(1)

    held: list[object] = [prepared._captured(pool, count)]
    held.append(held)  # a cycle, which only the collector takes apart
    cycles = [held]
    del held

    def launch() -> None:
        if torch.cuda.is_current_stream_capturing():
            cycles.clear()
            _ = [[] for _ in range(1_000)]  # type: ignore[var-annotated]  # so that a collection is due
        count()

    thresholds = gc.get_threshold()
    gc.set_threshold(10, 1, 1)
    try:
        replay = prepared._captured(pool, launch)
    finally:
        gc.set_threshold(*thresholds)
    before = counter.item()
    replay()
    assert counter.item() == before + 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_batch_beyond_the_gpus_memory_is_split_and_counted_and_nothing_is_lost(checkpoint: Checkpoint) -> None:
    rng = np.random.default_rng(2)
    sequences = [encoded(rng.integers(3, 8, length).tolist()) for length in rng.integers(10, 30, 20_000)]
    roomy = Scorer(checkpoint, device="cuda", batch_tokens=100_000, cache_size=0)
    expected = roomy.score(sequences)
    cramped = Scorer(checkpoint, device="cuda", batch_tokens=10_000_000, cache_size=0)
    torch.cuda.empty_cache()
    reserved, total = torch.cuda.memory_reserved(), torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction((reserved + (64 << 20)) / total)
    try:
        results = cramped.score(sequences)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert cramped.batches_split > 0
    assert roomy.batches_split == 0
    for scores, right in zip(results, expected, strict=True):
        assert scores.surprises.tobytes() == right.surprises.tobytes()
        assert scores.final == right.final


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("spare_mib", [0, 2, 4, 8, 16])
def test_a_capture_beyond_the_gpus_memory_leaves_the_scorer_as_it_was(
    spare_mib: int, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The allocations of a capture fail at its first launch, or later, or not at all."""
    monkeypatch.setattr(prepared, "_USES_BEFORE_ANOTHER_CAPTURE", 4)
    rng = np.random.default_rng(3)
    sequences = [encoded(rng.integers(3, 8, 20).tolist()) for _ in range(300)]
    undisturbed, scorer = (Scorer(checkpoint, device="cuda", cache_size=0) for _ in range(2))
    expected = [(each.surprises.tobytes(), each.scores.tobytes(), each.final) for each in undisturbed.score(sequences)]
    scorer.score(sequences)
    model = scorer._inference._prepared
    assert model is not None
    shapes, capture, stream = model._shapes, model._shapes._capture, torch.cuda.current_stream()
    assert capture is not None
    tried = 0

    def in_little_memory(launch: Launch) -> Launch:
        nonlocal tried
        tried += 1
        torch.cuda.empty_cache()
        room = torch.cuda.memory_reserved() + (spare_mib << 20)
        torch.cuda.set_per_process_memory_fraction(room / torch.cuda.mem_get_info()[1])
        try:
            return capture(launch)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)

    def scored() -> list[tuple[bytes, bytes, float]]:
        return [(each.surprises.tobytes(), each.scores.tobytes(), each.final) for each in scorer.score(sequences)]

    allocated = torch.cuda.memory_allocated()
    shapes._capture = in_little_memory
    assert scored() == expected
    assert tried == 1
    assert scorer.batches_split == 1 or spare_mib
    assert torch.cuda.current_stream() == stream
    if scorer.batches_split:
        assert not any(shape._replay for shape in shapes._shapes.values() if shape._uses > 1)
        torch.cuda.empty_cache()
        assert torch.cuda.memory_allocated() <= allocated + (1 << 20), "what was captured in part is kept"
    # Memory is there again: the same shapes are captured, in the same pool, and replayed.
    shapes._capture = capture
    for _ in range(6):
        assert scored() == expected
    assert any(shape._replay for shape in shapes._shapes.values())
