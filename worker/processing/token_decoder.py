"""Token records to events (`input.format: tokens`): what `worker.processing.decoder` is to lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from detector.text.vocabulary import UNK, Vocabulary
from worker.errors import RunError
from worker.processing.clock import Column
from worker.processing.decoder import Decoder, Events
from worker.processing.lines import DeadLetter
from worker.processing.origins import EVENT_BITS, Origins
from worker.processing.records import Partition, Records
from worker.processing.token_records import (
    VERSION,
    OtherVersionError,
    TokenRecord,
    TokenRecordError,
    VocabularyId,
    decode,
    joined_keys,
)


class TokenDecoder:
    """Reads the events of token records.

    A damaged record becomes a dead letter. One that is whole and that cannot be read here, since its tokens are of
    another vocabulary, or it is of a later version, stops the worker: without its events all sessions would be scored
    wrongly, and its lines are not there to make other tokens of.

    Args:
        vocabulary: of the checkpoint; it may have more templates than that of the records.
        unknown: `unk` makes one token of all unknown events.
    """

    def __init__(self, vocabulary: Vocabulary, unknown: Literal["semantic", "unk"]) -> None:
        self._vocabulary = vocabulary
        self._unk = unknown == "unk"
        self._known = {VocabularyId.of(vocabulary): True}

    def decode(self, batch: Sequence[Records]) -> list[Events]:
        """The events of each part of a batch, in the order of the parts.

        Raises:
            RunError: a record cannot be read here; it is named with what to do.
        """
        return [self._events(records) for records in batch]

    def read(self, records: Records) -> Iterator[tuple[int, TokenRecord | DeadLetter]]:
        """Row and content of each record.

        Raises:
            RunError: as for `decode`.
        """
        partition = Partition(records.topic, records.partition)
        for row, (offset, value) in enumerate(zip(records.offsets, records.values, strict=True)):
            if value is None:
                yield row, DeadLetter(row, "null", "the record has no value")
                continue
            try:
                found = decode(value)
            except TokenRecordError as error:
                yield row, DeadLetter(row, "bad_tokens", f"the value {error}")
                continue
            except OtherVersionError as error:
                raise RunError(
                    f"{partition}: the record at offset {offset} is a token record of version {error.version}, and "
                    f"this worker reads {VERSION}; update the workers before rekey"
                ) from None
            if not self._knows(found.vocabulary):
                theirs, ours = found.vocabulary, VocabularyId.of(self._vocabulary)
                raise RunError(
                    f"{partition}: the record at offset {offset} has tokens of another vocabulary, {theirs.sha256} "
                    f"with {theirs.templates} templates; model.checkpoint has {ours.sha256} with {ours.templates} "
                    "templates. Allowed: that vocabulary, or one that only adds templates to it: read what is left "
                    "with the checkpoint that rekey had, and change it here before there"
                )
            yield row, found

    def _events(self, records: Records) -> Events:
        letters: list[DeadLetter] = []
        found: list[TokenRecord] = []
        numbers: list[Column] = [np.empty(0, np.int64)]
        for row, record in self.read(records):
            if isinstance(record, DeadLetter):
                letters.append(record)
            else:
                found.append(record)
                numbers.append((int(records.offsets[row]) << EVENT_BITS) + np.arange(len(record)))
        tokens = _joined(record.tokens for record in found)
        return Events(
            keys=joined_keys(found),
            tokens=np.maximum(tokens, UNK) if self._unk else tokens,
            times=_joined(record.times for record in found),
            offsets=np.concatenate(numbers),
            dead_letters=letters,
            cut=0,
            ignored=0,
            origins=Origins.joined([record.origins for record in found]),
        )

    def _knows(self, vocabulary: VocabularyId) -> bool:
        known = self._known.get(vocabulary)
        if known is None:
            known = self._vocabulary.begins_with(vocabulary.templates, vocabulary.sha256)
            self._known[vocabulary] = known
        return known


AnyDecoder = Decoder | TokenDecoder


def _joined(columns: Iterator[Column]) -> Column:
    return np.concatenate([np.empty(0, np.int64), *columns])
