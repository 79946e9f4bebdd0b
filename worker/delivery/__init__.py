"""Exactly once over any source and sink."""
