"""Lines to tokens: a dictionary of canonical lines, and Drain3 for those it does not hold.

A token is a pure function of the line and the vocabulary. The dictionary only remembers it, so neither its
size nor the order of lines ever shows. Drain3 learns the templates once, in training; serving, a frozen tree
of the vocabulary's templates is searched and never changes.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Literal

import numpy as np
import pyarrow as pa
from drain3.drain import Drain, LogCluster, Node
from numpy.typing import NDArray

from detector.text.canonical import SHAPE_WORDS, WILDCARD, Mask, canonicalise, chunks, shape
from detector.text.vocabulary import N_SPECIAL, UNK, Vocabulary

MAX_TEMPLATES = 4096
"""Templates that learning keeps; of more, those seen least recently go."""

SIMILARITY = 0.6
"""Share of equal words from which Drain3 joins a line to a template.

Of 0.4 to 0.7 it groups most lines of the 16 LogHub systems exactly as their truth does, raw lines with their
headers, and templates of HDFS mix no event types (benchmarks/tokenizer.py --templates).
"""

_TREE_DEPTH = 4  # Drain3's default; 3 to 5 give the same templates on those systems, within a few


class Tokenizer:
    """Turns lines into tokens of one vocabulary.

    Args:
        vocabulary: the templates, or the event names of parsed sessions.
        unknown: what no template matches becomes `semantic` a negative token that carries its text, or `unk`
            UNK.
        dictionary_lines: most canonical lines remembered.
        dictionary_characters: most characters of theirs remembered.

    Attributes:
        unknown_lines: lines that no template matched, so far.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        unknown: Literal["semantic", "unk"] = "semantic",
        dictionary_lines: int = 131_072,
        dictionary_characters: int = 64 * 2**20,
    ) -> None:
        self.vocabulary = vocabulary
        self.unknown_lines = 0
        self._semantic = unknown == "semantic"
        self._dictionary = _Dictionary(dictionary_lines, dictionary_characters)
        self._templates = _FrozenDrain(vocabulary.templates) if vocabulary.kind == "lines" else None

    def encode(self, lines: pa.Array) -> NDArray[np.int64]:
        """Return the token of each line.

        Args:
            lines: (n,) strings without nulls; event names for a vocabulary of events.

        Returns:
            (n,) tokens; negative ones are unknown lines with their text (`detector.text.word_hashes.unpack`).

        Raises:
            ValueError: not an array of strings, or a null among them.
        """
        lines = _strings(lines)
        tokens = np.empty(len(lines), np.int64)
        start = 0
        for chunk in chunks(lines):
            stop = start + len(chunk)
            texts = canonicalise(chunk, self.vocabulary.masks) if self._templates is not None else chunk
            encoded = texts.dictionary_encode()
            distinct = np.array([self._token(text) for text in encoded.dictionary.to_pylist()], np.int64)
            tokens[start:stop] = distinct[encoded.indices.to_numpy()]
            start = stop
        self.unknown_lines += int(np.count_nonzero(tokens <= UNK))
        return tokens

    def _token(self, text: str) -> int:
        token = self._dictionary.get(text)
        if token is None:
            token = self._search(text)
            self._dictionary.put(text, token)
        return token

    def _search(self, text: str) -> int:
        if self._templates is None:
            token = self.vocabulary.token_of(text)
        else:
            cluster = self._templates.match(shape(text))
            token = None if cluster is None else cluster.cluster_id
        if token is None:
            return self.vocabulary.sketch(text) if self._semantic else UNK
        return token


def event_tokens(vocabulary: Vocabulary, sessions: Iterable[Sequence[str]]) -> Iterator[NDArray[np.int64]]:
    """Tokens of parsed sessions, with a vocabulary of such: each event's name is its own template."""
    tokenizer = Tokenizer(vocabulary, unknown="unk")
    for events in sessions:
        yield tokenizer.encode(pa.array(events, pa.string()))


def learn_vocabulary(
    batches: Iterable[pa.Array],
    masks: Sequence[Mask] = (),
    max_clusters: int = MAX_TEMPLATES,
    *,
    similarity: float = SIMILARITY,
) -> Vocabulary:
    """Learn the templates of raw lines.

    Drain3 reads each distinct shape of a line once, in the order of the lines; the templates it ends with, in
    the order of their first lines, are the vocabulary. The result depends on the lines and their order alone,
    not on how they fall into batches. Every line matches some template, unless there were more than
    `max_clusters` of them.

    Args:
        batches: arrays of strings without nulls.
        masks: custom masks of the vocabulary.
        max_clusters: most templates kept; at least 2.
        similarity: see `SIMILARITY`.

    Raises:
        ValueError: not an array of strings, a null among them, or `max_clusters` below 2.
    """
    if max_clusters < 2:
        raise ValueError(f"max_clusters is at least 2, not {max_clusters}")
    drain = Drain(depth=_TREE_DEPTH, sim_th=similarity, max_clusters=max_clusters)
    # Drain3 drops the templates whose lines it saw least recently, and lines skipped here it does not see.
    # Forgetting them this often shows it each line again before `max_clusters` new templates could have
    # pushed out its own.
    window = max_clusters // 2
    seen: set[str] = set()
    for chunk in chain.from_iterable(chunks(_strings(batch)) for batch in batches):
        encoded = canonicalise(chunk, masks).dictionary_encode()
        shapes = [shape(text) for text in encoded.dictionary.to_pylist()]
        for index in encoded.indices.to_numpy().tolist():
            words = shapes[index]
            if not words or words in seen:
                continue
            if len(seen) == window:
                seen.clear()
            seen.add(words)
            drain.add_log_message(words)
    clusters = sorted(drain.clusters, key=lambda cluster: cluster.cluster_id)
    templates = dict.fromkeys(cluster.get_template() for cluster in clusters)
    return Vocabulary(tuple(templates), tuple(masks))


class _FrozenDrain(Drain):  # type: ignore[misc]
    """Drain3's tree grown to full depth from given templates, where `match` finds the most specific template.

    Drain3's own searches do not fit: its tree search never turns back from a branch and so misses templates
    that begin with a wildcard, and its full search compares every template of that length and prefers the one
    with the most wildcards. Here word by word the branch of the word itself comes before the wildcard's, with
    backtracking: the result is the first template by "word before wildcard, from the left", whatever the
    order of the templates.
    """

    def __init__(self, templates: Sequence[str]) -> None:
        # The tree branches at every word but the last, unbounded; words with digits are wildcards already.
        super().__init__(depth=SHAPE_WORDS + 3, max_children=len(templates) + 2, parametrize_numeric_tokens=False)
        for token, template in enumerate(templates, start=N_SPECIAL):
            cluster = LogCluster(self.get_content_as_tokens(template), token)
            self.id_to_cluster[token] = cluster
            self.add_seq_to_prefix_tree(self.root_node, cluster)

    def get_content_as_tokens(self, content: str) -> list[str]:
        """Return the words and an end mark: each branch ends with it, so a leaf holds one template."""
        return [*content.split(), ""]

    def tree_search(
        self, root_node: Node, tokens: Sequence[str], sim_th: float, include_params: bool
    ) -> LogCluster | None:
        """Return the most specific template of these words; it matches in full, whatever `sim_th` says."""
        del sim_th, include_params
        first = root_node.key_to_child_node.get(str(len(tokens)))
        pending = [] if first is None else [(first, 0)]
        while pending:
            node, depth = pending.pop()
            if depth == len(tokens) - 1:
                return self.id_to_cluster[node.cluster_ids[0]]
            for word in dict.fromkeys((WILDCARD, tokens[depth])):
                child = node.key_to_child_node.get(word)
                if child is not None:
                    pending.append((child, depth + 1))
        return None


class _Dictionary:
    """A bounded memory of tokens in two generations; a text found in the older one moves to the younger."""

    def __init__(self, lines: int, characters: int) -> None:
        self._lines = lines // 2
        self._characters = characters // 2
        self._young: dict[str, int] = {}
        self._old: dict[str, int] = {}
        self._young_characters = 0

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, text: str) -> int | None:
        token = self._young.get(text)
        if token is None:
            token = self._old.pop(text, None)
            if token is not None:
                self.put(text, token)
        return token

    def put(self, text: str, token: int) -> None:
        self._young[text] = token
        self._young_characters += len(text)
        if len(self._young) > self._lines or self._young_characters > self._characters:
            self._old, self._young, self._young_characters = self._young, {}, 0


def _strings(lines: pa.Array) -> pa.StringArray:
    if isinstance(lines, pa.ChunkedArray):
        lines = lines.combine_chunks()
    if not (pa.types.is_string(lines.type) or pa.types.is_large_string(lines.type)):
        raise ValueError(f"lines are {lines.type}, not strings")
    if lines.null_count:
        raise ValueError(f"{lines.null_count} of {len(lines)} lines are null")
    return lines.cast(pa.string())
