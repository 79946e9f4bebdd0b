"""Gives freed memory back to the system, so that a worker's resident memory stays what it needs.

The C library keeps what is freed for later. Forward passes of all sizes leave ever more holes in it that the next one
does not fit: tens of MB over a million lines, although nothing is held.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from worker.observability.repeated import repeated

_INTERVAL_S = 10.0  # giving back takes about 5 ms


@contextmanager
def freed_memory_given_back(interval_s: float = _INTERVAL_S) -> Iterator[None]:
    """Give freed memory back at this interval within a `with` block, where the C library can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        yield
        return
    with repeated(partial(trim, 0), interval_s, "logmamba-freed-memory"):
        yield
