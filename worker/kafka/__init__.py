"""The Kafka side, and the only part that knows the client library."""
