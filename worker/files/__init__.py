"""Log files and tables of sessions, as the records and sessions that a worker makes of a topic."""
