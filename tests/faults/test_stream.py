"""The log that the other tests score has what they are about."""

from __future__ import annotations

from tests.faults.stream import PARTITIONS, Stream


def test_the_log_has_sessions_that_end_in_every_way_early_scores_and_dead_letters(stream: Stream) -> None:
    for partition in range(PARTITIONS):
        endings = {each.closed_by for each in stream.expected.sessions if each.partition == partition}
        assert endings == {"gap", "max_age", "max_events", "max_open", "idle"}
    assert {each["severity"] for each in stream.early} == {"warning", "critical"}
    assert {each.reason for each in stream.expected.dead_letters} == {
        "null",
        "empty",
        "not_utf8",
        "no_key",
        "bad_timestamp",
    }
