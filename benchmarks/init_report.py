"""Does `logmamba init` find what a person would choose?

For each log: how many of its lines the timestamp rule reads, and whether the session key groups the lines as one of
the keys does that `benchmarks.init_expected` had beforehand. The logs are the 16 systems of LogHub (2,000 lines each),
a part of HDFS with every line of its blocks, and a small generated sample in the shape of each shipper. Everything goes
through the worker's own decoder.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import orjson
from rich.console import Console
from rich.table import Table

from benchmarks.init_expected import HDFS_RAW, LOGHUB, SHIPPERS, Choice, Expected
from worker.commands.suggestion.proposal import propose
from worker.commands.suggestion.sample import SampleStream
from worker.files.timestamp_suggestion import NoTokens
from worker.processing.clock import NO_TIME
from worker.processing.decoder import Decoder
from worker.settings.sections import InputSettings, SessionsSettings
from worker.settings.values import flow_yaml

_ALIKE = 0.98
_BEGAN = 1_705_312_800
_REQUESTS = 150
_PIPE = "\\|"


@dataclass(frozen=True)
class Row:
    """Of one log.

    Attributes:
        format: found for it.
        timestamp: the setting, in YAML; a preset's own where nothing is written.
        events, timed: how many events it has, and how many of them the rule gives a time.
        key: the setting, in YAML.
        sureness: in words.
        choice: which of the expected keys it is; None for another.
        gap: proposed.
        sessions: how many formed.
    """

    log: str
    format: str
    timestamp: str | None
    events: int
    timed: int
    key: str
    sureness: str
    choice: str | None
    gap: str
    sessions: int

    @property
    def format_right(self) -> bool:
        """Whether the format is the one whose sample this is; text for all that is no sample of a shipper."""
        return self.format == (self.log if self.log in SHIPPERS else "text")

    @property
    def times_right(self) -> bool:
        """Whether every line has a time."""
        return self.timed == self.events


def row(log: str, path: Path, expected: Expected) -> Row:
    """What init makes of a log."""
    found = propose([path], path.name)
    sample = found.sample
    source = found.shape.settings()
    keys, times = _keys_and_times(sample, source, found.key)
    chosen = next((each for each in expected.choices if _same(sample, source, keys, each)), None)
    rule = found.shape.timestamp
    return Row(
        log=log,
        format=str(found.shape.input.get("format", "text")),
        timestamp=None if rule is None else flow_yaml(rule.setting),
        events=len(times),
        timed=sum(time != NO_TIME for time in times),
        key=flow_yaml(found.key),
        sureness=found.sureness,
        choice=None if chosen is None else chosen.what,
        gap=found.endings.gap,
        sessions=len(found.trial.sessions),
    )


def _keys_and_times(
    sample: SampleStream, source: InputSettings, key: object
) -> tuple[dict[tuple[int, int], str], list[int]]:
    """The key of each event, by its record's offset and its place among that record's; and the times of all events.

    A record that gives no event for another reason than its key counts as one without a time.
    """
    decoder = Decoder(source, SessionsSettings.model_validate({"key": key}), NoTokens())
    everything = Decoder(source, SessionsSettings.model_validate({"key": "partition"}), NoTokens())
    keys: dict[tuple[int, int], str] = {}
    times: list[int] = []
    for records in sample.read():
        (events,) = decoder.decode([records])
        seen: dict[int, int] = {}
        for found, _, _, offset in events.rows():
            seen[offset] = seen.get(offset, -1) + 1
            keys[offset, seen[offset]] = found
    for records in sample.read():
        (events,) = everything.decode([records])
        times += events.times.tolist() + [NO_TIME] * len(events.dead_letters)
    return keys, times


def _same(sample: SampleStream, source: InputSettings, keys: Mapping[tuple[int, int], str], choice: Choice) -> bool:
    """Whether a key groups the events as these do, but for one in fifty."""
    try:
        others, _ = _keys_and_times(sample, source, choice.key)
    except ValueError:
        return False
    both = keys.keys() & others.keys()
    if not others or len(both) < _ALIKE * max(len(keys), len(others)):
        return False
    pairs = {(keys[event], others[event]) for event in both}
    mine, theirs = len({a for a, _ in pairs}), len({b for _, b in pairs})
    return min(mine, theirs) >= _ALIKE * len(pairs)


def samples_of_shippers() -> dict[str, list[bytes]]:
    """Requests of a service with three instances, as each shipper would write their lines."""
    events = list(_events(random.Random(1)))
    found = {}
    for name, written in _SHIPPERS.items():
        lines = []
        for event in events:
            document = written(event)
            lines.append(document.encode() if isinstance(document, str) else orjson.dumps(document))
        found[name] = lines
    return found


@dataclass(frozen=True)
class _Event:
    at: float
    request: str
    instance: int
    level: str
    text: str

    @property
    def iso(self) -> str:
        return datetime.fromtimestamp(self.at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")

    @property
    def with_request(self) -> str:
        return f"{self.text} request_id={self.request}"


def _events(rng: random.Random) -> Iterator[_Event]:
    found = []
    for number in range(_REQUESTS):
        at = _BEGAN + number * 7 + rng.random()
        request, instance = f"{rng.getrandbits(64):016x}", rng.randrange(3)
        texts = [f"GET /orders/{rng.randrange(900)} from 10.0.0.{rng.randrange(99)}", "user is allowed to read orders"]
        texts += [f"query took {rng.randrange(40)} ms"] * rng.randrange(1, 3)
        texts += [f"answered {rng.choice((200, 200, 404))} in {rng.randrange(90)} ms"]
        for text in texts:
            found.append(_Event(at, request, instance, "INFO", text))
            at += rng.random() * 2
    return iter(sorted(found, key=lambda event: event.at))


def _otlp(event: _Event) -> object:
    record = {
        "timeUnixNano": str(int(event.at * 1e6) * 1000),
        "severityText": event.level,
        "body": {"stringValue": event.text},
        "traceId": event.request * 2,
    }
    attributes = [{"key": "service.name", "value": {"stringValue": "orders"}}]
    return {"resourceLogs": [{"resource": {"attributes": attributes}, "scopeLogs": [{"logRecords": [record]}]}]}


_SHIPPERS: Mapping[str, Callable[[_Event], object]] = {
    "vector": lambda event: {
        "file": f"/var/log/pods/shop_orders-{event.instance}/orders/0.log",
        "kubernetes": {"pod_name": f"orders-{event.instance}", "pod_uid": f"9f1c-{event.instance}"},
        "message": event.text,
        "source_type": "kubernetes_logs",
        "stream": "stdout",
        "timestamp": event.iso,
    },
    "fluent_bit": lambda event: {
        "@timestamp": event.iso,
        "stream": "stdout",
        "log": event.text,
        "kubernetes": {"pod_name": f"orders-{event.instance}", "pod_id": f"9f1c-{event.instance}"},
    },
    "filebeat": lambda event: {
        "@timestamp": event.iso,
        "agent": {"type": "filebeat", "id": "a7"},
        "ecs": {"version": "8.0.0"},
        "host": {"name": f"web-{event.instance}"},
        "log": {"level": event.level, "file": {"path": "/var/log/orders.log"}, "offset": int(event.at)},
        "message": event.text,
        "trace": {"id": event.request},
    },
    "logstash": lambda event: {
        "@timestamp": event.iso,
        "@version": "1",
        "level": event.level,
        "thread_name": f"http-{event.instance}",
        "message": event.text,
        "traceId": event.request,
        "host": f"web-{event.instance}",
    },
    "otlp_json": _otlp,
    "journald": lambda event: {
        "__REALTIME_TIMESTAMP": str(int(event.at * 1e6)),
        "_SYSTEMD_UNIT": "orders@.service",
        "_SYSTEMD_INVOCATION_ID": event.request * 2,
        "_HOSTNAME": f"web-{event.instance}",
        "_PID": str(400 + event.instance),
        "PRIORITY": "6",
        "MESSAGE": event.text,
    },
    "cri": lambda event: f"{event.iso} stdout F {event.with_request}",
    "docker": lambda event: {"log": f"{event.with_request}\n", "stream": "stdout", "time": event.iso},
    "syslog_5424": lambda event: (
        f"<134>1 {event.iso} web-{event.instance} orders {int(event.request[:4], 16)} - - {event.text}"
    ),
    "gelf": lambda event: {
        "version": "1.1",
        "host": f"web-{event.instance}",
        "short_message": event.text,
        "timestamp": round(event.at, 3),
        "level": 6,
        "_container_id": f"c{event.instance}44",
    },
    "azure": lambda event: {
        "records": [
            {
                "time": event.iso,
                "level": event.level,
                "resourceId": "/SUBSCRIPTIONS/1/ORDERS",
                "operationName": "orders",
                "correlationId": event.request,
                "properties": {"message": event.text},
            }
        ]
    },
    "windows_event": lambda event: {
        "@timestamp": event.iso,
        "message": event.text,
        "log": {"level": "information"},
        "winlog": {"event_id": 4624, "computer_name": f"pc-{event.instance}", "activity_id": f"{{{event.request}}}"},
    },
}


def rows(data: Path) -> Iterator[Row]:
    """All logs, one after the other."""
    for system, expected in LOGHUB.items():
        yield row(system, data / "loghub_2k" / f"{system}_2k.log.gz", expected)
    yield row("HDFS, whole blocks", data / "hdfs" / "raw.log.gz", HDFS_RAW)
    with tempfile.TemporaryDirectory() as folder:
        for name, lines in samples_of_shippers().items():
            path = Path(folder) / f"{name}.log"
            path.write_bytes(b"\n".join(lines) + b"\n")
            yield row(name, path, SHIPPERS[name])


_COLUMNS = ("log", "format", "times read", "session key", "sure", "as a person would", "gap", "sessions")


def _cells(each: Row) -> Sequence[str]:
    times = "all" if each.times_right else f"{each.timed:,} of {each.events:,}"
    choice = each.choice or "no"
    return (each.log, each.format, times, each.key, each.sureness, choice, each.gap, f"{each.sessions:,}")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', _PIPE) for cell in cells)} |"


def markdown(found: Sequence[Row]) -> str:
    """A table, and under it the counts."""
    lines = [
        "# What `logmamba init` finds",
        "",
        "`python -m benchmarks.init_report --data DIR --output FILE` writes this page, and beside it the rows as JSON.",
        "What a person would choose stands in `benchmarks/init_expected.py`, with reasons, from before the first run;",
        "the ways in which `init` looks for keys and times were completed with these logs at hand, and the samples of",
        "shippers are generated by this benchmark, so on logs of other kinds expect less.",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        f"|{' --- |' * len(_COLUMNS)}",
    ]
    for each in found:
        log, read_as, times, key, *rest = _cells(each)
        lines.append(_row((log, read_as, times, f"`{key}`", *rest)))
    return "\n".join([*lines, "", *summary(found), ""])


def summary(found: Sequence[Row]) -> list[str]:
    """In how many of the logs formats, times and keys are right."""
    times, keys = sum(each.times_right for each in found), sum(each.choice is not None for each in found)
    formats = sum(each.format_right for each in found)
    told = f"Of {len(found)} logs {formats} are of the format that was found, {times} have a time on every line"
    none = sum(each.key == "partition" for each in found)
    return [
        f"{told}, and for {keys} the key is one that a person would choose.",
        f"For {none} of them that is none: no key is good, which `init` says, and sessions are windows of time.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="holds loghub_2k/ and hdfs/")
    parser.add_argument("--output", type=Path, help="write the table (Markdown), and beside it the rows (JSON)")
    arguments = parser.parse_args()
    found = list(rows(arguments.data))
    table = Table(*_COLUMNS)
    for each in found:
        table.add_row(*_cells(each))
    console = Console()
    console.print(table, markup=False)
    for line in summary(found):
        console.print(line)
    if arguments.output:
        arguments.output.write_text(markdown(found))
        rows_json = json.dumps([asdict(each) for each in found], indent=2)
        arguments.output.with_suffix(".json").write_text(rows_json + "\n")


if __name__ == "__main__":
    main()
