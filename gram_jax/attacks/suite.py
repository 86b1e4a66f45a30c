"""The attack suite, read from assets/: hostile texts, and harmless perturbations of a response's surface form.

`tested` and `trained` templates are disjoint: the effect of training on attacks is measured on held-out texts.
"""

import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from gram_jax.attacks import perturbations
from gram_jax.attacks.perturbations import Rule, in_prose
from gram_jax.attacks.templates import AttackTemplate, make_template
from gram_jax.errors import DataError

AttackKind = Literal["hostile", "harmless"]


@dataclass(frozen=True)
class Attack:
    """tested: templates of the suite; trained: templates for training, () for harmless perturbations."""

    name: str
    kind: AttackKind
    description: str
    tested: tuple[AttackTemplate, ...]
    trained: tuple[AttackTemplate, ...] = ()


@cache
def all_attacks() -> dict[str, Attack]:
    """Every attack by name, the hostile ones first."""
    return {attack.name: attack for attack in (*_hostile(), *_harmless())}


@cache
def attacks_of_kind(kind: AttackKind) -> tuple[Attack, ...]:
    """The hostile or the harmless attacks."""
    return tuple(attack for attack in all_attacks().values() if attack.kind == kind)


def choose_attacks(names: Sequence[str] | None) -> tuple[Attack, ...]:
    """The attacks with these names or kinds ("hostile", "harmless"), in the suite's order; None: all of them.

    Raises DataError for an unknown name and for an empty list.
    """
    attacks = all_attacks()
    if names is None:
        return tuple(attacks.values())
    if unknown := [name for name in names if name not in {*attacks, "hostile", "harmless"}]:
        raise DataError(
            f"unknown attacks {', '.join(map(repr, unknown))}: expected hostile, harmless, or some of "
            f"{', '.join(attacks)}"
        )
    if not names:
        raise DataError("no attacks are given: name some, or omit the option for the whole suite")
    return tuple(a for a in attacks.values() if a.name in names or a.kind in names)


def phrase_rules(name: str) -> tuple[Rule, ...]:
    """The rules of a table of phrases.toml: contracted, written_out or paraphrased."""
    content = _read("phrases")
    statement = content["statement"]
    return tuple(
        (phrase.replace("<statement>", statement), other) for phrase, other in content[name].items()
    )


def _hostile() -> Iterator[Attack]:
    for name, entry in _read("hostile").items():
        tested, trained = (tuple(map(make_template, entry[part])) for part in ("tested", "trained"))
        yield Attack(name, "hostile", entry["description"], tested, trained)


def _harmless() -> Iterator[Attack]:
    for name, entry in _read("harmless").items():
        tested = tuple(map(in_prose, _changes(name, entry)))
        yield Attack(name, "harmless", entry["description"], tested)


def _changes(name: str, entry: Mapping[str, Any]) -> list[Callable[[str], str]]:
    """The functions of a perturbation, one for each of its variants."""
    match entry:
        case {"prefixes": words}:
            return list(map(perturbations.opener, words))
        case {"suffixes": words}:
            return list(map(perturbations.closer, words))
        case {"phrases": table}:
            return [perturbations.reworded(phrase_rules(table))]
    return [getattr(perturbations, name)]


@cache
def _read(name: str) -> dict[str, Any]:
    path = files("gram_jax").joinpath("attacks", "assets", f"{name}.toml")
    return tomllib.loads(path.read_text(encoding="utf-8"))
