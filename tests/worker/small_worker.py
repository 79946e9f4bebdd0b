"""A worker on the broker in memory, with lines, a vocabulary and a scorer small enough to reason about."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

import numpy as np
import orjson

from detector.reading import ReadingRecord
from detector.scoring.scores import EventScores, Scores, Sequences
from detector.scoring.session_pattern import SessionPatterns
from detector.text.vocabulary import Vocabulary
from worker.delivery.deadline import Deadline
from worker.delivery.loop import Worker
from worker.delivery.memory import MemoryBroker, MemorySink, MemorySource
from worker.delivery.outage import Outage
from worker.delivery.protocols import NoReloads, Reloads
from worker.delivery.restore import StateStore
from worker.observability.metrics import Metrics
from worker.observability.status import WorkerStatus
from worker.processing.feedback import Feedback
from worker.processing.pipeline import Pipeline
from worker.processing.records import Partition, Records
from worker.settings.document import Settings, load_settings

INPUT, SCORES, DEAD, STATE = "raw-logs", "log-anomaly-scores", "log-anomaly-dead-letters", "logmamba-state"
FEEDBACK = "logmamba-feedback"
VOCABULARY = Vocabulary(("<*> open", "<*> read", "<*> odd", "<*> close"))
ODD = VOCABULARY.token_of("<*> odd")


Result = TypeVar("Result")


class OddScorer:
    """The score grows with the share of "odd" events so far: a pure function of the tokens, easy to foresee."""

    checkpoint = "sha256:odd"
    trained_score_shares = None
    trained_sketch: list[int] | None = None
    cache_hits = cache_misses = batches_split = 0
    odd = ODD

    def __init__(self, vocabulary: Vocabulary = VOCABULARY, reading: ReadingRecord | None = None) -> None:
        self.vocabulary = vocabulary
        self.reading = reading

    def score(
        self,
        sequences: Sequence[bytes],
        unfinished: Sequence[bytes] = (),
        after_pass: Callable[[], None] = lambda: None,
    ) -> list[EventScores]:
        results: list[EventScores] = []
        for sequence in (*sequences, *unfinished):
            odd = (np.frombuffer(sequence, np.int64) == self.odd).astype(np.float32)
            share = np.cumsum(odd) / np.arange(1, len(odd) + 1)
            final = float(share[-1]) if len(results) < len(sequences) else np.nan
            results.append(EventScores(odd + 1, share.astype(np.float32), final))
            after_pass()
        return results

    def score_columns(
        self, sequences: Sequences, complete: int, after_pass: Callable[[], None] = lambda: None
    ) -> Scores:
        """As the detector's, by `score`."""
        one_by_one = [each.tobytes() for each in np.split(sequences.tokens, sequences.ends)[:-1]]
        return Scores.of(self.score(one_by_one[:complete], one_by_one[complete:], after_pass))

    def reason(self, sequence: bytes) -> None:
        """It has none."""

    def pattern(self, sequence: bytes) -> str | None:
        """As of a checkpoint with labels."""
        return SessionPatterns(self.vocabulary, None).of(np.frombuffer(sequence, np.int64))

    def pattern_so_far(self, sequence: bytes) -> str:
        """Likewise."""
        return SessionPatterns(self.vocabulary, None).so_far(np.frombuffer(sequence, np.int64))

    def gpu_usage(self) -> None:
        """It uses none."""


class Clock:
    """Seconds that pass only when a test says so, or a little at each look."""

    def __init__(self, tick_s: float = 0.01) -> None:
        self.now = 0.0
        self.tick_s = tick_s

    def __call__(self) -> float:
        self.now += self.tick_s
        return self.now

    def sleep(self, seconds: float) -> None:
        """As `time.sleep`, in no time."""
        self.now += seconds


def settings(*overrides: str) -> Settings:
    return load_settings(None, [r"sessions.key={regex: '^\w+'}", "worker.commit_interval=50ms", *overrides])


def memory_broker(partitions: int = 1) -> MemoryBroker:
    return MemoryBroker({INPUT: partitions, SCORES: 1, DEAD: 1, STATE: 2, FEEDBACK: 1})


class ScriptedSource(MemorySource):
    """Takes a step of a script at the beginning of each poll; `over` from the last one on."""

    def begin(self, script: Iterable[Callable[[], object] | None]) -> None:
        self._steps = [*script]

    def over(self) -> bool:
        return not self._steps

    def poll(self, max_records: int, timeout_s: float) -> list[Records]:
        if (step := self._steps.pop(0)) is not None:
            step()
        return super().poll(max_records, timeout_s)


class AtOnce(Executor):
    """Does what it gets before anything else is done."""

    def submit(self, work: Callable[..., Result], /, *args: Any, **named: Any) -> Future[Result]:
        future: Future[Result] = Future()
        future.set_result(work(*args, **named))
        return future


class SmallWorker:
    """A worker process's worth of objects; `run` takes one step of the script at each turn of the loop."""

    def __init__(
        self,
        broker: MemoryBroker,
        use: Settings,
        partitions: Iterable[int] = (0,),
        clock: Clock | None = None,
        vocabulary: Vocabulary = VOCABULARY,
        scorer: OddScorer | None = None,
        reloads: Reloads | None = None,
        background: Executor | None = None,
        feedback: Feedback | None = None,
    ) -> None:
        self.clock = clock or Clock()
        self.source = ScriptedSource(broker, assign_next=[Partition(INPUT, number) for number in partitions])
        self.sink = MemorySink(broker, clock=self.clock, sleep=self.clock.sleep)
        scorer, metrics = scorer or OddScorer(vocabulary), Metrics(clock=self.clock)
        pipeline = Pipeline(use, scorer, metrics, feedback=feedback)
        store = StateStore(
            use,
            vocabulary=scorer.vocabulary,
            decoder=pipeline.decoder,
            reader=broker,
            feedback=pipeline.feedback_version,
        )
        self.worker = Worker(
            use,
            source=self.source,
            sink=self.sink,
            store=store,
            pipeline=pipeline,
            metrics=metrics,
            status=WorkerStatus("app", "w0", "", {}, scorer.checkpoint, scorer.vocabulary.sha256),
            outage=Outage(self.clock),
            revoke_budget_s=10,
            clock=self.clock,
            sleep=self.clock.sleep,
            reloads=reloads or NoReloads(),
            background=background or AtOnce(),
        )

    def run(self, script: Iterable[Callable[[], object] | None]) -> None:
        """One turn of the loop after each step, then a clean stop."""
        self.source.begin(script)
        self.worker.run(self.source.over)

    def crash_after(self, script: Iterable[Callable[[], object] | None]) -> None:
        """One turn of the loop after each step, then gone, as by kill -9: what is open never commits."""

        class Gone(BaseException):
            pass

        def vanish() -> None:
            raise Gone

        try:
            self.run([*script, vanish])
        except Gone:
            self.sink.takes_s.clear()
            self.sink.abort(Deadline())  # what the transaction coordinator does for a dead producer


def outputs(broker: MemoryBroker) -> list[dict[str, Any]]:
    """Committed score records."""
    return [orjson.loads(message.value or b"") for message in broker.visible(SCORES)]
