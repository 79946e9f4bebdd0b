"""HDFS-like logs with known faults."""
