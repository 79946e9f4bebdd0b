"""Inputs that someone would send to break a worker: every shape of bytes, text and JSON that a parser may stumble over.

All of them follow from one seed.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence

from worker.generator.log import GeneratedLog

_MOST_BYTES = 1_000_000  # the largest message that a broker takes by default

_NASTY = [
    b"\x00",
    b"\xff",
    b"\xc0\x80",  # NUL, too long
    b"\xed\xa0\x80",  # half of a surrogate pair
    b"\xed\xa0\xbd\xed\xb8\x80",  # both halves, as Java's own encoding writes them
    b"\xf4\x90\x80\x80",  # past the last character
    b"\xe2\x82",  # a character cut short
    # Marks of byte order, ends of lines, spaces of no width, writing from the right, no characters, the last one.
    *map(str.encode, ["\ufeff", "\u2028", "\x85", "\xa0", "\u200b", "\u202e", "\u0300", "\ufffe", "\U0010ffff"]),
    # Digits that are not ASCII, and letters whose lower case is longer, or another letter.
    *map(
        str.encode, ["\u0663", "\uff17", "\xb2", "\u2177", "\U0001d7d8", "\u0130", "\xdf", "\ufb01", "\u017f", "\u212a"]
    ),
    *(bytes([each]) for each in range(32)),
    b"\x1b[31m",
    b"%s%n",
    b"<*>",
    b"<bos>",
]
_RUNS = ["a", "x", "1", "9a", "blk_", "-", "(", "[", "=", "=|", '"', "\\", "<*> ", "\xe9", "\U0001f600", "a ", " 1"]
_CODES = [
    (0x20, 0x7E),
    (0xA0, 0x24F),
    (0x370, 0x5FF),
    (0x600, 0xDFF),
    (0x2000, 0x2BFF),
    (0x4E00, 0x4FFF),
    (0x1D400, 0x1F9FF),
]
_NUMBERS: list[object] = [0, -1, 10**11 - 1, 10**11, 10**14 - 1, 10**14, 2**63, -(2**63), 2**64, 10**400, 1e308, 0.5]
_TIMES: list[object] = [
    *_NUMBERS,
    *[True, None, [], {}, "", "now", "0001-01-01", "2020-W53-7", "2020-366", "20200230", "-271821-04-20T00:00:00Z"],
    "0001-01-01T00:00:00+23:59",
    "9999-12-31T23:59:59.999999-23:59:59.999999",
    "2020-01-01T24:00:00",
    "2020-01-01T00:00:00.1234567890123",
    "2020-01-01T00:00:00+99:99",
    "2020-01-01T00:00:00\x00",
    "\u0662\u0660\u0662\u0660-01-01",
]
_KEYS: list[object] = ["k", "", "\xe9" * 2_000, 7, 2**70, 1.5, True, None, ["k"], {"k": 1}, "k\x00"]
_NO_DOCUMENTS: list[object] = [
    None,
    True,
    5,
    "text",
    [],
    {},
    [[]],
    {"message": {}},
    {"message": ["x"]},
    {"MESSAGE": "x"},
]
_NO_JSON = [
    b"NaN",
    b"-Infinity",
    b"01",
    b"+1",
    b".5",
    b"\xef\xbb\xbf{}",
    b"[1,]",
    b"{}{}",
    b'{"message":"a","message":5}',
]
_CONTAINED = [b"[]", b"{}", b"[[]]", b'{"a":1}', b'""', b"1.5", b"null"]


class HostileInputs:
    """An endless source of hostile values.

    Args:
        seed: the same seed gives the same values.
        templates: of the vocabulary; lines are made of them that nearly match.
    """

    def __init__(self, seed: int, templates: Sequence[str]) -> None:
        self._rng = random.Random(seed)
        self._lines = [line.text.encode() for line in GeneratedLog(lines=2_000, seed=seed)]
        self._templates = [template.split() for template in templates]

    def texts(self) -> Iterator[bytes | None]:
        """Values of text records."""
        common = [self._mutated, self._spliced, self._spiced, self._bytes, self._unicode, self._nearly, self._stamped]
        shapes: list[Callable[[], bytes | None]] = [*common * 6, self._run, self._words, self._blank]
        while True:
            yield self._rng.choice(shapes)()

    def documents(self) -> Iterator[bytes | None]:
        """Values of JSON records with members `message`, `key` and `time`."""
        shapes: list[Callable[[], bytes | None]] = [
            *[self._document, self._broken_document, self._spiced_document, self._odd_document] * 8,
            self._deep,
            self._digits,
            self._containers,
            self._blank,
        ]
        while True:
            yield self._rng.choice(shapes)()

    @staticmethod
    def largest_texts() -> Iterator[bytes]:
        """One value of each kind that could cost more than its length: as long as a message can be."""
        for run in _RUNS:
            yield (run * _MOST_BYTES).encode()[:_MOST_BYTES]
            yield f"blk_1 {run * _MOST_BYTES}".encode()[:_MOST_BYTES]
        yield b"blk_1 " + b"".join(b"%d %d!\n" % (number, number) for number in range(_MOST_BYTES // 14))
        yield b"\n" * _MOST_BYTES
        yield b"blk_1\n" * (_MOST_BYTES // 6)
        yield b"081109 " + b" " * (_MOST_BYTES - 20) + b"203615 blk_1"
        yield b"blk_1" * (_MOST_BYTES // 5) + b"\xff"

    @staticmethod
    def largest_documents() -> Iterator[bytes]:
        """The same of JSON."""
        for one in _CONTAINED:
            yield _padded(one, _MOST_BYTES // (len(one) + 1) - 20)
        for text in (b"\\u00e9", b"\\n", b"\\n1", b"2"):
            long = text * (_MOST_BYTES // len(text) - 20)
            yield b'{"message": "blk_1%b", "key": "k", "time": 1}' % long
            yield b'{"message": "blk_1", "key": "%b", "time": 1}' % long
            yield b'{"message": "blk_1", "key": "k", "time": "2020-01-01T00:00:00.%b"}' % long
        yield b"{" + b",".join(b'"%d":1' % number for number in range(_MOST_BYTES // 10)) + b"}"
        yield b"[" * _MOST_BYTES
        yield b'{"message": "blk_1", "key": "k", "time": %b}' % (b"9" * (_MOST_BYTES - 100))

    # -- text ------------------------------------------------------------------------------------------------------

    def _length(self) -> int:
        """Mostly short; one in some thousands as long as a message can be."""
        return int(min(self._rng.paretovariate(0.8) * 20, _MOST_BYTES))

    def _line(self) -> bytes:
        return self._rng.choice(self._lines)

    def _bytes(self) -> bytes:
        return self._rng.randbytes(min(self._length(), 10_000))

    def _mutated(self) -> bytes:
        line = bytearray(self._line())
        for _ in range(self._rng.choice((1, 1, 2, 8, 40))):
            line[self._rng.randrange(len(line))] = self._rng.randrange(256 if self._rng.random() < 0.3 else 128)
        return bytes(line)

    def _spliced(self) -> bytes:
        first, second = self._line(), self._line()
        cut = self._rng.randrange(len(first))
        joint = self._rng.choice((b"", b" ", b"\n", b"\r\n", b"\x00"))
        return first[:cut] + joint + second[self._rng.randrange(len(second)) :]

    def _spiced(self) -> bytes:
        line = self._line()
        at = self._rng.randrange(len(line) + 1)
        return line[:at] + self._rng.choice(_NASTY) * self._rng.choice((1, 1, 2, 50)) + line[at:]

    def _unicode(self) -> bytes:
        low, high = self._rng.choice(_CODES)
        characters = map(chr, self._rng.choices(range(low, high), k=self._rng.randrange(80)))
        return b"blk_7 " * self._rng.randrange(2) + "".join(characters).encode()

    def _nearly(self) -> bytes:
        words = list(self._rng.choice(self._templates))
        words = [self._rng.choice(("17", "x", "<*>", "Mon", "")) if word == "<*>" else word for word in words]
        words[self._rng.randrange(len(words))] = self._rng.choice(("<*>", "blk_1", "odd", "0", "="))
        return " ".join(words).encode()

    def _stamped(self) -> bytes:
        day, clock = (self._rng.randrange(1_000_000) for _ in range(2))
        gap = " " * self._rng.choice((1, 1, 1, 2, 300, 5_000))
        return f"{day:06d}{gap}{clock:06d} 7 INFO blk_{self._rng.randrange(50)} ".encode() + self._line()[-20:]

    def _run(self) -> bytes:
        run = self._rng.choice(_RUNS)
        text = run * (self._length() * 20 // len(run) + 1)
        return f"{self._rng.choice(('', 'blk_1 ', '081109 203615 blk_1 '))}{text}".encode()[:_MOST_BYTES]

    def _words(self) -> bytes:
        count = min(self._length(), 100_000)
        return b"blk_3 " + b" ".join(b"w%d" % self._rng.randrange(10) for _ in range(count))

    def _blank(self) -> bytes | None:
        return self._rng.choice(
            (None, b"", b" ", b"\n\n\r\n", b"\t" * 300, "\u2003\u2003".encode(), b"\x00", b"\n" * 500)
        )

    # -- JSON ------------------------------------------------------------------------------------------------------

    def _document(self) -> bytes:
        line = self._rng.choice((self._mutated, self._spliced, self._unicode, self._nearly))()
        members = {
            "message": line.decode(errors="surrogateescape" if self._rng.random() < 0.2 else "replace"),
            "key": self._rng.choice(_KEYS),
            "time": self._rng.choice(_TIMES),
        }
        ascii_only = self._rng.random() < 0.5
        return json.dumps(members, ensure_ascii=ascii_only).encode(errors="surrogatepass")

    def _broken_document(self) -> bytes:
        document = bytearray(self._document())
        for _ in range(self._rng.choice((1, 1, 3))):
            at = self._rng.randrange(len(document))
            other = self._rng.choice((b"", b'"', b"\\", b"{", b"]", b"\xff", b"\\u", b"\x00"))
            document[at : at + self._rng.randrange(3)] = other
        return bytes(document[: self._rng.choice((None, None, self._rng.randrange(len(document) + 1)))])

    def _spiced_document(self) -> bytes:
        document = self._document()
        at = self._rng.randrange(len(document) + 1)
        escapes = (b"\\ud800", b"\\udc00\\ud800", b"\\u0000", b"\\x", b"\\", b"\\ud83d\\ude00")
        return document[:at] + self._rng.choice((*_NASTY, *escapes)) + document[at:]

    def _odd_document(self) -> bytes:
        return self._rng.choice((json.dumps(self._rng.choice(_NO_DOCUMENTS)).encode(), self._rng.choice(_NO_JSON)))

    def _deep(self) -> bytes:
        depth = self._rng.choice((10, 500, 1_000, 1_024, 1_025, 5_000, 100_000))
        opened, closed = self._rng.choice(((b"[", b"]"), (b'{"a":', b"}"), (b'[{"message":', b"}]")))
        return opened * depth + b"1" + closed * self._rng.choice((depth, depth - 1, 0))

    def _digits(self) -> bytes:
        digits = "9" * self._rng.choice((19, 20, 400, 5_000, sys.get_int_max_str_digits() + 1, 200_000))
        form = self._rng.choice(("9", "-9", "0.9", "9.9", "1e9", "1e-9", "0.9e-5", "9e5"))
        number = form.replace("9", digits)
        return f'{{"message": "blk_1", "key": "k", "time": {number}}}'.encode()

    def _containers(self) -> bytes:
        one = self._rng.choice(_CONTAINED)
        return _padded(one, min(self._length() * 20, _MOST_BYTES // (len(one) + 1)))


def _padded(one: bytes, count: int) -> bytes:
    """A good document with another member of many values."""
    return b'{"message": "blk_1", "key": "k", "time": 1, "x": [%b]}' % b",".join([one] * count)
