"""Which session key a person would choose for the logs of `benchmarks.init_report`, written down before it was run.

Each way is a `sessions.key` as a settings file writes it. Two keys are the same when they group the lines alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Choice(NamedTuple):
    """A key that a person would choose.

    Attributes:
        what: it is.
        key: `sessions.key`.
    """

    what: str
    key: object


class Expected(NamedTuple):
    """What a person would choose for a log.

    Attributes:
        choices: each of them is right.
        why: in a sentence.
    """

    choices: Sequence[Choice]
    why: str


_NONE = Choice("none: windows of time", "partition")
_TAG = r"^[A-Z][a-z]{2} +\d{1,2} \S+ (\S+ [^:\[\]]+(?:\[\d+\])?)(?:[:\[]| \()"
_HDFS = Choice("block", {"regex": r"(blk_-?\d+)"})

LOGHUB: Mapping[str, Expected] = {
    "Android": Expected(
        (
            Choice("process", {"regex": r"^\S+ \S+ +(\d+) "}),
            Choice("process and thread", {"regex": r"^\S+ \S+ +(\d+ +\d+) "}),
        ),
        "logcat tells process and thread of each line, and nothing else that most lines have",
    ),
    "Apache": Expected((_NONE,), "errors of one server: 32 of 2,000 lines name a client, none a process or request"),
    "BGL": Expected(
        (
            Choice("location", {"regex": r"^(?:\S+ +){3}(\S+)"}),
            Choice("node card", {"regex": r"^(?:\S+ +){3}(R\d\d-M\d-N\w)"}),
        ),
        "events of hardware belong to the place that reports them",
    ),
    "HDFS": Expected((_HDFS,), "the life of a block; the labels are of blocks"),
    "HPC": Expected((Choice("node", {"regex": r"^\S+ (\S+)"}),), "events belong to the node that reports them"),
    "Hadoop": Expected(
        (
            Choice("thread", {"regex": r"^\S+ \S+ +[A-Z]+ \[([^\]]*)\]"}),
            Choice("attempt", {"regex": r"(attempt_\w+)"}),
            Choice("container", {"regex": r"(container_\w+)"}),
        ),
        "attempts and containers are the work that is done, threads what every line tells",
    ),
    "HealthApp": Expected(
        (
            Choice("process", {"regex": r"^[^|]*\|[^|]*\|(\d+)\|"}),
            Choice("component", {"regex": r"^[^|]*\|([^|]+)\|"}),
            _NONE,
        ),
        "one application of one telephone, with two processes in 2,000 lines",
    ),
    "Linux": Expected((Choice("host, program and process", {"regex": _TAG}),), "a process does one thing: a login"),
    "Mac": Expected((Choice("host, program and process", {"regex": _TAG}),), "as Linux"),
    "OpenSSH": Expected((Choice("host, program and process", {"regex": _TAG}),), "a process is a connection"),
    "OpenStack": Expected(
        (
            Choice("request", {"regex": r"(req-[0-9a-f-]{36})"}),
            Choice("instance", {"regex": r"instance: ([0-9a-f-]{36})"}),
            Choice(
                "instance or request",
                {"any_of": [{"regex": r"instance: ([0-9a-f-]{36})"}, {"regex": r"(req-[0-9a-f-]{36})"}]},
            ),
            Choice(
                "request or instance",
                {"any_of": [{"regex": r"(req-[0-9a-f-]{36})"}, {"regex": r"instance: ([0-9a-f-]{36})"}]},
            ),
        ),
        "what one request does; the labels of its makers are of instances",
    ),
    "Proxifier": Expected(
        (
            Choice("program", {"regex": r"^\[[^\]]*\] (\S+)"}),
            Choice("destination", {"regex": r"^\[[^\]]*\] .*? - (\S+)"}),
            Choice("program and destination", {"regex": r"^\[[^\]]*\] (.*? - \S+)"}),
            _NONE,
        ),
        "connections have no id; a program's connections to a destination come nearest",
    ),
    "Spark": Expected(
        (
            Choice("task", {"regex": r"TID (\d+)"}),
            Choice("task in its stage", {"regex": r"task (\d+\.\d+ in stage \d+\.\d+)"}),
            _NONE,
        ),
        "one executor; a third of the lines name a task",
    ),
    "Thunderbird": Expected(
        (
            Choice("node", {"regex": r"^(?:\S+ +){3}(\S+)"}),
            Choice("node, program and process", [{"regex": r"^(?:\S+ +){3}(\S+)"}, {"regex": r"\s(\S+\[\d+\]):"}]),
        ),
        "syslog of many nodes",
    ),
    "Windows": Expected((_NONE,), "one machine's servicing log: a third of the lines name a session, each once"),
    "Zookeeper": Expected(
        (Choice("session", {"regex": r"(0x[0-9a-f]{8,})"}), _NONE),
        "sessions are named in a tenth of the lines, and the brackets hold a place in the code",
    ),
}

HDFS_RAW = Expected((_HDFS,), LOGHUB["HDFS"].why)


def _pointer(what: str, pointer: str) -> Expected:
    return Expected((Choice(what, {"pointer": pointer}),), "the smallest thing whose events these are")


_REQUEST = Expected((Choice("request", {"regex": r"request_id=(\w+)"}),), "lines do not say whose they are otherwise")

SHIPPERS: Mapping[str, Expected] = {
    "vector": _pointer("pod", "/kubernetes/pod_uid"),
    "fluent_bit": _pointer("pod", "/kubernetes/pod_id"),
    "filebeat": _pointer("trace", "/trace/id"),
    "logstash": _pointer("trace", "/traceId"),
    "otlp_json": _pointer("trace", "/traceId"),
    "journald": _pointer("invocation of a unit", "/_SYSTEMD_INVOCATION_ID"),
    "cri": _REQUEST,
    "docker": _REQUEST,
    "syslog_5424": Expected(
        (Choice("host, application and process", {"regex": r"^<\d+>1 \S+ (\S+ \S+ \S+)"}),), "a process is a connection"
    ),
    "gelf": _pointer("container", "/_container_id"),
    "azure": _pointer("correlation", "/correlationId"),
    "windows_event": _pointer("activity", "/winlog/activity_id"),
}
