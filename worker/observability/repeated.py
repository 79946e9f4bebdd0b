"""Something done again and again beside the worker's loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread


@contextmanager
def repeated(do: Callable[[], object], interval_s: float, name: str) -> Iterator[None]:
    """Do it every so many seconds within a `with` block, in a thread of this name."""
    over = Event()

    def go_on() -> None:
        while not over.wait(interval_s):
            do()

    thread = Thread(target=go_on, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
