"""Whether a checkpoint fits the settings that it is to score with.

A score says how unusual a session is among sessions like those of the training, so what forms sessions and reads lines
has to be as it was there. A checkpoint records that (`detector.reading.ReadingRecord`): every setting of `input`,
`sessions` and `tokenizer` that has a part in it, so a new setting is recorded and compared without being named here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pydantic import JsonValue

from detector.reading import ReadingRecord
from detector.text.canonical import Mask
from detector.text.vocabulary import Kind, Vocabulary
from worker.errors import SettingsError
from worker.settings.document import Settings
from worker.settings.shapes import LinePart
from worker.settings.values import flow_yaml

_SECTIONS = ("input", "sessions", "tokenizer")
# Where records come from, what becomes of those without a key, and what only bounds a worker: no session is another.
_WITHOUT_A_PART = frozenset(
    [
        *("input.topics", "input.start", "input.on_lost_offsets"),
        *("sessions.no_key", "sessions.max_open", "sessions.idle_flush"),
    ]
)
# What reads lines and finds their keys. Of token records that was done before, by rekey, which compares just these.
_OF_LINES = ("input.", "tokenizer.", "sessions.key")
_BY_TIME = ("sessions.gap", "sessions.max_age")
_OF_TIMES = frozenset([*_BY_TIME, "sessions.max_future_skew"])
_NAMED: Mapping[Kind, str] = {"lines": "raw log lines", "events": "parsed sessions"}


def reading_record(settings: Settings, *, times: bool) -> ReadingRecord:
    """What a checkpoint that is trained with these settings remembers; `times` is whether the events have times."""
    return ReadingRecord(_reading(settings), times)


def check_fit(
    settings: Settings,
    vocabulary: Vocabulary,
    trained: ReadingRecord | None,
    *,
    parsed: bool,
    times: bool,
    sessions: bool = True,
) -> tuple[str, ...]:
    """Compare a checkpoint with the settings and the kind of input.

    Args:
        settings: of the application.
        vocabulary: the checkpoint's.
        trained: how its sessions came about; None where that is not known.
        parsed: the input holds parsed sessions rather than raw lines.
        times: its events have times.
        sessions: they form sessions here; where they do not, only what reads lines counts.

    Returns:
        A line for each difference that shifts scores, with both values and the setting's path.

    Raises:
        SettingsError: with a line for each difference that leaves no score meaningful.
    """
    given: Kind = "events" if parsed else "lines"
    if given != vocabulary.kind:
        # The one kind's templates are not the other's: every event would be unknown, and nothing would tell.
        raise SettingsError(
            [
                f"model.checkpoint: {settings.model.checkpoint} was trained on {_NAMED[vocabulary.kind]}, but the "
                f"input is {_NAMED[given]}; allowed: a checkpoint trained on {_NAMED[given]}"
            ]
        )
    refused = list(_masks(settings, vocabulary.masks))
    if parsed:
        differences = []
    elif trained is None:
        differences = [
            "model.checkpoint: does not record how its sessions were formed (it is of an older version), so whether "
            "these settings fit it is not known"
        ]
    else:
        here = _reading(settings)
        if settings.input.tokens:
            here = {path: value for path, value in here.items() if not path.startswith(_OF_LINES)}
        elif not sessions:
            here = {path: value for path, value in here.items() if path.startswith(_OF_LINES)}
        # What a training by an older version did not record, it did as the default says.
        there = _reading(Settings()) | trained.settings
        if "sessions.key" in here:
            refused += _other_keys(here, there)
        if sessions:
            refused += _other_times(here, there, times=times, trained_with_times=trained.times)
        differences = list(_differences(here, there, times=times))
    if refused:
        raise SettingsError(refused)
    return tuple(differences)


def _reading(settings: Settings) -> dict[str, JsonValue]:
    described = settings.describe()
    found: dict[str, JsonValue] = {}
    for section in _SECTIONS:
        values = described[section]
        assert isinstance(values, dict)
        found |= {path: value for name, value in values.items() if (path := f"{section}.{name}") not in _WITHOUT_A_PART}
    # A name of a format is nothing but the settings that it stands for.
    found["input.format"] = "json" if settings.input.documents else "text"
    if not settings.input.documents and not isinstance(settings.input.message, LinePart):
        del found["input.message"]
    return found


def _masks(settings: Settings, masks: Sequence[Mask]) -> Iterator[str]:
    wanted = [(mask.pattern, mask.name) for mask in settings.tokenizer.masks]
    if wanted and wanted != [(mask.pattern, mask.name) for mask in masks]:
        yield (
            "tokenizer.masks: differ from those the checkpoint was trained with; allowed: default (the "
            "checkpoint's own), or the same list"
        )


def _other_keys(here: Mapping[str, JsonValue], there: Mapping[str, JsonValue]) -> Iterator[str]:
    mine, other = here["sessions.key"], there["sessions.key"]
    kinds = [next(iter(key)) if isinstance(key, dict) else key for key in (mine, other)]
    if kinds[0] != kinds[1]:
        yield (
            f"sessions.key: {flow_yaml(mine)} is another kind of key than the checkpoint was trained with, "
            f"{flow_yaml(other)}; allowed: the same kind, or a checkpoint trained with this one"
        )


def _other_times(
    here: Mapping[str, JsonValue], there: Mapping[str, JsonValue], *, times: bool, trained_with_times: bool
) -> Iterator[str]:
    if times == trained_with_times:
        return
    ending = here if times else there
    rules = " and ".join(f"{path} {flow_yaml(ending[path])}" for path in _BY_TIME if ending[path] is not None)
    if rules and times:
        yield (
            f"input.timestamp: events have times here, so {rules} can end a session, but the checkpoint was trained "
            f"on lines without times (input.timestamp: {flow_yaml(there['input.timestamp'])}), where none could; "
            "allowed: a checkpoint trained with times, or null for both"
        )
    elif rules:
        yield (
            f"input.timestamp: {flow_yaml(here['input.timestamp'])}, so these lines have no times, but the checkpoint "
            f"was trained with times ({flow_yaml(there['input.timestamp'])}), where {rules} could end a session; "
            "allowed: a timestamp that the lines hold, or a checkpoint trained without"
        )


def _differences(here: Mapping[str, JsonValue], there: Mapping[str, JsonValue], *, times: bool) -> Iterator[str]:
    for path, mine in here.items():
        other = there.get(path, None if path == "input.message" else mine)
        # Masks are judged by those of the vocabulary, and without times no rule of times has a part.
        if mine != other and path != "tokenizer.masks" and (times or path not in _OF_TIMES):
            yield (
                f"{path}: {flow_yaml(mine)}, but the checkpoint was trained with {flow_yaml(other)}, "
                "which shifts scores"
            )
