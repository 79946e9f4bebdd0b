"""Values to texts, in the encoding that `input.encoding` names."""

from collections.abc import Collection

import numpy as np
import pyarrow as pa

from worker.formats.encodings import Encoding, in_utf8
from worker.processing.lines import Batch, Rows


def valid_texts(batch: Batch, encoding: Encoding, skipped: Collection[int]) -> tuple[pa.StringArray, Rows]:
    """Return the values that are texts, and their rows; null and what is not UTF-8 become dead letters.

    Args:
        batch: where each row is one item.
        encoding: of the values.
        skipped: rows that are not read.
    """
    rows = np.arange(batch.starts[-1], dtype=np.int64)
    if skipped:
        rows = np.setdiff1d(rows, list(skipped))
    if encoding == "utf-8":
        # Part by part: a list of all values would be one more walk through memory that no cache holds.
        every = [pa.array(part.values, pa.binary()) for part in batch.parts]
        array = pa.concat_arrays([pa.array([], pa.binary()), *every])
        if skipped:
            array = array.take(pa.array(rows))
    else:
        values = batch.values()
        written = (values[row] for row in rows.tolist())
        array = pa.array([None if value is None else in_utf8(value, encoding) for value in written], pa.binary())
    if not array.null_count:
        try:
            return array.cast(pa.string()), rows  # checks each value by itself
        except pa.ArrowInvalid:
            pass
    for row, value in zip(rows.tolist(), array.to_pylist(), strict=True):
        if value is None:
            batch.fault(row, "null", "the value is null")
            continue
        try:
            value.decode()
        except UnicodeDecodeError as error:
            batch.fault(row, "not_utf8", f"the value is not UTF-8: {error.reason} at byte {error.start}")
    kept = ~np.isin(rows, list(batch.faults))
    return array.filter(pa.array(kept)).cast(pa.string()), rows[kept]
