"""`logmamba explain`: one session of log files, event by event, and what the model expected instead.

The session is found as the worker finds it: its files go through the same decoder and the same rules of sessions, and
its score record is made by the same pipeline. Other sessions are only passed over, not scored.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from detector.sessions_file import read_sessions
from detector.text.tokenizer import Tokenizer, event_tokens
from detector.text.vocabulary import N_SPECIAL, UNK, Vocabulary
from worker.errors import RunError
from worker.files.input_files import open_inputs
from worker.files.log_files import LogStream, closed_sessions, located, parsed_session, partition_of
from worker.files.refusals import Refusals
from worker.observability.metrics import Metrics
from worker.processing.clock import NO_TIME
from worker.processing.decoder import Decoder
from worker.processing.line_texts import TextKeeper
from worker.processing.origins import NumberedOrigins
from worker.processing.pipeline import Pipeline
from worker.processing.records import Partition
from worker.processing.score_records import DECIMALS, iso_time
from worker.processing.session_columns import ClosedSession
from worker.processing.session_rules import SessionRules
from worker.processing.session_state import SessionsState
from worker.settings.document import Settings

if TYPE_CHECKING:
    from detector.scoring.scorer import Scorer

SCHEMA = "logmamba.explanation/1"

_CLOSE_KEYS = 3
# Comparing two keys takes difflib up to a tenth of a millisecond.
_MOST_COMPARED = 1_000


@dataclass(frozen=True, slots=True)
class Expected:
    """What could have come in an event's place: a template, `<unknown>` or `<eos>`, and its probability."""

    token: int
    template: str
    probability: float


@dataclass(frozen=True, slots=True)
class ExplainedEvent:
    """An event of a session.

    Attributes:
        offset: of its record.
        origin: the raw partition of that, where the event comes from a token record.
        time: event time in ms, None where the input has none.
        text: its line, or its name in parsed sessions.
        token: what the tokenizer made of it; one of an unknown line is below `N_SPECIAL`.
        template: as the vocabulary shows the token.
        surprise: nats.
        score: of the session so far, in [0, 1].
        expected: the likeliest in its place, the likeliest first.
    """

    offset: int
    time: int | None
    text: str
    token: int
    template: str
    surprise: float
    score: float
    expected: tuple[Expected, ...]
    origin: Partition | None = None

    @property
    def unknown(self) -> bool:
        """Whether no template matches it."""
        return self.token < N_SPECIAL

    @property
    def class_(self) -> int:
        """The token that the model could have expected: UNK for every unknown line, whatever text its own carries."""
        return UNK if self.unknown else self.token


@dataclass(frozen=True, slots=True)
class UnusualCount:
    """A template that came as often as normal sessions hardly ever have it; `nats` is how much evidence that is."""

    template: str
    count: int
    nats: float


@dataclass(frozen=True, slots=True)
class ExplainedSession:
    """A session with all that is known about its score.

    Attributes:
        record: its score record, as `logmamba score` writes it with the fixed thresholds.
        events: in order.
        end_surprise: nats of the session's end.
        end_expected: the likeliest in the end's place.
        unusual_counts: the most unusual first; without labels they are what most alarms come from.
        adaptive: whether the settings have `scoring.adaptive`. A worker then judges by thresholds that it has learnt
            from the sessions before this one, which are not read here: only its own record of the session shows them.
    """

    record: dict[str, Any]
    events: tuple[ExplainedEvent, ...]
    end_surprise: float
    end_expected: tuple[Expected, ...]
    unusual_counts: tuple[UnusualCount, ...]
    adaptive: bool

    def to_json(self) -> bytes:
        """One JSON object (schema `logmamba.explanation/1`) without line breaks."""
        return orjson.dumps(
            {
                "schema": SCHEMA,
                "record": self.record,
                "events": [
                    {
                        "offset": event.offset,
                        "time": iso_time(event.time),
                        "text": event.text,
                        "template": event.template,
                        "unknown": event.unknown,
                        "surprise": event.surprise,
                        "score": event.score,
                        "expected": list(map(_expected_json, event.expected)),
                        **({} if event.origin is None else {"origin": event.origin._asdict()}),
                    }
                    for event in self.events
                ],
                "end": {
                    "surprise": self.end_surprise,
                    "score": self.record["score"],
                    "expected": list(map(_expected_json, self.end_expected)),
                },
                "unusual_counts": [
                    {"template": each.template, "count": each.count, "nats": each.nats} for each in self.unusual_counts
                ],
                "adaptive": self.adaptive,
            }
        )


def explain_sessions(
    settings: Settings,
    scorer: Scorer,
    inputs: Sequence[Path],
    key: str,
    progress: Callable[[int], object] = lambda _bytes: None,
    tell: Callable[[str], object] = lambda _line: None,
) -> Iterator[ExplainedSession]:
    """Every session of a key, in the order of their closing.

    The files are read to their ends before this returns; the sessions are explained one by one as they are taken.
    Severities are those of the fixed thresholds, also where the settings have adaptive ones.

    Args:
        settings: of the application.
        scorer: scores event sequences; its vocabulary makes the tokens.
        inputs: raw logs, which are one stream, or parsed sessions.
        key: of the session.
        progress: told how many bytes of raw logs were read since the last call.
        tell: told, before reading, what does not quite fit, and after it which lines were refused, a line each.

    Raises:
        InputFileError: an input cannot be read, or the inputs hold no session.
        RunError: no session has that key; names those whose keys are most like it.
        SettingsError: settings that do not fit the checkpoint or the input.
    """
    files = open_inputs(settings, inputs)
    pipeline = explaining_pipeline(settings, scorer, parsed=files.parsed, times=files.times)
    for note in (*files.notes, *pipeline.misfits):
        tell(note)
    seen = _Seen()
    found: list[Found] = []
    if files.parsed:
        for path in files.paths:
            found += _parsed(scorer.vocabulary, path, key, seen)
    else:
        stream = files.stream()
        refusals = Refusals(stream)
        found += _raw(settings, scorer.vocabulary, stream, key, seen, refusals, progress)
        refusals.require_events()
        for line in refusals.described():
            tell(line)
    if not found:
        raise RunError(_not_found(key, seen))
    adaptive = settings.scoring.adaptive is not None
    return (explained(pipeline, scorer, each, adaptive=adaptive) for each in found)


def explaining_pipeline(settings: Settings, scorer: Scorer, *, parsed: bool = False, times: bool = True) -> Pipeline:
    """A pipeline that makes a final record of every session, with the fixed thresholds.

    Raises:
        SettingsError: settings that do not fit the checkpoint or the input.
    """
    scoring = settings.scoring.model_copy(update={"early": False, "adaptive": None})
    output = settings.output.model_copy(update={"include": "all", "line_text": 0})  # the events have their lines
    use = settings.model_copy(update={"scoring": scoring, "output": output})
    return Pipeline(use, scorer, Metrics(), parsed=parsed, times=times)


@dataclass(slots=True)
class _Seen:
    """What was passed over on the way to a session."""

    sessions: int = 0
    keys: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Found:
    """A session that was found, with the place that its score record names and the text of each event."""

    partition: Partition
    closed: ClosedSession
    texts: list[str]
    origins: NumberedOrigins | None = None  # of the events, where they come from token records


def _raw(
    settings: Settings,
    vocabulary: Vocabulary,
    stream: LogStream,
    key: str,
    seen: _Seen,
    refusals: Refusals,
    progress: Callable[[int], object],
) -> Iterator[Found]:
    keeper = TextKeeper(Tokenizer(vocabulary, unknown=settings.tokenizer.unknown))
    decoder = Decoder(settings.input, settings.sessions, keeper)
    # By partition and offset, of events whose session is still open.
    texts: defaultdict[tuple[Partition, int], list[str]] = defaultdict(list)
    for step in closed_sessions(stream, decoder, SessionRules.of(settings.sessions, vocabulary), progress):
        refusals.add(step)
        if step.events is not None:
            keys = step.events.keys.to_pylist()
            seen.keys.update(keys)
            for row, found in enumerate(keys):
                if found == key:
                    texts[step.partition, int(step.events.offsets[row])].append(keeper.lines[row].as_py())
        seen.sessions += len(step.closed)
        for each in step.closed:
            if each.session.key == key:
                places = [(step.partition, offset) for offset in each.session.offsets]
                yield Found(*located(stream, step.partition, each), [texts[place].pop(0) for place in places])
                for place in {*places}:
                    if not texts[place]:
                        del texts[place]


def _parsed(vocabulary: Vocabulary, path: Path, key: str, seen: _Seen) -> Iterator[Found]:
    rows = read_sessions(path)
    seen.sessions += len(rows)
    seen.keys.update(rows.sessions)
    own = [row for row, each in enumerate(rows.sessions) if each == key]
    for row, tokens in zip(own, event_tokens(vocabulary, [rows.events[row] for row in own]), strict=True):
        yield Found(partition_of(path), parsed_session(key, tokens, row), list(rows.events[row]))


def explained(pipeline: Pipeline, scorer: Scorer, found: Found, *, adaptive: bool) -> ExplainedSession:
    """What is known about the score of a session."""
    vocabulary, session = scorer.vocabulary, found.closed.session
    known = None if found.origins is None else replace(SessionsState.empty(), origins=found.origins)
    pipeline.open(found.partition, sessions=known)
    [output] = pipeline.score_closed(found.partition, [found.closed])
    explanation = scorer.explain(session.tokens.tobytes())
    expected = [
        tuple(
            Expected(token, vocabulary.text(token), round(probability, DECIMALS))
            for token, probability in zip(tokens, probabilities, strict=True)
        )
        for tokens, probabilities in zip(explanation.expected.tolist(), explanation.probabilities.tolist(), strict=True)
    ]
    *surprises, end_surprise = (round(surprise, DECIMALS) for surprise in explanation.surprises.tolist())
    places: list[tuple[Partition | None, int]] = [(None, offset) for offset in session.offsets]
    if found.origins is not None:
        places = [*found.origins.origins.each()]
    columns = places, session.times, found.texts, session.tokens, surprises, explanation.scores.tolist()
    return ExplainedSession(
        record=orjson.loads(output.value or b""),
        events=tuple(
            ExplainedEvent(
                offset=offset,
                time=None if time == NO_TIME else time,
                text=text,
                token=token,
                template=vocabulary.text(token),
                surprise=surprise,
                score=round(score, DECIMALS),
                expected=instead,
                origin=origin,
            )
            for (origin, offset), time, text, token, surprise, score, instead in zip(
                *columns, expected[:-1], strict=True
            )
        ),
        end_surprise=end_surprise,
        end_expected=expected[-1],
        unusual_counts=tuple(
            UnusualCount(vocabulary.text(token), session.tokens.count(token), round(nats, DECIMALS))
            for token, nats in explanation.unusual_counts.items()
        ),
        adaptive=adaptive,
    )


def _expected_json(expected: Expected) -> dict[str, object]:
    return {"template": expected.template, "probability": expected.probability}


def _not_found(key: str, seen: _Seen) -> str:
    # Slips of the fingers leave most of a key's beginning and end as they are, and these are cheap to compare.
    alike = heapq.nlargest(_MOST_COMPARED, sorted(seen.keys), lambda other: _shared_ends(key, other))
    close = ", ".join(map(repr, get_close_matches(key, alike, _CLOSE_KEYS)))
    return f"no session {key!r} among the {seen.sessions:,} of the input; close keys: {close or 'none'}"


def _shared_ends(one: str, other: str) -> int:
    """Characters that two keys share at the beginning and at the end."""
    pairs = zip(one, other, strict=False), zip(reversed(one), reversed(other), strict=False)
    return sum(len(list(takewhile(lambda pair: pair[0] == pair[1], each))) for each in pairs)
