"""The command line in the test's own process: PyTorch takes seconds to import, which each process pays anew.

What a user meets of a process (its exit code, its output, that there is no trace) is what `logmamba` gives here.
"""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from worker.cli import main


class Done(NamedTuple):
    """A command that has ended."""

    returncode: int
    stdout: str
    stderr: str


def logmamba(*arguments: object, cwd: Path | None = None) -> Done:
    """Run a `logmamba` command to its end, in a terminal of 200 columns; an error without a reason is raised."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        contextlib.chdir(cwd or Path.cwd()),
        patch.object(sys, "argv", ["logmamba", *map(str, arguments)]),
        patch.dict("os.environ", {"COLUMNS": "200"}),
    ):
        try:
            main()
            code: object = 0
        except SystemExit as end:
            code = end.code
    assert code is None or isinstance(code, int)
    return Done(code or 0, out.getvalue(), err.getvalue())
