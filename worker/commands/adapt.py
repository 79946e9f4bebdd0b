"""`logmamba adapt`: learn from recent traffic, and let the new checkpoint score where it is no worse.

`logmamba rollback` goes back (`worker.commands.rollback`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import orjson
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from detector.training.bounds import MOST_TEMPLATES
from worker.commands.capture import capture_records
from worker.commands.feedback import verdicts_of
from worker.commands.terminal.stage_lines import StageLines
from worker.errors import SettingsError, WorkerError
from worker.files.input_files import open_inputs
from worker.files.recent_traffic import RecentTraffic, read_recent_traffic
from worker.files.training_set import for_validation
from worker.formats.printable import printable
from worker.processing.feedback import read_feedback_file
from worker.processing.fit import check_fit
from worker.processing.scorer import checkpoint_place
from worker.settings.document import Settings

if TYPE_CHECKING:
    from detector.checkpoint import Checkpoint
    from detector.history import Change
    from detector.scoring.families import Verdict
    from detector.training.data import TrainingSessions
    from detector.training.gate import Figure
    from detector.training.loop import TrainingProgress
    from detector.training.renewal import Renewal, RenewalOptions

SCHEMA: Final = "logmamba.adaptation/1"
_EPOCH: Final = date(1970, 1, 1).toordinal()
_LISTED: Final = 8  # changes and templates that are shown of each kind


class NotAdapted(WorkerError):
    """There is no new checkpoint, for a reason that is no failure: it would be worse, or nothing may be learnt.

    Args:
        reason: why.
        renewal: what was refused, where it came so far.
    """

    def __init__(self, reason: str, renewal: Renewal | None = None) -> None:
        super().__init__(reason)
        self.renewal = renewal

    def to_json(self) -> bytes:
        """One JSON object, schema `logmamba.adaptation/1`."""
        return _json(self.renewal, {"taken": False, "reason": str(self)})


@dataclass(frozen=True)
class Traffic:
    """Where recent traffic is.

    Attributes:
        inputs: files; none for the input topics.
        since: of the topics, records from this time of Kafka's on, in ms.
        records: and of those the newest so many.
    """

    inputs: Sequence[Path] = ()
    since: int | None = None
    records: int | None = None


@dataclass(frozen=True)
class Adapted:
    """What came of it.

    Attributes:
        renewal: of the model.
        version: name of the new version; None where it was only tried, or is worse.
        was: name of the version before.
    """

    renewal: Renewal
    version: str | None
    was: str | None

    def told(self) -> str:
        """What became of the checkpoint."""
        if self.version is None:
            return f"it would be checkpoint {self.renewal.digest}; nothing was changed"
        return (
            f"{self.version} scores in place of {self.was}, checkpoint {self.renewal.digest}; workers take it within "
            "seconds"
        )

    def to_json(self) -> bytes:
        """One JSON object, schema `logmamba.adaptation/1`."""
        outcome = {"taken": self.version is not None, "version": self.version, "was": self.was}
        return _json(self.renewal, {**outcome, "checkpoint": self.renewal.digest})


def _json(renewal: Renewal | None, outcome: dict[str, object]) -> bytes:
    did = {} if renewal is None else {**asdict(renewal.adaptation), "figures": renewal.figures}
    return orjson.dumps({"schema": SCHEMA, **outcome, **did})


def adapt_checkpoint(
    settings: Settings,
    traffic: Traffic,
    *,
    older: Sequence[Path] = (),
    feedback: Path | None = None,
    options: RenewalOptions,
    resume: bool = False,
    dry_run: bool = False,
    console: Console,
) -> Adapted:
    """Learn from recent traffic and, where the new checkpoint is no worse, let it take the old one's place.

    Args:
        settings: `model.checkpoint`, and `input`, `sessions` and `tokenizer`, by which sessions are formed.
        traffic: what to learn from.
        older: files of before; none for the sample that the checkpoint keeps.
        feedback: file of verdicts, as `logmamba feedback --list --json` prints them; None for those of the topic.
        options: how.
        resume: go on after a rollback.
        dry_run: say what would come of it, and leave everything as it is.
        console: told what is going on.

    Raises:
        NotAdapted: nothing was written, for a reason that was said.
        SettingsError: the settings do not fit the checkpoint or the input, or the checkpoint keeps no sample.
        RunError, InputFileError: the traffic cannot be read.
        CheckpointError: the checkpoint cannot be read or written, or was changed meanwhile.
        TrainingError, DeviceError: as for a training.
    """
    place = checkpoint_place(settings)
    from detector.checkpoint import load
    from detector.versions import Versions

    versions = Versions(place)
    with versions.changing():
        why = versions.held()
        if why is not None and not resume:
            raise NotAdapted(f"{why}; nothing is adapted until `logmamba adapt --resume` says that it may")
        parent, verdicts = load(place), _verdicts(settings, feedback)
        recent = _read(settings, traffic, parent, console)
        before = _older(settings, older, parent, recent, console)
        _describe(recent, before, parent, console)
        with versions.candidate() as candidate:
            renewal = _renewed(parent, recent, before, verdicts, candidate, options, console)
            _tell(renewal, options, console)
            if worse := renewal.worse:
                which = ", ".join(each.words for each in worse)
                raise NotAdapted(f"the checkpoint stays as it is, since the new one is worse: {which}", renewal)
            if dry_run:
                return Adapted(renewal, None, None)
            was, version = versions.take(candidate, parent)
            versions.release()
    return Adapted(renewal, version.name, was.name)


def _read(settings: Settings, traffic: Traffic, parent: Checkpoint, console: Console) -> RecentTraffic:
    """The recent sessions, from files or from the input topics."""
    if traffic.inputs:
        return _read_files(settings, traffic.inputs, parent, console, most_templates=MOST_TEMPLATES)
    with tempfile.TemporaryDirectory(prefix="logmamba-adapt-") as folder:
        captured = Path(folder) / "recent.jsonl"
        count = capture_records(settings, captured, records=traffic.records, since=traffic.since)
        _say(console, f"{count:,} records read from {', '.join(settings.input.topics)}")
        if not count:
            raise NotAdapted("the input topics hold no record of that time: there is nothing to learn from")
        return _read_files(settings, [captured], parent, console, most_templates=MOST_TEMPLATES)


def _read_files(
    settings: Settings, paths: Sequence[Path], parent: Checkpoint, console: Console, *, most_templates: int
) -> RecentTraffic:
    files = open_inputs(settings, paths)
    differences = check_fit(
        settings, parent.vocabulary, parent.manifest.reading, parsed=files.parsed, times=files.times
    )
    for note in (*files.notes, *differences):
        _say(console, note)
    seed = len(parent.manifest.history)
    return read_recent_traffic(settings, files, parent.vocabulary, most_templates=most_templates, seed=seed)


def _verdicts(settings: Settings, feedback: Path | None) -> dict[str, Verdict]:
    """What people said of patterns, in a file, or else in the topic of the settings."""
    if feedback is None and settings.feedback.topic is None:
        return {}
    said = verdicts_of(settings) if feedback is None else read_feedback_file(feedback)
    return {pattern: record.verdict for pattern, record in said.records.items()}


def _older(
    settings: Settings, paths: Sequence[Path], parent: Checkpoint, recent: RecentTraffic, console: Console
) -> TrainingSessions:
    """The sessions of before: of files, or the sample that the checkpoint keeps."""
    labelled = parent.manifest.training.mode == "labelled"
    if paths and labelled:
        raise SettingsError(
            [
                f"--older: files have no labels, and {settings.model.checkpoint} was trained with some; allowed: none, "
                "where the checkpoint keeps a sample, or a new training"
            ]
        )
    if paths:
        known = replace(parent, vocabulary=recent.vocabulary)
        return _read_files(settings, paths, known, console, most_templates=0).sessions
    if parent.replay is None:
        raise SettingsError(
            [
                f"--older: is missing, and {settings.model.checkpoint} keeps no sample of what it learnt from (it was "
                f"trained by an older version); allowed: {'a new training' if labelled else 'files of that time'}"
            ]
        )
    return parent.replay


def _say(console: Console, line: str) -> None:
    console.print(printable(line), highlight=False, markup=False, soft_wrap=True)


def _day(day: int) -> str:
    return date.fromordinal(_EPOCH + day).isoformat()


def _describe(recent: RecentTraffic, older: TrainingSessions, parent: Checkpoint, console: Console) -> None:
    sessions = recent.sessions
    first, last = _day(int(recent.days.min())), _day(int(recent.days.max()))
    when = f"of {first}" if first == last else f"from {first} to {last}"
    _say(console, f"{int(sessions.counts.sum()):,} recent sessions of {len(set(sessions.keys or ())):,} keys, {when}")
    if recent.share < 1:
        _say(console, f"these are the sessions of one in {round(1 / recent.share):,} keys: there were too many events")
    for line in recent.refused:
        _say(console, line)
    _say(console, f"{int(older.counts.sum()):,} older sessions are replayed, {len(older):,} distinct ones")
    new = recent.vocabulary.templates[len(parent.vocabulary.templates) :]
    if new:
        _say(console, f"{len(new):,} {'template is' if len(new) == 1 else 'templates are'} new:")
        for text in new[:_LISTED]:
            _say(console, f"  {text}")
        if len(new) > _LISTED:
            _say(console, f"  and {len(new) - _LISTED:,} more")


def _renewed(
    parent: Checkpoint,
    recent: RecentTraffic,
    older: TrainingSessions,
    verdicts: Mapping[str, Verdict],
    candidate: Path,
    options: RenewalOptions,
    console: Console,
) -> Renewal:
    from detector.training.renewal import Recent, TooLittle, renew

    seed = len(parent.manifest.history)
    traffic = Recent(
        recent.sessions,
        recent.days,
        recent.vocabulary,
        for_validation(recent.sessions.keys or (), seed).__contains__,
        verdicts,
        recent.pauses,
    )
    lines = StageLines(lambda line: _say(console, line))
    last: TrainingProgress | None = None

    def report(at: TrainingProgress) -> None:
        nonlocal last
        last = at
        lines.at("learning", f"step {at.step:,} of at most {at.steps:,}, loss {at.loss:.3f}")

    try:
        renewal = renew(parent, traffic, older, candidate, options=options, progress=report)
    except TooLittle as error:
        raise NotAdapted(str(error)) from None
    lines.end()
    if last is not None:
        memory = f"at most {last.peak_memory_bytes / 1e6:,.0f} MB of memory"
        _say(console, f"learnt in {timedelta(seconds=round(last.seconds))}, with {memory}")
    elif renewal.learnt:
        _say(console, "the model stays as it is: nothing that may be learnt surprises it")
    return renewal


def _tell(renewal: Renewal, options: RenewalOptions, console: Console) -> None:
    """What may change, what may not, and the figures before and after."""
    found, watched = renewal.bounded, renewal.adaptation.watched
    learnt, held = int(found.sessions.counts.sum()), int(found.held_back.counts.sum())
    if renewal.learnt:
        _say(console, f"learnt from {learnt:,} of the recent sessions")
    else:
        _say(
            console, f"{learnt:,} of the recent sessions are no alarms, too few to learn from: nothing scores otherwise"
        )
    if found.of_one_key:
        _say(console, f"{found.of_one_key:,} were beyond the share of their key")
    if held:
        _say(console, f"{held:,} are alarms and stay so; they were not learnt from:")
        _list(found.stays, console)
        _say(console, "  `logmamba verdicts learn` takes these names; what you say counts at once")
    if found.usual:
        _say(console, "no alarm any more:" if not options.planned else "no alarm any more, as you vouch for it:")
        _list(found.usual, console)
    if watched:
        most = max(len(days) for days in watched.values())
        what = "thing is" if len(watched) == 1 else "things are"
        when = f"on {most} of {options.days} days so far: alarms until then"
        _say(console, f"{len(watched):,} {what} usual but new, {when}")
    console.print(_table(renewal.figures))


def _list(changes: Sequence[Change], console: Console) -> None:
    for each in changes[:_LISTED]:
        _say(console, f"  {each.name}: {_sessions(each.sessions)}. {each.words}")
    if len(changes) > _LISTED:
        rest = sum(each.sessions for each in changes[_LISTED:])
        _say(console, f"  and {len(changes) - _LISTED:,} more, {_sessions(rest)}")


def _sessions(n: int) -> str:
    return f"{n:,} session{'' if n == 1 else 's'}"


def _table(figures: Sequence[Figure]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("compared")
    for name in ("sessions", "before", "after", ""):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for each in figures:
        before, after = (
            f"{value:.2%}" if each.kind == "share" else f"{value:.3f}" for value in (each.before, each.after)
        )
        table.add_row(each.words, f"{each.sessions:,}", before, after, "" if each.ok else "worse")
    return table
