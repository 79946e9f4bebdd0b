"""Settings, checkpoint and verdicts of a running worker, read again.

Settings are on SIGHUP, the checkpoint also when its files have changed, and verdicts of operators as they come.

What takes time happens in a thread beside the loop; what is ready is taken by the loop (`worker.delivery.protocols`,
`Reloads`). What a restart would refuse is refused here, and so is a checkpoint that differs from the settings in more
than the one before: nobody may be looking. The worker then goes on with what it had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import structlog
from pydantic import BaseModel

from worker.delivery.feedback_topic import FeedbackTopic
from worker.errors import RunError, SettingsError
from worker.observability.log import set_log_level
from worker.observability.metrics import Metrics
from worker.observability.status import ReloadStatus
from worker.processing.feedback import Feedback
from worker.processing.fit import check_fit
from worker.processing.pipeline import Pipeline
from worker.processing.score_records import Serialize, iso_now
from worker.processing.scorer import Scorer, checkpoint_stamp, read_checkpoint, scorer_of
from worker.settings.document import Settings

if TYPE_CHECKING:
    from detector.checkpoint import Checkpoint

_TAKEN: Final = ("model.checkpoint", "observability.log_level")  # and all of the section scoring
_LOOK_EVERY_S: Final = 5.0
_FEEDBACK_EVERY_S: Final = 1.0
_LAST_READ_S: Final = 2.0  # that the end waits for what is being read

_log = structlog.get_logger(__name__)


class _Source(NamedTuple):
    """Settings, and the files of their checkpoint as they were when it was read."""

    settings: Settings
    stamp: object


class _Read(NamedTuple):
    """What the thread has read.

    `checkpoint` is None where the one that scores is still the right one; `asked` is False where files had changed.
    """

    source: _Source
    checkpoint: Checkpoint | None
    asked: bool


class _Due(NamedTuple):
    """What the loop is to go over to."""

    source: _Source
    scorer: Scorer
    pipeline: Pipeline


class Reload:
    """Of one worker; `worker.delivery.protocols.Reloads`, between `watching` and its end.

    Args:
        settings: that the worker begins with.
        read: reads them again; raises `SettingsError`.
        look_every_s: how often the checkpoint's files are looked at. They count as changed when two looks find the same
            change: a directory that is just being copied is left alone.
        feedback_every_s: how often verdicts are looked for.

    Attributes:
        latest: what became of the latest reload.
    """

    def __init__(
        self,
        settings: Settings,
        read: Callable[[], Settings],
        look_every_s: float = _LOOK_EVERY_S,
        feedback_every_s: float = _FEEDBACK_EVERY_S,
    ) -> None:
        self.latest: ReloadStatus | None = None
        self._read_settings = read
        self._look_every_s, self._feedback_every_s = look_every_s, feedback_every_s
        self._wishes: SimpleQueue[Literal["read", "end"]] = SimpleQueue()  # whose `put` a signal may interrupt
        self._source = _Source(settings, None)  # of what scores
        self._lock = Lock()
        self._ready: _Read | None = None
        self._due: _Due | None = None
        self._over = Event()
        self._feedback: Feedback | None = None  # that holds
        self._latest_feedback: Feedback | None = None  # that was read; the thread puts one in place of another

    @property
    def settings(self) -> Settings:
        """Those that hold now; to be asked in any thread."""
        return self._source.settings

    def ask(self, *_: object) -> None:
        """Have settings and checkpoint read again; a signal's handler."""
        self._wishes.put("read")

    @contextmanager
    def watching(
        self,
        scorer: Scorer,
        stamp: object,
        metrics: Metrics,
        serialize: Serialize | None,
        feedback: FeedbackTopic | None = None,
    ) -> Iterator[None]:
        """Read again what was asked for, or has changed, while the block runs.

        Args:
            scorer: that the worker begins with.
            stamp: of its checkpoint's files before they were read (`checkpoint_stamp`).
            metrics: what is counted.
            serialize: makes the values of the worker's score records, whichever checkpoint scores.
            feedback: where verdicts come from, of which the worker begins with those that were read; None for nowhere.
        """
        self._scorer, self._metrics, self._serialize = scorer, metrics, serialize
        del scorer  # kept here, it would outlive the next one's coming
        self._source = self._source._replace(stamp=stamp)
        threads = [Thread(target=self._watch, name="logmamba-reload", daemon=True)]
        if feedback is not None:
            self._feedback = self._latest_feedback = feedback.feedback
            metrics.feedback(self._feedback.counts())
            threads.append(Thread(target=self._follow, args=(feedback,), name="logmamba-feedback", daemon=True))
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._wishes.put("end")
            self._over.set()
            for thread in threads:
                thread.join(_LAST_READ_S)

    # -- in the threads --------------------------------------------------------------------------------------------

    def _follow(self, topic: FeedbackTopic) -> None:
        unread = False
        while not self._over.wait(self._feedback_every_s):
            try:
                self._latest_feedback = topic.look()
            except RunError as error:
                if not unread:
                    _log.warning("feedback_unread", reason=str(error), kept="the verdicts that are known")
                unread = True
            else:
                unread = False

    def _watch(self) -> None:
        tried = before = self._source.stamp
        while True:
            wish: Literal["read", "end", "look"]
            try:
                wish = self._wishes.get(timeout=self._look_every_s)
            except Empty:
                wish = "look"
            if wish == "end":
                return
            settings = self._wanted() if wish == "read" else self._newest()
            if settings is None:
                continue
            now = checkpoint_stamp(settings)
            if wish == "read" or (now == before and now not in (tried, self._source.stamp)):
                tried = self._read(settings, asked=wish == "read")
            before = now

    def _wanted(self) -> Settings | None:
        """The settings that hold, with what may change of those that are read again; None where they are refused."""
        try:
            new = self._read_settings()
        except SettingsError as error:
            _log.error("settings_refused", errors=error.errors, kept="those that the worker runs with")
            self._ended("refused", None, "; ".join(error.errors))
            return None
        old = self._source.settings
        level = new.observability.log_level
        set_log_level(level)
        _log.info("settings_read_again", log_level=level)
        if waiting := [path for path in _changed(old, new) if path not in _TAKEN and not path.startswith("scoring.")]:
            _log.warning("settings_need_restart", changed=waiting, kept=_values(old, waiting))
        return old.model_copy(
            update={
                "model": old.model.model_copy(update={"checkpoint": new.model.checkpoint}),
                "observability": old.observability.model_copy(update={"log_level": level}),
                "scoring": new.scoring,
            }
        )

    def _newest(self) -> Settings:
        """The settings that hold, or that will once the loop comes to it."""
        with self._lock:
            waiting = self._ready or self._due
        return self._source.settings if waiting is None else waiting.source.settings

    def _read(self, settings: Settings, *, asked: bool) -> object:
        """Read the checkpoint, unless it is the one that scores; returns the stamp of what was read."""
        old = self._source
        while True:
            stamp, checkpoint = checkpoint_stamp(settings), None
            try:
                if (settings.model.checkpoint, stamp) != (old.settings.model.checkpoint, old.stamp):
                    checkpoint = read_checkpoint(settings)
            except Exception as error:  # whatever is wrong with a new one, the old one goes on
                if checkpoint_stamp(settings) == stamp:
                    self._refused(error, None)
                    return stamp
            else:
                break
        if checkpoint is not None and checkpoint.digest == self._scorer.checkpoint:
            checkpoint = None
        with self._lock:
            self._ready = _Read(_Source(settings, stamp), checkpoint, asked)
        return stamp

    # -- in the loop -----------------------------------------------------------------------------------------------

    def due(self) -> Pipeline | None:
        """The pipeline to go over to now, if any."""
        if self._ready is not None:
            with self._lock:
                read, self._ready, self._due = self._ready, None, None
            self._due = self._prepared(read)
        held = self._feedback if self._due is None else self._due.pipeline.feedback
        if self._latest_feedback is not held:
            self._due = self._judged_anew(self._due)
        return None if self._due is None else self._due.pipeline

    def _judged_anew(self, due: _Due | None) -> _Due:
        """What is due, or what scores, by the latest verdicts."""
        source, scorer = (self._source, self._scorer) if due is None else (due.source, due.scorer)
        return _Due(source, scorer, self._pipeline(source.settings, scorer))

    def _pipeline(self, settings: Settings, scorer: Scorer) -> Pipeline:
        return Pipeline(settings, scorer, self._metrics, serialize=self._serialize, feedback=self._latest_feedback)

    def _prepared(self, read: _Read) -> _Due | None:
        settings, old = read.source.settings, self._source.settings
        if read.checkpoint is None and settings.scoring == old.scoring:
            self._source = read.source
            if read.asked or (self.latest is not None and self.latest.result == "waiting"):
                self._ended("taken", self._scorer.checkpoint)
            return None
        digest = self._scorer.checkpoint if read.checkpoint is None else read.checkpoint.digest
        try:
            # Here and not in the thread: a call of CUDA's from another one may spoil the capture of a graph.
            scorer = self._scorer if read.checkpoint is None else scorer_of(settings, read.checkpoint)
            pipeline = self._pipeline(settings, scorer)
            known = check_fit(old, self._scorer.vocabulary, self._scorer.reading, parsed=False, times=True)
            if worse := [each for each in pipeline.misfits if each not in known]:
                raise SettingsError(worse)
        except Exception as error:  # likewise
            self._refused(error, digest)
            return None
        self.latest = ReloadStatus("waiting", iso_now(), digest)
        return _Due(read.source, scorer, pipeline)

    def taken(self, seconds: float) -> None:
        """What was due is what the worker goes on with; the change took so long."""
        assert self._due is not None
        (source, scorer, pipeline), self._due = self._due, None
        read_again = source is not self._source or scorer is not self._scorer
        self._source, self._scorer = source, scorer
        if pipeline.feedback is not None and pipeline.feedback is not self._feedback:
            self._feedback = pipeline.feedback
            counts = self._feedback.counts()
            self._metrics.feedback(counts)
            _log.info("feedback_taken", version=self._feedback.version, patterns=counts, seconds=round(seconds, 3))
        if read_again:
            scoring = source.settings.describe()["scoring"]
            _log.info("reload_taken", checkpoint=scorer.checkpoint, scoring=scoring, seconds=round(seconds, 3))
            self._ended("taken", scorer.checkpoint)

    def refused(self, error: Exception) -> None:
        """The worker goes on with what it had."""
        assert self._due is not None
        digest, self._due = self._due.scorer.checkpoint, None
        self._refused(error, digest)

    def _refused(self, error: Exception, checkpoint: str | None) -> None:
        reason = "; ".join(error.errors) if isinstance(error, SettingsError) else str(error)
        _log.error("reload_refused", reason=reason, kept=self._scorer.checkpoint)
        self._ended("refused", checkpoint, reason)

    def _ended(self, result: Literal["taken", "refused"], checkpoint: str | None, reason: str | None = None) -> None:
        self._metrics.reloaded(result)
        self.latest = ReloadStatus(result, iso_now(), checkpoint, reason)


def _changed(old: Settings, new: Settings) -> Iterator[str]:
    """The paths of settings that differ, but for the section alert, which is not the worker's."""
    for section in Settings.model_fields:
        before, after = getattr(old, section), getattr(new, section)
        if section == "alert":
            continue
        if isinstance(before, BaseModel):
            for name, info in type(before).model_fields.items():
                if getattr(before, name) != getattr(after, name):
                    yield f"{section}.{info.alias or name}"
        elif section == "kafka":
            names = sorted({*before, *after})
            yield from (f"kafka.{name}" for name in names if before.get(name) != after.get(name))
        elif before != after:
            yield section


def _values(settings: Settings, paths: list[str]) -> dict[str, object]:
    """Settings by their paths, secrets hidden; None where one is not set."""
    described = settings.describe()
    found: dict[str, object] = {}
    for path in paths:
        section, _, name = path.partition(".")
        values = described[section]
        found[path] = values.get(name) if isinstance(values, dict) else values
    return found
