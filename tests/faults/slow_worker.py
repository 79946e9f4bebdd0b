"""`logmamba` whose model is slow for a while, as a large one is on a small machine.

    python -m tests.faults.slow_worker --after 20 --passes 30 --pass-ms 500 run --config worker.yaml

The first passes are as quick as they are, then so many take so much longer, and those after them are quick again. The
log gets the line `{"event":"slow_passes","seconds":…}` when the slow ones are over.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Any

from detector.model.inference import Inference
from worker.cli import main


def slow_down(after: int, passes: int, pass_s: float) -> None:
    """Make the passes after the first `after` ones slow."""
    forward = Inference._forward
    done, began = 0, 0.0

    def slowly(self: Inference, *arguments: Any) -> Any:
        nonlocal done, began
        done += 1
        if done == after + 1:
            began = time.monotonic()
        if after < done <= after + passes:
            time.sleep(pass_s)
        if done == after + passes:
            line = f'{{"event":"slow_passes","seconds":{time.monotonic() - began:.1f}}}\n'
            os.write(sys.stderr.fileno(), line.encode())
        return forward(self, *arguments)

    Inference._forward = slowly  # type: ignore[method-assign]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--after", type=int, required=True)
    parser.add_argument("--passes", type=int, required=True)
    parser.add_argument("--pass-ms", type=float, required=True)
    options, sys.argv[1:] = parser.parse_known_args()
    slow_down(options.after, options.passes, options.pass_ms / 1000)
    main()
