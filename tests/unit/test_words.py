import math

import pytest

from rlhf import words


@pytest.mark.parametrize(
    ("share", "text"), [(0.934, "93.4 %"), (0.5, "50 %"), (1.0, "100 %"), (0.0, "0 %"), (0.001, "0.1 %")]
)
def test_percent_keeps_a_decimal_where_it_matters(share, text):
    assert words.percent(share) == text.replace(" ", "\u00a0")


@pytest.mark.parametrize(
    ("value", "text"), [(1234567, "1,234,567"), (-2, "−2"), (1234.56, "1,235"), (0.123456, "0.1235"), (1e-9, "1e-09")]
)
def test_numbers_have_four_digits_and_whole_ones_all(value, text):
    assert words.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3.14159, "3.14"),
        (1234.5, "1,230"),
        (-0.00123, "−0.00123"),
        (2.0, "2"),
        (None, "not known"),
        (math.nan, "not known"),
    ],
)
def test_three_digits_or_not_known(value, text):
    assert words.three(value) == text


@pytest.mark.parametrize(
    ("value", "digits", "text"), [(1.234, 2, "+1.23"), (-1.25, 1, "−1.2"), (-0.001, 2, "0.00"), (0.6, 0, "+1")]
)
def test_a_signed_number_that_is_rounded_to_0_has_no_sign(value, digits, text):
    assert words.signed(value, digits) == text


def test_one_is_singular_and_lists_end_in_and():
    assert [words.count(n, "pair") for n in (0, 1, 2000)] == ["0 pairs", "1 pair", "2,000 pairs"]
    assert words.count(2, "entry", "entries") == "2 entries"
    assert [words.listed(parts) for parts in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
