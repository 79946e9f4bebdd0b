"""`logmamba vocabulary`: the templates of a checkpoint or of logs, what differs between two, and both as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from detector.text.patterns import reasons
from detector.text.vocabulary import N_SPECIAL, VOCABULARY_FILE, Vocabulary
from worker.errors import RunError
from worker.files.input_files import open_inputs
from worker.files.training_set import read_vocabulary_of
from worker.settings.document import Settings


@dataclass(frozen=True, slots=True)
class ShownTemplate:
    """One template as it is shown.

    Attributes:
        id: its token.
        text: constants, and values by their types.
        lines: how many lines of the training had it; None for events, and where it is not known.
        first, last: numbers of the first and the last of them, from 0, among the lines it was learned with.
        decisive: the words that tell it from others however much else varies, and why.
        example: the first line that had it.
    """

    id: int
    text: str
    lines: int | None
    first: int | None
    last: int | None
    decisive: dict[str, str]
    example: str | None


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs between an older vocabulary and a newer one.

    Attributes:
        added: templates that only the newer one has.
        removed: templates that only the older one has.
        renumbered: templates that both have, with other tokens: (text, older token, newer token).
        masks_differ: whether lines are masked otherwise, so that equal templates may mean other lines.
        only_adds: whether the older one's tokens all mean in the newer one what they meant.
    """

    added: list[ShownTemplate]
    removed: list[ShownTemplate]
    renumbered: list[tuple[str, int, int]]
    masks_differ: bool
    only_adds: bool


def read_vocabulary(path: Path) -> Vocabulary:
    """Read the vocabulary of a checkpoint, or a vocabulary.json.

    Raises:
        RunError: it cannot be read, what is wrong with it, or it is empty.
    """
    file = path / VOCABULARY_FILE if path.is_dir() else path
    try:
        vocabulary = Vocabulary.from_json(file.read_bytes())
    except OSError as error:
        raise RunError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise RunError(f"{file}: {error}") from error
    if not vocabulary.templates:
        raise RunError(f"{file}: vocabulary has no templates")
    return vocabulary


def learn(
    settings: Settings,
    inputs: Sequence[Path],
    output: Path,
    progress: Callable[[int], object],
    tell: Callable[[str], object],
) -> Vocabulary:
    """Learn the templates of log files, or the event names of parsed sessions, and write them to a file.

    Args:
        settings: `input`, `sessions` and `tokenizer.masks` are used.
        inputs: raw logs, which are one stream, or parsed sessions.
        output: the file; an older one is replaced.
        progress: told how many bytes of the inputs were read since the last call.
        tell: told what of the inputs was refused, a line each.

    Raises:
        InputFileError: an input cannot be read, or there is nothing to learn.
        SettingsError: settings that do not fit the input.
        RunError: the output cannot be written.
    """
    vocabulary, refused = read_vocabulary_of(settings, open_inputs(settings, inputs), progress)
    for line in refused:
        tell(line)
    _write(vocabulary, output)
    return vocabulary


def merge(older: Path, newer: Path, output: Path) -> tuple[Vocabulary, int]:
    """Add the templates of a vocabulary to another one that has none for them; its own keep their ids and their lines.

    Args:
        older: directory of a checkpoint, or a vocabulary.json.
        newer: likewise.
        output: of the same kind as `older`, and it may be that: the checkpoint with the vocabulary in place of its own,
            or a vocabulary.json.

    Returns:
        The vocabulary, and how many templates of it are new.

    Raises:
        RunError: one of them cannot be read, lines become templates in another way in the newer one, or the output
            cannot be written.
        CheckpointError: the older one is no whole checkpoint, or the output none to be replaced.
    """
    was = read_vocabulary(older)
    try:
        merged = was.merged(read_vocabulary(newer))
    except ValueError as error:
        raise RunError(f"cannot merge {newer} into {older}: {error}") from error
    if older.is_dir():
        from detector.checkpoint import save_vocabulary  # loads PyTorch

        save_vocabulary(older, merged, output)
    else:
        _write(merged, output)
    return merged, len(merged.templates) - len(was.templates)


def _write(vocabulary: Vocabulary, output: Path) -> None:
    try:
        output.write_bytes(vocabulary.to_json())
    except OSError as error:
        raise RunError(f"cannot write {output}: {error.strerror}") from error


def templates_of(vocabulary: Vocabulary) -> Iterator[ShownTemplate]:
    """Yield all templates in the order of their tokens."""
    for index, text in enumerate(vocabulary.templates):
        seen = vocabulary.seen[index] if vocabulary.seen else None
        yield ShownTemplate(
            N_SPECIAL + index,
            text,
            None if seen is None else seen.lines,
            None if seen is None else seen.first,
            None if seen is None else seen.last,
            reasons(text) if vocabulary.kind == "lines" else {},
            None if seen is None else seen.example,
        )


def difference(older: Vocabulary, newer: Vocabulary) -> Difference:
    """Compare two vocabularies.

    Raises:
        RunError: one is of lines and the other of events.
    """
    if older.kind != newer.kind:
        raise RunError(f"one vocabulary is of {older.kind}, the other of {newer.kind}: they have nothing in common")
    was = {each.text: each for each in templates_of(older)}
    now = {each.text: each for each in templates_of(newer)}
    both = [text for text in was if text in now]
    return Difference(
        [each for text, each in now.items() if text not in was],
        [each for text, each in was.items() if text not in now],
        [(text, was[text].id, now[text].id) for text in both if was[text].id != now[text].id],
        older.masks != newer.masks,
        newer.only_adds_to(older),
    )


def as_json(shown: ShownTemplate | Difference) -> str:
    """Return one line of JSON."""
    return orjson.dumps(shown).decode()
