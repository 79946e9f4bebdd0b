"""`logmamba drift`: how far files, or what the input topics hold, have drifted from the training of a checkpoint."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from detector.quality.fingerprint import BLOCK, LEAST_BLOCKS
from worker.commands.capture import capture_records
from worker.commands.score import ScoredFiles, scored_files
from worker.errors import RunError
from worker.files.input_files import open_inputs
from worker.formats.printable import printable
from worker.observability.metrics import Metrics
from worker.observability.status import NO_FINGERPRINT, DriftStatus
from worker.processing.pipeline import Pipeline
from worker.processing.scorer import Scorer
from worker.settings.document import Settings

_STYLES = {"ok": "green", "watch": "yellow", "retrain": "red"}


def drift_of_files(
    settings: Settings,
    scorer: Scorer,
    inputs: Sequence[Path],
    progress: Callable[[int], object] = lambda _bytes: None,
    tell: Callable[[str], object] = lambda _line: None,
) -> tuple[DriftStatus, ...]:
    """How far the sessions of files have drifted at their end, as a worker would say it there.

    Args:
        settings: of the application.
        scorer: with the checkpoint.
        inputs: raw logs or captured records, which are one stream, or parsed sessions.
        progress: told how many bytes of raw logs were read since the last call.
        tell: told what does not quite fit and which lines were refused, a line each.

    Raises:
        InputFileError: an input cannot be read, or the inputs hold no session.
        RunError: the checkpoint has no fingerprint of its training.
        SettingsError: settings that do not fit the checkpoint or the input.
    """
    if scorer.fingerprint is None:
        raise RunError(f"model.checkpoint: {settings.model.checkpoint} has {NO_FINGERPRINT}")
    files = open_inputs(settings, inputs)
    settings = settings.model_copy(update={"scoring": settings.scoring.model_copy(update={"early": False})})
    pipeline = Pipeline(settings, scorer, Metrics(), parsed=files.parsed, times=files.times)
    for note in (*files.notes, *pipeline.misfits):
        tell(note)
    deque(scored_files(pipeline, files, ScoredFiles(), progress, tell), maxlen=0)
    return pipeline.drift() or ()


def drift_of_topics(
    settings: Settings,
    scorer: Scorer,
    *,
    records: int | None = None,
    since: int | None = None,
    tell: Callable[[str], object] = lambda _line: None,
) -> tuple[DriftStatus, ...]:
    """The same of what the input topics hold, partition after partition; it reads beside every consumer group.

    Args:
        settings: of the application.
        scorer: with the checkpoint.
        records: only the newest so many.
        since: only those from this time of Kafka's on, in ms.
        tell: as of `drift_of_files`.

    Raises:
        RunError: as `capture_records` and `drift_of_files`.
    """
    with tempfile.TemporaryDirectory() as folder:
        captured = Path(folder) / "records.jsonl.gz"
        if not capture_records(settings, captured, records=records, since=since):
            raise RunError("input.topics: there are no such records")
        return drift_of_files(settings, scorer, [captured], tell=tell)


def show(found: Sequence[DriftStatus], out: Console) -> None:
    """Print a table for people, and below it what each verdict is for and what moved most."""
    table = Table("topic", "verdict", "sessions", "unknown", "new", "churn", box=SIMPLE_HEAD)
    for each in found:
        verdict = each.verdict or "too few sessions"
        shares = (f"{share:.1%}" for share in (each.unknown, each.new, each.churn))
        table.add_row(
            Text(printable(each.topic)), Text(verdict, _STYLES.get(verdict, "dim")), f"{each.sessions:,}", *shares
        )
    out.print(table)
    for each in found:
        for line in _words(each):
            out.print(Text(line), soft_wrap=True)


def _words(drift: DriftStatus) -> Iterator[str]:
    since = f" since {drift.since}" if drift.since else ""
    because = f", for its {' and '.join(drift.because)}" if drift.because else ""
    few = f"too few sessions for a verdict, which takes {LEAST_BLOCKS * BLOCK}"
    yield f"{printable(drift.topic)}: {drift.verdict or few}{since}{because}"
    yield "  divergence " + ", ".join(f"{name} {value:.3f}" for name, value in drift.divergence.items())
    for each in drift.moved:
        yield f"  {each.before:4.0%} to {each.now:4.0%} of sessions: {printable(each.template)}"
    for wait in drift.pauses:
        yield f"  {wait.before_ms:,.0f} to {wait.now_ms:,.0f} ms before: {printable(wait.template)}"
