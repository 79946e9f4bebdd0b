"""Templates from shapes: what becomes a value and what stays."""

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.text.learning import Template, generalise
from detector.text.matching import Matcher
from detector.text.words import WILDCARD, is_fixed

NAMES = ["anna", "bert", "cleo", "dora", "emil", "finn", "gina", "hugo", "ines", "jack", "kira", "lars", "mona", "olga"]


def learnt(lines: Sequence[str]) -> list[str]:
    shapes = dict.fromkeys(lines)
    templates = generalise([Template(tuple(s.split()), (1,) * len(s.split()), lines.count(s)) for s in shapes])
    return [" ".join(template.words) for template in templates]


def test_a_place_with_many_words_is_a_value() -> None:
    assert learnt([f"{name} logged in from office" for name in NAMES]) == ["<*> logged in from office"]


@pytest.mark.parametrize("names", [2, 3, 8])
def test_a_place_with_few_words_is_not(names: int) -> None:
    assert len(learnt([f"link of rack {name} repaired" for name in NAMES[:names]])) == names


def test_few_words_that_look_like_identifiers_are_a_value() -> None:
    assert learnt([f"job {name} cleaned up" for name in ("red-one", "red-two", "sky_low")]) == ["job <*> cleaned up"]


def test_what_follows_user_is_a_value() -> None:
    assert learnt(["session of user root granted", "session of user guest granted"]) == ["session of user <*> granted"]


@pytest.mark.parametrize(
    "words", [("Started", "Paused", "Resumed"), ("INFO", "WARN", "ERROR"), ("up", "down"), ("E0", "I0", "W0")]
)
def test_words_that_tell_events_apart_stay_however_much_else_varies(words: tuple[str, ...]) -> None:
    lines = [f"<*> {word} lifecycle of machine {name}" for word in words for name in NAMES]
    assert learnt(lines) == [f"<*> {word} lifecycle of machine <*>" for word in words]


def test_single_words_behind_a_logger_are_different_events() -> None:
    messages = [f"{name} {other}" for name, other in pairwise(NAMES)] + NAMES
    assert len(learnt([f"<*> INFO Logger {message}" for message in messages])) == len(messages)


def test_a_leading_column_that_says_nothing_about_the_message_is_a_value() -> None:
    messages = ["disk swept clean", "fan speed set", "cable test over", "clock in step", "lamp replaced"]
    lines = [f"{host} {message}" for message in messages for host in ("alpha", "beta", "gamma")]
    assert learnt(lines) == [f"<*> {message}" for message in messages]


def test_values_behind_keys_vary_together() -> None:
    lines = [
        f"wake lock acquire flags= <*> tag= {tag} name= {name}" for tag, name in zip(NAMES[:4], NAMES[4:8], strict=True)
    ]
    assert learnt(lines) == ["wake lock acquire flags= <*> tag= <*> name= <*>"]


def test_tails_of_free_words_are_one_value() -> None:
    randomness = random.Random(0)
    word = lambda: "".join(randomness.choices("abcdefghij", k=7))  # noqa: E731
    lines = [f"<*> note taken {' '.join(word() for _ in range(randomness.randint(2, 6)))}" for _ in range(400)]
    templates = learnt(lines)
    assert "<*> note taken <*>" in templates
    assert len(templates) < 8


WORD = st.sampled_from(
    ["open", "close", "file", "disk", "error", "<*>", "id0", "id=", "a-b", "ms", "Mon", "x.y.z", "E0"]
)
SHAPE = st.lists(WORD, min_size=1, max_size=6).map(tuple)


@given(st.lists(SHAPE, max_size=60), st.randoms(use_true_random=False))
def test_every_shape_matches_a_template_and_the_order_of_shapes_decides_nothing(
    shapes: list[tuple[str, ...]], randomness: random.Random
) -> None:
    # As `words` gives them: values that follow each other are one, units and calendars go with them.
    shapes = list(dict.fromkeys(shape for shape in shapes if not {"<*>"} & set(shape) or len(set(shape)) == 1))
    shapes = [shape for shape in shapes if len(shape) == 1 or WILDCARD not in shape]
    given_shapes = [Template(shape, (1,) * len(shape), 1 + len(shape)) for shape in shapes]
    templates = generalise(given_shapes)
    matcher = Matcher()
    for index, template in enumerate(templates):
        matcher.put(template.words, template.widths, index)
    assert all(matcher.match(shape) is not None for shape in shapes)
    randomness.shuffle(given_shapes)
    assert {each.words for each in generalise(given_shapes)} == {each.words for each in templates}


def test_a_value_never_takes_a_word_that_tells_events_apart() -> None:
    matcher = Matcher()
    matcher.put(("job", WILDCARD, "done"), (1, 3, 1), 0)
    assert matcher.match(("job", "a", "b", "done")) is not None
    assert matcher.match(("job", "a", "b", "c", "d", "done")) is None
    assert is_fixed("failed")
    assert matcher.match(("job", "failed", "done")) is None
