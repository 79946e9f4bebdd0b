"""`python -m logmamba`: the `logmamba` command."""

from logmamba import main

main()
