"""Column mappings (--map): the column of each field of a schema, and the meaning of the values of a verdict."""

from collections.abc import Iterable, Mapping

from gram_jax.data.fields import IDS, SOURCES, Fields, column
from gram_jax.errors import DataError
from gram_jax.judge.messages import BadField

# A column of a schema: the column of the source. "label:VALUE": "A", "B" or "tie", what a value of the label means.
ColumnMap = Mapping[str, str]

# The columns of each kind of rows; if one of a kind is mapped, columns of other kinds are left out.
_ASKED = ("prompt", "system", "tools")
_KINDS = (
    ("chosen", "rejected"),
    ("response_a", "response_b", "label"),
    ("responses", "scores", "correct"),
    ("completion", "label"),
)
_ABOUT = ("margin", "weight", *IDS, *SOURCES)
TARGETS = tuple(dict.fromkeys((*_ASKED, *(name for kind in _KINDS for name in kind), *_ABOUT)))
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
    """The row with the columns of a schema: the mapped ones, and its own of the same kind. Raises BadField."""
    kinds = [kind for kind in _KINDS if any(name in map for name in kind)] or _KINDS
    kept = (*_ASKED, *(name for kind in kinds for name in kind), *_ABOUT)
    found = {name: row[name] for name in kept if name in row and name not in map}
    meanings = {key.removeprefix("label:"): value for key, value in map.items() if ":" in key}
    for name, path in map.items():
        if name.startswith("label:"):
            continue
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
