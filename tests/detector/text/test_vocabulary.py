"""vocabulary.json: its bytes, what is refused, and the text of known and unknown lines."""

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.text import word_hashes as text
from detector.text.canonical import Mask
from detector.text.vocabulary import BOS, EOS, N_SPECIAL, UNK, Vocabulary

DOWNLOADS = Vocabulary(
    (
        "<*> INFO Download of <*> started",
        "<*> INFO Download of <*> finished in <*> ms",
        "<*> ERROR Disk is full",
    ),
    masks=(Mask("[0-9a-f]{32}", "hash"),),
)


def test_json_there_and_back_is_the_same_vocabulary() -> None:
    again = Vocabulary.from_json(DOWNLOADS.to_json())
    assert again == DOWNLOADS
    assert again.to_json() == DOWNLOADS.to_json()
    assert again.sha256 == DOWNLOADS.sha256


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), unique=True))
def test_any_event_names_survive_json_verbatim(names: list[str]) -> None:
    vocabulary = Vocabulary(tuple(names), kind="events")
    assert Vocabulary.from_json(vocabulary.to_json()) == vocabulary
    assert [vocabulary.token_of(name) for name in names] == list(range(N_SPECIAL, len(vocabulary)))


def test_a_vocabulary_that_only_adds_templates_is_recognised_by_its_beginning() -> None:
    longer = Vocabulary((*DOWNLOADS.templates, "one more"), DOWNLOADS.masks)
    assert longer.truncated(3).sha256 == DOWNLOADS.sha256
    assert longer.sha256 != DOWNLOADS.sha256
    assert Vocabulary(DOWNLOADS.templates).sha256 != DOWNLOADS.sha256
    with pytest.raises(ValueError, match="has 4 templates, not 5"):
        longer.truncated(5)


def content(**changes: object) -> bytes:
    return orjson.dumps(orjson.loads(DOWNLOADS.to_json()) | changes)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[]", "does not have the schema"),
        (content(schema="logmamba.vocabulary/2"), "does not have the schema"),
        (content(more=1), "missing or unknown keys: more"),
        (content(kind="words"), "'words' is not one of lines, events"),
        (content(kind=None), "None is not one of lines, events"),
        (content(templates="a"), "not a list of strings"),
        (content(templates=["a", 1]), "not a list of strings"),
        (content(templates=["a", "b", "a"]), "has the template 'a' twice"),
        (content(templates=["a", ""]), "template 1 is empty"),
        (content(templates=["a  b"]), "template 0 is not in canonical form"),
        (content(templates=["block 7"]), "template 0 is not in canonical form"),
        (content(masks={}), "masks are not a list"),
        (content(masks=[{"pattern": "a"}]), "masks are not a list of"),
        (content(masks=[{"pattern": 1, "name": "a"}]), "masks are not a list of"),
        (content(masks=[{"pattern": "(", "name": "a"}]), "is not an RE2 pattern"),
    ],
)
def test_a_damaged_vocabulary_is_refused_with_the_reason(data: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Vocabulary.from_json(data)


def test_a_template_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(ValueError, match="template 0 is not Unicode"):
        Vocabulary(("\ud800",), kind="events")


def test_tokens_are_shown_as_templates() -> None:
    assert DOWNLOADS.text(4) == "<*> INFO Download of <*> finished in <*> ms"
    assert [DOWNLOADS.text(token) for token in (BOS, EOS, UNK, -17)] == [
        "<bos>",
        "<eos>",
        "<unknown>",
        "<unknown>",
    ]
    with pytest.raises(IndexError):
        DOWNLOADS.text(len(DOWNLOADS))


def test_a_template_is_found_as_shown_or_by_a_line_of_its_shape() -> None:
    assert DOWNLOADS.token_of("<*> ERROR Disk is full") == 5
    assert DOWNLOADS.token_of("17:30 INFO  Download of blk_12 started") == 3
    assert DOWNLOADS.token_of("Disk is full") is None
    assert Vocabulary(("5",), kind="events").token_of("6") is None


def test_features_are_the_rarest_buckets_and_specials_have_none() -> None:
    features = DOWNLOADS.template_features()
    assert features.shape == (len(DOWNLOADS), text.TEXT_FEATURES)
    assert not features[:N_SPECIAL].any()
    started, finished, _ = features[N_SPECIAL:].tolist()
    (info,) = text.buckets("info")
    assert text.buckets("started")[0] in started
    assert text.buckets("finished")[0] in finished
    assert info not in finished  # two templates say it, and five other buckets say more


def test_an_unknown_line_is_sketched_by_words_that_describe_templates() -> None:
    token = DOWNLOADS.sketch("0 FATAL disk sda0 gone")
    assert token < 0
    assert DOWNLOADS.sketch("gone: disk!") == token
    (disk,) = text.buckets("disk")
    assert np.stack(text.unpack(np.array([token])), 1).tolist() == [[disk, 0, 0, 0, 0]]


def test_an_unknown_line_without_a_known_word_is_unk() -> None:
    assert DOWNLOADS.sketch("0 0 ouverture terminée") == UNK
    assert DOWNLOADS.sketch("") == UNK
