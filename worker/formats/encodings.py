"""Encodings of texts."""

from typing import Literal

Encoding = Literal["utf-8", "latin-1", "utf-8-replace"]


def in_utf8(text: bytes, encoding: Encoding) -> bytes:
    """Return a text in UTF-8; in `utf-8` as it is, right or not. `utf-8-replace` puts U+FFFD where it is not."""
    if encoding == "latin-1":
        return text.decode("latin-1").encode()
    return text.decode(errors="replace").encode() if encoding == "utf-8-replace" else text
