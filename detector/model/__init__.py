"""From tokens to the surprise of each."""
