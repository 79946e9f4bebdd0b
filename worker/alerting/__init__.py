"""From score records to messages that reach a person."""
