"""Escaping the lines of a text that look like the delimiters of a layout.

A backslash is inserted before every such line, also if the line already begins with backslashes. No text can forge a
delimiter, and different texts have different renderings.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from gram_jax.errors import JudgeError
from gram_jax.judge.template import CUT, Layout

_TURN = r"\[[A-Za-z0-9_.-]{1,40} turn\]"
_TURN_START = r"\[[A-Za-z0-9_.-]{0,40}(?: (?:t(?:u(?:r(?:n\]?)?)?)?)?)?"
# The ends of a line of str.splitlines.
_BREAKS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


class DelimiterGuard:
    """Escapes the lines of a field that look like delimiters of a layout.

    A line is suspicious if, after any backslashes at its start, it is a delimiter line of the layout (blanks around it
    and case ignored), begins like its closing line, or is a turn header such as "[user turn]". An escaped line is
    suspicious again, so the map is injective; every other line is unchanged.
    """

    def __init__(self, whole_lines: Sequence[str], beginnings: Sequence[str]):
        whole = [_loose(line) for line in dict.fromkeys(whole_lines)]
        begin = [_loose(line) for line in dict.fromkeys(beginnings)]
        end = rf"(?=[ \t]*(?:[{_BREAKS}]|\Z))"
        shapes = [f"(?:{'|'.join([*whole, _TURN])}){end}", *begin]
        self._suspicious = re.compile(
            rf"(?:\A|(?<=[{_BREAKS}]))(?=\\*[ \t]*(?:{'|'.join(shapes)}))", re.IGNORECASE
        )
        # checked first, since most texts contain none of these words
        starts = {line.split()[0].lower() for line in (*whole_lines, *beginnings)}
        self._hints = (" turn]", *starts)

    def escape(self, text: str) -> tuple[str, int]:
        """The text with suspicious lines escaped, and the number of these lines."""
        lower = text.lower()
        if not any(hint in lower for hint in self._hints):
            return text, 0
        return self._suspicious.subn(r"\\", text)


def _loose(line: str) -> str:
    """A pattern for a line in which every run of blanks matches any other."""
    return r"[ \t]+".join(re.escape(word) for word in line.split())


@lru_cache(maxsize=64)
def layout_guard(layout: Layout) -> DelimiterGuard:
    """The guard of a layout. Raises JudgeError if no delimiter line separates two fields."""
    whole: list[str] = []
    beginnings: list[str] = []
    for at, part in enumerate(layout):
        if part.kind != "text":
            continue
        after_field = at > 0 and layout[at - 1].kind == "field"
        before_field = at + 1 < len(layout) and layout[at + 1].kind == "field"
        tail, *lines = part.value.split("\n") if after_field else ["", *part.value.split("\n")]
        head = [lines.pop()] if before_field and lines else []
        closing = after_field and not before_field
        (beginnings if closing else whole).extend(line for line in lines if line.strip())
        beginnings.extend(line for line in head if line.strip())
        if after_field and before_field:
            _check_separator(part.value, tail, [*lines, *head])
    for line in (*whole, *beginnings):
        _check_line(line, _TURN_START if line in beginnings else _TURN)
    return DelimiterGuard(tuple(whole), tuple(beginnings))


def _check_line(line: str, turn_header: str) -> None:
    if CUT.strip() in line or re.fullmatch(turn_header, line.strip(), re.IGNORECASE):
        raise JudgeError(
            f"the template line {line!r} looks like gram_jax's own mark of a cut or of a turn; word it differently."
        )
    if line.lstrip().startswith("\\"):
        raise JudgeError(
            f"the template line {line!r} begins with a backslash, which marks escaped lines; leave it out."
        )


def _check_separator(literal: str, tail: str, starts: Sequence[str]) -> None:
    marks = [line for line in starts if line.strip()]
    if not marks:
        raise JudgeError(
            f"two fields of the template are separated by {literal!r} only. Put a line with words of its own between "
            "them, such as [Response B]; without one, the judge cannot separate their texts."
        )
    # The last line of a field continues in `tail`: together they must not spell the delimiter.
    mark = marks[0]
    if any(tail.startswith(mark[i:]) for i in range(len(mark))):
        raise JudgeError(
            f"the text {tail!r} that follows a field ends like the delimiter {mark!r}, so a response could complete "
            "it. Begin the delimiter on a line of its own."
        )
