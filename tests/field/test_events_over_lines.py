"""Lines of files that are one event: stack traces, and long lines that a container runtime wrote in parts."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.field.reading import KeptLines, read
from tests.field.test_refused_lines import Command, evaluate, explain, score, train
from tests.shared import needs_shared, shared
from tests.worker.small_worker import OddScorer
from worker.commands.score import ScoredFiles, score_files
from worker.files.input_files import open_inputs
from worker.files.joined_lines import joined_lines
from worker.files.log_files import read_records
from worker.files.sample import try_sample
from worker.processing.decoder import Decoder
from worker.processing.partial_lines import MOST_APART
from worker.settings.document import load_settings

START = r"input.multiline={start: '^\d{4}-'}"
PARTITION = "sessions.key=partition"
RULES = (START, r"sessions.key={regex: 'user\d+'}", "input.timestamp={format: iso8601}", "sessions.gap=5m")

TRACES = {
    "java": (
        "2024-05-06 07:00:00 ERROR order failed",
        "shop.OrderException: order 17",
        "\tat shop.Orders.place(Orders.java:88)",
        "\tSuppressed: java.io.IOException: close",
        "Caused by: java.sql.SQLTimeoutException: after 30 s",
        "\tat shop.Stock.read(Stock.java:99)",
        "\t... 23 more",
    ),
    "python": (
        "2024-05-06 07:00:00 ERROR job failed",
        "Traceback (most recent call last):",
        '  File "shop/job.py", line 7, in run',
        "    stock[item]",
        "KeyError: 'item'",
        "",
        "During handling of the above exception, another exception occurred:",
        "",
        "Traceback (most recent call last):",
        '  File "shop/job.py", line 9, in run',
        "shop.errors.StockError: none",
    ),
    "go": (
        "2024-05-06 07:00:00 http: serving 10.0.0.7:5123",
        "panic: runtime error: index out of range [3] with length 3",
        "",
        "goroutine 19 [running]:",
        "main.place(0x3)",
        "\t/src/shop/main.go:17 +0x1d",
    ),
    "dotnet": (
        "2024-05-06 07:00:00 fail: Shop.Orders[0]",
        "System.InvalidOperationException: order",
        " ---> System.Data.SqlClient.SqlException: timeout",
        "   at Shop.Stock.Read() in Stock.cs:line 9",
        "   --- End of inner exception stack trace ---",
    ),
    "node": ("2024-05-06 07:00:00 error: order", "TypeError: undefined is no order", "    at place (/src/a.js:3:7)"),
}
NAMED = {
    "java": "java.sql.SQLTimeoutException",
    "python": "shop.errors.StockError",
    "go": "panic",
    "dotnet": "System.Data.SqlClient.SqlException",
    "node": "TypeError",
}


def events_of_file(path: Path, *settings: str) -> tuple[list[str], list[int]]:
    """Messages and offsets of the events of a file."""
    loaded = load_settings(None, [*settings, PARTITION])
    kept = KeptLines()
    decoder = Decoder(loaded.input, loaded.sessions, kept)
    offsets: list[int] = []
    for records in read_records(path, settings=loaded.input):
        offsets += decoder.decode([records])[0].offsets.tolist()
    return kept.messages, offsets


def written(path: Path, lines: Sequence[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.mark.parametrize("language", TRACES)
def test_a_stack_trace_in_a_file_is_one_event_of_its_first_line_and_last_exception(
    tmp_path: Path, language: str
) -> None:
    trace = TRACES[language]
    log = written(tmp_path / "app.log", ["2024-05-06 06:59:59 INFO start", *trace, "2024-05-06 07:00:01 INFO on"])
    messages, offsets = events_of_file(log, START)
    assert messages == [
        "2024-05-06 06:59:59 INFO start",
        f"{trace[0]} {NAMED[language]}",
        "2024-05-06 07:00:01 INFO on",
    ]
    assert offsets == [0, 1, 1 + len(trace)]


def test_the_last_event_ends_with_its_file_and_lines_before_the_first_beginning_are_one(tmp_path: Path) -> None:
    log = tmp_path / "app.log.gz"
    text = "\tat left.Over(Left.java:1)\nCaused by: left.OverException: 1\n" + "\n".join(TRACES["java"])
    log.write_bytes(gzip.compress(text.encode()))
    messages, offsets = events_of_file(log, START)
    assert messages == [
        "\tat left.Over(Left.java:1) left.OverException",
        "2024-05-06 07:00:00 ERROR order failed java.sql.SQLTimeoutException",
    ]
    assert offsets == [0, 2]


LINE = st.one_of(
    st.sampled_from(
        [
            *("2024-01-01 a", "\x1b[31m2024-01-02 b\x1b[0m", " at x", "\tat caf\xe9", "", " ", "\r", "E.fException: 1"),
            *("T1 stdout P one ", "T1 stdout F two", "T2 stderr P three ", "T2 stderr F four", "T3 stdout P:x five"),
            "x" * 300,
        ]
    ),
    st.text("2024- PF\r", max_size=12),
)


def in_batches(lines: list[bytes], cuts: Iterator[int]) -> Iterator[list[bytes]]:
    while lines:
        size = next(cuts)
        yield lines[:size]
        lines = lines[size:]


@given(
    lines=st.lists(LINE, min_size=1, max_size=30),
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=9),
    settings=st.sampled_from(
        [(START,), ("input.partial_lines=cri", START), ("input.format=cri", "input.timestamp=null")]
    ),
    encoding=st.sampled_from(["utf-8", "latin-1"]),
)
@example(["T2 stderr P a ", "T2 stderr F b", "T2 stderr P c "], [1], ("input.partial_lines=cri", START), "utf-8")
def test_a_file_gives_the_events_of_a_record_that_holds_its_text(
    lines: list[str], cuts: list[int], settings: tuple[str, ...], encoding: str
) -> None:
    use = (*settings, f"input.encoding={encoding}", "input.max_line_bytes=256", PARTITION)
    text = "\n".join(lines).encode(encoding)
    loaded = load_settings(None, use)
    values: list[bytes | None] = []
    counts = 0
    file = [line.removesuffix(b"\r") for line in text.split(b"\n")]
    for joined in joined_lines(in_batches(file, iter([*cuts, *repeat(7, 30)])), loaded.input):
        values += joined.values
        counts += sum(joined.counts)
    assert counts == len(lines)
    assert read(values, *use).messages == read([text], *use).messages


def test_a_run_of_lines_without_an_end_is_cut_where_the_decoder_would_and_is_told(tmp_path: Path) -> None:
    settings = load_settings(None, [START, "input.max_line_bytes=1000"]).input
    batches = (
        [b"2024-05-06 07:00:00 ERROR", *[b"\tat x"] * 9_999] if each == 0 else [b"\tat x"] * 10_000
        for each in range(50)
    )
    [(numbers, values, counts)] = joined_lines(batches, settings)
    assert (numbers, counts) == ([0], [500_000])
    assert len(values[0]) < 1010

    lines = ["2024-05-06 07:00:00 user1 open", "\tat x" * 100, "\tat x" * 100, "2024-05-06 07:00:01 user1 close"]
    told: list[str] = []
    log = written(tmp_path / "app.log", lines)
    score_files(
        load_settings(None, [*RULES, "input.max_line_bytes=1000"]),
        OddScorer(),
        [log],
        tmp_path / "out",
        tell=told.append,
    )
    assert told[1:] == ["1 events are longer than input.max_line_bytes; nothing past it counts"]


def scores(paths: list[Path], folder: Path, *more: str) -> tuple[ScoredFiles, list[dict[str, Any]], list[str]]:
    told: list[str] = []
    output = folder / "scores.jsonl"
    done = score_files(load_settings(None, [*RULES, *more]), OddScorer(), paths, output, tell=told.append)
    return done, [json.loads(line) for line in output.read_text().splitlines()], told


VISIT = [
    "2024-05-06 07:00:00 user1 open",
    "2024-05-06 07:00:01 user1 odd",
    "a.bException: 1",
    "\tat x",
    "2024-05-06 07:00:02 user1 close",
]


def test_scores_count_lines_and_place_events_at_their_first(tmp_path: Path) -> None:
    done, [record], _ = scores([written(tmp_path / "app.log", VISIT)], tmp_path)
    assert (done.lines, done.sessions, done.refused) == (5, 1, 0)
    assert record["events"] == 3
    assert record["source"] == {
        "topic": "app.log",
        "partition": 0,
        "first_offset": 0,
        "last_offset": 4,
        "cause_offset": 5,
    }


def test_a_trace_does_not_go_over_files_and_their_lines_are_counted_on(tmp_path: Path) -> None:
    later = ["\tat cut.Off(Cut.java:1)", "\tat x", *[line.replace("07:0", "08:0") for line in VISIT]]
    paths = [written(tmp_path / "app.log", later), written(tmp_path / "app.log.1", VISIT[:4])]
    done, records, told = scores(paths, tmp_path)
    assert (done.lines, done.refused) == (11, 2)
    assert [(each["events"], each["source"]["topic"], each["source"]["first_offset"]) for each in records] == [
        (2, "app.log.1", 0),
        (3, "app.log", 2),
    ]
    assert told[1:] == [
        r"2 of 11 lines refused: no_key (sessions.key), as app.log, line 1: the record has no session key (regex "
        r"user\d+)"
    ]


@pytest.mark.parametrize("command", [train, score, evaluate, explain])
def test_every_command_joins_lines_and_tells_a_refused_event_by_its_first(tmp_path: Path, command: Command) -> None:
    lines = []
    for user in range(30):
        lines += [line.replace("user1", f"user{user}").replace("07:00", f"07:{user:02}") for line in VISIT]
    lines[10:10] = ["2024-05-06 07:02:00 nobody odd", "a.bException: 1", "\tat x"]
    told = command(load_settings(None, RULES), written(tmp_path / "app.log", lines))
    assert [line for line in told if "lines refused:" in line] == [
        r"3 of 153 lines refused: no_key (sessions.key), as app.log, line 11: the record has no session key (regex "
        r"user\d+)"
    ]


def test_a_sample_is_joined_as_well(tmp_path: Path) -> None:
    found = try_sample(load_settings(None, RULES), None, [written(tmp_path / "app.log", VISIT)])
    assert found.told[0] == "5 lines, 3 events, 1 sessions (end_of_input 1)"
    assert found.doubtful == found.wrong == []


def test_the_timestamp_that_is_suggested_is_one_of_events_not_of_the_lines_of_their_traces(tmp_path: Path) -> None:
    log = written(tmp_path / "app.log", [*TRACES["java"], *TRACES["python"]])
    [note] = open_inputs(load_settings(None, [START, r"sessions.key={regex: ERROR}"]), [log]).notes
    assert note.endswith("this would read them: input.timestamp: {format: iso8601}")


def test_lines_of_json_are_documents_and_only_their_messages_are_divided(tmp_path: Path) -> None:
    trace = "\n".join(TRACES["java"])
    log = written(tmp_path / "app.jsonl", [json.dumps({"message": f"{trace}\n2024-05-06 07:00:01 on"})] * 2)
    messages, offsets = events_of_file(log, "input.format=json", START)
    assert (
        messages
        == ["2024-05-06 07:00:00 ERROR order failed java.sql.SQLTimeoutException", "2024-05-06 07:00:01 on"] * 2
    )
    assert offsets == [0, 0, 1, 1]


AT = "2024-05-06T07:00:0"
PARTS = [
    f"{AT}0.1Z stdout P one ",
    f"{AT}0.2Z stderr F between",
    f"{AT}0.3Z stdout P two ",
    f"{AT}0.4Z stdout F three",
    f"{AT}1Z stderr P:x no end",
]


def test_parts_of_a_containers_line_are_one_event_of_their_stream(tmp_path: Path) -> None:
    messages, offsets = events_of_file(written(tmp_path / "0.log", PARTS), "input.format=cri")
    assert (messages, offsets) == (["one two three", "between", "no end"], [0, 1, 4])


def test_within_a_record_parts_are_joined_and_over_records_each_is_an_event() -> None:
    use = ("input.format=cri", PARTITION)
    whole = read(["\n".join(PARTS).encode(), PARTS[3].encode()], *use)
    assert whole.messages == ["one two three", "between", "no end", "three"]
    assert whole.times[0] % 1000 == 100  # of the first part
    alone = read([line.encode() for line in PARTS], *use)
    assert alone.messages == ["one ", "between", "two ", "three", "no end"]


def test_a_line_of_parts_has_the_template_of_one_that_was_written_whole(tmp_path: Path) -> None:
    use = ("input.partial_lines=cri", "input.multiline=true")
    messages, _ = events_of_file(written(tmp_path / "0.log", PARTS), *use)
    assert messages == [f"{AT}0.1Z stdout F one two three", PARTS[1], f"{AT}1Z stderr F:x no end"]
    assert read(["\n".join(PARTS).encode()], *use, PARTITION).messages == messages


def test_a_part_whose_end_does_not_come_soon_is_a_line(tmp_path: Path) -> None:
    lines = [PARTS[0], *[f"{AT}0Z stderr F other"] * MOST_APART, PARTS[3]]
    use = "input.format=cri"
    messages, _ = events_of_file(written(tmp_path / "far.log", lines), use)
    assert (messages[0], messages[-1], len(messages)) == ("one ", "three", MOST_APART + 2)
    messages, _ = events_of_file(written(tmp_path / "near.log", [lines[0], *lines[2:]]), use)
    assert (messages[0], messages[-1], len(messages)) == ("one three", "other", MOST_APART)


def test_a_trace_of_a_container_is_found_behind_what_the_runtime_writes(tmp_path: Path) -> None:
    lines = [f"{AT}{second}Z stdout F {line}" for second, line in enumerate(TRACES["java"])]
    lines.insert(2, f"{AT}1Z stdout P \tat long.")
    lines.insert(3, f"{AT}1Z stdout F Line(Long.java:7)")
    log = written(tmp_path / "0.log", [*lines, f"{AT}9Z stdout F 2024-05-06 07:00:09 INFO on"])
    messages, offsets = events_of_file(log, "input.format=cri", r"input.multiline={start: '^\S+ \S+ [FP] \d{4}-'}")
    assert messages == [
        "2024-05-06 07:00:00 ERROR order failed java.sql.SQLTimeoutException",
        "2024-05-06 07:00:09 INFO on",
    ]
    assert offsets == [0, len(lines)]


@needs_shared
@pytest.mark.parametrize(
    ("system", "start"),
    [
        ("Hadoop", r"^\d{4}-\d\d-\d\d "),
        ("Zookeeper", r"^\d{4}-\d\d-\d\d "),
        ("Spark", r"^\d\d/\d\d/\d\d "),
        ("OpenStack", r"^nova-"),
    ],
)
def test_of_real_logs_each_beginning_is_an_event_and_no_line_is_lost(system: str, start: str, tmp_path: Path) -> None:
    lines = gzip.decompress(shared(f"data/loghub_2k/{system}_2k.log.gz").read_bytes()).decode().splitlines()
    log = tmp_path / "app.log"
    # With traces between them, which these excerpts lack.
    traced = [each for line in lines for each in (line, *(TRACES["java"][1:] if "rror" in line else ()))]
    written(log, traced)
    messages, offsets = events_of_file(log, f"input.multiline={{start: '{start}'}}")
    expected = [f"{line} {NAMED['java']}" if "rror" in line else line for line in lines]
    assert messages == expected
    assert [traced[offset] for offset in offsets] == lines
