"""Disturbed sessions say what they said, in other words or in another order."""

from __future__ import annotations

import re

import numpy as np
import pytest

from benchmarks.accuracy.datasets import Integers
from benchmarks.accuracy.disturbances import DISTURBANCES, Session, with_an_error, with_new_values
from benchmarks.accuracy.robustness import SHARES, tables
from detector.text.lexicon import DECISIVE

LINES = [
    "081109 203530 147 INFO dfs.DataNode$DataXceiver: Receiving block blk_1 src: /10.1.2.3:50 dest: /10.1.2.4:50",
    "081109 203531 147 INFO dfs.DataNode$PacketResponder: PacketResponder 1 for block blk_1 terminating",
    "081109 203532 147 WARN dfs.DataNode$DataXceiver: Got exception while serving blk_1 to /mnt/data/part",
    "081109 203533 148 INFO dfs.FSDataset: Deleting block blk_1 file /mnt/data/part-7",
]
SESSION = Session(LINES, np.array([3, 4, 5, 6]), anomalous=False)
WORD = re.compile(r"[A-Za-z$_.]+[0-9]*")


def words(line: str) -> list[str]:
    return WORD.findall(line)


def keeps_all(_tokens: Integers, _session: Session) -> bool:
    return True


@pytest.mark.parametrize("name", [name for name in DISTURBANCES if name.startswith("words") and "any" not in name])
def test_other_wordings_leave_values_severities_and_states(name: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        lines = DISTURBANCES[name](SESSION, keeps_all, rng)
        assert len(lines) == len(LINES)
        assert lines != LINES
        for was, now in zip(LINES, lines, strict=True):
            assert re.findall(r"\S*\d\S*", now) == re.findall(r"\S*\d\S*", was)
            decisive = [[each for each in words(line) if each.lower() in DECISIVE] for line in (was, now)]
            assert decisive[0] == decisive[1]
            if name == "words removed" and len(words(now)) < len(words(was)):
                assert set(words(now)) < set(words(was))


@pytest.mark.parametrize("name", [name for name in DISTURBANCES if name.startswith("events")])
def test_rearranged_events_are_those_of_the_session_and_keep_its_label(name: str) -> None:
    rng = np.random.default_rng(0)
    asked = []

    def first_stays(tokens: Integers, session: Session) -> bool:
        asked.append(session)
        return bool(tokens[0] == session.tokens[0])

    found = [DISTURBANCES[name](SESSION, first_stays, rng) for _ in range(20)]
    assert all(set(lines) <= set(LINES) for lines in found)
    assert any(lines != LINES for lines in found)
    if "any" in name:
        assert any(lines[0] != LINES[0] for lines in found)
        assert not asked
    else:
        assert all(lines[0] == LINES[0] for lines in found)


def test_a_new_error_is_one_line_more_and_new_values_change_values_alone() -> None:
    rng = np.random.default_rng(0)
    lines = with_an_error(SESSION, keeps_all, rng)
    [new] = [line for line in lines if line not in LINES]
    assert [line for line in lines if line != new] == LINES
    assert re.match(r"081109 20353\d 14\d (ERROR|FATAL|WARN) ", new)
    for was, now in zip(LINES, with_new_values(SESSION, keeps_all, rng), strict=True):
        assert now != was
        values = [re.sub(r"\d+|/[a-z]\S+", "", line) for line in (was, now)]
        assert values[0] == values[1]


def test_the_tables_say_what_each_share_costs() -> None:
    plain = {"warning": 0.9, "critical": 0.8, "auprc": 0.95, "unknown": 0.0}
    common = {"title": "doors", "seed": 0}
    results = [
        {**common, "disturbance": "none", "share": 0.0, **plain},
        *(
            {**common, "disturbance": "words", "share": share, **plain, "warning": 0.9 - share / 10, "unknown": 0.25}
            for share in SHARES
        ),
    ]
    assert "| words | 25.0% | +0.005 / +0.010 / +0.015 / +0.020 | +0.000 / +0.000 / +0.000 / +0.000 |" in tables(
        results
    )
