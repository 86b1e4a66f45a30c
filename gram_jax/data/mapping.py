"""Column mappings (--map): the column of each field of a schema, and the meaning of the values of a verdict."""

from collections.abc import Iterable, Mapping

from gram_jax.data.fields import IDS, SOURCES, Fields, column
from gram_jax.data.lists import ALONE
from gram_jax.data.schemas import ALL, SYSTEM, TOOLS, VERDICTS, Schema, root
from gram_jax.data.shapes import PROMPTS
from gram_jax.errors import DataError
from gram_jax.judge.messages import BadField

# A column of a schema: the column of the source. "label:VALUE": "A", "B" or "tie", what a value of the label means.
ColumnMap = Mapping[str, str]

# The columns of each kind of rows. If one of them is mapped, the responses and verdicts of other kinds are not read.
_KINDS = (
    ("chosen", "rejected"),
    ("response_a", "response_b", *VERDICTS),
    ("responses", "scores", "correct"),
    ("completion", "label"),
)
# Columns of one meaning. If one of them is mapped, the others are not read.
_ASKING = (*ALONE.split("|"), "conversation_input")
_SYSTEMS = tuple(SYSTEM.split("|"))
_GRADES = ("scores", "correct")
META = frozenset((*IDS, *SOURCES))
_SAME = (_ASKING, _SYSTEMS, VERDICTS, _GRADES, IDS, SOURCES)
# A column that is mapped to one of these may also be read under its own name.
_ABOUT = ("margin", "weight", "rationale", *IDS, *SOURCES)
TARGETS = tuple(
    dict.fromkeys(
        (*PROMPTS, *_SYSTEMS, TOOLS, *(name for kind in _KINDS for name in kind), *_ABOUT)
    )
)
# The columns of responses and verdicts of all schemas; `context` and `history` stay and are counted if not shown.
_ANSWERS = {
    root(name)
    for schema in ALL
    for path in (*schema.fields, *schema.optional)
    for name in path.split("|")
} - {*_ASKING, "context", "history"}
MEANINGS = ("A", "B", "tie")


def parse_map(items: Iterable[str]) -> dict[str, str]:
    """The map of "prompt=question" and "label:left=A". Raises DataError.

    >>> parse_map(["prompt=question", "label=winner", "label:left=A"])
    {'prompt': 'question', 'label': 'winner', 'label:left': 'A'}
    """
    found = {}
    for item in items:
        key, equals, value = (
            item.rpartition("=") if item.startswith("label:") else item.partition("=")
        )
        if not equals or not key or not value:
            raise DataError(
                f"--map {item}: expected COLUMN=COLUMN or label:VALUE=A, as in prompt=question"
            )
        found[key] = value
    return checked_map(found)


def checked_map(map: ColumnMap) -> dict[str, str]:
    """The map if its keys are known. Raises DataError."""
    for key, value in map.items():
        if key.startswith("label:"):
            if value not in MEANINGS:
                raise DataError(f"map {key} = {value!r}: expected one of {', '.join(MEANINGS)}")
        elif key not in TARGETS:
            raise DataError(
                f"map {key} = {value!r}: expected one of {', '.join(TARGETS)}, or label:VALUE"
            )
    if any(key.startswith("label:") for key in map) and "label" not in map:
        raise DataError("map has label:VALUE but no column of labels: add it, as in label=winner")
    return dict(map)


def mapped(row: Fields, map: ColumnMap) -> dict[str, object]:
    """The row with the columns of a schema: the mapped ones, and its own that they do not replace. Raises BadField."""
    replaced = _replaced(row, map)
    found = {name: value for name, value in row.items() if name not in replaced}
    meanings = {key.removeprefix("label:"): value for key, value in map.items() if ":" in key}
    for name, path in _columns(map).items():
        value = column(row, path)
        if name == "label" and meanings and value is not None:
            plain = (
                str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
            )
            if plain not in meanings:
                raise BadField(path, f"one of the mapped values {', '.join(meanings)}", value)
            value = meanings[plain]
        found[name] = value
    return found


def _columns(map: ColumnMap) -> dict[str, str]:
    """The map without the meanings of values."""
    return {name: path for name, path in map.items() if not name.startswith("label:")}


def _root(row: Fields, path: str) -> str:
    """The column of a path; a column may have a dot in its name."""
    return path if path in row else root(path)


def _replaced(row: Fields, map: ColumnMap) -> set[str]:
    """The columns of a row that are not read under their own names."""
    found = {_root(row, path) for name, path in _columns(map).items() if name not in _ABOUT}
    for same in _SAME:
        if any(name in map for name in same):
            found.update(same)
    if kinds := [kind for kind in _KINDS if any(name in map for name in kind)]:
        found |= _ANSWERS.difference(*kinds)
    return found


def check_read(map: ColumnMap, schema: Schema) -> None:
    """Raises DataError if the schema of the rows does not read a mapped column."""
    for name, path in _columns(map).items():
        if name not in schema.columns | META:
            raise DataError(
                f"map {name} = {path!r}: the rows have the schema {schema.name}, which reads no {name}, only "
                f"{', '.join(sorted(schema.columns))}; leave {name} out, or name another schema (--schema)"
            )


def unread_columns(rows: Iterable[Fields], map: ColumnMap, schema: Schema) -> tuple[str, ...]:
    """The columns of rows, before they are mapped, that a schema does not read."""
    found = set[str]()
    for row in rows:
        own = (schema.columns - _columns(map).keys() - _replaced(row, map)) | META
        found |= row.keys() - own - {_root(row, path) for path in _columns(map).values()}
    return tuple(sorted(found))
