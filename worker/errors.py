"""What can go wrong, by what the worker does next.

    WorkerError
    ├── SettingsError        refuse to start; exit code 2, one line an error
    ├── RunError             stop; exit code 1 with the message
    │   └── Fenced           (`worker.kafka.errors`) by a worker of the same name
    ├── TransactionAborted   abort the transaction, drop every partition's sessions, restore from what is committed
    └── SnapshotError        a snapshot is missing or damaged; `input.on_lost_offsets` decides

A record that cannot be used is not an exception: it becomes a dead letter (`worker.processing.decoder.DeadLetter`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal


class WorkerError(Exception):
    """Base of every error that the worker raises on purpose."""


class SettingsError(WorkerError):
    """The settings cannot be used.

    Args:
        errors: one line each: the YAML path, the value and what is allowed.
    """

    def __init__(self, errors: Sequence[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = list(errors)


class RunError(WorkerError):
    """The worker cannot go on; what is committed stays, a restart resumes from it."""


AbortCause = Literal["broker", "no_answer", "rebalance", "position", "slow_batch", "stop"]
"""Why a transaction is aborted: the broker refused, or did not answer in time; partitions went away amid a batch; the
position has to be found anew; a batch took too long; the worker was told to stop."""


class TransactionAborted(WorkerError):
    """The open transaction was, or must be, aborted; nothing since the last commit counts.

    Args:
        reason: what happened.
        cause: of which kind it is.
    """

    def __init__(self, reason: str, cause: AbortCause = "broker") -> None:
        super().__init__(reason)
        self.cause = cause


class SnapshotError(WorkerError):
    """A snapshot is missing, damaged or of another format."""
