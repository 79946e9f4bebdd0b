"""Verdicts that a receiver answers a message with.

The answer to a POST is all that a receiver can say: nothing listens for it, and it comes from where the settings say.
It may name sessions of that very message alone, so it mutes nothing that it was not told of.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, TypeVar

import structlog
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from worker.alerting.alerts import Alert, ScoreRecord, session_id
from worker.errors import WorkerError
from worker.processing.feedback import FeedbackRecord, JudgedSession
from worker.processing.score_records import iso_now

_MOST_KEPT = 10_000  # sessions, of each kind

_Kept = TypeVar("_Kept")

_log = structlog.get_logger(__name__)


class _Verdict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    id: str
    verdict: Literal["normal", "anomalous"]
    note: Annotated[str | None, StringConstraints(max_length=2_000)] = None


class _Body(BaseModel):
    """Of an answer; whatever else a receiver says is its own."""

    model_config = ConfigDict(strict=True, frozen=True)

    feedback: Annotated[tuple[_Verdict, ...], Field(max_length=1_000)] = ()


class Answers:
    """Of one receiver.

    A session that is told of while it is open has no pattern yet: what is said of it waits for its final record, as
    long as this process runs.

    Args:
        application: its id.
        by: who answers, for the verdicts.
        say: writes one.
    """

    def __init__(self, application: str, by: str, say: Callable[[FeedbackRecord], object]) -> None:
        self._application, self._by, self._say = application, by, say
        self._open: OrderedDict[str, _Verdict] = OrderedDict()  # judged before their final record came
        self._final: OrderedDict[str, tuple[str, JudgedSession]] = OrderedDict()  # by session what may be judged yet
        self._log = _log.bind(by=by)

    def take(self, alerts: Sequence[Alert], body: bytes) -> None:
        """Take the answer to a message about these."""
        if not body.lstrip().startswith(b"{"):
            return  # a word of thanks
        try:
            found = _Body.model_validate_json(body).feedback
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            self._log.warning("answer_not_taken", reason=f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
            return
        told = {alert.id: alert for alert in alerts}
        for verdict in found:
            alert = told.get(verdict.id)
            if alert is None:
                self._log.warning("answer_not_taken", reason=f"id {verdict.id[:64]!r} is not in the message")
            elif alert.id in self._final:
                self._write(verdict, *self._final[alert.id], alert.reason)
            elif alert.kind == "early":
                _keep(self._open, alert.id, verdict)
            else:
                self._log.warning("answer_not_taken", reason="the score record names no pattern (feedback.topic)")

    def see(self, record: ScoreRecord) -> None:
        """A score record; a final one names the pattern of its session."""
        if record.kind != "final" or record.pattern is None:
            return
        identity, source = session_id(self._application, record), record.source
        session = JudgedSession(
            key=record.session, topic=source.topic, partition=source.partition, first_offset=source.first_offset
        )
        _keep(self._final, identity, (record.pattern, session))
        if (verdict := self._open.pop(identity, None)) is not None:
            self._write(verdict, record.pattern, session)

    def _write(self, verdict: _Verdict, pattern: str, session: JudgedSession, reason: str | None = None) -> None:
        said = FeedbackRecord(
            pattern=pattern,
            verdict=verdict.verdict,
            at=iso_now(),
            by=self._by,
            note=verdict.note,
            reason=reason,
            session=session,
        )
        try:
            self._say(said)
        except WorkerError as error:  # who answers so does it again with the next alert of the pattern
            self._log.error("answer_not_written", reason=str(error))
        else:
            self._log.info("answer_taken", verdict=said.verdict, name=said.name, session=session.key)


def _keep(kept: OrderedDict[str, _Kept], identity: str, value: _Kept) -> None:
    kept[identity] = value
    if len(kept) > _MOST_KEPT:
        kept.popitem(last=False)
