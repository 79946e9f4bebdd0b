"""What `logmamba evaluate` reads and the page that it writes."""
