"""Real lines through real workers on a real broker: every session is scored once, whatever happens to the worker."""

from __future__ import annotations

import itertools
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka import KafkaError, KafkaException

from detector.checkpoint import demo_checkpoint
from tests.broker.harness import Application, Record, create_topic, hdfs_lines, keyed_by_block, write_partitions
from tests.broker.kafka import KafkaBroker, require_kafka
from tests.broker.order import out_of_order
from tests.faults.stream import PARTITIONS, Follower
from tests.shared import needs_shared
from tests.worker.command_line import logmamba

LINES = 20_000


@pytest.fixture(scope="module")
def lines() -> list[Record]:
    return keyed_by_block(hdfs_lines(LINES), PARTITIONS)


@pytest.fixture(scope="module")
def expected(lines: list[Record], checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What `logmamba score` says of the same lines, each partition by itself."""
    folder = tmp_path_factory.mktemp("files")
    config = folder / "hdfs.yaml"
    config.write_text(orjson.dumps({"input": _INPUT}).decode())
    records, output = folder / "parts.records.jsonl", folder / "scores.jsonl"
    write_partitions(records, [[each.value for each in lines if each.partition == n] for n in range(PARTITIONS)])
    scored = logmamba("score", "--checkpoint", checkpoint, "--config", config, "--input", records, "--output", output)
    assert scored.returncode == 0, scored.stderr
    return [orjson.loads(line) for line in output.read_bytes().splitlines()]


_INPUT = {"timestamp": {"pattern": r"^(\d{6} \d{6})", "format": "%y%m%d %H%M%S"}}


def identity(record: dict[str, Any]) -> tuple[int, int, str]:
    """What tells sessions apart; a topic of the expected scores is named after its partition."""
    source = record["source"]
    partition = source["partition"] or int(source["topic"].removesuffix(".log") if ".log" in source["topic"] else 0)
    return partition, source["first_offset"], record["session"]


def content(record: dict[str, Any]) -> dict[str, Any]:
    """All of a score that does not name where the session came from: the end of a file is an idle partition's end.

    Nor what it takes back: a file has no early scores.
    """
    record = {name: value for name, value in record.items() if name not in ("id", "retracts")}
    closed_by = "end_of_input" if record["closed_by"] == "idle" else record["closed_by"]
    source = {key: record["source"][key] for key in ("first_offset", "last_offset", "cause_offset")}
    return {**record, "closed_by": closed_by, "source": source}


def assert_exact(application: Application, expected: list[dict[str, Any]]) -> None:
    by_partition = application.scores_by_partition()
    scores = list(itertools.chain.from_iterable(by_partition.values()))
    finals = [record for record in scores if record["kind"] == "final"]
    counts = Counter(map(identity, finals))
    wanted = {identity(record): content(record) for record in expected}
    assert [each for each, count in counts.items() if count > 1] == [], "scored twice"
    assert wanted.keys() - counts.keys() == set(), "not scored"
    assert {identity(record): content(record) for record in finals} == wanted
    assert len({record["id"] for record in scores}) == len(scores), "two records have one id"
    early = Counter((identity(record), record["severity"]) for record in scores if record["kind"] == "early")
    assert [each for each, count in early.items() if count > 1] == [], "an early severity was published twice"
    for record in finals:
        assert record["source"]["topic"] == application.input_topic
    assert out_of_order(by_partition) == []


@needs_shared
def test_every_session_is_scored_once_as_logmamba_score_would(
    broker: KafkaBroker, checkpoint: Path, lines: list[Record], expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    application = Application(broker.bootstrap, tmp_path, checkpoint, PARTITIONS)
    application.produce(lines)
    with followed(application) as output, application.start() as worker:
        worker.wait_until(lambda: output.finals >= len(expected))
        assert worker.stop(signal.SIGINT) == 0, worker.tail()
    assert_exact(application, expected)
    assert {number: each.offset for number, each in application.committed().items()} == {
        number: sum(record.partition == number for record in lines) for number in range(PARTITIONS)
    }


@needs_shared
def test_kill_9_and_restarts_change_no_adaptive_threshold_and_no_severity(
    broker: KafkaBroker, lines: list[Record], expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    undisturbed = Application(broker.bootstrap, tmp_path, demo_checkpoint(), PARTITIONS)
    undisturbed.produce(lines)
    killed = undisturbed.again()
    # A commit each batch, so that the worker dies where it is meant to, with a batch scored and not committed; a static
    # member, so that the group does not wait for the dead one.
    at_once = ("worker.batch_records=400", "worker.commit_interval=0ms", "kafka.group.instance.id=w0")
    adaptive = ("scoring.adaptive={target_rate: 0.05}", *at_once)
    learnt = []
    for commit in (25, 12):
        strike = ("tests.faults.striking_worker", "--at", "commit", "--nth", str(commit), "--signal", "KILL")
        before: set[tuple[float, ...]] = learnt[-1] if learnt else set()
        while (
            not learnt_thresholds(killed) > before
        ):  # batches, and so what a commit holds, are as large as it is quick
            with killed.start(*adaptive, program=strike) as worker:
                assert worker.ended() == -signal.SIGKILL, worker.tail()
        learnt.append(learnt_thresholds(killed))
    for application in (killed, undisturbed):
        with followed(application) as output, application.start(*adaptive) as worker:
            worker.wait_until(lambda output=output: output.finals >= len(expected))
            assert worker.stop() == 0, worker.tail()
    learnt.append(learnt_thresholds(undisturbed))
    assert set() < learnt[0] < learnt[1] < learnt[2], "not killed while they changed"
    written, wanted = (sorted(map(orjson.dumps, each.scores())) for each in (killed, undisturbed))
    assert [(one, other) for one, other in zip(written, wanted, strict=True) if one != other] == []


@needs_shared
def test_partitions_that_move_between_two_workers_change_nothing(
    broker: KafkaBroker, checkpoint: Path, lines: list[Record], expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    application = Application(broker.bootstrap, tmp_path, checkpoint, PARTITIONS)
    half = len(lines) // 2
    application.produce(lines[:half])
    lasting = ("worker.batch_records=500", "sessions.idle_flush=null")
    with application.start(*lasting) as first:
        first.wait_until(lambda: consumed(application) == half)
        with application.start(*lasting, "worker.instance=w1") as second:
            second.wait_until(lambda: second.logged("partition_restored"))
            application.produce(lines[half:])
            second.wait_until(lambda: consumed(application) >= 0.6 * len(lines))
            assert first.stop() == 0, first.tail()
            second.wait_until(lambda: consumed(application) == len(lines))
            assert second.stop() == 0, second.tail()
    finish_and_compare(application, expected)


@needs_shared
def test_a_broker_that_is_killed_and_comes_back_changes_nothing(
    checkpoint: Path, lines: list[Record], expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    require_kafka()
    own = KafkaBroker(tmp_path / "kafka").start()
    try:
        application = Application(
            own.bootstrap,
            tmp_path,
            checkpoint,
            PARTITIONS,
            kafka={"transaction.timeout.ms": 5000, "session.timeout.ms": 6000},
        )
        application.produce(lines)
        with followed(application) as output, application.start("worker.batch_records=200") as worker:
            worker.wait_until(lambda: output.finals >= 0.1 * len(expected))
            own.kill()
            assert output.finals < len(expected), "the worker was done before the broker was killed"
            own.start()
            # It goes on by itself, unless the coordinator gave its transaction up meanwhile.
            deadline = time.monotonic() + 120
            while worker.process.poll() is None and output.finals < len(expected):
                assert time.monotonic() < deadline, worker.tail()
                time.sleep(0.1)
            assert worker.process.poll() in (None, 1)
        finish_and_compare(application, expected)
    finally:
        own.kill()


def finish_and_compare(application: Application, expected: list[dict[str, Any]]) -> None:
    """One more worker scores what is left and stops."""
    with followed(application) as output, application.start() as worker:
        worker.wait_until(lambda: output.finals >= len(expected))
        assert worker.stop() == 0, worker.tail()
    assert_exact(application, expected)


def learnt_thresholds(application: Application) -> set[tuple[float, ...]]:
    """The partition of each record and what it was judged by, where that is no longer what the settings begin with."""
    judged = {(each["source"]["partition"], *each["thresholds"].values()) for each in application.scores()}
    return judged - {(partition, 0.7, 0.95) for partition in range(PARTITIONS)}


def consumed(application: Application) -> int:
    return sum(max(0, each.offset) for each in application.committed().values())


@contextmanager
def followed(application: Application) -> Iterator[Follower]:
    """What a reader of its scores sees."""
    try:
        create_topic(application.bootstrap, application.score_topic, PARTITIONS)
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise
    output = Follower(application.bootstrap, application.score_topic)
    try:
        yield output
    finally:
        output.close()
