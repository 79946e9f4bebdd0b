"""Row 29: the checkpoint is replaced while a worker runs, and kill -9 strikes around it: old or new, never between."""

from __future__ import annotations

import itertools
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from detector.checkpoint import load
from detector.text.vocabulary import Vocabulary
from tests.broker.harness import WorkerProcess, read_all
from tests.detector.small_models import save_random
from tests.faults.checker import Score, check
from tests.faults.report import FaultReport, Size
from tests.faults.stream import PARTITIONS, Run, Stream, scores_of_files

# Where kill -9 strikes once the worker has read the other checkpoint: before it goes over to it, and when it just has.
KILLED_AT = ("hand_over", "taken")
_Session = tuple[int, int, str]  # input partition, first offset, key


def other(stream: Stream, place: Path) -> Path:
    """Another checkpoint for the same lines: other weights, and the templates of the first in another order."""
    first = load(stream.checkpoint)
    save_random(place, Vocabulary(first.vocabulary.templates[::-1]), reading=first.manifest.reading)
    return place


def put(checkpoint: Path, place: Path) -> None:
    """In the place of the one before, as whole as a training's."""
    staging = place.with_name("staging")
    shutil.copytree(checkpoint, staging)
    if place.exists():
        place.rename(place.with_name(f".{place.name}.previous"))
    staging.rename(place)
    shutil.rmtree(place.with_name(f".{place.name}.previous"), ignore_errors=True)


def replace_amid_work(run: Run, worker: WorkerProcess, checkpoint: Path, place: Path) -> None:
    """Once the worker has committed scores, put another checkpoint in the place of its own and tell it."""
    worker.wait_until(lambda: worker.logged("partition_starts_new", "partition_restored"))
    before = run.output.finals
    worker.wait_until(lambda: run.output.finals > before)
    put(checkpoint, place)
    worker.process.send_signal(signal.SIGHUP)


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
    second = other(stream, tmp_path / "second")
    parts = [[record.value for record in stream.records if record.partition == each] for each in range(PARTITIONS)]
    checkpoints = {load(each).digest: each for each in (stream.checkpoint, second)}
    values = {
        load(stream.checkpoint).digest: by_session({number: [*part] for number, part in stream.values.items()}),
        load(second).digest: by_session(scores_of_files(parts, tmp_path, second)),
    }
    place = tmp_path / "checkpoint"
    put(stream.checkpoint, place)
    ways = itertools.cycle([second, stream.checkpoint])
    with stream.unsent(tmp_path, model={"checkpoint": str(place)}) as run:
        with run.fed(seconds=200 if size.full else 40):
            for point, following in zip(KILLED_AT * (4 if size.full else 1), ways, strict=False):
                with run.striking("--at", point, "--signal", "KILL") as worker:
                    replace_amid_work(run, worker, following, place)
                    assert worker.ended() == -signal.SIGKILL, worker.tail()
                    run.struck()
            with run.start() as worker:
                replace_amid_work(run, worker, second, place)
                worker.wait_until(lambda: worker.logged("reload_taken"))
                assert worker.stop() == 0, worker.tail()
        run.finish()
        records = [
            Score(each.partition() or 0, orjson.loads(each.value() or b""))
            for each in read_all(run.application.bootstrap, run.application.score_topic)
        ]
        finals = [each for each in records if each.content["kind"] == "final"]
        # What killed workers told early may have come from each checkpoint, under one id.
        early = {each.content["id"]: each for each in records if each.content["kind"] == "early"}
        named: dict[int, list[dict[str, Any]]] = {number: [] for number in range(PARTITIONS)}
        for each in finals:
            source = each.content["source"]
            session = source["partition"], source["first_offset"], each.content["session"]
            named[session[0]].append(values[each.content["model"]["checkpoint"]][session])
        verdict = check(
            stream.expected,
            topic=run.application.input_topic,
            scores=[each for each in records if early.get(each.content["id"], each) is each],
            dead_letters=stream.expected.dead_letters,
            values=named,
            early=[each.content for each in early.values()],
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
    told = [
        (*(each.content["source"][name] for name in ("partition", "first_offset")), each.content["severity"], model)
        for each in records
        if each.content["kind"] == "early"
        for model in [each.content["model"]["checkpoint"]]
    ]
    assert len(set(told)) == len(told)
