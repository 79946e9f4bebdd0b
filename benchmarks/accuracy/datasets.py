"""The shared data sets as sessions, as far as the protocols need them; see the data's own README."""

from __future__ import annotations

import csv
import gzip
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from detector.sessions_file import NO_ORDER, ParsedSessions, read_labels, read_sessions
from detector.text.vocabulary import Kind
from worker.files.log_files import read_records
from worker.processing.decoder import Decoder
from worker.settings.sections import InputSettings, SessionsSettings
from worker.settings.timestamps import TimestampRule

DATA = Path(os.environ.get("LOGMAMBA_SHARED") or Path(__file__).resolve().parents[3] / "shared") / "data"

# Of the full HDFS_v1, the data hold 80 % of the anomalous blocks but only 32,526 normal ones.
HDFS_NORMAL_WEIGHT = 558_223 * 0.8 / 32_526
HDFS_TIMES = TimestampRule(pattern=r"^(\d{6} \d{6})", formats=("%y%m%d %H%M%S",))

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


def require_data() -> None:
    """End a command that has nothing to read."""
    if not DATA.is_dir():
        raise SystemExit(f"There is no data at {DATA}; LOGMAMBA_SHARED names the folder that holds data/.")


@dataclass(frozen=True)
class Dataset:
    """Sessions with their labels.

    Attributes:
        kind: what the texts are, for the vocabulary.
        texts: raw lines in file order, or distinct event names.
        sessions: the events of each session as rows of `texts`.
        keys: session id of each; none occurs twice.
        anomalous: bool (n,).
        counts: how many equal sessions each stands for, int64 (n,).
        order: rank to sort by, -1 where not known, int64 (n,).
        normal_weight: how many normal sessions of the full data set one here stands for.
    """

    kind: Kind
    texts: Sequence[str]
    sessions: Sequence[Integers]
    keys: Sequence[str]
    anomalous: Flags
    counts: Integers
    order: Integers
    normal_weight: float = 1.0

    def __len__(self) -> int:
        return len(self.sessions)

    def select(self, rows: Integers, normal_weight: float) -> Dataset:
        """These sessions only."""
        return Dataset(
            self.kind,
            self.texts,
            [self.sessions[row] for row in rows],
            [self.keys[row] for row in rows],
            self.anomalous[rows],
            self.counts[rows],
            self.order[rows],
            normal_weight,
        )


@cache
def hdfs() -> Dataset:
    """All parsed blocks; a normal one weighs as many as it stands for in the full data set."""
    return _of_parsed(read_sessions(DATA / "hdfs/sessions.tsv.gz"), normal_weight=HDFS_NORMAL_WEIGHT)


@cache
def hdfs_ordered() -> Dataset:
    """The parsed blocks whose order is known: a sample at natural prevalence."""
    whole = hdfs()
    return whole.select(np.flatnonzero(whole.order != NO_ORDER), normal_weight=1.0)


@cache
def hdfs_unweighted() -> Dataset:
    """All parsed blocks, each for itself."""
    whole = hdfs()
    return whole.select(np.arange(len(whole)), normal_weight=1.0)


@cache
def hdfs_raw_halves() -> Dataset:
    """The raw lines as two logs, each half of them: `order` is 0 in the first; a block may have a session in both."""
    raw = _hdfs_lines()
    labels = read_labels(DATA / "hdfs/raw_labels.csv.gz")
    half = len(raw.texts) // 2
    found: list[tuple[int, str, Integers]] = []
    for key in sorted(raw.rows):
        rows = np.array(raw.rows[key], np.int64)
        found += [(order, key, part) for order, part in enumerate((rows[rows < half], rows[rows >= half])) if len(part)]
    return Dataset(
        kind="lines",
        texts=raw.texts,
        sessions=[rows for _, _, rows in found],
        keys=[f"{order}:{key}" for order, key, _ in found],
        anomalous=np.array([labels[key] == 1 for _, key, _ in found]),
        counts=np.ones(len(found), np.int64),
        order=np.array([order for order, _, _ in found], np.int64),
    )


@cache
def hdfs_raw() -> Dataset:
    """The raw lines as the worker's decoder reads them, a session a block, blocks in order of their ids."""
    raw = _hdfs_lines()
    labels = read_labels(DATA / "hdfs/raw_labels.csv.gz")
    keys = sorted(raw.rows)
    return Dataset(
        kind="lines",
        texts=raw.texts,
        sessions=[np.array(raw.rows[key], np.int64) for key in keys],
        keys=keys,
        anomalous=np.array([labels[key] == 1 for key in keys]),
        counts=np.ones(len(keys), np.int64),
        order=np.full(len(keys), NO_ORDER, np.int64),
    )


def hdfs_raw_times() -> dict[str, Integers]:
    """When the events of each session of `hdfs_raw` were, in ms since 1970, by session id."""
    return {key: np.array(times, np.int64) for key, times in _hdfs_lines().times.items()}


@cache
def hdfs_parsed_of_raw() -> Dataset:
    """The parsed sessions of the blocks of `hdfs_raw`, in the same order."""
    whole = hdfs()
    row_of = {key: row for row, key in enumerate(whole.keys)}
    return whole.select(np.array([row_of[key] for key in hdfs_raw().keys]), normal_weight=1.0)


@cache
def bgl() -> Dataset:
    """Windows of 21 events, normal ones first, each kind in file order; `order` counts within the kind."""
    names = {row["id"]: f"{row['id']} {row['template']}" for row in _csv_rows(DATA / "bgl/templates.csv.gz")}
    events: list[Sequence[str]] = []
    counts, order, anomalous = [], [], []
    for label, name in enumerate(("test_normal_windows", "test_abnormal_windows")):
        for number, line in enumerate(text_lines(DATA / f"bgl/{name}.tsv.gz")):
            count, window = line.split("\t")
            events.append(window.split())
            counts.append(int(count))
            order.append(number)
            anomalous.append(label == 1)
    keys = [f"{'abnormal' if label else 'normal'}:{number}" for label, number in zip(anomalous, order, strict=True)]
    return _of_events(events, names, keys, anomalous, counts, order)


@cache
def bgl_lines() -> Dataset:
    """Every tenth window of `bgl`, with lines in place of event ids: each template with a number for its values."""
    windows = bgl()
    texts = [name.partition(" ")[2].replace("<*>", "0") for name in windows.texts]
    tenth = windows.select(np.arange(0, len(windows), 10), normal_weight=1.0)
    return replace(tenth, kind="lines", texts=texts)


@cache
def thunderbird() -> Dataset:
    """Sessions of a node each."""
    path = DATA / "thunderbird/templates.csv.gz"
    names = {row["EventId"]: f"{row['EventId']} {row['EventTemplate']}" for row in _csv_rows(path)}
    parsed = read_sessions(DATA / "thunderbird/sessions.tsv.gz")
    return _of_parsed(parsed, names)


class _LineKeeper:
    """Takes the tokenizer's place in a decoder: keeps the lines, and an event's "token" is its line's number."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def encode(self, lines: pa.Array) -> Integers:
        first = len(self.texts)
        self.texts += lines.to_pylist()
        return np.arange(first, len(self.texts))


class _Lines(NamedTuple):
    """Lines in file order; which are a session's, and their times in ms since 1970, by session id."""

    texts: list[str]
    rows: dict[str, list[int]]
    times: dict[str, list[int]]


@cache
def _hdfs_lines() -> _Lines:
    keeper = _LineKeeper()
    decoder = Decoder(InputSettings(timestamp=HDFS_TIMES), SessionsSettings(), keeper)
    lines = _Lines(keeper.texts, {}, {})
    for records in read_records(DATA / "hdfs/raw.log.gz"):
        (events,) = decoder.decode([records])
        for key, row, time, _ in events.rows():
            lines.rows.setdefault(key, []).append(row)
            lines.times.setdefault(key, []).append(time)
    return lines


def _of_parsed(rows: ParsedSessions, names: Mapping[str, str] | None = None, normal_weight: float = 1.0) -> Dataset:
    return _of_events(
        rows.events, names, rows.sessions, (rows.labels == 1).tolist(), rows.counts, rows.order, normal_weight
    )


def _of_events(
    events: Sequence[Sequence[str]],
    names: Mapping[str, str] | None,
    keys: Sequence[str],
    anomalous: Sequence[bool],
    counts: Sequence[int] | Integers,
    order: Sequence[int] | Integers,
    normal_weight: float = 1.0,
) -> Dataset:
    """Events by id; `names`, where there are any, put the template's words behind the id."""
    row_of: dict[str, int] = {}
    sessions = [np.array([row_of.setdefault(event, len(row_of)) for event in each], np.int64) for each in events]
    return Dataset(
        kind="events",
        texts=[event if names is None else names[event] for event in row_of],
        sessions=sessions,
        keys=keys,
        anomalous=np.array(anomalous, np.bool_),
        counts=np.asarray(counts, np.int64),
        order=np.asarray(order, np.int64),
        normal_weight=normal_weight,
    )


def _csv_rows(path: Path) -> Iterable[dict[str, str]]:
    return csv.DictReader(text_lines(path))


def text_lines(path: Path) -> Iterator[str]:
    """Lines of a compressed file, without their ends."""
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        yield from (line.rstrip("\n") for line in file)
