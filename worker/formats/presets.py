"""What shippers of logs write, as the settings that read it. `input.format` names one; what a file says beside it wins.

A preset is nothing that an operator could not write himself: settings of `input`, and a session key. The pages that say
what each shipper writes stand beside its preset.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

Base = Literal["text", "json", "tokens"]
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
    "tokens",
]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)


@dataclass(frozen=True, slots=True)
class Preset:
    """Settings of a shape.

    Attributes:
        base: what the values are.
        input: settings of `input` by name, as a file writes them.
        key: `sessions.key`; None leaves the default.
        signs: by which a JSON document of this shape is known: it has all the members that one of these names. Of two
            shapes the one with the more members is meant.
    """

    base: Base
    input: Mapping[str, object]
    key: object = None
    signs: tuple[tuple[str, ...], ...] = ()


def _first(*pointers: str) -> dict[str, object]:
    return {"any_of": [{"pointer": pointer} for pointer in pointers]}


PRESETS: Final[Mapping[str, Preset]] = {
    "text": Preset("text", {}),
    "json": Preset("json", {}),
    # What `logmamba rekey` has made of records of the others.
    "tokens": Preset("tokens", {}),
    # Vector's sinks with the JSON codec, from kubernetes_logs, file, journald, docker_logs or syslog.
    # https://vector.dev/docs/reference/configuration/sources/kubernetes_logs/
    "vector": Preset(
        "json",
        {
            "message": ["/message", "/msg", "/log"],
            "severity": ["/level", "/severity"],
            "timestamp": {"pointer": ["/timestamp", "/@timestamp"], "format": ["iso8601", "epoch"]},
        },
        _first("/trace_id", "/kubernetes/pod_uid", "/kubernetes/pod_name", "/container_id", "/file", "/host"),
        signs=(("/source_type",), ("/source_type", "/timestamp", "/message")),
    ),
    # Fluent Bit's and Fluentd's Kafka outputs in JSON; with Merge_Log `log` may be an object. Fluentd writes a time
    # only where its <inject> section says so (time_key).
    # https://docs.fluentbit.io/manual/v/dev-3.0/pipeline/outputs/kafka, https://docs.fluentd.org/formatter/json
    "fluent_bit": Preset(
        "json",
        {
            "message": ["/log", "/message", "/msg", "/MESSAGE"],
            "severity": ["/level", "/severity"],
            "timestamp": {"pointer": ["/@timestamp", "/timestamp", "/date", "/time"], "format": ["iso8601", "epoch"]},
        },
        _first("/trace_id", "/kubernetes/pod_id", "/kubernetes/pod_name", "/container_id", "/tag", "/hostname"),
        signs=(
            ("/log", "/kubernetes"),
            ("/log", "/date"),
            ("/log", "/@timestamp"),
            ("/log", "/stream", "/time", "/kubernetes"),
        ),
    ),
    # Applications that write the Elastic Common Schema spell its names with points, and Filebeat can leave them so.
    # https://www.elastic.co/docs/reference/beats/filebeat/exported-fields-ecs
    "filebeat": Preset(
        "json",
        {
            "message": ["/message", "/event/original"],
            "severity": ["/log/level", "/log.level"],
            "timestamp": {"pointer": ["/@timestamp"], "format": ["iso8601"]},
        },
        _first("/trace/id", "/kubernetes/pod/uid", "/container/id", "/log/file/path", "/host/name", "/agent/id"),
        signs=(
            ("/@timestamp", "/message", "/agent/type"),
            ("/@timestamp", "/message", "/ecs/version"),
            ("/@timestamp", "/message", "/log/file/path"),
        ),
    ),
    # https://www.elastic.co/docs/reference/logstash/ecs-ls: names of the schema, or the older ones without it.
    "logstash": Preset(
        "json",
        {
            "message": ["/message", "/event/original"],
            "severity": ["/level", "/log/level", "/loglevel", "/log.level"],
            "timestamp": {"pointer": ["/@timestamp"], "format": ["iso8601"]},
        },
        _first("/trace/id", "/traceId", "/path", "/log/file/path", "/host/name", "/host/hostname", "/host"),
        signs=(("/@timestamp", "/message", "/@version"),),
    ),
    # The OpenTelemetry Collector's Kafka exporter with the encoding otlp_json: a record is a batch. A time of 0 is not
    # known; then that of the observation is taken, as the data model says.
    # https://github.com/open-telemetry/opentelemetry-proto/blob/main/opentelemetry/proto/logs/v1/logs.proto
    # https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding
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
        signs=(("/resourceLogs",),),
    ),
    # journalctl --output=json and systemd-journal-gatewayd: a field that is not text is a list of bytes.
    # https://systemd.io/JOURNAL_EXPORT_FORMATS/#journal-json-format
    "journald": Preset(
        "json",
        {
            "message": ["/MESSAGE"],
            "timestamp": {"pointer": ["/_SOURCE_REALTIME_TIMESTAMP", "/__REALTIME_TIMESTAMP"], "format": "epoch_us"},
        },
        _first("/_SYSTEMD_INVOCATION_ID", "/_SYSTEMD_UNIT", "/SYSLOG_IDENTIFIER", "/_HOSTNAME"),
        signs=(("/MESSAGE", "/__REALTIME_TIMESTAMP"), ("/MESSAGE", "/_SOURCE_REALTIME_TIMESTAMP")),
    ),
    # Lines of a Kubernetes node's /var/log/pods, as containerd and CRI-O write them; a value may hold several.
    # https://github.com/kubernetes/design-proposals-archive/blob/main/node/kubelet-cri-logging.md
    "cri": Preset(
        "text",
        {
            "message": {"pattern": r"^\S+ (?:stdout|stderr) [FP](?::\S*)? (.*)"},
            "timestamp": {"pattern": r"^(\S+) (?:stdout|stderr) [FP]", "format": "iso8601"},
            "multiline": True,
            "partial_lines": "cri",
        },
    ),
    # Docker's json-file driver. A line above 16 KB is several records, which are not joined: all but the last lack the
    # LF at the end of `log`, but so does every record of a shipper that strips it.
    # https://docs.docker.com/engine/logging/drivers/json-file/
    "docker": Preset(
        "json",
        {"message": ["/log"], "timestamp": {"pointer": ["/time"], "format": "iso8601"}},
        signs=(("/log", "/stream", "/time"),),
    ),
    # https://www.rfc-editor.org/rfc/rfc5424#section-6
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
    # https://go2docs.graylog.org/current/getting_in_log_data/gelf_format.html
    "gelf": Preset(
        "json",
        {
            "message": ["/full_message", "/short_message"],
            "timestamp": {"pointer": ["/timestamp"], "format": "epoch_s"},
        },
        _first("/_trace_id", "/_container_id", "/host"),
        signs=(("/version", "/host", "/short_message"),),
    ),
    # Azure Monitor's diagnostic logs through Event Hubs: a record is a batch.
    # https://learn.microsoft.com/azure/azure-monitor/platform/resource-logs-schema
    "azure": Preset(
        "json",
        {
            "split": "/records/*",
            "message": ["/properties/log", "/properties/message", "/resultDescription", "/operationName"],
            "severity": ["/level", "/Level"],
            "timestamp": {"pointer": ["/time", "/timeStamp", "/timestamp"], "format": ["iso8601"]},
        },
        _first("/correlationId", "/resourceId"),
        signs=(
            ("/records/0/time", "/records/0/resourceId"),
            ("/records/0/time", "/records/0/operationName"),
            ("/records/0/time", "/records/0/category"),
        ),
    ),
    # Windows events as Winlogbeat, NXLog (im_msvistalog with to_json) or Vector (windows_event_log) write them.
    # https://www.elastic.co/docs/reference/beats/winlogbeat/exported-fields-winlog
    # https://vector.dev/docs/reference/configuration/sources/windows_event_log/
    "windows_event": Preset(
        "json",
        {
            "message": ["/message", "/Message"],
            "severity": ["/log/level", "/winlog/level", "/level", "/Severity"],
            "timestamp": {
                "pointer": ["/@timestamp", "/winlog/time_created", "/timestamp", "/EventTime", "/TimeCreated"],
                "format": ["iso8601", "epoch"],
            },
        },
        _first(
            "/winlog/activity_id",
            "/ActivityID",
            "/winlog/computer_name",
            "/computer",
            "/Hostname",
            "/Computer",
            "/host/name",
        ),
        signs=(
            ("/@timestamp", "/message", "/winlog/computer_name", "/winlog/event_id"),
            ("/EventTime", "/EventID", "/Message"),
            ("/TimeCreated", "/EventID", "/Message"),
        ),
    ),
}
