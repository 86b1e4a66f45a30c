"""Read folders of results, each with a unique label."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gram_jax.attacks.results import AttackResults
from gram_jax.errors import ReportError
from gram_jax.evals.identity import difference
from gram_jax.evals.results import EvaluationResults, JudgeResults, SourceResult, read_results
from gram_jax.files import expand_user


@dataclass(frozen=True)
class ModelResults:
    """The results of a folder; at least one file is present. label: the model's name in a comparison."""

    folder: Path
    label: str
    evaluation: EvaluationResults | None
    attack: AttackResults | None

    @property
    def about(self) -> JudgeResults:
        """The common header of the results: model, judge, settings, version."""
        found = self.evaluation or self.attack
        assert found is not None
        return found

    @property
    def sources(self) -> dict[str, SourceResult]:
        """The sources of the evaluation."""
        return self.evaluation.sources if self.evaluation else {}


def read_folders(folders: Sequence[str | Path]) -> list[ModelResults]:
    """The results of these folders. A label is the model's name, with the folder and a number if it repeats.

    Raises ReportError if a folder has neither file, or one that is damaged, of another format, or of another judge than
    the other file.
    """
    read = [_read_folder(expand_user(folder, error=ReportError)) for folder in folders]
    labels = [found.label for found in read]
    if len(set(labels)) < len(labels):
        labels = [f"{found.label} ({last_part(found.folder)})" for found in read]
    return [
        replace(found, label=label) for found, label in zip(read, numbered(labels), strict=True)
    ]


def aligned(found: Sequence[ModelResults]) -> list[ModelResults]:
    """Results in which sources with the same contents have the same name."""
    names: dict[str, str] = {}
    result = []
    for one in found:
        sources = {}
        for name, source in one.sources.items():
            known = names.setdefault(source.contents, name)
            sources[name if known in one.sources else known] = source
        evaluation = one.evaluation and one.evaluation.model_copy(update={"sources": sources})
        result.append(replace(one, evaluation=evaluation))
    return result


def _read_folder(folder: Path) -> ModelResults:
    evaluation = read_results(folder, EvaluationResults)
    attack = read_results(folder, AttackResults)
    found = evaluation or attack
    if found is None:
        if any(folder.glob("*.scores.jsonl")):
            raise ReportError(
                f"{folder} holds scores of an interrupted command, and no figures yet: run the command again to resume"
            )
        raise ReportError(
            f"{folder} holds neither {EvaluationResults.FILE} nor {AttackResults.FILE}"
            + ("" if folder.is_dir() else " (there is no such folder)")
            + ": expected a folder that `gram-jax evaluate --out` or `gram-jax attack --out` has written"
        )
    if evaluation and attack and (other := difference(evaluation, attack)):
        raise ReportError(
            f"{folder}: {EvaluationResults.FILE} and {AttackResults.FILE} are of {other}. Keep the results of each "
            "model in a separate folder"
        )
    return ModelResults(folder, found.model, evaluation, attack)


def numbered(names: Sequence[str]) -> list[str]:
    """The names, with numbers if they are not all different."""
    if len(set(names)) == len(names):
        return list(names)
    return [f"{name}, {at}" for at, name in enumerate(names, 1)]


def last_part(folder: Path) -> str:
    """The name of a folder, also of "." and "x/.."."""
    return os.path.basename(os.path.abspath(folder))
