"""Which sessions a training had."""

import pytest

from detector.quality.session_sketch import SKETCHED, session_hash, session_sketch, share_known


def hashes(*numbers: int) -> list[int]:
    return [session_hash(f"k{number}", b"12345678") for number in numbers]


def test_of_few_sessions_it_tells_exactly() -> None:
    sketch = session_sketch(hashes(1, 2, 3, 3))
    assert len(sketch) == 3
    assert share_known(sketch, hashes(1, 2, 3)) == 1
    assert share_known(sketch, hashes(3, 4, 5, 6)) == 0.25
    assert share_known(sketch, hashes(7)) == share_known(sketch, []) == 0


def test_of_many_it_tells_about_how_many() -> None:
    sketch = session_sketch(hashes(*range(20_000)))
    assert len(sketch) == SKETCHED
    assert share_known(sketch, hashes(*range(20_000))) == 1
    assert share_known(sketch, hashes(*range(16_000, 36_000))) == pytest.approx(0.2, abs=0.06)
    assert share_known(sketch, hashes(*range(30_000, 40_000))) == 0


def test_a_session_is_its_key_and_its_events() -> None:
    assert (
        len({session_hash("a", b"1"), session_hash("a", b"2"), session_hash("b", b"1"), session_hash("", b"a1")}) == 4
    )
    assert 0 <= session_hash("\ud800", b"") < 2**63
