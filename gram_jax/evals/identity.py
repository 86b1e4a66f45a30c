"""The identity of a judge in results files: specification, weights and settings."""

import json
from pathlib import Path

import jax

from gram_jax.errors import DataError
from gram_jax.evals.results import JudgeResults, JudgeSettings, read_judge
from gram_jax.interop.models import load_model
from gram_jax.model.quantize import DTYPES, quantize
from gram_jax.scoring.fingerprint import weights_fingerprint
from gram_jax.scoring.text_scorer import TextScorer
from gram_jax.sharding import make_placement
from gram_jax.version import installed_version


def judge_results(scorer: TextScorer, model: str) -> JudgeResults:
    """The header of this judge's results. model: its name."""
    identity = scorer.identity
    return JudgeResults(
        gram_jax=installed_version(),
        model=model,
        judge=scorer.spec.hash,
        fingerprint=identity.fingerprint,
        settings=JudgeSettings(
            compute_dtype=identity.compute_dtype,
            weights=identity.weights,
            max_length=scorer.spec.max_length,
            labels=", ".join(scorer.spec.labels),
            think=json.dumps(scorer.settings["think"]) if "think" in scorer.settings else None,
        ),
    )


def number_format(settings: JudgeSettings) -> tuple[str, str]:
    """The settings that a fingerprint depends on."""
    return settings.weights, settings.compute_dtype


def fingerprint_as(model: Path, settings: JudgeSettings) -> str:
    """The fingerprint of a model's weights in the number format of these settings.

    Raises DataError for an unknown number format.
    """
    held, compute_dtype = number_format(settings)
    dtype = compute_dtype if held in DTYPES else held
    if dtype not in ("float32", "bfloat16"):
        raise DataError(
            f"settings with weights {held!r} and {compute_dtype!r}: expected float32, bfloat16 or one of "
            f"{', '.join(DTYPES)} as weights"
        )
    _, params = load_model(model, make_placement({}, devices=jax.devices()[:1]), dtype)
    return weights_fingerprint(quantize(params, held))


def difference(one: JudgeResults, other: JudgeResults) -> str | None:
    """The difference between the judges of two results as text; None if they may be the same."""
    if one.judge != other.judge:
        return (
            f"models with different judge specifications: {one.model} (judge {one.judge[:12]}) and {other.model} "
            f"(judge {other.judge[:12]})"
        )
    # The fingerprint depends on the number format of the weights.
    alike = number_format(one.settings) == number_format(other.settings)
    if alike and one.fingerprint != other.fingerprint:
        return (
            f"different weights: {one.model} (fingerprint {one.fingerprint[:12]}) and {other.model} "
            f"({other.fingerprint[:12]})"
        )
    if not alike and one.model != other.model:
        return f"different models: {one.model} and {other.model}"
    return None


def refuse_other_judge(path: Path, results: JudgeResults) -> None:
    """Raises DataError if a results file is of another judge than `results`; ignores a missing or damaged file."""
    there = read_judge(path)
    if there is not None and (found := difference(there, results)):
        raise DataError(
            f"{path} and the requested results are of {found}. Keep the results of each model in a separate folder"
        )
