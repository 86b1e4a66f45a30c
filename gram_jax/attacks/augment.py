"""Choosing attacks, and putting them into labeled pairs: for the suite, and for training.

Which pairs are attacked, by what and in which wording are functions of (seed, id).
"""

from collections.abc import Sequence
from typing import TypeVar

from gram_jax.attacks.suite import ATTACKS, HOSTILE, Attack
from gram_jax.attacks.template import Case
from gram_jax.data.comparison import Comparison
from gram_jax.errors import DataError
from gram_jax.hashing import drawn
from gram_jax.judge.messages import Prompt
from gram_jax.judge.spec import JudgeSpec

_T = TypeVar("_T")


def choose_attacks(names: Sequence[str] | None) -> tuple[Attack, ...]:
    """The attacks of these names, or of a kind ("hostile", "harmless"), in the suite's order; None: all of them.

    Raises DataError for a name that is not known.
    """
    if names is None:
        return tuple(ATTACKS.values())
    known = {*ATTACKS, "hostile", "harmless"}
    if unknown := [name for name in names if name not in known]:
        raise DataError(
            f"no attack is called {', '.join(map(repr, unknown))}: expected hostile, harmless, or some of "
            f"{', '.join(ATTACKS)}"
        )
    if not names:
        raise DataError("no attack is named: give some, or none at all for the whole suite")
    return tuple(a for a in ATTACKS.values() if a.name in names or a.kind in names)


def _asked(prompt: Prompt) -> str:
    """What was asked: the last message of a conversation."""
    return prompt[-1].content


def attacked_text(
    attack: Attack, record: Comparison, response: str, judge: JudgeSpec, *, seed: int
) -> str:
    """The response as the suite shows it: one tested wording, drawn by (seed, id, attack)."""
    case = Case(_asked(record.prompt), response, judge)
    return _pick(attack.tested, seed, record.id, attack.name)(case)


def with_attacks(
    records: Sequence[Comparison], judge: JudgeSpec, *, share: float, seed: int
) -> list[Comparison]:
    """Labeled pairs of which `share` have an attack in place of the rejected response; the others are left as they are.

    Which pairs, which attack and which of its trained wordings are functions of (seed, id) and of the pairs. Ties
    are neither counted nor changed, and no attack becomes equal to the chosen response.
    """
    labeled = [at for at, record in enumerate(records) if record.has_preference]
    labeled.sort(key=lambda at: (drawn(seed, records[at].id, "attacked"), at))
    changed = list(records)
    for at in labeled[: round(share * len(labeled))]:
        changed[at] = _with_attack(records[at], judge, seed)
    return changed


def _with_attack(record: Comparison, judge: JudgeSpec, seed: int) -> Comparison:
    attack = _pick(HOSTILE, seed, record.id, "which attack")
    case = Case(_asked(record.prompt), record.rejected, judge)
    text = _pick(attack.trained, seed, record.id, attack.name)(case)
    return record if text == record.chosen else record.with_rejected(text)


def _pick(among: Sequence[_T], seed: int, *what: str) -> _T:
    return among[drawn(seed, *what) % len(among)]
