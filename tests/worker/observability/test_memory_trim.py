"""Memory that is freed leaves the process."""

from __future__ import annotations

import ctypes
import time

import psutil
import pytest

from worker.observability.memory_trim import freed_memory_given_back

HELD_BYTES = 200_000_000


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
def test_freed_memory_between_what_is_still_held_leaves_the_process() -> None:
    process = psutil.Process()
    held = [bytes(2_000) for _ in range(HELD_BYTES // 2_000)]  # from the C library; Python's own are smaller
    full = process.memory_info().rss
    last = held[-1]  # so that the memory does not end with what is freed
    held.clear()
    with freed_memory_given_back(interval_s=0.02):
        deadline = time.monotonic() + 30
        while process.memory_info().rss > full - HELD_BYTES / 2:
            assert time.monotonic() < deadline, "the memory stayed"
            time.sleep(0.02)
    assert len(last) == 2_000
