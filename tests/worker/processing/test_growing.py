"""Long sessions that are scored as they grow give the records that they give from their start, byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from detector.checkpoint import Checkpoint
from detector.model.devices import Precision
from detector.scoring.calibration import Combination
from detector.scoring.scorer import Scorer
from detector.scoring.scores import Growth
from tests.detector.small_models import random_checkpoint
from tests.worker.small_worker import INPUT
from tests.worker.small_worker import settings as small_settings
from worker.observability.metrics import Metrics
from worker.processing.outputs import Output
from worker.processing.pipeline import Pipeline
from worker.processing.records import Partition, Records

TEXTS = [
    "Receiving block 7 from 10.0.0.1",
    "PacketResponder 7 for block 3 terminating",
    "Received block 7 of size 67108864",
    "Deleting block 7 file 3",
    "Verification succeeded for 7",
    "something that nobody has seen",
]
EVENTS = 400  # of a session


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    made = random_checkpoint(tmp_path_factory.mktemp("growing") / "model")
    # Scores that rise slowly, over hundreds of events.
    early = Combination(bias=-3.0, logit_weight=1.0, level_weight=0.4, usual_weight=0.0)
    calibration = replace(made.manifest.calibration, early=early)
    return replace(made, manifest=made.manifest.model_copy(update={"calibration": calibration}))


def stream(seed: int) -> list[bytes]:
    """Lines of two long sessions after each other, and of short ones between them."""
    random, lines = Random(seed), []
    for at in range(2 * EVENTS + 200):
        weights = [60, 40, 30, 1 + at // 100, 1 + at // 60, 0.3]
        key = random.choices(["host", "other", f"s{at // 40}"], [6, 4, 3])[0]
        lines.append(f"{key} {random.choices(TEXTS, weights)[0]}".encode())
    return lines


class Told:
    """A worker's part that makes outputs of lines, in batches, and what came of them."""

    def __init__(self, scorer: Scorer, *overrides: str) -> None:
        self.scorer, self.outputs = scorer, list[Output]()
        self._settings = small_settings(
            f"sessions.max_events={EVENTS}", "scoring.warning=0.435", "scoring.critical=0.458", *overrides
        )
        self._begin()

    def _begin(self) -> None:
        self.metrics = Metrics()
        self._pipeline = Pipeline(self._settings, self.scorer, self.metrics)
        self._pipeline.open(Partition(INPUT, 0))

    def take(self, lines: Sequence[bytes], first: int, size: int) -> None:
        for start in range(0, len(lines), size):
            part = lines[start : start + size]
            offsets = [*range(first + start, first + start + len(part))]
            self.outputs += self._pipeline.process([Records(INPUT, 0, offsets, part, None, None, None)])

    def restart(self, scorer: Scorer) -> None:
        """Go on from a snapshot, in another process."""
        partition = Partition(INPUT, 0)
        state, position = self._pipeline.state(partition), self._pipeline.position(partition)
        self.scorer = scorer
        self._begin()
        self._pipeline.open(partition, position, position, *state)

    @property
    def records(self) -> list[tuple[str | None, bytes | None, bytes | None]]:
        return [(output.severity, output.key, output.value) for output in self.outputs]


def long_sessions(told: Told) -> dict[str, float | None]:
    """How often one was scored, by whether it had to start over."""
    value = told.metrics.registry.get_sample_value
    return {each: value("logmamba_long_sessions_scored_total", {"started_over": each}) for each in ("no", "yes")}


def test_long_sessions_that_have_lost_their_state_are_counted(checkpoint: Checkpoint) -> None:
    lines = [b"%s %s" % (key, TEXTS[at % 3].encode()) for at in range(150) for key in (b"host", b"other")]
    told = Told(Scorer(checkpoint, device="cpu", growing=1), "scoring.warning=0.9", "scoring.critical=0.95")
    told.take(lines[:280], 0, 280)
    assert long_sessions(told) == {"no": 2, "yes": 0}
    told.take(lines[280:], 280, 2)
    assert long_sessions(told) == {"no": 2 + 10, "yes": 10}, "there is room for one, which stays as both are asked for"
    told.restart(Scorer(checkpoint, device="cpu"))
    told.take(lines[:2], 300, 2)
    assert long_sessions(told) == {"no": 0, "yes": 2}


def early(told: Told) -> set[tuple[str | None, bytes | None]]:
    return {(severity, key) for severity, key, value in told.records if value is not None and b'"early"' in value}


def batches(lines: Sequence[bytes], random: Random) -> Iterator[tuple[int, Sequence[bytes]]]:
    first = 0
    while first < len(lines):
        size = random.choice([1, 1, 3, 10, 60])
        yield first, lines[first : first + size]
        first += size


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("adaptive", [(), ("scoring.adaptive={target_rate: 0.05}",)], ids=["fixed", "adaptive"])
def test_records_are_those_from_the_start_however_batches_are_cut(
    checkpoint: Checkpoint, precision: Precision, adaptive: tuple[str, ...]
) -> None:
    lines = stream(1)
    from_start = Told(Scorer(checkpoint, device="cpu", precision=precision, growing=0), *adaptive)
    from_start.take(lines, 0, 50)
    growing = Told(Scorer(checkpoint, device="cpu", precision=precision, growing=2), *adaptive)
    for first, batch in batches(lines, Random(1)):
        growing.take(batch, first, len(batch))
    assert growing.records == from_start.records
    assert {("warning", b"host"), ("critical", b"host")} <= early(from_start)


def test_records_are_the_same_after_restarts_and_by_a_scorer_that_has_forgotten(checkpoint: Checkpoint) -> None:
    lines = stream(2)
    from_start = Told(Scorer(checkpoint, device="cpu", growing=0))
    from_start.take(lines, 0, len(lines))
    growing = Told(Scorer(checkpoint, device="cpu", growing=1))
    random = Random(2)
    for first, batch in batches(lines, random):
        growing.take(batch, first, len(batch))
        if random.random() < 0.1:
            growing.restart(Scorer(checkpoint, device="cpu", growing=random.choice([0, 1, 8])))
    assert growing.records == from_start.records
    assert early(from_start)


def test_of_a_long_open_session_only_new_events_are_looked_at(checkpoint: Checkpoint) -> None:
    scorer = Scorer(checkpoint, device="cpu")
    told = Told(scorer, "scoring.warning=0.9", "scoring.critical=0.95")
    lines = [b"host " + TEXTS[at % 3].encode() for at in range(EVENTS)]
    told.take(lines[:200], 0, 200)
    asked: list[int] = []
    go_on = scorer.go_on

    def watched(growth: Growth, after_pass: Callable[[], None] = lambda: None) -> np.ndarray:
        asked.append(len(growth.sequences.tokens))
        return go_on(growth, after_pass)

    scorer.go_on = watched  # type: ignore[method-assign]
    measured = scorer.events_scored
    told.take(lines[200:-1], 200, 1)
    assert asked == [1] * (EVENTS - 201)
    told.take(lines[-1:], EVENTS - 1, 1)
    assert scorer.events_scored == measured + EVENTS - 200
    assert long_sessions(told) == {"no": EVENTS - 200, "yes": 0}
    assert [key for _, key, _ in told.records] == [b"host"]
