"""The sections of the worker's settings: names, kinds and defaults of every key.

A duration's attribute ends in `_ms` and is a whole number of milliseconds; its key in the file does not.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, PlainValidator, model_validator

from worker.formats.encodings import Encoding
from worker.formats.presets import PRESETS, Format
from worker.settings.schema_registry import SchemaRegistry
from worker.settings.session_keys import SessionKey, SessionKeySetting
from worker.settings.shapes import Message, Multiline, OnlySetting, OptionalPointers, OptionalSplit
from worker.settings.timestamps import Timestamp
from worker.settings.values import (
    Device,
    Duration,
    Flag,
    Fraction,
    Name,
    Pattern,
    Problem,
    Reference,
    Text,
    Told,
    Topic,
    Topics,
    Whole,
    refuse,
)


class Section(BaseModel):
    """Settings that cannot change and have no other keys than those listed."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class InputSettings(Section):
    """Where raw records come from and how an event is read from one."""

    topics: Topics = ("raw-logs",)
    format: Format = "text"
    only: OnlySetting = None
    split: OptionalSplit = None
    message: Message = ("/message",)
    severity: OptionalPointers = None
    timestamp: Timestamp = None
    multiline: Multiline = False
    partial_lines: Literal["cri"] | None = None
    encoding: Encoding = "utf-8"
    max_line_bytes: Annotated[int, Whole(256, 16 * 1024 * 1024)] = 65_536
    start: Literal["earliest", "latest"] = "earliest"
    on_lost_offsets: Literal["fail", "earliest"] = "fail"

    @model_validator(mode="before")
    @classmethod
    def _spell_out(cls, given: object) -> object:
        """Put what the format's preset says where the file says nothing."""
        preset = PRESETS.get(name) if isinstance(given, dict) and isinstance(name := given.get("format"), str) else None
        return given if preset is None or not isinstance(given, dict) else {**preset.input, **given}

    @property
    def documents(self) -> bool:
        """Whether values are JSON documents rather than lines of text."""
        return PRESETS[self.format].base == "json"

    @property
    def tokens(self) -> bool:
        """Whether values are token records rather than lines."""
        return PRESETS[self.format].base == "tokens"

    @property
    def topics_are_pattern(self) -> bool:
        """Whether `topics` is one pattern (it starts with ^) instead of names."""
        return self.topics[0].startswith("^")


def _end_events(value: object) -> object:
    return (value,) if isinstance(value, str) else value


class SessionsSettings(Section):
    """How events form sessions and what ends one."""

    key: SessionKeySetting = SessionKey(source="regex", value=r"blk_-?\d+")
    no_key: Literal["dead_letter", "ignore"] = "dead_letter"
    gap_ms: Annotated[int | None, Duration("1ms", "365d", " or null")] = Field(600_000, alias="gap")
    end_events: Annotated[tuple[Text, ...], BeforeValidator(_end_events, json_schema_input_type=str | list[str])] = ()
    max_events: Annotated[int, Whole(1, 1_000_000)] = 1024
    max_age_ms: Annotated[int | None, Duration("1ms", "3650d", " or null")] = Field(21_600_000, alias="max_age")
    max_open: Annotated[int, Whole(1, 100_000_000)] = 200_000
    idle_flush_ms: Annotated[int | None, Duration("1ms", "365d", " or null")] = Field(600_000, alias="idle_flush")
    max_future_skew_ms: Annotated[int, Duration("0ms", "3650d")] = Field(3_600_000, alias="max_future_skew")


class MaskSettings(Section):
    """A part of a line that is replaced before templates are learnt, and the name that takes its place."""

    pattern: Pattern
    name: Name


def _masks(value: object) -> object:
    return () if value == "default" else value


class TokenizerSettings(Section):
    """How lines become template tokens."""

    masks: Annotated[
        tuple[MaskSettings, ...],
        BeforeValidator(_masks, json_schema_input_type=Literal["default"] | list[MaskSettings]),
        PlainSerializer(lambda masks: [m.model_dump() for m in masks] or "default", when_used="json"),
    ] = ()
    unknown: Literal["semantic", "unk"] = "semantic"


def _directory(value: object) -> Path | None:
    if value is None or isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError("is not a path; allowed: a checkpoint's directory, or null where a command names one")
    return Path(value)


class ModelSettings(Section):
    """The checkpoint and how it is run. A relative path is taken from the working directory."""

    checkpoint: Annotated[Path | None, PlainValidator(_directory, json_schema_input_type=str | None)] = None
    device: Device = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    kernels: Literal["auto", "triton", "reference"] = "auto"
    batch_tokens: Annotated[int, Whole(64, 16 * 1024 * 1024)] = 65_536
    score_cache: Annotated[int, Whole(0, 100_000_000)] = 100_000


@dataclass(frozen=True, slots=True)
class Adaptive:
    """Thresholds follow the scores of a partition: about `target_rate` of its sessions are critical."""

    target_rate: float


_TARGET_RATES = (0.00001, 0.05)  # sessions of a block, in `worker.processing.adaptive`: half a million to a hundred


_Rate = Annotated[float, Field(ge=_TARGET_RATES[0], le=_TARGET_RATES[1])]


def _adaptive(value: object) -> Adaptive | None:
    if value is None or isinstance(value, Adaptive):
        return value
    if not isinstance(value, dict) or set(value) != {"target_rate"}:
        raise ValueError("is no way to adapt thresholds; allowed: null or {target_rate: …}")
    least, most = _TARGET_RATES
    try:
        rate = float(value["target_rate"])
    except (TypeError, ValueError, OverflowError):
        rate = 0.0
    if not least <= rate <= most:
        refuse(Problem(("target_rate",), f"is not a number from {least:.5f} to {most}"))
    return Adaptive(rate)


class ScoringSettings(Section):
    """When a score counts as a warning or as critical."""

    warning: Fraction = 0.7
    critical: Fraction = 0.95
    adaptive: Annotated[
        Adaptive | None,
        PlainValidator(_adaptive, json_schema_input_type=dict[Literal["target_rate"], _Rate | Reference] | None),
        PlainSerializer(lambda adaptive: adaptive and asdict(adaptive), when_used="json"),
    ] = None
    early: Flag = True


class OutputSettings(Section):
    """Where scores and undecodable records go."""

    topic: Topic = "log-anomaly-scores"
    dead_letter_topic: Topic = "log-anomaly-dead-letters"
    include: Literal["all", "alerts"] = "all"
    top_events: Annotated[int, Whole(0, 100)] = 3
    line_text: Annotated[int, Whole(0, 4_096)] = 0
    cloud_events: Flag = False
    format: Literal["json", "avro"] = "json"
    schema_registry: SchemaRegistry = Field(None, repr=False)
    partitions: Annotated[int | None, Whole(1, 100_000, " or null")] = None
    replication_factor: Annotated[int | None, Whole(1, 32_767, " or null")] = None


class FeedbackSettings(Section):
    """Where verdicts of operators come from; null for none."""

    topic: Topic | None = None


class StateSettings(Section):
    """Where snapshots of open sessions go; `Settings.state_topic` is the topic's name when this is null."""

    topic: Topic | None = None
    snapshot_interval_ms: Annotated[int, Duration("0ms", "1d")] = Field(10_000, alias="snapshot_interval")


class WorkerSettings(Section):
    """The processing loop; `Settings.instance` is the name when this one is null."""

    instance: Name | None = None
    processes: Annotated[int, Whole(1, 128)] = 1
    delivery: Literal["exactly_once", "at_least_once"] = "exactly_once"
    batch_records: Annotated[int, Whole(1, 1_000_000)] = 10_000
    linger_ms: Annotated[int, Duration("0ms", "10s")] = Field(5, alias="linger")
    commit_interval_ms: Annotated[int, Duration("0ms", "10m")] = Field(25, alias="commit_interval")
    shutdown_timeout_ms: Annotated[int, Duration("100ms", "1h")] = Field(30_000, alias="shutdown_timeout")


class ObservabilitySettings(Section):
    """The HTTP endpoint and the log."""

    address: Text = "127.0.0.1"
    port: Annotated[
        int | None,
        Whole(0, 65_535),
        Told("is not a port; allowed: 1 to 65535, 0 (any free one) or null (no endpoint)"),
    ] = 9108
    show_lines: Literal["local", "always", "never"] = "local"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "console", "json"] = "auto"
