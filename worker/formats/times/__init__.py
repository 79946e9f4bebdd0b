"""Event times: how they may be written, and what their zone and their year is where they do not say so."""
