"""`logmamba init`: a settings file for a sample of logs, with how sure it is of each thing and why."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from worker.commands.capture import capture_records
from worker.commands.suggestion.proposal import Proposal, propose
from worker.commands.suggestion.settings_file import settings_file, told
from worker.errors import RunError, SettingsError
from worker.kafka.clients import rejection
from worker.settings.document import Settings, load_settings
from worker.settings.values import flow_yaml

_RECORDS = 20_000


def write_settings(
    samples: Sequence[Path],
    output: Path,
    *,
    bootstrap: str | None,
    topic: str | None,
    tell: Callable[[str], object] = lambda _line: None,
) -> Proposal:
    """Write a settings file for a sample; what it says is loaded before it is written.

    Args:
        samples: log files or files of records, which are one stream; none where the sample is in Kafka.
        output: the file, which must not be there yet.
        bootstrap: brokers of a topic whose newest records are the sample; it is read beside every consumer group, and
            nothing is committed.
        topic: its name.
        tell: told what was found, a line each.

    Raises:
        InputFileError: the sample cannot be read, or is too little.
        RunError: no broker answers, the topic cannot be read, or the output cannot be written.
        SettingsError: neither files nor a topic are given, or both; or the output is there.
    """
    if bool(samples) == bool(bootstrap or topic) or bool(bootstrap) != bool(topic):
        raise SettingsError(["init: give either sample files, or both --bootstrap HOST:PORT and --topic TOPIC"])
    if output.exists():
        raise SettingsError([f"--output {output}: is there already; allowed: a file that is not"])
    with _sampled(samples, bootstrap, topic) as (paths, name):
        proposal = propose(paths, name)
        text = settings_file(proposal, name, bootstrap, topic)
    Settings.model_validate(yaml.safe_load(text))
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise RunError(f"{output}: cannot be written: {error.strerror}") from error
    for line in told(proposal):
        tell(line)
    return proposal


@contextmanager
def _sampled(samples: Sequence[Path], bootstrap: str | None, topic: str | None) -> Iterator[tuple[list[Path], str]]:
    """The files of the sample, and its name."""
    if bootstrap is None or topic is None:
        yield list(samples), ", ".join(path.name for path in samples)
        return
    overrides = [f"kafka.bootstrap.servers={flow_yaml(bootstrap)}", f"input.topics={flow_yaml([topic])}"]
    settings = load_settings(None, overrides, rejection=rejection)
    with tempfile.TemporaryDirectory(prefix="logmamba-init-") as folder:
        path = Path(folder) / f"{topic}.records.jsonl"
        capture_records(settings, path, records=_RECORDS)
        yield [path], f"the topic {topic}"
