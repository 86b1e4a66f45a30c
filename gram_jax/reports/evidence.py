"""Folders of results as values: what each says of a model, and several of them under names of their own."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gram_jax.errors import ReportError
from gram_jax.evals.same_judge import difference
from gram_jax.reports.schema import Attacks, Evaluation, read_file

EVALUATION, ATTACK = "evaluation.json", "attack.json"


@dataclass(frozen=True)
class Evidence:
    """What a folder says of a model. label: what to call it beside others; at least one of the two is there."""

    folder: Path
    label: str
    evaluation: Evaluation | None
    attack: Attacks | None

    @property
    def about(self) -> Evaluation | Attacks:
        """One of them, for what both say: model, judge, settings, version."""
        found = self.evaluation or self.attack
        assert found is not None
        return found


def read_evidence(folders: Sequence[str | Path]) -> list[Evidence]:
    """What these folders hold, each under a label of its own.

    Raises ReportError where a folder holds neither file, or one that is damaged, of another format, or at odds with the
    other.
    """
    read = [_read_folder(Path(folder).expanduser()) for folder in folders]
    labels = _labels(read)
    return [
        Evidence(found.folder, label, found.evaluation, found.attack)
        for found, label in zip(read, labels, strict=True)
    ]


def aligned(found: Sequence[Evidence]) -> list[Evidence]:
    """The same, but a source with the contents of an earlier model's has its name, whatever the files are called."""
    names: dict[str, str] = {}
    result = []
    for one in found:
        if one.evaluation is None:
            result.append(one)
            continue
        there = one.evaluation.sources
        sources = {}
        for name, source in there.items():
            known = names.setdefault(source.contents, name) if source.contents else name
            sources[name if known in there else known] = source
        evaluation = one.evaluation.model_copy(update={"sources": sources})
        result.append(replace(one, evaluation=evaluation))
    return result


def _read_folder(folder: Path) -> Evidence:
    evaluation = read_file(folder / EVALUATION, Evaluation)
    attack = read_file(folder / ATTACK, Attacks)
    found = [one for one in (evaluation, attack) if one is not None]
    if not found:
        if any(folder.glob("*.scores.jsonl")):
            raise ReportError(
                f"{folder} holds scores of a command that was interrupted, and no figures yet: run it again, it goes on"
            )
        raise ReportError(
            f"{folder} holds neither {EVALUATION} nor {ATTACK}"
            + ("" if folder.is_dir() else " (there is no such folder)")
            + ": expected a folder that `gram-jax evaluate --out` or `gram-jax attack --out` has written"
        )
    if (
        evaluation
        and attack
        and (other := difference(evaluation.model_dump(), attack.model_dump()))
    ):
        raise ReportError(
            f"{folder}: {EVALUATION} and {ATTACK} are of {other}. Keep each model's results in a folder of its own"
        )
    return Evidence(folder, found[0].model, evaluation, attack)


def _labels(read: Sequence[Evidence]) -> list[str]:
    """The models' names; where these are not all different, with the folders; where those are not either, numbered."""
    names = [found.label for found in read]
    if len(set(names)) < len(names):
        names = [f"{found.label} ({last_part(found.folder)})" for found in read]
    if len(set(names)) < len(names):
        names = [f"{name}, {at}" for at, name in enumerate(names, 1)]
    return names


def last_part(folder: Path) -> str:
    """The name of a folder, of "." and "x/.." too."""
    return os.path.basename(os.path.abspath(folder))
