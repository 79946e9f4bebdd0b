"""A settings file is checked as a whole: an error says where, what and what is allowed."""

import socket
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.worker.settings.written import errors_of, load, only_error, placed_errors_of
from worker.errors import SettingsError
from worker.formats.durations import format_duration, parse_duration
from worker.settings.document import Settings, load_settings
from worker.settings.sections import Adaptive, SessionsSettings
from worker.settings.session_keys import SessionKey
from worker.settings.timestamps import TimestampRule

CONFIG = Path(__file__).parents[3] / "config"


def test_the_example_lists_every_setting_with_its_default() -> None:
    written = yaml.safe_load((CONFIG / "worker.example.yaml").read_text(encoding="utf-8"))
    described = Settings().describe()
    assert load_settings(CONFIG / "worker.example.yaml") == Settings()
    assert {section: list(keys) for section, keys in written.items() if isinstance(keys, dict)} == {
        section: list(keys) for section, keys in described.items() if isinstance(keys, dict)
    }


def test_an_empty_file_and_no_file_mean_the_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, "") == load(tmp_path, "sessions:\n") == load_settings(None) == Settings()


def test_the_hdfs_file_reads_times_from_the_line() -> None:
    settings = load_settings(CONFIG / "hdfs.yaml")
    assert settings.input.timestamp == TimestampRule(pattern=r"^(\d{6} \d{6})", formats=("%y%m%d %H%M%S",))
    assert settings.sessions.key == SessionKey("regex", r"blk_-?\d+")
    assert settings.sessions.gap_ms == 3_600_000


def test_the_json_file_takes_message_time_and_key_from_the_object() -> None:
    settings = load_settings(CONFIG / "json.yaml")
    assert (settings.input.format, settings.input.message, settings.input.timestamp) == (
        "json",
        ("/msg",),
        TimestampRule(pointers=("/ts",), formats=("iso8601", "epoch")),
    )
    assert settings.sessions.key == SessionKey("pointer", "/trace/id")


@pytest.mark.parametrize("path", sorted(CONFIG.glob("*.yaml")), ids=lambda path: path.name)
def test_no_shipped_file_scores_with_the_checkpoint_of_the_demo(path: Path) -> None:
    checkpoint = load_settings(path).model.checkpoint
    assert checkpoint is None or checkpoint.name != "demo"


@pytest.mark.parametrize("name", ["worker.example.yaml", "hdfs.yaml", "json.yaml"])
def test_what_describe_says_is_a_file_that_means_the_same(tmp_path: Path, name: str) -> None:
    settings = load_settings(CONFIG / name)
    assert load(tmp_path, yaml.safe_dump(settings.describe())) == settings


@pytest.mark.parametrize(
    ("written", "key"),
    [
        ("{regex: 'a(b)'}", SessionKey("regex", "a(b)")),
        ("{pointer: /a/b~1c}", SessionKey("pointer", "/a/b~1c")),
        ("record_key", SessionKey("record_key")),
        ("{header: trace}", SessionKey("header", "trace")),
        ("{header: traceparent, pattern: '-(.+)-'}", SessionKey("header", "traceparent", pattern="-(.+)-")),
        ("{header: id, as: uuid}", SessionKey("header", "id", encoding="uuid")),
        ("{record_key: int64}", SessionKey("record_key", encoding="int64")),
        (
            "[record_key, {pointer: /id}]",
            SessionKey("composed", parts=(SessionKey("record_key"), SessionKey("pointer", "/id"))),
        ),
        (
            "{any_of: [partition, [record_key]]}",
            SessionKey(
                "any_of", parts=(SessionKey("partition"), SessionKey("composed", parts=(SessionKey("record_key"),)))
            ),
        ),
        ("partition", SessionKey("partition")),
    ],
)
def test_every_source_of_session_keys_can_be_written(tmp_path: Path, written: str, key: SessionKey) -> None:
    settings = load(tmp_path, f"input: {{format: json}}\nsessions: {{key: {written}}}")
    assert settings.sessions.key == key
    assert load(tmp_path, yaml.safe_dump(settings.describe())) == settings


@pytest.mark.parametrize("servers", ["kafka", "k1:9092,k2:9092", "[::1]:9092, SSL://k3.example.com:9093"])
def test_brokers_are_a_list_of_addresses(tmp_path: Path, servers: str) -> None:
    assert load(tmp_path, f"kafka: {{bootstrap.servers: '{servers}'}}").kafka["bootstrap.servers"] == servers


def test_topics_are_names_or_one_pattern(tmp_path: Path) -> None:
    assert load(tmp_path, "input: {topics: [a, b, a]}").input.topics == ("a", "b")
    pattern = load(tmp_path, "input: {topics: '^raw-[0-9]+$'}").input
    assert pattern.topics == ("^raw-[0-9]+$",)
    assert pattern.topics_are_pattern


def test_names_are_made_of_application_and_instance(tmp_path: Path) -> None:
    settings = load(tmp_path, "application_id: shop\nworker: {instance: blue}")
    assert settings.group_id == "shop"
    assert settings.transactional_id == "shop-blue"
    assert settings.state_topic == "shop-state"
    assert Settings().transactional_id == f"logmamba-{socket.gethostname()}-0"
    assert load(tmp_path, "state: {topic: elsewhere}").state_topic == "elsewhere"


def test_durations_are_held_in_milliseconds(tmp_path: Path) -> None:
    sessions = load(tmp_path, "sessions: {gap: 1.5s, max_age: null, idle_flush: 2m}").sessions
    assert (sessions.gap_ms, sessions.max_age_ms, sessions.idle_flush_ms) == (1_500, None, 120_000)
    assert SessionsSettings(gap="250ms").gap_ms == 250


@given(st.integers(0, 10**14))
def test_a_duration_reads_back_as_it_was_written(milliseconds: int) -> None:
    assert parse_duration(format_duration(milliseconds)) == milliseconds


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().sessions.gap_ms = 1  # type: ignore[misc]


def test_an_override_takes_the_place_of_what_the_file_says(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        "sessions: {gap: 1m, max_events: 7}",
        "sessions.gap=5m",
        "sessions.key={pointer: /id}",
        "input.format=json",
        "worker.instance='1'",
        "scoring.early=false",
        "kafka.bootstrap.servers=one:9092,two:9092",
        "model.checkpoint=/models/a=b",
    )
    assert (settings.sessions.gap_ms, settings.sessions.max_events) == (300_000, 7)
    assert settings.sessions.key == SessionKey("pointer", "/id")
    assert settings.worker.instance == "1"
    assert settings.scoring.early is False
    assert settings.kafka["bootstrap.servers"] == "one:9092,two:9092"
    assert settings.model.checkpoint == Path("/models/a=b")


def test_an_override_of_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    assert only_error(tmp_path, "", "sessions.gapp=5m") == (
        "sessions.gapp: is not a setting; did you mean sessions.gap?"
    )


@pytest.mark.parametrize("override", ["sessions.gap", "=5m", "sessions..gap=5m", ""])
def test_an_override_without_path_and_value_is_refused(tmp_path: Path, override: str) -> None:
    [error] = placed_errors_of(tmp_path, "", override)
    assert error.startswith("--set ")
    assert error.endswith("is not an override; allowed: section.key=value")


def test_an_override_whose_value_is_not_yaml_is_refused(tmp_path: Path) -> None:
    [error] = placed_errors_of(tmp_path, "", "input.topics=[a")
    assert error.startswith("--set input.topics: the value is not valid YAML: ")


@pytest.mark.parametrize("written", ["0.001", "1e-3", "'0.001'", "'${RATE}'"])
def test_adaptive_thresholds_have_a_rate(tmp_path: Path, written: str) -> None:
    settings = load(tmp_path, f"scoring: {{adaptive: {{target_rate: {written}}}}}", RATE="0.001")
    assert settings.scoring.adaptive == Adaptive(target_rate=0.001)
    assert load(tmp_path, yaml.safe_dump(settings.describe())) == settings


@pytest.mark.parametrize("written", ["{}", "true", "0.001", "{rate: 0.001}", "{target_rate: 0.001, window: 5}"])
def test_adaptive_thresholds_have_nothing_but_a_rate(tmp_path: Path, written: str) -> None:
    error = only_error(tmp_path, f"scoring: {{adaptive: {written}}}")
    assert error.startswith("scoring.adaptive: ")
    assert error.endswith(" is no way to adapt thresholds; allowed: null or {target_rate: …}")


@pytest.mark.parametrize("rate", ["0", "0.000009", "0.051", "-0.001", ".nan", "true", "null", "often", "[0.001]"])
def test_a_rate_out_of_range_is_refused(tmp_path: Path, rate: str) -> None:
    error = only_error(tmp_path, f"scoring: {{adaptive: {{target_rate: {rate}}}}}")
    assert error.startswith("scoring.adaptive.target_rate: ")
    assert error.endswith(" is not a number from 0.00001 to 0.05")


def test_every_error_is_reported_at_once_with_path_value_and_what_is_allowed(tmp_path: Path) -> None:
    errors = errors_of(
        tmp_path,
        """
        application_id: log mamba
        kafka: {group.id: mine, bootstrap.serverz: b}
        input: {format: xml, max_line_bytes: ten, timestamp: {pattern: '(', format: x}}
        sessions: {gap: 10 parsecs, max_evnts: 3, key: {regex: '(a'}}
        tokenizer: {masks: [{pattern: a, name: b}, {pattern: a}]}
        model: 5
        scoring: {warning: 0.9, critical: 0.8, adaptive: {target_rate: 1}, early: maybe}
        output: {topic: same, dead_letter_topic: same}
        worker: {processes: 400, batch_records: 0}
        observability: {port: 70000}
        gap: 5m
        """,
        "state.snapshot_interval=soon",
    )
    beginnings = [
        "application_id: 'log mamba' is not a name; allowed: ",
        "kafka.group.id: cannot be set: it is made of application_id",
        "kafka.bootstrap.serverz: is not a librdkafka property; did you mean bootstrap.servers?",
        "kafka.bootstrap.servers: is missing; allowed: host:port, with commas",
        "input.format: 'xml' is not allowed; allowed: text, json, vector, fluent_bit, ",
        "input.timestamp.pattern: '(' is not a pattern that RE2 can run (missing ): (); allowed: ",
        "input.timestamp.format: 'x' is not a format of times; allowed: iso8601, rfc3339, epoch, ",
        "input.max_line_bytes: 'ten' is not a whole number from 256 to 16_777_216",
        "sessions.key.regex: '(a' is not a pattern that RE2 can run (missing ): (a); allowed: RE2 syntax",
        "sessions.gap: '10 parsecs' is not a duration; allowed: a number with ms, s, m, h or d (250ms, 10m)",
        "sessions.max_evnts: is not a setting; did you mean sessions.max_events?",
        "tokenizer.masks[1].name: is missing",
        "model: 5 is not a mapping; allowed: checkpoint, device, precision, ",
        "scoring.adaptive.target_rate: 1 is not a number from 0.00001 to 0.05",
        "scoring.early: 'maybe' is not true or false",
        "state.snapshot_interval: 'soon' is not a duration; allowed: a number with ms, s, m, h or d",
        "worker.processes: 400 is not a whole number from 1 to 128",
        "worker.batch_records: 0 is not a whole number from 1 to 1_000_000",
        "observability.port: 70000 is not a port; allowed: 1 to 65535, 0 (any free one) or null",
        "gap: is not a setting; did you mean sessions.gap?",
        "scoring.warning: is 0.9, not below scoring.critical (0.8)",
        "output.topic: is 'same', and so is output.dead_letter_topic; allowed: different topics",
    ]
    assert [error[: len(start)] for error, start in zip(errors, beginnings, strict=True)] == beginnings


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("sessions.gap", "0s"),
        ("sessions.gap", "10"),
        ("sessions.gap", "-1s"),
        ("sessions.gap", "1.0001ms"),
        ("sessions.max_events", "true"),
        ("sessions.max_events", "1.5"),
        ("sessions.max_events", "null"),
        ("sessions.end_events", "{a: b}"),
        ("sessions.no_key", "drop"),
        ("sessions.key", "{regex: a, pointer: /b}"),
        ("sessions.key", "{pointer: b}"),
        ("sessions.key", "{header: ''}"),
        ("sessions.key", "{regx: a}"),
        ("sessions.key", "key"),
        ("sessions.key", "{regex: '(a)\\1'}"),
        ("input.message", "message"),
        ("input.message", "/a~2"),
        ("input.topics", "[]"),
        ("input.topics", "[a b]"),
        ("input.topics", "['^a', b]"),
        ("input.topics", "'^raw-\\d'"),
        ("input.timestamp", "{pattern: a}"),
        ("input.timestamp", "ts"),
        ("input.timestamp", "{pattern: a, format: '%Q'}"),
        ("input.timestamp", "{pattern: a, format: noon}"),
        ("application_id", '"\\ud800"'),
        ("sessions.key", '{header: "\\ud800"}'),
        ("input.multiline", "1"),
        ("input.multiline", "{start: '('}"),
        ("input.multiline", "{begin: a}"),
        ("input.partial_lines", "docker"),
        ("input.message", "[]"),
        ("input.message", "[/a, b]"),
        ("input.message", "{pattern: '('}"),
        ("input.severity", "level"),
        ("input.split", "/records"),
        ("input.split", "records/*"),
        ("input.encoding", "utf-16"),
        ("input.only", "shop"),
        ("input.only", "{pointer: /app}"),
        ("input.only", "{pointer: app, equals: shop}"),
        ("input.only", "{header: app, matches: '('}"),
        ("input.only", "{header: app, equals: [a]}"),
        ("sessions.key", "[]"),
        ("sessions.key", "{any_of: {pointer: /a}}"),
        ("sessions.key", "{any_of: [record_key, {pointer: a}]}"),
        ("sessions.key", "{record_key: int32}"),
        ("sessions.key", "{header: a, as: text}"),
        ("sessions.key", "{header: a, pattern: '('}"),
        ("sessions.key", "{regex: a, pattern: b}"),
        ("input.start", "newest"),
        ("tokenizer.masks", "[a]"),
        ("tokenizer.masks", "none"),
        ("model.device", "gpu"),
        ("model.checkpoint", "''"),
        ("scoring.warning", "1.5"),
        ("scoring.warning", ".nan"),
        ("scoring.warning", "true"),
        ("output.topic", "'..'"),
        ("output.include", "some"),
        ("output.top_events", "-1"),
        ("output.partitions", "0"),
        ("output.replication_factor", "40000"),
        ("worker.delivery", "at_most_once"),
        ("worker.linger", "1h"),
        ("worker.processes", "0"),
        ("worker.instance", "a b"),
        ("observability.port", "true"),
        ("observability.address", "''"),
        ("observability.log_level", "loud"),
        ("application_id", "1"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_at_its_path(tmp_path: Path, setting: str, value: str) -> None:
    assert only_error(tmp_path, "", f"{setting}={value}").startswith(setting)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("input: {timestamp: /ts}", "input.timestamp: is a JSON pointer, which needs input.format: json"),
        ("sessions: {key: {pointer: /a}}", "sessions.key: is a JSON pointer, which needs input.format: json"),
        ("input: {only: {pointer: /a, equals: b}}", "input.only: is a JSON pointer, which needs input.format: json"),
        ("input: {split: /a/*}", "input.split: is a JSON pointer, which needs input.format: json"),
        ("input: {severity: /a}", "input.severity: is a JSON pointer, which needs input.format: json"),
        ("sessions: {key: [record_key, {pointer: /a}]}", "sessions.key: is a JSON pointer, which needs input.format: "),
        (
            "input: {format: json, message: {pattern: a}}",
            "input.message: is a pattern, which needs input.format: text; ",
        ),
        (
            "input: {format: json, timestamp: {pattern: a, format: '%Y'}}",
            "input.timestamp: is a pattern, which needs input.format: text; allowed with json: ",
        ),
        ("scoring: {warning: 0.95}", "scoring.warning: is 0.95, not below scoring.critical (0.95)"),
        (
            "sessions: {max_events: 65535}",
            "model.batch_tokens: is 65536, too few for a session of sessions.max_events (65535) events",
        ),
        ("output: {topic: raw-logs}", "output.topic: is 'raw-logs', which input.topics also reads"),
        ("input: {topics: ^log}", None),
        (
            "application_id: raw\ninput: {topics: [raw-state]}",
            "state.topic: is 'raw-state', which input.topics also reads",
        ),
        (
            "kafka: {bootstrap.servers: a, message.max.bytes: 20000}",
            "kafka.message.max.bytes: is 20000; allowed: 65536 or more",
        ),
        (
            "kafka: {bootstrap.servers: a, transaction.timeout.ms: 10000}\nworker: {commit_interval: 6s}",
            "worker.commit_interval: is more than half of kafka.transaction.timeout.ms (10000 ms)",
        ),
        (
            "kafka: {bootstrap.servers: a, max.poll.interval.ms: 60000}",
            "kafka.max.poll.interval.ms: is 60000 ms, less than four times kafka.transaction.timeout.ms (60000 ms)",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tmp_path: Path, text: str, expected: str | None) -> None:
    errors = errors_of(tmp_path, text)
    if expected is None:
        assert len(errors) == 3
        assert all("which input.topics also reads" in error for error in errors)
    else:
        [error] = errors
        assert error.startswith(expected)


def test_a_contradiction_is_not_reported_when_one_side_is_wrong_anyway(tmp_path: Path) -> None:
    assert only_error(tmp_path, "scoring: {warning: 0.99, critical: high}").startswith("scoring.critical: 'high'")
    error = only_error(
        tmp_path,
        "kafka: {bootstrap.servers: a, transaction.timeout.ms: 600000, group.id: a}",
        "worker.commit_interval=50s",
    )
    assert error.startswith("kafka.group.id")


def test_a_settings_object_made_in_code_is_held_to_the_same_rules() -> None:
    with pytest.raises(ValueError, match="disagree"):
        Settings.model_validate({"scoring": {"warning": 0.99}})


def test_every_error_names_the_line_and_column_of_its_setting_or_the_override(tmp_path: Path) -> None:
    errors = placed_errors_of(
        tmp_path,
        "application_id: log mamba\n"
        "common: &common\n"
        "  gap: 10 parsecs\n"
        "kafka:\n"
        "  sasl.password_file: /nowhere\n"
        "  security.protocol: ${PROTOCOL}\n"
        "sessions:\n"
        "  <<: *common\n"
        "  key: {any_of: [record_key, {pointer: a}]}\n"
        "  max_evnts: 3\n"
        "tokenizer:\n"
        "  masks:\n"
        "  - {pattern: a, name: b}\n"
        "  - pattern: a\n"
        "scoring:\n"
        "  early: true\n"
        "  warning: 0.99\n"
        "output: {topic: raw-logs}\n"
        "5: 6\n",
        "input.formt=json",
        "worker={linger: 1h}",
    )
    places = {
        "application_id": ":1:1",
        "common": ":2:1",
        "sessions.gap": ":3:3",
        "kafka.bootstrap.servers": ":4:1",  # of the section in which it is missing
        "kafka.sasl.password_file": ":5:3",
        "kafka.security.protocol": ":6:3",
        "sessions.key.any_of[1].pointer": ":9:31",
        "sessions.max_evnts": ":10:3",
        "tokenizer.masks[1].name": ":14:5",
        "scoring.warning": ":17:3",
        "output.topic": ":18:10",
        "5": ":19:1",
    }
    beginnings = [f"{tmp_path}/worker.yaml{place}: {path}: " for path, place in places.items()]
    beginnings += ["--set input.formt: ", "--set worker.linger: "]
    assert sorted(error[: len(start)] for start in beginnings for error in errors if error.startswith(start)) == sorted(
        beginnings
    ), errors
    assert len(errors) == len(beginnings), errors


def test_wrong_yaml_is_refused_with_line_and_column(tmp_path: Path) -> None:
    [error] = placed_errors_of(tmp_path, "input:\n  topics: [a\nsessions: {}\n")
    assert error.startswith(f"{tmp_path}/worker.yaml:3:9: is not valid YAML: ")


def test_a_repeated_key_is_refused_with_both_places_and_the_other_errors(tmp_path: Path) -> None:
    errors = placed_errors_of(tmp_path, "sessions:\n  gap: 1m\n  max_events: 0\n  gap: 2m\ninput: {}\ninput: {}\n")
    assert sorted(errors) == [
        f"{tmp_path}/worker.yaml:3:3: sessions.max_events: 0 is not a whole number from 1 to 1_000_000",
        f"{tmp_path}/worker.yaml:4:3: key 'gap' repeats that of line 2",
        f"{tmp_path}/worker.yaml:6:1: key 'input' repeats that of line 5",
    ]


@pytest.mark.parametrize(("text", "kind"), [("[a, b]", "a list"), ("hello", "a single value")])
def test_a_file_that_is_not_a_mapping_is_refused(tmp_path: Path, text: str, kind: str) -> None:
    assert placed_errors_of(tmp_path, text) == [f"{tmp_path}/worker.yaml: is not a mapping of settings but {kind}"]


@pytest.mark.parametrize(
    "value",
    ["2020-99-99", "!!int ten", "!!bool maybe", "!!timestamp soon", "0b_", "9" * 5000, "1:" * 5000 + "1", "[" * 3000],
    ids=lambda value: value[:16],
)
def test_a_value_that_yaml_cannot_read_is_an_error_like_others(tmp_path: Path, value: str) -> None:
    assert "is not valid YAML: " in only_error(tmp_path, f"worker: {{batch_records: {value}}}")
    assert "the value is not valid YAML: " in only_error(tmp_path, "", f"worker.batch_records={value}")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.yaml: cannot be read: No such file or directory"):
        load_settings(tmp_path / "nowhere.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"application_id: \xff")
    with pytest.raises(SettingsError, match=r"latin\.yaml: is not UTF-8 text \(byte 16\)"):
        load_settings(tmp_path / "latin.yaml")


def test_a_list_that_contains_itself_is_refused(tmp_path: Path) -> None:
    assert "is nested too deeply" in only_error(tmp_path, "sessions: {end_events: &a [*a]}")


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_with_errors(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        load_settings(path)
    except SettingsError as error:
        assert error.errors  # noqa: PT017
