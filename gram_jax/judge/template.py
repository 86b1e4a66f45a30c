"""All prompt text of the project: judge template, stage-1 layout, baseline layout, delimiters.

A template is text with the fields {prompt}, {first} and {second}, each once and in this order;
other braces are literal. Delimiters are whole lines. A line in somebody's text that looks like a
delimiter gets a backslash in front, and a line that already has backslashes there gets one more, so
nothing can be forged and different texts never render alike (`Guard`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from gram_jax.errors import JudgeError

FIELDS = ("prompt", "first", "second")

# 45 tokens of the SmolLM2 tokenizer. The blank lines are the same before every delimiter, so that a
# response has the same tokens in both places.
_DEFAULT = """\
Compare two responses to a request.

[Request]
{prompt}

[Response LABEL0]
{first}

[Response LABEL1]
{second}

[Question]
Which response answers the request better? Answer LABEL0 or LABEL1."""

# Stage 1 of GRAM (arXiv 2506.14175, reference code): a user turn and an assistant turn.
WRITING_USER = "[User Question]\n{prompt}\n\n"
WRITING_ASSISTANT = (
    "[The Start of Assistant A's Answer]\n{first}\n[The End of Assistant A's Answer]\n\n"
    "[The Start of Assistant B's Answer]\n{second}\n[The End of Assistant B's Answer]"
)

# Put where text was cut out of an over-long field.
CUT = " […] "

_TURN = r"\[[A-Za-z0-9_.-]{1,40} turn\]"
_TURN_START = r"\[[A-Za-z0-9_.-]{0,40}(?: (?:t(?:u(?:r(?:n\]?)?)?)?)?)?"
# Everything that str.splitlines takes for the end of a line.
_BREAKS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


def default_template(labels: tuple[str, str]) -> str:
    """The project's own judge template, naming the responses by the judge's labels."""
    first, second = (label.strip() for label in labels)
    return _DEFAULT.replace("LABEL0", first).replace("LABEL1", second)


@dataclass(frozen=True)
class Piece:
    """A part of a layout.

    kind: "frame", where control tokens count; "text", literal words; "field", which `value` names.
    weight: the loss weight of the piece's tokens as targets.
    """

    kind: Literal["frame", "text", "field"]
    value: str
    weight: float = 0.0


Layout = tuple[Piece, ...]


def split_template(template: str) -> tuple[str, str, str, str]:
    """The literal text before, between and after the three fields. Raises JudgeError unless each is there once."""
    for name in FIELDS:
        if template.count(f"{{{name}}}") != 1:
            raise JudgeError(
                f"a judge template has the field {{{name}}} exactly once; found it {template.count(f'{{{name}}}')} "
                "times. The fields are {prompt}, {first}, {second}; all other braces are literal text."
            )
    head, rest = template.split("{prompt}")
    if "{first}" not in rest or "{second}" not in rest.split("{first}")[1]:
        raise JudgeError(
            "the fields of a judge template stand in the order {prompt}, {first}, {second}: the prompt is read first "
            "and the first response is shown first. Move them into this order."
        )
    between, rest = rest.split("{first}")
    middle, tail = rest.split("{second}")
    return head, between, middle, tail


def text_pieces(text: str, weight: float = 0.0) -> Layout:
    """The literal and field pieces of a text with {fields}."""
    parts = re.split(r"\{(" + "|".join(FIELDS) + r")\}", text)
    pieces = (
        Piece("field" if i % 2 else "text", part, weight)
        for i, part in enumerate(parts)
        if i % 2 or part
    )
    return tuple(pieces)


class Guard:
    """Keeps the words of people from passing for the delimiters of a layout.

    A line is suspicious if, after any backslashes at its start, it is one of the layout's delimiter
    lines (blanks around it and case ignored), begins like its closing line, or is a turn header
    such as "[user turn]". `neutralise` puts one backslash before every suspicious line. The set of
    suspicious lines is closed under that, so the map is injective; every other line is left as it
    is, bit for bit.
    """

    def __init__(self, whole_lines: Sequence[str], beginnings: Sequence[str]):
        whole = [_loose(line) for line in dict.fromkeys(whole_lines)]
        begin = [_loose(line) for line in dict.fromkeys(beginnings)]
        end = rf"(?=[ \t]*(?:[{_BREAKS}]|\Z))"
        shapes = [f"(?:{'|'.join([*whole, _TURN])}){end}", *begin]
        self._suspicious = re.compile(
            rf"(?:\A|(?<=[{_BREAKS}]))(?=\\*[ \t]*(?:{'|'.join(shapes)}))", re.IGNORECASE
        )
        # A cheap look first: most texts hold none of the words that a delimiter begins with.
        starts = {line.split()[0].lower() for line in (*whole_lines, *beginnings)}
        self._hints = (" turn]", *starts)

    def neutralise(self, text: str) -> tuple[str, int]:
        """The text with suspicious lines escaped, and how many there were."""
        lower = text.lower()
        if not any(hint in lower for hint in self._hints):
            return text, 0
        return self._suspicious.subn(r"\\", text)


def _loose(line: str) -> str:
    """A pattern for a line in which any run of blanks may stand for any other."""
    return r"[ \t]+".join(re.escape(word) for word in line.split())


@lru_cache(maxsize=64)
def layout_guard(pieces: Layout) -> Guard:
    """The guard for a layout. Raises JudgeError where no delimiter line separates two fields."""
    whole: list[str] = []
    beginnings: list[str] = []
    for at, piece in enumerate(pieces):
        if piece.kind != "text":
            continue
        after_field = at > 0 and pieces[at - 1].kind == "field"
        before_field = at + 1 < len(pieces) and pieces[at + 1].kind == "field"
        tail, *lines = piece.value.split("\n") if after_field else ["", *piece.value.split("\n")]
        head = [lines.pop()] if before_field and lines else []
        closing = after_field and not before_field
        (beginnings if closing else whole).extend(line for line in lines if line.strip())
        beginnings.extend(line for line in head if line.strip())
        if after_field and before_field:
            _check_separator(piece.value, tail, [*lines, *head])
    for line in (*whole, *beginnings):
        own = re.fullmatch(
            _TURN_START if line in beginnings else _TURN, line.strip(), re.IGNORECASE
        )
        if CUT.strip() in line or own:
            raise JudgeError(
                f"the template line {line!r} would be mistaken for the project's own mark of a cut or of a turn; word "
                "it differently."
            )
        if line.lstrip().startswith("\\"):
            raise JudgeError(
                f"the template line {line!r} begins with a backslash, which marks escaped lines; leave it out."
            )
    return Guard(tuple(whole), tuple(beginnings))


def _check_separator(literal: str, tail: str, starts: Sequence[str]) -> None:
    marks = [line for line in starts if line.strip()]
    if not marks:
        raise JudgeError(
            f"two fields of the template are separated by {literal!r} only. Put a line with words of its own between "
            "them, such as [Response B]; without one, a response could pass for its neighbour."
        )
    # A field's last line runs on into `tail`: together they must not spell the delimiter.
    mark = marks[0]
    if any(tail.startswith(mark[i:]) for i in range(len(mark))):
        raise JudgeError(
            f"the text {tail!r} that follows a field ends like the delimiter {mark!r}, so a response could complete "
            "it. Begin the delimiter on a line of its own."
        )


def comparison_layout(template: str, before: str, after: str) -> Layout:
    """Stage 2 and scoring: the judge's whole prompt; the verdict is the token after it."""
    split_template(template)
    return (Piece("frame", before), *text_pieces(template), Piece("frame", after))


def writing_layout(before: str, after: str, end: str) -> Layout:
    """Stage 1: the user asks, the assistant writes both responses and carries the loss."""
    return (
        Piece("frame", before),
        *text_pieces(WRITING_USER),
        Piece("frame", after),
        *text_pieces(WRITING_ASSISTANT, weight=1.0),
        Piece("frame", end, weight=1.0),
    )


def response_layout(before: str, after: str, end: str) -> Layout:
    """The baseline: the prompt from the user, one response from the assistant; the score is read at `end`."""
    return (
        Piece("frame", before),
        Piece("field", "prompt"),
        Piece("frame", after),
        Piece("field", "response"),
        Piece("frame", end),
    )
