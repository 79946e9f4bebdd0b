"""What early records told since a snapshot comes back from the text that a committed offset has."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.processing.early_told import EarlyTold, checked
from worker.processing.session_columns import SessionColumns
from worker.processing.session_state import Session

SESSIONS = st.dictionaries(
    st.tuples(st.integers(0, 2**62), st.text(max_size=4).map(str.encode)), st.integers(1, 3), max_size=40
)


def sessions_of(places: list[tuple[int, str]]) -> SessionColumns:
    return SessionColumns.of([Session(key, array("q", [3, offset, 0]), 0, 0, 1) for offset, key in places])


@given(SESSIONS, SESSIONS)
def test_each_session_gets_back_what_was_told_of_it_and_no_other_one_anything(
    told: dict[tuple[int, bytes], int], others: dict[tuple[int, bytes], int]
) -> None:
    first = EarlyTold("", 100)
    for (offset, key), bits in told.items():
        first.tell(offset, key, 100, bits)
    text = first.text(100)
    assert text is not None
    assert checked(text) == text
    again = EarlyTold(text, 100)
    assert again.text(100) == text
    offsets = {offset for offset, _ in told}
    apart = [place for place in others if place not in told and place[0] not in offsets]  # no checksum decides
    places = [*told, *apart]
    sessions = sessions_of([(offset, key.decode()) for offset, key in places])
    again.add_to(sessions)
    # Two keys of one record may have one checksum: then the later word holds for both.
    by_place = dict(zip(places, sessions.alerted.tolist(), strict=True))
    assert {place: by_place[place] for place in apart} == dict.fromkeys(apart, 0)
    alone = [place for place in told if sum(offset == place[0] for offset, _ in told) == 1]
    assert {place: by_place[place] for place in alone} == {place: told[place] for place in alone}


def test_sessions_that_one_record_opened_are_told_apart_by_their_keys() -> None:
    told = EarlyTold("", 0)
    told.tell(7, b"a", 8, 1)
    told.tell(7, b"b", 9, 3)
    sessions = sessions_of([(7, "a"), (7, "b"), (7, "c"), (8, "a")])
    EarlyTold(told.text(0), 0).add_to(sessions)
    assert sessions.alerted.tolist() == [1, 3, 0, 0]


def test_what_a_later_snapshot_knows_and_what_closed_is_said_no_more() -> None:
    told = EarlyTold("", 10)
    told.tell(1, b"a", 11, 1)
    told.tell(2, b"b", 19, 1)
    told.tell(3, b"c", 20, 1)
    told.closed(3, b"c")
    later = told.text(12)
    assert later is not None
    sessions = sessions_of([(1, "a"), (2, "b"), (3, "c")])
    EarlyTold(later, 12).add_to(sessions)
    assert sessions.alerted.tolist() == [0, 1, 0]
    assert told.text(20) == ""


@pytest.mark.parametrize("text", ["", None])
def test_of_what_nobody_said_or_an_older_snapshot_knows_nothing_is_said(text: str | None) -> None:
    assert EarlyTold(text, 10).text(9) is None
    assert EarlyTold(None, 10).text(10) is None


def test_more_than_an_offset_can_carry_is_not_known() -> None:
    told = EarlyTold("", 0)
    for number in range(400):
        told.tell(number, b"%d" % number, 0, 3)
    assert len(told.text(0) or "") < 3_000
    for number in range(400, 2_000):
        told.tell(number, b"%d" % number, 0, 3)
    assert told.text(0) is None
