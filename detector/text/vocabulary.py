"""The frozen vocabulary of a checkpoint: which token stands for which template.

`vocabulary.json` is exactly `Vocabulary.to_json()`. Templates keep the order in which they were learned, so a
vocabulary that only adds templates starts with the older one.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal, cast, get_args

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from detector.text import word_hashes as text
from detector.text.canonical import Mask, canonicalise, shape

BOS: Final = 0
EOS: Final = 1
UNK: Final = 2
N_SPECIAL: Final = 3
"""Token of the first template."""

Kind = Literal["lines", "events"]

_SCHEMA = "logmamba.vocabulary/1"
_SPECIAL_TEXT = ("<bos>", "<eos>", "<unknown>")


@dataclass(frozen=True)
class Vocabulary:
    """Templates in the order of their tokens; the token of `templates[i]` is `i + N_SPECIAL`.

    Attributes:
        templates: for lines, `detector.text.canonical.shape` of a line with wildcards where lines differ; for
            parsed
            sessions, the events' names, verbatim.
        masks: applied to every line before its digits collapse.
        kind: `lines` for raw log lines, `events` for parsed sessions.

    Raises:
        ValueError: a template that is empty, occurs twice or could never match a line.
    """

    templates: tuple[str, ...]
    masks: tuple[Mask, ...] = ()
    kind: Kind = "lines"

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"vocabulary kind {self.kind!r} is not one of {', '.join(get_args(Kind))}")
        for index, template in enumerate(self.templates):
            _check_template(index, template, self.kind)
        if len(self._token_of) != len(self.templates):
            repeated, _ = Counter(self.templates).most_common(1)[0]
            raise ValueError(f"vocabulary has the template {repeated!r} twice")

    def __len__(self) -> int:
        """Return the number of tokens, special tokens included."""
        return N_SPECIAL + len(self.templates)

    def to_json(self) -> bytes:
        """Return the content of `vocabulary.json`: the same bytes for the same vocabulary."""
        return orjson.dumps(
            {
                "schema": _SCHEMA,
                "kind": self.kind,
                "masks": [{"pattern": mask.pattern, "name": mask.name} for mask in self.masks],
                "templates": self.templates,
            },
            option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE,
        )

    @classmethod
    def from_json(cls, data: bytes) -> "Vocabulary":
        """Read `vocabulary.json`.

        Raises:
            ValueError: what is wrong with it.
        """
        try:
            content = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"vocabulary is not JSON: {error}") from error
        if not isinstance(content, dict) or content.get("schema") != _SCHEMA:
            raise ValueError(f"vocabulary does not have the schema {_SCHEMA!r}")
        expected = {"schema", "kind", "masks", "templates"}
        if content.keys() != expected:
            odd = ", ".join(sorted(content.keys() ^ expected))
            raise ValueError(f"vocabulary has missing or unknown keys: {odd}")
        templates, masks = content["templates"], content["masks"]
        if not isinstance(templates, list) or not all(isinstance(template, str) for template in templates):
            raise ValueError("vocabulary templates are not a list of strings")
        if not isinstance(masks, list) or not all(_is_mask(mask) for mask in masks):
            raise ValueError("vocabulary masks are not a list of {pattern, name}")
        return cls(tuple(templates), tuple(Mask(**mask) for mask in masks), cast("Kind", content["kind"]))

    @cached_property
    def sha256(self) -> str:
        """`sha256:` and the hash of `to_json()`."""
        return f"sha256:{hashlib.sha256(self.to_json()).hexdigest()}"

    def truncated(self, n_templates: int) -> "Vocabulary":
        """Return the vocabulary of the first templates.

        A vocabulary B only adds templates to A if `B.truncated(len(A.templates)).sha256 == A.sha256`.

        Raises:
            ValueError: there are fewer templates than that.
        """
        if not 0 <= n_templates <= len(self.templates):
            raise ValueError(f"vocabulary has {len(self.templates)} templates, not {n_templates}")
        return Vocabulary(self.templates[:n_templates], self.masks, self.kind)

    def text(self, token: int) -> str:
        """Return a token as shown to people: the template with its wildcards, or `<unknown>`.

        Raises:
            IndexError: no such token.
        """
        if token < 0:
            return _SPECIAL_TEXT[UNK]
        return _SPECIAL_TEXT[token] if token < N_SPECIAL else self.templates[token - N_SPECIAL]

    def token_of(self, template: str) -> int | None:
        """Return the token of a template given as `text` shows it, or of a line with exactly that shape."""
        token = self._token_of.get(template)
        if token is None and self.kind == "lines":
            canonical = canonicalise(pa.array([template], pa.string()), self.masks)[0].as_py()
            token = self._token_of.get(shape(canonical))
        return token

    def template_features(self) -> NDArray[np.int64]:
        """Return the rarest buckets of each token's text, by document frequency over the templates.

        Returns:
            (len(self), TEXT_FEATURES) buckets, ascending and filled up with 0; special tokens have none.
        """
        features = np.zeros((len(self), text.TEXT_FEATURES), np.int64)
        for token, buckets in enumerate(self._features, start=N_SPECIAL):
            features[token, : len(buckets)] = buckets
        return features

    def sketch(self, canonical: str) -> int:
        """Return the negative token of a line that no template matches, UNK if none of its words is known.

        Only buckets that describe some template count: the model has learned no vector for the others.
        """
        words = shape(canonical) if self.kind == "lines" else canonical
        known = [bucket for bucket in text.buckets(words) if bucket in self._described]
        return text.pack(self._rarest(known)) if known else UNK

    @cached_property
    def _token_of(self) -> dict[str, int]:
        return {template: token for token, template in enumerate(self.templates, start=N_SPECIAL)}

    @cached_property
    def _buckets(self) -> tuple[list[int], ...]:
        return tuple(text.buckets(template) for template in self.templates)

    @cached_property
    def _document_frequency(self) -> Counter[int]:
        return Counter(bucket for buckets in self._buckets for bucket in buckets)

    @cached_property
    def _features(self) -> tuple[list[int], ...]:
        return tuple(self._rarest(buckets) for buckets in self._buckets)

    @cached_property
    def _described(self) -> frozenset[int]:
        return frozenset(bucket for buckets in self._features for bucket in buckets)

    def _rarest(self, buckets: list[int]) -> list[int]:
        # The sort is stable, and `buckets` has words before pairs: words travel further than phrases.
        by_frequency = sorted(buckets, key=self._document_frequency.__getitem__)
        return sorted(by_frequency[: text.TEXT_FEATURES])


def _check_template(index: int, template: str, kind: Kind) -> None:
    try:
        template.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"vocabulary template {index} is not Unicode text: {template!r}") from error
    if not template:
        raise ValueError(f"vocabulary template {index} is empty")
    # A digit of a template would have become part of a wildcard: no line could match it.
    if kind == "lines" and (shape(template) != template or any(digit in template for digit in "0123456789")):
        raise ValueError(f"vocabulary template {index} is not in canonical form: {template!r}")


def _is_mask(mask: object) -> bool:
    return (
        isinstance(mask, dict)
        and mask.keys() == {"pattern", "name"}
        and all(isinstance(value, str) for value in mask.values())
    )
