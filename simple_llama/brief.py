"""Numbers that may be tiny, such as learning rates: written one way on pages and in terminals."""

import math


def brief(value: float, digits: int = 15) -> str:
    """Write a finite number of at most so many digits, as a short params.yaml would: 0.25, 2048,
    1.5e-3."""
    text = f"{value:.{digits}g}"
    if value and abs(value) < 1e-2:
        text = f"{value:.{digits - 1}e}"
    mantissa, e, exponent = text.partition("e")
    return f"{float(mantissa):.{digits}g}e{int(exponent)}" if e else text


def passes(value: float) -> str:
    """Write passes over the examples, a finite number that is not negative, in at most two
    decimals, never more than there were: 3, 2.99, 1,000,000, under 0.01."""
    if 0 < value < 0.01:
        return "under 0.01"
    whole, part = divmod(math.floor(value * 100 + 1e-9), 100)
    return f"{whole:,}" + (f".{part:02}".rstrip("0") if part else "")
