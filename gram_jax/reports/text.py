"""Escape prompts and responses for reports: markup, control and invisible characters become visible text."""

import re
import unicodedata

from gram_jax.formatting import plural

# Maximum number of characters of a text in a report; the results file has the whole text.
LONGEST = 20_000
# Persian and some emoji need the two joiners; these, tabs and line breaks are kept.
_KEPT = {"\n", "\t", "\u200c", "\u200d"}
# Characters without a visible glyph, and variation selectors, which can hide a text.
_BLANK = {*"\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0", *map(chr, range(0xE0100, 0xE01F0))}


def visible(text: str) -> str:
    """The text with code points in place of characters that are invisible or change the surrounding text.

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


def truncate(text: str, most: int = LONGEST) -> str:
    """The visible text, cut with a note if it is longer than `most` characters."""
    if len(text) <= most:
        return visible(text)
    return f"{visible(text[:most])} [… {plural(len(text) - most, 'character')} more]"


def gist(text: str, first: int = 110, last: int = 50) -> str:
    """The beginning and the end of a text on one line: an attack may be in either.

    >>> gist("one two  three\\nfour five", 7, 4), gist("short")
    ('one two … five', 'short')
    """
    line = " ".join(visible(text[: 4 * first]).split())
    if len(line) <= first + last and len(text) <= 4 * first:
        return line
    end = " ".join(visible(text[-4 * last :]).split())
    return f"{line[:first].rstrip()} … {end[-last:].lstrip()}"


def anchor(*parts: str) -> str:
    """An id for a heading.

    >>> anchor("RM-Bench, styles", "x y")
    'rm-bench-styles-x-y'
    """
    return re.sub(r"[^a-z0-9]+", "-", " ".join(parts).lower()).strip("-") or "x"


def markdown_line(text: str) -> str:
    """The visible text on one line of Markdown, for a table or a heading, without markup.

    >>> markdown_line("a|b *c*\\n<d> [e](f)")
    'a\\\\|b \\\\*c\\\\* &lt;d> \\\\[e\\\\](f)'
    """
    line = " ".join(visible(text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_|\[\]#~$])", r"\\\1", line)


def fenced(text: str) -> str:
    """The text in a Markdown code block, with longer fences than any in the text.

    >>> print(fenced("a ``` b"))
    ````text
    a ``` b
    ````
    """
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
