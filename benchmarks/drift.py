"""How often is `watch` said of logs that do not drift, and after how many sessions is a change seen?

Without drift: a month of generated logs with days, nights and 3 % faults, scored by a model trained on three days
before it (`--seeds` makes it several); and months put together of stretches of HDFS and BGL, in their order, that the
training, on the stretches between them, did not have, so that what changes from hour to hour counts. HDFS's raw lines
have times, which count seconds; parsed sessions have none, and none of them scores. A change: generated releases that
all hosts take at once or one after another within a day, slower writing, HDFS's raw lines at half the speed, and 30 %
of the templates of HDFS and BGL renamed from a random point on. Counted is from
the first session that the change shows in to the one at whose end the verdict is no longer `ok`. Beside both: what is
said of HDFS in its order of time, of which the first tenth is learnt; and CPU time a session. LogHub's systems of 2,000
lines, as sessions of five lines, tell whether few sessions of any kind of log are taken for drift: every other 25 are
learnt.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from benchmarks.accuracy.datasets import DATA, hdfs_ordered, require_data
from detector.checkpoint import load
from detector.quality.block_loop import NO_PAUSE, PER_OCTAVE
from detector.quality.drift import DriftMonitor
from detector.quality.fingerprint import BLOCK, Fingerprint, Pauses, Stream
from detector.scoring.scorer import Scorer
from detector.scoring.scores import Sequences
from detector.text.mining import learn_vocabulary
from detector.text.tokenizer import Tokenizer
from detector.text.vocabulary import UNK
from detector.training.train import History, TrainingOptions, TrainingSessions, train
from worker.files.log_files import read_records
from worker.generator.log import DayAndNight, Drift, GeneratedLog

RATE = 0.05  # blocks a second
DAY_S = 86_400
MONTH_DAYS = 30
MONTHS = 1  # of stretches
SEEDS = 5
HDFS_STRETCHES = (400, 600, 1_000, 1_500, 2_000)
POINTS = 20
RENAMED = -1_000  # a token that no template matches
AT_ONCE = 2_000  # sessions that are scored together

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Sessions:
    """Sessions in the order of their ends."""

    stream: Stream
    ended_ms: Ints
    changed: Flags  # those that a change shows in
    scores: Floats

    def part(self, rows: Ints) -> Sessions:
        """Some of them."""
        return Sessions(self.stream.select(rows), self.ended_ms[rows], self.changed[rows], self.scores[rows])


@dataclass(frozen=True)
class Quiet:
    """Of a stream without drift."""

    stream: str
    sessions: int
    days: float
    watches: int

    @property
    def per_month(self) -> float:
        """False `watch` in 30 days."""
        return self.watches * MONTH_DAYS / self.days


@dataclass(frozen=True)
class Seen:
    """Of changes of one kind: sessions until they are seen, -1 for never."""

    change: str
    sessions: list[int]


class Generated:
    """Generated logs as a model sees them that was trained on some."""

    def __init__(self, days: float, steps: int) -> None:
        self._base = {"blocks_per_second": RATE, "day_night": DayAndNight(0.6), "anomaly_rate": 0.03}
        log = self._log(days, seed=1)
        texts = [text for batch in log.batches() for text in batch.texts]
        self._tokenizer = Tokenizer(learn_vocabulary([pa.array(texts, pa.string())]))
        self._scorer: Scorer | None = None
        trained_on = self.sessions(log)
        stream, bounds = trained_on.stream, np.append(0, trained_on.stream.ends)
        events = [stream.tokens[begin:end] for begin, end in pairwise(bounds.tolist())]
        held_out = np.random.default_rng(0).random(len(stream)) < 0.2
        parts = [TrainingSessions.of([events[row] for row in np.flatnonzero(side)]) for side in (~held_out, held_out)]
        trained = train(
            parts[0],
            self._tokenizer.vocabulary,
            validation=parts[1],
            history=History(stream, held_out),
            options=TrainingOptions(next_token_steps=steps),
        )
        assert trained.fingerprint is not None
        self.fingerprint = trained.fingerprint
        with tempfile.TemporaryDirectory() as folder:
            trained.save(Path(folder) / "checkpoint")
            self._scorer = Scorer(load(Path(folder) / "checkpoint"))

    def drifted(self, days: float, seed: int, drift: Drift | None = None) -> Sessions:
        """Another log."""
        return self.sessions(self._log(days, seed, drift))

    def _log(self, days: float, seed: int, drift: Drift | None = None) -> GeneratedLog:
        return GeneratedLog(blocks=round(days * DAY_S * RATE), seed=seed, drift=drift, **self._base)  # type: ignore[arg-type]

    def sessions(self, log: GeneratedLog) -> Sessions:
        """The blocks of a log."""
        tokens, times, blocks, begins = [], [], [], {}
        new: dict[str, bool] = {}
        for batch in log.batches():
            if batch.texts:
                tokens.append(self._tokenizer.encode(pa.array(batch.texts, pa.string())))
            times += batch.times_ms
            blocks += batch.blocks
            new |= {truth.block: bool(truth.new_lines) for truth in batch.truths}
        for block, at in zip(blocks, times, strict=True):
            begins.setdefault(block, at)
        names = {name: number for number, name in enumerate(begins)}
        of = np.array([names[block] for block in blocks])
        at, order = np.array(times), np.argsort(of, kind="stable")
        ends = np.cumsum(np.bincount(of))
        ended = at[order][ends - 1]
        slow_from = np.inf
        if log.drift is not None and log.drift.slowdown > 1:
            slow_from = log.start_ms + 1000 * log.drift.after_s
        changed = np.array([new[name] or began >= slow_from for name, began in begins.items()])
        stream = Stream.timed(np.concatenate(tokens)[order], ends, at[order])
        rows = np.argsort(ended, kind="stable")
        found = stream.select(rows)
        return Sessions(found, ended[rows], changed[rows], self._scored(found))

    def _scored(self, stream: Stream) -> Floats:
        if self._scorer is None:
            return np.full(len(stream), np.nan)
        parts = []
        for begin in range(0, len(stream), AT_ONCE):
            some = stream.select(np.arange(begin, min(begin + AT_ONCE, len(stream))))
            parts.append(self._scorer.score_columns(Sequences(some.tokens, some.ends), len(some)).finals)
        return np.concatenate(parts)


def untimed(sequences: Sequence[Ints], apart_ms: int) -> Sessions:
    """Sessions that are known by their tokens alone, one after the other."""
    n = len(sequences)
    return Sessions(Stream.of(sequences), np.arange(n) * apart_ms, np.zeros(n, np.bool_), np.full(n, np.nan))


def fingerprint_of(sessions: Sessions) -> Fingerprint:
    """Of a training on them, a fifth held out."""
    held_out = np.random.default_rng(0).random(len(sessions.stream)) < 0.2
    found = Fingerprint.of(sessions.stream, sessions.scores, held_out)
    assert found is not None
    return found


def verdicts(fingerprint: Fingerprint, sessions: Sessions, at_once: int = BLOCK) -> Iterator[tuple[int, str | None]]:
    """Each new verdict, and after how many sessions."""
    monitor, before = DriftMonitor(fingerprint), None
    for begin in range(0, len(sessions.stream), at_once):
        some = sessions.part(np.arange(begin, min(begin + at_once, len(sessions.stream))))
        some = some.part(monitor.wanted(some.ended_ms))
        monitor.add(some.stream, some.scores, some.ended_ms)
        monitor.judge()
        if monitor.verdict != before:
            before = monitor.verdict
            yield min(begin + at_once, len(sessions.stream)), before


def watches(fingerprint: Fingerprint, sessions: Sessions) -> int:
    """How often `ok` ended; a `watch` lasts for longer than is looked at at once."""
    said = [verdict for _, verdict in verdicts(fingerprint, sessions, 8 * BLOCK)]
    return sum(verdict == "watch" and before == "ok" for before, verdict in pairwise(said))


def until_seen(fingerprint: Fingerprint, sessions: Sessions) -> int:
    """Sessions from the first changed one to the end of `ok`; -1 where that does not come."""
    first = int(np.flatnonzero(sessions.changed)[0])
    for after, verdict in verdicts(fingerprint, sessions):
        if after > first and verdict in ("watch", "retrain"):
            return after - first
    return -1


class Stretches:
    """Sessions of a real log in their order, of which every other stretch is learnt."""

    def __init__(self, name: str, sessions: Sessions, stretch: int) -> None:
        self.name, self._stretch = name, stretch
        rows = np.arange(len(sessions.stream))
        odd = rows // stretch % 2 == 1
        self._others = sessions.part(rows[odd])
        self._apart_ms = np.ptp(sessions.ended_ms) / len(rows)
        self.fingerprint = fingerprint_of(sessions.part(rows[~odd]))

    def quiet(self, seed: int) -> Quiet:
        """Months of the other stretches in random order; first all of them, in theirs."""
        rng = np.random.default_rng(seed)
        n = len(self._others.stream)
        pieces = [np.arange(at, min(at + self._stretch, n)) for at in range(0, n, self._stretch)]
        wanted = MONTHS * MONTH_DAYS * DAY_S * 1000 / self._apart_ms
        rows = list(pieces)
        while sum(map(len, rows)) < wanted:
            rows.append(pieces[rng.integers(len(pieces))])
        found = self._others.part(np.concatenate(rows))
        days = len(found.stream) * self._apart_ms / 1000 / DAY_S
        return Quiet(self.name, len(found.stream), days, watches(self.fingerprint, self._in_order(found)))

    def _in_order(self, sessions: Sessions) -> Sessions:
        return replace(sessions, ended_ms=(np.arange(len(sessions.stream)) * self._apart_ms).astype(np.int64))

    def renamed(self, share: float) -> Seen:
        """A share of the templates renamed, from each of several points on."""
        rng = np.random.default_rng(0)
        templates = np.unique(self._others.stream.tokens)

        def change(tokens: Ints, pauses: Pauses) -> tuple[Ints, Pauses, Flags]:
            chosen = rng.choice(templates, max(1, round(share * len(templates))), replace=False)
            hit = np.isin(tokens, chosen)
            return np.where(hit, RENAMED, tokens), pauses, hit

        return Seen(f"{self.name}: {share:.0%} of the templates renamed", self._seen(change))

    def slower(self, times: float) -> Seen:
        """All pauses so many times as long, from each of several points on."""
        rng = np.random.default_rng(0)

        def change(tokens: Ints, pauses: Pauses) -> tuple[Ints, Pauses, Flags]:
            paused = (pauses > 0) & (pauses < NO_PAUSE)
            passed = (2.0 ** (pauses / PER_OCTAVE) - 1) / 1_000 * times
            # Clocks count seconds: of a part of one they show one as often.
            seconds = np.floor(np.where(paused, passed, 0) + rng.random(len(pauses)))
            return (
                tokens,
                np.where(paused, (PER_OCTAVE * np.log2(seconds * 1_000 + 1)).astype(np.uint8), pauses),
                paused,
            )

        return Seen(f"{self.name}: pauses {times:g} times as long", self._seen(change))

    def _seen(self, change: Callable[[Ints, Pauses], tuple[Ints, Pauses, Flags]]) -> list[int]:
        rng, others = np.random.default_rng(0), self._others.stream
        found = []
        for _ in range(POINTS):
            tokens, pauses, hit = change(others.tokens, others.pauses)
            start = int(rng.integers(self._stretch, len(others) // 2))
            later = np.arange(len(others.tokens)) >= others.ends[start - 1]
            stream = Stream(np.where(later, tokens, others.tokens), others.ends, np.where(later, pauses, others.pauses))
            changed = np.logical_or.reduceat(hit & later, np.append(0, others.ends[:-1]))
            if changed.any():
                at = replace(self._in_order(self._others), stream=stream, changed=changed)
                found.append(until_seen(self.fingerprint, at))
        return found


def hdfs_sequences() -> list[Ints]:
    """HDFS in its order of time."""
    data = hdfs_ordered()
    rows = np.argsort(data.order, kind="stable")
    return [data.sessions[row] + UNK + 1 for row in rows]


def hdfs_timed() -> Sessions:
    """HDFS's raw lines by block, in the order in which these end."""
    lines = [value for records in read_records(DATA / "hdfs/raw.log.gz") for value in records.values if value]
    texts = pa.array([line.decode(errors="replace") for line in lines], pa.string())
    tokens = Tokenizer(learn_vocabulary([texts.slice(0, len(texts) // 10)])).encode(texts)
    names = [found.group() if (found := re.search(rb"blk_-?\d+", line)) else b"" for line in lines]
    of = np.unique(names, return_inverse=True)[1]
    stamps = pc.strptime(pc.utf8_slice_codeunits(texts, 0, 13), format="%y%m%d %H%M%S", unit="ms")
    times = stamps.cast(pa.int64()).to_numpy()
    order = np.argsort(of, kind="stable")
    ends = np.cumsum(np.bincount(of))
    ended = times[order][ends - 1]
    n = len(ends)
    found = Sessions(Stream.timed(tokens[order], ends, times[order]), ended, np.zeros(n, np.bool_), np.full(n, np.nan))
    return found.part(np.argsort(ended, kind="stable"))


def bgl_sequences() -> list[Ints]:
    """The normal sessions of BGL in the order of their file; long ones by 50 events."""
    (lines,) = [batch.values for batch in read_records(DATA / "bgl/train_normal_sessions.txt.gz")]
    found = []
    for line in lines:
        tokens = np.array((line or b"").split(), np.int64) + UNK + 1
        found += [tokens[at : at + 50] for at in range(0, len(tokens), 50)][:20]
    return found


def small_systems() -> list[str]:
    """Those of LogHub whose 200 other sessions are not `ok` throughout."""
    names = []
    for path in sorted(DATA.glob("loghub_2k/*_2k.log.gz")):
        lines = [value.decode(errors="replace") for records in read_records(path) for value in records.values if value]
        texts = pa.array(lines, pa.string())
        tokens = Tokenizer(learn_vocabulary([texts])).encode(texts)
        sequences = [tokens[at : at + 5] for at in range(0, len(tokens), 5)]
        other = np.arange(len(sequences)) // BLOCK % 2 == 1
        training, rest = ([sequences[row] for row in np.flatnonzero(side)] for side in (~other, other))
        if len(training) >= 200 and watches(fingerprint_of(untimed(training, 6_000)), untimed(rest, 6_000)):
            names.append(path.name.removesuffix("_2k.log.gz"))
    return names


def cost(fingerprint: Fingerprint, sessions: Sessions, at_once: int) -> float:
    """CPU time a session, in us, without the pauses before events, which come with them."""
    n = len(sessions.stream)
    parts = [sessions.part(np.arange(begin, min(begin + at_once, n))) for begin in range(0, n, at_once)]
    monitor = DriftMonitor(fingerprint)
    began = time.process_time()
    for some in parts:
        monitor.wanted(some.ended_ms)
        monitor.add(some.stream, some.scores, some.ended_ms)
    monitor.judge()
    return (time.process_time() - began) / n * 1e6


def changes() -> dict[str, Callable[[], Drift]]:
    """What generated logs do after eight hours."""
    after = 8 * 3600.0
    return {
        "30 % of the templates reworded": lambda: Drift(after, reworded=0.3),
        "10 % of the templates reworded": lambda: Drift(after, reworded=0.1),
        "30 % reworded, host by host in a day": lambda: Drift(after, DAY_S, reworded=0.3),
        "a new service": lambda: Drift(after, new_service=True),
        "writing takes three times as long": lambda: Drift(after, slowdown=3),
        "writing takes twice as long": lambda: Drift(after, slowdown=2),
        "writing takes half as long again": lambda: Drift(after, slowdown=1.5),
        "writing takes twice as long, slower and slower in a day": lambda: Drift(after, DAY_S, slowdown=2),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file to write.")
    parser.add_argument("--days", type=float, default=MONTH_DAYS, help="Of generated logs without drift.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2], help="Of generated logs without drift.")
    parser.add_argument("--steps", type=int, default=40, help="Of the model's training.")
    arguments = parser.parse_args()
    require_data()
    console = Console()
    quiet, seen = list[Quiet](), list[Seen]()

    def say(each: Quiet | Seen) -> None:
        console.print(each, soft_wrap=True)

    def still(found: Quiet) -> None:
        quiet.append(found)
        say(found)

    def changed(found: Seen) -> None:
        seen.append(found)
        say(found)

    hdfs = hdfs_sequences()
    learnt = fingerprint_of(untimed(hdfs[: len(hdfs) // 10], 5_800))
    in_order = list(verdicts(learnt, untimed(hdfs[len(hdfs) // 10 :], 5_800)))
    small = small_systems()
    timed = hdfs_timed()
    for each in (
        *(Stretches(f"HDFS, stretches of {n:,}", untimed(hdfs, 5_800), n) for n in HDFS_STRETCHES),
        Stretches("HDFS with times, stretches of 400", timed, 400),
        Stretches("BGL, stretches of 200", untimed(bgl_sequences(), 20_000), 200),
    ):
        still(each.quiet(1))
        changed(each.renamed(0.3))
        if each.fingerprint.waits and "pauses" in each.fingerprint.tails:
            changed(each.slower(2))
    generated = Generated(3, arguments.steps)
    for name, drift in changes().items():
        logs = (generated.drifted(1.2, 10 + seed, drift()) for seed in range(SEEDS))
        changed(Seen(f"generated: {name}", [until_seen(generated.fingerprint, each) for each in logs]))
    for seed in arguments.seeds:
        month = generated.drifted(arguments.days, seed)
        found = watches(generated.fingerprint, month)
        still(Quiet(f"generated, seed {seed}", len(month.stream), arguments.days, found))
    costs = {at_once: cost(generated.fingerprint, month, at_once) for at_once in (10, 50, 500)}

    table = Table("stream without drift", "sessions", "days", "watch", "a month")
    for each in quiet:
        table.add_row(each.stream, f"{each.sessions:,}", f"{each.days:.1f}", f"{each.watches}", f"{each.per_month:.2f}")
    console.print(table)
    table = Table("change", "times", "seen", "sessions, median", "most")
    for change in seen:
        hits = [each for each in change.sessions if each >= 0] or [-1]
        table.add_row(
            change.change, f"{len(change.sessions)}", f"{len(hits)}", f"{np.median(hits):.0f}", f"{max(hits)}"
        )
    console.print(table)
    console.print(f"HDFS after its first tenth: {', '.join(f'{verdict} at {at:,}' for at, verdict in in_order)}")
    console.print(f"LogHub's systems that are not ok: {', '.join(small) or 'none'}")
    console.print(f"CPU us a session, by how many come at once: {costs}")
    if arguments.output is not None:
        result = {
            "quiet": [asdict(each) | {"per_month": each.per_month} for each in quiet],
            "seen": [asdict(change) for change in seen],
            "hdfs_after_its_first_tenth": in_order,
            "small_systems_not_ok": small,
            "cpu_us_a_session": {str(at_once): round(us, 2) for at_once, us in costs.items()},
        }
        arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
