"""How fast are other people's records read, beside `orjson.loads` alone?

One event is one line of a generated log in the shape of each preset; those whose records hold several events have ten
in each. Beside it stands `orjson.loads` alone on the same records. Figures are events a second of CPU time on one core,
the best of several rounds, which alternate. No tokenizer: every line is alike to it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from worker.generator.log import GeneratedLog
from worker.processing.decoder import Decoder
from worker.processing.records import Records
from worker.settings.document import load_settings

EVENTS = 20_000
IN_A_BATCH = 10
ISO = "2024-01-15T10:00:00.123Z"
SECONDS = 1_705_312_800


def _otlp(lines: Sequence[str]) -> object:
    records = [
        {
            "timeUnixNano": f"{SECONDS}123456789",
            "severityText": "INFO",
            "body": {"stringValue": line},
            "traceId": "0af7651916cd43dd8448eb211c80319c",
        }
        for line in lines
    ]
    attributes = [{"key": "service.name", "value": {"stringValue": "namenode"}}]
    return {"resourceLogs": [{"resource": {"attributes": attributes}, "scopeLogs": [{"logRecords": records}]}]}


_Record = Callable[[str], object]
_ONE: Mapping[str, _Record] = {
    "json": lambda line: {"message": line, "level": "INFO"},
    "vector": lambda line: {
        "message": line,
        "timestamp": ISO,
        "host": "web-1",
        "source_type": "file",
        "file": "/a.log",
    },
    "fluent_bit": lambda line: {"@timestamp": SECONDS + 0.123, "log": line, "kubernetes": {"pod_name": "web-1"}},
    "filebeat": lambda line: {
        "@timestamp": ISO,
        "message": line,
        "log": {"file": {"path": "/a.log"}, "offset": 7},
        "host": {"name": "web-1"},
    },
    "logstash": lambda line: {"@timestamp": ISO, "@version": "1", "message": line, "host": "web-1"},
    "journald": lambda line: {"__REALTIME_TIMESTAMP": f"{SECONDS}123456", "MESSAGE": line, "_SYSTEMD_UNIT": "web"},
    "docker": lambda line: {"log": f"{line}\n", "stream": "stdout", "time": ISO},
    "gelf": lambda line: {"version": "1.1", "host": "web-1", "short_message": line, "timestamp": SECONDS + 0.123},
    "windows_event": lambda line: {"@timestamp": ISO, "message": line, "winlog": {"computer_name": "pc-1"}},
}
_MANY: Mapping[str, Callable[[Sequence[str]], object]] = {
    "otlp_json": _otlp,
    "azure": lambda lines: {"records": [{"time": ISO, "operationName": line, "resourceId": "/S"} for line in lines]},
}


@dataclass(frozen=True)
class Speed:
    """Of one format: events a second of CPU time, and the same of `orjson.loads` alone."""

    format: str
    events_per_s: float
    parse_per_s: float | None
    ratio: float | None


class Alike:
    """A tokenizer to which all lines are alike."""

    def encode(self, lines: pa.Array) -> NDArray[np.int64]:
        """(n,) zeros."""
        return np.zeros(len(lines), np.int64)


def measure(name: str, values: list[bytes | None], rounds: int) -> Speed:
    """Time the decoder of a format and `orjson.loads` on the same records."""
    key = ["sessions.key=partition"] if name in ("text", "json", "docker") else []
    settings = load_settings(None, [f"input.format={name}", *key])
    decoder = Decoder(settings.input, settings.sessions, Alike())
    records = Records("raw", 0, list(range(len(values))), values, None, [SECONDS * 1000] * len(values), None)
    decode_s, parse_s = [], []
    for _ in range(rounds):
        began = time.thread_time()
        [events] = decoder.decode([records])
        decode_s.append(time.thread_time() - began)
        if len(events.keys) != EVENTS:
            raise RuntimeError(f"{name}: {len(events.keys)} of {EVENTS} events were read")
        if name != "text":
            began = time.thread_time()
            for value in values:
                orjson.loads(value or b"")
            parse_s.append(time.thread_time() - began)
    speed = EVENTS / min(decode_s)
    parse = EVENTS / min(parse_s) if parse_s else None
    return Speed(name, speed, parse, speed / parse if parse else None)


def samples() -> dict[str, list[bytes | None]]:
    """The same lines in the shape of each format."""
    lines = [line.text for line in GeneratedLog(EVENTS, seed=1)]
    groups = [lines[start : start + IN_A_BATCH] for start in range(0, EVENTS, IN_A_BATCH)]
    found: dict[str, list[bytes | None]] = {"text": [line.encode() for line in lines]}
    found |= {name: [orjson.dumps(record(line)) for line in lines] for name, record in _ONE.items()}
    found |= {name: [orjson.dumps(record(group)) for group in groups] for name, record in _MANY.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    speeds = [measure(name, values, arguments.rounds) for name, values in samples().items()]
    table = Table("format", "events/s", "orjson.loads alone, events/s", "ratio")
    for speed in speeds:
        parse, ratio = speed.parse_per_s, speed.ratio
        table.add_row(
            speed.format,
            f"{speed.events_per_s:,.0f}",
            f"{parse:,.0f}" if parse else "",
            f"{ratio:.2f}" if ratio else "",
        )
    Console().print(table)
    if arguments.output:
        content: Any = [asdict(speed) for speed in speeds]
        arguments.output.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
