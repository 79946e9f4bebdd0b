"""What is made of many sessions at once is what is made of each alone, byte for byte, whatever the settings."""

from __future__ import annotations

import gzip
import math
import zlib
from array import array
from collections.abc import Callable, Sequence
from hashlib import sha256
from itertools import accumulate, islice
from random import Random
from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from detector.scoring.reasons import Reason
from detector.scoring.scores import EventScores, Scores
from detector.text.mining import learn_vocabulary
from detector.text.vocabulary import Vocabulary
from tests.shared import shared
from tests.worker.processing.pipeline_of_objects import PipelineOfObjects
from tests.worker.processing.said import verdicts_on
from tests.worker.small_worker import INPUT, OddScorer
from tests.worker.small_worker import settings as small_settings
from worker.observability.metrics import Metrics
from worker.processing import record_loop as loop
from worker.processing.adaptive import AdaptiveState
from worker.processing.clock import NO_TIME
from worker.processing.feedback import Feedback
from worker.processing.origins import MOST_OFFSET, Origins
from worker.processing.outputs import Output
from worker.processing.pipeline import Pipeline
from worker.processing.record_columns import BY_BITS, NOT_CLOSED, Form, RecordColumns, Told
from worker.processing.records import Partition, Records
from worker.processing.score_records import DECIMALS, MOST_LINES, Encoded, ScoreEncoder, Thresholds, iso_time
from worker.processing.session_columns import CLOSED_BY, ClosedSession, ClosedSessions
from worker.processing.session_state import Session
from worker.processing.sha256_loop import DIGEST_BYTES, digests
from worker.settings.document import Settings, load_settings

VOCABULARY = Vocabulary(("<*> open", "<*> read", "<*> odd", "<*> close"))
PARTITIONS = (Partition(INPUT, 0), Partition(INPUT, 1))


# Two sessions before the thresholds change.
NEARLY_A_BLOCK = AdaptiveState(
    checkpoint=OddScorer.checkpoint,
    target_rate=0.05,
    sessions=98,
    highest=tuple(0.5 + 0.005 * number for number in range(50)),
    proposed=((0.55, 0.9),) * 4,
)


class RandomScorer(OddScorer):
    """Scores that rise and fall at random, a pure function of the tokens."""

    def score(
        self,
        sequences: Sequence[bytes],
        unfinished: Sequence[bytes] = (),
        after_pass: Callable[[], None] = lambda: None,
    ) -> list[EventScores]:
        results: list[EventScores] = []
        for number, sequence in enumerate((*sequences, *unfinished)):
            n = len(sequence) // 8
            seeds = [zlib.crc32(sequence[: 8 * events]) for events in range(1, n + 1)]
            shares = np.array([seed % 1_009 / 1_008 for seed in seeds]) ** 3
            surprises = np.array([seed % 53 / 7 for seed in seeds], np.float32)
            final = float(shares[-1]) if number < len(sequences) else np.nan
            results.append(EventScores(surprises, shares.astype(np.float32), final))
        after_pass()
        return results

    def reason(self, sequence: bytes) -> Reason | None:
        return Reason("It is as it is.", "F1") if len(sequence) % 16 else None


class Step(NamedTuple):
    """A record: key, word, by how much its time goes on; and whether a batch ends with it."""

    key: str
    word: str
    later_ms: int | None
    ends_batch: bool


def random_steps(seed: int) -> list[Step]:
    random = Random(seed)
    keys, laters = ["a", "b", "c", 'd"\\', "é\x07", "f\x7f😀"], [0, 1, 1, 700, 3_000, -400, None]
    if random.random() < 0.3:
        laters.append(9_000_000)
    words, ends = ["open", "read", "odd", "close", "unheard of"], [False] * random.choice([2, 20]) + [True]
    return [
        Step(random.choice(keys), random.choice(words), random.choice(laters), random.choice(ends))
        for _ in range(random.randint(1, 250))
    ]


rules = st.fixed_dictionaries(
    {
        "sessions.gap": st.sampled_from(["2s", "1h"]),
        "sessions.max_events": st.sampled_from(["1", "3", "100", "100"]),
        "sessions.max_open": st.sampled_from(["2", "100", "100"]),
        "sessions.end_events": st.sampled_from(["[]", "['<*> close']"]),
        "scoring.early": st.sampled_from(["true", "false"]),
        "scoring.adaptive": st.sampled_from(["null", "{target_rate: 0.05}"]),
        "scoring.warning": st.sampled_from(["0.2", "0.7"]),
        "output.include": st.sampled_from(["all", "alerts"]),
        "output.top_events": st.sampled_from(["0", "1", "3"]),
        "output.line_text": st.sampled_from(["0", "0", "9"]),
        "output.cloud_events": st.sampled_from(["false", "false", "true"]),
    }
)


def settings(of: dict[str, str]) -> Settings:
    fixed = {
        "sessions.key": r"{regex: '^(\S+)'}",
        "input.timestamp": r"{pattern: ' at (\S+)$', format: epoch_ms}",
        "scoring.critical": "0.8",
    }
    return load_settings(None, [f"{name}={value}" for name, value in (fixed | of).items()])


def batches(stream: Sequence[Step]) -> list[list[Records]]:
    """By batches, the records of two partitions."""
    found: list[list[Records]] = []
    pending: list[list[tuple[int, bytes, int]]] = [[], []]
    ends, now = [0, 0], 1_226_262_975_000
    for at, step in enumerate(stream):
        now += step.later_ms or 0
        told = f" at {now}" if step.later_ms is not None else ""
        which = at % 3 % 2
        pending[which].append((ends[which], f"{step.key} {step.word}{told}".encode(), now + 5))
        ends[which] += 1
        if step.ends_batch or at == len(stream) - 1:
            found.append(
                [
                    Records(INPUT, number, [row[0] for row in rows], [row[1] for row in rows], None, times, None)
                    for number, rows in enumerate(pending)
                    if (times := [row[2] for row in rows])
                ]
            )
            pending = [[], []]
    return found


def run(pipeline: Pipeline, stream: Sequence[list[Records]], live_from: int, reopen_at: int) -> list[Any]:
    """What comes of each batch, the state then, and what comes of the end; before one batch it is opened anew."""
    found: list[Any] = []
    for partition in PARTITIONS:
        pipeline.open(partition, live_from=live_from, thresholds=NEARLY_A_BLOCK)
    for number, batch in enumerate(stream):
        if number == reopen_at:
            for partition in PARTITIONS:
                state = pipeline.state(partition)
                pipeline.open(partition, pipeline.position(partition), live_from, *state)
        found.append([shown(output) for output in pipeline.process(batch)])
    for partition in PARTITIONS:
        found.append(pipeline.state(partition))
        found.append([shown(output) for output in pipeline.flush(partition, 10_000, "idle")])
    return found


def shown(output: Output) -> tuple[Any, ...]:
    own = [(name, value) for name, value in output.headers if name != "logmamba-scored-at"]
    return output.severity, output.key, output.value, own, output.caused_at_ms, output.alert


# Sessions that go on after they have alarmed, and are open at the end.
LASTING = {"sessions.gap": "1h", "scoring.warning": "0.2", "scoring.early": "true"}


@examples(max_examples=60, deadline=None)
@example(seed=1, rules=LASTING, live_from=0, reopen_at=3, start=None, serialize=None, feedback=None)
@example(seed=2, rules=LASTING, live_from=0, reopen_at=3, start=None, serialize=None, feedback=None)
@given(
    seed=st.integers(0, 2**32),
    rules=rules,
    live_from=st.sampled_from([0, 0, 20]),
    reopen_at=st.integers(0, 20),
    start=st.sampled_from([None, None, 3]),
    serialize=st.sampled_from([None, None, orjson.dumps]),
    feedback=st.none() | verdicts_on(VOCABULARY),
)
def test_outputs_and_counts_are_those_of_a_pipeline_that_judges_every_score_alone(
    seed: int,
    rules: dict[str, str],
    live_from: int,
    reopen_at: int,
    start: int | None,
    serialize: Any,
    feedback: Feedback | None,
) -> None:
    results = []
    for kind in (Pipeline, PipelineOfObjects):
        metrics = Metrics()
        pipeline = kind(settings(rules), RandomScorer(VOCABULARY), metrics, serialize=serialize, feedback=feedback)
        if start is not None:
            pipeline.origin = lambda partition, _first: (Partition("file.log", partition.partition), start)
        found = run(pipeline, batches(random_steps(seed)), live_from, reopen_at)
        counts = metrics.registry.get_sample_value("logmamba_scores_total", {"kind": "final", "severity": "normal"})
        results.append((found, counts, metrics.score_histogram.tolist()))
    assert results[0] == results[1]


def test_an_output_has_the_time_of_the_record_that_caused_it_in_its_own_partition() -> None:
    pipeline = Pipeline(small_settings("sessions.max_events=1"), OddScorer(), Metrics())
    for partition in PARTITIONS:
        pipeline.open(partition)

    def caused_at(first: int, *times: list[int]) -> list[int | None]:
        """Of the outputs of a batch, whose records have these times in each partition."""
        batch = [
            Records(INPUT, number, [*range(first, first + len(of))], [b"a open"] * len(of), None, of, None)
            for number, of in enumerate(times)
        ]
        return [output.caused_at_ms for output in pipeline.process(batch)]

    caused_at(0, [10, 11, 12], [20, 21, 22])  # the clocks wait for these to agree
    assert caused_at(3, [30, 31], [40, 41]) == [30, 31, 40, 41]
    assert caused_at(5, [50], [60]) == [50, 60]


@pytest.mark.parametrize("early", ["true", "false"])
def test_real_lines_give_the_same_outputs_too(early: str) -> None:
    with gzip.open(shared("data/hdfs/raw.log.gz")) as file:
        lines = [line.rstrip(b"\n") for line in islice(file, 12_000)]
    vocabulary = learn_vocabulary([pa.array(lines[:2_000], pa.binary()).cast(pa.string())])
    use = load_settings(
        None,
        [
            r"input.timestamp={pattern: '^(\d{6} \d{6})', format: '%y%m%d %H%M%S'}",
            *("sessions.gap=1m", "scoring.warning=0.5", "scoring.critical=0.9", f"scoring.early={early}"),
        ],
    )
    results = []
    for kind in (Pipeline, PipelineOfObjects):
        pipeline = kind(use, RandomScorer(vocabulary), Metrics())
        pipeline.open(PARTITIONS[0])
        outputs = []
        for begin in range(0, len(lines), 2_500):
            part = lines[begin : begin + 2_500]
            offsets = [*range(begin, begin + len(part))]
            outputs += pipeline.process([Records(INPUT, 0, offsets, part, None, offsets, None)])
        results.append([shown(output) for output in outputs])
    assert results[0] == results[1]
    assert len(results[0]) > 1_000
    assert {row[0] for row in results[0]} == {"normal", "warning", "critical"}


# -- the records themselves ------------------------------------------------------------------------------------------

tokens = st.one_of(st.integers(0, len(VOCABULARY) - 1), st.integers(-(2**62), -1))
surprises = st.one_of(
    st.floats(0, 40, width=32),
    st.floats(0, 2.0**-13, width=32),
    st.sampled_from([0.0, -0.0, 1e-6, 0.5, 9.99999, 1e9, 1e30, float("inf"), float("nan")]),
)
times = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-62_135_596_900_000, 253_402_300_900_000))
events = st.tuples(tokens, st.integers(0, 2**63 - 1), times, surprises)


@st.composite
def closed_sessions(draw: st.DrawFn) -> tuple[ClosedSession, list[float]]:
    rows = draw(st.lists(events, min_size=1, max_size=30))
    columns = (array("q", column) for column in list(zip(*rows, strict=True))[:3])
    session = Session.from_columns(
        draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=20)),
        **dict(zip(("tokens", "offsets", "times"), columns, strict=True)),
        opened_at=0,
        last_at=0,
        order=1,
    )
    closed = ClosedSession(
        session, draw(st.integers(0, 2**63 - 1)), draw(st.sampled_from(CLOSED_BY)), 0, draw(st.integers(0, 3))
    )
    return closed, [row[3] for row in rows]


class Wanted(NamedTuple):
    """A record: of which session it is, and what it says of it."""

    session: int
    events: int
    score: float
    closed_by: int
    start: int
    form: int
    reason: int
    retracts: int


def told(wanted: Sequence[Wanted], closed: Sequence[ClosedSession]) -> Told:
    sessions, events, scores, closed_by, starts, forms, reasons, retracts = map(np.array, zip(*wanted, strict=True))
    causes, nth = (np.array(column)[sessions] for column in zip(*((each[1], each[4]) for each in closed), strict=True))
    return Told(sessions, events, scores, causes, closed_by, nth, starts, forms, reasons, retracts)


def many(
    encoder: ScoreEncoder,
    wanted: Sequence[Wanted],
    closed: Sequence[ClosedSession],
    scores: Any,
    origins: Origins | None = None,
) -> Any:
    sessions = ClosedSessions.of(closed).sessions
    return RecordColumns(encoder).encode(sessions, Scores.of(scores), told(wanted, closed), FORMS, REASONS, origins)


def alone(
    encoder: ScoreEncoder, each: Wanted, closed: ClosedSession, scores: EventScores, origins: Origins | None = None
) -> Encoded:
    form = FORMS[each.form]
    return encoder.encode(
        form.partition,
        closed.session,
        scores,
        kind=form.kind,
        closed_by=None if each.closed_by == NOT_CLOSED else CLOSED_BY[each.closed_by],
        cause_offset=closed.cause_offset,
        events=each.events,
        score=each.score,
        thresholds=form.thresholds,
        reason=REASONS[each.reason],
        retracts=BY_BITS[each.retracts],
        nth=closed.nth,
        start=each.start,
        origins=origins,
    )


LOW, HIGH = Thresholds(0.7, 0.95), Thresholds(0.700001, 1.0)
FORMS = (
    Form(Partition('a "topic"', 3), LOW, "final", "normal"),
    Form(Partition("other", 0), HIGH, "final", "normal"),
    Form(Partition("other", 0), LOW, "early", "warning"),
    Form(Partition("other", 0), LOW, "final", "critical"),
)
OF_SEVERITY = {"normal": st.floats(0, 0.69), "warning": st.floats(0.71, 0.94), "critical": st.floats(0.96, 1)}
REASONS = (None, Reason('It is "so".', "F1"), Reason("é\n", "F2"))


@examples(max_examples=200, deadline=None)
@given(
    of=st.lists(closed_sessions(), min_size=1, max_size=8),
    data=st.data(),
    top_events=st.integers(0, 5),
    max_message_bytes=st.sampled_from([1_500, 65_536]),
    cloud_events=st.sampled_from([None, "app"]),
    from_tokens=st.booleans(),
)
def test_records_made_at_once_have_the_bytes_of_those_made_alone_and_only_odd_ones_are_left_out(
    of: list[tuple[ClosedSession, list[float]]],
    data: st.DataObject,
    top_events: int,
    max_message_bytes: int,
    cloud_events: str | None,
    from_tokens: bool,
) -> None:
    closed, every_surprise = zip(*of, strict=True)
    scores = [EventScores(np.array(each, np.float32), np.zeros(len(each), np.float32), 0.0) for each in every_surprise]
    wanted = []
    for session in data.draw(st.lists(st.integers(0, len(of) - 1), min_size=1, max_size=10)):
        form = data.draw(st.integers(0, len(FORMS) - 1))
        early = FORMS[form].kind == "early"
        wanted.append(
            Wanted(
                session,
                data.draw(st.integers(1, len(every_surprise[session]))),
                data.draw(OF_SEVERITY[FORMS[form].severity]),
                NOT_CLOSED if early else data.draw(st.integers(0, len(CLOSED_BY) - 1)),
                0 if from_tokens else data.draw(st.sampled_from([0, 0, 7])),
                form,
                data.draw(st.integers(0, 0 if early else len(REASONS) - 1)),
                data.draw(st.integers(0, 0 if early else 3)),
            )
        )
    encoder = encoder_of(top_events, max_message_bytes, cloud_events=cloud_events)
    ends, origins, own = [0, *accumulate(map(len, every_surprise))], None, None
    if from_tokens:
        places = data.draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, MOST_OFFSET)), min_size=1, max_size=5))
        numbers, at = np.resize(np.array(places), (ends[-1], 2)).T
        origins = Origins.of([Partition("raw", 10), Partition("raw", 9), Partition('"é', 0)], numbers, at)
    values, headers = many(encoder, wanted, closed, scores, origins)
    for row, (value, each) in enumerate(zip(values, wanted, strict=True)):
        if origins is not None:
            own = origins.select(slice(ends[each.session], ends[each.session] + each.events))
        expected = alone(encoder, each, closed[each.session], scores[each.session], own)
        assert not headers or headers[row] == expected.headers
        assert headers or not expected.headers
        if value is None:
            record = orjson.loads(expected.value)
            reduced = len(record["top_events"]) < min(top_events, each.events)
            # Of numbers within these bounds two float64s hold every sum.
            numbers = np.array(every_surprise[each.session][: each.events], np.float32)
            odd = not ((numbers == 0) | ((numbers >= 1e-9) & (numbers < 1e9))).all()
            loud = from_tokens and expected.shown is not None  # each of their events has its origin
            assert odd or reduced or loud or record["lines"] is None
        else:
            assert value == expected.value


def encoder_of(
    top_events: int, max_message_bytes: int, vocabulary: Vocabulary = VOCABULARY, cloud_events: str | None = None
) -> ScoreEncoder:
    return ScoreEncoder(
        vocabulary=vocabulary,
        checkpoint="sha256:c",
        top_events=top_events,
        worker="blue",
        max_message_bytes=max_message_bytes,
        cloud_events=cloud_events,
    )


def closed_session(events: int, token: int) -> ClosedSession:
    columns = {"tokens": [token] * events, "offsets": range(events), "times": [0] * events}
    session = Session.from_columns(
        "k", **{name: array("q", column) for name, column in columns.items()}, opened_at=0, last_at=0, order=1
    )
    return ClosedSession(session, events, "gap", 0)


def whole(number: int, closed: ClosedSession) -> Wanted:
    return Wanted(number, len(closed.session), 0.1, 0, 0, 0, 0, 0)


def test_records_too_large_to_be_made_at_once_are_left_out_and_those_around_them_are_not() -> None:
    """More than the buffer holds, more than a message may be, or more events than a record lists; many buffers full."""
    vocabulary = Vocabulary(("short", "long " + "\x01" * 60_000), kind="events")
    encoder = encoder_of(100, 900_000, vocabulary)
    shapes = [(3, 3), (1, 4), (40, 4), (3, 3), (MOST_LINES, 3), (MOST_LINES + 1, 3), (2, 3)] * 3
    closed = [closed_session(*shape) for shape in shapes]
    scores = [EventScores(np.ones(events, np.float32), np.zeros(events, np.float32), 0.1) for events, _ in shapes]
    wanted = [whole(number, each) for number, each in enumerate(closed)]
    values, _ = many(encoder, wanted, closed, scores)
    for shape, each, one, score, value in zip(shapes, wanted, closed, scores, values, strict=True):
        expected = alone(encoder, each, one, score).value
        assert (value is None) == (shape[0] > MOST_LINES or shape == (40, 4) or len(expected) > 260_000), shape
        assert value is None or value == expected


def test_the_surprises_have_to_be_those_of_the_events() -> None:
    closed, scores = closed_session(3, 3), EventScores(np.ones(2, np.float32), np.ones(2, np.float32), 0.1)
    with pytest.raises(ValueError, match="2 surprises of 3 events"):
        many(encoder_of(1, 65_536), [whole(0, closed)], [closed], [scores])


@examples(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=6))
def test_digests_are_those_of_hashlib(texts: list[bytes]) -> None:
    found = np.zeros(DIGEST_BYTES * len(texts), np.uint8)
    ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
    digests(np.frombuffer(bytearray().join(texts), np.uint8), ends, found)
    assert found.tobytes() == b"".join(sha256(text).digest() for text in texts)


def written(write: Callable[..., int], *values: Any) -> bytes:
    out = np.zeros(256, np.uint8)
    return bytes(out[: write(out, 0, *values)])


halves = st.integers(0, 10**14).map(lambda number: (number + 0.5) / 1e6)


@examples(max_examples=1_000)
@given(st.one_of(st.floats(-999_999_999, 999_999_999), st.floats(-1, 1), st.floats(0, 0.001), halves))
def test_numbers_are_written_as_orjson_writes_what_is_left_of_them(value: float) -> None:
    for near in (value, float(np.nextafter(value, np.inf)), float(np.nextafter(value, -np.inf))):
        assert written(loop.put_rounded, near) == orjson.dumps(round(near, DECIMALS))


@examples(max_examples=500)
@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 62), times)
def test_integers_and_times_are_written_as_they_are_elsewhere(value: int, bits: int, time: int) -> None:
    for each in (value, value >> bits):
        assert written(loop.put_whole, each) == b"%d" % each
    assert written(loop.put_time, time) == orjson.dumps(None if time == NO_TIME else iso_time(time))


@examples(max_examples=300)
@given(st.lists(st.floats(0, 2.0**100, width=32), min_size=1, max_size=60))
def test_a_mean_is_of_the_exact_sum_or_is_none(values: list[float]) -> None:
    found = loop.mean(np.array(values), 0, len(values))
    assert math.isnan(found) or found == math.fsum(values) / len(values)
    if max(values) < 2.0**40 * min(value for value in [*values, 2.0**100] if value):
        assert not math.isnan(found), "as those of a model are"
