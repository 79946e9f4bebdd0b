"""How well do templates tell the event types of logs apart, and what does it cost to learn them?

The 16 systems of LogHub (2,000 lines each) as a worker sees them: raw lines, headers included, one set of defaults.
The plain truth is LogHub's event id; the refined one tells logger, level, label, state and thread apart as well, which
templates of raw lines hold. Defaults were chosen on the systems of `CHOSEN`; the others are held out.

LogHub takes the status of a request for a value, and here it tells events apart: "codes as one" are the same tokens
without it, against the refined truth.

- Grouping accuracy (GA): share of lines whose template stands for all lines of one event type and for nothing else.
- F1 of grouping (FGA): of templates that stand for exactly one whole event type, among templates and among types.
- Parsing accuracy (PA): share of lines whose template ends with the words of LogHub's template of the message.
- Mixed: lines of templates that stand for more than one event type.
- Second half: templates of the first 1,000 lines meet the other 1,000. Beyond new: share of lines that are unknown less
  the share whose event type is new; taken: share of lines of a new type that an old template takes; likened: share of
  lines that no template matches and that have a template's token as they say the same in other words, of old types / of
  new ones.

Beside it Drain3, as it comes and with the masks of its examples. Published on messages without headers, with rules for
each system: Drain 0.86, Brain 0.98 (GA).
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from drain3 import TemplateMiner
from drain3.masking import MaskingInstruction
from drain3.template_miner_config import TemplateMinerConfig
from rich.console import Console
from rich.table import Table

from detector.text.mining import learn_vocabulary
from detector.text.patterns import read
from detector.text.tokenizer import Tokenizer
from detector.text.vocabulary import UNK
from detector.text.words import words

CHOSEN = ("Android", "HDFS", "HealthApp", "Linux", "OpenSSH", "Proxifier", "Thunderbird", "Windows")
HELD_OUT = ("Apache", "BGL", "HPC", "Hadoop", "Mac", "OpenStack", "Spark", "Zookeeper")
REFINING = ("Component", "Level", "Label", "State", "Process")
HALF = 1_000
DATA = Path(os.environ.get("LOGMAMBA_SHARED") or Path(__file__).resolve().parents[2] / "shared") / "data/loghub_2k"

_DIGITS = re.compile("[0-9]+")
_GLUED = re.compile(r"(?<=[A-Za-z_])<\*>")


@dataclass(frozen=True)
class System:
    """Lines of one system and what they are."""

    name: str
    lines: list[str]
    plain: list[str]
    refined: list[tuple[str, ...]]
    templates: list[str]

    @classmethod
    def read(cls, name: str) -> System:
        """Read a system of LogHub."""
        with gzip.open(DATA / f"{name}_2k.log.gz", "rt", encoding="utf-8", newline="\n") as file:
            lines = file.read().removesuffix("\n").split("\n")
        with gzip.open(DATA / f"{name}_2k.log_structured.csv.gz", "rt", encoding="utf-8") as file:
            rows = list(csv.DictReader(io.StringIO(file.read())))
        return cls(
            name,
            lines,
            [row["EventId"] for row in rows],
            # Numbers of threads and the like are no part of a kind.
            [(row["EventId"], *(_DIGITS.sub("0", row.get(each) or "") for each in REFINING)) for row in rows],
            [row["EventTemplate"] for row in rows],
        )


@dataclass(frozen=True)
class Grouping:
    """How tokens agree with a truth."""

    accuracy: float
    f1: float
    mixed_lines: int
    templates: int
    event_types: int

    @classmethod
    def of(cls, tokens: Sequence[Hashable], truth: Sequence[Hashable]) -> Grouping:
        """Compare the token of each line with its event type."""
        pairs = Counter(zip(tokens, truth, strict=True))
        types_of, tokens_of = defaultdict(set), defaultdict(set)
        for token, event in pairs:
            types_of[token].add(event)
            tokens_of[event].add(token)
        exact = [pair for pair in pairs if len(types_of[pair[0]]) == 1 and len(tokens_of[pair[1]]) == 1]
        mixed = sum(n for (token, _), n in pairs.items() if len(types_of[token]) > 1)
        f1 = 2 * len(exact) / (len(types_of) + len(tokens_of))
        return cls(sum(pairs[pair] for pair in exact) / len(tokens), f1, mixed, len(types_of), len(tokens_of))


@dataclass(frozen=True)
class Parsing:
    """Of one system by one parser."""

    system: str
    held_out: bool
    plain: Grouping
    refined: Grouping
    codes_as_one: Grouping
    parsing_accuracy: float | None
    unknown_beyond_new: float | None
    new_taken_for_old: float | None
    old_likened: float | None
    new_likened: float | None


@dataclass(frozen=True)
class Cost:
    """Of learning lines of one kind, in a process of its own."""

    lines: str
    n: int
    seconds: float
    memory_mb: float
    templates: int


def parse(system: System) -> Parsing:
    """Learn from all lines, and from the first half."""
    array = pa.array(system.lines, pa.string())
    vocabulary = learn_vocabulary([array])
    tokens = Tokenizer(vocabulary).encode(array).tolist()
    words_of = {token: read(vocabulary.text(token)).words for token in set(tokens)}
    agree = 0
    for token, template in zip(tokens, system.templates, strict=True):
        true = words(_DIGITS.sub("0", _GLUED.sub("0", template)))
        agree += bool(true) and words_of[token][-len(true) :] == true

    of_first_half = learn_vocabulary([array[:HALF]])
    later = Tokenizer(of_first_half, unknown="unk").encode(array[HALF:])
    old = set(system.refined[:HALF])
    new = np.array([each not in old for each in system.refined[HALF:]])
    unknown = later <= UNK
    likened = unknown & (Tokenizer(of_first_half).encode(array[HALF:]) > UNK)
    return Parsing(
        system.name,
        system.name in HELD_OUT,
        Grouping.of(tokens, system.plain),
        Grouping.of(tokens, system.refined),
        Grouping.of([words_of[token] for token in tokens], system.refined),
        agree / len(tokens),
        float(unknown.mean() - new.mean()),
        float((new & ~unknown).mean()),
        float((~new & likened).mean()),
        float((new & likened).mean()),
    )


def parse_with_drain(system: System, masks: Sequence[MaskingInstruction]) -> Parsing:
    """The same lines by Drain3, each with the template that it got when it was read."""
    config = TemplateMinerConfig()
    config.masking_instructions = list(masks)
    miner = TemplateMiner(config=config)
    tokens = [miner.add_log_message(line)["cluster_id"] for line in system.lines]
    return Parsing(
        system.name,
        system.name in HELD_OUT,
        Grouping.of(tokens, system.plain),
        Grouping.of(tokens, system.refined),
        Grouping.of(tokens, system.refined),
        None,
        None,
        None,
        None,
        None,
    )


USUAL_MASKS = [  # of Drain3's own examples
    MaskingInstruction(pattern, name)
    for pattern, name in (
        (r"((?<=[^A-Za-z0-9])|^)(([0-9a-f]{2,}:){3,}([0-9a-f]{2,}))((?=[^A-Za-z0-9])|$)", "ID"),
        (r"((?<=[^A-Za-z0-9])|^)(\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3})((?=[^A-Za-z0-9])|$)", "IP"),
        (r"((?<=[^A-Za-z0-9])|^)([0-9a-f]{6,} ?){3,}((?=[^A-Za-z0-9])|$)", "SEQ"),
        (r"((?<=[^A-Za-z0-9])|^)([0-9A-F]{4} ?){4,}((?=[^A-Za-z0-9])|$)", "SEQ"),
        (r"((?<=[^A-Za-z0-9])|^)(0x[a-f0-9A-F]+)((?=[^A-Za-z0-9])|$)", "HEX"),
        (r"((?<=[^A-Za-z0-9])|^)([\-\+]?\d+)((?=[^A-Za-z0-9])|$)", "NUM"),
    )
]


def _word(randomness: random.Random) -> str:
    return "".join(randomness.choices("abcdefghijklmnopqrstuvwxyz", k=randomness.randint(3, 9)))


def _request(r: random.Random) -> str:
    return (
        f'10.1.{r.randrange(200)}.{r.randrange(9)} - - [15/Jan/2024:10:00:00 +0000] "GET /{_word(r)}/{_word(r)} '
        f'HTTP/1.1" {r.choice((200, 200, 404, 500))} {r.randrange(100, 9999)} "-" "Mozilla/5.0 (X11; Linux x86_64)"'
    )


LINES: Mapping[str, tuple[int, Callable[[random.Random], str]]] = {
    "requests with paths": (16_000, _request),
    "one free word": (20_000, lambda r: f"2024-01-15 10:00:00 INFO app basket of {_word(r)} paid at the till"),
    "two free words": (
        20_000,
        lambda r: f"2024-01-15 10:00:00 INFO app moved {_word(r)} over to {_word(r)} in the shop",
    ),
    "tails of free words": (
        20_000,
        lambda r: f"2024-01-15 10:00:00 INFO app note: {' '.join(_word(r) for _ in range(r.randint(2, 8)))}",
    ),
    "nothing but free words": (20_000, lambda r: " ".join(_word(r) for _ in range(8))),
    "a million requests": (1_000_000, _request),
    "a million free words in one place": (1_000_000, lambda r: f"basket of {_word(r)}{_word(r)} paid at the till"),
}


def learn(kind: str) -> Cost:
    """Learn lines of a kind, in this process."""
    n, line = LINES[kind]
    randomness = random.Random(0)
    batches = (
        pa.array([line(randomness) for _ in range(min(10_000, n - start))], pa.string())
        for start in range(0, n, 10_000)
    )
    learn_vocabulary([pa.array(["warm up"])])
    spent = 0.0

    def timed() -> Iterator[pa.Array]:
        """Leave out the time in which lines are made."""
        nonlocal spent
        for _ in range(0, n, 10_000):
            begun = time.process_time()
            batch = next(batches)
            spent += time.process_time() - begun
            yield batch

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.process_time()
    vocabulary = learn_vocabulary(timed())
    seconds = time.process_time() - begun - spent
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return Cost(kind, n, seconds, grown / 1024, len(vocabulary.templates))


def costs(kinds: Sequence[str]) -> list[Cost]:
    """Learn lines of each kind, each in a process of its own."""
    found = []
    for kind in kinds:
        command = [sys.executable, "-m", "benchmarks.parsing", "--learn", kind]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(Cost(**json.loads(done.stdout)))
    return found


def show_parsing(console: Console, results: Mapping[str, Sequence[Parsing]]) -> None:
    """One row a system and parser, and the means of both halves."""
    columns = (
        "GA / FGA plain",
        "GA / FGA refined",
        "codes as one",
        "PA",
        "mixed",
        "templates",
        "beyond new",
        "taken",
        "likened",
    )
    table = Table("parser", "system", *columns)
    for parser, parsed in results.items():
        for each in parsed:
            table.add_row(parser, each.system, *_cells([each]))
        for name, part in (("chosen on", False), ("held out", True)):
            table.add_row(parser, f"[bold]{name}", *_cells([each for each in parsed if each.held_out == part]))
        table.add_row(parser, "[bold]all", *_cells(parsed), end_section=True)
    console.print(table)


def _cells(parsed: Sequence[Parsing]) -> list[str]:
    def mean(of: Callable[[Parsing], float | None], digits: str) -> str:
        values = [value for value in map(of, parsed) if value is not None]
        return format(statistics.mean(values), digits) if values else ""

    return [
        f"{mean(lambda each: each.plain.accuracy, '.3f')} / {mean(lambda each: each.plain.f1, '.3f')}",
        f"{mean(lambda each: each.refined.accuracy, '.3f')} / {mean(lambda each: each.refined.f1, '.3f')}",
        f"{mean(lambda each: each.codes_as_one.accuracy, '.3f')} / {mean(lambda each: each.codes_as_one.f1, '.3f')}",
        mean(lambda each: each.parsing_accuracy, ".3f"),
        str(sum(each.refined.mixed_lines for each in parsed)),
        f"{sum(each.refined.templates for each in parsed)} of {sum(each.refined.event_types for each in parsed)}",
        mean(lambda each: each.unknown_beyond_new, ".2%"),
        mean(lambda each: each.new_taken_for_old, ".2%"),
        f"{mean(lambda each: each.old_likened, '.2%')} / {mean(lambda each: each.new_likened, '.2%')}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--without-drain", action="store_true", help="leave out Drain3, which takes longest")
    parser.add_argument("--costs", action="store_true", help="what learning costs, instead")
    parser.add_argument("--learn", choices=LINES, help="learn these lines, print the cost as JSON")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()

    if arguments.learn:
        json.dump(asdict(learn(arguments.learn)), sys.stdout)
        return
    console = Console(width=max(Console().width, 140))
    if arguments.costs:
        found = costs(list(LINES))
        table = Table("lines", "n", "s", "lines/s", "memory, MB", "templates")
        for each in found:
            rate = f"{each.n / each.seconds:,.0f}"
            table.add_row(
                each.lines, f"{each.n:,}", f"{each.seconds:.2f}", rate, f"{each.memory_mb:.0f}", str(each.templates)
            )
        console.print(table)
        figures: object = [asdict(each) for each in found]
    else:
        if not DATA.is_dir():
            console.print(f"There are no logs at {DATA}; LOGMAMBA_SHARED names the folder that holds data/.")
            return
        systems = [System.read(name) for name in (*CHOSEN, *HELD_OUT)]
        results = {"logmamba": [parse(system) for system in systems]}
        if not arguments.without_drain:
            results["Drain3"] = [parse_with_drain(system, []) for system in systems]
            results["Drain3, masks"] = [parse_with_drain(system, USUAL_MASKS) for system in systems]
        show_parsing(console, results)
        figures = {name: [asdict(each) for each in parsed] for name, parsed in results.items()}
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
