"""Numbers since 1970, as exact as their digits."""

from __future__ import annotations

from decimal import ROUND_FLOOR, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.worker.formats.times.reading import at, read

PER_MS = {"s": Decimal("0.001"), "ms": Decimal(1), "us": Decimal(1000), "ns": Decimal(1_000_000)}


@pytest.mark.parametrize(
    "text",
    ["1700000000", "1700000000.123", "1700000000123", "1700000000123456", "1700000000123456789", "1700000000123.4"],
)
def test_the_magnitude_tells_the_unit(text: str) -> None:
    assert read("epoch", [text]) == [at("2023-11-14T22:13:20" + (".123" if "123" in text else ""))]


@given(
    st.sampled_from(["s", "ms", "us", "ns"]),
    st.lists(
        st.tuples(
            st.sampled_from(["", "-"]), st.integers(0, 9_199_999_999_999_999_999), st.text("0123456789", max_size=9)
        ),
        max_size=8,
    ),
)
def test_a_number_of_a_unit_is_its_milliseconds_rounded_down(unit: str, numbers: list[tuple[str, int, str]]) -> None:
    texts = [f"{sign}{whole}" + (f".{fraction}" if fraction else "") for sign, whole, fraction in numbers]
    exact = [int((Decimal(text) / PER_MS[unit]).to_integral_value(ROUND_FLOOR)) for text in texts]
    inside = [at("0001-01-01") <= each <= at("9999-12-31T23:59:59.999") for each in exact]
    expected = [time if good else None for time, good in zip(exact, inside, strict=True)]
    assert read(f"epoch_{unit}", texts) == expected


@given(st.integers(-(10**17), 9 * 10**18))
def test_epoch_is_the_unit_that_fits_the_number(number: int) -> None:
    size = abs(number)
    unit = "s" if size < 10**11 else "ms" if size < 10**14 else "us" if size < 10**17 else "ns"
    assert read("epoch", [str(number)]) == read(f"epoch_{unit}", [str(number)])


@pytest.mark.parametrize(
    "text", ["", "-", "1.", ".5", "1e9", "+1", "1 ", "0x1", "9300000000000000000", "1" * 20, "1,5"]
)
def test_other_texts_are_no_numbers_since_1970(text: str) -> None:
    assert read("epoch", [text]) == [None]


@pytest.mark.parametrize("text", ["9223372036854775808", "9300000000000000000", "9999999999999999999"])
def test_what_needs_more_than_64_bits_is_no_number_since_1970(text: str) -> None:
    assert read("epoch_ns", [text]) == [None]
