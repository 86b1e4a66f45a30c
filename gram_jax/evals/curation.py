"""Curate preferences by the scores of one or several judges: confirm, suspect, keep, drop, flip, reweigh, label.

A judge confirms a pair if it prefers the chosen response in both orders, and contradicts it if it prefers the rejected
one in both. Pairs without a label get one if all judges prefer the same response in both orders.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from gram_jax.data.records import Comparison, contents_id, contents_of
from gram_jax.errors import DataError
from gram_jax.evals.pairwise import side
from gram_jax.scoring.results import TEXTS, read_metadata, read_rows

Verdict = Literal["confirmed", "suspected", "uncertain"]
SuspectedAction = Literal["keep", "drop", "flip", "reweigh"]
UncertainAction = Literal["keep", "drop", "reweigh"]
VERDICTS: tuple[Verdict, ...] = ("confirmed", "uncertain", "suspected")


@dataclass(frozen=True)
class CurationConfig:
    """Thresholds and actions.

    above: minimum mean P(chosen) of a confirmed pair. below: maximum mean P(chosen) of a suspected one. unanimous: all
    judges must also agree in both orders. suspected, uncertain: what happens to these pairs; "reweigh" multiplies the
    weight of a pair by its mean P(chosen).
    """

    above: float = 0.7
    below: float = 0.3
    unanimous: bool = True
    suspected: SuspectedAction = "drop"
    uncertain: UncertainAction = "keep"

    def __post_init__(self) -> None:
        if not 0 <= self.below < self.above <= 1:
            raise DataError(
                f"expected 0 <= below < above <= 1; found below {self.below:g}, above {self.above:g}"
            )


@dataclass(frozen=True)
class JudgedPair:
    """A pair with what K judges say of it.

    pair: labeled; without a label in the source, its first response counts as the chosen one. labeled: whether the
    source has a label. p: f64 [K], P(chosen), the mean of both orders. sides: [K, 2], the preferred response if the
    chosen one is shown first and second: 1 chosen, -1 rejected, 0 none.
    """

    pair: Comparison
    labeled: bool
    p: np.ndarray
    sides: np.ndarray

    def verdict(self, config: CurationConfig) -> Verdict:
        """What the judges say of the label, by the thresholds."""
        mean = float(self.p.mean())
        if mean >= config.above and (not config.unanimous or (self.sides > 0).all()):
            return "confirmed"
        if mean <= config.below and (not config.unanimous or (self.sides < 0).all()):
            return "suspected"
        return "uncertain"


@dataclass(frozen=True)
class SourceCuration:
    """Figures of the pairs of one source (kind), or of all.

    agreement: share of pairs whose label the mean of the judges prefers. unanimous: share on which all judges agree in
    both orders. order_consistency: mean over judges of the share of pairs with the same preference in both orders.
    """

    pairs: int
    confirmed: int
    uncertain: int
    suspected: int
    agreement: float
    unanimous: float
    order_consistency: float


class CurationFigures(NamedTuple):
    """all: of all pairs, also of those without a source."""

    all: SourceCuration
    by_source: dict[str, SourceCuration]


def read_judged(
    records: Sequence[Comparison], score_files: Sequence[str | Path]
) -> list[JudgedPair]:
    """The records with the scores of files that `gram-jax score` wrote for them, one for each judge.

    Ties are left out. Raises DataError if a file has no score of a record, or was made from other texts or labels.
    """
    if not score_files:
        raise DataError("no scores: expected at least one file of `gram-jax score`")
    tables = [_scores(Path(file)) for file in score_files]
    judged = []
    for record in records:
        if record.label == "tie":
            continue
        found = [
            _score(table, record, file) for table, file in zip(tables, score_files, strict=True)
        ]
        p, bias = np.array(found, float).T
        sides = np.stack([side(p + bias / 2), side(p - bias / 2)], axis=1)
        pair = record if record.has_preference else replace(record, label=0)
        judged.append(JudgedPair(pair, record.has_preference, p, sides))
    if not judged:
        raise DataError("there is no pair to curate: all records are ties, or there are none")
    return judged


def curate(pairs: Iterable[JudgedPair], config: CurationConfig) -> list[Comparison]:
    """The pairs that remain, with their labels and weights after the actions.

    Pairs without a label get the judges' if it is confirmed or, for the other response, suspected; others are dropped.
    """
    found = (_acted(judged, config) for judged in pairs)
    return [pair for pair in found if pair is not None]


def curation_figures(pairs: Sequence[JudgedPair], config: CurationConfig) -> CurationFigures:
    """The figures of all pairs, and of those with a source by its name, in alphabetical order."""
    names = sorted({judged.pair.source for judged in pairs} - {""})
    groups = {name: [j for j in pairs if j.pair.source == name] for name in names}
    each = {name: _figures(group, config) for name, group in groups.items()}
    return CurationFigures(_figures(pairs, config), each)


def judge_agreement(pairs: Sequence[JudgedPair]) -> list[list[float]]:
    """[K, K], share of pairs on which two judges prefer the same response."""
    prefer = np.array([side(judged.p) for judged in pairs])
    return (prefer[:, :, None] == prefer[:, None, :]).mean(axis=0).tolist()


def suspects(pairs: Sequence[JudgedPair], config: CurationConfig) -> list[JudgedPair]:
    """The labeled pairs that are suspected, the most certain first."""
    found = [j for j in pairs if j.labeled and j.verdict(config) == "suspected"]
    return sorted(found, key=lambda judged: (float(judged.p.mean()), judged.pair.id))


def provenance(
    source: str, records: Sequence[Comparison], score_files: Sequence[str | Path]
) -> dict[str, Any]:
    """Name and hash of the contents of the source; name, SHA-256 and judge of each file of scores."""
    files = []
    for file in map(Path, score_files):
        about = read_metadata(file)
        judge = {name: about.get(name) for name in ("model", "weights", "judge", "compute_dtype")}
        files.append({"file": str(file), "sha256": _sha256(file), **judge})
    return {"source": str(source), "contents": contents_of(records), "scores": files}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _acted(judged: JudgedPair, config: CurationConfig) -> Comparison | None:
    verdict, pair = judged.verdict(config), judged.pair
    if not judged.labeled:
        return {"confirmed": pair, "suspected": replace(pair, label=1), "uncertain": None}[verdict]
    action = {"confirmed": "keep", "suspected": config.suspected, "uncertain": config.uncertain}
    match action[verdict]:
        case "drop":
            return None
        case "flip":
            return replace(pair, label=0 if pair.label == 1 else 1)
        case "reweigh":
            return replace(pair, weight=pair.weight * float(judged.p.mean()))
        case _:
            return pair


def _figures(pairs: Sequence[JudgedPair], config: CurationConfig) -> SourceCuration:
    verdicts = [judged.verdict(config) for judged in pairs]
    sides = np.array([judged.sides for judged in pairs])  # [n, K, 2]
    whole = sides.reshape(len(pairs), -1)
    return SourceCuration(
        len(pairs),
        *(verdicts.count(verdict) for verdict in VERDICTS),
        agreement=float(np.mean([judged.p.mean() > 0.5 for judged in pairs])),
        unanimous=float(((whole > 0).all(1) | (whole < 0).all(1)).mean()),
        order_consistency=float((sides[..., 0] == sides[..., 1]).mean()),
    )


def _scores(file: Path) -> dict[tuple[str, str], tuple[float, float]]:
    """(P(better or first response), its position bias) by id and hash of the texts."""
    read_metadata(file)  # raises for a file that `gram-jax score` did not write
    found = {}
    for row in read_rows(file):
        p = row.get("score_chosen", row.get("score_first"))
        if p is None:
            raise DataError(f"{file} has no scores of pairs: expected a file of `gram-jax score`")
        found[row["id"], row[TEXTS]] = (p, row["position_bias"])
    return found


def _score(
    table: dict[tuple[str, str], tuple[float, float]], record: Comparison, file: str | Path
) -> tuple[float, float]:
    found = table.get((record.id, contents_id(record)))
    if found is None:
        raise DataError(
            f"{file} has no score of the record {record.id!r} with these texts and this label: "
            "score the same source with `gram-jax score`"
        )
    return found
