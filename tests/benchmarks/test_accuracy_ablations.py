"""`benchmarks.accuracy.ablations`: each variant does one thing otherwise, and what is written of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.accuracy import datasets, results, sizes
from benchmarks.accuracy.ablations import training_options
from benchmarks.accuracy.detectors import Product
from benchmarks.accuracy.protocols import Protocol, random_split
from benchmarks.accuracy.sizes import Cost, Pass, Trained
from benchmarks.accuracy.tasks import Task
from benchmarks.accuracy.variants import (
    GAPS,
    IdAlone,
    MeanPooled,
    WithTimeGaps,
    paired,
    templates,
    variants,
    with_counts,
    without_counts,
)
from detector.model.model import DetectorModel, ModelConfig
from detector.text.vocabulary import BOS, EOS, N_SPECIAL
from detector.text.word_hashes import TEXT_BUCKETS, TEXT_FEATURES
from detector.training.train import TrainingOptions
from tests.benchmarks.sessions import blocks
from tests.shared import needs_shared

DATA = blocks(200, 60)
OPTIONS = TrainingOptions(next_token_steps=12, classifier_steps=12, batch_tokens=512, validations=2, cuts=50)
CONFIG = ModelConfig(8, d_model=16, n_layers=1, d_state=4, headdim=8, mimo_rank=2)
SESSIONS = ([BOS, 3, 4, 5, 3, EOS], [BOS, 7, EOS], [BOS, EOS], [BOS, 6, 6, 4, EOS])


@pytest.fixture(scope="module", params=[True, False], ids=["labelled", "normals"])
def task(request: pytest.FixtureRequest) -> Task:
    return Task.of(Protocol("", lambda: DATA, random_split, labelled=request.param), 0)


def model(of: type[DetectorModel], texts: int = 0) -> DetectorModel:
    """With weights that are the same for each class; random ones in the heads, which begin without any."""
    features = np.random.default_rng(texts).integers(1, TEXT_BUCKETS, (CONFIG.vocabulary_size, TEXT_FEATURES))
    torch.manual_seed(0)
    made = of(CONFIG, torch.from_numpy(features))
    with torch.no_grad():
        made.class_head.weight.copy_(torch.linspace(-1, 1, CONFIG.d_model))
    return made.eval()


@torch.inference_mode()
def outputs(of: DetectorModel, sessions: tuple[list[int], ...]) -> tuple[Tensor, Tensor]:
    bounds = np.cumsum([0, *map(len, sessions)])
    return of(torch.tensor([token for each in sessions for token in each]), torch.from_numpy(bounds.astype(np.int32)))


def pairs(sessions: tuple[list[int], ...], gap: int) -> tuple[list[int], ...]:
    return tuple([N_SPECIAL + (t - N_SPECIAL) * GAPS + gap if t >= N_SPECIAL else t for t in each] for each in sessions)


def test_the_base_is_the_product_to_the_bit(task: Task) -> None:
    product = Product("tiny", "cpu", OPTIONS).run(task, 3)
    base = variants("tiny", "cpu", OPTIONS)["base"].run(task, 3)
    np.testing.assert_array_equal(base.validation, product.validation)
    np.testing.assert_array_equal(base.test, product.test)


def test_a_score_without_counts_follows_from_the_logit_alone_or_without_labels_from_the_surprise(task: Task) -> None:
    found = variants("tiny", "cpu", OPTIONS)
    learnt = found["base"].learn(task, 3)
    assert found["without-counts"].learn(task, 3) is learnt
    rng = np.random.default_rng(0)
    # Logits that tell nothing leave room for counts that tell everything.
    judged = [replace(each, logits=rng.normal(size=len(each.counts))) for each in (learnt.held_out, learnt.test)]
    unjudged = [replace(each, unusual=np.zeros_like(each.unusual), seen=np.zeros_like(each.seen)) for each in judged]
    without, same = (without_counts(*parts, classifier=task.labelled) for parts in (judged, unjudged))
    np.testing.assert_array_equal(without, same)
    counted, uncounted = (with_counts(*parts, classifier=task.labelled) for parts in (judged, unjudged))
    assert (counted != uncounted).any()
    said = judged[1].logits if task.labelled else judged[1].highest
    assert (np.diff(without[np.argsort(said)]) >= 0).all()


@pytest.mark.parametrize(("title", "labelled"), [("mean-pooling", False), ("base", True)])
def test_a_variant_of_the_classifier_says_nothing_new_without_labels(title: str, labelled: bool) -> None:
    protocol = Protocol("", lambda: DATA, random_split, labelled=False)
    assert variants("tiny", "cpu", OPTIONS)[title].fits(protocol) is labelled


def test_an_id_alone_enters_without_its_text() -> None:
    for first, other in zip(*(outputs(model(IdAlone, texts), SESSIONS) for texts in (1, 2)), strict=True):
        assert torch.equal(first, other)
    assert not torch.equal(*(outputs(model(DetectorModel, texts), SESSIONS)[0] for texts in (1, 2)))
    assert not model(IdAlone).text_embedding.weight.requires_grad


def test_a_mean_pooled_logit_is_the_mean_over_its_own_session_so_far() -> None:
    next_logits, logits = outputs(model(DetectorModel), SESSIONS)
    pooled_next, pooled = outputs(model(MeanPooled), SESSIONS)
    assert torch.equal(pooled_next, next_logits)
    expected = [each.cumsum(0) / torch.arange(1, len(each) + 1) for each in logits.split([len(s) for s in SESSIONS])]
    torch.testing.assert_close(pooled, torch.cat(expected))


def test_pairs_of_a_template_share_its_probability_and_the_class_depends_on_the_gap() -> None:
    timed = model(WithTimeGaps)
    next_logits, classes = outputs(timed, pairs(SESSIONS, 3))
    assert (
        next_logits.shape[1] == timed.config.vocabulary_size == N_SPECIAL + (CONFIG.vocabulary_size - N_SPECIAL) * GAPS
    )
    assert not torch.allclose(classes, outputs(timed, pairs(SESSIONS, 5))[1])
    timed.gap_embedding.weight.data.zero_()
    log_p = outputs(timed, pairs(SESSIONS, 3))[0].log_softmax(1)
    expected, logits = outputs(model(DetectorModel), SESSIONS)
    shared = log_p[:, N_SPECIAL:].exp().unflatten(1, (-1, GAPS)).sum(2)
    torch.testing.assert_close(torch.cat((log_p[:, :N_SPECIAL].exp(), shared), 1), expected.softmax(1))
    torch.testing.assert_close(outputs(timed, pairs(SESSIONS, 3))[1], logits)


def test_gaps_double_from_one_group_to_the_next_and_unknown_lines_have_none() -> None:
    seconds = np.cumsum([0, 0, 1, 2, 3, 6, 7, 10**7, -5])
    tokens = np.array([3, 3, 3, 4, 4, 4, -77, 5, 5])
    found = paired(tokens, seconds * 1000)
    np.testing.assert_array_equal(templates(found), tokens)
    known = tokens >= N_SPECIAL
    gaps = (found - N_SPECIAL) % GAPS
    assert gaps[known].tolist() == [0, 0, 1, 1, 2, 2, GAPS - 1, 0]
    assert found[6] == -77


@needs_shared
def test_every_event_of_a_raw_session_has_a_time() -> None:
    data, times = datasets.hdfs_raw(), datasets.hdfs_raw_times()
    assert [len(times[key]) for key in data.keys] == [len(events) for events in data.sessions]
    line = data.sessions[0][0]
    moment = np.datetime64(int(times[data.keys[0]][0]), "ms").astype("datetime64[s]").item()
    assert data.texts[line].startswith(f"{moment:%y%m%d %H%M%S} ")


@needs_shared
def test_the_variant_with_time_gaps_judges_counts_of_templates() -> None:
    whole = datasets.hdfs_raw()
    few = whole.select(np.arange(0, len(whole), 10), normal_weight=1.0)
    of_few = Task.of(Protocol("", lambda: few, random_split, labelled=True), 0)
    found = variants("tiny", "cpu", replace(OPTIONS, next_token_steps=2, classifier_steps=2))
    timed, base = (found[title].learn(of_few, 0) for title in ("time-gaps", "base"))
    np.testing.assert_array_equal(timed.test.seen, base.test.seen)
    np.testing.assert_array_equal(timed.test.unusual, base.test.unusual)
    assert (timed.test.highest != base.test.highest).any()


def test_training_options_are_named_and_everything_else_refused() -> None:
    assert training_options(["passes=1", "learning_rate=0.01"]) == TrainingOptions(passes=1, learning_rate=0.01)
    with pytest.raises(ValueError, match="'depth' is no training option; allowed: next_token_steps"):
        training_options(["depth=3"])
    with pytest.raises(ValueError, match="'passes=many': its value is not JSON"):
        training_options(["passes=many"])


def run(detector: str, seed: int, misses: int, false_alarms: int) -> results.Result:
    point = {"f1": 0.9, "misses": misses, "false_alarms": false_alarms}
    at = dict.fromkeys(("warning", "critical", "validation", "best"), point)
    return {
        "title": "HDFS",
        "detector": detector,
        "seed": seed,
        "command": "the command",
        "headline": "validation",
        "seconds": 60.0,
        "figures": {view: {"auprc": 0.5 + seed / 10, "at": at} for view in results.VIEWS},
    }


def test_a_comparison_shows_the_errors_of_each_seed() -> None:
    text = results.comparison([run("tiny-base", 0, 3, 1), run("tiny-base", 2, 5, 0), run("tiny-rank-1", 0, 9, 9)])
    assert "### HDFS" in text
    assert "| tiny-base | 0, 2 | 3 + 1, 5 + 0 | 0.9000 |" in text
    assert "0.6000 (0.5000 to 0.7000)" in text
    assert "| tiny-rank-1 | 0 | 9 + 9 |" in text


def test_the_table_of_sizes_has_every_result_the_smallest_model_first(tmp_path: Path) -> None:
    for size, parameters in (("small", 2_000_000), ("tiny", 327_000), ("reference", 4_900_000)):
        trained = Trained(parameters, checkpoint_bytes=1_400_000, tokens_per_s=17_100.0, memory_bytes=300_000_000)
        passes = [Pass(sessions=1024, tokens=22_000, seconds=0.4)]
        Cost(size, "a GPU", "float32", 2048, trained, passes, 76_000_000).write(tmp_path)
    rows = sizes.table(tmp_path).splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| tiny", "| small", "| reference"]
    assert "1,024 in 400.0 ms (55.0 k)" in rows[0]
