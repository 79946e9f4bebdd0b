"""The frozen vocabulary of a checkpoint: which token stands for which template.

`vocabulary.json` is exactly `Vocabulary.to_json()`. Templates keep the order in which they were learned, so a
vocabulary that only adds templates starts with the older one, and the number of a template stays what it is.

What is added later is a *generation* of its own: a line has the template of the first generation that has one for it,
so that nothing that is added takes a line from an older template.
"""

import hashlib
from collections import Counter
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Final, Literal, cast, get_args

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from detector.text import word_hashes as text
from detector.text.canonical import CANONICAL_CHARACTERS, Mask, collapse, digit_runs, fold, prepare
from detector.text.likeness import Likeness, Told
from detector.text.matching import Matcher
from detector.text.patterns import Pattern, Place, code_run, read, reasons
from detector.text.words import WILDCARD, layout, words

BOS: Final = 0
EOS: Final = 1
UNK: Final = 2
N_SPECIAL: Final = 3
"""Token of the first template."""

VOCABULARY_FILE: Final = "vocabulary.json"
"""Its name in a checkpoint."""

Kind = Literal["lines", "events"]

# What a line's canonical form is, and which words are decisive, is part of it: with other ones, templates that were
# learned before would meet their own lines as unknown.
_SCHEMA = "logmamba.vocabulary/3"
_OLDER = ("logmamba.vocabulary/1", "logmamba.vocabulary/2")
_SPECIAL_TEXT = ("<bos>", "<eos>", "<unknown>")


@dataclass(frozen=True)
class Seen:
    """What a template was learned from.

    Attributes:
        lines: how many lines had it.
        first, last: numbers of the first and the last of them, from 0, among the lines its generation is learned from.
        example: the first one, as it was.
    """

    lines: int
    first: int
    last: int
    example: str


class CodedTemplate:
    """Templates that are equal but for a code.

    Attributes:
        place: of the code.
        tokens: by code.
        other: token of lines with no such code, if there is a template for them.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.tokens: dict[int, int] = {}
        self.other: int | None = None


@dataclass(frozen=True)
class Found:
    """What the templates say of a line.

    Attributes:
        token: of its template; of a coded one, of lines with a code that no template has. None is none.
        coded: where the code decides which template it is.
        run: then, which run of the line's digits is the code, counted from 0 in the folded line.
    """

    token: int | None
    coded: CodedTemplate | None = None
    run: int | None = None


@dataclass(frozen=True)
class Vocabulary:
    """Templates in the order of their tokens; the token of `templates[i]` is `i + N_SPECIAL`.

    Attributes:
        templates: for lines, what `detector.text.patterns` reads; for parsed sessions, the events' names, verbatim.
        masks: applied to every line before its digits collapse.
        kind: `lines` for raw log lines, `events` for parsed sessions.
        seen: what each template was learned from, or empty.
        generations: how many templates were learned together, the oldest first; empty where all of them were.
        learned_generations: of how many of them, from the first on, a model knows the templates.

    Raises:
        ValueError: a template that is empty, occurs twice or could never match a line.
    """

    templates: tuple[str, ...]
    masks: tuple[Mask, ...] = ()
    kind: Kind = "lines"
    seen: tuple[Seen, ...] = ()
    generations: tuple[int, ...] = ()
    learned_generations: int = 1

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"vocabulary kind {self.kind!r} is not one of {', '.join(get_args(Kind))}")
        for index, template in enumerate(self.templates):
            _check_template(index, template)
        if len(self._token_of) != len(self.templates):
            repeated, _ = Counter(self.templates).most_common(1)[0]
            raise ValueError(f"vocabulary has the template {repeated!r} twice")
        if self.seen and len(self.seen) != len(self.templates):
            raise ValueError(
                f"vocabulary knows of {len(self.seen)} templates what it saw, not of {len(self.templates)}"
            )
        if self.generations and (
            len(self.generations) < 2 or min(self.generations) < 1 or sum(self.generations) != len(self.templates)
        ):
            raise ValueError(
                f"vocabulary generations {list(self.generations)} are not two or more numbers above 0 that come to "
                f"its {len(self.templates)} templates"
            )
        if not 1 <= self.learned_generations <= max(len(self.generations), 1):
            raise ValueError(
                f"a model knows {self.learned_generations} generations of a vocabulary that has "
                f"{max(len(self.generations), 1)}"
            )
        if self.kind == "lines":
            _ = self._matching  # refuses what is no template

    def __len__(self) -> int:
        """Return the number of tokens, special tokens included."""
        return N_SPECIAL + len(self.templates)

    def to_json(self) -> bytes:
        """Return the content of `vocabulary.json`: the same bytes for the same vocabulary."""
        templates = []
        for token, template in enumerate(self.templates, start=N_SPECIAL):
            each: dict[str, object] = {"id": token, "text": template}
            if self.seen:
                each |= asdict(self.seen[token - N_SPECIAL])
            if self.kind == "lines" and (why := reasons(template)):
                each["decisive"] = why
            templates.append(each)
        content: dict[str, object] = {
            "schema": _SCHEMA,
            "kind": self.kind,
            "masks": [{"pattern": mask.pattern, "name": mask.name} for mask in self.masks],
            **({"generations": list(self.generations)} if self.generations else {}),
            **({"learned_generations": self.learned_generations} if self.learned_generations > 1 else {}),
            "templates": templates,
        }
        return orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)

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
        schema = content.get("schema") if isinstance(content, dict) else None
        if schema in _OLDER:
            raise ValueError(
                f"vocabulary has the schema {schema!r}: its templates were cut otherwise than lines are now; "
                "train the checkpoint anew"
            )
        if schema != _SCHEMA:
            raise ValueError(f"vocabulary does not have the schema {_SCHEMA!r}")
        if odd_keys := (content.keys() - {"generations", "learned_generations"}) ^ {
            "schema",
            "kind",
            "masks",
            "templates",
        }:
            odd = ", ".join(sorted(odd_keys))
            raise ValueError(f"vocabulary has missing or unknown keys: {odd}")
        masks = content["masks"]
        if not isinstance(masks, list) or not all(_is_mask(mask) for mask in masks):
            raise ValueError("vocabulary masks are not a list of {pattern, name}")
        generations = content.get("generations", [])
        if not isinstance(generations, list) or not all(type(n) is int for n in generations):
            raise ValueError("vocabulary generations are not a list of numbers")
        learned = content.get("learned_generations", 1)
        if type(learned) is not int:
            raise ValueError("vocabulary learned_generations is no number")
        templates, seen = _templates(content["templates"])
        kind = cast("Kind", content["kind"])
        vocabulary = cls(templates, tuple(Mask(**mask) for mask in masks), kind, seen, tuple(generations), learned)
        if vocabulary.kind == "lines":
            for each in content["templates"]:
                if each.get("decisive", {}) != reasons(each["text"]):
                    raise ValueError(f"vocabulary template {each['id']} does not say which of its words are decisive")
        return vocabulary

    @cached_property
    def sha256(self) -> str:
        """`sha256:` and the hash of what decides about tokens: kind, masks, the templates' texts and generations."""
        identity: list[object] = [
            _SCHEMA,
            self.kind,
            [[mask.pattern, mask.name] for mask in self.masks],
            self.templates,
        ]
        identity += [self.generations] if self.generations else []
        return f"sha256:{hashlib.sha256(orjson.dumps(identity)).hexdigest()}"

    def truncated(self, n_templates: int) -> "Vocabulary":
        """Return the vocabulary of the first templates.

        Raises:
            ValueError: there are fewer templates than that.
        """
        if not 0 <= n_templates <= len(self.templates):
            raise ValueError(f"vocabulary has {len(self.templates)} templates, not {n_templates}")
        kept: list[int] = []
        for size in self.generations:
            if left := min(size, n_templates - sum(kept)):
                kept.append(left)
        generations = tuple(kept) if len(kept) > 1 else ()
        learned = min(self.learned_generations, max(len(generations), 1))
        seen = self.seen[:n_templates]
        return Vocabulary(self.templates[:n_templates], self.masks, self.kind, seen, generations, learned)

    def only_adds_to(self, older: "Vocabulary") -> bool:
        """Whether every token of an older vocabulary means here what it meant there."""
        return self.begins_with(len(older.templates), older.sha256)

    def begins_with(self, n_templates: int, sha256: str) -> bool:
        """Whether this one only adds to a vocabulary that had so many templates and this hash."""
        return n_templates <= len(self.templates) and self.truncated(n_templates).sha256 == sha256

    def merged(self, other: "Vocabulary") -> "Vocabulary":
        """Return this vocabulary and, as one more generation, the templates of another one that it has none for.

        Another one that only adds to this one is what comes out.

        Raises:
            ValueError: lines become templates in another way there.
        """
        if self.kind != other.kind:
            raise ValueError(
                f"one vocabulary is of {self.kind}, the other of {other.kind}: they have nothing in common"
            )
        if self.masks != other.masks:
            mine, others = ([f"{mask.name}: {mask.pattern}" for mask in each.masks] for each in (self, other))
            raise ValueError(f"lines are masked otherwise in one ({mine}) than in the other ({others})")
        if other.only_adds_to(self):
            return replace(other, learned_generations=self.learned_generations)
        new = [index for index, template in enumerate(other.templates) if self.token_of(template) is None]
        if not new:
            return self
        seen = (*self.seen, *(other.seen[index] for index in new)) if self.seen and other.seen else ()
        return Vocabulary(
            (*self.templates, *(other.templates[index] for index in new)),
            self.masks,
            self.kind,
            seen,
            (*(self.generations or (len(self.templates),)), len(new)) if self.templates else (),
            self.learned_generations,
        )

    def all_learned(self) -> "Vocabulary":
        """Return this vocabulary as that of a model that knows all of its templates."""
        return replace(self, learned_generations=max(len(self.generations), 1))

    @property
    def learned(self) -> int:
        """Number of tokens that a model knows, special tokens included."""
        return N_SPECIAL + (sum(self.generations[: self.learned_generations]) or len(self.templates))

    def as_learned(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return tokens, (n,), as a model knows them: those of templates that were added later carry their text."""
        if self.learned == len(self):
            return tokens
        return np.where(tokens < 0, tokens, self._as_learned[np.maximum(tokens, 0)])

    @cached_property
    def _as_learned(self) -> NDArray[np.int64]:
        added = [self.sketch(template) for template in self.templates[self.learned - N_SPECIAL :]]
        return np.array([*range(self.learned), *added], np.int64)

    def text(self, token: int) -> str:
        """Return a token as shown to people: the template with its values, or `<unknown>`.

        Raises:
            IndexError: no such token.
        """
        if token < 0:
            return _SPECIAL_TEXT[UNK]
        return _SPECIAL_TEXT[token] if token < N_SPECIAL else self.templates[token - N_SPECIAL]

    def token_of(self, template: str) -> int | None:
        """Return the token of a template given as `text` shows it, or of a line."""
        token = self._token_of.get(template)
        if token is not None or self.kind == "events":
            return token
        folded = fold(prepare(pa.array([template[:CANONICAL_CHARACTERS]], pa.string()), self.masks))
        found = self.find(collapse(folded)[0].as_py())
        _, numbers = digit_runs(folded)
        # A line that says <num> itself has fewer numbers than it seems.
        if found.coded is None or found.run is None or found.run >= len(numbers):
            return found.token
        return found.coded.tokens.get(int(numbers[found.run]), found.token)

    def find(self, folded: str) -> Found:
        """Return what the templates say of a canonical line, folded."""
        matchers, patterns = self._matching
        shape = words(folded)
        match = next((match for matcher in matchers if (match := matcher.match(shape)) is not None), None)
        if match is None:
            return Found(None)
        coded = patterns[match.number]
        if isinstance(coded, int):
            return Found(coded)
        return Found(coded.other, coded, code_run(layout(folded), match.parts(), coded.place))

    def like(self, folded: str) -> int | None:
        """Return the token of the template that says in other words what a canonical line, folded, says.

        None where there is none such, or it has a code: nobody knows where the line has its own.
        """
        line = layout(folded)
        token = self._likeness.find(Told(line.words, line.values()))
        return None if token is None or self._pattern(token - N_SPECIAL).place is not None else token

    def template_features(self) -> NDArray[np.int64]:
        """Return the rarest buckets of the text of each token that a model knows, by document frequency over these.

        Returns:
            (self.learned, TEXT_FEATURES) buckets, ascending and filled up with 0; special tokens have none.
        """
        features = np.zeros((self.learned, text.TEXT_FEATURES), np.int64)
        for token, buckets in enumerate(self._features, start=N_SPECIAL):
            features[token, : len(buckets)] = buckets
        return features

    def sketch(self, line: str) -> int:
        """Return the negative token of a line, or of an event, that no template matches; UNK if no word is known.

        Only buckets that describe some template count: the model has learned no vector for the others. Of pairs of
        words there is the rarest, and what words leave room for: any word that another version puts in between makes
        other pairs.
        """
        described = " ".join(words(line)) if self.kind == "lines" else line
        known = ([bucket for bucket in each if bucket in self._described] for each in text.words_and_pairs(described))
        singles, pairs = (sorted(each, key=self._document_frequency.__getitem__) for each in known)
        singles = singles[: text.TEXT_FEATURES]
        chosen = self._rarest([*singles, *pairs[: max(1, text.TEXT_FEATURES - len(singles))]])
        return text.pack(chosen) if chosen else UNK

    @cached_property
    def _token_of(self) -> dict[str, int]:
        return {template: token for token, template in enumerate(self.templates, start=N_SPECIAL)}

    @cached_property
    def _matching(self) -> tuple[list[Matcher], list[int | CodedTemplate]]:
        """A tree of patterns for each generation, and what each of their numbers stands for."""
        matchers: list[Matcher] = []
        entries: list[int | CodedTemplate] = []
        index_of: dict[tuple[str, ...], int] = {}
        first = 0
        for size in self.generations or (len(self.templates),):
            matcher = Matcher()
            matchers.append(matcher)
            patterns = {N_SPECIAL + index: self._pattern(index) for index in range(first, first + size)}
            first += size
            places = {pattern.words: pattern.place for pattern in patterns.values() if pattern.place is not None}
            for token, pattern in patterns.items():
                place = places.get(pattern.words)
                index = index_of.setdefault(pattern.words, len(entries))
                if index == len(entries):
                    entries.append(token if place is None else CodedTemplate(place))
                matcher.put(pattern.words, pattern.widths, index)
                if not _takes(entries[index], token, pattern):
                    raise ValueError(f"vocabulary has the template {self.templates[token - N_SPECIAL]!r} twice")
        return matchers, entries

    @cached_property
    def _likeness(self) -> Likeness:
        return Likeness(
            {
                token: Told(
                    self._pattern(token - N_SPECIAL).words,
                    layout(self.text(token)).values(),
                    self.text(token).count(WILDCARD),
                )
                for token in range(N_SPECIAL, len(self))
            }
        )

    def _pattern(self, index: int) -> Pattern:
        try:
            return read(self.templates[index])
        except ValueError as error:
            raise ValueError(f"vocabulary template {index} {error}: {self.templates[index]!r}") from error

    @cached_property
    def _buckets(self) -> tuple[list[int], ...]:
        learned = self.templates[: self.learned - N_SPECIAL]
        if self.kind == "events":
            return tuple(text.buckets(template) for template in learned)
        return tuple(text.buckets(" ".join(read(template).words)) for template in learned)

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


def _takes(entry: int | CodedTemplate, token: int, pattern: Pattern) -> bool:
    """Make a token part of what its pattern's words stand for; False where another token is that already."""
    if isinstance(entry, int):
        return entry == token
    if pattern.place is None:
        taken, entry.other = entry.other is not None, token
    else:
        code = cast("int", pattern.code)
        taken = code in entry.tokens or pattern.place != entry.place
        entry.tokens[code] = token
    return not taken


def _check_template(index: int, template: str) -> None:
    try:
        template.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"vocabulary template {index} is not Unicode text: {template!r}") from error
    if not template:
        raise ValueError(f"vocabulary template {index} is empty")


def _templates(content: object) -> tuple[tuple[str, ...], tuple[Seen, ...]]:
    """The templates and what was seen of them, of the JSON document."""
    if not isinstance(content, list) or not all(isinstance(each, dict) for each in content):
        raise ValueError("vocabulary templates are not a list of objects")
    seen = []
    for token, each in enumerate(content, start=N_SPECIAL):
        if each.get("id") != token:
            raise ValueError(f"vocabulary template {token - N_SPECIAL} has the id {each.get('id')!r}, not {token}")
        if not isinstance(each.get("text"), str):
            raise ValueError(f"vocabulary template {token} has no text")  # noqa: TRY004  what the file says is wrong
        known = {name: each[name] for name in ("lines", "first", "last", "example") if name in each}
        if odd := each.keys() - {"id", "text", "decisive", *known}:
            raise ValueError(f"vocabulary template {token} has unknown keys: {', '.join(sorted(odd))}")
        if not known:
            continue
        numbers = [known.get(name) for name in ("lines", "first", "last")]
        if not all(type(n) is int and n >= 0 for n in numbers) or not isinstance(known.get("example"), str):
            raise ValueError(f"vocabulary template {token} does not say lines, first, last and example")
        seen.append(Seen(**known))
    return tuple(each["text"] for each in content), tuple(seen)


def _is_mask(mask: object) -> bool:
    return (
        isinstance(mask, dict)
        and mask.keys() == {"pattern", "name"}
        and all(isinstance(value, str) for value in mask.values())
    )
