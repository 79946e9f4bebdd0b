"""What the fork server of `tests.broker.forked` loads: all that a worker, a replay of dead letters and `alert` need.

It ends with the tests, however these end.
"""

from __future__ import annotations

import detector.checkpoint  # noqa: F401  with PyTorch
import worker.cli
import worker.commands.alert
import worker.commands.replay_dead_letters
import worker.commands.run  # noqa: F401
from tests.broker.forked import die_with_parent

die_with_parent()
