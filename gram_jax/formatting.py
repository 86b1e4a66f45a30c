"""Numbers as people read them."""


def format_value(value: object) -> str:
    """A number with as many digits as a person wants to read; anything else as text.

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
    """A duration as a person says it.

    >>> format_seconds(3.21), format_seconds(75), format_seconds(3700)
    ('3.2 s', '1 min 15 s', '1 h 01 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
