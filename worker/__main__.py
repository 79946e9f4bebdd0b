"""`python -m worker` is the `logmamba` command."""

from worker.cli import main

main()
