"""Records that cannot be used, between good ones, on a real broker: kept with their reason, the rest unharmed."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.broker.harness import Record
from tests.broker.kafka import KafkaBroker
from tests.faults.checker import Expected
from tests.faults.conftest import Size
from tests.faults.report import FaultReport
from tests.faults.stream import PARTITIONS, Run, Stream
from worker.generator.log import GeneratedLog

STAMP = b"240301 120000 "  # the log's first second
MARK = b"xyzzyx"  # in no good line
MEBIBYTE = 2**20
POISON_EVERY = 50
# A backtracking engine tries all the ways to part a run of x's in two, and again for each of its beginnings.
STALLING_KEY = r"(?:(?:x+x+)+y)?(blk_-?\d+)"
MAX_MESSAGE_BYTES = 200_000


WATCHED: dict[str, dict[str, Any]] = {
    "observability": {"port": 0, "log_level": "info"},
    "kafka": {"message.max.bytes": MAX_MESSAGE_BYTES},
}


@dataclass(frozen=True)
class Poison:
    """A value that is no usual line.

    Attributes:
        text: in a topic of text.
        json: in a topic of JSON; None for the text as it is.
        json_reason: of its dead letter there, where it is another one.
    """

    text: bytes | None
    json: bytes | None = None
    json_reason: str | None = None


POISON = [
    Poison(STAMP + MARK + b" \xff\xfe blk_7"),
    Poison(STAMP + MARK + b" \xed\xa0\x80 blk_7"),  # half of a surrogate pair
    Poison(b""),
    Poison(b" \t "),
    Poison(None),
    Poison(b"\x00", b'{"message": "\\u0000"}'),
    Poison(STAMP + MARK + b" \x00 in the middle of blk_7\x00"),
    Poison(STAMP + MARK + b" of no block"),
    Poison(MARK + b" blk_7 of no time"),
    Poison(b"999999 999999 " + MARK + b" blk_7"),
    Poison(STAMP + b"blk_7 " + b"x" * 60_000),
    Poison(STAMP + b"x" * 60_000 + MARK),
    Poison(b"", b'{"message": "' + STAMP + MARK, "bad_json"),
    Poison(b"", b'{"message": "\\ud800 blk_7"}', "bad_timestamp"),  # read, with U+FFFD; it has no time
    Poison(b"", b"[" * 100_000, "bad_json"),
    Poison(b"", b"NaN", "no_message"),
    Poison(b"", b"\0\0\0\0\x07\x02\x0eblk_7", "bad_json"),
    Poison(b"", b'{"message": ["blk_7"]}', "bad_timestamp"),
]
HUGE = [
    Poison(STAMP + b"blk_8 " + b"x" * 10 * MEBIBYTE),  # cut, but worked on
    Poison(STAMP + b"x" * 10 * MEBIBYTE),
    Poison(b"\xff" * 10 * MEBIBYTE),
]


@pytest.fixture(scope="module")
def poisoned(
    size: Size, checkpoint: Path, broker: KafkaBroker, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Stream, Mapping[int, Poison]]:
    """Good lines with poison between them, and which of the records are poison."""
    log = GeneratedLog(size.records if size.full else 5_000, seed=4)
    lines = [(line.text.encode(), line.block.encode()) for line in log]
    records, poison = [], {}
    for at, (text, block) in enumerate(lines):
        if at % POISON_EVERY == 0:
            number = at // POISON_EVERY
            each = poison[len(records)] = HUGE[number] if number < len(HUGE) else POISON[number % len(POISON)]
            records.append(Record(each.text, b"k%d" % number, number % PARTITIONS))
        records.append(Record(text, block, zlib.crc32(block) % PARTITIONS))
    return Stream.of(records, tmp_path_factory.mktemp("poison"), checkpoint, broker.bootstrap), poison


@pytest.mark.fault(row=10, core=True)
def test_poisoned_lines_are_dead_lettered_or_cut_and_counted_and_the_rest_is_exact(
    poisoned: tuple[Stream, Mapping[int, Poison]], tmp_path: Path, fault_report: FaultReport
) -> None:
    stream, _ = poisoned
    settings = {"sessions": {"key": {"regex": STALLING_KEY}}, **WATCHED}
    with stream.sent(tmp_path, **settings) as run:
        work_and_look(run)
        run.assert_exact(fault_report, "poisoned lines")
        assert_kept_as_they_came(run)


@pytest.mark.fault(row=10, core=True)
def test_poisoned_json_is_dead_lettered_or_cut_and_counted_and_the_rest_is_exact(
    poisoned: tuple[Stream, Mapping[int, Poison]], tmp_path: Path, fault_report: FaultReport
) -> None:
    text, poison = poisoned
    records = [
        record._replace(value=poison[at].json if at in poison and poison[at].json else document(record.value))
        for at, record in enumerate(text.records)
    ]
    reasons: dict[tuple[int, int], str] = {}
    offsets: Counter[int] = Counter()
    for at, record in enumerate(records):
        if at in poison and (reason := poison[at].json_reason):
            reasons[record.partition, offsets[record.partition]] = reason
        offsets[record.partition] += 1
    letters = [each._replace(reason=reasons.get(each[:2], each.reason)) for each in text.expected.dead_letters]
    stream = replace(text, records=records, expected=Expected(text.expected.sessions, letters))

    settings = {"input": {"format": "json", "timestamp": "/time"}, **WATCHED}
    with stream.unsent(tmp_path, **settings) as run:
        run.application.produce(records)
        work_and_look(run)
        run.assert_exact(fault_report, "poisoned JSON")
        assert_kept_as_they_came(run)


def work_and_look(run: Run) -> None:
    """Run a worker to the end; it counts what it could not use, and neither its log nor its endpoint shows a line.

    Keys of sessions are only on the page for people, of those that alerted.
    """
    with run.application.start("sessions.idle_flush=1s") as worker:
        worker.wait_until(lambda: run.share() >= 1)
        pages = {path: worker.get(path)[1] for path in ("/", "/status", "/metrics", "/healthz", "/readyz")}
        assert worker.stop() == 0, worker.tail()
    good = run.stream.records[1]
    for shown in (*pages.values(), worker.log.read_text()):
        for hidden in (MARK, STAMP[:9], *((good.key or b"",) if shown is not pages["/"] else ())):
            assert hidden.decode() not in shown
    counted = {
        tuple(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(pages["/metrics"])
        if family.name in ("logmamba_dead_letters", "logmamba_lines_cut")
        for sample in family.samples
        if sample.name.endswith("_total")
    }
    cut = sum(len(record.value or b"") > MEBIBYTE and b"blk_" in (record.value or b"") for record in run.stream.records)
    reasons = Counter((each.reason,) for each in run.stream.expected.dead_letters)
    expected = Counter({**reasons, (): cut})
    if worker.logged("transaction_aborted"):  # a machine that stood still: what was in it is read, and counted, again
        assert expected <= Counter(counted)
    else:
        assert Counter(counted) == expected


def assert_kept_as_they_came(run: Run) -> None:
    """Each dead letter has the key and the value of its record, cut where they would not fit into a message."""
    parts: dict[int, list[Record]] = {number: [] for number in range(PARTITIONS)}
    for record in run.stream.records:
        parts[record.partition].append(record)
    for letter in run.application.dead_letters():
        headers = {name: (value or b"").decode() for name, value in letter.headers() or ()}
        assert headers["logmamba-error-topic"] == run.application.input_topic
        origin = parts[int(headers["logmamba-error-partition"])][int(headers["logmamba-error-offset"])]
        value = letter.value()
        assert letter.key() == origin.key
        if len(origin.value or b"") <= MAX_MESSAGE_BYTES / 2:
            assert value == origin.value
        else:
            assert value is not None
            assert origin.value is not None
            assert origin.value.startswith(value)
            assert len(value) > MAX_MESSAGE_BYTES / 2
            assert "bytes cut" in headers["logmamba-error-message"]


def document(line: bytes | None) -> bytes | None:
    """A line as a JSON record; what is no text stays as it is."""
    if line is None or not line.strip():
        return line
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return line
    time = text[:13]
    with suppress(ValueError):
        time = datetime.strptime(time, "%y%m%d %H%M%S").replace(tzinfo=UTC).isoformat()
    return orjson.dumps({"message": text, "time": time})
