"""What every test runs under."""

from __future__ import annotations

import os

# As `logmamba` itself does, and before PyTorch is loaded: small models are slower on two busy cores than on one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
