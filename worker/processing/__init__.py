"""Records in, outputs out: decoder, sessions, scores. No Kafka."""
