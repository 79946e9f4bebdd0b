"""What does an event cost against the length of its open session, scored as the session grows or from its start?

Open sessions of one length, no two alike, get an event each (or several) with every batch that goes through
`Pipeline.process`, with early scores on and without a client; each session has been looked at up to there, as by a
worker that has been running. `grown` is a scorer that goes on with long sessions from what it knows of them, `from the
start` one that does not (`model.growing_sessions: 0`), as all were before there was such a thing. Both take turns.

The model is an untrained one of the size asked for, whose scores never tell of anything: what an event costs does not
depend on what a model has learnt. Beyond `LONG` events the lengths are spread over a segment, so that sessions are as
far as can be from where states are carried; shorter ones are all of the length given. Figures are CPU time on a CPU
and, since a CPU waits for it, wall time on a GPU; the medians of the rounds. `ratio` is to sessions of the first
length. Each line is printed once it is measured. On a GPU a first run compiles kernels for a minute or two, in the
rounds before those that count: run it once with `--rounds 1 --lengths 20 5000` where time is short.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from statistics import median
from typing import Final

import numpy as np
import torch

from benchmarks.curves import STREAM_TIME, Lines
from benchmarks.pipeline import SETTINGS, TOPIC
from detector.checkpoint import Checkpoint, demo_checkpoint, load
from detector.model.model import DetectorModel, ModelConfig
from detector.scoring.calibration import Combination
from detector.scoring.scorer import Scorer
from detector.scoring.scores import LONG
from worker.observability.metrics import Metrics
from worker.processing.clock import ClockState
from worker.processing.pipeline import Pipeline
from worker.processing.records import Partition, Records
from worker.processing.session_state import SessionsState
from worker.settings.document import load_settings

FIRST: Final = Partition(TOPIC, 0)
WARM_UP: Final = 3  # rounds


@dataclass(frozen=True)
class Cost:
    """Of an event, in microseconds; ratios to sessions of the first length."""

    length: int
    events: int
    sessions: int
    grown_us: float
    from_start_us: float
    grown_ratio: float
    from_start_ratio: float


def untrained(size: str) -> Checkpoint:
    """A checkpoint of that size, for lines as those of the demo, whose early scores are always the same."""
    shipped = load(demo_checkpoint())
    config = ModelConfig.preset(size, len(shipped.vocabulary))  # type: ignore[arg-type]
    torch.manual_seed(0)
    model = DetectorModel(config, torch.from_numpy(shipped.vocabulary.template_features()))
    never = Combination(bias=-3.0, logit_weight=0.0, level_weight=0.0, usual_weight=0.0)
    calibration = replace(shipped.manifest.calibration, early=never)
    manifest = shipped.manifest.model_copy(update={"model": config, "calibration": calibration})
    return replace(shipped, manifest=manifest, weights=model.state_dict(), judge=None)


class Run:
    """A pipeline with open sessions of one length."""

    def __init__(self, scorer: Scorer, lines: Lines, length: int, sessions: int, clock: Callable[[], float]) -> None:
        self._lines, self._clock, self._random = lines, clock, Random(length)
        limits = "sessions.max_events=1000000", "sessions.gap=1h", "model.batch_tokens=1000002"
        settings = load_settings(None, [*SETTINGS, *limits, "scoring.early=true"])
        self._pipeline = Pipeline(settings, scorer, Metrics())
        self._keys = [self._random.getrandbits(62) for _ in range(sessions)]
        lengths = length + np.arange(sessions) * (LONG if length > LONG else 0) // sessions
        events = int(lengths.sum())
        tokens = np.random.default_rng(length).choice(lines.tokens, events)
        place = np.arange(events) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        offsets = np.repeat(np.arange(sessions), lengths) + place * sessions
        times = np.full(sessions, STREAM_TIME)
        state = SessionsState(
            ClockState(STREAM_TIME),
            [f"blk_{key}" for key in self._keys],
            lengths,
            times,
            times,
            np.zeros(sessions, np.int64),
            lengths,
            tokens.astype(np.int64),
            offsets,
            np.full(events, STREAM_TIME),
        )
        self._end = int(offsets.max()) + 1
        self._pipeline.open(FIRST, self._end, self._end, state)

    def measure(self, events: int) -> float:
        """Microseconds that an event takes, where each session gets so many at once."""
        picked = [key for key in self._keys for _ in range(events)]
        self._random.shuffle(picked)
        values: list[bytes | None] = [
            self._lines.line(self._random.randrange(len(self._lines.tokens)), key) for key in picked
        ]
        offsets = [*range(self._end, self._end + len(values))]
        records = Records(TOPIC, 0, offsets, values, None, [STREAM_TIME] * len(values), None)
        self._end += len(values)
        begun = self._clock()
        outputs = self._pipeline.process([records])
        taken = self._clock() - begun
        assert not outputs, "sessions that nothing is told of were to be scored, not told of"
        return 1e6 * taken / len(values)


def curve(
    scorers: tuple[Scorer, Scorer], lengths: list[int], sessions: int, events: int, rounds: int
) -> Iterator[Cost]:
    """Both scorers in turns, one length after the other."""
    on_gpu = scorers[0].gpu_usage() is not None
    clock = time.perf_counter if on_gpu else time.process_time
    lines = Lines(scorers[0])
    first: tuple[float, ...] | None = None
    for length in lengths:
        runs = [Run(scorer, lines, length, sessions, clock) for scorer in scorers]
        figures: tuple[list[float], list[float]] = ([], [])
        for turn in range(rounds + WARM_UP):
            for run, own in zip(runs, figures, strict=True):
                figure = run.measure(events)
                if turn >= WARM_UP:  # before, sessions are taken in, kernels compiled and graphs captured
                    own.append(figure)
        grown, whole = map(median, figures)
        first = first or (grown, whole)
        yield Cost(length, events, sessions, grown, whole, grown / first[0], whole / first[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
    parser.add_argument("--size", default="small", choices=["tiny", "small", "reference"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[20, 40, 60, 90, 115, 500, 5_000])
    parser.add_argument("--sessions", nargs="+", type=int, default=[40])
    parser.add_argument("--events", nargs="+", type=int, default=[1], help="of each session in a batch")
    parser.add_argument("--growing", type=int, help="slots; by default enough for all")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()

    if arguments.device == "cpu":
        torch.set_num_threads(1)
    checkpoint = untrained(arguments.size)
    costs: dict[str, list[Cost]] = {}
    heading = "precision", "sessions", "events each", "length", "grown", "ratio", "from the start", "ratio"
    print(f"an event of an open session, µs ({arguments.size}, {arguments.device})")
    print(*(f"{name:>14}" for name in heading), flush=True)
    for precision in arguments.precision:
        for sessions in arguments.sessions:
            for events in arguments.events:
                first, second = (
                    Scorer(checkpoint, device=arguments.device, precision=precision, cache_size=0, growing=growing)
                    for growing in (arguments.growing or 2 * sessions * len(arguments.lengths), 0)
                )
                for cost in curve((first, second), arguments.lengths, sessions, events, arguments.rounds):
                    costs.setdefault(precision, []).append(cost)
                    figures = cost.grown_us, cost.grown_ratio, cost.from_start_us, cost.from_start_ratio
                    row = (precision, sessions, events, f"{cost.length:,}", *(f"{each:.2f}" for each in figures))
                    print(*(f"{each:>14}" for each in row), flush=True)
    if arguments.output is not None:
        figures = {precision: [asdict(cost) for cost in of] for precision, of in costs.items()}
        arguments.output.write_text(
            json.dumps({"size": arguments.size, "device": arguments.device, **figures}, indent=1)
        )


if __name__ == "__main__":
    main()
