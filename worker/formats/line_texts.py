"""What stands around and between the words of log lines and is no part of them."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# Control sequences of terminals (ECMA-48): colours and cursor moves, titles and links, sets of characters.
_TERMINAL = r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_]|[ -/]+[0-~])"
_FIRST_PRINTED = 0x20
_BOM_BYTE = 0xEF
_ESCAPE = 0x1B


def tidied(texts: pa.StringArray) -> pa.StringArray:
    """Return texts without a byte order mark before them, zero bytes around them, CR and LF after them, terminal codes.

    Args:
        texts: (n,) without nulls.
    """
    data = _bytes(texts)
    if len(data) == 0:
        return texts
    # Hardly any line has one of these, and a look at the least and the greatest byte costs next to nothing.
    if data.min() < _FIRST_PRINTED:
        texts = pc.utf8_trim(pc.utf8_rtrim(without_codes(texts), "\r\n\0"), "\0")
    if data.max() >= _BOM_BYTE:
        texts = pc.utf8_ltrim(texts, "\ufeff\0")
    return texts


def without_codes(texts: pa.StringArray) -> pa.StringArray:
    """Return texts without terminal codes.

    Args:
        texts: (n,) without nulls.
    """
    if not (_bytes(texts) == _ESCAPE).any():
        return texts
    return pc.replace_substring_regex(texts, pattern=_TERMINAL, replacement="")


def _bytes(texts: pa.StringArray) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    _, ends, data = texts.buffers()
    if data is None or len(texts) == 0:
        return np.empty(0, np.uint8)
    bounds = np.frombuffer(ends, np.int32)
    return np.frombuffer(data, np.uint8)[bounds[texts.offset] : bounds[texts.offset + len(texts)]]
