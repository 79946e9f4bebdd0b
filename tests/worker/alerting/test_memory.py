"""What a memory knows is bounded, and the same whether it was kept or read again."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.worker.alerting.receiving import score_record
from worker.alerting import memory as module
from worker.alerting.alerts import ScoreRecord
from worker.alerting.memory import Change, Memory, Mutes
from worker.settings.alerts import MuteSettings

HOUR_MS = 3_600_000


def record(session: str, *arguments: str, **other: object) -> ScoreRecord:
    return ScoreRecord.model_validate_json(score_record(session, *arguments, **other))  # type: ignore[arg-type]


def memory() -> Memory:
    return Memory("shop", least="warning", mutes=Mutes(()), remember_ms=HOUR_MS)


def test_a_session_is_remembered_for_as_long_as_the_settings_say() -> None:
    made = memory()
    assert made.take(record("a"), 0, 0) is not None
    assert made.take(record("b", "warning", "early"), 1, 0) is not None
    assert made.take(record("a"), 2, HOUR_MS) is None
    assert made.read_from(3) == 0
    assert made.take(record("quiet", "normal"), 3, HOUR_MS + 1) is None
    assert made.read_from(4) == 4
    assert made.take(record("a"), 4, HOUR_MS + 1) is not None


def test_a_final_record_that_retracts_an_alert_resolves_it_once_though_the_alert_is_forgotten() -> None:
    def retracting(session: str, severity: str, taken_back: str) -> ScoreRecord:
        return record(session, severity, retracts=[{"id": "0" * 32, "severity": taken_back}])

    made = memory()
    assert made.take(record("a", "critical", "early"), 0, 0) is not None
    resolved = made.take(retracting("a", "normal", "critical"), 1, 2 * HOUR_MS)
    assert resolved is not None
    assert (resolved.firing, resolved.alert.session) == (False, "a")
    assert made.take(retracting("a", "normal", "critical"), 2, 2 * HOUR_MS) is None
    critical_only = Memory("shop", least="critical", mutes=Mutes(()), remember_ms=HOUR_MS)
    assert critical_only.take(retracting("b", "normal", "warning"), 0, 0) is None, "it was never told of that"
    assert critical_only.take(retracting("c", "warning", "critical"), 1, 0) is not None
    until = datetime(2030, 1, 1, tzinfo=UTC)
    muted = Memory("shop", least="warning", mutes=Mutes([MuteSettings(session="^d", until=until)]), remember_ms=HOUR_MS)
    assert muted.take(retracting("d", "normal", "critical"), 0, 0) is None


def test_sessions_of_several_keys_that_begin_in_one_record_are_told_of_one_by_one() -> None:
    made = memory()
    assert made.take(record("a", "critical", "final", first_offset=7), 0, 0) is not None
    assert made.take(record("b", "critical", "final", first_offset=7), 1, 0) is not None


def test_it_holds_so_many_sessions_and_lets_go_of_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_SESSIONS", 3)
    made = memory()
    for number in range(10):
        assert made.take(record(f"s{number}", "critical", "early"), number, 0) is not None
    assert made.read_from(10) in {6, 7}
    assert made.take(record("s9", "normal"), 10, 0) is not None
    assert made.take(record("s0", "normal"), 11, 0) is None


def test_what_is_open_is_read_again_however_far_back_and_what_is_done_only_so_far(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_DONE_RECORDS", 100)
    made = memory()
    made.take(record("done"), 5, 0)
    assert (made.read_from(10), made.read_from(1000)) == (5, 900)
    made.take(record("open", "critical", "early"), 20, 0)
    assert made.read_from(1000) == 20


_RECORDS_OF = {
    "a": [("warning", "early"), ("normal", "final")],
    "b": [("normal", "final")],
    "c": [("critical", "early"), ("critical", "final")],
    "d": [("warning", "early"), ("critical", "early"), ("normal", "final")],
}


@example(list("aaa"), 2)
@given(st.lists(st.sampled_from("abcd"), max_size=30), st.integers(0, 30))
def test_a_restart_at_any_record_changes_nothing_of_what_is_told(sessions: list[str], at: int) -> None:
    # Whatever the order of sessions, each has its records in theirs, and all of them again in a replay.
    records = [
        record(session, *_RECORDS_OF[session][sessions[:number].count(session) % len(_RECORDS_OF[session])])
        for number, session in enumerate(sessions)
    ]

    def take(made: Memory, numbers: range, *, again: bool = False) -> list[Change | None]:
        return [made.take(records[number], number, number * 1000, again=again) for number in numbers]

    at = min(at, len(records))
    kept, before, restarted = memory(), memory(), memory()
    expected = take(kept, range(len(records)))
    take(before, range(at))
    take(restarted, range(before.read_from(at), at), again=True)
    assert take(restarted, range(at, len(records))) == expected[at:]
