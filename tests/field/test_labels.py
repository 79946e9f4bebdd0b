"""Label files as public data sets and spreadsheets write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from detector.sessions_file import read_labels


@pytest.mark.parametrize(
    "text",
    [
        "BlockId,Label\nblk_1,Normal\nblk_2,Anomaly\n",
        "\ufeffsession,label\nblk_1,0\nblk_2,1\n",
        "\ufeffBlockId,Label\r\nblk_1,NORMAL\r\nblk_2,anomaly\r\n",
        "Session_ID,why,LABEL\nblk_1,,normal\nblk_2,disk,1\n",
    ],
)
def test_labels_are_read_whatever_the_case_of_their_names_in_words_or_digits_and_after_a_byte_order_mark(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "anomaly_label.csv"
    path.write_bytes(text.encode())
    assert read_labels(path) == {"blk_1": 0, "blk_2": 1}
