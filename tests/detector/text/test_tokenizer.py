"""Tokens are a pure function of (line, vocabulary); templates depend on the lines and their order alone."""

import csv
import gzip
import random
from collections import defaultdict
from itertools import pairwise, product

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.text.canonical import Mask
from detector.text.mining import learn_vocabulary
from detector.text.tokenizer import Tokenizer
from detector.text.vocabulary import N_SPECIAL, UNK, Vocabulary
from tests.shared import SHARED, needs_shared

# Few words, so that random lines share shapes, templates generalise and wildcards lead.
WORD = st.sampled_from(["open", "close", "file", "disk", "full", "a=1", "x|y", "17", "blk_-3", "<*>", "Mon", "é"])
LINE = st.lists(WORD, max_size=7).map(" ".join)
LETTERS = "abcdefghijklmnopqrst"
LINES = st.lists(LINE, max_size=30)


def strings(lines: list[str]) -> pa.Array:
    return pa.array(lines, pa.string())


@given(LINES)
def test_every_line_learned_from_is_known(lines: list[str]) -> None:
    lines = [line for line in lines if line.strip()]
    tokenizer = Tokenizer(learn_vocabulary([strings(lines)]))
    assert all(token >= N_SPECIAL for token in tokenizer.encode(strings(lines)).tolist())
    assert tokenizer.unknown_lines == 0


@given(LINES, LINES, st.data())
def test_a_token_depends_on_nothing_but_the_line_and_the_vocabulary(
    known: list[str], lines: list[str], data: st.DataObject
) -> None:
    vocabulary = learn_vocabulary([strings(known)])
    expected = [Tokenizer(vocabulary).encode(strings([line])).item() for line in lines]

    tiny = Tokenizer(Vocabulary.from_json(vocabulary.to_json()), dictionary_lines=2, dictionary_characters=20)
    for _ in range(2):  # cold, then warm
        cuts = sorted(data.draw(st.lists(st.integers(0, len(lines)), max_size=4)))
        bounds = [0, *cuts, len(lines)]
        parts = [lines[a:b] for a, b in pairwise(bounds)]
        assert [token for part in parts for token in tiny.encode(strings(part)).tolist()] == expected

    order = data.draw(st.permutations(range(len(lines))))
    shuffled = Tokenizer(vocabulary).encode(strings([lines[index] for index in order])).tolist()
    assert shuffled == [expected[index] for index in order]


CODED = Vocabulary(("till <num> answered 404 at <path>", "till <num> answered 200 at <path>", "till <*>"))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["1", "22", "404"]),
            st.sampled_from(["200", "404", "500", "4040", "-", "x200"]),
            st.sampled_from(["/a/b", "/a/b7", "/c?d=404", "/e f"]),
        ),
        max_size=20,
    ),
    st.data(),
)
def test_a_code_is_read_from_its_own_line(parts: list[tuple[str, str, str]], data: st.DataObject) -> None:
    lines = [f"till {till} answered {code} at {path}" for till, code, path in parts]
    tokenizer = Tokenizer(CODED, unknown="unk", dictionary_lines=4)
    cut = data.draw(st.integers(0, len(lines)))
    tokens = [token for part in (lines[:cut], lines[cut:]) for token in tokenizer.encode(strings(part)).tolist()]
    known = {"404": 3, "200": 4}
    assert tokens == [UNK if path == "/e f" else known.get(code, UNK) for _, code, path in parts]


def test_a_line_too_long_to_be_read_to_its_end_has_no_code() -> None:
    lines = [f"till {'1' * digits} answered 404 at /a" for digits in (1, 5_000)]
    assert Tokenizer(CODED, unknown="unk").encode(strings(lines)).tolist() == [3, UNK]


@given(LINES, st.randoms(use_true_random=False))
def test_the_order_of_the_templates_does_not_decide_which_one_matches(
    lines: list[str], randomness: random.Random
) -> None:
    vocabulary = learn_vocabulary([strings(lines)])
    templates = list(vocabulary.templates)
    randomness.shuffle(templates)
    other = Vocabulary(tuple(templates))
    names = [[v.text(token) for token in Tokenizer(v).encode(strings(lines)).tolist()] for v in (vocabulary, other)]
    assert names[0] == names[1]


@given(st.lists(LINE, min_size=10, max_size=60), st.sampled_from([1, 4, 4096]), st.data())
def test_how_lines_fall_into_batches_does_not_change_what_is_learned(
    lines: list[str], max_templates: int, data: st.DataObject
) -> None:
    bounds = [0, *sorted(data.draw(st.lists(st.integers(0, len(lines)), max_size=6))), len(lines)]
    batches = [strings(lines[start:stop]) for start, stop in pairwise(bounds)]
    whole = learn_vocabulary([strings(lines)], max_templates=max_templates)
    assert learn_vocabulary(batches, max_templates=max_templates) == whole
    assert len(whole.templates) <= max_templates


def test_the_most_specific_template_wins_and_a_leading_wildcard_is_found() -> None:
    vocabulary = Vocabulary(("<*> <*> <*>", "<*> y z", "x <*> u", "x y <*>", "x y z"))
    tokenizer = Tokenizer(vocabulary)
    lines = ["x y z", "x y a", "x a u", "a y z", "a c e", "x a z", "1 y z"]
    assert tokenizer.encode(strings(lines)).tolist() == [7, 6, 5, 4, 3, 3, 4]


def test_a_template_seen_all_the_time_outlives_a_flood_of_others() -> None:
    words = ["".join(letters) for letters in product(LETTERS, repeat=3)]
    flood = [f"{word} {other} {word} {other}" for word, other in zip(words, reversed(words), strict=True)]
    lines = [line for index, line in enumerate(flood) for line in (line, f"request {index} served")[: 1 + index % 2]]
    vocabulary = learn_vocabulary([strings(lines)], max_templates=64)
    assert len(vocabulary.templates) <= 64
    assert vocabulary.token_of("request <num> served") is not None


def test_unknown_lines_are_counted_and_carry_their_text_only_if_asked_to() -> None:
    vocabulary = learn_vocabulary([strings(["disk 1 is full", "disk 2 is empty"])])
    lines = strings(["the disk burns", "disk 3 is full", "zzz", "the disk burns"])
    semantic, plain = Tokenizer(vocabulary), Tokenizer(vocabulary, unknown="unk")
    tokens = semantic.encode(lines).tolist()
    assert tokens[0] == tokens[3] < 0
    assert tokens[1] >= N_SPECIAL
    assert tokens[2] == UNK
    assert plain.encode(lines).tolist() == [UNK, tokens[1], UNK, UNK]
    assert semantic.unknown_lines == plain.unknown_lines == 3


def test_event_names_are_taken_verbatim() -> None:
    tokenizer = Tokenizer(Vocabulary(("5", "22", "E 1"), kind="events"), unknown="unk")
    assert tokenizer.encode(strings(["22", "5", "E 1", "6", "E  1", ""])).tolist() == [4, 3, 5, UNK, UNK, UNK]


def test_a_mask_makes_lines_equal_that_digits_alone_do_not() -> None:
    lines = strings(["user alice logged in", "user bob logged in"])
    vocabulary = learn_vocabulary([lines], masks=(Mask("alice|bob", "user"),))
    assert vocabulary.templates == ("user <user> logged in",)
    assert Tokenizer(vocabulary).encode(lines).tolist() == [3, 3]


def test_chunked_and_large_arrays_are_read_and_others_refused() -> None:
    tokenizer = Tokenizer(Vocabulary(("a b", "c d")))
    assert tokenizer.encode(pa.chunked_array([["a b"], ["c d"]])).tolist() == [3, 4]
    assert tokenizer.encode(pa.array(["c d"], pa.large_string())).tolist() == [4]
    assert tokenizer.encode(strings([])).tolist() == []
    with pytest.raises(ValueError, match="lines are binary, not strings"):
        tokenizer.encode(pa.array([b"a"]))
    with pytest.raises(ValueError, match="1 of 2 lines are null"):
        tokenizer.encode(pa.array(["a", None]))


def test_a_flood_of_distinct_lines_keeps_the_dictionary_bounded_and_tokens_stable() -> None:
    tokenizer = Tokenizer(Vocabulary(("job done", "job <*> done")), dictionary_lines=1000)
    known = strings(["job done", "job 7 done"])
    words = ["".join(letters) for letters in product(LETTERS, repeat=4)]
    for start in range(0, len(words), 50_000):
        flood = tokenizer.encode(strings([f"{word} {word}" for word in words[start : start + 50_000]]))
        assert (flood <= UNK).all()
        assert tokenizer.encode(known).tolist() == [3, 4]
        assert len(tokenizer._dictionary) <= 1001
    assert tokenizer.unknown_lines == len(words) == 160_000


def test_long_lines_do_not_fill_the_dictionary() -> None:
    tokenizer = Tokenizer(Vocabulary(("a",)), dictionary_characters=40_000)
    tokenizer.encode(strings([f"{letters[0]}{letters[1]} " * 30_000 for letters in product(LETTERS, repeat=2)]))
    assert len(tokenizer._dictionary) <= 10


def test_a_line_of_very_many_words_is_a_line_like_others() -> None:
    line = "word " * 13_000
    vocabulary = learn_vocabulary([strings([line])])
    assert Tokenizer(vocabulary).encode(strings([line, "word " * 5000, "word"])).tolist()[:2] == [3, 3]


@needs_shared
def test_templates_of_hdfs_never_mix_two_of_loghubs_event_types() -> None:
    assert SHARED is not None
    with gzip.open(SHARED / "data/hdfs/raw.log.gz", "rt", encoding="utf-8") as file:
        lines = file.read().splitlines()
    with gzip.open(SHARED / "data/hdfs/sessions.tsv.gz", "rt", encoding="utf-8") as file:
        events = {row["block_id"]: row["events"].split() for row in csv.DictReader(file, delimiter="\t")}
    vocabulary = learn_vocabulary([strings(lines)])
    tokenizer = Tokenizer(vocabulary)
    tokens = tokenizer.encode(strings(lines)).tolist()
    assert tokenizer.unknown_lines == 0

    types_of_token, tokens_of_type, position = defaultdict(set), defaultdict(set), defaultdict(int)
    for line, token in zip(lines, tokens, strict=True):
        block = line[line.index("blk_") :].split()[0].split("/")[0].rstrip(".")
        event = events[block][position[block]]
        position[block] += 1
        types_of_token[token].add(event)
        tokens_of_type[event].add(token)
    assert all(position[block] == len(events[block]) for block in position)
    assert len(tokens_of_type) == 19
    assert all(len(types) == 1 for types in types_of_token.values())
    assert all(len(tokens) == 1 for tokens in tokens_of_type.values())
