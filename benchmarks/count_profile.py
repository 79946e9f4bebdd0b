"""How fast is the count profile learnt from sessions that are nearly all distinct, and how fast does it judge new ones?

Sessions do two to four of 60 workflows, each a dozen of 400 templates of which a few belong to several workflows. How
often a workflow's templates come varies together, that of three of them by itself, too; a step in 500 is left out, and
one session in 50 has a stray template. The sessions judged are drawn likewise after them and come in batches of 200;
time is for each whose counts no session had. Beside it, in the same run, the profile with a dictionary of vectors that
judges one vector after the other (the oracle of the tests). Times are CPU seconds; memory is by how much the resident
set is greater at most while learning, and what the tables to judge by hold.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from detector.scoring.count_profile import CountProfile
from detector.text.vocabulary import N_SPECIAL
from tests.detector.scoring.count_profile_of_tables import CountProfile as ProfileOfTables

TEMPLATES, WORKFLOWS, STEPS, FREE = 400, 60, 12, 3
BATCH = 200
JUDGED, JUDGED_BY_TABLES = 20_000, 400

Integers = npt.NDArray[np.int64]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Figures:
    """Of one profile; seconds of CPU time."""

    profile: str
    sessions: int
    distinct: int
    learn_s: float
    prepare_s: float
    judge_us: float
    unusual: float
    learn_mb: float
    tables_mb: float | None


class Workflows:
    """A source of sessions.

    Args:
        seed: of the workflows and what is drawn.
    """

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._of = np.stack([self._rng.choice(TEMPLATES, STEPS, replace=False) for _ in range(WORKFLOWS)])
        self._share = 1 / np.arange(1, WORKFLOWS + 1)
        self._share /= self._share.sum()

    def sessions(self, number: int) -> list[Integers]:
        """Tokens of the events of as many sessions, in no order."""
        rng = self._rng
        flows = rng.choice(WORKFLOWS, (number, 4), p=self._share)
        takes_part = np.arange(4) < rng.integers(2, 5, (number, 1))
        times = rng.geometric(0.6, (number, 4))[:, :, None] * (rng.random((number, 4, STEPS)) > 0.002)
        times[:, :, :FREE] += rng.geometric(0.5, (number, 4, FREE)) - 1
        times *= takes_part[:, :, None]
        tokens = (self._of[flows] + N_SPECIAL).reshape(number, -1)
        counts = np.minimum(times, 12).reshape(number, -1)
        stray = rng.integers(N_SPECIAL, TEMPLATES + N_SPECIAL, (number, 1))
        tokens, counts = np.append(tokens, stray, 1), np.append(counts, rng.random((number, 1)) < 0.02, 1)
        events = np.repeat(tokens.ravel(), counts.ravel())
        return np.split(events, np.cumsum(counts.sum(1))[:-1])


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    begun = time.process_time()
    result = work()
    return result, time.process_time() - begun


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(kind: type[CountProfile] | type[ProfileOfTables], learnt: list[Integers], fresh: list[Integers]) -> Figures:
    """Learn and judge."""
    ones = np.ones(len(learnt), np.int64)
    before = peak_mb()
    profile, learn_s = timed(lambda: kind.fit(learnt, ones))
    grown = peak_mb() - before

    def judge(sessions: list[Integers]) -> tuple[int, int]:
        unseen = unusual = 0
        for start in range(0, len(sessions), BATCH):
            part = sessions[start : start + BATCH]
            judged = profile.judge(np.concatenate(part), np.cumsum([0, *map(len, part)]))
            unseen += int((~judged.seen).sum())
            unusual += int((judged.final > 0).sum())
        return unseen, unusual

    _, prepare_s = timed(lambda: judge(fresh[:BATCH]))
    (unseen, unusual), judge_s = timed(lambda: judge(fresh[BATCH:]))
    known = profile.known if isinstance(profile, CountProfile) else ()
    tables = sum(each.nbytes for each in known if isinstance(each, np.ndarray)) / 1e6
    name = "compiled" if isinstance(profile, CountProfile) else "of tables"
    distinct = len(profile.weights) + (len(profile.seen) if isinstance(profile, CountProfile) else 0)
    return Figures(
        name,
        len(learnt),
        distinct,
        learn_s,
        prepare_s,
        judge_s / max(unseen, 1) * 1e6,
        unusual / max(unseen, 1),
        grown,
        tables or None,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sessions", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--tables-up-to", type=int, default=100_000, help="sessions that the other profile learns from")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    figures = []
    for number in sorted(arguments.sessions):
        source = Workflows(0)
        learnt, fresh = source.sessions(number), source.sessions(JUDGED + BATCH)
        figures.append(measure(CountProfile, learnt, fresh))
        if number <= arguments.tables_up_to:
            figures.append(measure(ProfileOfTables, learnt, fresh[: JUDGED_BY_TABLES + BATCH]))
    head = "profile", "sessions", "distinct", "learn s", "prepare s", "judge us", "unusual", "learn MB", "tables MB"
    table = Table(*head)
    for each in figures:
        table.add_row(
            each.profile,
            f"{each.sessions:,}",
            f"{each.distinct:,}",
            f"{each.learn_s:.1f}",
            f"{each.prepare_s:.2f}",
            f"{each.judge_us:,.1f}",
            f"{each.unusual:.2%}",
            f"{each.learn_mb:,.0f}",
            "" if each.tables_mb is None else f"{each.tables_mb:,.0f}",
        )
    Console().print(table)
    if arguments.output:
        arguments.output.write_text(json.dumps([asdict(each) for each in figures], indent=2) + "\n")


if __name__ == "__main__":
    main()
