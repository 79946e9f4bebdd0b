"""Rekeying: the sessions of lines that lie in several partitions, as if they lay in one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import jsonschema
import numpy as np
import orjson
import pytest

from detector.text.vocabulary import Vocabulary
from tests.worker.small_worker import VOCABULARY, OddScorer, settings
from worker.errors import RunError, SettingsError
from worker.observability.metrics import Metrics
from worker.processing.outputs import Output
from worker.processing.pipeline import Pipeline
from worker.processing.record_columns import RecordColumns
from worker.processing.records import Partition, Records
from worker.processing.rekeying import Rekeying, Tokens
from worker.processing.token_records import decode
from worker.settings.document import Settings
from worker.shipped import shipped_text

RAW, TOKENS = "raw-logs", "tokens"
TARGETS = 3
TIMED = "input={timestamp: {pattern: '@(\\d+)$', format: epoch}, message: {pattern: '^(.*) @'}}"
SESSIONS = ("sessions.gap=1m", "sessions.max_events=6", "scoring.early=true")
SCHEMA = jsonschema.Draft202012Validator(json.loads(shipped_text("score-record.schema.json")))
WORDS = ("open", "read", "odd", "close", "never seen before")


def rekeying(*overrides: str, vocabulary: Vocabulary = VOCABULARY, partitions: int = TARGETS) -> Rekeying:
    use = settings(TIMED, f"output.topic={TOKENS}", *overrides)
    tokens = Tokens("sha256:odd", vocabulary, None)
    return Rekeying(use, tokens, Metrics(), lambda: partitions)


def raw(partition: int, lines: Iterable[tuple[int, str]]) -> Records:
    """Records by their offsets, each with its offset's second as Kafka's timestamp."""
    offsets, texts = zip(*lines, strict=True)
    values = [text.encode() for text in texts]
    return Records(RAW, partition, [*offsets], values, None, [1000 * offset + 1000 for offset in offsets], None)


def token_records(outputs: Iterable[Output], first: dict[int, int]) -> list[Records]:
    """Token records as they lie in their topic; `first` has the next offset of each partition, and is moved on."""
    values: dict[int, list[bytes | None]] = {}
    for output in outputs:
        if output.severity is not None:
            assert output.partition is not None
            values.setdefault(output.partition, []).append(output.value)
    found = []
    for partition, each in sorted(values.items()):
        begin = first.get(partition, 0)
        first[partition] = begin + len(each)
        offsets = [*range(begin, begin + len(each))]
        found.append(Records(TOKENS, partition, offsets, each, None, [1000] * len(each), None))
    return found


def a_log(events: int, keys: int = 12, seed: int = 0) -> list[str]:
    """Lines in the order of their times, a second apart or less."""
    rng = np.random.default_rng(seed)
    times = 1_700_000_000 + np.cumsum(rng.integers(0, 4, events))
    chosen = rng.integers(0, keys, events), rng.integers(0, len(WORDS), events)
    return [f"k{key} {WORDS[word]} @{at}" for key, word, at in zip(*(c.tolist() for c in chosen), times, strict=True)]


def of_tokens(*overrides: str) -> Settings:
    return settings(f"input.topics={TOKENS}", "input.format=tokens", "sessions.key={regex: 'blk_-?\\d+'}", *overrides)


def pipeline_of(use: Settings, partitions: Sequence[Partition], vocabulary: Vocabulary = VOCABULARY) -> Pipeline:
    pipeline = Pipeline(use, OddScorer(vocabulary), Metrics())
    for partition in partitions:
        pipeline.open(partition)
    return pipeline


def scored(outputs: Iterable[Output]) -> list[dict[str, Any]]:
    return [orjson.loads(output.value or b"") for output in outputs]


def essence(record: dict[str, Any]) -> tuple[Any, ...]:
    """All of a score that does not name where it came from."""
    top = tuple((event["template"], event["surprise"]) for event in record["top_events"])
    names = ("session", "kind", "score", "severity", "surprise", "events", "unknown_events", "closed_by")
    return *(record[name] for name in names), record["first_event_time"], record["last_event_time"], top


def rekeyed(lines: Sequence[str], raw_partitions: int, batch: int) -> tuple[list[Records], dict[str, list[Any]]]:
    """Token records of lines that come in batches of some time; and of each line where it lay, by its text."""
    stage = rekeying()
    of = np.random.default_rng(2).integers(0, raw_partitions, len(lines)).tolist()
    counts = [0] * raw_partitions
    for number in range(raw_partitions):
        stage.open(Partition(RAW, number))
    places: dict[str, list[Any]] = {}
    first: dict[int, int] = {}
    found = []
    for begin in range(0, len(lines), batch):
        parts: dict[int, list[tuple[int, str]]] = {}
        for line, number in zip(lines[begin : begin + batch], of[begin : begin + batch], strict=True):
            parts.setdefault(number, []).append((counts[number], line))
            places.setdefault(line, []).append({"topic": RAW, "partition": number, "offset": counts[number]})
            counts[number] += 1
        found += token_records(stage.process([raw(number, part) for number, part in sorted(parts.items())]), first)
    for number in range(raw_partitions):
        stage.reached_end(Partition(RAW, number), counts[number])
    found += token_records(stage.process([]), first)
    assert not stage.holds
    return found, places


def distinct(lines: Sequence[str]) -> list[str]:
    """The lines with times so far apart that every one is another."""
    return [f"{line.rpartition('@')[0]}@{1_700_000_000 + 2 * number}" for number, line in enumerate(lines)]


@pytest.mark.parametrize("batch", [7, 1000])
def test_scores_of_rekeyed_lines_are_those_of_the_lines_in_one_partition(batch: int) -> None:
    """Keys of a third each, so the truth is three partitions with the lines of their keys."""
    lines = distinct(a_log(600))
    tokens, _ = rekeyed(lines, 4, batch)
    pipeline = pipeline_of(of_tokens(*SESSIONS), [Partition(TOKENS, number) for number in range(TARGETS)])
    found = [record for records in tokens for record in scored(pipeline.process([records]))]
    keys: dict[int, set[str]] = {}
    for records in tokens:
        for value in records.values:
            keys.setdefault(records.partition, set()).update(decode(value or b"").keys.to_pylist())
    assert sum(map(len, keys.values())) == 12, "a key is in two partitions"
    assert len(keys) > 1
    for partition, own in keys.items():
        truth = pipeline_of(settings(TIMED, *SESSIONS), [Partition(RAW, 0)])
        mine = [line for line in lines if line.split()[0] in own]
        expected = scored(truth.process([raw(0, enumerate(mine))]))
        expected += scored(truth.flush(Partition(RAW, 0), len(mine), "idle"))
        end = 1 + max(records.last_offset for records in tokens if records.partition == partition)
        got = [record for record in found if record["source"]["partition"] == partition]
        got += scored(pipeline.flush(Partition(TOKENS, partition), end, "idle"))
        assert list(map(essence, got)) == list(map(essence, expected))
        assert len({record["id"] for record in got}) == len(got)
        assert {record["severity"] for record in got} > {"normal"}
        assert {record["kind"] for record in got} == {"early", "final"}


def test_a_record_names_the_lines_of_its_events() -> None:
    lines = distinct(a_log(300))
    tokens, places = rekeyed(lines, 4, 25)
    pipeline = pipeline_of(of_tokens(*SESSIONS), [Partition(TOKENS, number) for number in range(TARGETS)])
    records = [record for each in tokens for record in scored(pipeline.process([each]))]
    lying = {(at["topic"], at["partition"], at["offset"]): line for line, [at] in places.items()}
    assert records
    for record in records:
        SCHEMA.validate({**record, "model": {**record["model"], "checkpoint": VOCABULARY.sha256}})
        named = [
            lying[origin["topic"], origin["partition"], offset]
            for origin in record["origins"]
            for offset in origin["offsets"]
        ]
        assert len(named) == record["events"] == len(record["lines"])
        assert {line.split()[0] for line in named} == {record["session"]}
        at = sorted(int(line.rpartition("@")[2]) for line in named)
        begun = np.datetime64(record["first_event_time"].removesuffix("Z")).astype("datetime64[s]")
        assert at[0] == int(begun.astype(np.int64))
        for event in record["top_events"]:
            if record["severity"] != "normal":
                origin = event["origin"]
                line = lying[origin["topic"], origin["partition"], origin["offset"]]
                assert ("odd" in line) == (event["surprise"] == 2)
                assert line in named


def test_records_that_are_made_at_once_are_those_that_are_made_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of several partitions too; and each knows when its cause came."""
    tokens, _ = rekeyed(distinct(a_log(300)), 4, 25)
    batches: list[dict[int, Records]] = [{}]
    for records in tokens:
        if records.partition in batches[-1]:
            batches.append({})
        batches[-1][records.partition] = records
    assert max(map(len, batches)) > 1

    def outputs() -> list[Output]:
        pipeline = pipeline_of(of_tokens(*SESSIONS), [Partition(TOKENS, number) for number in range(TARGETS)])
        return [output for batch in batches for output in pipeline.process([*batch.values()])]

    at_once = outputs()
    monkeypatch.setattr(RecordColumns, "encode", lambda _self, _of, _scores, told, *_: ([None] * len(told.events), []))
    one_by_one = outputs()
    assert [each.value for each in at_once] == [each.value for each in one_by_one]
    assert [each.alert for each in at_once] == [each.alert for each in one_by_one]
    assert sum(each.severity == "normal" for each in at_once) > 5
    assert {each.caused_at_ms for each in at_once} == {1000}


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("few", [0, 100_000])
def test_a_snapshot_at_any_place_changes_nothing(few: int, every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it when the origins of events that are in no open session any more are forgotten."""
    monkeypatch.setattr("worker.processing.origins._FEW", few)
    tokens, _ = rekeyed(distinct(a_log(400, keys=40)), 3, 20)
    partition = Partition(TOKENS, 0)
    mine = [records for records in tokens if records.partition == 0]
    use = of_tokens(*SESSIONS)
    whole = pipeline_of(use, [partition])
    expected = [output.value for records in mine for output in whole.process([records])]
    expected += [output.value for output in whole.flush(partition, 10_000, "idle")]
    got: list[bytes | None] = []
    pipeline = pipeline_of(use, [partition])
    for number, records in enumerate(mine):
        got += [output.value for output in pipeline.process([records])]
        if number % every == 0:
            state, *others = pipeline.state(partition)
            assert state.origins is not None
            assert len(state.origins.events) == len(state.offsets) + len(state.clock.waiting)
            pipeline = Pipeline(use, OddScorer(), Metrics())
            position = records.last_offset + 1
            pipeline.open(partition, position, position, state, *others)
    got += [output.value for output in pipeline.flush(partition, 10_000, "idle")]
    assert got == expected


@pytest.mark.parametrize("few", [0, 100_000])
def test_what_comes_after_an_image_is_not_in_it(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where origins are forgotten meanwhile, and where there are partitions that were not known before."""
    monkeypatch.setattr("worker.processing.origins._FEW", few)
    tokens, _ = rekeyed(distinct(a_log(400, keys=40)), 3, 20)
    partition = Partition(TOKENS, 0)
    mine = [records for records in tokens if records.partition == 0]
    pipeline = pipeline_of(of_tokens(*SESSIONS), [partition])
    taken = []
    for records in mine:
        pipeline.process([records])
        taken.append((pipeline.state(partition), pipeline.image(partition)))
    assert any(len(state.offsets) for (state, *_), _ in taken)
    for (state, *others), (image, *copied) in taken:
        assert state.origins is not None
        assert (image.state(), copied) == (state, others)


@pytest.mark.parametrize("more", [(), ("scoring.adaptive={target_rate: 0.01}",)])
def test_what_was_published_before_is_not_again(more: tuple[str, ...]) -> None:
    """Also where it comes in one batch with what was not."""
    tokens, _ = rekeyed(distinct(a_log(300)), 3, 30)
    partition = Partition(TOKENS, 0)
    mine = [records for records in tokens if records.partition == 0]
    use = of_tokens(*SESSIONS, *more)
    whole = pipeline_of(use, [partition])
    live_from = mine[len(mine) // 2].first_offset
    expected = [
        output.value for records in mine for output in whole.process([records]) if records.first_offset >= live_from
    ]
    assert expected
    values = [value for records in mine for value in records.values]
    at_once = Records(TOKENS, 0, [*range(len(values))], values, None, [1000] * len(values), None)
    for batches in (mine, [at_once]):
        again = Pipeline(use, OddScorer(), Metrics())
        again.open(partition, 0, live_from)
        assert [output.value for records in batches for output in again.process([records])] == expected


def test_lines_of_one_partition_stay_in_their_order_and_earlier_ones_of_another_come_before() -> None:
    stage = rekeying(partitions=1)
    stage.open(Partition(RAW, 0))
    stage.open(Partition(RAW, 1))
    late = raw(0, [(0, "a open @1000"), (1, "a read @1030"), (2, "a odd @1010"), (3, "a close @1040")])
    other = raw(1, [(0, "a read @1020"), (1, "a read @1035")])
    [output] = stage.process([late, other])
    assert (output.key, output.partition) == (None, 0)
    assert [(place.partition, offset) for place, offset in decode(output.value or b"").origins.each()] == [
        *((0, 0), (1, 0), (0, 1), (0, 2), (1, 1)),
    ]
    assert [stage.position(Partition(RAW, number)) for number in (0, 1)] == [3, 2]


def test_keys_are_where_kafka_puts_them() -> None:
    """Positive 32 bits of murmur2 modulo 1,000,003, of the values in Kafka's own UtilsTest."""
    stage = rekeying("sessions.key={regex: '^[\\w-]+'}", partitions=1_000_003)
    stage.open(Partition(RAW, 0))
    hashes = {"foobar": -790332482, "a-little-bit-long-string": -985981536, "21": -973932308, "abc": 479470107}
    outputs = stage.process([raw(0, [(at, f"{key} open @{at + 1}") for at, key in enumerate(hashes)])])
    got = {decode(output.value or b"").keys.to_pylist()[0]: output.partition for output in outputs}
    assert got == {key: (value & 0x7FFFFFFF) % 1_000_003 for key, value in hashes.items()}


def test_a_record_is_no_larger_than_a_message_may_be() -> None:
    stage = rekeying(
        "kafka={bootstrap.servers: 'localhost:9092', message.max.bytes: 65536}",
        "sessions.key={regex: '^\\S+'}",
        partitions=1,
    )
    stage.open(Partition(RAW, 0))
    lines = [(at, f"{'k' * 900}{at} open @{at + 1}") for at in range(1_000)]
    outputs = stage.process([raw(0, lines)])
    found = [decode(output.value or b"") for output in outputs]
    assert max(len(output.value or b"") for output in outputs) < 65_536
    assert [offset for each in found for _, offset in each.origins.each()] == [at for at, _ in lines]
    assert [key for each in found for key in each.keys.to_pylist()] == [line.split()[0] for _, line in lines]


def test_what_was_written_before_a_restart_is_not_again_and_dead_letters_neither() -> None:
    lines = [(at, f"k{at} open @{at + 1}" if at % 4 else "") for at in range(20)]
    stage = rekeying(partitions=1)
    stage.open(Partition(RAW, 0), 5, 11)
    outputs = stage.process([raw(0, lines[5:9])])
    assert outputs == []
    assert stage.replaying(Partition(RAW, 0))
    assert stage.position(Partition(RAW, 0)) == 9
    outputs = stage.process([raw(0, lines[9:])])
    letters = [dict(output.headers)["logmamba-error-offset"] for output in outputs if output.severity is None]
    assert letters == [b"12", b"16"]
    [record] = [decode(output.value or b"") for output in outputs if output.severity is not None]
    assert [offset for _, offset in record.origins.each()] == [at for at in range(11, 20) if at % 4]
    assert not stage.replaying(Partition(RAW, 0))
    assert stage.position(Partition(RAW, 0)) == 20


def test_records_that_are_none_are_dead_letters_and_change_no_others() -> None:
    tokens, _ = rekeyed(distinct(a_log(60, keys=3)), 2, 30)
    records = tokens[0]
    damaged = bytearray(records.values[0] or b"")
    damaged[40] ^= 1
    mixed = [b"2008 a line", None, *records.values, bytes(damaged)]
    partition = Partition(TOKENS, 0)
    pipeline = pipeline_of(of_tokens(*SESSIONS), [partition])
    given = Records(TOKENS, 0, [*range(len(mixed))], mixed, None, [1000] * len(mixed), None)
    outputs = pipeline.process([given])
    letters = [dict(output.headers) for output in outputs if output.severity is None]
    assert [(letter["logmamba-error-offset"], letter["logmamba-error-reason"]) for letter in letters] == [
        (b"0", b"bad_tokens"),
        (b"1", b"null"),
        (str(len(mixed) - 1).encode(), b"bad_tokens"),
    ]
    plain = pipeline_of(of_tokens(*SESSIONS), [partition])
    moved = Records(TOKENS, 0, [*range(2, 2 + len(records.values))], records.values, None, [1000] * 9, None)
    good = [output for output in outputs if output.severity is not None]
    assert [output.value for output in good] == [output.value for output in plain.process([moved])]


def test_a_vocabulary_that_only_adds_reads_on_and_another_one_stops() -> None:
    tokens, _ = rekeyed(distinct(a_log(60, keys=3)), 2, 30)
    partition = Partition(TOKENS, tokens[0].partition)
    more = Vocabulary((*VOCABULARY.templates, "<*> added"))
    assert pipeline_of(of_tokens(), [partition], more).process(tokens[:1]) is not None
    other = Vocabulary(("<*> other", *VOCABULARY.templates))
    pipeline = pipeline_of(of_tokens(), [partition], other)
    with pytest.raises(
        RunError, match=r"tokens\[\d\]: the record at offset 0 has tokens of another vocabulary, sha256:"
    ):
        pipeline.process(tokens[:1])
    assert pipeline.position(partition) == 0


def test_open_sessions_of_lines_are_not_taken_for_those_of_token_records() -> None:
    lines = pipeline_of(settings(TIMED), [Partition(RAW, 0)])
    lines.process([raw(0, enumerate(distinct(a_log(20))))])
    state, *_ = lines.state(Partition(RAW, 0))
    with pytest.raises(RunError, match=r"its open sessions are of lines, which input\.format does not read"):
        pipeline_of(of_tokens(), []).open(Partition(RAW, 0), 20, 20, state)


def test_settings_of_lines_are_refused_beside_tokens() -> None:
    with pytest.raises(SettingsError, match=r"input\.max_line_bytes: is for lines, which rekey has read") as refused:
        of_tokens("input.max_line_bytes=1000", "sessions.no_key=ignore")
    assert len(refused.value.errors) == 2


def test_texts_of_lines_are_refused_beside_tokens() -> None:
    with pytest.raises(SettingsError, match=r"output\.line_text: is 200, and input\.format: tokens has no lines"):
        of_tokens("output.line_text=200")
    assert of_tokens("output.line_text=0").output.line_text == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("output.topic=log-anomaly-scores", "output.topic: log-anomaly-scores, the default of score records"),
        ("input.format=tokens", "input.format: tokens, which rekey has written already"),
    ],
)
def test_settings_of_a_scoring_worker_are_refused(override: str, message: str) -> None:
    key = (
        ("sessions.key={regex: 'blk_-?\\d+'}", "input.timestamp=null", "input.message=/message")
        if "format" in override
        else ()
    )
    with pytest.raises(SettingsError, match=message):
        rekeying(override, *key)
