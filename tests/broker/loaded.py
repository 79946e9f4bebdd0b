"""Prints the names of all modules that are loaded."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    print(*sys.modules)
