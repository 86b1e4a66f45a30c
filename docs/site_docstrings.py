"""An extension of griffe: our docstrings, which are plain text with doctest examples, as Markdown."""

import re
from typing import Any

import griffe


class PlainDocstrings(griffe.Extension):
    """Examples become blocks; "name: what it is" becomes an item of a list; Returns and Raises begin a paragraph."""

    def on_function_instance(self, *, func: griffe.Function, **_: Any) -> None:
        """With the names of the parameters."""
        _rewrite(func, [parameter.name for parameter in func.parameters])

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """With the names of the attributes."""
        _rewrite(cls, [name for name, member in cls.members.items() if member.is_attribute])

    def on_module_members(self, *, mod: griffe.Module, **_: Any) -> None:
        """Without names."""
        _rewrite(mod, [])


def _rewrite(thing: griffe.Object, names: list[str]) -> None:
    if thing.docstring:
        thing.docstring.value = markdown(thing.docstring.value, names)


def markdown(text: str, names: list[str]) -> str:
    """A docstring as Markdown. names: of parameters or fields, which are listed."""
    parts = [part for part in re.split(r"\n\s*\n", text) if part.strip()]
    return "\n\n".join(_example(p) if ">>>" in p else _prose(p, names) for p in parts)


def _example(part: str) -> str:
    before, _, code = part.partition(">>>")
    body = re.sub(r"\s*# doctest: \+\w+", "", f">>>{code}".rstrip())
    return f"{before.rstrip()}\n\n```pycon\n{body}\n```"


def _prose(part: str, names: list[str]) -> str:
    part = re.sub(r"\s*\n\s*", " ", part.strip())
    part = re.sub(r"<(?=[a-z|/])", "&lt;", part)
    if names:
        name = rf"(?:{'|'.join(map(re.escape, names))})(?:\.\w+)?"
        part = re.sub(rf"(?:^|(?<=[.;:] )|(?<=\s))({name}(?:, {name})*):\s+", r"\n\n- `\1`: ", part)
    part = re.sub(r"(?<=[.;]) (Returns|Raises) ", r"\n\n\1 ", part)
    return part.strip()
