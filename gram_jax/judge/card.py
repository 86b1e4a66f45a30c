"""Judge templates in a model card: the prompts of published GRAM checkpoints, which state them in code blocks only."""

import ast
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from gram_jax.errors import JudgeError
from gram_jax.judge.guard import layout_guard
from gram_jax.judge.rationale import tagged_template
from gram_jax.judge.template import FIELDS, split_template, text_parts

# The names that cards and reference code give to the fields.
SPELLINGS: Sequence[tuple[str, str, str]] = (
    ("your prompt here", "answer of assistant A", "answer of assistant B"),
    ("input", "response_a", "response_b"),
    ("user_input", "response_1", "response_2"),
    FIELDS,
)
GRAM_TAIL = "\n\n#Preferred: "  # of GRAM's evaluation, which some cards leave out
_BLOCK = re.compile(r"^([ \t]*)```[ \t]*(\w*)[^\n]*\n(.*?)^[ \t]*```", re.MULTILINE | re.DOTALL)


class CardTemplate(NamedTuple):
    """A template found in a card. place: line and kind of its block; asks: it asks for a verdict."""

    template: str
    place: str
    asks: bool


def card_templates(card: str, tail: str = "") -> list[CardTemplate]:
    """The templates in the code blocks of a card, those that ask for a verdict first.

    A template is a text, or a string of Python code, that has the three fields of one of SPELLINGS. tail: appended to
    those that do not ask. Raises JudgeError if there is none.
    """
    found: dict[str, CardTemplate] = {}
    for text, place in _texts(card):
        template = _with_usual_fields(text)
        if template is None:
            continue
        asks = _asks(template)
        if tail and not asks:
            template, asks, place = template.rstrip() + tail, True, f"{place}, with the given tail"
        found.setdefault(template, CardTemplate(template, place, asks))
    if not found:
        spellings = "; ".join(", ".join(f"{{{name}}}" for name in names) for names in SPELLINGS)
        raise JudgeError(
            f"the card has no code block with a prompt of these fields, each once and in order: {spellings}. Write the "
            "template to a text file with {prompt}, {first}, {second} and pass the file as template"
        )
    return sorted(found.values(), key=lambda one: not one.asks)


def _asks(template: str) -> bool:
    """Whether the template asks for a rationale, or ends with a cue for the verdict, such as "#Preferred:"."""
    if tagged_template(template):
        return True
    last = split_template(template)[3].rstrip().rpartition("\n")[2]
    return last.endswith(":") or last.startswith("#")


def _with_usual_fields(text: str) -> str | None:
    """The text with {prompt}, {first} and {second}; None if it does not have one spelling's fields, usable as such."""
    for names in SPELLINGS:
        fields = [f"{{{name}}}" for name in names]
        if any(text.count(field) != 1 for field in fields):
            continue
        for field, usual in zip(fields, FIELDS, strict=True):
            text = text.replace(field, f"{{{usual}}}")
        try:
            split_template(text)
            layout_guard(text_parts(text))
        except JudgeError:
            return None
        return text
    return None


def _texts(card: str) -> Iterator[tuple[str, str]]:
    """The texts that code blocks hold, and where: whole blocks, and strings of Python code."""
    for block in _BLOCK.finditer(card):
        line = card.count("\n", 0, block.start()) + 1
        body = textwrap.dedent(block[3])
        kind = block[2].lower()
        if kind in ("python", "py", ""):
            yield from ((text, f"line {line}, a string of Python") for text in _strings(body))
        if kind in ("text", "txt", "plain", ""):
            yield body.removesuffix("\n"), f"line {line}, a block of text"


def _strings(code: str) -> Iterator[str]:
    """Every string that an expression of the code is, as far as it is known without running it."""
    try:
        nodes: list[ast.AST] = [ast.parse(code)]
    except (SyntaxError, ValueError):
        return
    while nodes:
        node = nodes.pop(0)
        if isinstance(node, ast.expr) and (text := _value(node)) is not None:
            yield text
        else:
            nodes += ast.iter_child_nodes(node)


def _value(node: ast.expr) -> str | None:
    """The text of a literal, an f-string of plain names, a sum, or a strip() of such; None for anything else."""
    match node:
        case ast.Constant(value=str() as text):
            return text
        case ast.JoinedStr(values=parts):
            texts = [_value(part) for part in parts]
            return None if None in texts else "".join(text or "" for text in texts)
        case ast.FormattedValue(value=ast.Name(id=name)):
            return f"{{{name}}}"
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            texts = [_value(left), _value(right)]
            return None if None in texts else "".join(text or "" for text in texts)
        case ast.Call(
            func=ast.Attribute(value=value, attr="strip" | "rstrip" | "lstrip" as how), args=[]
        ):
            text = _value(value)
            return None if text is None else getattr(text, how)()
    return None
