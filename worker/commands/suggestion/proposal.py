"""The settings that `logmamba init` proposes for a sample, and how sure it is of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from detector.errors import InputFileError
from worker.commands.suggestion.endings import Endings, end_events, find_endings
from worker.commands.suggestion.key_ideas import ideas_of, preset_idea
from worker.commands.suggestion.sample import SampleStream
from worker.commands.suggestion.shapes import Shape, find_shape
from worker.commands.suggestion.trials import Candidate, Trial, Trials
from worker.files.input_files import open_inputs
from worker.processing.clock import NO_TIME
from worker.processing.documents import DocumentReader
from worker.processing.lines import Batch
from worker.settings.document import Settings
from worker.settings.sections import InputSettings, SessionsSettings
from worker.settings.session_keys import SessionKey

Sureness = Literal["sure", "fairly sure", "unsure"]

_LEAST_EVENTS = 10
_SMALL = 200
_GOOD = 0.3
_SURE, _FAIRLY_SURE = 0.66, 0.4
_DOCUMENTS = 2_000
_ALL_HAVE_IT = 0.99


@dataclass(frozen=True, slots=True)
class Proposal:
    """What was found.

    Attributes:
        sample: it is of.
        shape: how lines are read.
        chosen: the session key; None: no key is good, and sessions are windows of time.
        others: further keys that make sessions, the best first.
        sureness: that the key is what a person would choose.
        endings: when sessions end.
        trial: of the sample with all of it.
        end_events: templates that seem to end sessions.
        times: how many events have a time.
    """

    sample: SampleStream
    shape: Shape
    chosen: Candidate | None
    others: Sequence[Candidate]
    sureness: Sureness
    endings: Endings
    trial: Trial
    end_events: Sequence[str]
    times: int

    @property
    def key(self) -> object:
        """`sessions.key` as a settings file writes it."""
        return "partition" if self.chosen is None else self.chosen.idea.key

    @property
    def no_key(self) -> Literal["dead_letter", "ignore"]:
        """`sessions.no_key`: where many lines have no key, they are no sign of a fault."""
        coverage = 1.0 if self.chosen is None else self.chosen.coverage
        return "dead_letter" if coverage >= _ALL_HAVE_IT else "ignore"

    @property
    def closed_by(self) -> Counter[str]:
        """How many sessions of the trial each rule closed."""
        return Counter(closed.closed_by for closed in self.trial.sessions)


def propose(paths: Sequence[Path], name: str) -> Proposal:
    """Find settings for a sample.

    Args:
        paths: its files, which are one stream, in any order.
        name: of it, for errors.

    Raises:
        InputFileError: a file cannot be read, or too little in the sample can.
    """
    sample = SampleStream(paths, name, InputSettings())
    shape = find_shape(sample.values, name)
    source = shape.settings()
    # Now lines of one event can be joined, and the times be read by which files are put in order.
    anything = SessionsSettings(key=SessionKey("partition"))
    sample = SampleStream(open_inputs(Settings(input=source, sessions=anything), paths).paths, name, source)
    trials = Trials(sample, source)
    if not trials.texts:
        raise InputFileError(f"{name}: none of {sample.lines:,} lines can be read: {'; '.join(trials.refused)}")
    if len(trials.texts) < _LEAST_EVENTS:
        raise InputFileError(
            f"{name}: {len(trials.texts)} events in {sample.lines:,} lines are too few to tell keys and pauses from; "
            f"allowed: {_LEAST_EVENTS} or more, better some thousands"
        )
    documents: Sequence[object] = ()
    texts = trials.texts
    if source.documents:
        documents = list(islice(_documents(sample, source.split), _DOCUMENTS))
    else:
        texts = [value.decode(errors="replace") for value in sample.values[:_DOCUMENTS]]
    ideas = [*preset_idea(shape.preset, documents), *ideas_of(sample, texts, documents)]
    ranked = trials.ranked(ideas)
    chosen = _choice(ranked)
    kind = None if chosen is None else chosen.idea.kind
    key = "partition" if chosen is None else chosen.idea.key
    endings = find_endings(trials.endless(key).sessions, kind)
    trial = trials.run({"key": key, "gap": endings.gap, "max_age": endings.max_age})
    ends = end_events(trial.sessions, trials.vocabulary) if kind in ("work", "id", "process", "records") else []
    return Proposal(
        sample=sample,
        shape=shape,
        chosen=chosen,
        others=[each for each in ranked if each is not chosen],
        sureness=_sureness(chosen, len(trials.texts)),
        endings=endings,
        trial=trial,
        end_events=ends,
        times=sum(time != NO_TIME for closed in trial.sessions for time in closed.session.times),
    )


def _documents(sample: SampleStream, split: str | None) -> Iterator[object]:
    reader = DocumentReader(split, "utf-8", ())
    for records in sample.read():
        yield from reader.read(Batch([records]), ()).whole()


def _choice(ranked: Sequence[Candidate]) -> Candidate | None:
    """The best key; where none is good, what at least tells machines or the producer's records apart."""
    if ranked and ranked[0].score >= _GOOD:
        return ranked[0]
    return next(
        (
            each
            for each in ranked
            if each.idea.kind in ("records", "host", "name", "process", "client") and each.coverage >= _ALL_HAVE_IT
        ),
        None,
    )


def _sureness(chosen: Candidate | None, events: int) -> Sureness:
    if chosen is None or chosen.score < _FAIRLY_SURE:
        return "unsure"
    return "sure" if chosen.score >= _SURE and events >= _SMALL else "fairly sure"
