"""Times as other people's logs write them: without a year, in zones with names, as numbers of any unit."""

from __future__ import annotations

import gzip
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest

from detector.text.vocabulary import Vocabulary
from tests.shared import needs_shared, shared
from tests.worker.processing.listed_events import ListedEvents, listed
from tests.worker.small_worker import OddScorer
from worker.commands.score import score_files
from worker.errors import SettingsError
from worker.files.log_files import read_records
from worker.processing.decoder import Decoder
from worker.processing.records import Records
from worker.settings.document import load_settings

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class OneToken:
    """A tokenizer to which all lines are alike."""

    def encode(self, lines: pa.Array) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.zeros(len(lines), np.int64)


def decoder(timestamp: str, *overrides: str) -> Decoder:
    settings = load_settings(None, [f"input.timestamp={timestamp}", "sessions.key=partition", *overrides])
    return Decoder(settings.input, settings.sessions, OneToken())


def from_kafka(one: Decoder, values: Sequence[bytes], written: Sequence[datetime] | None = None) -> ListedEvents:
    offsets = list(range(len(values)))
    timestamps = None if written is None else [milliseconds(at) for at in written]
    [events] = one.decode([Records("raw", 0, offsets, list(values), None, timestamps, None)])
    return listed(events)


def from_file(one: Decoder, path: Path) -> list[int]:
    times: list[int] = []
    for records in read_records(path):
        [events] = one.decode([records])
        assert events.dead_letters == []
        times += events.times.tolist()
    return times


def milliseconds(at: datetime) -> int:
    return (at - EPOCH) // timedelta(milliseconds=1)


def calls(first: datetime, count: int) -> Iterator[tuple[datetime, str]]:
    """Sessions of three events within a minute; a new one begins every two minutes."""
    for number in range(count):
        begun = first + number * timedelta(minutes=2)
        for event, word in enumerate(("dialled", "answered", "ended")):
            yield begun + timedelta(seconds=25 * event, milliseconds=number), f"call-{number:04} {word}"


YEARLESS = {
    "syslog": ("{format: syslog}", lambda at: f"<30>{at:%b} {at.day:2} {at:%H:%M:%S} pbx voip[9]: "),
    "klog": ("{format: klog}", lambda at: f"W{at:%m%d %H:%M:%S.%f}       1 dial.go:7] "),
    "strptime": (r"{pattern: '^(\S+ \S+)', format: '%d.%m. %H:%M:%S'}", lambda at: f"{at:%d.%m. %H:%M:%S} "),
}
SPANS = [datetime(2023, 12, 31, 18, tzinfo=UTC), datetime(2024, 2, 28, 18, tzinfo=UTC)]


@pytest.mark.parametrize("form", YEARLESS)
@pytest.mark.parametrize("first", SPANS)
def test_sessions_over_new_year_and_a_leap_day_close_by_gap_in_a_file(
    tmp_path: Path, first: datetime, form: str
) -> None:
    rule, stamp = YEARLESS[form]
    lines = sorted((at, stamp(at) + text) for at, text in calls(first, 400))
    path = tmp_path / "voip.log"
    path.write_text("\n".join(line for _, line in lines) + "\n")
    written = milliseconds(first + timedelta(days=40)) / 1000
    os.utime(path, (written, written))
    overrides = [f"input.timestamp={rule}", "sessions.key={regex: 'call-[0-9]+'}", "model.checkpoint=none"]
    scored = score_files(
        load_settings(None, overrides), OddScorer(Vocabulary(("<*> dialled",))), [path], tmp_path / "scores"
    )
    records = [orjson.loads(line) for line in (tmp_path / "scores").read_bytes().splitlines()]
    assert (scored.sessions, scored.refused) == (400, 0)
    closings = Counter(record["closed_by"] for record in records)
    assert closings["gap"] >= 394
    days = {record["first_event_time"][:10] for record in records}
    assert days == {f"{first + timedelta(days=day):%Y-%m-%d}" for day in (0, 1)}


@pytest.mark.parametrize("form", YEARLESS)
def test_times_over_new_year_are_right_in_kafka_however_late_their_records_come(form: str) -> None:
    rule, stamp = YEARLESS[form]
    times = [datetime(2023, 12, 31, 23, 59, 30, tzinfo=UTC) + n * timedelta(seconds=7) for n in range(10)]
    values = [(stamp(at) + "call-1 dialled").encode() for at in times]
    for late in (timedelta(), timedelta(minutes=5), timedelta(days=90)):
        assert from_kafka(decoder(rule), values, [at + late for at in times]).times == [
            milliseconds(at) for at in times
        ]


def test_rotated_files_without_years_each_have_the_year_of_their_own_modification(tmp_path: Path) -> None:
    times = [datetime(2023, 12, 30, tzinfo=UTC) + n * timedelta(hours=7) for n in range(12)]
    stamp = YEARLESS["syslog"][1]
    for name, part in (("app.log.1.gz", times[:5]), ("app.log", times[5:])):
        path = tmp_path / name
        text = "".join(f"{stamp(at)}call-1 dialled\n" for at in part).encode()
        path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
        os.utime(path, (milliseconds(part[-1]) / 1000,) * 2)
    one = decoder("{format: syslog}")
    found = from_file(one, tmp_path / "app.log.1.gz") + from_file(one, tmp_path / "app.log")
    assert found == [milliseconds(at) for at in times]
    assert all(a < b for a, b in pairwise(found))


def test_a_file_whose_year_is_known_needs_no_modification_time(tmp_path: Path) -> None:
    path = tmp_path / "copied.log"
    path.write_text("Nov  9 12:00:00 a x\nJan  2 12:00:00 a x\n")
    found = from_file(decoder("{format: syslog, year: 2005}"), path)
    assert found == [
        milliseconds(datetime(2005, 11, 9, 12, tzinfo=UTC)),
        milliseconds(datetime(2006, 1, 2, 12, tzinfo=UTC)),
    ]


@pytest.mark.parametrize("severity", ["I", "W", "E", "F"])
def test_a_severity_glued_to_a_klog_time_is_no_part_of_it(severity: str) -> None:
    line = f"{severity}0304 05:06:07.000800       1 sync.go:1] queue done".encode()
    at = datetime(2024, 3, 4, 5, 6, 7, tzinfo=UTC)
    assert from_kafka(decoder("{format: klog}"), [line], [at]).times == [milliseconds(at)]


@pytest.mark.parametrize("priority", ["", "<3>", "<134>"])
def test_a_priority_glued_to_a_syslog_time_is_no_part_of_it(priority: str) -> None:
    at = datetime(2024, 3, 4, 5, 6, 7, tzinfo=UTC)
    line = f"{priority}Mar  4 05:06:07 gate app[1]: link up".encode()
    assert from_kafka(decoder("{format: syslog}"), [line], [at]).times == [milliseconds(at)]


SECONDS, REST = 1_712_031_512, "304219876"  # of 2024-04-02; as text of digits it once was read as the year 1712


@pytest.mark.parametrize("digits", [0, 3, 6, 9])
@pytest.mark.parametrize("quoted", [False, True])
def test_a_number_in_json_is_a_time_in_any_unit_and_in_quotes(digits: int, quoted: bool) -> None:
    written = f"{SECONDS}{REST[:digits]}"
    value = f'{{"message": "x", "ts": {f"{chr(34)}{written}{chr(34)}" if quoted else written}}}'
    [found] = from_kafka(decoder("/ts", "input.format=json"), [value.encode()]).times
    assert found == SECONDS * 1000 + (int(REST[:3]) if digits else 0)


def test_a_number_in_json_may_have_a_fraction() -> None:
    values = [f'{{"message": "x", "ts": {q}{SECONDS}.304{q}}}'.encode() for q in ("", '"')]
    assert from_kafka(decoder("/ts", "input.format=json"), values).times == [SECONDS * 1000 + 304] * 2


@pytest.fixture(params=["UTC", "Europe/Berlin", "America/New_York"])
def machine_in(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The process runs in a time zone."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("machine_in")
def test_an_abbreviated_zone_is_refused_or_what_the_table_says_wherever_the_machine_stands() -> None:
    pattern = r"pattern: '^(\S+ \S+ \S+) ', format: '%Y-%m-%d %H:%M:%S.%f %Z'"
    with pytest.raises(SettingsError, match=r"input.timestamp.format: .* has %Z, .* means nothing by itself"):
        decoder(f"{{{pattern}}}")
    lines = [b"2024-01-15 10:00:00.123 CET [100] LOG:  done", b"2024-07-15 10:00:00.123 CEST [100] LOG:  done"]
    zones = "zones: {CET: '+01:00', CEST: '+02:00'}"
    expected = [
        milliseconds(datetime(2024, 1, 15, 9, tzinfo=UTC)) + 123,
        milliseconds(datetime(2024, 7, 15, 8, tzinfo=UTC)) + 123,
    ]
    assert from_kafka(decoder(f"{{{pattern}, {zones}}}"), lines).times == expected
    assert from_kafka(decoder(f"{{format: iso8601, {zones}}}"), lines).times == expected
    bare = r"{pattern: '^(\S+ \S+) ', format: iso8601, timezone: Europe/Berlin}"
    assert from_kafka(decoder(bare), lines).times == expected
    assert from_kafka(decoder("{format: iso8601}"), [b"2024-01-15 10:00:00 x"]).times == [
        milliseconds(datetime(2024, 1, 15, 10, tzinfo=UTC))
    ]


# Of LogHub's samples: the settings that read the time of every line, and when the first and the last line were written.
LOGHUB = {
    "Android": (
        r"{pattern: '^(\d\d-\d\d \d\d:\d\d:\d\d\.\d{3})', format: '%m-%d %H:%M:%S.%f', year: 2017}",
        *("2017-03-17T16:13:38.811", "2017-03-17T16:16:09.141"),
    ),
    "Apache": (
        r"{pattern: '^\[([^]]+)\]', format: '%a %b %d %H:%M:%S %Y'}",
        *("2005-12-04T04:47:44", "2005-12-05T19:15:57"),
    ),
    "BGL": (r"{pattern: '^\S+ (\d+) ', format: epoch}", "2005-06-03T22:42:50", "2006-01-03T15:13:09"),
    "HDFS": (
        r"{pattern: '^(\d{6} \d{6})', format: '%y%m%d %H%M%S'}",
        *("2008-11-09T20:36:15", "2008-11-11T10:20:17"),
    ),
    "HPC": (r"{pattern: ' (\d{9,10}) ', format: epoch}", "2004-02-26T14:12:22", "2005-12-15T18:25:39"),
    "Hadoop": ("{format: iso8601}", "2015-10-18T18:01:47.978", "2015-10-18T18:10:55.202"),
    "HealthApp": (
        r"{pattern: '^([^|]+)', format: '%Y%m%d-%H:%M:%S:%L'}",
        *("2017-12-23T22:15:29.606", "2017-12-24T01:02:35.789"),
    ),
    "Linux": ("{format: syslog, year: 2005}", "2005-06-14T15:16:01", "2005-07-27T14:42:00"),
    "Mac": ("{format: syslog, year: 2017}", "2017-07-01T09:00:55", "2017-07-08T08:10:46"),
    "OpenSSH": ("{format: syslog, year: 2015}", "2015-12-10T06:55:46", "2015-12-10T11:04:45"),
    "OpenStack": ("{format: iso8601}", "2017-05-16T00:00:00.008", "2017-05-16T00:14:47.687"),
    "Proxifier": (
        r"{pattern: '^\[([^]]+)\]', format: '%m.%d %H:%M:%S', year: 2015}",
        *("2015-10-30T16:49:06", "2015-07-27T10:23:42"),
    ),
    "Spark": (
        r"{pattern: '^(\S+ \S+)', format: '%y/%m/%d %H:%M:%S'}",
        *("2017-06-09T20:10:40", "2017-06-09T20:11:11"),
    ),
    "Thunderbird": (r"{pattern: '^\S+ (\d+) ', format: epoch}", "2005-11-09T20:01:01", "2005-11-09T20:15:32"),
    "Windows": ("{format: iso8601}", "2016-09-28T04:30:30", "2016-09-29T02:04:40"),
    "Zookeeper": ("{format: iso8601}", "2015-07-29T17:41:44.747", "2015-08-10T18:12:34.004"),
}


@needs_shared
@pytest.mark.parametrize("system", LOGHUB)
def test_the_time_of_every_line_of_a_loghub_system_is_read(system: str) -> None:
    rule, first, last = LOGHUB[system]
    found = from_file(decoder(rule), shared(f"data/loghub_2k/{system}_2k.log.gz"))
    assert len(found) == 2000
    assert [found[0], found[-1]] == [milliseconds(datetime.fromisoformat(f"{at}+00:00")) for at in (first, last)]


@needs_shared
@pytest.mark.parametrize(
    ("system", "rule", "agree"),
    [
        (
            "BGL",
            r"{pattern: ' (\d{4}-\S+-\d\d\.\d\d\.\S+) ', format: '%Y-%m-%d-%H.%M.%S.%f', timezone: US/Pacific}",
            2000,
        ),
        ("Thunderbird", r"{pattern: ' ([A-Z]\w\w +\d+ \S+) ', format: syslog, timezone: US/Pacific, year: 2005}", 2000),
    ],
)
def test_where_a_line_tells_its_time_twice_both_are_the_same(system: str, rule: str, agree: int) -> None:
    path = shared(f"data/loghub_2k/{system}_2k.log.gz")
    local, epoch = from_file(decoder(rule), path), from_file(decoder(LOGHUB[system][0]), path)
    assert sum(abs(a - b) < 1500 for a, b in zip(local, epoch, strict=True)) == agree


def rows_of_the_manual() -> list[tuple[str, str]]:
    """Lines and the settings beside them in the manual's table of times."""
    text = (Path(__file__).parents[2] / "docs" / "input.md").read_text(encoding="utf-8")
    table = text.split("| `input.timestamp` |\n| --- | --- |\n")[1].split("\n\n")[0]
    rows = []
    for row in table.splitlines():
        lines, rule = re.split(r"(?<!\\)\|", row)[1:3]
        [setting] = re.findall("`(.+)`", rule)
        rows += [(line.replace("\\|", "|"), setting.replace("\\|", "|")) for line in re.findall("`([^`]+)`", lines)]
    return rows


@pytest.mark.parametrize(("line", "rule"), rows_of_the_manual())
def test_what_the_manual_says_of_a_time_reads_it(line: str, rule: str) -> None:
    as_json = line.startswith("{")
    value = line.replace(", …", ', "message": "x"') if as_json else line
    one = decoder(rule, f"input.format={'json' if as_json else 'text'}")
    events = from_kafka(one, [value.encode()], [datetime(2024, 3, 4, 12, tzinfo=UTC)])
    assert events.dead_letters == []
    zone = timedelta(hours=1) if "+0100" in line or "CET" in line else timedelta()
    [found] = events.times
    assert abs(found + zone // timedelta(milliseconds=1) - milliseconds(datetime(2024, 3, 4, 10, tzinfo=UTC))) < 1000
