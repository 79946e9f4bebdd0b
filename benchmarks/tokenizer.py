"""How fast do known lines become tokens and records events?

Real HDFS lines, all of them known, through `Tokenizer.encode` and `Decoder.decode` in batches, beside a plain copy of
their bytes and what takes their place without batches: per line, a regular expression and a dictionary, or Drain3's own
match; per record, decoding and a search for the key. Figures are CPU time of one core, the best of several rounds; the
rounds of the competitors alternate. How well templates tell event types apart: benchmarks/parsing.py.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
from drain3.drain import Drain
from rich.console import Console
from rich.table import Table

from detector.text.mining import learn_vocabulary
from detector.text.tokenizer import Tokenizer
from detector.text.vocabulary import N_SPECIAL
from worker.processing.decoder import Decoder
from worker.processing.records import Records
from worker.settings.sections import InputSettings, SessionsSettings

BATCH = 10_000
PARTITIONS = 4
NEW_LINES = 20_000
DRAIN_LINES = 20_000  # Drain3 is slow: fewer lines tell its rate
REQUESTS = 100_000
DATA = Path(os.environ.get("LOGMAMBA_SHARED") or Path(__file__).resolve().parents[2] / "shared") / "data"


@dataclass(frozen=True)
class Rate:
    """Per second of CPU time; the ratio is to the first of its group."""

    what: str
    per_s: float
    ratio: float


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
            ("copy of the bytes", len(lines), lambda: [pa.concat_arrays([array, array[:1]]) for array in arrays]),
            ("Tokenizer.encode", len(lines), lambda: [tokenizer.encode(array) for array in arrays]),
            ("Tokenizer.encode, new dictionary", len(lines), lambda: [Tokenizer(vocabulary).encode(x) for x in arrays]),
        ],
        rounds,
    )


def measure_new(lines: Sequence[str], rounds: int) -> list[Rate]:
    """Lines whose canonical form the dictionary has never seen: each has a word of its own."""
    letters = str.maketrans("0123456789", "abcdefghij")
    few = lines[:NEW_LINES]
    named = [f"{line} asked by user x{str(n).translate(letters)}" for n, line in enumerate(few)]
    vocabulary = learn_vocabulary(batches(named[::2]))
    known = Tokenizer(vocabulary).encode(pa.array(named[1::2])) >= N_SPECIAL
    new = [line for line, is_known in zip(named[1::2], known.tolist(), strict=True) if is_known]
    matched, strange = batches(new), batches([f"Unheard of: {line}" for line in new])
    if Tokenizer(vocabulary).encode(strange[0]).max() >= N_SPECIAL:
        raise SystemExit("templates match other lines than they should: no figures")

    def encode(arrays: Sequence[pa.Array], unknown: Literal["semantic", "unk"]) -> None:
        tokenizer = Tokenizer(vocabulary, unknown=unknown)
        for array in arrays:
            tokenizer.encode(array)

    return fastest(
        [
            ("matched by a template", len(new), lambda: encode(matched, "unk")),
            ("matched by none, unknown: unk", len(new), lambda: encode(strange, "unk")),
            ("matched by none, unknown: semantic", len(new), lambda: encode(strange, "semantic")),
        ],
        rounds,
    )


def measure_codes(_lines: Sequence[str], rounds: int) -> list[Rate]:
    """Requests whose status is part of the token: some paths come again and again, others once."""
    randomness = random.Random(0)
    paths = [f"/{name}/{page}" for name in ("shop", "cart", "help", "news") for page in "abcdefghijklmnopqrstuvwxy"]
    lines = [
        f'10.1.2.{n % 250} - - [15/Jan/2024:10:00:00 +0000] "GET {randomness.choice(paths)} HTTP/1.1" '
        f'{randomness.choice((200, 200, 200, 404, 500))} {n} "-" "Mozilla/5.0"'
        for n in range(REQUESTS)
    ]
    arrays = batches(lines)
    tokenizer = Tokenizer(learn_vocabulary(arrays))
    return fastest([("Tokenizer.encode", len(lines), lambda: [tokenizer.encode(array) for array in arrays])], rounds)


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


def show_rates(console: Console, title: str, rates: Sequence[Rate]) -> None:
    table = Table(title, "k/s", "ratio")
    for rate in rates:
        table.add_row(rate.what, f"{rate.per_s / 1e3:,.0f}", f"{rate.ratio:.1f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()

    console = Console()
    if not DATA.is_dir():
        console.print(f"There is no HDFS log at {DATA}; LOGMAMBA_SHARED names the folder that holds data/.")
        return
    figures: dict[str, list[dict[str, object]]] = {}
    lines = read(DATA / "hdfs/raw.log.gz")
    for title, measure in (
        ("known lines", measure_lines),
        ("lines new to the dictionary", measure_new),
        ("known access log, with codes", measure_codes),
        ("records", measure_records),
    ):
        rates = measure(lines, arguments.rounds)
        show_rates(console, title, rates)
        figures[title] = [asdict(each) for each in rates]
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
