"""Prints anomalous sessions; start it again and it goes on where it was."""

import json
import sys

from confluent_kafka import Consumer

SCHEMA = "logmamba.score/1"


def main(servers: str, topic: str, group: str) -> None:
    """Follow the topic until Ctrl-C."""
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": group,
            "isolation.level": "read_committed",  # each final score once, whatever happened to a worker
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    consumer.subscribe([topic])
    try:
        while True:
            message = consumer.poll(1.0)
            if message is None:
                continue
            if message.error():
                print(message.error(), file=sys.stderr)
                continue
            record = json.loads(message.value())
            if record["schema"] == SCHEMA and record["severity"] != "normal":
                handle(record)
            consumer.commit(message)  # after handling: a crash repeats the last record rather than losing it
    finally:
        consumer.close()


def handle(record: dict) -> None:
    """What you do with one; it may come again after a crash."""
    source = record["source"]
    print(
        record["severity"],
        record["kind"],
        record["score"],
        record["session"],
        f"{source['topic']}/{source['partition']}@{source['first_offset']}",
        record["top_events"][0]["template"] if record["top_events"] else "",
        sep="\t",
        flush=True,
    )


if __name__ == "__main__":
    main(*sys.argv[1:4])
