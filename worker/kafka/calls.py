"""Calls of the client library that wait for the broker, kept to a deadline whatever the library does with its own.

librdkafka's `send_offsets_to_transaction` can block for ever after the group's coordinator went away, whatever its
time-out (confluentinc/librdkafka issues 5456 and 5511), and a consumer's commit and `close` take none. So each such
call runs in a thread of its own, which is left behind when the call takes longer than it may. A client with such a
call must not be used any more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

from confluent_kafka import KafkaException

from worker.delivery.deadline import Deadline
from worker.errors import TransactionAborted
from worker.kafka.errors import error_of, translated

_HUNG_AFTER_S = 1.0  # beyond the limit that a call was given
_LOOK_EVERY_S = 0.5  # whether the deadline has come nearer: it does when the worker is told to stop
_MUCH_TIME_S = 3.0
_BACKOFF_S = 0.1
_AFTER_STANDSTILL_S = 5.0
_LONGEST_CALL_S = 3600.0  # the library takes no infinite limit

_Result = TypeVar("_Result")


class NoAnswer(TransactionAborted):
    """A call was not answered in time: what it asked for may have happened, or happen yet."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, "no_answer")


class Hung(NoAnswer):
    """The call has not even returned: its client is of no use any more."""


def within(
    deadline: Deadline, call: Callable[[], _Result], what: str, waiting: Callable[[], object] = lambda: None
) -> _Result:
    """Run a call in a thread of its own, which is left behind when the call takes longer.

    Args:
        deadline: after which the call should have returned; it gets a second more.
        call: returns or raises what this function does.
        what: it is, for the error.
        waiting: called about twice a second while there is no answer and much time is left; it may take a second.

    Raises:
        Hung: it took longer.
    """
    outcome: Future[_Result] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:  # raised again below
            outcome.set_exception(error)

    Thread(target=run, daemon=True).start()
    while True:
        left_s = deadline.left_s
        try:
            return outcome.result(min(left_s, _LOOK_EVERY_S) if left_s > 0.0 else _HUNG_AFTER_S)
        except TimeoutError as error:
            if outcome.done():
                return outcome.result()  # or what the call raised
            if left_s <= 0.0:
                raise Hung(f"the client hangs: {what}") from error
            if left_s > _MUCH_TIME_S:
                waiting()


def transactional(
    call: Callable[[float], object], deadline: Deadline, what: str, waiting: Callable[[], object] = lambda: None
) -> None:
    """Make a transactional call, again while its error is retriable.

    Args:
        call: takes the seconds that it may take.
        deadline: for all of it.
        what: it is, for the error.
        waiting: called about twice a second while there is no answer.

    Raises:
        NoAnswer: time is up.
        TransactionAborted: the transaction must be aborted.
        RunError: the worker must stop.
    """
    stood_still = False
    while True:
        left_s, began = min(deadline.left_s, _LONGEST_CALL_S), time.monotonic()
        try:
            within(deadline, lambda limit_s=left_s: call(limit_s), what, waiting)  # type: ignore[misc]
        except KafkaException as error:
            if not error_of(error).retriable():
                raise translated(error) from error
            if deadline.passed:
                # A process that stood still meanwhile (SIGSTOP, a suspended machine) has not waited: it must not take
                # over from the one that has done so from it, which only the broker's answer tells.
                if stood_still or time.monotonic() - began < left_s + _HUNG_AFTER_S:
                    raise NoAnswer(f"no answer in time: {what}: {error_of(error).str()}") from error
                stood_still, deadline = True, Deadline(_AFTER_STANDSTILL_S)
            time.sleep(min(_BACKOFF_S, deadline.left_s))
        else:
            return
