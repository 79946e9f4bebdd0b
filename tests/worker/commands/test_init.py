"""`logmamba init` finds how logs of many kinds are read and what their sessions are, or says that it does not know."""

from __future__ import annotations

import gzip
import json
import random
import re
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from confluent_kafka import Producer

from benchmarks.init_expected import LOGHUB, SHIPPERS
from benchmarks.init_report import row, samples_of_shippers
from tests.shared import needs_shared, shared
from tests.worker.command_line import Done, logmamba
from worker.files.sample import try_sample
from worker.kafka.mock_broker import MockBroker
from worker.settings.advice import advice
from worker.settings.document import Settings, load_settings

BEGIN = datetime(2024, 5, 6, 7, 0, tzinfo=UTC)
STEPS = ("accepted", "stock was reserved", "card was charged", "parcel left", "delivered")
Said = tuple[datetime, int, str]  # time, number of the order, what was said of it


def orders(count: int = 60, *, pause_s: int = 4) -> list[Said]:
    """Orders that go through the same steps, some of them at the same time as others, in the order of their times."""
    rng = random.Random(3)
    said = []
    for number in range(count):
        at = BEGIN + timedelta(seconds=20 * number)
        for step in STEPS:
            said.append((at, number, step))
            at += timedelta(milliseconds=rng.randrange(1000 * pause_s))
    return sorted(said)


def stamped(said: Sequence[Said]) -> list[str]:
    return [f"{at:%Y-%m-%d %H:%M:%S,%f} INFO order-{number} {step}" for at, number, step in said]


def written(path: Path, lines: Sequence[str | bytes]) -> Path:
    whole = b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines)
    path.write_bytes(gzip.compress(whole) if path.suffix == ".gz" else whole)
    return path


def init(*samples: Path, output: Path | None = None) -> tuple[Done, Path]:
    output = output or samples[0].parent / "worker.yaml"
    return logmamba("init", *samples, "--output", output), output


def found(*samples: Path) -> tuple[Settings, str]:
    """The settings that init writes, once they have been found to be allowed and free of what is hardly ever meant."""
    done, output = init(*samples)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    settings = load_settings(output)
    assert list(advice(settings)) == []
    tried = try_sample(settings, None, samples)
    assert (tried.wrong, [line for line in tried.doubtful if "refused" in line]) == ([], [])
    return settings, done.stderr


def described(settings: Settings, section: str) -> dict[str, Any]:
    shown = settings.describe()[section]
    assert isinstance(shown, dict)
    return shown


def test_an_id_of_the_work_is_found_with_times_and_a_gap_from_its_pauses(tmp_path: Path) -> None:
    log = written(tmp_path / "shop.log.gz", stamped(orders()))
    settings, told = found(log)
    assert described(settings, "sessions")["key"] == {"regex": r"\b(order-\d+)\b"}
    assert described(settings, "input")["timestamp"] == {"format": "iso8601"}
    assert described(settings, "sessions")["gap"] == "1m"
    assert "300 of 300 events have a time, 2024-05-06T07:00:00.000Z to" in told
    assert "session key (sure): " in told
    assert "60 keys with 5 events each (median), in 100% of the lines" in told
    assert "60 sessions of 5 events (median; at most 5), closed by gap" in told


def test_a_gap_is_no_shorter_than_the_pauses_that_sessions_have(tmp_path: Path) -> None:
    said = orders(40, pause_s=2 * 600)
    log = written(tmp_path / "a.log", stamped(said))
    settings, _ = found(log)
    assert described(settings, "sessions")["gap"] in ("30m", "1h")
    assert settings.sessions.idle_flush_ms == settings.sessions.gap_ms


def syslog(hosts: int, said: Sequence[Said] | None = None) -> list[str]:
    return [
        f"{at:%b} {at.day:2} {at:%H:%M:%S} web{number % hosts} shopd[{7000 + number // hosts}]: {step}"
        for at, number, step in said or orders()
    ]


def test_of_syslog_the_process_is_told_by_its_machine_too_and_that_times_have_no_year(tmp_path: Path) -> None:
    settings, told = found(written(tmp_path / "messages", syslog(hosts=3)))
    tried = try_sample(settings, None, [tmp_path / "messages"])
    assert "60 sessions" in tried.told[0]  # two machines have a process of the same number
    assert described(settings, "input")["timestamp"] == {"format": "syslog"}
    assert "the times have no year" in told


def test_a_machine_and_a_process_that_stand_apart_make_one_key(tmp_path: Path) -> None:
    lines = [
        f"{at.timestamp():.0f} node-{number % 3} unit {at:%H%M} shopd[{7000 + number // 3}]: {step}"
        for at, number, step in orders()
    ]
    settings, _ = found(written(tmp_path / "all.log", lines))
    key = described(settings, "sessions")["key"]
    assert (isinstance(key, list), len(key)) == (True, 2)
    assert "60 sessions" in try_sample(settings, None, [tmp_path / "all.log"]).told[0]


@pytest.mark.parametrize(("machines", "sureness"), [(False, "sure"), (True, "fairly sure")])
def test_a_name_in_a_column_is_an_id_where_it_comes_for_a_while_and_a_machine_where_it_stays(
    tmp_path: Path, machines: bool, sureness: str
) -> None:
    lines = [
        f"{at:%Y-%m-%d %H:%M:%S} INFO x{number % 9 if machines else number} {step}" for at, number, step in orders(120)
    ]
    settings, told = found(written(tmp_path / "a.log", lines))
    assert described(settings, "sessions")["key"] == {"regex": r"^(?:\S+\s+){3}(\S+)"}
    assert f"session key ({sureness}): " in told
    assert ("an id, which comes for a while" in told) is not machines


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("[C-%08x] %s", {"regex": r"\b(C-[0-9a-f]*\d[0-9a-f]*)\b"}),
        ("reconcileID=%s-x %s", {"regex": r"\breconcileID=([\w.:@/-]+)"}),
        ("%s tx=%08x", {"regex": r"\btx=([\w.:@/-]+)"}),
        ("conn #%d %s", {"regex": r"\b(conn #\d+)\b"}),
    ],
)
def test_ids_by_names_that_nobody_has_heard_of_are_found_where_they_come_for_a_while(
    tmp_path: Path, line: str, key: object
) -> None:
    swapped = line.startswith("%s")
    lines = [
        f"{at:%Y-%m-%d %H:%M:%S} INFO {line % ((step, number) if swapped else (number, step))}"
        for at, number, step in orders(120)
    ]
    settings, told = found(written(tmp_path / "a.log", lines))
    assert described(settings, "sessions")["key"] == key
    assert "session key (sure): " in told


def test_lines_that_go_on_with_the_event_before_do_not_hide_its_time_and_have_a_pattern_of_beginnings(
    tmp_path: Path,
) -> None:
    trace = ["java.lang.IllegalStateException: nope", "\tat shop.Order.pay(Order.java:7)", "\t... 3 more"]
    lines = [line for first in stamped(orders()) for line in (first, *trace)]
    settings, told = found(written(tmp_path / "a.log", lines))
    source = described(settings, "input")
    assert source["timestamp"] == {"format": "iso8601"}
    assert source["multiline"] == {"start": r"^\d{4}-\d\d-\d\d[T ]\d\d:\d\d"}
    assert "of them go on with the event before" in told
    assert "60 sessions of 5 events (median; at most 5)" in told


def test_times_without_a_zone_are_told_of_and_those_with_one_are_not(tmp_path: Path) -> None:
    for zone, expected in (("", True), ("Z", False), ("+02:00", False)):
        lines = [f"{at:%Y-%m-%dT%H:%M:%S}{zone} order-{number} {step}" for at, number, step in orders()]
        folder = tmp_path / f"zone{zone.replace(':', '')}"
        folder.mkdir()
        _, told = found(written(folder / "a.log", lines))
        assert ("the times name no zone" in told) is expected


def test_of_an_access_log_it_is_the_client(tmp_path: Path) -> None:
    rng = random.Random(5)
    lines = [
        f"10.0.{rng.randrange(3)}.{rng.randrange(20)} - - [{BEGIN + timedelta(seconds=at):%d/%b/%Y:%H:%M:%S +0000}] "
        f'"GET /{rng.choice(("", "shop", "cart", "help"))} HTTP/1.1" {rng.choice((200, 404))} {rng.randrange(5000)}'
        for at in range(600)
    ]
    settings, told = found(written(tmp_path / "access.log", lines))
    assert described(settings, "sessions")["key"] == {"regex": r'^(\S+) \S+ (?:"[^"]*"|\S+) \[\d\d/'}
    assert "session key (fairly sure): " in told


def test_a_shippers_documents_are_known_by_its_name_and_what_is_in_it(tmp_path: Path) -> None:
    lines = [
        json.dumps(
            {
                "@timestamp": f"{at:%Y-%m-%dT%H:%M:%S}.000Z",
                "agent": {"type": "filebeat"},
                "log": {"level": "info"},
                "message": step,
                "host": {"name": "web"},
                "trace": {"id": f"{number:032x}"},
            }
        )
        for at, number, step in orders()
    ]
    settings, told = found(written(tmp_path / "app.ndjson", lines))
    assert settings.input.format == "filebeat"
    assert settings == load_settings(tmp_path / "worker.yaml", ["input.format=filebeat"])
    assert "mostly /trace/id" in told


def test_of_other_documents_message_severity_time_and_key_are_found(tmp_path: Path) -> None:
    lines = [
        json.dumps({"n": at.second, "lvl": "INFO", "when": at.timestamp(), "text": said, "req": {"requestId": number}})
        for at, number, said in orders()
    ]
    settings, _ = found(written(tmp_path / "app.json", lines))
    source = described(settings, "input")
    assert (source["message"], source["severity"], source["timestamp"]) == ("/text", "/lvl", "/when")
    assert described(settings, "sessions")["key"] == {"pointer": "/req/requestId"}


def test_of_documents_with_messages_in_different_places_all_are_read(tmp_path: Path) -> None:
    lines = [
        json.dumps({"ts": at.timestamp(), "order": f"o{number}", ("msg" if number % 3 else "text"): f"it {step}"})
        for at, number, step in orders()
    ]
    settings, _ = found(written(tmp_path / "app.json", lines))
    assert described(settings, "input")["message"] == ["/msg", "/text"]


def test_a_message_by_another_name_is_the_text_of_most_words(tmp_path: Path) -> None:
    lines = [
        json.dumps(
            {"at": at.timestamp(), "who": "the shop", "order": number, "content": f"order {number} {step} today"}
        )
        for at, number, step in orders()
    ]
    lines[7] = json.dumps({**json.loads(lines[7]), "description": "rarely here"})
    settings, _ = found(written(tmp_path / "app.json", lines))
    assert described(settings, "input")["message"] == "/content"


def records(said: Sequence[Said], *, keyed: bool = True) -> list[bytes]:
    return [
        orjson.dumps(
            {
                "topic": "orders",
                "partition": number % 2 if keyed else index % 2,
                "offset": index,
                "timestamp": int(at.timestamp() * 1000),
                "key": {"base64": "AAAAAAAA" + f"{number:04d}"[:3] + "="} if keyed else None,
                "headers": [["x-request-id", f"r{number}"]],
                "value": step,
            }
        )
        for index, (at, number, step) in enumerate(said)
    ]


def test_keys_headers_and_times_of_records_are_used_where_values_have_none(tmp_path: Path) -> None:
    log = written(tmp_path / "orders.records.jsonl", records(orders()))
    settings, told = found(log)
    assert described(settings, "sessions")["key"] == {"header": "x-request-id"}
    assert described(settings, "input")["timestamp"] is None
    assert "that of Kafka's records" in told


def test_a_key_that_is_spread_over_partitions_is_told_and_makes_it_unsure(tmp_path: Path) -> None:
    log = written(tmp_path / "orders.records.jsonl", records(orders(), keyed=False))
    done, _ = init(log)
    assert "session key (unsure)" in done.stderr
    assert "of the keys are spread over several partitions" in done.stderr


def test_where_no_key_is_good_it_says_so_and_takes_windows_of_time(tmp_path: Path) -> None:
    rng = random.Random(8)
    says = "pressure is normal in run-%d", "valve was opened in run-%d", "valve was closed"
    lines = [
        f"{BEGIN + timedelta(seconds=30 * at):%Y-%m-%d %H:%M:%S} {rng.choice(says).replace('%d', str(at))}"
        for at in range(300)
    ]
    settings, told = found(written(tmp_path / "plant.log", lines))
    assert described(settings, "sessions")["key"] == "partition"
    assert "session key (unsure): partition: nothing in the lines is a good session key" in told
    assert "another key: {regex: " in told  # each run comes once
    [sessions] = re.findall(r", ([\d,]+) sessions", try_sample(settings, None, [tmp_path / "plant.log"]).told[0])
    assert int(sessions) > 10


def test_the_parts_of_a_rotated_log_are_read_in_the_order_of_their_times(tmp_path: Path) -> None:
    lines = stamped(orders())
    parts = {"app.log": lines[200:], "app.log.1": lines[100:200], "app.log.2.gz": lines[:100]}
    _, told = found(*(written(tmp_path / name, part) for name, part in parts.items()))
    assert "60 sessions of 5 events (median; at most 5)" in told


def test_lines_without_the_key_are_counted_rather_than_refused(tmp_path: Path) -> None:
    lines = stamped(orders())
    lines += [f"{BEGIN + timedelta(hours=1, seconds=at):%Y-%m-%d %H:%M:%S} cleaning up" for at in range(40)]
    settings, told = found(written(tmp_path / "a.log", lines))
    assert settings.sessions.no_key == "ignore"
    assert "in 88% of the lines" in told


def test_lines_that_are_not_utf_8_are_read_in_the_encoding_that_fits(tmp_path: Path) -> None:
    lines = [f"{line} für Zoë".encode("latin-1") for line in stamped(orders())]
    settings, _ = found(written(tmp_path / "a.log", lines))
    assert settings.input.encoding == "latin-1"


def test_a_topic_is_read_beside_every_group(tmp_path: Path) -> None:
    broker = MockBroker()
    broker.make("shop")
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    for at, number, step in orders():
        producer.produce("shop", f"{at:%Y-%m-%dT%H:%M:%SZ} {step}", f"order{number}", partition=number % 4)
    assert producer.flush(30) == 0
    output = tmp_path / "worker.yaml"
    broker.make("nothing")
    done = logmamba("init", "--bootstrap", broker.bootstrap, "--topic", "nothing", "--output", output)
    assert (done.returncode, done.stderr) == (1, "logmamba: the topic nothing: is empty\n")
    done = logmamba("init", "--bootstrap", broker.bootstrap, "--topic", "shop", "--output", output)
    assert done.returncode == 0, done.stderr
    settings = load_settings(output)
    assert settings.kafka["bootstrap.servers"] == broker.bootstrap
    assert (settings.application_id, settings.input.topics) == ("shop", ("shop",))
    assert described(settings, "sessions")["key"] == "record_key"
    assert yaml.safe_load(output.read_text())["input"]["timestamp"] == {"format": "iso8601"}


@pytest.mark.parametrize(("name", "lines"), samples_of_shippers().items(), ids=samples_of_shippers())
def test_every_shipper_is_known_by_what_it_writes(tmp_path: Path, name: str, lines: list[bytes]) -> None:
    row_of = row(name, written(tmp_path / f"{name}.log", lines[:200]), SHIPPERS[name])
    assert (row_of.format, row_of.timed, row_of.choice is not None) == (name, row_of.events, True)


@needs_shared
@pytest.mark.parametrize("system", ["OpenSSH", "Android", "Thunderbird", "Apache"])
def test_known_systems_get_the_key_that_a_person_would_choose(system: str) -> None:
    row_of = row(system, shared(f"data/loghub_2k/{system}_2k.log.gz"), LOGHUB[system])
    assert (row_of.format, row_of.timed, row_of.choice is not None) == ("text", 2000, True)


def test_the_readmes_walk_through_ones_own_logs_goes_as_it_says(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    block = text.split("## Your own logs\n")[1].split("```sh\n")[1].split("```")[0]
    commands = [shlex.split(line) for line in block.splitlines()]
    assert [command[:2] for command in commands] == [
        ["logmamba", name] for name in ("init", "check", "train", "score", "explain")
    ]
    written(tmp_path / "app.log.gz", stamped(orders(200)))
    written(tmp_path / "later.log.gz", stamped(orders(20)))
    for _, name, *arguments in commands:
        if name == "explain":
            first = (tmp_path / "scores.jsonl").read_text().splitlines()[0]
            arguments[arguments.index("KEY")] = json.loads(first)["session"]
        done = logmamba(name, *arguments, *(["--steps", "3"] if name == "train" else []), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert "card was charged" in done.stdout


LINES = stamped(orders(20))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "a.log: is empty"),
        (b"\n \n\n", "a.log: holds blank lines only"),
        (b"\x00\x01\x02\x03\n\x04\x05\x00\x07\n" * 20, "a.log: is no text: 40 of 40 lines have control characters"),
        (b"PAR1" + bytes(range(256)) * 9, "a.log: is Parquet"),
        (b'{"n": 1}\n' * 40, "a.log: none of 40 lines can be read: 40 of 40 lines refused: no_message"),
        (b"one line\n", "a.log: 1 events in 1 lines are too few"),
        (b'{\n  "message": "x",\n  "n": [\n 1\n ]\n}\n', "a.log: is JSON over several lines"),
        (b"session_id\tevents\ns1\t1 2 3\n", "a.log: holds parsed sessions"),
    ],
)
def test_a_sample_that_tells_nothing_is_refused_with_one_line_and_nothing_is_written(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    log = tmp_path / "a.log"
    log.write_bytes(content)
    done, output = init(log)
    assert (done.returncode, done.stdout, output.exists()) == (1, "", False)
    [line] = done.stderr.splitlines()
    assert line.startswith("logmamba: ")
    assert reason in line


def test_a_file_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    log, output = written(tmp_path / "a.log", LINES), tmp_path / "mine.yaml"
    output.write_text("application_id: mine\n")
    done, _ = init(log, output=output)
    assert (done.returncode, output.read_text()) == (2, "application_id: mine\n")
    assert done.stderr == f"logmamba: --output {output}: is there already; allowed: a file that is not\n"


@pytest.mark.parametrize(
    "arguments", [(), ("--topic", "t"), ("--bootstrap", "h:1"), ("a.log", "--bootstrap", "h:1", "--topic", "t")]
)
def test_a_sample_is_files_or_a_topic(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = logmamba("init", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "give either sample files, or both --bootstrap" in done.stderr


def test_what_is_no_file_and_an_output_that_cannot_be_written_are_told(tmp_path: Path) -> None:
    done, _ = init(tmp_path)
    assert (done.returncode, done.stderr) == (1, f"logmamba: {tmp_path}: is a folder; allowed: files\n")
    done, _ = init(tmp_path / "nowhere.log")
    assert (done.returncode, done.stderr) == (1, f"logmamba: {tmp_path / 'nowhere.log'}: no such file\n")
    done, _ = init(written(tmp_path / "a.log", LINES), output=tmp_path / "no" / "worker.yaml")
    assert (done.returncode, "cannot be written: No such file" in done.stderr) == (1, True)
