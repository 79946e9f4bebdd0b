"""Score records are what the schema says, byte for byte the same for the same input; dead letters always fit."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.scoring.reasons import Reason
from detector.text.vocabulary import N_SPECIAL, UNK, Vocabulary
from worker.processing.clock import NO_TIME
from worker.processing.dead_letters import dead_letter
from worker.processing.feedback import Applied
from worker.processing.keys import MAX_KEY_CHARACTERS
from worker.processing.lines import DeadLetter
from worker.processing.origins import Origins
from worker.processing.records import Partition, Records
from worker.processing.score_records import Kind, ScoreEncoder, Severity, Thresholds, iso_time
from worker.processing.session_columns import ClosedBy
from worker.processing.session_rules import SessionRules
from worker.processing.session_state import Session, SessionsState
from worker.processing.sessions import Sessions

SCHEMA = json.loads((Path(__file__).parents[3] / "config" / "score-record.schema.json").read_text(encoding="utf-8"))
VOCABULARY = Vocabulary(("opened <*>", "closed <*>"))
OPENED, CLOSED = 3, 4
CHECKPOINT = f"sha256:{'c' * 64}"
PARTITION = Partition("raw-logs", 3)
THRESHOLDS = Thresholds(warning=0.7, critical=0.95)
RULES = SessionRules(
    gap_ms=None, max_age_ms=None, max_events=10**6, max_open=10, max_future_skew_ms=10**15, end_tokens=frozenset()
)


class Scores(NamedTuple):
    surprises: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    final: float


def scores_of(*surprises: float) -> Scores:
    return Scores(np.array(surprises, np.float32), np.zeros(len(surprises), np.float32), 0.0)


def session_of(tokens: list[int], offsets: list[int], times: list[int], key: str = "blk_-1") -> Session:
    sessions = Sessions(RULES, SessionsState.empty(0))
    sessions.process([key] * len(tokens), tokens, times, offsets)
    return sessions.touched()[0]


def encoder(
    top_events: int = 2, vocabulary: Vocabulary = VOCABULARY, max_message_bytes: int = 65_536, **other: Any
) -> ScoreEncoder:
    return ScoreEncoder(
        vocabulary=vocabulary,
        checkpoint=CHECKPOINT,
        top_events=top_events,
        worker="blue",
        max_message_bytes=max_message_bytes,
        **other,
    )


def encode(
    session: Session,
    scores: Scores,
    *,
    kind: Kind = "final",
    closed_by: ClosedBy | None = "gap",
    score: float = 0.5,
    events: int | None = None,
    top_events: int = 2,
    thresholds: Thresholds = THRESHOLDS,
    reason: Reason | None = None,
    applied: Applied | None = None,
    retracts: Sequence[Severity] = (),
    texts: Sequence[bytes | None] | None = None,
    origins: Origins | None = None,
) -> tuple[bytes, str]:
    value, severity, _, shown = encoder(top_events).encode(
        PARTITION,
        session,
        scores,
        kind=kind,
        closed_by=closed_by,
        cause_offset=320,
        events=len(session.tokens) if events is None else events,
        score=score,
        thresholds=thresholds,
        reason=reason,
        applied=applied,
        retracts=retracts,
        texts=texts,
        origins=origins,
    )
    assert shown == (value if severity != "normal" or retracts else None)
    return value, severity


def validate(value: bytes) -> dict[str, object]:
    record: dict[str, object] = json.loads(value)
    jsonschema.Draft202012Validator(SCHEMA).validate(record)
    return record


FIRST, LAST = 1_226_262_975_000, 1_226_263_002_250
SESSION = session_of([OPENED, UNK, -77, CLOSED], [101, 120, 150, 164], [FIRST, FIRST + 1, FIRST + 2, LAST])
SURPRISES = scores_of(0.5, 9.300000190734863, 1.25, 9.300000190734863)


def test_a_final_record_has_these_bytes() -> None:
    value, severity = encode(SESSION, SURPRISES, score=0.99870001)
    assert severity == "critical"
    assert value.decode() == (
        '{"schema":"logmamba.score/1","id":"7e2cb179a2100589ae5a381562655890","session":"blk_-1",'
        '"kind":"final","score":0.9987,"severity":"critical",'
        '"thresholds":{"warning":0.7,"critical":0.95},"surprise":5.0875,"events":4,"unknown_events":2,'
        '"first_event_time":"2008-11-09T20:36:15.000Z","last_event_time":"2008-11-09T20:36:42.250Z",'
        '"closed_by":"gap","top_events":[{"offset":120,"template":"<unknown>","surprise":9.3},'
        '{"offset":164,"template":"closed <*>","surprise":9.3}],"lines":[101,120,150,164],'
        '"source":{"topic":"raw-logs","partition":3,"first_offset":101,"last_offset":164,"cause_offset":320},'
        f'"model":{{"checkpoint":"{CHECKPOINT}","vocabulary":"{VOCABULARY.sha256}"}}}}'
    )


def test_events_have_the_texts_of_their_lines_at_their_ends_where_there_are_some() -> None:
    value, _ = encode(SESSION, SURPRISES, texts=[b"a", None, b"b", "closed é\x07\n".encode()])
    events = '[{"offset":120,"template":"<unknown>","surprise":9.3},'
    events += r'{"offset":164,"template":"closed <*>","surprise":9.3,"text":"closed é\u0007\n"}]'
    assert f'"top_events":{events},"lines":' in value.decode()
    validate(value)
    assert encode(SESSION, SURPRISES, texts=[None] * 4) == encode(SESSION, SURPRISES)


@pytest.mark.parametrize(
    ("characters", "lines", "with_text", "with_lines"),
    [(3_000, 2_000, True, True), (5_000, 2_000, False, True), (5_000, 9_000, False, False)],
)
def test_texts_are_the_first_that_a_record_does_without_rather_than_become_too_large(
    characters: int, lines: int, with_text: bool, with_lines: bool
) -> None:
    session = session_of([OPENED] * lines, [10**6 + at for at in range(lines)], [0] * lines)
    arguments = {"closed_by": "gap", "cause_offset": 320, "events": lines, "score": 0.8, "thresholds": THRESHOLDS}
    value, _, _, shown = encoder(2).encode(
        *(PARTITION, session, scores_of(*[1.0] * lines)),
        **({"kind": "final", "texts": [b"\x07" * characters] * lines} | arguments),  # type: ignore[arg-type]
    )
    assert len(value) < 65_536
    record = validate(value)
    assert [["text" in event for event in record["top_events"]], record["lines"] is not None] == [  # type: ignore[attr-defined]
        [with_text] * 2,
        with_lines,
    ]
    assert shown == value


def test_a_record_lists_fewer_events_rather_than_become_too_large_to_be_written() -> None:
    vocabulary = Vocabulary(tuple(f"{number} " + "\x01" * 2_000 for number in range(100)), kind="events")
    key = "\x01" * MAX_KEY_CHARACTERS
    session = session_of([N_SPECIAL + number for number in range(100)], list(range(100)), [0] * 100, key)
    scores = scores_of(*map(float, range(100)))
    arguments = {"kind": "final", "closed_by": "gap", "cause_offset": 320, "events": 100, "score": 0.5}
    value, _, _, _ = encoder(100, vocabulary).encode(PARTITION, session, scores, thresholds=THRESHOLDS, **arguments)
    headers = sum(len(name) + len(content) for name, content in encoder().headers())
    assert len(value) + len(key.encode()) + headers < 65_536
    record = json.loads(value)
    assert [event["offset"] for event in record["top_events"]] == [99, 98, 97]
    assert record["lines"] is None


def test_the_keys_are_those_of_the_schema_in_its_order() -> None:
    record = validate(encode(SESSION, SURPRISES)[0])
    optional = {"reason", "pattern", "feedback", "retracts", "origins"}
    assert list(record) == SCHEMA["required"] == [name for name in SCHEMA["properties"] if name not in optional]
    origins = Origins.of([Partition("raw", 3)], np.zeros(4, np.int64), np.arange(4))
    applied = Applied("counts 0123456789ab", "anomalous", "warning")
    told = {"reason": Reason("Closed twice.", "F1"), "applied": applied, "retracts": ["critical"], "origins": origins}
    record = validate(encode(SESSION, SURPRISES, **told)[0])  # type: ignore[arg-type]
    assert list(record) == list(SCHEMA["properties"])
    assert record["reason"] == {"text": "Closed twice.", "family": "F1"}
    assert record["pattern"] == "counts 0123456789ab"
    assert record["feedback"] == {"verdict": "anomalous", "scored": "warning"}


def test_a_final_record_names_the_early_ones_that_it_takes_back_by_their_ids() -> None:
    told = {each: validate(early(each))["id"] for each in ("warning", "critical")}
    assert len({*told.values(), validate(encode(SESSION, SURPRISES)[0])["id"]}) == 3
    origins = Origins.of([Partition("raw", 3)], np.zeros(4, np.int64), np.arange(4))
    for of in (None, origins):  # an id is of the number of an event as it is of an offset
        final = validate(encode(SESSION, SURPRISES, score=0.1, retracts=["warning", "critical"], origins=of)[0])
        assert final["retracts"] == [{"id": identity, "severity": each} for each, identity in told.items()]


def early(severity: str) -> bytes:
    return encode(SESSION, SURPRISES, kind="early", closed_by=None, score=0.75 if severity == "warning" else 0.97)[0]


def test_an_id_is_what_the_documentation_says() -> None:
    record = validate(encode(SESSION, SURPRISES)[0])
    assert record["id"] == hashlib.sha256(b"raw-logs\n3\n101\n0\nfinal\n\nblk_-1").hexdigest()[:32]
    told = hashlib.sha256(b"raw-logs\n3\n101\n0\nearly\nwarning\nblk_-1").hexdigest()[:32]
    assert validate(early("warning"))["id"] == told


def test_an_early_record_is_about_the_events_up_to_its_cause_and_no_later_ones() -> None:
    value, severity = encode(SESSION, SURPRISES, kind="early", closed_by=None, score=0.75, events=2)
    record = validate(value)
    assert severity == "warning"
    assert (record["events"], record["unknown_events"], record["closed_by"]) == (2, 1, None)
    assert record["surprise"] == 4.9
    assert record["last_event_time"] == "2008-11-09T20:36:15.001Z"
    assert record["source"] == {
        "topic": "raw-logs",
        "partition": 3,
        "first_offset": 101,
        "last_offset": 120,
        "cause_offset": 320,
    }
    shorter = session_of([OPENED, UNK], [101, 120], [FIRST, FIRST + 1])
    assert encode(shorter, scores_of(0.5, 9.3), kind="early", closed_by=None, score=0.75)[0] == value


@given(st.lists(st.floats(0, 50, width=32), min_size=1, max_size=40), st.floats(0, 1, width=32), st.integers(0, 5))
def test_every_record_fits_the_schema_and_lists_its_most_surprising_events(
    surprises: list[float], score: float, top_events: int
) -> None:
    events = len(surprises)
    session = session_of([OPENED] * events, list(range(events)), [FIRST] * events, key='"\\\n\x00é')
    record = validate(encode(session, scores_of(*surprises), score=score, top_events=top_events)[0])
    top = record["top_events"]
    assert isinstance(top, list)
    expected = sorted(range(events), key=lambda at: (-surprises[at], at))[:top_events]
    assert [each["offset"] for each in top] == expected
    assert record["surprise"] == pytest.approx(sum(surprises) / events, abs=1e-6)
    assert record["session"] == '"\\\n\x00é'


@pytest.mark.parametrize(
    ("score", "severity"),
    [
        (0.0, "normal"),
        (0.6999994, "normal"),
        (0.6999996, "warning"),  # shown as 0.7
        (float(np.float32(0.7)), "warning"),
        (0.7, "warning"),
        (0.9499994, "warning"),
        (float(np.float32(0.95)), "critical"),
        (1.0, "critical"),
    ],
)
def test_severity_goes_by_the_score_as_it_is_shown(score: float, severity: str) -> None:
    value, found = encode(SESSION, SURPRISES, score=score)
    record = validate(value)
    assert record["severity"] == found == THRESHOLDS.severity(score) == severity
    shown = record["score"]
    assert isinstance(shown, float)
    assert (shown >= 0.7) == (severity != "normal")


def test_a_record_shows_the_thresholds_that_it_was_judged_by() -> None:
    for thresholds, severity in ((Thresholds(0.5, 0.75), "critical"), (Thresholds(0.800001, 1.0), "normal")):
        record = validate(encode(SESSION, SURPRISES, score=0.8, thresholds=thresholds)[0])
        assert record["thresholds"] == thresholds._asdict()
        assert record["severity"] == severity


def test_as_a_cloud_event_a_record_has_the_attributes_as_headers_and_still_fits() -> None:
    key = "\x01" * MAX_KEY_CHARACTERS
    session = session_of([OPENED, CLOSED], [101, 164], [FIRST, NO_TIME], key)
    made = encoder(cloud_events="shop")
    arguments = {"cause_offset": 320, "thresholds": THRESHOLDS, "score": 0.8}
    value, _, headers, _ = made.encode(
        PARTITION, session, scores_of(1.0, 2.0), kind="early", closed_by=None, events=1, **arguments
    )
    assert dict(headers) == {
        "ce_specversion": b"1.0",
        "ce_id": json.loads(value)["id"].encode(),
        "ce_source": b"urn:logmamba:shop",
        "ce_type": b"logmamba.score.early",
        "ce_subject": key.encode(),
        "ce_dataschema": SCHEMA["$id"].encode(),
        "ce_time": b"2008-11-09T20:36:15.000Z",
        "content-type": b"application/json",
    }
    value, _, headers, _ = made.encode(
        PARTITION, session, scores_of(1.0, 2.0), kind="final", closed_by="gap", events=2, **arguments
    )
    assert "ce_time" not in dict(headers), "its last event has none"
    assert dict(headers)["ce_type"] == b"logmamba.score.final"
    large = Vocabulary(tuple(f"{number} " + "x" * 9_000 for number in range(9)), kind="events")
    session = session_of([N_SPECIAL + number for number in range(9)], list(range(9)), [FIRST] * 9, key)
    made = encoder(9, large, cloud_events="shop")
    value, _, headers, _ = made.encode(
        PARTITION, session, scores_of(*range(9)), kind="final", closed_by="gap", events=9, **arguments
    )
    size = len(value) + len(key) + sum(len(name) + len(content) for name, content in [*headers, *made.headers()])
    assert size < 65_536
    assert json.loads(value)["top_events"], "what fits is there"


def test_a_session_without_times_has_none() -> None:
    session = session_of([OPENED], [1], [NO_TIME])
    record = validate(encode(session, scores_of(1.0), closed_by="end_of_input")[0])
    assert record["first_event_time"] is record["last_event_time"] is None


@pytest.mark.parametrize(
    "change",
    [
        {"severity": "none"},
        {"closed_by": None},
        {"closed_by": "lost"},
        {"score": 1.5},
        {"extra": 1},
        {"first_event_time": "2008-11-09 20:36:15"},
        {"events": 0},
        {"kind": "early"},
    ],
)
def test_the_schema_refuses_other_records(change: dict[str, object]) -> None:
    record = validate(encode(SESSION, SURPRISES)[0]) | change
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SCHEMA).validate(record)


def test_the_headers_say_who_scored_and_when() -> None:
    [(first, worker), (second, moment)] = encoder().headers()
    assert (first, worker, second) == ("logmamba-worker", b"blue", "logmamba-scored-at")
    assert re.fullmatch(rb"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", moment)


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (-1, "1969-12-31T23:59:59.999Z"),
        (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
        (253_402_300_800_000, None),
        (-(2**62), None),
        (None, None),
    ],
)
def test_a_time_is_iso_8601_with_milliseconds(milliseconds: int | None, text: str | None) -> None:
    assert iso_time(milliseconds) == text


def a_dead_record(key: bytes | None, value: bytes | None, timestamp: int | None = 0) -> Records:
    timestamps = None if timestamp is None else [timestamp]
    return Records("raw", 7, [41], [value], None if key is None else [key], timestamps, None)


def test_a_dead_letter_is_the_record_as_it_came_with_its_origin_and_reason() -> None:
    letter = DeadLetter(0, "not_utf8", "byte 3 is 0xff")
    key, value, headers = dead_letter(a_dead_record(b"k", b"abc\xff", FIRST), letter, 100_000)
    assert (key, value) == (b"k", b"abc\xff")
    assert headers == [
        ("logmamba-error-reason", b"not_utf8"),
        ("logmamba-error-message", b"byte 3 is 0xff"),
        ("logmamba-error-topic", b"raw"),
        ("logmamba-error-partition", b"7"),
        ("logmamba-error-offset", b"41"),
        ("logmamba-error-timestamp", b"2008-11-09T20:36:15.000Z"),
    ]


def test_a_null_stays_null_and_an_unknown_time_is_empty() -> None:
    key, value, headers = dead_letter(a_dead_record(None, None, None), DeadLetter(0, "null", "no value"), 100_000)
    assert key is value is None
    assert dict(headers)["logmamba-error-timestamp"] == b""


@given(st.integers(0, 3_000), st.integers(0, 3_000), st.integers(1_200, 3_000))
def test_a_dead_letter_is_cut_to_fit_and_says_so(key_bytes: int, value_bytes: int, limit: int) -> None:
    records = a_dead_record(b"k" * key_bytes, b"v" * value_bytes)
    key, value, headers = dead_letter(records, DeadLetter(0, "no_key", "none"), limit)
    assert key is not None
    assert value is not None
    size = len(key) + len(value) + sum(len(name) + len(content) for name, content in headers)
    assert size <= limit
    message = dict(headers)["logmamba-error-message"].decode()
    if len(key) + len(value) < key_bytes + value_bytes:
        assert message == f"none (key of {key_bytes} and value of {value_bytes} bytes cut)"
        assert size > limit - 700
    else:
        assert message == "none"
