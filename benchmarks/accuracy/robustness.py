"""What does a checkpoint lose where the test part's logs are not stable?

Trains once a protocol of raw lines and seed, or takes the checkpoint that is there, then scores the test part as it is
and, several times, disturbed (`disturbances.py`) in 5 to 20 % of its sessions. Thresholds are the worker's.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain, groupby, product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from rich.console import Console

from benchmarks.accuracy.datasets import Dataset, Integers, require_data
from benchmarks.accuracy.detectors import SEVERITIES, training_sessions
from benchmarks.accuracy.disturbances import DISTURBANCES, Disturb, Session, with_an_error, with_new_values
from benchmarks.accuracy.early import finals
from benchmarks.accuracy.protocols import PROTOCOLS
from benchmarks.accuracy.results import insert, markdown
from benchmarks.accuracy.tasks import Floats, Task
from detector.quality.metrics import Ranking
from detector.scoring.scorer import Scorer
from detector.text.tokenizer import Tokenizer
from detector.text.vocabulary import UNK
from detector.training.train import train

BEGIN, END = "<!-- robustness -->", "<!-- end of robustness -->"
SHARES = (0.05, 0.1, 0.15, 0.2)
SINGLE = 1_000
Result = dict[str, Any]
RUNS = ("hdfs-raw-lines", "hdfs-raw-halves", "bgl-last-lines")


class Disturbed:
    """The test part of a protocol as it is, and what becomes of it.

    Args:
        name: of the protocol.
        seed: of split and training.
        folder: of checkpoints.
    """

    def __init__(self, name: str, seed: int, folder: Path) -> None:
        protocol = PROTOCOLS[name]
        self.seed = seed
        self._data: Dataset = protocol.read()
        self._rows = protocol.split(self._data, seed).test
        self._windows = name == "bgl-last-lines"
        self.task = Task.of(protocol, seed)
        checkpoint = folder / f"{name}-{seed}"
        if not checkpoint.exists():
            _train(self.task, seed, checkpoint)
        self._scorer = Scorer.load(checkpoint, device="cpu")
        self._tokenizer = Tokenizer(self._scorer.vocabulary)
        texts = self._data.texts
        self._tokens = tokens = self._tokenizer.encode(pa.array(texts, pa.string()))
        self._sessions = [
            Session([texts[at] for at in self._data.sessions[row]], tokens[self._data.sessions[row]], anomalous)
            for row, anomalous in zip(self._rows, self._data.anomalous[self._rows].tolist(), strict=True)
        ]
        self._plain = [each.tokens.tobytes() for each in self._sessions]
        self.scores = finals(self._scorer.score(self._plain))

    def figures(self, scores: Floats) -> Result:
        """F1 at the worker's thresholds, and AUPRC, of scores of the test part."""
        part = self.task.test
        ranking = Ranking.of(scores, part.anomalous, part.weights)
        f1 = {name: float(ranking.detection(at).f1) for name, at in SEVERITIES.items()}
        return {**f1, "auprc": float(ranking.average_precision())}

    @cached_property
    def _vectors(self) -> tuple[set[bytes], set[bytes]]:
        """The count vectors of all sessions of the data set that are normal, and that are anomalous."""
        found: tuple[set[bytes], set[bytes]] = (set(), set())
        for events, anomalous in zip(self._data.sessions, self._data.anomalous.tolist(), strict=True):
            found[anomalous].add(np.sort(self._tokens[events]).tobytes())
        return found

    def keeps(self, tokens: Integers, session: Session) -> bool:
        """Whether a session would keep its label: some have such counts of events, and none of the other label.

        The label of a window is that of its last event.
        """
        if self._windows:
            return bool(tokens[-1] == session.tokens[-1])
        vector = np.sort(tokens).tobytes()
        return vector in self._vectors[session.anomalous] and vector not in self._vectors[not session.anomalous]

    def score(self, disturb: Disturb, share: float, rng: np.random.Generator) -> tuple[Floats, float]:
        """Scores of the sessions with a share of them disturbed, and which share of the events is unknown in those."""
        return self.score_with(disturb, np.flatnonzero(rng.random(len(self._sessions)) < share), rng)

    def score_with(self, disturb: Disturb, rows: Integers, rng: np.random.Generator) -> tuple[Floats, float]:
        """The same with these sessions disturbed."""
        chosen = rows.tolist()
        sessions = [self._sessions[row] for row in chosen]
        found = [disturb(each, self.keeps, rng) for each in sessions]
        tokens = self._tokenizer.encode(pa.array([line for lines in found for line in lines], pa.string()))
        sequences = list(self._plain)
        parts = np.split(tokens, np.cumsum([len(lines) for lines in found])[:-1])
        for row, part in zip(chosen, parts, strict=True):
            sequences[row] = part.tobytes()
        return finals(self._scorer.score(sequences)), float((tokens <= UNK).mean())


def measure(run: Disturbed, kinds: Sequence[str], times: int) -> Iterator[Result]:
    """Yield the F1 of the undisturbed run, then what each disturbance of each share costs."""
    yield {"disturbance": "none", "share": 0.0, **run.figures(run.scores), "unknown": 0.0}
    for kind in kinds:
        for share in SHARES:
            found: list[Result] = []
            for time in range(times):
                rng = np.random.default_rng([run.seed, time, round(100 * share)])
                scores, unknown = run.score(DISTURBANCES[kind], share, rng)
                found.append({**run.figures(scores), "unknown": unknown})
            means = {name: fmean(each[name] for each in found) for name in found[0]}
            yield {"disturbance": kind, "share": share, **means}


def measure_single(run: Disturbed) -> Iterator[Result]:
    """Yield what becomes of the scores of normal sessions by one new error in each, and by other values alone."""
    normal = np.flatnonzero(~run.task.test.anomalous)[:SINGLE]
    for kind, disturb in (("a new error", with_an_error), ("new values", with_new_values)):
        scores, unknown = run.score_with(disturb, normal, np.random.default_rng(run.seed))
        was, now = run.scores[normal], scores[normal]
        yield {
            "disturbance": kind,
            "rises": float((now > was).mean()),
            "falls": float((now < was).mean()),
            "median before": float(np.median(was)),
            "median": float(np.median(now)),
            **{f"{name}s before": float((was >= at).mean()) for name, at in SEVERITIES.items()},
            **{f"{name}s": float((now >= at).mean()) for name, at in SEVERITIES.items()},
            "unknown": unknown,
        }


def tables(results: Sequence[Result]) -> str:
    """All results, as Markdown."""
    parts = []
    for title, group in groupby(results, key=lambda each: f"{each['title']}, seed {each['seed']}"):
        found = list(group)
        plain = next(each for each in found if each["disturbance"] == "none")
        figures = (*SEVERITIES, "auprc")
        rows = []
        for kind in dict.fromkeys(each["disturbance"] for each in found if each.get("share")):
            mine = {each["share"]: each for each in found if each["disturbance"] == kind}
            losses = (" / ".join(f"{plain[name] - mine[share][name]:+.3f}" for share in SHARES) for name in figures)
            rows.append([kind, f"{fmean(each['unknown'] for each in mine.values()):.1%}", *losses])
        undisturbed = ", ".join(f"{name} {plain[name]:.4f}" for name in figures)
        header = "disturbed|unknown events there|F1 lost at 0.7|at 0.95|AUPRC lost"
        parts += [f"### {title}", f"Undisturbed: {undisturbed}. Lost at 5 / 10 / 15 / 20 %:", markdown(header, rows)]
        single = [each for each in found if "rises" in each]
        header = "normal sessions, each with|score rises|falls|median score before|now|warnings before|now"
        rows = [
            [
                each["disturbance"],
                *(f"{each[name]:.1%}" for name in ("rises", "falls")),
                *(f"{each[name]:.4f}" for name in ("median before", "median")),
                *(f"{each[name]:.1%}" for name in ("warnings before", "warnings")),
            ]
            for each in single
        ]
        parts += [markdown(header, rows)] if rows else []
    return "\n\n".join(parts) + "\n"


def _train(task: Task, seed: int, checkpoint: Path) -> None:
    training, validation = (
        training_sessions(part, as_they_come=task.as_they_come) for part in (task.training, task.validation)
    )
    train(training, task.vocabulary, size="tiny", seed=seed, device="cpu", validation=validation).save(checkpoint)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy.robustness", description=__doc__)
    parser.add_argument("--protocol", nargs="+", choices=RUNS, default=list(RUNS), metavar="NAME")
    parser.add_argument("--disturbance", nargs="+", choices=DISTURBANCES, default=list(DISTURBANCES), metavar="NAME")
    parser.add_argument("--times", type=int, default=5, metavar="N", help="that each share is drawn")
    parser.add_argument("--seed", nargs="+", type=int, default=[0], metavar="N")
    parser.add_argument("--checkpoints", type=Path, required=True, metavar="FOLDER", help="trained where missing")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON lines, one a figure")
    parser.add_argument("--report", type=Path, metavar="FILE", help="Markdown that gets the tables")
    arguments = parser.parse_args()
    require_data()
    console = Console()
    results: list[Result] = []
    with arguments.output.open("wb", buffering=0) as file:
        for name, seed in product(arguments.protocol, arguments.seed):
            run = Disturbed(name, seed, arguments.checkpoints)
            for found in chain(measure(run, arguments.disturbance, arguments.times), measure_single(run)):
                results.append({"protocol": name, "title": PROTOCOLS[name].title, "seed": seed, **found})
                file.write(orjson.dumps(results[-1], option=orjson.OPT_APPEND_NEWLINE))
                console.print(found, highlight=False, soft_wrap=True)
    text = tables(results)
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    if arguments.report:
        insert(arguments.report, BEGIN, END, text)


if __name__ == "__main__":
    main()
