"""A flood of lines that no template matches."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Literal

import psutil
import pyarrow as pa
import pytest

from detector.text.tokenizer import Tokenizer
from detector.text.vocabulary import UNK, Vocabulary
from tests.faults.report import FaultReport
from worker.generator.log import GeneratedLog

LINES = 1_000_000
BATCH = 10_000
FULL_AFTER = 300_000  # lines; the dictionary remembers fewer
# Of 700,000 further lines: allocators keep a little more or less; to remember the lines takes over 100 MB.
MOST_GROWTH_BYTES = 32 * 2**20


@pytest.mark.fault(row=14, core=False)
@pytest.mark.parametrize("unknown", ["unk", "semantic"])
def test_a_million_distinct_lines_leave_memory_flat_and_tokens_as_they_were(
    unknown: Literal["unk", "semantic"], checkpoint: Path, fault_report: FaultReport
) -> None:
    vocabulary = Vocabulary.from_json((checkpoint / "vocabulary.json").read_bytes())
    tokenizer = Tokenizer(vocabulary, unknown=unknown)
    known = pa.array([each.text for each in GeneratedLog(lines=1_000, seed=3)], pa.string())
    before = tokenizer.encode(known)
    known_unknown = tokenizer.unknown_lines
    tokens_of: dict[int, int] = {}
    sample = set(random.Random(0).sample(range(LINES), 1_000))

    full_bytes = 0
    for start in range(0, LINES, BATCH):
        numbers = range(start, start + BATCH)
        tokens = tokenizer.encode(pa.array([line(number) for number in numbers], pa.string()))
        assert (tokens == UNK).all() if unknown == "unk" else (tokens <= UNK).all()
        tokens_of |= {number: int(tokens[number - start]) for number in sample.intersection(numbers)}
        if start + BATCH == FULL_AFTER:
            full_bytes = psutil.Process().memory_info().rss
    grown_bytes = psutil.Process().memory_info().rss - full_bytes

    fault_report(f"distinct lines to the tokenizer ({unknown}); memory {grown_bytes / 2**20:+.1f} MB", records=LINES)
    assert tokenizer.unknown_lines == known_unknown + LINES
    assert grown_bytes < MOST_GROWTH_BYTES
    assert (tokenizer.encode(known) == before).all()
    numbers_again = sorted(sample, reverse=True)
    again = pa.array([line(number) for number in numbers_again], pa.string())
    for other in (tokenizer, Tokenizer(vocabulary, unknown=unknown)):
        assert other.encode(again).tolist() == [tokens_of[number] for number in numbers_again]


def line(number: int) -> str:
    """Lines of different letters: digits alone would all be one canonical line."""
    word = "".join(chr(ord("a") + int(digit)) for digit in str(number))
    return f"unheard of block {word} in {word * 3} at {word[::-1]}"
