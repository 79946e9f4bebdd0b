"""`logmamba` whose model is slow for a while, as a large one is on a small machine.

    python -m tests.faults.slow_worker --after 20 --passes 30 --pass-ms 500 run --config worker.yaml

The first passes and the first commit are as quick as they are, then so many passes take so much longer, and those
after them are quick again. The log gets the line `{"event":"slow_passes","seconds":…}` when the slow ones are over.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Any

from detector.model.inference import Inference
from worker.cli import main
from worker.kafka.sink import TransactionalSink


def slow_down(after: int, passes: int, pass_s: float) -> None:
    """Make so many passes slow: those after the first `after` that follow the first commit."""
    begin, commit = Inference._begin, TransactionalSink.commit
    done, began, committed = 0, 0.0, False

    def committing(self: TransactionalSink, *arguments: Any) -> None:
        nonlocal committed
        commit(self, *arguments)
        committed = True

    def slowly(self: Inference, *arguments: Any) -> Any:
        nonlocal done, began
        done += committed
        if not committed:
            return begin(self, *arguments)
        if done == after + 1:
            began = time.monotonic()
            os.write(sys.stderr.fileno(), b'{"event":"slow_from_here"}\n')
        if after < done <= after + passes:
            time.sleep(pass_s)
        if done == after + passes:
            line = f'{{"event":"slow_passes","seconds":{time.monotonic() - began:.1f}}}\n'
            os.write(sys.stderr.fileno(), line.encode())
        return begin(self, *arguments)

    Inference._begin = slowly  # type: ignore[method-assign]
    TransactionalSink.commit = committing  # type: ignore[method-assign]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--after", type=int, required=True)
    parser.add_argument("--passes", type=int, required=True)
    parser.add_argument("--pass-ms", type=float, required=True)
    options, sys.argv[1:] = parser.parse_known_args()
    slow_down(options.after, options.passes, options.pass_ms / 1000)
    main()
