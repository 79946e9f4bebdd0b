"""Session keys tried on a sample, by the worker's own decoder and sessions, and how good each of them is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median_high

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from detector.text.mining import learn_vocabulary
from detector.text.tokenizer import Tokenizer
from detector.text.vocabulary import Vocabulary
from worker.commands.suggestion.key_ideas import KeyIdea, Kind
from worker.commands.suggestion.sample import SampleStream
from worker.files.log_files import closed_sessions
from worker.files.refusals import Refusals
from worker.processing.decoder import Decoder
from worker.processing.lines import Reason
from worker.processing.session_columns import ClosedSession
from worker.processing.session_rules import SessionRules
from worker.settings.sections import InputSettings, SessionsSettings

_LEARNT_FROM = 20_000
_ENDLESS = {"gap": None, "max_age": None, "max_events": 1_000_000, "max_open": 100_000_000}

# What a key of each kind is worth where it does all that a key can do: whoever looks for what went wrong asks for a
# request before a process, for a process before a machine.
_WORTH: dict[Kind, float] = {
    "work": 1.0,
    "id": 0.9,
    "records": 0.85,
    "process": 0.8,
    "thread": 0.6,
    "client": 0.65,
    "host": 0.5,
    "name": 0.5,
    "number": 0.35,
}
_LEAST_COVERAGE = 0.5
_LEAST_KEYS = 3
_PASSING = 0.05  # of the sample: what comes for less of it, and not again, is an id of some work
_LEAST_PASSING = 20
_UNVARIED = 0.35  # of the worth is left where no key has two different events
_SPREAD = 0.3  # and of a key whose events are in several partitions


class _Texts:
    """Takes the tokenizer's place: keeps the messages."""

    def __init__(self) -> None:
        self.arrays: list[pa.Array] = []

    def encode(self, lines: pa.Array) -> npt.NDArray[np.int64]:
        self.arrays.append(lines)
        return np.zeros(len(lines), np.int64)


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of the sample with a key.

    Attributes:
        sessions: those that formed.
        events, keyless: how many lines are events, and how many have no key.
        refused: of the lines that were refused for another reason, a line each reason.
    """

    sessions: Sequence[ClosedSession]
    events: int
    keyless: int
    refused: Sequence[str]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A session key and how good it is.

    Attributes:
        idea: what it is.
        coverage: share of the events that have it.
        keys: how many there are.
        typical: events of a key, the median.
        largest: share of the events that the commonest one has.
        varied: share of the events whose key has events of two kinds or more.
        lasting: for how much of the sample a key comes again and again, the median.
        spread: share of the keys whose events are in several partitions.
        score: from 0 to 1.
    """

    idea: KeyIdea
    coverage: float
    keys: int
    typical: int
    largest: float
    varied: float
    lasting: float
    spread: float
    score: float


class Trials:
    """Tries session keys on a sample.

    Args:
        sample: the lines.
        source: how they are read.

    Attributes:
        texts: what makes the templates of the events.
        vocabulary: of these templates.
        refused: of the lines that were refused for another reason than their key, a line each reason.
    """

    def __init__(self, sample: SampleStream, source: InputSettings) -> None:
        self._sample = sample
        self._source = source
        texts = _Texts()
        self.refused = self._run({"key": "partition"}, texts, Vocabulary(())).refused
        self.texts = [text for array in texts.arrays for text in array.to_pylist()]
        first = pa.array(self.texts[:_LEARNT_FROM], pa.string())
        self.vocabulary = learn_vocabulary([first])

    def run(self, sessions: dict[str, object]) -> Trial:
        """Form the sessions that these settings of `sessions` say."""
        return self._run(sessions, Tokenizer(self.vocabulary), self.vocabulary)

    def endless(self, key: object) -> Trial:
        """Form sessions that nothing but the sample's end ends: one a key and partition."""
        return self.run({"key": key, **_ENDLESS})

    def ranked(self, ideas: Iterable[KeyIdea]) -> list[Candidate]:
        """The keys that make sessions, the best first; of those that make the same sessions the first."""
        found = []
        seen = set()
        for idea in ideas:
            trial = self.endless(idea.key)
            alike = hash(tuple(sorted(tuple(closed.session.offsets) for closed in trial.sessions)))
            candidate = self._candidate(idea, trial)
            if candidate.score and alike not in seen:
                found.append(candidate)
            seen.add(alike)
        return sorted(found, key=lambda candidate: -candidate.score)

    @staticmethod
    def _candidate(idea: KeyIdea, trial: Trial) -> Candidate:
        sizes = Counter[str]()
        varied = 0
        partitions: dict[str, int] = Counter()
        for closed in trial.sessions:
            session = closed.session
            sizes[session.key] += len(session)
            partitions[session.key] += 1
            varied += len(session) * (len(set(session.tokens)) > 1)
        events, keys = max(1, trial.events), max(1, len(sizes))
        found = Candidate(
            idea=idea,
            coverage=trial.events / max(1, trial.events + trial.keyless),
            keys=len(sizes),
            typical=median_high(sizes.values()) if sizes else 0,
            largest=max(sizes.values(), default=0) / events,
            varied=varied / events,
            lasting=_lasting(trial),
            spread=sum(each > 1 for each in partitions.values()) / keys,
            score=0.0,
        )
        return _scored(_passing(found))

    def _run(self, sessions: dict[str, object], encoder: Tokenizer | _Texts, vocabulary: Vocabulary) -> Trial:
        rules = SessionsSettings.model_validate(sessions)
        decoder = Decoder(self._source, rules, encoder)
        refusals = Refusals(self._sample)
        reasons: Counter[Reason] = Counter()
        closed: list[ClosedSession] = []
        events = 0
        for step in closed_sessions(self._sample, decoder, SessionRules.of(rules, vocabulary)):
            refusals.add(step)
            closed += step.closed
            if step.events is not None:
                events += len(step.events.keys)
                reasons.update(letter.reason for letter in step.events.dead_letters)
        keyless = reasons["no_key"] + reasons["bad_key"] + reasons["long_key"]
        return Trial(closed, events, keyless, [line for line in refusals.described() if "(sessions.key)" not in line])


def _lasting(trial: Trial) -> float:
    """The median of the shares of the sample that lie between the first and the last event of a key with several."""
    lengths = [each.session.offsets[-1] - each.session.offsets[0] for each in trial.sessions if len(each.session) > 1]
    most = max((each.session.offsets[-1] for each in trial.sessions), default=0)
    return median_high(lengths) / max(1, most) if lengths else 1.0


def _passing(candidate: Candidate) -> Candidate:
    """What looked like a machine's name is an id where many of them come for a short while, and never again."""
    idea = candidate.idea
    many = candidate.keys >= _LEAST_PASSING and candidate.typical > 1 and candidate.varied > _LEAST_COVERAGE
    if idea.kind not in ("name", "number") or not many or candidate.lasting >= _PASSING:
        return candidate
    what = f"{idea.what.split(':')[0]}: an id, which comes for a while and not again"
    return replace(candidate, idea=replace(idea, what=what, kind="id"))


def _scored(candidate: Candidate) -> Candidate:
    least_keys = 2 if candidate.idea.kind in ("host", "name", "records") else _LEAST_KEYS
    if candidate.coverage < _LEAST_COVERAGE or candidate.keys < least_keys:
        return candidate
    score = _WORTH[candidate.idea.kind] * candidate.coverage
    score *= _UNVARIED + (1 - _UNVARIED) * candidate.varied
    score *= 1 - max(0.0, candidate.largest - 0.5)
    score *= 1 - (1 - _SPREAD) * candidate.spread
    return replace(candidate, score=score)
