"""Generative foundation reward models (GRAM) in JAX.

    >>> from gram_jax import Scorer                              # doctest: +SKIP
    >>> judge = Scorer.load("runs/demo/judge")                   # doctest: +SKIP
    >>> judge.score("Name a prime.", "Seven.", "Nine.").first    # doctest: +SKIP
    0.93

The names below are the public ones; they are imported when first used, so that `import gram_jax` costs nothing.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_PUBLIC = {
    "Scorer": "gram_jax.scoring.scorer",
    "PairScore": "gram_jax.scoring.scorer",
    "score_pair": "gram_jax.scoring.pair",
    "JudgeSpec": "gram_jax.judge",
    "make_spec": "gram_jax.judge",
    "ModelConfig": "gram_jax.model.config",
    "load_model": "gram_jax.checkpoint.models",
    "export_hf": "gram_jax.checkpoint.hf_files",
    "read_records": "gram_jax.data.records",
    "read_recipe": "gram_jax.config",
    "evaluate_pairs": "gram_jax.evals.pairwise",
    "GramError": "gram_jax.errors",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _installed()
    if name not in _PUBLIC:
        raise AttributeError(f"module 'gram_jax' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def _installed() -> str:
    try:
        return version("gram-jax")
    except PackageNotFoundError:
        return "not installed"


def __dir__() -> list[str]:
    return __all__
