"""Numbers as text."""


def format_value(value: object) -> str:
    """A number with four significant digits; anything else as text.

    >>> format_value(0.123456), format_value(2e-5), format_value(1200), format_value("a")
    ('0.1235', '2e-05', '1,200', 'a')
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}"


def format_count(value: float) -> str:
    """A large number in thousands or millions.

    >>> format_count(12345.0), format_count(42.0), format_count(3.2e6), format_count(0.19)
    ('12.3k', '42', '3.2M', '0.19')
    """
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f}{letter}"
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def format_bytes(count: float) -> str:
    """A number of bytes in binary units.

    >>> format_bytes(1536 * 1024), format_bytes(100)
    ('1.5 MiB', '100 B')
    """
    for size, letters in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= size:
            return f"{count / size:.1f} {letters}"
    return f"{count:.0f} B"


def format_seconds(seconds: float) -> str:
    """A duration in words.

    >>> format_seconds(3.21), format_seconds(75), format_seconds(3700)
    ('3.2 s', '1 min 15 s', '1 h 01 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


MINUS = "\u2212"
NONE = "–"  # where there is no figure


def decimals(interval: tuple[float, float] | None) -> int:
    """Number of decimals to show of a share: two if its interval is wider than four hundredths.

    >>> decimals((0.69, 0.82)), decimals((0.749, 0.773)), decimals(None)
    (2, 3, 3)
    """
    return 2 if interval is not None and interval[1] - interval[0] > 0.04 else 3


def format_figure(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """A figure with this number of decimals; "–" for None.

    >>> format_figure(0.51234), format_figure(-0.0002), format_figure(0.25, sign=True), format_figure(None)
    ('0.512', '0.000', '+0.250', '–')
    """
    if value is None:
        return NONE
    text = f"{abs(value):.{digits}f}"
    if not any(digit in text for digit in "123456789"):
        return text
    return (MINUS if value < 0 else "+" if sign else "") + text


def format_with_interval(
    value: float | None, interval: tuple[float, float] | None, *, sign: bool = False
) -> str:
    """A share with its interval, both with as many decimals as the interval allows.

    >>> format_with_interval(0.7619, (0.6923, 0.8201)), format_with_interval(0.7619, None)
    ('0.76 (0.69 to 0.82)', '0.762')
    """
    digits = decimals(interval)
    if value is None or interval is None:
        return format_figure(value, digits, sign=sign)
    low, high = (format_figure(bound, digits, sign=sign) for bound in interval)
    return f"{format_figure(value, digits, sign=sign)} ({low} to {high})"


def format_percent(share: float) -> str:
    """A share in a sentence.

    >>> format_percent(0.1234), format_percent(0.0012), format_percent(0.0)
    ('12 %', '0.1 %', '0 %')
    """
    return f"{100 * share:.1f} %" if 0 < share < 0.01 else f"{100 * share:.0f} %"


def plural(n: int, noun: str) -> str:
    """A number of things.

    >>> plural(1, "pair"), plural(1234, "pair")
    ('1 pair', '1,234 pairs')
    """
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
