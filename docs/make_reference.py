"""Write docs/configuration.md and docs/cli.md from the code: python docs/make_reference.py

configuration.md comes from the dataclasses of recipes (gram_jax/recipes/tables.py, gram_jax/recipes/rl.py), cli.md from
the signatures of the commands (gram_jax/cli). tests/test_documents.py checks that both are up to date.
"""

import ast
import dataclasses
import inspect
import itertools
import re
import textwrap
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import annotated_types
from pydantic.fields import FieldInfo

from gram_jax import cli, errors
from gram_jax.data.schemas import SCHEMAS
from gram_jax.recipes import rl, tables
from gram_jax.recipes.checks import STAGES_OF
from gram_jax.recipes.reading import FREE_ON_RESUME

DOCS = Path(__file__).parent
BY = "Written by `python docs/make_reference.py` from the code; change it there."


def main() -> None:
    """Write both pages."""
    for name, text in references().items():
        (DOCS / name).write_text(text, encoding="utf-8")


def references() -> dict[str, str]:
    """Text by file name."""
    return {"configuration.md": configuration(), "cli.md": commands()}


def _page(parts: list[str]) -> str:
    """Paragraphs in lines of at most 120 characters; headings and tables unchanged."""
    lines = [
        part
        if part.startswith(("|", "#"))
        else "\n\n".join(
            textwrap.fill(paragraph, 120, break_long_words=False, break_on_hyphens=False)
            for paragraph in part.split("\n\n")
        )
        for part in parts
        if part
    ]
    return "\n\n".join(lines) + "\n"


# Recipes


def configuration() -> str:
    """Every table of both kinds of recipe."""
    parts = [
        "# Recipes",
        BY,
        "Look up every table and key of a recipe. A recipe is one TOML file. It states every number that changes "
        "results; only keys that do not change results have a default. Unknown keys, missing keys, wrong types and "
        "values that contradict each other are errors that name the key. `--set table.key=value` on the command "
        "line changes a key; an empty value removes it. `gram-jax recipe` lists the recipes that ship with the "
        "package.",
        "There are two kinds: recipes of stages, for [`gram-jax train`](cli.md#gram-jax-train) and "
        "[`gram-jax plan`](cli.md#gram-jax-plan), and recipes of reinforcement learning, for "
        "[`gram-jax rl`](cli.md#gram-jax-rl). A table has the same keys in both.",
        "## Recipes of stages",
        *_tables(tables.Recipe),
        _free(FREE_ON_RESUME[tables.Recipe]),
        "## Recipes of reinforcement learning",
        *_tables(rl.RlRecipe, known=tables.Recipe),
        _free(FREE_ON_RESUME[rl.RlRecipe]),
        "## Dataset formats",
        "The values of `schema`, with the fields by which `auto` recognises them. [Dataset formats](formats.md) has an "
        "example of each.",
        _table(
            ("schema", "fields"),
            [(f"`{name}`", _codes(schema.fields)) for name, schema in SCHEMAS.items()],
        ),
    ]
    return _page(parts)


def _tables(recipe: type, known: type | None = None) -> list[str]:
    """A section for every table of a recipe, and one for its keys outside of tables.

    known: a recipe whose tables were written before; equal tables are links.
    """
    before = dict(_fields(known)) if known else {}
    loose, sections = [], []
    for name, hint in _fields(recipe):
        table = _dataclass_of(hint)
        if table is None:
            loose.append(name)
        elif _dataclass_of(before.get(name)) is table:
            sections += [f"### `[{name}]` of `gram-jax rl`", f"As [above](#{name})."]
        else:
            again = " of `gram-jax rl`" if name in before else ""
            sections += _section(name, table, again)
    return [*([_keys(recipe, loose, "")] if loose else []), *sections]


def _section(name: str, table: type, again: str = "") -> list[str]:
    inner = {below: _dataclass_of(hint) for below, hint in _fields(table)}
    parts = [f"### `[{name}]`{again}", _docstring(table), _keys(table, list(inner), name)]
    if table is tables.DataConfig:
        parts += [
            "A source with settings of its own:",
            _keys(tables.SourceConfig, [n for n, _ in _fields(tables.SourceConfig)], ""),
        ]
    for below, deeper in inner.items():
        if deeper is not None:
            parts += _section(f"{name}.{below}", deeper, again)
    return parts


def _fields(table: type) -> list[tuple[str, Any]]:
    hints = typing.get_type_hints(table, include_extras=True)
    return [(field.name, hints[field.name]) for field in dataclasses.fields(table)]


def _keys(table: type, names: list[str], place: str) -> str:
    fields, meanings = {f.name: f for f in dataclasses.fields(table)}, _meanings(table)
    hints = dict(_fields(table))
    rows = []
    for name in names:
        stages = STAGES_OF.get(f"{place}.{name}", ())
        only = f" (stage {', '.join(stages)} only)" if stages else ""
        default = _default(fields[name])
        rows.append(
            (
                f"`{name}`",
                _kind(hints[name]),
                "required" if stages and default == "none" else default,
                meanings[name] + only,
            )
        )
    return _table(("key", "value", "default", "meaning"), rows)


def _meanings(table: type) -> dict[str, str]:
    """The text below every field of a dataclass in its source. KeyError for a field without one."""
    found: dict[str, str] = {}
    for base in table.__bases__:
        found |= _meanings(base) if dataclasses.is_dataclass(base) else {}
    body = ast.parse(inspect.getsource(table)).body[0].body  # type: ignore[attr-defined]
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            found[field.target.id] = " ".join(ast.literal_eval(text.value).split())
    return found


def _free(keys: tuple[str, ...]) -> str:
    return (
        "A run resumes only with the recipe that it was started with. These keys may differ, because they change "
        f"nothing or only the last bits: {_codes(key + '*' if key.endswith('.') else key for key in keys)}."
    )


def _codes(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`".replace("|", "` or `") for word in words)


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    cells = [heads, ("---",) * len(heads), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _default(field: Any) -> str:
    default = field.default
    if isinstance(default, FieldInfo):
        default = default.default
    if default is dataclasses.MISSING:
        return "required" if field.default_factory is dataclasses.MISSING else ""
    return "none" if default in (None, ()) else f"`{_plain(default)}`"


def _plain(value: Any) -> str:
    return (
        str(value).lower()
        if isinstance(value, bool)
        else f'"{value}"'
        if isinstance(value, str)
        else str(value)
    )


def _dataclass_of(hint: Any) -> type | None:
    """The dataclass of a table, optional or not; None if there is none."""
    found = [x for x in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(x)]
    return found[0] if found and typing.get_origin(hint) is not tuple else None


def _kind(hint: Any) -> str:
    """A type in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return " ".join([_kind(args[0]), *filter(None, (_limit(note) for note in args[1:]))])
    if origin is Literal:
        return ", ".join(f'`"{x}"`' if isinstance(x, str) else f"`{x}`" for x in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_kind(x) for x in args if x is not types.NoneType)
    if origin in (tuple, list):
        if origin is tuple and Ellipsis not in args:
            return f"{_kind(args[0])}, {len(args)} of them"
        return f"list of {_kind(args[0])}"
    if dataclasses.is_dataclass(hint):
        return "text or a table" if hint.__name__ == "SourceConfig" else "a table"
    names = {int: "whole number", float: "number", bool: "true or false", str: "text", Path: "path"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _limit(note: Any) -> str:
    notes = note.metadata if isinstance(note, FieldInfo) else [note]
    words = []
    for one in notes:
        match one:
            case annotated_types.Ge(ge=value):
                words.append(f"from {value}")
            case annotated_types.Gt(gt=value):
                words.append(f"above {value}")
            case annotated_types.Le(le=value):
                words.append(f"to {value}")
            case annotated_types.Lt(lt=value):
                power = 2 ** (int(value).bit_length() - 1)
                words.append(f"below {value if value < 2**16 else f'2^{power.bit_length() - 1}'}")
    return " ".join(words)


def _docstring(thing: Any) -> str:
    return "\n\n".join(
        " ".join(part.split()) for part in inspect.cleandoc(thing.__doc__).split("\n\n")
    )


# Commands


def commands() -> str:
    """Every command with its arguments and options."""
    statuses = [(f"`{n}`", words) for n, words in errors.STATUSES.items()]
    head = [
        "# Commands",
        BY,
        "Look up every command, argument and option. `-h` after a command shows the same text. `python -m gram_jax` is "
        "the same program.",
        "## Exit statuses",
        _table(("status", "meaning"), statuses),
    ]
    written = cli.app.generate_docs(include_hidden=False)
    # cyclopts shows a program started by `python -m NAME` under that name.
    written = re.sub(r"^(gram-jax[a-z ]*) -m \w+", r"\1", written, flags=re.M)
    body = written[written.index("## gram-jax ") :].replace("```console", "```text")
    return _page(head) + "\n" + body.rstrip() + "\n"


if __name__ == "__main__":
    main()
