"""Gives freed memory back to the system, so that a worker's resident memory stays what it needs.

The C library keeps what is freed for later. Forward passes of all sizes leave ever more holes in it that the next one
does not fit: tens of MB over a million lines, although nothing is held.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

_INTERVAL_S = 10.0  # giving back takes about 5 ms


@contextmanager
def freed_memory_given_back(interval_s: float = _INTERVAL_S) -> Iterator[None]:
    """Give freed memory back at this interval within a `with` block, where the C library can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        yield
        return
    over = Event()

    def give_back() -> None:
        while not over.wait(interval_s):
            trim(0)

    thread = Thread(target=give_back, name="logmamba-freed-memory", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
