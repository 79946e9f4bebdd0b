"""What a receiver answers a message with: verdicts on sessions of that message, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import structlog

from tests.worker.alerting.receiving import ReceiverServer, Reply, score_record
from tests.worker.alerting.test_loop import Scores

PATTERN = "counts 0123456789ab*2 cdef01234567"


@pytest.fixture
def server() -> Iterator[ReceiverServer]:
    with ReceiverServer() as server:
        yield server


def answering(server: ReceiverServer) -> Scores:
    scores = Scores(server.url)
    receiver = f"{{type: webhook, url: '{server.url}', answers: true}}"
    scores.overrides += [f"alert.receivers={{chat: {receiver}}}", "feedback.topic=logmamba-feedback"]
    return scores


def ids_of(scores: Scores, server: ReceiverServer) -> list[str]:
    """Of the sessions of the latest message; a process that tells of what is there, and forgets that it did."""
    scores.tell()
    scores.broker.committed.clear()
    return [each["id"] for each in server.taken[-1]["alerts"]]


def reply(*verdicts: dict[str, Any]) -> Reply:
    return Reply(text=orjson.dumps({"feedback": verdicts}).decode())


def test_a_verdict_on_a_session_of_the_message_is_written_on_its_pattern(server: ReceiverServer) -> None:
    scores = answering(server)
    scores.write(score_record("a", pattern=PATTERN))
    [identity] = ids_of(scores, server)
    assert server.taken[-1]["alerts"][0]["pattern"] == PATTERN
    assert scores.said == [], "it has only said ok"
    server.always = reply({"id": identity, "verdict": "normal", "note": "a nightly backup"})
    scores.tell()
    [said] = scores.said
    assert (said.pattern, said.verdict, said.note, said.by) == (PATTERN, "normal", "a nightly backup", "receiver chat")
    assert (said.session and said.session.key, said.reason) == ("a", "Receiving block <*>")


def test_of_a_session_that_is_told_of_while_it_is_open_the_verdict_waits_for_its_final_record(
    server: ReceiverServer,
) -> None:
    scores = answering(server)
    scores.write(score_record("a", kind="early"))
    [identity] = ids_of(scores, server)
    server.always = reply({"id": identity, "verdict": "anomalous"})
    final = score_record("a", pattern=PATTERN)
    scores.tell(lambda: scores.said and pytest.fail("it is open"), lambda: scores.write(final), lambda: None)
    assert [(each.pattern, each.verdict) for each in scores.said] == [(PATTERN, "anomalous")]


def test_what_is_no_verdict_on_a_session_of_the_message_is_named_and_mutes_nothing(server: ReceiverServer) -> None:
    scores = answering(server)
    scores.write(score_record("a", pattern=PATTERN), score_record("b"))
    a, b = ids_of(scores, server)
    good = {"id": a, "verdict": "normal"}
    for answer, reason in (
        (reply(good | {"id": "0" * 32}), "is not in the message"),
        (reply({"id": b, "verdict": "normal"}), "the score record names no pattern"),
        (reply(good | {"verdict": "fine"}), "feedback.0.verdict: Input should be 'normal' or 'anomalous'"),
        (reply(good | {"pattern": "counts 000000000000"}), "feedback.0.pattern: Extra inputs"),
        (Reply(text='{"feedback": '), "Invalid JSON"),
    ):
        server.always = answer
        with structlog.testing.capture_logs() as log:
            scores.tell()
        scores.broker.committed.clear()
        [told] = [each["reason"] for each in log if each["event"] == "answer_not_taken"]
        assert reason in told
    assert scores.said == []


def test_only_a_receiver_that_may_is_listened_to(server: ReceiverServer) -> None:
    scores = Scores(server.url)
    scores.write(score_record("a", pattern=PATTERN))
    [identity] = ids_of(scores, server)
    server.always = reply({"id": identity, "verdict": "normal"})
    scores.tell()
    assert scores.said == []
