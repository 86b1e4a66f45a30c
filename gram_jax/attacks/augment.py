"""Apply attacks to labeled pairs, for the suite and for training.

The choice of pairs, attacks and templates is a function of (seed, id).
"""

from collections.abc import Sequence
from typing import TypeVar

from gram_jax.attacks.suite import Attack, attacks_of_kind
from gram_jax.attacks.templates import AttackContext
from gram_jax.data.records import Comparison
from gram_jax.hashing import stable_hash
from gram_jax.judge.spec import JudgeSpec

_T = TypeVar("_T")


def attacked_text(
    attack: Attack, record: Comparison, response: str, judge: JudgeSpec, *, seed: int
) -> str:
    """The response after an attack of the suite: one tested template, selected by (seed, id, attack)."""
    case = AttackContext(record.prompt[-1].content, response, judge)
    return _pick(attack.tested, seed, record.id, attack.name)(case)


def with_attacks(
    records: Sequence[Comparison], judge: JudgeSpec, *, share: float, seed: int
) -> list[Comparison]:
    """Replace the rejected response by an attack in `share` of the labeled pairs.

    The changed pairs, the attacks and their trained templates are functions of (seed, id) and of the pairs. A pair
    whose attack equals the chosen response is not changed.
    """
    labeled = [at for at, record in enumerate(records) if record.has_preference]
    labeled.sort(key=lambda at: (stable_hash(seed, records[at].id, "attacked"), at))
    changed = list(records)
    for at in labeled[: round(share * len(labeled))]:
        changed[at] = _with_attack(records[at], judge, seed)
    return changed


def _with_attack(record: Comparison, judge: JudgeSpec, seed: int) -> Comparison:
    attack = _pick(attacks_of_kind("hostile"), seed, record.id, "which attack")
    case = AttackContext(record.prompt[-1].content, record.rejected, judge)
    text = _pick(attack.trained, seed, record.id, attack.name)(case)
    return record if text == record.chosen else record.with_rejected(text)


def _pick(among: Sequence[_T], seed: int, *what: str) -> _T:
    return among[stable_hash(seed, *what) % len(among)]
