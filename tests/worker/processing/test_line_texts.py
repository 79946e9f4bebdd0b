"""The text of a line reaches the record of its own event, however lines wait, share records and fall into batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from detector.text.canonical import CANONICAL_CHARACTERS, Mask
from detector.text.vocabulary import Vocabulary
from tests.worker.processing.session_model import NO_TIME, Event
from tests.worker.processing.test_sessions_properties import (
    END_TOKENS,
    PART_BYTES,
    RULES,
    batches,
    session_rules,
    streams,
)
from tests.worker.small_worker import INPUT, VOCABULARY, OddScorer
from tests.worker.small_worker import settings as small_settings
from worker.commands.score import score_files
from worker.delivery.snapshots import Snapshot, decode, encode
from worker.observability.metrics import Metrics
from worker.processing.decoder import Events
from worker.processing.line_texts import LineTexts, shown_texts
from worker.processing.pipeline import Pipeline
from worker.processing.records import Partition, Records
from worker.processing.session_columns import ClosedSessions
from worker.processing.session_rules import SessionRules
from worker.processing.sessions import Sessions

P0 = Partition(INPUT, 0)
ALL_WARN = ("scoring.warning=0", "scoring.early=false")  # so that every session's record has texts


def text_of(number: int) -> str:
    return f"{number} é\0😀" * (number % 3)


def columns(events: Sequence[Event], first: int) -> Events:
    """Events whose tokens are their numbers."""
    keys, _, times, offsets = zip(*events, strict=True) if events else ((),) * 4
    return Events(
        keys=pa.array(keys, pa.string()),
        tokens=np.arange(first, first + len(events)),
        times=np.array(times, np.int64),
        offsets=np.array(offsets, np.int64),
        dead_letters=[],
        cut=0,
        ignored=0,
    )


# Two lines of one record wait, one without a time and one that contradicts them are processed before them.
WAITING = [
    ("a", 1, time, at) for at, time in ((0, 0), (1, 0), (2, 0), (3, 90), (3, 90), (4, NO_TIME), (4, NO_TIME), (5, 0))
]


@settings(max_examples=300, deadline=None)
@example(
    rules=replace(RULES, max_future_skew_ms=10),
    events=[Event(*each) for each in WAITING],
    cuts=[],
    restores=set(),
    kept_from=0,
)
@given(
    rules=session_rules,
    events=streams(),
    cuts=st.lists(st.integers(0, 100), max_size=12),
    restores=st.sets(st.integers(0, 12)),
    kept_from=st.sampled_from([0, 0, 0, 20]),
)
def test_every_event_has_the_text_of_its_own_line(
    rules: SessionRules, events: list[Event], cuts: list[int], restores: set[int], kept_from: int
) -> None:
    """Of the numbers that the sessions have for tokens, each is that of a line; texts begin with one of the lines."""
    # As in a worker, where a batch and a snapshot never divide a record.
    ends = [
        at + 1
        for at in range(len(events))
        if events[at + 1 : at + 2] == [] or events[at + 1].offset != events[at].offset
    ]
    cuts, kept_from = (
        [([0, *ends])[cut % (len(ends) + 1)] for cut in cuts],
        min([0, *ends], key=lambda at: abs(at - kept_from)),
    )
    if rules.end_tokens:
        ending = frozenset(number for number, event in enumerate(events) if event.token in END_TOKENS)
        rules = replace(rules, end_tokens=ending)
    sessions, texts = Sessions(rules), LineTexts()

    def check(closed: ClosedSessions) -> None:
        texts.take(closed)
        for session in (*(each.session for each in closed), *sessions.touched()):
            expected = [text_of(token).encode() if token >= kept_from else None for token in session.tokens]
            assert list(texts.of(session)) == expected

    begin = 0
    for number, batch in enumerate(batches(events, [*cuts, kept_from])):
        came = columns(batch, begin)
        if begin >= kept_from:
            texts.add(came, pa.array(map(text_of, came.tokens.tolist()), pa.string()))
        check(sessions.process(came.keys, came.tokens, came.times, came.offsets))
        begin += len(batch)
        if number in restores:
            state = decode(encode(Snapshot(0, "sha256:0", 5, sessions.state(), None, texts.state()), PART_BYTES))
            sessions, texts = Sessions(rules, state.sessions), LineTexts(state.texts)
    check(sessions.flush(events[-1].offset + 1 if events else 0, "end_of_input"))
    assert texts.state().num_rows == 0, "what has closed is not kept"


def told(records: list[bytes | None], *overrides: str, vocabulary: Vocabulary = VOCABULARY) -> dict[str, list[Any]]:
    """By session, the texts in its final record, by offset."""
    use = small_settings("output.top_events=100", "output.line_text=20", *ALL_WARN, *overrides)
    pipeline = Pipeline(use, OddScorer(vocabulary), Metrics())
    pipeline.open(P0)
    offsets = [*range(len(records))]
    outputs = pipeline.process([Records(INPUT, 0, offsets, records, None, [5] * len(records), None)])
    outputs += pipeline.flush(P0, len(records), "idle")
    found = [orjson.loads(output.value or b"") for output in outputs if output.severity is not None]
    return {
        record["session"]: [each.get("text") for each in sorted(record["top_events"], key=lambda each: each["offset"])]
        for record in found
    }


def test_a_text_is_the_beginning_of_the_line_cut_between_characters() -> None:
    assert told(
        [b"a open 1", "a read ééééééééééééééé".encode(), b"\x1b[31mb odd\x1b[0m\r\n", "c \x07 😀".encode()]
    ) == {
        "a": ["a open 1", "a read ééééééééééééé"],
        "b": ["b odd"],
        "c": ["c \x07 😀"],
    }


def test_the_text_of_a_json_event_is_its_message_with_its_severity_also_among_several_of_a_record() -> None:
    lines = [{"id": key, "m": text, "level": "warn"} for key, text in (("a", "odd 1"), ("b", "odd 2"), ("a", "odd 3"))]
    assert told(
        [b"\n".join(map(orjson.dumps, lines)), orjson.dumps(lines[:2])],
        *("input.format=json", "input.message=/m", "input.severity=/level", "sessions.key={pointer: /id}"),
    ) == {"a": ["warn odd 1", "warn odd 3", "warn odd 1"], "b": ["warn odd 2", "warn odd 2"]}


def test_the_text_of_an_event_of_several_lines_is_what_makes_its_template() -> None:
    trace = b"a open 1\n  at x.Y\nCaused by: x.IOException: no\n  at z\na odd 2\n  at x.Y"
    assert told([trace], "input.multiline={start: '^a '}") == {"a": ["a odd 2", "a open 1 x.IOExcepti"]}
    assert told([b"a 12:00 open 1", b"a other"], "input.message={pattern: '^a \\S+ (.*)'}") == {
        "a": ["open 1", "a other"]
    }
    assert told([b"a open\nb odd\n\na read"], "input.multiline=true") == {"a": ["a open", "a read"], "b": ["b odd"]}


def test_what_is_masked_in_templates_is_masked_in_texts_before_they_are_cut() -> None:
    masks = (Mask(r"token=\S+", "token"), Mask(r"\b4\d{15}\b", "card"))
    masked = replace(VOCABULARY, masks=masks)
    lines = [b"a odd token=s3cret-and-long 1", b"a pays by 4000123412341234 now"]
    assert told(lines, vocabulary=masked) == {"a": ["a odd <token> 1", "a pays by <card> now"]}
    # What masks no longer look at is not shown, however short they make the rest; nor half of a secret.
    filling = "token=" + "x" * (CANONICAL_CHARACTERS - 20)
    long = [f"a {filling} 4000123412341234 and on", f"a {filling} 40001", "y" * 9_000, f"{filling} {'y' * 9_000}"]
    shown = shown_texts(pa.array(long, pa.string()), masks, 4_096).to_pylist()
    assert shown == ["a <token>", "a <token> 40001", "", "<token>"]


def test_a_line_whose_sessions_began_before_texts_were_kept_has_none_and_off_again_none_is_kept() -> None:
    lines = [b"a open 1", b"b read 2", b"a odd 3", b"b odd 4"]

    def step(text: str, at: int, *state: Any) -> Pipeline:
        use = small_settings(f"output.line_text={text}", "sessions.max_events=3", *ALL_WARN)
        pipeline = Pipeline(use, OddScorer(), Metrics())
        pipeline.open(P0, at, at, *state)
        assert pipeline.process([Records(INPUT, 0, [at], [lines[at]], None, None, None)]) == []
        return pipeline

    state: tuple[Any, ...] = ()
    for at, text in enumerate(["0", "20", "0", "20"]):
        pipeline = step(text, at, *state)
        sessions, thresholds, texts = pipeline.state(P0)
        assert (texts is None) == (text == "0")
        whole = decode(encode(Snapshot(at, "sha256:0", 5, sessions, thresholds, texts), 1_000))
        state = whole.sessions, whole.thresholds, whole.texts
    [a, b] = [orjson.loads(output.value or b"") for output in pipeline.flush(P0, 4, "idle")]
    assert [each.get("text") for each in a["top_events"]] == [None, None]
    assert [each.get("text") for each in b["top_events"]] == ["b odd 4", None]


@pytest.mark.parametrize("files", [1, 3])
def test_files_give_the_texts_that_a_topic_gives(files: int, tmp_path: Path) -> None:
    lines = [f"{'abcde'[at % 5]} {('open', 'odd', 'read')[at % 3]} {at}".encode() for at in range(60)]
    use = small_settings("output.line_text=20", "sessions.max_events=7", *ALL_WARN)
    pipeline = Pipeline(use, OddScorer(), Metrics(), times=False)
    pipeline.open(P0)
    outputs = pipeline.process([Records(INPUT, 0, [*range(60)], lines, None, None, None)])
    outputs += pipeline.flush(P0, 60, "end_of_input")
    paths = [tmp_path / f"{number}.log" for number in range(files)]
    for number, path in enumerate(paths):
        path.write_bytes(b"".join(line + b"\n" for line in lines[number * 60 // files : (number + 1) * 60 // files]))
    score_files(use, OddScorer(), paths, tmp_path / "out.jsonl")
    found = [orjson.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    expected = [orjson.loads(output.value or b"") for output in outputs]
    assert [_texts(record) for record in found] == [_texts(record) for record in expected]
    assert all(_texts(record) for record in expected)


def _texts(record: dict[str, Any]) -> list[str]:
    return [f"{record['session']}: {each['text']}" for each in record["top_events"]]
