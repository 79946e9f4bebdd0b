"""`logmamba explain` shows the session that the worker scores, its own lines beside their tokens; nothing is obeyed."""

from __future__ import annotations

import io
import json
import random
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import orjson
import pytest
from rich.console import Console

from detector.checkpoint import demo_checkpoint
from detector.errors import InputFileError
from detector.scoring.scorer import Scorer
from detector.text.vocabulary import EOS, UNK, Vocabulary
from tests.detector.small_models import VOCABULARY, random_checkpoint
from worker.cli import main
from worker.commands.demo import LINES_SETTINGS
from worker.commands.explain import ExplainedSession, explain_sessions
from worker.commands.score import score_files
from worker.commands.terminal.explanation_table import explanation_table
from worker.errors import RunError
from worker.generator.log import GeneratedLog
from worker.settings.document import Settings, load_settings

RECORD_SCHEMA = json.loads((Path(__file__).parents[3] / "config" / "score-record.schema.json").read_text())
UNLIKE_ANY = "kernel panic: not syncing"


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    """With templates of generated logs, and without saying how its sessions were formed: those here are many kinds."""
    scorer = Scorer.load(demo_checkpoint(), device="cpu")
    scorer.reading = None
    return scorer


def explained(settings: Settings, scorer: Scorer, inputs: list[Path], key: str) -> list[ExplainedSession]:
    return list(explain_sessions(settings, scorer, inputs, key))


def scored(settings: Settings, scorer: Scorer, inputs: list[Path], folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Score records of each key, in order."""
    output = folder / "scores.jsonl"
    score_files(settings, scorer, inputs, output)
    records: dict[str, list[dict[str, Any]]] = {}
    for line in output.read_bytes().splitlines():
        record = orjson.loads(line)
        records.setdefault(record["session"], []).append(record)
    return records


def printed(session: ExplainedSession, width: int = 160) -> str:
    """What a terminal of that width gets, colours left out."""
    out = io.StringIO()
    Console(file=out, width=width).print(explanation_table(session))
    return out.getvalue()


def test_every_session_of_a_key_has_the_record_that_scoring_the_files_gives_it(scorer: Scorer, tmp_path: Path) -> None:
    log = GeneratedLog(blocks=40, seed=3, anomaly_rate=0.5, unseen_pool=1)
    paths = [tmp_path / "a.log", tmp_path / "b.log"]
    lines = list(log)
    for path, part in zip(paths, (lines[: len(lines) // 2], lines[len(lines) // 2 :]), strict=True):
        path.write_text("".join(f"{line.text}\n" for line in part))
    rules = ["sessions.max_events=4", "sessions.max_open=30", "scoring.warning=0.7", "scoring.critical=0.95"]
    expected = scored(load_settings(None, rules), scorer, paths, tmp_path)
    assert max(map(len, expected.values())) > 2
    assert {record["severity"] for records in expected.values() for record in records} >= {"normal", "critical"}
    # Neither what the worker leaves out nor what it says early changes what there is to explain.
    alerts_only = load_settings(None, [*rules, "output.include=alerts"])
    for key, records in expected.items():
        found = explained(alerts_only, scorer, paths, key)
        assert [each.record for each in found] == records
        for each in found:
            source, events = each.record["source"], each.events
            # Counted from the beginning of the file in which the session begins, into the next one.
            first = [path.name for path in paths].index(source["topic"])
            written = [line for path in paths[first:] for line in path.read_text().splitlines()]
            assert [event.text for event in events] == [written[event.offset] for event in events]
            assert (events[0].offset, events[-1].offset) == (source["first_offset"], source["last_offset"])
            top = sorted(events, key=lambda event: -event.surprise)[: len(each.record["top_events"])]
            assert [event.surprise for event in top] == [event["surprise"] for event in each.record["top_events"]]


def test_an_event_has_its_own_line_also_where_records_hold_several_or_none(scorer: Scorer, tmp_path: Path) -> None:
    path = tmp_path / "app.jsonl"
    records = [
        {"id": "a", "ts": "2024-05-01T12:00:00Z", "msg": "first of a\n\n  second of a\r\n"},
        {"id": "b", "ts": "2024-05-01T12:00:01Z", "msg": "first of b"},
        {"ts": "2024-05-01T12:00:01Z", "msg": "without a key, ignored"},
        {"id": "a", "msg": "without a time, a dead letter"},
        {"id": "a", "ts": "2024-05-01T12:00:02Z", "msg": "third of a"},
        {"id": "a", "ts": "2024-05-01T13:00:00Z", "msg": "an hour later"},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    settings = load_settings(
        None,
        [
            *("input.format=json", "input.message=/msg", "input.timestamp=/ts", "input.multiline=true"),
            *("sessions.key={pointer: /id}", "sessions.no_key=ignore", "sessions.gap=1m"),
        ],
    )
    first, second = explained(settings, scorer, [path], "a")
    assert [(event.offset, event.text) for event in first.events] == [
        (0, "first of a"),
        (0, "  second of a"),
        (4, "third of a"),
    ]
    assert first.record["closed_by"] == "gap"
    assert [event["time"] for event in orjson.loads(first.to_json())["events"]] == [
        *["2024-05-01T12:00:00.000Z"] * 2,
        "2024-05-01T12:00:02.000Z",
    ]
    assert [(event.offset, event.text) for event in second.events] == [(5, "an hour later")]


def test_unknown_lines_are_told_from_known_ones(scorer: Scorer, tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    known = next(iter(GeneratedLog(blocks=1)))
    path.write_text(f"{known.text}\n{UNLIKE_ANY} {known.block}\n")
    [session] = explained(load_settings(None, []), scorer, [path], known.block)
    assert [(event.unknown, event.template == "<unknown>") for event in session.events] == [(False,) * 2, (True,) * 2]
    assert session.record["unknown_events"] == 1
    text = printed(session)
    assert "2 events, 1 of them unknown" in text
    assert text.count("unknown line") - text.count("%  unknown line") == 1
    assert f"{UNLIKE_ANY} {known.block}" in text


def test_parsed_sessions_have_the_record_of_scoring_and_the_names_of_their_events(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tmp_path / "model", Vocabulary(("E1", "E2", "E3"), kind="events"))
    scorer, path = Scorer(checkpoint, device="cpu"), tmp_path / "sessions.tsv"
    path.write_text("session_id\tevents\ns1\tE1 E2\ns2\tE3\ns1\tE2 E9 E2\n")
    settings = load_settings(None, [])
    first, second = explained(settings, scorer, [path], "s1")
    assert [first.record, second.record] == scored(settings, scorer, [path], tmp_path)["s1"]
    assert [(event.offset, event.text, event.template) for event in second.events] == [
        (2, "E2", "E2"),
        (2, "E9", "<unknown>"),
        (2, "E2", "E2"),
    ]


def test_expectations_are_the_models_with_the_end_and_unknown_lines_among_them(tmp_path: Path) -> None:
    scorer, path = Scorer(random_checkpoint(tmp_path / "model"), device="cpu"), tmp_path / "app.log"
    lines = ["Deleting block blk_1 file y1", "Deleting replica blk_1", "Verification succeeded for blk_1"]
    path.write_text("".join(f"{line}\n" for line in lines))
    [session] = explained(load_settings(None, []), scorer, [path], "blk_1")
    assert [event.token < 0 for event in session.events] == [False, True, False]
    assert [event.class_ for event in session.events] == [6, UNK, 7]
    right = scorer.explain(np.array([event.token for event in session.events], "<i8").tobytes())
    rows = [*(event.expected for event in session.events), session.end_expected]
    assert [[each.token for each in row] for row in rows] == right.expected.tolist()
    assert [[each.probability for each in row] for row in rows] == np.round(
        right.probabilities.astype(np.float64), 6
    ).tolist()
    assert [*(event.surprise for event in session.events), session.end_surprise] == np.round(
        right.surprises.astype(np.float64), 6
    ).tolist()
    assert {each.template for row in rows for each in row} <= {VOCABULARY.text(t) for t in range(EOS, len(VOCABULARY))}


@pytest.mark.parametrize("adaptive", ["null", "{target_rate: 0.05}"])
def test_severities_are_by_the_fixed_thresholds_and_told_so_where_a_workers_are_adaptive(
    scorer: Scorer, tmp_path: Path, adaptive: str
) -> None:
    path = tmp_path / "app.log"
    line = next(iter(GeneratedLog(blocks=1)))
    path.write_text(f"{line.text}\n")
    settings = load_settings(None, ["scoring.warning=0.6", f"scoring.adaptive={adaptive}"])
    [session] = explained(settings, scorer, [path], line.block)
    assert session.record["thresholds"] == {"warning": 0.6, "critical": 0.95}
    assert orjson.loads(session.to_json())["adaptive"] == (adaptive != "null")
    told = "severities are by the fixed thresholds; with scoring.adaptive a worker's follow its stream"
    assert (told in printed(session)) == (adaptive != "null")


@pytest.fixture
def many_keys(tmp_path: Path) -> tuple[Path, list[str]]:
    """A log of 5,000 sessions with keys as alike as those of HDFS."""
    rng = random.Random(1)
    keys = [f"blk_-{rng.randrange(10**18, 10**19)}" for _ in range(5_000)]
    path = tmp_path / "app.log"
    path.write_text("".join(f"INFO {key} opened\n" for key in keys))
    return path, keys


def test_a_key_that_is_not_there_is_an_error_with_close_ones(scorer: Scorer, many_keys: tuple[Path, list[str]]) -> None:
    path, keys = many_keys
    slip = keys[4_321][:12] + "x" + keys[4_321][13:]
    with pytest.raises(RunError, match=r"^no session 'blk_-.*' among the 5,000 of the input; close keys: ") as raised:
        explained(load_settings(None, []), scorer, [path], slip)
    assert str(raised.value).split("close keys: ")[1].startswith(repr(keys[4_321]))
    with pytest.raises(RunError, match=r"^no session 'zebra' among the 5,000 of the input; close keys: none$"):
        explained(load_settings(None, []), scorer, [path], "zebra")


def test_an_input_in_which_nothing_has_a_key_says_so(scorer: Scorer, tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    path.write_text("no key here\nnor here\n")
    with pytest.raises(
        InputFileError, match=r"holds no session: 2 of 2 lines refused: no_key \(sessions.key\), as app"
    ):
        explained(load_settings(None, []), scorer, [path], "blk_1")


HOSTILE = "\x1b]0;owned [bold red]markup[/] [/nonsense] \u202eevil\x9b2J"


def test_a_hostile_line_or_key_reaches_the_terminal_as_text_only(scorer: Scorer, tmp_path: Path) -> None:
    path = tmp_path / "[red]app.log"
    path.write_text(f"{HOSTILE}\n{HOSTILE} again\n", newline="\n")
    settings = load_settings(None, [r"sessions.key={regex: '\[bold.*markup'}"])
    [session] = explained(settings, scorer, [path], "[bold red]markup")
    text = printed(session, width=300)
    assert all(each.isprintable() or each == "\n" for each in text)
    assert r"\x1b]0;owned [bold red]markup[/] [/nonsense] \u202eevil\x9b2J again" in text
    assert text.startswith("[bold red]markup  ")
    assert "\n[red]app.log, offsets 0 to 1" in text
    as_json = session.to_json()
    assert all(byte >= 0x20 for byte in as_json)
    assert orjson.loads(as_json)["events"][0]["text"] == HOSTILE


def test_no_line_of_a_table_is_wider_than_the_terminal(scorer: Scorer, tmp_path: Path) -> None:
    path = tmp_path / "app.log"
    path.write_text(f"blk_1 {'long ' * 1_000}\nblk_1 {'x' * 3_000}\nblk_1 日本語{'語' * 300}\n")
    [session] = explained(load_settings(None, []), scorer, [path], "blk_1")
    narrow, wide = (printed(session, width).splitlines() for width in (72, 240))
    tables = [lines[[line.strip() for line in lines].index("") :] for lines in (narrow, wide)]
    assert len(tables[0]) == len(tables[1])  # cut, not wrapped
    assert max(map(len, narrow)) <= 72
    assert any(len(line) > 200 for line in wide)


def test_counts_that_normal_sessions_do_not_have_are_named(scorer: Scorer, tmp_path: Path) -> None:
    lines = [line.text for line in GeneratedLog(blocks=1, anomaly_rate=0.0, seed=2)]
    key = next(iter(GeneratedLog(blocks=1, anomaly_rate=0.0, seed=2))).block
    path = tmp_path / "app.log"
    path.write_text("".join(f"{line}\n" for line in [*lines, *lines[-1:] * 30, f"{key} never seen before"]))
    [session] = explained(load_settings(None, []), scorer, [path], key)
    counts = {each.template: each.count for each in session.unusual_counts}
    assert counts.keys() == {session.events[-2].template, session.events[-1].template}
    assert sorted(counts.values()) == [
        1,
        30 + sum(event.token == session.events[-2].token for event in session.events[:-31]),
    ]
    assert all(each.nats > 0 for each in session.unusual_counts)
    assert [each["count"] for each in orjson.loads(session.to_json())["unusual_counts"]] == [
        each.count for each in session.unusual_counts
    ]
    text = printed(session)
    assert text.count("unusual: ") == 2
    assert "unusual: once (" in text
    path.write_text("".join(f"{line}\n" for line in lines))
    [usual] = explained(load_settings(None, []), scorer, [path], key)
    assert usual.unusual_counts == ()
    assert "unusual" not in printed(usual)


def test_the_table_marks_what_came_and_ends_with_the_end(scorer: Scorer, tmp_path: Path) -> None:
    log = GeneratedLog(blocks=1, anomaly_rate=0.0, seed=2)
    path = tmp_path / "app.log"
    path.write_text("".join(f"{line.text}\n" for line in log))
    [session] = explained(load_settings(None, []), scorer, [path], next(iter(log)).block)
    expected_at_all = [*((event.class_, event.expected) for event in session.events), (EOS, session.end_expected)]
    hits = sum(any(each.token == came for each in expected) for came, expected in expected_at_all)
    text = printed(session)
    assert hits > len(session.events) / 2
    assert text.count("→") == hits
    heading, source, *_ = text.splitlines()
    record = session.record
    assert heading == f"{record['session']}  normal {record['score']:.4f}  (warning from 0.7, critical from 0.95)"
    assert source.startswith(f"app.log, offsets 0 to {len(session.events) - 1}: {len(session.events)} events, mean")
    assert source.endswith("closed by end of input")
    last_row = [line for line in text.splitlines() if line.strip()][-3]
    assert last_row.split()[:5] == [
        *(f"{session.end_surprise:.2f}", f"{record['score']:.4f}", "end", "of", "session"),
    ]


def test_the_command_prints_json_that_can_be_piped_and_fails_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    log = GeneratedLog(blocks=2, seed=2)
    path = tmp_path / "app.log"
    path.write_text("".join(f"{line.text}\n" for line in log))
    key = next(iter(log)).block

    def explain(*arguments: str) -> int:
        given = ["--checkpoint", str(demo_checkpoint()), "--input", str(path), "--set", *LINES_SETTINGS]
        command = ["logmamba", "explain", *given, *arguments]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    assert explain("--set", "sessions.max_events=5", "--session", key, "--json") == 0
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) > 1
    for line in lines:
        session = json.loads(line)
        assert session["schema"] == "logmamba.explanation/1"
        jsonschema.Draft202012Validator(RECORD_SCHEMA).validate(session["record"])
        assert len(session["events"]) == session["record"]["events"]
        assert session["end"]["score"] == session["record"]["score"]
        for each in (*session["events"], session["end"]):
            assert len(each["expected"]) == 3
    assert explain("--session", key[:-1]) == 1
    out, err = capfd.readouterr()
    [message] = filter(None, err.splitlines())  # the progress bar leaves an empty line
    assert out == ""
    assert message.startswith(f"logmamba: no session '{key[:-1]}' among the 2 of the input; close keys: '{key}'")


def test_a_line_that_waited_for_its_clock_to_be_borne_out_stands_beside_its_own_event(
    scorer: Scorer, tmp_path: Path
) -> None:
    path = tmp_path / "app.log"
    path.write_text("12:00 a one\n12:00 b x\n12:01 b x\n20:00 a two\n23:30 a three\n20:01 a four\n20:02 a five\n")
    overrides = [
        r"input.timestamp={pattern: '^\S+', format: '%H:%M'}", r"sessions.key={regex: '^\S+ (\S+)'}", "sessions.gap=1h"
    ]  # fmt: skip
    found = explained(load_settings(None, overrides), scorer, [path], "a")
    assert [[(event.offset, event.text) for event in each.events] for each in found] == [
        [(0, "12:00 a one"), (4, "23:30 a three")],
        [(3, "20:00 a two"), (5, "20:01 a four"), (6, "20:02 a five")],
    ]
