"""`logmamba verdicts`: the families of sessions that stand out, and what people say of them.

A verdict becomes part of the checkpoint and counts from then on, without training anew: a family judged normal is no
alarm any more, one judged anomalous is a critical one. A worker that runs takes it within seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from rich import box
from rich.console import Console
from rich.table import Table

from detector.errors import CheckpointError, InputFileError
from worker.commands.terminal.text import shown
from worker.files.answer_files import read_rows
from worker.formats.printable import printable

if TYPE_CHECKING:
    from detector.checkpoint import Checkpoint
    from detector.scoring.families import Families, Family, Verdict

SCHEMA = "logmamba.verdicts/1"

# Answers in a file; at the terminal their first letters.
_TAKEN_BACK = "none"
_MOST_EVENTS_SHOWN = 30


class Answer(NamedTuple):
    """What was said of a family; None takes an earlier verdict back."""

    family: str
    verdict: Verdict | None


def families_of(directory: Path) -> Checkpoint:
    """The checkpoint with its families.

    Raises:
        CheckpointError: it is missing or damaged, or learnt nothing of the kind.
    """
    from detector.checkpoint import load

    checkpoint = load(directory)
    if checkpoint.judge is None:
        raise CheckpointError(
            f"{directory} has no families: it was trained with labels, with --normals or by an older version; train "
            "without both on logs as they come"
        )
    return checkpoint


def as_json(checkpoint: Checkpoint) -> bytes:
    """One JSON object (schema `logmamba.verdicts/1`) with every family, the largest first."""
    assert checkpoint.judge is not None, "families_of has seen to that"
    judge, vocabulary = checkpoint.judge, checkpoint.vocabulary
    families = [
        {
            "family": each.name,
            "sessions": each.sessions,
            "taken_for_normal": each.accepted,
            "verdict": each.verdict,
            "judged_on": each.judged_on,
            "reason": each.words,
            "breaks": [
                {
                    "kind": way.kind,
                    "template": vocabulary.text(way.token),
                    "related_to": vocabulary.text(way.other) if way.other else None,
                }
                for way in each.ways
            ],
            "examples": [
                {"session": example.key, "events": [vocabulary.text(token) for token in example.events]}
                for example in each.examples
            ],
        }
        for each in judge.families.all
    ]
    document = {
        "schema": SCHEMA,
        "checkpoint": checkpoint.digest,
        "sessions": judge.tolerances.sessions,
        "families": families,
    }
    return orjson.dumps(document)


def as_table(checkpoint: Checkpoint) -> Table:
    """The families for a terminal, an example each."""
    assert checkpoint.judge is not None, "families_of has seen to that"
    families = checkpoint.judge.families.all
    table = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False)
    table.add_column("family", no_wrap=True)
    table.add_column("sessions", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("example", no_wrap=True, max_width=30, overflow="ellipsis")
    table.add_column("what stands out", ratio=1)
    for each in families:
        table.add_row(
            each.name,
            f"{each.sessions:,}",
            _state(each),
            shown(each.examples[0].key) if each.examples else "",
            printable(each.words),
        )
    return table


def read_answers(path: Path) -> list[Answer]:
    """Answers of a file: CSV with the columns `family` and `verdict`, or a JSON object with these keys a line.

    A verdict is `normal`, `anomalous` or, to take one back, `none`; empty ones are no answers.

    Raises:
        InputFileError: naming the line that is none.
    """
    return [answer for number, row in read_rows(path, _lacking) if (answer := _answer(path, number, row)) is not None]


def learn(directory: Path, answers: list[Answer], *, today: str | None = None) -> str:
    """Make answers part of a checkpoint; all of them or none.

    Args:
        directory: of the checkpoint.
        answers: the later of two on one family counts.
        today: ISO date to note; None for today's in UTC.

    Returns:
        The digest of the checkpoint as it is now.

    Raises:
        CheckpointError: as `families_of`, or it cannot be written.
        InputFileError: there is no such family.
    """
    from detector.checkpoint import save_verdicts
    from detector.scoring.judge import Judge

    checkpoint = families_of(directory)
    assert checkpoint.judge is not None, "families_of has seen to that"
    on = datetime.now(UTC).date().isoformat() if today is None else today
    families: Families = checkpoint.judge.families
    for answer in answers:
        try:
            families = families.judged(answer.family, answer.verdict, on)
        except ValueError as error:
            raise InputFileError(f"verdict on {answer.family!r}: {error}") from error
    return save_verdicts(directory, Judge(checkpoint.judge.tolerances, families, checkpoint.judge.rising))


def ask(directory: Path, console: Console, ask_for: Callable[[str], str]) -> list[Answer]:
    """Answers from a terminal, about the families without a verdict, the largest first.

    Args:
        directory: of the checkpoint.
        console: shows a family and its example.
        ask_for: shows a prompt and gives what was typed; an EOFError is as good as `quit`.

    Raises:
        CheckpointError: as `families_of`.
    """
    checkpoint = families_of(directory)
    assert checkpoint.judge is not None, "families_of has seen to that"
    answers: list[Answer] = []
    for family in checkpoint.judge.families.all:
        if family.verdict is not None:
            continue
        sessions = "session" if family.sessions == 1 else "sessions"
        console.print(f"\n{family.name}: {family.sessions:,} {sessions}, {_state(family)}", highlight=False)
        console.print(printable(family.words), markup=False, highlight=False)
        for example in family.examples[:1]:
            console.print(f"for example {printable(example.key)}:", markup=False, highlight=False)
            for token in example.events[:_MOST_EVENTS_SHOWN]:
                console.print(shown(f"  {checkpoint.vocabulary.text(token)}"))
            if len(example.events) > _MOST_EVENTS_SHOWN:
                console.print("  …")
        said = _typed(ask_for)
        if said == "q":
            break
        if said != "s":
            answers.append(Answer(family.name, "normal" if said == "n" else "anomalous"))
    return answers


def _typed(ask_for: Callable[[str], str]) -> str:
    """The first letter of an answer."""
    while True:
        try:
            said = ask_for("[n]ormal, [a]nomalous, [s]kip or [q]uit? ").strip().lower()
        except EOFError:
            return "q"
        if any(said and word.startswith(said) for word in ("normal", "anomalous", "skip", "quit")):
            return said[0]


def _state(family: Family) -> str:
    return family.verdict or ("taken for normal" if family.accepted else "set aside")


def _lacking(columns: Collection[str]) -> str | None:
    absent = {"family", "verdict"} - set(columns)
    return f"no column {' and '.join(sorted(absent))}; allowed: family,verdict" if absent else None


def _answer(path: Path, number: int, row: dict[str, Any]) -> Answer | None:
    family, verdict = row.get("family"), row.get("verdict")
    if verdict is None or verdict == "":
        return None
    if not isinstance(family, str) or not family:
        raise InputFileError(f"{path}, line {number}: names no family")
    if verdict == "normal" or verdict == "anomalous":
        return Answer(family, verdict)
    if verdict == _TAKEN_BACK:
        return Answer(family, None)
    raise InputFileError(f"{path}, line {number}: verdict {verdict!r}; allowed: normal, anomalous, {_TAKEN_BACK}")
