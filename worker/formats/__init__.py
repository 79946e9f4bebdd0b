"""What a text may look like: durations, patterns, JSON pointers, times."""
