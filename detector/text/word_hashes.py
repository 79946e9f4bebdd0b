"""The text of a template as a few numbers: hashed words, stable across processes and platforms.

A template, or a line that no template matches, is described by at most `TEXT_FEATURES` buckets of its words
and of its pairs of neighbouring words. The model adds one learned vector per bucket, so a line never seen in
training still means what its words meant elsewhere. The buckets of an unknown line travel inside its
(negative) token.
"""

import re
import zlib
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # else whoever only hashes words would load PyTorch
    from torch import Tensor

_Tokens = TypeVar("_Tokens", NDArray[np.int64], "Tensor")

TEXT_BUCKETS = 4096
"""Buckets of the hash, a power of two: 12 bits; bucket 0 stands for "none"."""

TEXT_FEATURES = 5
"""Most buckets of one text: five times 12 bits fit a non-negative int64."""

_BITS = TEXT_BUCKETS.bit_length() - 1
_CASE_CHANGE = re.compile(r"(?<=[a-z])(?=[A-Z])")
_DIGIT = re.compile(r"\d")
_WORD = re.compile(r"[^\W\d_]+")


def buckets(text: str) -> list[int]:
    """Return the distinct buckets of a text's words, then those of its pairs of neighbouring words."""
    words, pairs = words_and_pairs(text)
    return [*words, *pairs]


def words_and_pairs(text: str) -> tuple[list[int], list[int]]:
    """Return the distinct buckets of a text's words, and the others of its pairs of neighbouring words.

    Words are runs of letters, lower-cased; identifiers fall apart at a change of case (`addStoredBlock` is
    three words). What holds a digit, and the wildcard, says nothing about the meaning and is left out.
    """
    words: list[str] = []
    for part in text.split():
        if not _DIGIT.search(part):
            words += (word.lower() for word in _WORD.findall(_CASE_CHANGE.sub(" ", part)))
    of_words = dict.fromkeys(map(_bucket, words))
    of_pairs = dict.fromkeys(_bucket(f"{first} {second}") for first, second in pairwise(words))
    return list(of_words), [bucket for bucket in of_pairs if bucket not in of_words]


def pack(features: Sequence[int]) -> int:
    """Return the negative token that carries these buckets.

    Args:
        features: at most `TEXT_FEATURES` buckets, each from 1 to `TEXT_BUCKETS` - 1.

    Raises:
        ValueError: too many buckets, or one out of range.
    """
    if len(features) > TEXT_FEATURES:
        raise ValueError(f"a token carries at most {TEXT_FEATURES} buckets, not {len(features)}")
    packed = 0
    for position, bucket in enumerate(features):
        if not 0 < bucket < TEXT_BUCKETS:
            raise ValueError(f"bucket {bucket} is not between 1 and {TEXT_BUCKETS - 1}")
        packed |= bucket << (_BITS * position)
    return -1 - packed


def unpack(tokens: _Tokens) -> list[_Tokens]:
    """Return the buckets that negative tokens carry.

    Args:
        tokens: int64 (T,) negative tokens, of NumPy or PyTorch.

    Returns:
        `TEXT_FEATURES` columns (T,) like `tokens`, 0 where a token carries fewer.
    """
    return [((-1 - tokens) >> (_BITS * position)) & (TEXT_BUCKETS - 1) for position in range(TEXT_FEATURES)]


def _bucket(term: str) -> int:
    return zlib.crc32(term.encode()) % (TEXT_BUCKETS - 1) + 1
