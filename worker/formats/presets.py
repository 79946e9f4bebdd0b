"""What shippers of logs write, as the settings that read it. `input.format` names one; what a file says beside it wins.

A preset is nothing that an operator could not write himself: settings of `input`, and a session key.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

Base = Literal["text", "json"]
Format = Literal[
    "text",
    "json",
    "vector",
    "fluent_bit",
    "filebeat",
    "logstash",
    "otlp_json",
    "journald",
    "cri",
    "docker",
    "syslog_5424",
    "gelf",
    "azure",
    "windows_event",
]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)


@dataclass(frozen=True, slots=True)
class Preset:
    """Settings of a shape.

    Attributes:
        base: what the values are.
        input: settings of `input` by name, as a file writes them.
        key: `sessions.key`; None leaves the default.
    """

    base: Base
    input: Mapping[str, object]
    key: object = None


def _first(*pointers: str) -> dict[str, object]:
    return {"any_of": [{"pointer": pointer} for pointer in pointers]}


PRESETS: Final[Mapping[str, Preset]] = {
    "text": Preset("text", {}),
    "json": Preset("json", {}),
    # Vector's sinks with the JSON codec, from kubernetes_logs, file, journald or docker_logs.
    "vector": Preset(
        "json",
        {
            "message": ["/message", "/msg", "/log"],
            "severity": ["/level", "/severity"],
            "timestamp": {"pointer": ["/timestamp", "/@timestamp"], "format": ["iso8601", "epoch"]},
        },
        _first("/trace_id", "/kubernetes/pod_uid", "/kubernetes/pod_name", "/container_id", "/file", "/host"),
    ),
    # Fluent Bit's and Fluentd's Kafka outputs in JSON; with Merge_Log `log` may be an object.
    "fluent_bit": Preset(
        "json",
        {
            "message": ["/log", "/message", "/msg", "/MESSAGE"],
            "severity": ["/level", "/severity"],
            "timestamp": {"pointer": ["/@timestamp", "/timestamp", "/date", "/time"], "format": ["iso8601", "epoch"]},
        },
        _first("/trace_id", "/kubernetes/pod_id", "/kubernetes/pod_name", "/container_id", "/tag", "/hostname"),
    ),
    "filebeat": Preset(
        "json",
        {
            "message": ["/message", "/event/original"],
            "severity": ["/log/level"],
            "timestamp": {"pointer": ["/@timestamp"], "format": ["iso8601"]},
        },
        _first("/trace/id", "/kubernetes/pod/uid", "/container/id", "/log/file/path", "/host/name", "/agent/id"),
    ),
    "logstash": Preset(
        "json",
        {
            "message": ["/message", "/event/original"],
            "severity": ["/level", "/log/level", "/loglevel"],
            "timestamp": {"pointer": ["/@timestamp"], "format": ["iso8601"]},
        },
        _first("/trace/id", "/traceId", "/path", "/log/file/path", "/host/name", "/host/hostname", "/host"),
    ),
    # The OpenTelemetry Collector's Kafka exporter with the encoding otlp_json: a record is a batch.
    "otlp_json": Preset(
        "json",
        {
            "split": "/resourceLogs/*/scopeLogs/*/logRecords/*",
            "message": ["/body", "/eventName"],
            "severity": ["/severityText"],
            "timestamp": {"pointer": ["/timeUnixNano", "/observedTimeUnixNano"], "format": "epoch_ns"},
        },
        _first(
            "/traceId",
            "/resource/attributes/k8s.pod.uid",
            "/resource/attributes/service.instance.id",
            "/resource/attributes/host.name",
            "/resource/attributes/service.name",
        ),
    ),
    # journalctl --output=json and systemd-journal-upload: a field that is not text is a list of bytes.
    "journald": Preset(
        "json",
        {
            "message": ["/MESSAGE"],
            "timestamp": {"pointer": ["/_SOURCE_REALTIME_TIMESTAMP", "/__REALTIME_TIMESTAMP"], "format": "epoch_us"},
        },
        _first("/_SYSTEMD_INVOCATION_ID", "/_SYSTEMD_UNIT", "/SYSLOG_IDENTIFIER", "/_HOSTNAME"),
    ),
    # Lines of a Kubernetes node's /var/log/pods, as containerd and CRI-O write them.
    "cri": Preset(
        "text",
        {
            "message": {"pattern": r"^\S+ (?:stdout|stderr) [FP](?::\S*)? (.*)"},
            "timestamp": {"pattern": r"^(\S+) (?:stdout|stderr) [FP]", "format": "iso8601"},
        },
    ),
    # Docker's json-file driver.
    "docker": Preset(
        "json",
        {"message": ["/log"], "timestamp": {"pointer": ["/time"], "format": "iso8601"}},
    ),
    # <PRIORITY>1 TIME HOST APPLICATION PROCESS MESSAGE-ID [STRUCTURED DATA] message
    "syslog_5424": Preset(
        "text",
        {
            "message": {
                "pattern": r"^<\d{1,3}>\d{1,2} \S+ \S+ \S+ \S+ \S+ "
                r'(?:-|(?:\[(?:[^"\]]|"(?:[^"\\]|\\.)*")*\])+)(?: (?:\x{FEFF})?(.*))?'
            },
            "timestamp": {"pattern": r"^<\d{1,3}>\d{1,2} (\S+)", "format": "iso8601"},
        },
        {"regex": r"^<\d{1,3}>\d{1,2} \S+ (\S+ \S+ \S+)"},
    ),
    "gelf": Preset(
        "json",
        {
            "message": ["/full_message", "/short_message"],
            "timestamp": {"pointer": ["/timestamp"], "format": "epoch_s"},
        },
        _first("/_trace_id", "/_container_id", "/host"),
    ),
    # Azure Monitor's diagnostic logs through Event Hubs: a record is a batch.
    "azure": Preset(
        "json",
        {
            "split": "/records/*",
            "message": ["/properties/log", "/properties/message", "/resultDescription", "/operationName"],
            "severity": ["/level", "/Level"],
            "timestamp": {"pointer": ["/time", "/timeStamp", "/timestamp"], "format": ["iso8601"]},
        },
        _first("/correlationId", "/resourceId"),
    ),
    # Windows events as Winlogbeat, NXLog or Vector write them.
    "windows_event": Preset(
        "json",
        {
            "message": ["/message", "/Message"],
            "severity": ["/log/level", "/winlog/level", "/Severity"],
            "timestamp": {
                "pointer": ["/@timestamp", "/winlog/time_created", "/EventTime", "/TimeCreated"],
                "format": ["iso8601", "epoch"],
            },
        },
        _first("/winlog/activity_id", "/ActivityID", "/winlog/computer_name", "/Hostname", "/Computer", "/host/name"),
    ),
}
