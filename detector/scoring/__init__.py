"""From surprises to a score in [0, 1]."""
