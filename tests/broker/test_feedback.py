"""Verdicts on a real broker: from the command to the records of running workers, whatever kills those."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pytest
import yaml
from confluent_kafka import Producer

from detector.checkpoint import demo_checkpoint
from tests.broker.harness import AlertProcess, Application, Record, create_topic, read_all
from tests.broker.kafka import KafkaBroker
from tests.worker.alerting.receiving import ReceiverServer, Reply
from tests.worker.command_line import Done, logmamba
from worker.shipped import shipped_text

PARTITIONS = 2
# To the demo's checkpoint such a session is critical.
LINES = (
    b"240301 120046 64 INFO store.Intake: inbound stream for %s opened by 10.1.5.32:54526 towards 10.5.2.15:7010",
    b"240301 120046 274 INFO meta.Allocator: granted %s to /warehouse/day_35766/part_35766, replicas wanted 3",
    b"240301 120047 59 INFO meta.Index: replica of %s registered at 10.5.2.15:7010 holding 67108864 bytes",
)
# So do usual ones begin.
USUAL = (LINES[0], LINES[0], b"240301 120047 38 INFO store.Relay: relay of %s ended cleanly after 36885 packets")


@pytest.fixture
def application(broker: KafkaBroker, tmp_path: Path) -> Application:
    name = f"{tmp_path.name}-feedback"
    return Application(
        broker.bootstrap,
        tmp_path,
        demo_checkpoint(),
        PARTITIONS,
        feedback={"topic": name},
        sessions={"max_events": len(LINES)},
        # A killed worker's partitions go to the next one when its session has timed out.
        kafka={"session.timeout.ms": 6_000, "heartbeat.interval.ms": 500},
    )


def feed(application: Application, numbers: Iterable[int]) -> None:
    application.produce(
        Record(line % f"blk_{number}".encode(), partition=number % PARTITIONS) for number in numbers for line in LINES
    )


def scored(application: Application) -> dict[str, tuple[dict[str, Any], int]]:
    """The final record of each session, and the version of the verdicts that it was judged by."""
    found: dict[str, tuple[dict[str, Any], int]] = {}
    for message in read_all(application.bootstrap, application.score_topic):
        record = orjson.loads(message.value() or b"")
        if record["kind"] == "final":
            assert record["session"] not in found, "it came twice"
            found[record["session"]] = record, int(dict(message.headers() or [])["logmamba-feedback"])
    return found


def feedback(application: Application, *arguments: object) -> Done:
    return logmamba("feedback", "--config", application.config, *arguments)


def test_a_verdict_mutes_the_pattern_of_its_session_at_once_until_it_is_taken_back_and_kill_9_changes_no_record(
    application: Application,
) -> None:
    with application.start() as worker:
        feed(application, range(10))
        worker.wait_until(lambda: len(scored(application)) == 10)
    said = feedback(application, "--session", "blk_3", "--verdict", "normal", "--note", "a nightly job", "--by", "me")
    assert (said.returncode, said.stderr.splitlines()[-1]) == (0, "1 pattern judged, 0 taken back")
    with application.start() as worker:
        feed(application, range(10, 20))
        worker.wait_until(lambda: len(scored(application)) == 20)
        worker.kill()
    [line] = feedback(application, "--list", "--json").stdout.splitlines()
    verdict = orjson.loads(line)
    jsonschema.validate(verdict, orjson.loads(shipped_text("feedback.schema.json")))
    assert (verdict["session"]["key"], verdict["note"], verdict["by"]) == ("blk_3", "a nightly job", "me")
    assert "a nightly job" in feedback(application, "--list").stdout

    # Killed when it is about to go over to other verdicts, and the next one when it just has.
    with application.start(program=("tests.faults.striking_worker", "--at", "hand_over", "--signal", "KILL")) as worker:
        worker.wait_until(lambda: worker.logged("partition_restored"))
        assert feedback(application, "--forget", verdict["pattern"]).returncode == 0
        assert worker.ended() == -signal.SIGKILL, worker.tail()
    feed(application, range(20, 30))
    with application.start(program=("tests.faults.striking_worker", "--at", "taken", "--signal", "KILL")) as worker:
        worker.wait_until(lambda: len(scored(application)) == 30)
        assert feedback(application, "--session", "blk_21", "--verdict", "normal").returncode == 0
        assert worker.ended() == -signal.SIGKILL, worker.tail()
    feed(application, range(30, 40))
    with application.start() as worker:
        worker.wait_until(lambda: len(scored(application)) == 40)
        assert feedback(application, "--session", "blk_21", "--verdict", "anomalous").returncode == 0
        worker.wait_until(lambda: worker.logged("feedback_taken"))
        feed(application, range(40, 50))
        worker.wait_until(lambda: len(scored(application)) == 50)
        assert worker.stop() == 0, worker.tail()

    found = scored(application)
    schema = orjson.loads(shipped_text("score-record.schema.json"))
    for number in range(50):
        record, version = found[f"blk_{number}"]
        jsonschema.validate(record, schema)
        assert record["pattern"] == verdict["pattern"]
        muted = number // 10 in (1, 3)
        assert record["severity"] == ("normal" if muted else "critical")
        said_of_it = {1: "normal", 3: "normal", 4: "anomalous"}.get(number // 10)
        expected = said_of_it and {"verdict": said_of_it, "scored": "critical"}
        assert record.get("feedback") == expected
        assert version == number // 10


def test_what_cannot_be_judged_is_told_in_a_line_and_nothing_is_written(application: Application) -> None:
    command = ("--session", "blk_1", "--verdict", "normal")
    missing = feedback(application, *command)
    assert missing.returncode == 1
    topic = application.settings["feedback"]["topic"]
    assert missing.stderr.startswith(f"logmamba: feedback.topic: {topic} does not exist at ")
    off = feedback(application, *command, "--set", "feedback.topic=null")
    assert (off.returncode, off.stderr) == (
        2,
        "logmamba: feedback.topic: null; allowed: the compacted topic that holds verdicts\n",
    )
    checked = logmamba("check", "--config", application.config, "--create-topics")
    assert checked.returncode == 0, checked.stdout
    assert f"feedback topic {topic}" in checked.stdout
    assert f"may read {topic}" in checked.stdout
    nowhere = feedback(application, *command)
    assert nowhere.returncode == 1
    assert "session blk_1" in nowhere.stderr
    assert feedback(application, "--forget", "0123").returncode == 1
    assert feedback(application, "--session", "a").returncode == 2
    answers = application.folder / "answers.csv"
    answers.write_text("session,verdict\nblk_1,fine\n")
    wrong = feedback(application, "--answers", answers)
    assert wrong.returncode == 1
    assert wrong.stderr == (f"logmamba: {answers}, line 2: verdict 'fine'; allowed: normal, anomalous, none\n")
    assert feedback(application, "--list", "--json").stdout == ""


def test_a_session_that_was_scored_normal_is_judged_by_its_lines_and_what_is_no_verdict_is_passed_over(
    application: Application,
) -> None:
    def send(name: bytes) -> None:
        application.produce(Record(line % name) for line in USUAL)

    with application.start() as worker:
        send(b"blk_1")
        worker.wait_until(lambda: len(scored(application)) == 1)
        [(before, _)] = scored(application).values()
        assert before["severity"] == "normal"
        assert "pattern" not in before
        answers = application.folder / "answers.jsonl"
        answers.write_bytes(orjson.dumps(before | {"verdict": "anomalous"}) + b"\n")
        given = feedback(application, "--answers", answers)
        assert given.returncode == 0, given.stderr
        assert "names no pattern; reading its lines" in given.stderr
        worker.wait_until(lambda: worker.logged("feedback_taken"))
        send(b"blk_2")
        worker.wait_until(lambda: len(scored(application)) == 2)
        after, _ = scored(application)["blk_2"]
        assert (after["severity"], after["score"]) == ("critical", before["score"])
        assert after["feedback"] == {"verdict": "anomalous", "scored": "normal"}
        (whole := application.folder / "record.json").write_bytes(orjson.dumps(after))
        explained = logmamba("explain", "--config", application.config, "--record", whole)
        told = "an operator judged its pattern anomalous, so it is critical; its score alone makes it normal"
        assert told in explained.stderr.splitlines()
        producer = Producer({"bootstrap.servers": application.bootstrap})
        producer.produce(application.settings["feedback"]["topic"], b"{}", b"counts")
        assert producer.flush(60) == 0
        worker.wait_until(lambda: worker.logged("feedback_not_read"))
        assert worker.stop() == 0, worker.tail()


def test_a_receiver_that_answers_mutes_what_it_was_told_of(application: Application) -> None:
    with ReceiverServer() as server:
        alert = application.folder / "alert.yaml"
        receiver = {"type": "webhook", "url": server.url, "answers": True}
        section = {"receivers": {"tickets": receiver}, "start": "earliest", "group_wait": "0ms"}
        alert.write_text(yaml.safe_dump({**application.settings, "model": {}, "alert": section}))
        create_topic(application.bootstrap, application.score_topic, PARTITIONS)
        missing = logmamba("alert", "--config", alert)
        assert (missing.returncode, "feedback.topic: " in missing.stderr) == (1, True), missing
        with application.start() as worker:
            feed(application, [0])
            worker.wait_until(lambda: len(scored(application)) == 1)
            record, _ = scored(application)["blk_0"]
            place = record["source"]
            told = f"{application.settings['application_id']}\n{place['topic']}\n{place['partition']}\n"
            identity = sha256(f"{told}{place['first_offset']}\nblk_0".encode()).hexdigest()[:32]
            said = {"id": identity, "verdict": "normal", "note": "a known job"}
            server.always = Reply(text=orjson.dumps({"feedback": [said]}).decode())
            checked = logmamba("check", "--config", alert)
            assert checked.returncode == 0, checked.stdout
            assert f"may write {application.settings['feedback']['topic']}" in checked.stdout
            with AlertProcess(alert, application.folder / "alert.log") as alerts:
                alerts.wait_until(lambda: alerts.logged("answer_taken"))
                worker.wait_until(lambda: worker.logged("feedback_taken"))
                assert alerts.stop() == 0, alerts.tail()
            feed(application, [1])
            worker.wait_until(lambda: len(scored(application)) == 2)
            assert scored(application)["blk_1"][0]["severity"] == "normal"
            assert worker.stop() == 0, worker.tail()
    [line] = feedback(application, "--list", "--json").stdout.splitlines()
    verdict = orjson.loads(line)
    assert (verdict["by"], verdict["note"], verdict["pattern"]) == (
        "receiver tickets",
        "a known job",
        record["pattern"],
    )
