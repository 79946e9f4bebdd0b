"""What do the times of events add? Pauses and bursts of `detector.scoring.pace`, on lines that have times.

Nothing is trained, so it takes a minute. Each log is two parts; limits are learnt from the first as `logmamba train`
does, without a label, and the second is judged by them and by the tolerances of counts learnt from the first, too.

- Found and false: how many sessions with a label are beyond a limit, and which of them the counts do not tell already.
- Sessions that are slow: into each normal session of the second part one pause is put at a random place. No count
  changes, so nothing but time can tell.
- Sessions that pour out: 10 copies of a random event of each normal session within a second; and those that have at
  least `MANY` events of one template, these brought together within a second, of which no count can tell.
- Labels: a random forest on counts, on counts and times, on times alone; how many limits labels bear out; and with
  slow sessions among those labelled anomalous.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from rich.console import Console
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import average_precision_score

from benchmarks.accuracy.datasets import DATA, Flags, Integers, hdfs_raw, hdfs_raw_times, require_data, text_lines
from benchmarks.accuracy.results import markdown
from detector.quality.baselines import count_vectors
from detector.scoring.count_vectors import CountVectors
from detector.scoring.learning import learn as learn_tolerances
from detector.scoring.pace import Pace, Timed
from detector.scoring.pace_learning import learn_pace
from detector.scoring.scores import Sequences
from detector.text.mining import learn_vocabulary
from detector.text.tokenizer import Tokenizer
from worker.generator.log import GeneratedLog

PAUSES_S: Final = (10, 60, 600, 3_600)
COPIES: Final = 10
MANY: Final = 5
_GAP_MS: Final = 600_000
_WRONG: Final = 0.02

Rows = Sequence[tuple[list[int], list[int]]]  # lines and times of each session


@dataclass(frozen=True)
class Half:
    """Sessions with times and labels."""

    tokens: list[Integers]
    times: list[Integers]
    anomalous: Flags

    @property
    def timed(self) -> Timed:
        """As the product takes them."""
        ends = np.cumsum([len(each) for each in self.tokens], dtype=np.int64)
        spans = np.array([each.max() - each.min() for each in self.times], np.int64)
        return Timed(Sequences(np.concatenate(self.tokens), ends), np.concatenate(self.times), spans)

    def select(self, rows: Integers) -> Half:
        """These sessions."""
        return Half([self.tokens[row] for row in rows], [self.times[row] for row in rows], self.anomalous[rows])

    def limits(self, *, labelled: bool = False, seed: int = 0) -> tuple[Pace | None, str]:
        """Learnt from these, a random fifth held out."""
        labels = self.anomalous.astype(np.int8) if labelled else np.full(len(self.anomalous), -1, np.int8)
        held_out = np.random.default_rng(seed).random(len(labels)) < 0.2
        pace, told = learn_pace(self.timed, labels, held_out)
        return pace, "; ".join(told) or "no limits"


# -- logs ------------------------------------------------------------------------------------------------------------


def hdfs_by_time() -> tuple[Half, Half]:
    """The first half of the raw lines and the second; a block may have a session in both."""
    raw, times = hdfs_raw(), hdfs_raw_times()
    tokens, half = _tokens(raw.texts, len(raw.texts) // 2), len(raw.texts) // 2
    parts = []
    for first in (True, False):
        found, of, labels = [], [], []
        for key, rows, anomalous in zip(raw.keys, raw.sessions, raw.anomalous, strict=True):
            mine = (rows < half) == first
            if mine.any():
                found.append(tokens[rows[mine]])
                of.append(times[key][mine])
                labels.append(anomalous)
        parts.append(Half(found, of, np.array(labels)))
    return parts[0], parts[1]


def hdfs_at_random() -> tuple[Half, Half]:
    """Random halves of the blocks."""
    raw, times = hdfs_raw(), hdfs_raw_times()
    tokens = _tokens(raw.texts, len(raw.texts))
    whole = Half([tokens[rows] for rows in raw.sessions], [times[key] for key in raw.keys], raw.anomalous)
    side = np.random.default_rng(0).random(len(raw.keys)) < 0.5
    return whole.select(np.flatnonzero(side)), whole.select(np.flatnonzero(~side))


def generated() -> tuple[Half, Half]:
    """Two generated logs of 3,000 blocks each, to the second as their lines are."""
    logs = [list(GeneratedLog(blocks=3_000, seed=seed)) for seed in (1, 2)]
    tokens = _tokens([line.text for log in logs for line in log], len(logs[0]))
    parts, begin = [], 0
    for seed, log in zip((1, 2), logs, strict=True):
        rows: dict[str, list[int]] = {}
        for number, line in enumerate(log):
            rows.setdefault(line.block, []).append(number)
        times = np.array([line.time_ms // 1_000 * 1_000 for line in log])
        truths = [truth for batch in GeneratedLog(blocks=3_000, seed=seed).batches() for truth in batch.truths]
        faulty = {truth.block for truth in truths if truth.label}
        of = [np.array(each) for each in rows.values()]
        anomalous = np.array([key in faulty for key in rows])
        parts.append(Half([tokens[each + begin] for each in of], [times[each] for each in of], anomalous))
        begin += len(log)
    return parts[0], parts[1]


def _of_2k(name: str, read: Callable[[str], tuple[str, int, str, bool]]) -> tuple[Half, Half]:
    """The first half of the sessions and the second, by a key and gaps of ten minutes."""
    lines = [read(line) for line in text_lines(DATA / f"loghub_2k/{name}_2k.log.gz")]
    sessions: list[list[int]] = []
    latest: dict[str, list[int]] = {}
    for number, (key, at, _, _) in enumerate(lines):
        mine = latest.get(key)
        if mine is None or at - lines[mine[-1]][1] >= _GAP_MS:
            mine = latest[key] = []
            sessions.append(mine)
        mine.append(number)
    half = len(sessions) // 2
    texts = [text for _, _, text, _ in lines]
    tokens = _tokens(texts, 1 + max(row for each in sessions[:half] for row in each))
    times = np.array([at for _, at, _, _ in lines])
    whole = Half(
        [tokens[each] for each in sessions],
        [times[each] for each in sessions],
        np.array([any(lines[row][3] for row in each) for each in sessions]),
    )
    return whole.select(np.arange(half)), whole.select(np.arange(half, len(sessions)))


def _ms(text: str, form: str) -> int:
    return round(datetime.strptime(text, form).replace(tzinfo=UTC).timestamp() * 1_000)


def bgl_2k() -> tuple[Half, Half]:
    """By rack; a session is anomalous if a line of it has an alert category."""

    def read(line: str) -> tuple[str, int, str, bool]:
        label, _, _, node, at, _, text = line.split(" ", 6)
        return node[:3], _ms(at, "%Y-%m-%d-%H.%M.%S.%f"), text, label != "-"

    return _of_2k("BGL", read)


def thunderbird_2k() -> tuple[Half, Half]:
    """By node; without labels, as none of its lines has an alert category."""

    def read(line: str) -> tuple[str, int, str, bool]:
        label, at, _, node, _, _, _, _, text = line.split(" ", 8)
        return node, int(at) * 1_000, text, label != "-"

    return _of_2k("Thunderbird", read)


def openssh_2k() -> tuple[Half, Half]:
    """By process, which is a connection; without labels."""

    def read(line: str) -> tuple[str, int, str, bool]:
        return line[16:].split(" ")[1], _ms(f"2000 {line[:15]}", "%Y %b %d %H:%M:%S"), line.split(": ", 1)[1], False

    return _of_2k("OpenSSH", read)


LOGS: Final[dict[str, Callable[[], tuple[Half, Half]]]] = {
    "HDFS raw lines, first half to the second": hdfs_by_time,
    "HDFS raw lines, random halves": hdfs_at_random,
    "generated, seed 1 to seed 2": generated,
    "BGL_2k by rack": bgl_2k,
    "Thunderbird_2k by node": thunderbird_2k,
    "OpenSSH_2k by process": openssh_2k,
}


def _tokens(texts: Sequence[str], learnt_from: int) -> Integers:
    lines = pa.array(texts, pa.string())
    return Tokenizer(learn_vocabulary(iter([lines.slice(0, learnt_from)]), ())).encode(lines)


# -- sessions made slow, and bursts ----------------------------------------------------------------------------------


def slow(part: Half, seconds: int, rng: np.random.Generator) -> Half:
    """With a pause of so many seconds before a random event but the first."""
    times = []
    for each in part.times:
        later = each.copy()
        if len(each) > 1:
            later[rng.integers(1, len(each)) :] += seconds * 1_000
        times.append(later)
    return Half(part.tokens, times, part.anomalous)


def poured(part: Half, rng: np.random.Generator) -> Half:
    """With `COPIES` more of a random event within its second."""
    tokens, times = [], []
    for own, at in zip(part.tokens, part.times, strict=True):
        place = int(rng.integers(len(own)))
        tokens.append(np.insert(own, place, [own[place]] * COPIES))
        times.append(np.insert(at, place, [at[place]] * COPIES))
    return Half(tokens, times, part.anomalous)


def brought_together(part: Half, rng: np.random.Generator) -> Half:
    """Those with `MANY` events of a template: all of them in the second of its last, those around as they were."""
    tokens, times, kept = [], [], []
    for row, (own, at) in enumerate(zip(part.tokens, part.times, strict=True)):
        found, counts = np.unique(own, return_counts=True)
        if (counts >= MANY).any():
            mine = own == rng.choice(found[counts >= MANY])
            later = at.copy()
            later[mine] = at[mine].max()
            order = np.argsort(later, kind="stable")
            tokens.append(own[order])
            times.append(later[order])
            kept.append(row)
    return Half(tokens, times, part.anomalous[kept])


# -- figures ---------------------------------------------------------------------------------------------------------


def beyond(pace: Pace | None, part: Half) -> Flags:
    """Whether each session is beyond a limit."""
    found = np.zeros(len(part.tokens), np.bool_)
    if pace is not None and len(found):
        found[list(pace.unusual(part.timed))] = True
    return found


def measured(name: str, first: Half, second: Half) -> tuple[list[str], list[str]]:
    """A row of what is found and false, and one of what injected faults show."""
    pace, told = first.limits()
    tolerances = learn_tolerances(first.tokens, np.ones(len(first.tokens), np.int64))

    def by_counts(part: Half) -> Flags:
        found: Flags = tolerances.judge(CountVectors.of_sequences(part.tokens)).evidence > 0
        return found

    pace_says, counts_say = beyond(pace, second), by_counts(second)
    wrong, normal = second.anomalous, np.flatnonzero(~second.anomalous)
    false = pace_says & ~wrong
    kept = first.limits(labelled=True)[1] if first.anomalous.sum() >= 10 else "-"
    row = [
        name,
        f"{len(first.tokens):,} to {len(second.tokens):,}",
        told.removeprefix("pauses and bursts: "),
        f"{int((counts_say & wrong).sum())} + {int((pace_says & wrong & ~counts_say).sum())} of {int(wrong.sum())}",
        f"{int((counts_say & ~wrong).sum())} + {int((false & ~counts_say).sum())}",
        f"{false.sum() / len(normal):.2%}",
        kept.removeprefix("pauses and bursts: "),
    ]
    rng = np.random.default_rng(0)
    usual = second.select(normal)
    cells = [f"{beyond(pace, slow(usual, seconds, rng)).mean():.0%}" for seconds in PAUSES_S]
    for part in (poured(usual, rng), brought_together(usual, rng)):
        counts = by_counts(part) if len(part.tokens) else np.zeros(0, np.bool_)
        both = counts | beyond(pace, part)
        cells.append(f"{counts.mean():.1%} to {both.mean():.1%} of {len(both):,}" if len(both) else "-")
    return row, [name, *cells]


def forests(name: str, first: Half, second: Half) -> list[str]:
    """AUPRC and errors of forests with labels: by counts, by counts and times, by times."""
    size = int(max(each.max() for part in (first, second) for each in part.tokens)) + 1
    halves = [(count_vectors(part.tokens, size).toarray(), _times(part, size)) for part in (first, second)]
    cells = []
    for which in ((0,), (0, 1), (1,)):
        learnt, other = (np.hstack([half[each] for each in which]) for half in halves)
        of_seeds = []
        for seed in range(3):
            forest = RandomForestClassifier(200, random_state=seed, class_weight="balanced")
            share = forest.fit(learnt, first.anomalous).predict_proba(other)[:, 1]
            alarm, wrong = share >= 0.5, second.anomalous
            errors = int((~alarm & wrong).sum()), int((alarm & ~wrong).sum())
            of_seeds.append((float(average_precision_score(wrong, share)), *errors))
        auprc, misses, false = np.median(np.array(of_seeds), axis=0)
        cells.append(f"{auprc:.4f}, {misses:.0f} + {false:.0f}")
    return [name, *cells]


def _times(part: Half, size: int) -> np.ndarray:
    """Logarithms of the greatest pause before each token, of the greatest one and of the duration; events a second."""
    sessions = part.timed
    longest = np.full((len(part.tokens), size), -1.0)
    np.maximum.at(longest, (sessions.rows, sessions.tokens), np.log1p(sessions.pauses()))
    durations = np.log1p(sessions.spans)
    rates = np.array([len(each) for each in part.times]) / (sessions.spans / 1_000 + 1)
    return np.column_stack([longest, longest.max(1), durations, rates])


def with_slow_labels(name: str, first: Half, second: Half) -> list[str]:
    """With labels that call slow sessions anomalous: what the limits that they bear out find."""
    rng = np.random.default_rng(0)

    def labelled(part: Half) -> tuple[Half, Flags]:
        chosen = rng.random(len(part.tokens)) < _WRONG
        waiting = slow(part, 3_600, rng)
        times = [waiting.times[row] if wrong else part.times[row] for row, wrong in enumerate(chosen.tolist())]
        return Half(part.tokens, times, part.anomalous | chosen), chosen

    (learnt, _), (other, chosen) = labelled(first), labelled(second)
    pace, told = learnt.limits(labelled=True)
    found = beyond(pace, other)
    false = int((found & ~other.anomalous).sum())
    return [
        name,
        told.removeprefix("pauses and bursts: "),
        f"{int((found & chosen).sum())} of {chosen.sum()}",
        f"{false}",
    ]


def report(names: Sequence[str]) -> str:
    """All tables as Markdown."""
    halves = {name: LOGS[name]() for name in names}
    rows = [measured(name, *parts) for name, parts in halves.items()]
    labelled = {name: parts for name, parts in halves.items() if all(part.anomalous.sum() >= 10 for part in parts)}
    pauses = "|".join(f"{seconds:,} s" for seconds in PAUSES_S)
    return "\n\n".join(
        (
            markdown(
                "log|sessions|limits|found by counts + pace|false + more|normals|with labels",
                [row for row, _ in rows],
            ),
            markdown(
                f"a pause of|{pauses}|{COPIES} more of an event in a second|{MANY} or more brought together",
                [row for _, row in rows],
            ),
            markdown(
                "forest, AUPRC, misses + false|counts|counts and times|times",
                [forests(name, *parts) for name, parts in labelled.items()],
            ),
            markdown(
                "slow sessions labelled anomalous|limits|found|false",
                [with_slow_labels(name, *parts) for name, parts in labelled.items()],
            ),
        )
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", nargs="+", choices=LOGS, default=[*LOGS])
    parser.add_argument("--report", type=Path, help="Markdown file to write; printed without")
    arguments = parser.parse_args()
    require_data()
    text = report(arguments.log)
    if arguments.report is None:
        Console().print(text, markup=False, highlight=False, soft_wrap=True)
    else:
        arguments.report.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
