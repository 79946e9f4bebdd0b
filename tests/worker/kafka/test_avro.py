"""Score records in Avro: the same as in JSON, by a schema registry that is asked once."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

import numpy as np
import pytest

from detector.scoring.reasons import Reason
from tests.worker.alerting.receiving import score_record
from tests.worker.kafka.registry import SchemaRegistry
from tests.worker.processing.test_score_records import (
    CHECKPOINT,
    PARTITION,
    SESSION,
    SURPRISES,
    THRESHOLDS,
    VOCABULARY,
    encode,
)
from worker.commands.explain_record import read_score_record
from worker.errors import RunError
from worker.kafka.avro import score_reader, score_writer
from worker.processing.feedback import Applied
from worker.processing.origins import Origins
from worker.processing.records import Partition
from worker.processing.score_records import ScoreEncoder
from worker.settings.document import Settings, load_settings

pytest.importorskip("confluent_kafka.schema_registry.avro", reason="too old a client", exc_type=ImportError)


@pytest.fixture
def registry() -> Iterator[SchemaRegistry]:
    with SchemaRegistry() as made:
        yield made


def settings(url: str, *overrides: str) -> Settings:
    registry = f"output.schema_registry={{url: '{url}'}}"
    return load_settings(None, ["output.format=avro", registry, *overrides], {"LOGIN": "me:secret"})


def test_a_record_reads_as_the_same_json_that_it_would_be(registry: SchemaRegistry) -> None:
    use = settings(registry.url)
    made = ScoreEncoder(
        vocabulary=VOCABULARY,
        checkpoint=CHECKPOINT,
        top_events=2,
        worker="blue",
        max_message_bytes=65_536,
        cloud_events="shop",
        serialize=score_writer(use),
    )
    values = []
    applied = Applied("counts 0123456789ab", "anomalous", "warning")
    told = {"reason": Reason("Twice.", "F1"), "applied": applied, "retracts": ["warning", "critical"]}
    origins = Origins.of([Partition("raw", 0), Partition("raw", 2)], np.array([0, 1, 0, 0]), np.array([7, 3, 8, 9]))
    with_texts = told | {"texts": [None, b"a line", b"", None]}
    for more in ({}, told, with_texts, told | {"origins": origins}):
        arguments = {"kind": "final", "closed_by": "gap", "score": 0.1, "thresholds": THRESHOLDS, **more}
        value, _, headers, shown = made.encode(PARTITION, SESSION, SURPRISES, cause_offset=320, events=4, **arguments)
        values.append((value, encode(SESSION, SURPRISES, score=0.1, **more)[0]))  # type: ignore[arg-type]
        assert shown == (values[-1][1] if more else None)
        assert dict(headers)["content-type"] == b"application/avro"
    assert registry.requests == ["POST /subjects/log-anomaly-scores-value/versions"], "no record waits for the registry"
    with score_reader(use) as read:
        for value, expected in values:
            assert value.startswith(b"\0\0\0\0\1")
            assert len(value) < len(expected) / 1.5
            assert read(value) == expected
            assert read(expected) == expected, "records from before are read as well"
    assert registry.requests[1:] == ["GET /schemas/ids/1"]
    assert read_score_record(use, values[0][0]).events == 4


def test_what_is_no_record_is_left_as_it_is(registry: SchemaRegistry) -> None:
    writer = score_writer(settings(registry.url))
    assert writer is not None
    whole = writer(json.loads(score_record("a")))
    with score_reader(settings(registry.url)) as read:
        assert json.loads(read(whole) or b"") == json.loads(score_record("a"))
        for value in (None, b"", b"\0", b"\0\0\0\0\x09abc", whole[:40], whole[:5]):
            assert read(value) == value


def test_a_registry_that_cannot_be_used_is_one_clear_line(registry: SchemaRegistry) -> None:
    def refusal(use: Settings) -> str:
        with pytest.raises(RunError) as refused:
            score_writer(use)
        assert "secret" not in str(refused.value)
        return str(refused.value).removeprefix(f"output.schema_registry: {registry.url}")

    closed = SchemaRegistry()
    closed.close()
    assert f"{closed.url} does not answer" in refusal(settings(closed.url))
    missing = f"output.schema_registry={{url: '{registry.url}', auto.register.schemas: false}}"
    assert "has no such schema for log-anomaly-scores-value; register it" in refusal(settings("http://x", missing))
    registry.compatible = False
    assert "has a schema that this one is not compatible with" in refusal(settings(registry.url))
    registry.compatible, registry.authorization = True, f"Basic {base64.b64encode(b'me:secret').decode()}"
    assert ": refuses the login" in refusal(settings(registry.url))
    login = f"output.schema_registry={{url: '{registry.url}', basic.auth.user.info: '${{LOGIN}}'}}"
    assert score_writer(settings("http://x", login)) is not None
    missing = r"output\.schema_registry: is missing, and log-anomaly-scores holds records in Avro"
    with score_reader(load_settings(None)) as read, pytest.raises(RunError, match=missing):
        read(b"\0\0\0\0\1")
