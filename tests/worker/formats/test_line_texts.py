"""What stands around the words of lines is left out, of each line for itself."""

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from worker.formats.line_texts import tidied

PIECES = st.sampled_from(
    ["a", " ", "\0", "\r", "\n", "\ufeff", "\x1b[0m", "\x1b[31;1m", "\x1b", "é", "\x1b]8;;u\x1b\\", "\t"]
)


def tidy(*texts: str) -> list[str]:
    found: list[str] = tidied(pa.array(texts, pa.string())).to_pylist()
    return found


@given(st.lists(st.lists(PIECES, max_size=6).map("".join), max_size=6))
def test_a_text_becomes_the_same_whatever_stands_beside_it(texts: list[str]) -> None:
    assert tidy(*texts) == [tidy(text)[0] for text in texts]
    assert tidied(pa.array(["x", *texts], pa.string())[1:]).to_pylist() == tidy(*texts)


def test_only_ends_and_terminal_codes_are_left_out() -> None:
    kept = ["a\0b", "a\nb", "\ta", "  a  ", "a\ufeffb", "\x1b"]
    assert tidy(*kept) == kept
    assert tidy("\ufeff\0a\0\r\n", "\x1b[2Ka\x1b[0m\n", "a\x1b(B\x1b[m") == ["a", "a", "a"]
