"""Row 29: the checkpoint is replaced while a worker runs, and kill -9 strikes around it: old or new, never between.

One of those that come is what an adaptation makes: of other weights, with templates that the one before lacks. Sessions
that are open then go on with the tokens they have: each event counts as the checkpoint knew it that read it.
"""

from __future__ import annotations

import itertools
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest

from detector.checkpoint import load, save
from detector.scoring.scorer import Scorer
from detector.text.tokenizer import Tokenizer
from detector.text.vocabulary import N_SPECIAL, Vocabulary
from detector.training.adaptation import AdaptationOptions, adapt
from detector.training.data import TrainingSessions
from tests.broker.harness import WorkerProcess, read_all
from tests.detector.small_models import encoded, save_random
from tests.faults.checker import Score, check
from tests.faults.report import FaultReport, Size
from tests.faults.stream import PARTITIONS, Run, Stream, scores_of_files

# Where kill -9 strikes once the other checkpoint lies in the place of the worker's own: it has just gone over to it,
# has not yet, and has not heard of it; whoever comes then reads again with one what the other has told of.
KILLED_AT = ("taken", "hand_over", "unasked")
_ADDED = slice(3, 6)  # templates that an adaptation adds: some that every session has
_Session = tuple[int, int, str]  # input partition, first offset, key


def lacking(stream: Stream, place: Path) -> Path:
    """A checkpoint that has no template for some of the lines."""
    demo = load(stream.checkpoint)
    templates = demo.vocabulary.templates
    kept = templates[: _ADDED.start] + templates[_ADDED.stop :]
    save_random(place, Vocabulary(kept), reading=demo.manifest.reading)
    return place


def adapted(stream: Stream, first: Path, place: Path) -> Path:
    """What an adaptation makes of it that has learnt these templates."""
    parent, templates = load(first), load(stream.checkpoint).vocabulary.templates
    vocabulary = parent.vocabulary.merged(Vocabulary(templates[_ADDED]))
    rng = np.random.default_rng(0)
    sessions = TrainingSessions.of([rng.integers(N_SPECIAL, len(vocabulary), 12) for _ in range(60)])
    known = TrainingSessions.of([rng.integers(N_SPECIAL, len(parent.vocabulary), 12) for _ in range(60)])
    done = adapt(parent, sessions, known, vocabulary, device="cpu", options=AdaptationOptions(next_token_steps=5))
    save(
        place,
        model=done.model,
        vocabulary=done.vocabulary,
        profile=done.profile,
        calibration=done.calibration,
        training=parent.manifest.training,
        reading=parent.manifest.reading,
        judge=done.judge,
    )
    assert load(place).vocabulary.only_adds_to(parent.vocabulary)
    return place


def other(stream: Stream, place: Path) -> Path:
    """Another checkpoint for the same lines: other weights, and templates in another order."""
    demo = load(stream.checkpoint)
    save_random(place, Vocabulary(demo.vocabulary.templates[::-1]), seed=2, reading=demo.manifest.reading)
    return place


class Carried:
    """Scores of sessions some of whose lines were read by the checkpoint before.

    Args:
        stream: of the lines.
        before: the checkpoint that read the first of them.
        after: the one that read the others, and scores.

    Attributes:
        seen: scores that no session has all of whose lines were read by the one that scored.
    """

    def __init__(self, stream: Stream, before: Path, after: Path) -> None:
        self.seen = 0
        self._scorer = Scorer.load(after, device="cpu")
        self._tokens: dict[_Session, tuple[list[int], list[int]]] = {}
        lines: dict[int, list[bytes]] = {number: [] for number in range(PARTITIONS)}
        for record in stream.records:
            lines[record.partition].append(record.value or b"")
        tokenizers = [Tokenizer(load(each).vocabulary) for each in (before, after)]
        for session in stream.expected.sessions:
            own = pa.array([lines[session.partition][offset].decode() for offset in session.offsets])
            was, now = (tokenizer.encode(own).tolist() for tokenizer in tokenizers)
            if was != now:
                self._tokens[session.partition, session.first_offset, session.key] = was, now

    def value(self, session: _Session, content: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
        """What the record must be: `whole`, which knows all lines, or what it says, if some lines may have made it."""
        if session not in self._tokens or content["score"] == whole["score"]:
            return whole
        was, now = self._tokens[session]
        splits = [encoded([*was[:at], *now[at:]]) for at in range(1, len(now) + 1)]
        possible = {round(each.final, 6) for each in self._scorer.score(splits)}
        assert content["score"] in possible, (session, content["score"], possible)
        self.seen += 1
        made_of_it = ("score", "severity", "surprise", "unknown_events", "top_events", "lines")
        return whole | {name: content[name] for name in made_of_it}


def put(checkpoint: Path, place: Path) -> None:
    """In the place of the one before, as whole as a training's."""
    staging = place.with_name("staging")
    shutil.copytree(checkpoint, staging)
    if place.exists():
        place.rename(place.with_name(f".{place.name}.previous"))
    staging.rename(place)
    shutil.rmtree(place.with_name(f".{place.name}.previous"), ignore_errors=True)


def replace_amid_work(run: Run, worker: WorkerProcess, checkpoint: Path, place: Path, told: int) -> None:
    """Once the worker has committed scores, put another checkpoint in the place of its own and send it a signal."""
    worker.wait_until(lambda: worker.logged("partition_starts_new", "partition_restored"))
    before = run.output.finals
    worker.wait_until(lambda: run.output.finals > before)
    put(checkpoint, place)
    worker.process.send_signal(told)


def by_session(values: Mapping[int, list[dict[str, Any]]]) -> dict[_Session, dict[str, Any]]:
    return {
        (number, value["source"]["first_offset"], value["session"]): value
        for number, part in values.items()
        for value in part
    }


@pytest.mark.fault(row=29, core=True)
def test_kill_9_around_a_change_of_checkpoint_leaves_records_of_the_old_or_of_the_new_one(
    stream: Stream, size: Size, tmp_path: Path, fault_report: FaultReport
) -> None:
    first = lacking(stream, tmp_path / "first")
    renewed, second = adapted(stream, first, tmp_path / "renewed"), other(stream, tmp_path / "second")
    parts = [[record.value for record in stream.records if record.partition == each] for each in range(PARTITIONS)]
    checkpoints = {load(each).digest: each for each in (first, renewed, second)}
    values = {digest: by_session(scores_of_files(parts, tmp_path, each)) for digest, each in checkpoints.items()}
    carried = Carried(stream, first, renewed)
    place = tmp_path / "checkpoint"
    put(first, place)
    ways = itertools.cycle([renewed, second, first])
    with stream.unsent(tmp_path, model={"checkpoint": str(place)}) as run:
        with run.fed(seconds=200 if size.full else 40):
            for point, following in zip(KILLED_AT * (4 if size.full else 1), ways, strict=False):
                asked = point != "unasked"
                with run.striking("--at", point, "--signal", "KILL") if asked else run.start() as worker:
                    replace_amid_work(run, worker, following, place, signal.SIGHUP if asked else signal.SIGKILL)
                    assert worker.ended() == -signal.SIGKILL, worker.tail()
                    run.struck()
            with run.start() as worker:
                replace_amid_work(run, worker, next(ways), place, signal.SIGHUP)
                worker.wait_until(lambda: worker.logged("reload_taken"))
                assert worker.stop() == 0, worker.tail()
        run.finish()
        records = [
            Score(each.partition() or 0, orjson.loads(each.value() or b""))
            for each in read_all(run.application.bootstrap, run.application.score_topic)
        ]
        finals = [each for each in records if each.content["kind"] == "final"]
        named: dict[int, list[dict[str, Any]]] = {number: [] for number in range(PARTITIONS)}
        for each in finals:
            source = each.content["source"]
            session = source["partition"], source["first_offset"], each.content["session"]
            model = each.content["model"]["checkpoint"]
            value = values[model][session]
            if checkpoints[model] == renewed:
                value = carried.value(session, dict(each.content), value)
            named[session[0]].append(value)
        verdict = check(
            stream.expected,
            topic=run.application.input_topic,
            scores=records,
            dead_letters=stream.expected.dead_letters,
            values=named,
            early=[each.content for each in records if each.content["kind"] == "early"],
        )
        fault_report(
            "checkpoint replaced, kill -9 around its taking",
            records=len(stream.records),
            rounds=len(KILLED_AT) * (4 if size.full else 1),
            verdict=verdict,
            longest_gap_s=run.output.longest_gap_s(),
        )
        assert verdict.exact, str(verdict)
    assert {each.content["model"]["checkpoint"] for each in finals} == set(checkpoints)
    assert carried.seen, "no session was open when the adapted checkpoint came"
