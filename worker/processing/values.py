"""Values to texts, in the encoding that `input.encoding` names."""

from collections.abc import Collection, Sequence

import numpy as np
import pyarrow as pa

from worker.formats.encodings import Encoding, in_utf8
from worker.processing.lines import Batch, Rows


def valid_texts(
    values: Sequence[bytes | None], encoding: Encoding, batch: Batch, skipped: Collection[int]
) -> tuple[pa.StringArray, Rows]:
    """Return the values that are texts, and their rows; null and what is not UTF-8 become dead letters.

    Args:
        values: of all rows.
        encoding: of the values.
        batch: where each row is one item.
        skipped: rows that are not read.
    """
    rows = np.arange(len(values), dtype=np.int64)
    if skipped:
        rows = np.setdiff1d(rows, list(skipped))
        values = [values[row] for row in rows.tolist()]
    if encoding != "utf-8":
        values = [None if value is None else in_utf8(value, encoding) for value in values]
    array = pa.array(values, pa.binary())
    if not array.null_count:
        try:
            return array.cast(pa.string()), rows  # checks each value by itself
        except pa.ArrowInvalid:
            pass
    for row, value in zip(rows.tolist(), values, strict=True):
        if value is None:
            batch.fault(row, "null", "the value is null")
            continue
        try:
            value.decode()
        except UnicodeDecodeError as error:
            batch.fault(row, "not_utf8", f"the value is not UTF-8: {error.reason} at byte {error.start}")
    kept = ~np.isin(rows, list(batch.faults))
    return array.filter(pa.array(kept)).cast(pa.string()), rows[kept]
