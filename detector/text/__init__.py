"""From a line to the token of its template."""
