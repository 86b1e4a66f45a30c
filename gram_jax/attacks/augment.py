"""Apply attacks to labeled pairs, for the suite and for training.

The choice of pairs, attacks and templates is a function of (seed, id).
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from gram_jax.attacks.suite import Attack, attacks_of_kind
from gram_jax.attacks.templates import AttackContext
from gram_jax.data.records import Comparison
from gram_jax.hashing import stable_hash
from gram_jax.judge.spec import JudgeSpec

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


def attacked_text(
    attack: Attack, record: Comparison, response: str, judge: JudgeSpec, *, seed: int
) -> str:
    """The response after an attack of the suite: one tested template, selected by (seed, id, attack)."""
    case = AttackContext(record.prompt[-1].content, response, judge)
    return _pick(attack.tested, seed, record.id, attack.name)(case)


def with_attacks(
    records: Iterable[Comparison], judge: JudgeSpec, *, share: float, seed: int
) -> Iterator[Comparison]:
    """Yield the records, with the rejected response replaced by an attack in `share` of the labeled pairs.

    The changed pairs, the attacks and their trained templates are functions of (seed, id) and of the pairs. A pair
    whose attack equals the chosen response is not changed. `records` is iterated twice.
    """
    hashes = np.fromiter((_rank(r, seed) for r in records if r.has_preference), np.uint64)
    chosen = np.zeros(len(hashes), bool)
    chosen[np.argsort(hashes, kind="stable")[: round(share * len(hashes))]] = True
    attacked, count, changed = iter(chosen.tolist()), 0, 0
    for record in records:
        given = record
        if record.has_preference and next(attacked):
            record = _with_attack(record, judge, seed)
        count, changed = count + 1, changed + (record is not given)
        yield record
    logger.info("attacks replace %d of %d rejected responses", changed, count)


def _rank(record: Comparison, seed: int) -> int:
    return stable_hash(seed, record.id, "attacked")


def _with_attack(record: Comparison, judge: JudgeSpec, seed: int) -> Comparison:
    attack = _pick(attacks_of_kind("hostile"), seed, record.id, "which attack")
    case = AttackContext(record.prompt[-1].content, record.rejected, judge)
    text = _pick(attack.trained, seed, record.id, attack.name)(case)
    return record if text == record.chosen else record.with_rejected(text)


def _pick(among: Sequence[_T], seed: int, *what: str) -> _T:
    return among[stable_hash(seed, *what) % len(among)]
