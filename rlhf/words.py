"""Numbers and lists as people read them: thousands apart, a true minus sign, no more digits than mean something."""

import math
from collections.abc import Sequence


def number(value: float) -> str:
    """Four significant digits; whole numbers whole."""
    text = f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
    return minus(text) if "e" not in text else text


def three(value: float | None) -> str:
    """Three significant digits."""
    if value is None or not math.isfinite(value):
        return "not known"
    rounded = float(f"{value:.3g}")
    return number(int(rounded) if rounded.is_integer() and abs(rounded) < 1e6 else rounded)


def signed(value: float, digits: int = 2) -> str:
    """So many digits after the point; a plus before what is above 0 and still is when it is rounded."""
    return minus(f"{value:+.{digits}f}") if round(value, digits) else f"{0:.{digits}f}"


def percent(share: float) -> str:
    """A share as per cent, with one decimal below 10 % and above 90 %: 0.934 is "93.4 %", with a no-break space."""
    value = 100 * share
    return f"{value:.{0 if 10 <= value <= 90 or value in (0, 100) else 1}f}\u00a0%"


def count(amount: int, one: str, many: str = "") -> str:
    """So many of something: "1 pair", "2,000 pairs"."""
    return f"{amount:,} {one if amount == 1 else many or one + 's'}"


def listed(parts: Sequence[str]) -> str:
    """At least one: "a, b and c"."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def minus(text: str) -> str:
    """A number, with the sign that is as wide as a plus."""
    return text.replace("-", "−")
