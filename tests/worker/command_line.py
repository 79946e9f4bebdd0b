"""The command line in the test's own process: PyTorch takes seconds to import, which each process pays anew.

What a user meets of a process (its exit code, its output, that there is no trace) is what `logmamba` gives here.
"""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from typer.main import get_command

from worker import cli, console


class Done(NamedTuple):
    """A command that has ended."""

    returncode: int
    stdout: str
    stderr: str


def logmamba(*arguments: object, cwd: Path | None = None, columns: int = 200) -> Done:
    """Run a `logmamba` command to its end, in a terminal of that width; an error without a reason is raised."""
    # Not by the environment: what that says when the module is loaded holds for ever.
    console.out.width = console.err.width = columns
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        contextlib.chdir(cwd or Path.cwd()),
        patch.object(sys, "argv", ["logmamba", *map(str, arguments)]),
        _signals_as_before(),
    ):
        try:
            cli.main()
            code: object = 0
        except SystemExit as end:
            code = end.code
    assert code is None or isinstance(code, int)
    return Done(code or 0, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _signals_as_before() -> Iterator[None]:
    """A command leaves signals ignored for the end of its process; what a test starts later would ignore them, too."""
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def parse(arguments: list[str]) -> None:
    """Read a command line to its end without doing what it says; wrong usage is raised."""
    command: Any = get_command(cli.app)
    context: Any = None
    while arguments:
        name = "logmamba" if context is None else arguments.pop(0)
        command = command if context is None else command.commands[name]
        context = command.make_context(name, list(arguments), parent=context)
        if not hasattr(command, "commands"):
            return
