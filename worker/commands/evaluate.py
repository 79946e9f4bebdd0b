"""`logmamba evaluate`: read, score, say how good the scores are, write it down.

`metrics.json` (schema `logmamba.evaluation/1`) is one object: the checkpoint, the inputs and the options, the fields of
`detector.quality.evaluation.Evaluation` with everything below them by its own name, and in `worst_misses`,
`worst_false_alarms` and `highest_scores` (of sessions without a label) lists of
`worker.commands.evaluation.examples.Example`. `decides` says which of `labelled` is what the labels are about, and
`learnt_from` the share of the sessions that the training had (null where the checkpoint does not tell).
`expected_warnings` is the share of normal sessions of another time that are warnings by the training, without labels
(null likewise). No name changes or goes without a new version.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import orjson
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from detector.quality.evaluation import Evaluation, evaluate
from detector.quality.operating_points import BEST, Quality
from detector.quality.session_sketch import share_known
from detector.sessions_file import ANOMALOUS, NORMAL, UNLABELLED, is_sessions_file, read_labels
from worker.commands.evaluation.examples import examples
from worker.commands.evaluation.page import render
from worker.commands.evaluation.plots import plots
from worker.commands.evaluation.sessions import ReadSessions, read_evaluated_sessions, score_sequences
from worker.errors import RunError
from worker.processing.fit import reading_record
from worker.processing.scorer import Scorer
from worker.settings.document import Settings

SCHEMA: Final = "logmamba.evaluation/1"
METRICS_FILE: Final = "metrics.json"
PAGE_FILE: Final = "index.html"


def evaluate_checkpoint(
    settings: Settings,
    scorer: Scorer,
    inputs: Sequence[Path],
    labels: Path | None,
    report: Path,
    *,
    normal_weight: float,
    seed: int,
    console: Console,
    at: datetime | None = None,
) -> None:
    """Evaluate a checkpoint; write `metrics.json` and `index.html` into `report`.

    They have the same bytes for the same input, but for the time that stands in the page.

    Args:
        settings: `input`, `sessions`, `tokenizer` and the fixed thresholds of `scoring` are used.
        scorer: of the checkpoint.
        inputs: raw logs or parsed sessions.
        labels: CSV of labels by session key; None for the label column of parsed sessions, or for none.
        report: directory, made when it is not there.
        normal_weight: how many sessions of the stream each normal one stands for.
        seed: of the bootstrap and of the baselines.
        console: for the progress and the summary.
        at: when; None for now.

    Raises:
        InputFileError: an input or the labels cannot be read, or the inputs hold no session.
        SettingsError: settings that do not fit the checkpoint or the input.
        RunError: the report cannot be written.
    """
    known = None if labels is None else read_labels(labels)
    try:
        report.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{report}: cannot be made: {error.strerror}") from error
    parsed = is_sessions_file(inputs[0])
    own_labels = parsed and labels is None  # each row its own; every other label is that of a key
    thresholds = {"warning": settings.scoring.warning, "critical": settings.scoring.critical}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        reading = bar.add_task("bytes read", total=sum(path.stat().st_size for path in inputs if path.is_file()))
        read = read_evaluated_sessions(
            settings,
            scorer,
            inputs,
            known,
            lambda count: bar.advance(reading, count),
            lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True),
        )
        scoring = bar.add_task("distinct sequences scored", total=len(read.sessions.sequences))
        scores = score_sequences(
            scorer, read.sessions.sequences, read.least, thresholds, lambda count: bar.advance(scoring, count)
        )
    with console.status("figures, bootstrap and baselines"):
        evaluation = evaluate(
            read.sessions,
            scores,
            thresholds=thresholds,
            vocabulary_size=len(scorer.vocabulary),
            normal_weight=normal_weight,
            seed=seed,
        )
        final, label = scores.final[read.sessions.sequence], read.sessions.labels
        alert = final >= thresholds["warning"]
        by_key = evaluation.labelled is not None and evaluation.labelled.by_key is not None and not own_labels
        document = {
            "schema": SCHEMA,
            "checkpoint": scorer.checkpoint,
            "vocabulary": scorer.vocabulary.sha256,
            "inputs": list(read.inputs),
            "thresholds": thresholds,
            "normal_weight": normal_weight,
            "seed": seed,
            "refused_lines": read.refused,
            "unmatched_labels": read.unmatched_labels,
            "decides": "by_key" if by_key else "by_session",
            "learnt_from": None if scorer.trained_sketch is None else share_known(scorer.trained_sketch, read.hashes()),
            "expected_warnings": scorer.expected_warnings,
            **{field.name: getattr(evaluation, field.name) for field in fields(evaluation)},
            "worst_misses": examples(read, scores, scorer, (label == ANOMALOUS) & ~alert, highest=False),
            "worst_false_alarms": examples(read, scores, scorer, (label == NORMAL) & alert, highest=True),
            "highest_scores": examples(read, scores, scorer, label == UNLABELLED, highest=True),
        }
        page = render(
            document,
            plots(evaluation, thresholds),
            parsed=parsed,
            labels=None if labels is None else labels.name,
            settings={} if parsed else reading_record(settings, times=True).settings,
            at=at or datetime.now(UTC),
        )
    _write(report / METRICS_FILE, orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    _write(report / PAGE_FILE, page.encode())
    _describe(read, evaluation, document, console)
    console.print(f"Report: {report / PAGE_FILE}", highlight=False, markup=False, soft_wrap=True)


def _write(path: Path, content: bytes) -> None:
    """Beside its final place first: what is there is whole."""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror}") from error


def _describe(read: ReadSessions, evaluation: Evaluation, document: Mapping[str, Any], console: Console) -> None:
    sessions = ", ".join(f"{count:,} {kind}" for kind, count in evaluation.sessions.items())
    console.print(
        f"{sum(evaluation.sessions.values()):,} sessions ({sessions}), {evaluation.distinct_sequences:,} distinct "
        f"sequences",
        highlight=False,
    )
    if read.unmatched_labels:
        console.print(f"{read.unmatched_labels:,} labels are of sessions that the input does not hold")
    if document["learnt_from"]:
        console.print(
            f"{document['learnt_from']:.0%} of these sessions were in the training: that says little of others",
            highlight=False,
        )
    if (expected := document["expected_warnings"]) is not None:
        shares = evaluation.alerts["warning"]
        whose = "normal" if "normal" in shares else "unlabelled"
        happened = f"{shares[whose]:.2%} of the {whose} sessions are warnings; " if whose in shares else ""
        console.print(f"{happened}the training expected {expected:.2%} of normal ones", highlight=False)
    labelled = evaluation.labelled
    if labelled is None:
        table = Table("at or above", *(f"{kind} sessions" for kind in evaluation.sessions))
        for severity, shares in evaluation.alerts.items():
            table.add_row(severity, *(f"{share:.3%}" for share in shares.values()))
    else:
        table = Table(box=SIMPLE_HEAD, padding=0)
        table.add_column("detector", no_wrap=True)
        table.add_column("at", no_wrap=True)
        for name in ("prec.", "recall", "F1", "misses", "false", "best", "AUPRC"):
            table.add_column(name, justify="right", no_wrap=True)
        rows = [("logmamba", labelled.by_session)]
        if labelled.by_key is not None:
            rows.append(("logmamba, by key", labelled.by_key))
        for name, quality in reversed(rows) if document["decides"] == "by_key" else rows:
            _rows(table, name, quality)
        for baseline in labelled.baselines:
            _rows(table, baseline.name, baseline.quality)
    console.print(table)


def _rows(table: Table, name: str, quality: Quality) -> None:
    """A row for each threshold that was fixed beforehand; the first one also has what does not depend on it."""
    whole = [f"{quality.operating[BEST].f1.value:.4f}", f"{quality.auprc.value:.4f}"]
    for at, point in quality.operating.items():
        if at != BEST:
            rates = (f"{rate.value:.4f}" for rate in (point.precision, point.recall, point.f1))
            table.add_row(name, at, *rates, f"{point.misses:,}", f"{point.false_alarms:,}", *whole)
            name, whole = "", []
