"""Shares in words never read greater than they are, and never as none or all where they are not."""

import pytest

from detector.scoring.reasons import percent


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (1.0, "100 %"),
        (0.99999, "99.9 %"),
        (0.9986, "99.8 %"),
        (0.99, "99 %"),
        (0.9867, "98 %"),
        (0.10, "10 %"),
        (0.0299, "2.9 %"),
        (0.004, "0.4 %"),
        (0.0002, "0.02 %"),
        (0.000003, "0.0003 %"),
    ],
)
def test_a_share_reads_no_greater_than_it_is(share: float, text: str) -> None:
    assert percent(share) == text
    assert share == 1 or float(text.split()[0]) <= 100 * share
