"""The figures of the parsing benchmark mean what their names say."""

from __future__ import annotations

import pytest

from benchmarks.parsing import Grouping, System, parse

TRUTH = ["a", "a", "b", "b", "c", "d"]


@pytest.mark.parametrize(
    ("tokens", "accuracy", "f1", "mixed"),
    [
        ([9, 9, 8, 8, 7, 6], 1.0, 1.0, 0),
        ([9, 9, 8, 5, 7, 6], 4 / 6, 2 * 3 / 9, 0),  # b is split
        ([9, 9, 9, 9, 7, 6], 2 / 6, 2 * 2 / 7, 4),  # a and b are one
        ([1] * 6, 0.0, 0.0, 6),
    ],
)
def test_a_line_is_right_if_its_template_is_one_whole_event_type(
    tokens: list[int], accuracy: float, f1: float, mixed: int
) -> None:
    found = Grouping.of(tokens, TRUTH)
    assert (found.accuracy, found.f1, found.mixed_lines) == pytest.approx((accuracy, f1, mixed))


def test_unknown_lines_of_the_second_half_are_told_from_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.parsing.HALF", 4)
    lines = [
        "door 1 swept",
        "lamp lit",
        "door 2 swept",
        "lamp lit",
        "door 3 swept",
        "roof wet",
        "lamp lit",
        "lamp lit now",
    ]
    plain = ["door", "lamp", "door", "lamp", "door", "roof", "lamp", "lamp"]
    templates = ["door <*> swept", "lamp lit", "door <*> swept", "lamp lit", "door <*>", "roof wet", "lamp lit", "lamp"]
    found = parse(System("own", lines, plain, [(each,) for each in plain], templates))
    assert found.unknown_beyond_new == pytest.approx(1 / 4)  # two are unknown, one of them is new
    assert found.new_taken_for_old == 0
    assert found.old_likened == pytest.approx(1 / 4)  # a lamp in other words
    assert found.new_likened == 0
    assert found.parsing_accuracy == pytest.approx(6 / 8)
