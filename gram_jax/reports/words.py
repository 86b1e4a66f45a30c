"""Figures and other people's texts as a reader can take them."""

import re
import unicodedata

MINUS = "\u2212"
# More says nothing that a reader of a page could use; the whole text is in evaluation.json.
LONGEST = 20_000
# Joiners belong to the spelling of Persian and of some emoji; these two and what breaks lines stay as they are.
_KEPT = {"\n", "\t", "\u200c", "\u200d"}
# Letters and marks without a shape of their own, and the selectors by which whole texts have been hidden behind one.
_BLANK = {*"\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0", *map(chr, range(0xE0100, 0xE01F0))}


def decimals(interval: tuple[float, float] | None) -> int:
    """How many decimals a share deserves: two where its interval is wider than four hundredths.

    >>> decimals((0.69, 0.82)), decimals((0.749, 0.773)), decimals(None)
    (2, 3, 3)
    """
    return 2 if interval is not None and interval[1] - interval[0] > 0.04 else 3


def number(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """A figure with so many decimals; "–" where there is none.

    >>> number(0.51234), number(-0.0002), number(0.25, sign=True), number(None)
    ('0.512', '0.000', '+0.250', '–')
    """
    if value is None:
        return "–"
    text = f"{abs(value):.{digits}f}"
    if not any(digit in text for digit in "123456789"):
        return text
    return (MINUS if value < 0 else "+" if sign else "") + text


def with_interval(
    value: float | None, interval: tuple[float, float] | None, *, sign: bool = False
) -> str:
    """A share with its interval, both with as many decimals as the interval lets them have.

    >>> with_interval(0.7619, (0.6923, 0.8201)), with_interval(0.7619, None)
    ('0.76 (0.69 to 0.82)', '0.762')
    """
    digits = decimals(interval)
    if value is None or interval is None:
        return number(value, digits, sign=sign)
    low, high = (number(bound, digits, sign=sign) for bound in interval)
    return f"{number(value, digits, sign=sign)} ({low} to {high})"


def percent(share: float) -> str:
    """A share in a sentence.

    >>> percent(0.1234), percent(0.0012), percent(0.0)
    ('12 %', '0.1 %', '0 %')
    """
    return f"{100 * share:.1f} %" if 0 < share < 0.01 else f"{100 * share:.0f} %"


def many(n: int, noun: str) -> str:
    """A number of things.

    >>> many(1, "pair"), many(1234, "pair")
    ('1 pair', '1,234 pairs')
    """
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def visible(text: str) -> str:
    """The text with every character spelled out that would hide, turn or break what stands around it.

    >>> print(visible("a\\u202eb\\x00c\\u3164\\r\\nd"))
    a⟨U+202E⟩b⟨U+0000⟩c⟨U+3164⟩
    d
    """
    text = text.replace("\r\n", "\n")
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(f"⟨U+{ord(c):04X}⟩" if _hides(c) else c for c in text)


def _hides(character: str) -> bool:
    kind = unicodedata.category(character)
    hidden = kind in ("Cc", "Cf", "Cs", "Cn", "Zl", "Zp") or character in _BLANK
    return hidden and character not in _KEPT


def shortened(text: str, most: int = LONGEST) -> str:
    """The visible text, cut with a note where it is longer than a page should hold."""
    if len(text) <= most:
        return visible(text)
    return f"{visible(text[:most])} [… {many(len(text) - most, 'character')} more]"


def gist(text: str, first: int = 110, last: int = 50) -> str:
    """The beginning and the end of a text on one line: what was added to it may stand in either.

    >>> gist("one two  three\\nfour five", 7, 4), gist("short")
    ('one two … five', 'short')
    """
    line = " ".join(visible(text[: 4 * first]).split())
    if len(line) <= first + last and len(text) <= 4 * first:
        return line
    end = " ".join(visible(text[-4 * last :]).split())
    return f"{line[:first].rstrip()} … {end[-last:].lstrip()}"


def anchor(*parts: str) -> str:
    """A name for a place in a page.

    >>> anchor("RM-Bench, styles", "x y")
    'rm-bench-styles-x-y'
    """
    return re.sub(r"[^a-z0-9]+", "-", " ".join(parts).lower()).strip("-") or "x"
