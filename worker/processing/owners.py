"""Which records are this application's: the setting `input.only`.

Whatever does not say that it is this application's is another one's: a record without the header, a document without
the member, and where a pointer decides also a value that is no document.
"""

import pyarrow as pa
import pyarrow.compute as pc

from worker.formats.pointers import MISSING, FirstPointer
from worker.processing.documents import Documents
from worker.processing.lines import Batch
from worker.processing.messages import rendered
from worker.settings.shapes import Only


class Owners:
    """Tells which of a batch is another application's.

    Args:
        only: as the settings say it; None: everything is this application's.
    """

    def __init__(self, only: Only | None) -> None:
        self._only = only
        #: That documents will be asked for.
        self.pointers = (only.where,) if only is not None and only.source == "pointer" else ()

    def others_records(self, batch: Batch) -> set[int]:
        """Return the rows that are another application's, as far as headers tell."""
        only = self._only
        if only is None or only.source != "header":
            return set()
        texts: list[str | None] = []
        for part in batch.parts:
            for headers in part.headers or [None] * len(part.offsets):
                value = dict(headers or ()).get(only.where)  # of several, the last
                texts.append(None if value is None else value.decode(errors="replace"))
        return self._others(texts)

    def skip_items(self, batch: Batch, documents: Documents) -> None:
        """Skip the items that are another application's, as far as documents tell."""
        if not self.pointers:
            return
        others = self._others([_text(value) for value in documents.at(FirstPointer(self.pointers)).as_objects()])
        batch.skipped |= others
        for item in others & batch.faults.keys():
            del batch.faults[item]

    def _others(self, texts: list[str | None]) -> set[int]:
        assert self._only is not None
        wanted = self._only.wanted
        if self._only.test == "equals":
            return {index for index, text in enumerate(texts) if text != wanted}
        found = pc.match_substring_regex(pa.array([text or "" for text in texts], pa.string()), wanted).to_pylist()
        return {index for index, (text, fits) in enumerate(zip(texts, found, strict=True)) if text is None or not fits}


def _text(value: object) -> str | None:
    try:
        return None if value is MISSING else rendered(value)
    except ValueError:
        return None
