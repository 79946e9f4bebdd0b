"""How fast do known lines become tokens and records events, and how well do templates tell event types apart?

Speed: real HDFS lines, all of them known, through `Tokenizer.encode` and `Decoder.decode` in batches, beside what
takes their place without batches: per line, a regular expression and a dictionary, or Drain3's own match; per
record, decoding and a search for the key. Figures are CPU time of one core, the best of several rounds; the rounds
of the competitors alternate.

Templates (--templates): raw lines against the event types that LogHub gives them. Grouping accuracy is the share of
lines whose template stands for all lines of one event type and for nothing else; purity is the share of lines whose
template stands for one event type only.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
from drain3.drain import Drain
from rich.console import Console
from rich.table import Table

from detector.text.tokenizer import Tokenizer, learn_vocabulary
from worker.processing.decoder import Decoder
from worker.processing.records import Records
from worker.settings.sections import InputSettings, SessionsSettings

BATCH = 10_000
PARTITIONS = 4
NEW_LINES = 20_000
DRAIN_LINES = 20_000  # Drain3 is slow: fewer lines tell its rate
SIMILARITIES = (0.4, 0.5, 0.6, 0.7)
DATA = Path(os.environ.get("LOGMAMBA_SHARED") or Path(__file__).resolve().parents[2] / "shared") / "data"


@dataclass(frozen=True)
class Rate:
    """Per second of CPU time; the ratio is to the first of its group."""

    what: str
    per_s: float
    ratio: float


@dataclass(frozen=True)
class Grouping:
    """Of one system at one similarity."""

    system: str
    similarity: float
    lines: int
    event_types: int
    templates: int
    accuracy: float
    purity: float


def read(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        return file.read().removesuffix("\n").split("\n")


def batches(lines: Sequence[str]) -> list[pa.Array]:
    return [pa.array(lines[start : start + BATCH], pa.string()) for start in range(0, len(lines), BATCH)]


def fastest(works: Sequence[tuple[str, int, Callable[[], object]]], rounds: int) -> list[Rate]:
    best = [float("inf")] * len(works)
    for _ in range(rounds):
        for index, (_, _, work) in enumerate(works):
            begun = time.process_time()
            work()
            best[index] = min(best[index], time.process_time() - begun)
    rates = [n / seconds for (_, n, _), seconds in zip(works, best, strict=True)]
    return [Rate(what, rate, rate / rates[0]) for (what, _, _), rate in zip(works, rates, strict=True)]


def measure_lines(lines: Sequence[str], rounds: int) -> list[Rate]:
    arrays = batches(lines)
    vocabulary = learn_vocabulary(arrays)
    tokenizer = Tokenizer(vocabulary)
    digits = re.compile("[0-9]+")
    known = {digits.sub("0", line): 3 for line in lines}
    drain = Drain()
    for line in known:
        drain.add_log_message(line)
    if any((tokenizer.encode(array) < 3).any() for array in arrays):
        raise SystemExit("some lines are unknown: no figures")
    few = lines[:DRAIN_LINES]
    return fastest(
        [
            (
                "regular expression and dictionary, per line",
                len(lines),
                lambda: [known[digits.sub("0", x)] for x in lines],
            ),
            ("Drain3.match, per line", len(few), lambda: [drain.match(digits.sub("0", x), "fallback") for x in few]),
            ("Tokenizer.encode", len(lines), lambda: [tokenizer.encode(array) for array in arrays]),
            ("Tokenizer.encode, new dictionary", len(lines), lambda: [Tokenizer(vocabulary).encode(x) for x in arrays]),
        ],
        rounds,
    )


def measure_new(lines: Sequence[str], rounds: int) -> list[Rate]:
    """Lines whose canonical form the dictionary has never seen."""
    vocabulary = learn_vocabulary(batches(lines))
    letters = str.maketrans("0123456789", "abcdefghij")
    spelt = [line.translate(letters) for line in dict.fromkeys(lines[:NEW_LINES])]
    matched, strange = batches(spelt), batches([f"Unheard of: {line}" for line in spelt])
    if Tokenizer(vocabulary).encode(matched[0]).min() < 3 or Tokenizer(vocabulary).encode(strange[0]).max() > 2:
        raise SystemExit("templates match other lines than they should: no figures")

    def encode(arrays: Sequence[pa.Array], unknown: Literal["semantic", "unk"]) -> None:
        tokenizer = Tokenizer(vocabulary, unknown=unknown)
        for array in arrays:
            tokenizer.encode(array)

    return fastest(
        [
            ("matched by a template", len(spelt), lambda: encode(matched, "unk")),
            ("matched by none, unknown: unk", len(spelt), lambda: encode(strange, "unk")),
            ("matched by none, unknown: semantic", len(spelt), lambda: encode(strange, "semantic")),
        ],
        rounds,
    )


def measure_records(lines: Sequence[str], rounds: int) -> list[Rate]:
    tokenizer = Tokenizer(learn_vocabulary(batches(lines)))
    decoder = Decoder(InputSettings(), SessionsSettings(), tokenizer)
    values = [line.encode() for line in lines]
    polls = list(_polls(values))
    key = re.compile(r"blk_-?\d+")

    def per_record() -> list[tuple[str, str]]:
        return [(key.search(text).group(), text) for text in map(bytes.decode, values)]  # type: ignore[union-attr]

    return fastest(
        [
            ("decode and search for the key, per record, no tokens", len(values), per_record),
            ("Decoder.decode, tokens included", len(values), lambda: [decoder.decode(poll) for poll in polls]),
        ],
        rounds,
    )


def _polls(values: Sequence[bytes]) -> Iterator[list[Records]]:
    part = BATCH // PARTITIONS
    for start in range(0, len(values), BATCH):
        poll = []
        for partition in range(PARTITIONS):
            mine = list(values[start + partition * part : start + (partition + 1) * part])
            offsets = list(range(start, start + len(mine)))
            poll.append(Records("raw", partition, offsets, mine, None, [1_226_262_975_000] * len(mine), None))
        yield poll


def group(system: str, lines: Sequence[str], types: Sequence[str], similarity: float) -> tuple[Grouping, list[str]]:
    """How templates of these lines agree with their event types; the second item tells where they do not."""
    arrays = batches(lines)
    vocabulary = learn_vocabulary(arrays, similarity=similarity)
    tokenizer = Tokenizer(vocabulary)
    tokens = [token for array in arrays for token in tokenizer.encode(array).tolist()]
    pairs = Counter(zip(tokens, types, strict=True))
    types_of, tokens_of = defaultdict(set), defaultdict(set)
    for token, event in pairs:
        types_of[token].add(event)
        tokens_of[event].add(token)
    pure = {token: event for token, (event, *more) in types_of.items() if not more}
    exact = sum(n for (token, event), n in pairs.items() if token in pure and len(tokens_of[event]) == 1)
    told = [f"one template for {', '.join(sorted(each))}" for each in types_of.values() if len(each) > 1]
    for event, found in sorted(tokens_of.items()):
        if len(found) > 1:
            told.append(
                f"{len(found)} templates for {event} ({', '.join(str(pairs[t, event]) for t in sorted(found))} lines)"
            )
    n, n_pure = len(lines), sum(n for (token, _), n in pairs.items() if token in pure)
    return Grouping(system, similarity, n, len(tokens_of), len(types_of), exact / n, n_pure / n), told


def hdfs() -> tuple[list[str], list[str]]:
    """All raw lines and the event type of each: a block's lines and its events are in the same order."""
    lines = read(DATA / "hdfs/raw.log.gz")
    rows = csv.DictReader(io.StringIO("\n".join(read(DATA / "hdfs/sessions.tsv.gz"))), delimiter="\t")
    events = {row["block_id"]: iter(row["events"].split()) for row in rows}
    key = re.compile(r"blk_-?\d+")
    return lines, ["E" + next(events[key.search(line).group()]) for line in lines]  # type: ignore[union-attr]


def loghub(system: str) -> tuple[list[str], list[str]]:
    lines = read(DATA / f"loghub_2k/{system}_2k.log.gz")
    rows = csv.DictReader(io.StringIO("\n".join(read(DATA / f"loghub_2k/{system}_2k.log_structured.csv.gz"))))
    return lines, [row["EventId"] for row in rows]


def show_rates(console: Console, title: str, rates: Sequence[Rate]) -> None:
    table = Table(title, "k/s", "ratio")
    for rate in rates:
        table.add_row(rate.what, f"{rate.per_s / 1e3:,.0f}", f"{rate.ratio:.1f}")
    console.print(table)


def show_templates(console: Console) -> list[Grouping]:
    found, told = [], []
    systems = sorted(path.name.removesuffix("_2k.log.gz") for path in (DATA / "loghub_2k").glob("*_2k.log.gz"))
    sources = {"HDFS, all": hdfs(), **{system: loghub(system) for system in systems}}
    table = Table("accuracy / purity", "types", *(f"similarity {each}" for each in SIMILARITIES))
    for system, (lines, types) in sources.items():
        row = [group(system, lines, types, similarity) for similarity in SIMILARITIES]
        found += [each for each, _ in row]
        if system == "HDFS, all":
            told += [f"{system}, {each.similarity}: {problem}" for each, problems in row for problem in problems]
        cells = (f"{each.accuracy:.3f} / {each.purity:.3f} ({each.templates})" for each, _ in row)
        table.add_row(system, str(len(set(types))), *cells)
    means = []
    for similarity in SIMILARITIES:
        rows = [each for each in found if each.similarity == similarity and each.system in systems]
        accuracy = sum(each.accuracy for each in rows) / len(rows)
        means.append(f"{accuracy:.3f} / {sum(each.purity for each in rows) / len(rows):.3f}")
    table.add_row("mean of LogHub's", "", *means)
    console.print(table, *told, sep="\n")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--templates", action="store_true", help="how well templates tell event types apart, no speed")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()

    console = Console()
    if not DATA.is_dir():
        console.print(f"There is no HDFS log at {DATA}; LOGMAMBA_SHARED names the folder that holds data/.")
        return
    figures: dict[str, list[dict[str, object]]] = {}
    if arguments.templates:
        figures["templates"] = [asdict(each) for each in show_templates(console)]
    else:
        lines = read(DATA / "hdfs/raw.log.gz")
        for title, measure in (
            ("known lines", measure_lines),
            ("lines new to the dictionary", measure_new),
            ("records", measure_records),
        ):
            rates = measure(lines, arguments.rounds)
            show_rates(console, title, rates)
            figures[title] = [asdict(each) for each in rates]
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
