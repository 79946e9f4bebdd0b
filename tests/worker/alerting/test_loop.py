"""The loop of one receiver, on topics in memory and a receiver on a real socket."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orjson
import pytest
import structlog

from tests.worker.alerting.receiving import ReceiverServer, Reply, score_record
from tests.worker.kafka.registry import SchemaRegistry
from tests.worker.small_worker import Clock
from worker.alerting.delivery import post
from worker.alerting.loop import AlertLoop
from worker.delivery.deadline import Deadline
from worker.delivery.memory import MemoryBroker, MemorySource
from worker.delivery.outage import Outage
from worker.delivery.protocols import Committed
from worker.errors import RunError, TransactionAborted
from worker.kafka.avro import score_reader, score_writer
from worker.processing.feedback import FeedbackRecord
from worker.processing.records import Partition, Records
from worker.settings.document import load_settings

TOPIC = "log-anomaly-scores"
FIRST = Partition(TOPIC, 0)


class Source(MemorySource):
    """A member of a group that commits outside transactions, and takes a step of a script at each poll."""

    over = False
    fail_next_commit = False

    def begin(self, *steps: Callable[[], object]) -> None:
        self._steps = list(steps)

    def poll(self, max_records: int, timeout_s: float) -> list[Records]:
        if self._steps:
            self._steps.pop(0)()
        else:
            self.over = True
        return super().poll(max_records, timeout_s)

    def commit_offsets(self, offsets: Mapping[Partition, Committed], deadline: Deadline) -> None:
        if self.fail_next_commit:
            self.fail_next_commit = False
            raise TransactionAborted("the group is being balanced")
        self.broker.committed.update(offsets)


class Scores:
    """A score topic whose records are written a second apart, and loops that tell a receiver of it."""

    def __init__(self, url: str, *overrides: str, kind: str = "webhook") -> None:
        address = f"type: {kind}, url: '{url}'" if kind != "slack" else "type: slack, url: '${URL}'"
        self.overrides = [
            f"alert.receivers={{chat: {{{address}}}}}",
            "alert.start=earliest",
            "alert.group_wait=0ms",
            *overrides,
        ]
        self.environment = {"URL": url}
        self.as_json: Callable[[bytes | None], bytes | None] = lambda value: value
        self.said: list[FeedbackRecord] = []
        self.broker = MemoryBroker({TOPIC: 2})
        self.clock = Clock()
        self._time_ms = 0

    def write(self, *values: bytes, partition: Partition = FIRST) -> None:
        for value in values:
            self._time_ms += 1000
            self.broker.append(partition, value, timestamp=self._time_ms)

    def loop(self, *steps: Callable[[], object], also: tuple[str, ...] = ()) -> tuple[AlertLoop, Source]:
        source = Source(self.broker, assign_next=[FIRST, Partition(TOPIC, 1)])
        source.begin(lambda: None, *steps)
        loop = AlertLoop(
            load_settings(None, [*self.overrides, *also], self.environment),
            "chat",
            source=source,
            reader=self.broker,
            send=post,
            outage=Outage(),
            clock=self.clock,
            sleep=self.clock.sleep,
            as_json=self.as_json,
            say=self.said.append,
        )
        return loop, source

    def tell(self, *steps: Callable[[], object], also: tuple[str, ...] = ()) -> None:
        """A process that starts, takes a step at each poll, and is told to stop after the last one."""
        loop, source = self.loop(*steps, also=also)
        loop.run(lambda: source.over)

    def committed(self) -> int:
        return self.broker.committed[FIRST].offset


@pytest.fixture
def server() -> Iterator[ReceiverServer]:
    with ReceiverServer() as server:
        yield server


def told(server: ReceiverServer) -> list[tuple[str, list[str]]]:
    """Status and sessions of each message that was taken."""
    return [(body["status"], [alert["session"] for alert in body["alerts"]]) for body in server.taken]


def test_a_session_is_told_of_once_whatever_its_records(server: ReceiverServer) -> None:
    scores = Scores(server.url)
    early = score_record("a", "warning", "early"), score_record("a", "critical", "early")
    scores.write(*early, score_record("quiet", "normal"), score_record("a"), *early, score_record("a"))
    scores.tell()
    assert told(server) == [("firing", ["a"])]
    assert scores.committed() == 7


def test_another_session_of_the_same_key_is_told_of_by_itself(server: ReceiverServer) -> None:
    scores = Scores(server.url)
    scores.write(score_record("a", first_offset=1))
    scores.tell(lambda: None, lambda: scores.write(score_record("a", first_offset=2)))
    assert told(server) == [("firing", ["a"]), ("firing", ["a"])]
    first, second = (body["alerts"][0]["id"] for body in server.taken)
    assert first != second


def test_a_final_record_that_takes_an_early_one_back_resolves_it(server: ReceiverServer) -> None:
    scores = Scores(server.url)
    scores.write(score_record("a", "critical", "early"))
    scores.tell(lambda: None, lambda: scores.write(score_record("a", "normal")))
    assert told(server) == [("firing", ["a"]), ("resolved", ["a"])]
    assert len({body["alerts"][0]["id"] for body in server.taken}) == 1


def test_what_is_taken_back_before_it_was_told_goes_without_a_message(server: ReceiverServer) -> None:
    scores = Scores(server.url)
    scores.write(score_record("a", "critical", "early"), score_record("a", "normal"), score_record("b"))
    scores.tell()
    assert told(server) == [("firing", ["b"])]


def test_an_alert_that_was_open_before_a_restart_is_resolved_after_it(server: ReceiverServer) -> None:
    scores = Scores(server.url)
    scores.write(score_record("a", "critical", "early"), score_record("b", "warning", "early"))
    scores.tell()
    scores.write(score_record("b", "critical"))
    scores.tell()
    scores.write(*(score_record(f"quiet{number}", "normal") for number in range(10)))
    scores.tell()
    scores.write(score_record("a", "normal"), score_record("b", "critical"))
    scores.tell()
    assert told(server) == [("firing", ["a", "b"]), ("resolved", ["a"])]


def test_a_replay_after_a_restart_is_no_new_alert(server: ReceiverServer) -> None:
    records = score_record("a", "critical", "early"), score_record("a"), score_record("b", "critical", "early")
    scores = Scores(server.url)
    scores.write(*records)
    scores.tell()
    scores.write(score_record("b", "normal"))
    scores.tell()
    scores.write(*records)
    scores.tell()
    scores.write(score_record("b", "normal"))
    scores.tell()
    assert told(server) == [("firing", ["a", "b"]), ("resolved", ["b"])]


def test_what_was_there_before_the_receiver_is_not_taken_for_told_after_a_restart(server: ReceiverServer) -> None:
    scores = Scores(server.url, "alert.start=latest")
    scores.write(score_record("a", "critical", "early"))
    scores.tell()
    scores.write(score_record("quiet", "normal"))
    scores.tell()
    scores.write(score_record("a"))
    scores.tell()
    assert told(server) == [("firing", ["a"])]


def test_a_receiver_of_critical_ones_is_told_when_a_session_becomes_critical(server: ReceiverServer) -> None:
    scores = Scores(server.url, "alert.receivers.chat.severity=critical")
    scores.write(score_record("a", "warning", "early"), score_record("b", "warning"))
    scores.tell()
    assert told(server) == []
    scores.write(score_record("a", "critical", "early"))
    scores.tell()
    scores.write(score_record("a", "warning"))
    scores.tell()
    assert told(server) == [("firing", ["a"]), ("resolved", ["a"])]


def test_nothing_is_lost_or_committed_while_the_receiver_is_away(server: ReceiverServer) -> None:
    scores = Scores(server.url)
    scores.write(score_record("a"))
    server.replies = [Reply(503), Reply(500), Reply(429, {"Retry-After": "120"}), Reply(408)]
    committed: list[object] = []
    loop, source = scores.loop()

    def stopping() -> bool:
        committed.append(scores.broker.committed.get(FIRST))
        return source.over

    began = scores.clock.now
    with structlog.testing.capture_logs() as log:
        loop.run(stopping)
    assert told(server) == [("firing", ["a"])]
    assert len(server.requests) == 5
    assert scores.clock.now - began >= 1 + 2 + 120  # two that double, and what the receiver asked for
    assert scores.committed() == 1
    assert [line["event"] for line in log if line["event"].startswith("receiver_")][-1] == "receiver_back"
    assert sum(line["event"] == "receiver_away" for line in log) < 5


def test_a_stop_does_not_wait_for_a_receiver_that_is_away_and_the_next_start_tells_it(server: ReceiverServer) -> None:
    scores = Scores(server.url)
    scores.write(score_record("a"))
    server.always = Reply(503)
    loop, _ = scores.loop()
    loop.run(lambda: len(server.requests) == 2)
    assert FIRST not in scores.broker.committed or scores.committed() == 0
    server.always = Reply()
    scores.tell()
    assert told(server) == [("firing", ["a"])]


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 410, 413, 422])
def test_an_answer_that_will_never_be_another_ends_the_loop_and_loses_nothing(
    server: ReceiverServer, status: int
) -> None:
    scores = Scores(server.url)
    scores.write(score_record("a"))
    server.replies = [Reply(status, {"Location": "/elsewhere"}, "invalid_payload")]
    with pytest.raises(RunError, match=rf"alert\.receivers\.chat: refused a message for good: {status} .*invalid_p"):
        scores.tell()
    assert [request.path for request in server.requests] == ["/"]
    scores.tell()
    assert told(server) == [("firing", ["a"])]


def test_a_commit_that_fails_is_done_again_and_tells_nobody_twice(server: ReceiverServer) -> None:
    scores = Scores(server.url)
    scores.write(score_record("a"))
    loop, source = scores.loop()
    source.fail_next_commit = True
    loop.run(lambda: source.over)
    scores.tell()
    assert told(server) == [("firing", ["a"])]
    assert scores.committed() == 1


def test_sessions_of_one_reason_are_one_message_and_wait_for_each_other(server: ReceiverServer) -> None:
    scores = Scores(server.url, "alert.group_wait=10s")
    reason = {"reason": {"text": "Closed 2 times.", "family": "F1"}}
    scores.write(score_record("a", "warning", **reason))

    def later() -> None:
        assert told(server) == []
        scores.write(score_record("b", reason={"text": "Closed 3 times.", "family": "F1"}))
        scores.write(score_record("c", "warning", reason="in words"))
        scores.clock.sleep(10)

    scores.tell(lambda: None, later, lambda: None)
    assert told(server) == [("firing", ["b", "a"]), ("firing", ["c"])]
    assert [body["reason"] for body in server.taken] == ["Closed 3 times.", "in words"]
    assert server.taken[0]["text"].splitlines()[0] == "critical in logmamba: 2 sessions"


def test_beyond_the_limit_of_a_minute_the_rest_is_put_together(server: ReceiverServer) -> None:
    scores = Scores(server.url, "alert.most_per_minute=3")
    scores.write(*(score_record(f"s{number}", "warning", reason=f"reason {number}") for number in range(215)))
    scores.write(score_record("worst", reason="worst"))

    def a_minute_later() -> None:
        assert len(server.taken) == 3
        scores.clock.sleep(61)

    scores.tell(lambda: None, lambda: scores.write(score_record("late")), lambda: None, a_minute_later)
    bodies = server.taken
    assert [body["sessions"] for body in bodies] == [1, 1, 214, 1]
    assert bodies[0]["alerts"][0]["session"] == "worst"
    assert bodies[2]["text"].startswith("logmamba: and 214 more sessions, warning at worst")
    assert bodies[3]["alerts"][0]["session"] == "late"
    assert scores.committed() == 217


def test_what_is_muted_is_not_told_until_the_mute_is_over(server: ReceiverServer) -> None:
    mutes = "alert.mutes=[{session: '^test-', until: '1970-01-01T00:00:05Z'}, {reason: disk, until: 2100-01-01}]"
    scores = Scores(server.url, mutes)
    scores.write(score_record("test-1"), score_record("a", reason="the disk is full"), score_record("b"))
    scores.write(score_record("quiet", "normal"), score_record("test-2"))
    scores.tell()
    assert told(server) == [("firing", ["b", "test-2"])]


def test_an_early_alert_that_was_muted_is_told_by_its_final_record_also_after_a_restart(server: ReceiverServer) -> None:
    scores = Scores(server.url, "alert.mutes=[{session: '^test', until: '1970-01-01T00:00:03Z'}]")
    scores.write(score_record("open", "critical", "early"), score_record("test", "critical", "early"))
    scores.tell()
    scores.write(score_record("x", "normal"), score_record("test"))
    scores.tell()
    assert told(server) == [("firing", ["open"]), ("firing", ["test"])]


def test_a_mute_that_is_newer_than_an_alert_lets_it_be_resolved(server: ReceiverServer) -> None:
    scores = Scores(server.url)
    scores.write(score_record("a", "critical", "early"))
    scores.tell()
    scores.write(score_record("a", "normal"))
    scores.tell(also=("alert.mutes=[{session: a, until: 2100-01-01}]",))
    assert told(server) == [("firing", ["a"]), ("resolved", ["a"])]


def test_a_new_group_begins_with_what_comes_next(server: ReceiverServer) -> None:
    scores = Scores(server.url, "alert.start=latest")
    scores.write(score_record("old"))
    scores.tell()
    assert scores.committed() == 1
    scores.write(score_record("new"))
    scores.tell()
    assert told(server) == [("firing", ["new"])]


def test_where_a_new_group_begins_does_not_depend_on_how_soon_it_is_killed(server: ReceiverServer) -> None:
    def killed() -> None:
        raise KeyboardInterrupt

    scores = Scores(server.url, "alert.start=latest")
    scores.write(score_record("old"))
    with pytest.raises(KeyboardInterrupt):
        scores.tell(killed)
    scores.write(score_record("new"))
    scores.tell()
    assert told(server) == [("firing", ["new"])]


def test_records_in_avro_are_told_of_like_those_in_json_also_when_they_are_read_again(server: ReceiverServer) -> None:
    pytest.importorskip("confluent_kafka.schema_registry.avro", reason="too old a client", exc_type=ImportError)
    scores = Scores(server.url)
    with SchemaRegistry() as registry:
        avro = ("output.format=avro", f"output.schema_registry={{url: '{registry.url}'}}")
        use = load_settings(None, [*scores.overrides, *avro], scores.environment)
        serialize = score_writer(use)
        assert serialize is not None
        with score_reader(use) as scores.as_json:
            scores.write(serialize(orjson.loads(score_record("a", "critical", "early"))), score_record("b"))
            scores.tell()
            scores.write(serialize(orjson.loads(score_record("a", "normal"))))
            scores.tell()
    assert told(server) == [("firing", ["a", "b"]), ("resolved", ["a"])]


def test_a_record_that_is_no_score_record_is_named_and_passed_over(server: ReceiverServer) -> None:
    scores = Scores(server.url)
    scores.write(b"{}", b"\xff", score_record("a", score="high"), score_record("b"))
    with structlog.testing.capture_logs() as log:
        scores.tell()
    places = [(line["partition"], line["offset"]) for line in log if line["event"] == "not_a_score_record"]
    assert places == [(f"{TOPIC}[0]", 0), (f"{TOPIC}[0]", 1), (f"{TOPIC}[0]", 2)]
    assert told(server) == [("firing", ["b"])]


def test_a_partition_that_goes_away_takes_what_waits_with_it(server: ReceiverServer) -> None:
    scores = Scores(server.url, "alert.group_wait=10s")
    scores.write(score_record("a"))
    scores.write(score_record("b"), partition=Partition(TOPIC, 1))
    loop, source = scores.loop(lambda: None, lambda: source.revoke_next.append(FIRST), lambda: None)
    loop.run(lambda: source.over)
    assert told(server) == [("firing", ["b"])]
    assert FIRST not in scores.broker.committed or scores.committed() == 0
    scores.tell()
    assert told(server) == [("firing", ["b"]), ("firing", ["a"])]


def test_records_that_retention_took_away_are_named(server: ReceiverServer) -> None:
    scores = Scores(server.url)
    scores.write(score_record("a"))
    scores.tell()
    scores.write(score_record("lost"), score_record("b"))
    scores.broker.delete_before(FIRST, 2)
    with structlog.testing.capture_logs() as log:
        scores.tell()
    [line] = [line for line in log if line["event"] == "position_lost"]
    assert (line["position"], line["oldest"], line["log_level"]) == (1, 2, "error")
    assert told(server) == [("firing", ["a"]), ("firing", ["b"])]


def test_a_topic_that_was_made_anew_is_told_of_from_its_beginning(server: ReceiverServer) -> None:
    scores = Scores(server.url)
    scores.write(*(score_record(f"quiet{number}", "normal") for number in range(5)), score_record("a"))
    scores.tell()
    committed, scores.broker = scores.broker.committed, MemoryBroker({TOPIC: 2})
    scores.broker.committed |= committed
    scores.write(score_record("b"))
    with structlog.testing.capture_logs() as log:
        scores.tell()
    [line] = [line for line in log if line["event"] == "position_lost"]
    assert (line["position"], line["oldest"], line["why"]) == (6, 0, "the topic was made anew")
    assert told(server) == [("firing", ["a"]), ("firing", ["b"])]
    assert scores.committed() == 1


def test_records_that_come_while_the_partitions_are_paused_are_read_again(server: ReceiverServer) -> None:
    scores = Scores(server.url)
    scores.write(score_record("a"))
    server.replies = [Reply(503), Reply(503)]
    loop, source = scores.loop(lambda: None, lambda: None)
    alive = source.keep_alive

    def delivers() -> None:
        # As when a partition is handed over amid the pause: the position moves on behind a record that nobody has.
        scores.write(score_record("b"))
        source._positions[FIRST] += 1
        alive()
        raise TransactionAborted("a paused partition delivered a record")

    source.keep_alive = delivers  # type: ignore[method-assign]
    loop.run(lambda: source.over)
    sessions: list[Any] = [session for _, sessions in told(server) for session in sessions]
    assert sessions[:2] == ["a", "b"]
    assert len(sessions) == len(set(sessions)) + sessions.count("b") - 1
