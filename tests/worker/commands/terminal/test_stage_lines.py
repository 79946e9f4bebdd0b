"""Progress without a terminal: each stage's first and last state, and between them one every ten seconds."""

from __future__ import annotations

from worker.commands.terminal.stage_lines import StageLines


def test_a_stage_is_told_at_its_begin_and_end_and_every_ten_seconds() -> None:
    said: list[str] = []
    now = 0.0
    lines = StageLines(said.append, clock=lambda: now)
    for second in range(25):
        now = float(second)
        lines.at("reading", f"{second} MB")
    now = 24.5
    lines.at("learning", "step 1")
    lines.at("learning", "step 2")
    lines.end()
    assert said == [
        *("reading: 0 MB", "reading: 10 MB", "reading: 20 MB", "reading: 24 MB"),
        *("learning: step 1", "learning: step 2"),
    ]


def test_a_state_is_not_told_twice() -> None:
    said: list[str] = []
    lines = StageLines(said.append, clock=lambda: 0.0)
    lines.at("reading", "0 MB")
    lines.end()
    assert said == ["reading: 0 MB"]
