"""The text of a template as buckets, and buckets inside a token."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detector.text.word_hashes import TEXT_BUCKETS, TEXT_FEATURES, buckets, pack, unpack

BUCKETS = st.lists(st.integers(1, TEXT_BUCKETS - 1), max_size=TEXT_FEATURES)


@given(st.lists(BUCKETS, max_size=20))
def test_a_token_carries_its_buckets_there_and_back(texts: list[list[int]]) -> None:
    tokens = np.array([pack(features) for features in texts], np.int64)
    assert (tokens < 0).all()
    expected = [[*features, *[0] * (TEXT_FEATURES - len(features))] for features in texts]
    for columns in (unpack(tokens), unpack(torch.from_numpy(tokens))):
        assert len(columns) == TEXT_FEATURES
        assert [list(features) for features in zip(*columns, strict=True)] == expected


@pytest.mark.parametrize("features", [[0], [TEXT_BUCKETS], [-1], [1] * (TEXT_FEATURES + 1)])
def test_what_does_not_fit_a_token_is_refused(features: list[int]) -> None:
    with pytest.raises(ValueError, match=r"bucket"):
        pack(features)


@given(st.text())
def test_buckets_of_any_text_are_distinct_and_in_range(text: str) -> None:
    found = buckets(text)
    assert len(set(found)) == len(found)
    assert all(1 <= bucket < TEXT_BUCKETS for bucket in found)


def test_buckets_are_the_same_on_every_machine() -> None:
    assert buckets("Receiving block <*> src: <*>") == [302, 2399, 2352, 331, 1765]


def test_case_values_and_punctuation_do_not_change_the_meaning() -> None:
    meaning = buckets("added stored block to disk")
    assert buckets("<*> addedStoredBlock: to blk_-17 DISK!") == meaning
    assert buckets("12 <*> ... 3.5 --") == []


def test_the_order_of_words_shows_in_the_pairs_only() -> None:
    one, other = buckets("block deleted"), buckets("deleted block")
    assert set(one[:2]) == set(other[:2])
    assert one[2:] != other[2:]
