"""Numbers that may be tiny, such as learning rates: written one way on pages and in terminals."""


def brief(value: float, digits: int = 15) -> str:
    """Write a finite number of at most so many digits, as a short params.yaml would: 0.25, 2048,
    1.5e-3."""
    text = f"{value:.{digits}g}"
    if value and abs(value) < 1e-2:
        text = f"{value:.{digits - 1}e}"
    mantissa, e, exponent = text.partition("e")
    return f"{float(mantissa):.{digits}g}e{int(exponent)}" if e else text
