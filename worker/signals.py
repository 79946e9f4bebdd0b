"""Signals that ask a command to end."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stopped_by_signals(*, twice_at_once: bool = True) -> Iterator[Callable[[], bool]]:
    """SIGTERM and Ctrl-C ask the block to finish; a second one ends the process at once, as without us.

    Where `twice_at_once` is False it changes nothing: what stops a service may tell each of its processes, as well as
    the one that tells the others.

    After the block a first one changes nothing: the process is ending, with an exit code that says how it went.
    """
    asked = False

    def ask(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        if twice_at_once:
            _on_stop_signals(signal.SIG_DFL)

    _on_stop_signals(ask)
    try:
        yield lambda: asked
    finally:
        if not asked:
            # At its end Python puts handlers back to the default, which would kill the process amid its clearing up.
            _on_stop_signals(signal.SIG_IGN)


def _on_stop_signals(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)
