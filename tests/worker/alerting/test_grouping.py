"""Messages are few, however many sessions there are, and none of them is forgotten."""

from __future__ import annotations

import pytest

from tests.worker.alerting.receiving import score_record
from tests.worker.small_worker import Clock
from worker.alerting import grouping
from worker.alerting.alerts import ScoreRecord, alert_of
from worker.alerting.grouping import Budget, Waiting
from worker.alerting.memory import Change
from worker.processing.records import Partition

HERE = Partition("scores", 0)


def change(session: str, reason: str = "r", *, firing: bool = True, severity: str = "critical") -> Change:
    record = score_record(session, severity, reason=reason)  # type: ignore[arg-type]
    return Change(alert_of("shop", ScoreRecord.model_validate_json(record)), firing)


def waiting(*changes: Change) -> Waiting:
    made = Waiting()
    for each in changes:
        made.add(HERE, each)
    return made


def test_the_worst_come_first_then_those_of_most_sessions() -> None:
    many = [change(f"m{number}", "many", severity="warning") for number in range(3)]
    made = waiting(change("few", "few", severity="warning"), *many, change("bad", "bad"))
    messages = made.take(by_session=False, most=10)
    assert [(len(message.alerts), message.alerts[0].reason) for message in messages] == [
        (1, "bad"), (3, "many"), (1, "few")
    ]  # fmt: skip
    assert not made


def test_with_one_message_left_everything_is_in_it() -> None:
    [message] = waiting(change("a", "one"), change("b", "two")).take(by_session=False, most=1)
    assert (message.sessions, message.mixed) == (2, True)


def test_a_receiver_of_single_sessions_gets_them_up_to_the_limit_and_one_for_the_rest() -> None:
    messages = waiting(*(change(f"s{number}") for number in range(20))).take(by_session=True, most=5)
    assert [(message.sessions, message.mixed) for message in messages] == [*[(1, False)] * 4, (16, True)]


def test_what_is_taken_back_is_not_limited_where_it_wakes_nobody() -> None:
    changes = [change("new"), *(change(f"s{number}", firing=False) for number in range(20))]
    messages = waiting(*changes).take(by_session=True, most=0)
    assert [(message.status, message.sessions) for message in messages] == [("resolved", 20)]


def test_where_it_is_a_message_it_waits_for_the_next_minute() -> None:
    made = waiting(change("new"), change("old", firing=False))
    assert [message.status for message in made.take(by_session=False, most=1)] == ["firing"]
    assert made
    assert made.take(by_session=False, most=0) == []
    assert [message.status for message in made.take(by_session=False, most=1)] == ["resolved"]
    assert not made


def test_sessions_beyond_what_is_kept_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping, "_MOST_WAITING", 150)
    for reasons in (1, 3):
        made = waiting(*(change(f"s{number}", f"r{number % reasons}") for number in range(1000)))
        messages = made.take(by_session=False, most=10)
        assert sum(message.sessions for message in messages) == 1000
        assert all(len(message.alerts) <= 100 for message in messages)
        assert len(messages) == reasons


def test_what_is_taken_back_is_never_only_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping, "_MOST_WAITING", 150)
    made = waiting(*(change(f"s{number}", firing=False) for number in range(150)))
    assert made.full
    [message] = made.take(by_session=True, most=1)
    assert (len(message.alerts), message.unlisted) == (150, 0)
    assert not made.full


def test_a_budget_is_of_any_minute() -> None:
    clock = Clock(tick_s=0)
    budget = Budget(2, clock)
    budget.spend()
    clock.sleep(50)
    budget.spend()
    assert budget.left == 0
    clock.sleep(10)
    assert budget.left == 1
    budget.spend()
    clock.sleep(49)
    assert budget.left == 0
    clock.sleep(1)
    assert budget.left == 1
