"""`make demo-checkpoint`: trains checkpoints/demo on generated logs, as an operator would train one on real ones.

The demo runs on another seed and on unseen lines of another pool, so its precision and recall are those of a stream
that the model has not seen.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.console import Console

from worker.commands.demo import LINES_SETTINGS, UNSEEN_POOL
from worker.commands.train import train_checkpoint
from worker.generator.log import GeneratedLog, write_files
from worker.settings.document import load_settings

_BLOCKS = 12_000
# Seed 0 for training; `logmamba demo` starts from seed 1.
_SEED = 0
# More faults than a real stream has, so that each kind has examples enough.
_ANOMALY_RATE = 0.2
_STEPS = 600

if __name__ == "__main__":
    console = Console(stderr=True)
    log = GeneratedLog(blocks=_BLOCKS, seed=_SEED, anomaly_rate=_ANOMALY_RATE, unseen_pool=1 - UNSEEN_POOL)
    target = Path(__file__).resolve().parents[1] / "checkpoints" / "demo"
    with tempfile.TemporaryDirectory() as folder:
        lines, labels = Path(folder) / "generated.log", Path(folder) / "labels.csv"
        write_files(log, lines, labels)
        settings = load_settings(None, LINES_SETTINGS)
        train_checkpoint(settings, [lines], labels, target, seed=_SEED, size="tiny", steps=_STEPS, console=console)
