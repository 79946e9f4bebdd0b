"""What commands print on: their results, and what they say meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

out = Console()
err = Console(stderr=True)


def tell(line: str) -> None:
    """Say a line meanwhile, as it is."""
    err.out(line, highlight=False)


@contextmanager
def reading(inputs: list[Path]) -> Iterator[Callable[[int], object]]:
    """A progress bar over the bytes of the input files; yields what advances it."""
    total = sum(path.stat().st_size for path in inputs if path.is_file())
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task("reading", total=total)
        yield lambda count: progress.advance(task, count)


def examples(*commands: str) -> str:
    """Commands as the end of a help text, each a paragraph."""
    return "\n\n".join(f"Example: {command}" for command in commands)
