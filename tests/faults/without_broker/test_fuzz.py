"""Hostile lines cost no more than others: none ends the worker, none holds it up, and none touches its neighbours."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from detector.text.canonical import Mask
from detector.text.tokenizer import Tokenizer
from detector.text.vocabulary import Vocabulary
from tests.faults.conftest import Size
from tests.faults.hostile import HostileInputs
from tests.faults.report import FaultReport
from tests.worker.processing.listed_events import ListedEvents, listed
from worker.processing.clock import NO_TIME
from worker.processing.dead_letters import dead_letter
from worker.processing.decoder import Decoder
from worker.processing.keys import MAX_KEY_CHARACTERS
from worker.processing.records import Records
from worker.settings.document import load_settings

BATCH = 100
MOST_SECONDS = 0.05  # of processor time for one line
MOST_SECONDS_PER_FURTHER_LINE = 0.00001  # of a record that holds several
# On a machine whose other work slows this one: over what as many events as anybody's take it then, from one record.
MOST_OVER_ORDINARY = 3
ORDINARY = (
    b'{"message": "081109 203615 148 INFO dfs.DataNode: PacketResponder 1 for block blk_38865049064139660 terminating"}'
)
MESSAGE_BYTES = 100_000

TIMES = r"{pattern: '(?s)^(\S+\s+\S+)', format: '%y%m%d %H%M%S'}"
# Where a backtracking engine takes as long as it likes, and a mask each of whose matches looks at the rest of the line.
STALLING_KEY = r"{regex: '(?:a*)*b|(?:x+x+)+y|(?:[0-9]|[0-9a-f])*z|blk_(\d+)'}"
STALLING_MASK = Mask("a[^b]*b|[0-9a-f]", "hex")
SETTINGS = {
    "text": [],
    "text with times": [f"input.timestamp={TIMES}"],
    "records of several lines": ["input.multiline=true", f"input.timestamp={TIMES}"],
    "patterns that stall": [f"sessions.key={STALLING_KEY}", "sessions.no_key=ignore", "tokenizer.unknown=unk"],
    "masks that stall": ["sessions.key=partition"],
    "lines as long as can be": ["input.max_line_bytes=16777216", "sessions.key=partition"],
    "json": ["input.format=json", "input.timestamp=/time", "sessions.key={pointer: /key}", "input.multiline=true"],
    "shapes of json": [
        *(
            "input.format=json",
            "input.message=[/message, /log, /a]",
            "input.severity=/level",
            "input.encoding=utf-8-replace",
        ),
        *("sessions.key={any_of: [{pointer: /key}, partition]}", "input.only={pointer: /time, matches: '[^x]'}"),
    ],
    "batches": ["input.format=json", "input.split=/x/*", "sessions.key=partition"],
    "events of several lines": ["input.multiline={start: '^(?:x+x+)+y|^[0-9]'}", "sessions.key=partition"],
}


@dataclass(frozen=True)
class Kind:
    """One way to set a decoder up."""

    overrides: Sequence[str]
    vocabulary: Vocabulary

    @property
    def json(self) -> bool:
        return "input.format=json" in self.overrides

    @property
    def multiline(self) -> bool:
        return "input.multiline=true" in self.overrides

    def decoder(self) -> Decoder:
        """A new one, whose tokenizer remembers nothing."""
        settings = load_settings(None, self.overrides)
        tokenizer = Tokenizer(self.vocabulary, unknown=settings.tokenizer.unknown)
        return Decoder(settings.input, settings.sessions, tokenizer)

    @property
    def split(self) -> bool:
        return "input.split=/x/*" in self.overrides

    def lines(self, value: bytes | None) -> int:
        """How many lines a record may hold."""
        if self.split:
            return 1 + (value or b"").count(b",")
        return 1 + ((value or b"").count(b"\\n" if self.json else b"\n") if self.multiline else 0)


@pytest.fixture
def garbage_as_in_a_worker() -> Iterator[None]:
    """What other tests have left is not walked over while a line is timed; thresholds as in `worker.commands.run`."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


@pytest.mark.fault(row=10, core=True)
@pytest.mark.timeout(2400)
@pytest.mark.usefixtures("garbage_as_in_a_worker")
def test_no_hostile_line_crashes_or_stalls_the_decoder_or_the_tokenizer(
    size: Size, checkpoint: Path, fault_report: FaultReport
) -> None:
    vocabulary = Vocabulary.from_json((checkpoint / "vocabulary.json").read_bytes())
    masked = Vocabulary(vocabulary.templates, (STALLING_MASK,))
    kinds = [Kind(each, masked if name.startswith("masks") else vocabulary) for name, each in SETTINGS.items()]
    decoders = [kind.decoder() for kind in kinds]
    inputs = HostileInputs(1, vocabulary.templates)
    texts, documents = inputs.texts(), inputs.documents()

    total = 1_000_000 if size.full else 5_000
    stopwatch = Stopwatch(attempts=3 if size.full else 1)
    for json, largest in ((False, inputs.largest_texts()), (True, inputs.largest_documents())):
        takers = [kind for kind in kinds if kind.json == json]
        turns = itertools.cycle(takers)
        for value in largest:  # to all of them, or, where their times are not looked at, to one after the other
            for kind in takers if size.full else [next(turns)]:
                stopwatch.take(kind, [value])
    for number in range(total // BATCH):
        kind, decoder = kinds[number % len(kinds)], decoders[number % len(kinds)]
        values = list(itertools.islice(documents if kind.json else texts, BATCH))
        records = as_records(values)
        began = time.thread_time()
        (events,) = map(listed, decoder.decode([records]))
        took_s = time.thread_time() - began
        assert_whole(records, events, vocabulary)
        if number % 100 < len(kinds):
            assert_alone_is_the_same(kind, records, events)
        if size.full and took_s > MOST_SECONDS:  # one of them may have taken it all
            stopwatch.take(kind, values)

    slowest_ms = 1000 * stopwatch.slowest_s
    fault_report(f"hostile lines to decoder and tokenizer; slowest {slowest_ms:.0f} ms", records=total)
    if size.full:  # where nothing else keeps the processor busy
        assert stopwatch.stalling == []


class Stopwatch:
    """Finds records that take longer than they may, by processor time.

    Attributes:
        slowest_s: what the slowest record of one line took.
        stalling: settings, time, size and beginning of each record that took too long.
    """

    def __init__(self, attempts: int) -> None:
        self._attempts = attempts  # the least of them counts
        self.slowest_s = 0.0
        self.stalling: list[tuple[Sequence[str], str, int, bytes]] = []

    def take(self, kind: Kind, values: Sequence[bytes | None]) -> None:
        """Time each of these, decoded one after the other by a decoder whose tokenizer knows none of them."""
        decoder = kind.decoder()
        for value in values:
            lines = kind.lines(value)
            most_s = MOST_SECONDS + (lines - 1) * MOST_SECONDS_PER_FURTHER_LINE
            took_s = seconds(decoder, value)
            for _ in range(self._attempts - 1):
                if took_s > most_s:
                    took_s = min(took_s, seconds(kind.decoder(), value))
            if lines == 1:
                self.slowest_s = max(self.slowest_s, took_s)
            if took_s > most_s and kind.split:
                ordinary = b'{"x": [%b]}' % b",".join([ORDINARY] * lines)
                most_s = MOST_OVER_ORDINARY * min(seconds(kind.decoder(), ordinary) for _ in range(self._attempts))
            if took_s > most_s:
                self.stalling.append((kind.overrides, f"{took_s:.3f} s", len(value or b""), (value or b"")[:60]))


def seconds(decoder: Decoder, value: bytes | None) -> float:
    """Processor time of one record."""
    records = as_records([value])
    began = time.thread_time()
    decoder.decode([records])
    return time.thread_time() - began


def as_records(values: list[bytes | None]) -> Records:
    offsets = list(range(len(values)))
    return Records("raw", 0, offsets, values, keys=None, timestamps=offsets, headers=None)


def assert_whole(records: Records, events: ListedEvents, vocabulary: Vocabulary) -> None:
    """Each record became events or dead letters that can be written, or is ignored; each event can be scored."""
    whole = [letter.index for letter in events.dead_letters if letter.item is None]
    assert len(set(whole)) == len(whole)
    assert not set(whole) & set(events.offsets)
    refused = {letter.index for letter in events.dead_letters}
    gone = set(records.offsets) - refused - set(events.offsets)
    assert len(gone) <= events.ignored + events.skipped
    for letter in events.dead_letters:
        key, value, headers = dead_letter(records, letter, MESSAGE_BYTES)
        size = len(key or b"") + len(value or b"") + sum(len(name) + len(text) for name, text in headers)
        assert size <= MESSAGE_BYTES
    assert events.offsets == sorted(events.offsets)
    assert len(events.keys) == len(events.tokens) == len(events.times) == len(events.offsets)
    assert all(key and len(key) <= MAX_KEY_CHARACTERS and key.encode() for key in set(events.keys))
    assert all(vocabulary.text(token) for token in set(events.tokens))
    assert all(time == NO_TIME or abs(time) < 2**62 for time in events.times)


def assert_alone_is_the_same(kind: Kind, records: Records, together: ListedEvents) -> None:
    """A record's events and its dead letter do not depend on what stands beside it."""
    decoder = kind.decoder()
    alone = [listed(decoder.decode([as_records_at(records, row)])[0]) for row in range(len(records.values))]
    for column in ("keys", "tokens", "times", "offsets"):
        assert getattr(together, column) == [item for events in alone for item in getattr(events, column)]
    letters = [
        (row, each.reason, each.message, each.item) for row, events in enumerate(alone) for each in events.dead_letters
    ]
    assert [(each.index, each.reason, each.message, each.item) for each in together.dead_letters] == letters
    assert together.cut == sum(events.cut for events in alone)
    assert together.ignored == sum(events.ignored for events in alone)
    assert together.skipped == sum(events.skipped for events in alone)


def as_records_at(records: Records, row: int) -> Records:
    assert records.timestamps is not None
    return Records("raw", 0, [records.offsets[row]], [records.values[row]], None, [records.timestamps[row]], None)
