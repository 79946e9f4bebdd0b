"""What the pipeline asks of the scorer: nothing of which no output can come."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from detector.scoring.scores import EventScores
from tests.worker.small_worker import INPUT, OddScorer
from tests.worker.small_worker import settings as small_settings
from worker.observability.metrics import Metrics
from worker.processing.outputs import Output
from worker.processing.pipeline import Pipeline
from worker.processing.records import Partition, Records

P0 = Partition(INPUT, 0)


class AskedScorer(OddScorer):
    """Keeps what it was asked: of complete sessions, and of some that go on, in words."""

    def __init__(self) -> None:
        super().__init__()
        self.complete: list[str] = []
        self.unfinished: list[str] = []

    def score(
        self,
        sequences: Sequence[bytes],
        unfinished: Sequence[bytes] = (),
        after_pass: Callable[[], None] = lambda: None,
    ) -> list[EventScores]:
        for asked, kept in ((sequences, self.complete), (unfinished, self.unfinished)):
            for sequence in asked:
                tokens = np.frombuffer(sequence, np.int64).tolist()
                kept.append(" ".join(self.vocabulary.text(token).removeprefix("<*> ") for token in tokens))
        return super().score(sequences, unfinished, after_pass)


def processed(lines: Sequence[bytes], size: int, *overrides: str) -> tuple[AskedScorer, list[Output]]:
    """What was asked, and what came, of lines in batches of a size."""
    scorer = AskedScorer()
    pipeline = Pipeline(small_settings(*overrides), scorer, Metrics())
    pipeline.open(P0)
    outputs: list[Output] = []
    for start in range(0, len(lines), size):
        part = lines[start : start + size]
        outputs += pipeline.process([Records(INPUT, 0, [*range(start, start + len(part))], part, None, None, None)])
    return scorer, outputs


def test_final_scores_are_asked_of_closed_sessions_only() -> None:
    lines = [b"a open", b"b open", b"a read", b"a close", b"b odd"]
    scorer, outputs = processed(lines, 1, "sessions.max_events=3")
    assert scorer.complete == ["open read close"]
    assert scorer.unfinished == ["open", "open", "open read", "open odd"]
    assert [output.key for output in outputs] == [b"a"]
    scorer, _ = processed(lines, 1, "sessions.max_events=3", "scoring.early=false")
    assert (scorer.complete, scorer.unfinished) == (["open read close"], [])


@pytest.mark.parametrize("adaptive", [(), ("scoring.adaptive={target_rate: 0.05}",)], ids=["fixed", "adaptive"])
def test_an_open_session_that_has_alarmed_is_not_scored_again_before_it_closes(adaptive: tuple[str, ...]) -> None:
    lines = [b"a odd", b"a odd", b"b read", b"a odd", b"a read", b"a odd"]
    scorer, outputs = processed(lines, 1, "sessions.max_events=5", *adaptive)
    assert scorer.unfinished == ["odd", "read"]
    assert scorer.complete == ["odd odd odd read odd"]
    assert [(output.key, output.severity) for output in outputs] == [(b"a", "critical"), (b"a", "warning")]


def test_a_session_that_has_only_warned_is_scored_again() -> None:
    lines = [b"a read", b"a odd", b"a odd", b"a odd", b"a odd", b"a odd"]
    thresholds = ("scoring.warning=0.5", "scoring.critical=0.75")
    scorer, outputs = processed(lines, 1, *thresholds)
    assert scorer.unfinished == ["read", "read odd", "read odd odd", "read odd odd odd"]
    assert [output.severity for output in outputs] == ["warning", "critical"]


@pytest.mark.parametrize("adaptive", [(), ("scoring.adaptive={target_rate: 0.05}",)], ids=["fixed", "adaptive"])
def test_what_is_left_out_changes_no_output_and_no_state(adaptive: tuple[str, ...]) -> None:
    """In one batch every session is closed or scored once; event by event most are left out."""
    rng = np.random.default_rng(0)
    lines = [
        b"%c %b" % (key, (b"odd", b"read", b"open")[word])
        for key, word in zip(rng.integers(97, 105, 3_000).tolist(), rng.integers(0, 3, 3_000).tolist(), strict=True)
    ]
    rules = ("scoring.warning=0.4", "scoring.critical=0.6", "sessions.max_events=20", *adaptive)
    _, at_once = processed(lines, len(lines), *rules)
    _, in_steps = processed(lines, 1, *rules)
    assert [output[:3] for output in in_steps] == [output[:3] for output in at_once]
    assert {output.severity for output in at_once} == {"normal", "warning", "critical"}
