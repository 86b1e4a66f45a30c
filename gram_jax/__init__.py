"""Generative foundation reward models (GRAM) in JAX.

    >>> from gram_jax import Scorer
    >>> judge = Scorer.load("tiny-random")     # or a run, an exported folder, a hub name, smollm2-135m
    >>> score = judge.score("Name a prime.", "Seven.", "Nine.")
    >>> round(score.first + score.second, 6)   # probabilities that each is the better one
    1.0

The names below are the public ones; they are imported when first used, so that `import gram_jax` costs nothing. Each
has an example in its docstring, which the suite runs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the public names again, for type checkers and editors
    from gram_jax.adaptation.adapt import adapt
    from gram_jax.adaptation.config import AdaptConfig
    from gram_jax.batch import PairBatch, Sequences
    from gram_jax.data.comparison import Candidates, Comparison
    from gram_jax.data.records import read_records
    from gram_jax.errors import GramError
    from gram_jax.evals.evaluate import evaluate
    from gram_jax.evals.pairwise import evaluate_pairs
    from gram_jax.generation.generator import TextGenerator
    from gram_jax.generation.greedy import GreedyResponses
    from gram_jax.interop.hf_export import export_hf
    from gram_jax.interop.models import load_model, load_tokenizer
    from gram_jax.judge.spec import JudgeSpec, make_spec
    from gram_jax.model.config import ModelConfig
    from gram_jax.model.execution import Execution
    from gram_jax.model.generate import SamplingConfig
    from gram_jax.recipes.reading import read_recipe
    from gram_jax.rewards.forms import RewardForm
    from gram_jax.scoring.pair import PairScore, score_pair
    from gram_jax.scoring.scorer import Scorer
    from gram_jax.sharding import Placement, make_placement
    from gram_jax.training.loop import train

_PUBLIC = {
    "Scorer": "gram_jax.scoring.scorer",
    "PairScore": "gram_jax.scoring.pair",
    "score_pair": "gram_jax.scoring.pair",
    "JudgeSpec": "gram_jax.judge.spec",
    "make_spec": "gram_jax.judge.spec",
    "ModelConfig": "gram_jax.model.config",
    "load_model": "gram_jax.interop.models",
    "export_hf": "gram_jax.interop.hf_export",
    "read_records": "gram_jax.data.records",
    "read_recipe": "gram_jax.recipes.reading",
    "evaluate": "gram_jax.evals.evaluate",
    "evaluate_pairs": "gram_jax.evals.pairwise",
    "GramError": "gram_jax.errors",
    "train": "gram_jax.training.loop",
    "adapt": "gram_jax.adaptation.adapt",
    "AdaptConfig": "gram_jax.adaptation.config",
    "Comparison": "gram_jax.data.comparison",
    "Candidates": "gram_jax.data.comparison",
    "PairBatch": "gram_jax.batch",
    "Sequences": "gram_jax.batch",
    "Execution": "gram_jax.model.execution",
    "Placement": "gram_jax.sharding",
    "make_placement": "gram_jax.sharding",
    "load_tokenizer": "gram_jax.interop.models",
    "TextGenerator": "gram_jax.generation.generator",
    "GreedyResponses": "gram_jax.generation.greedy",
    "SamplingConfig": "gram_jax.model.generate",
    "RewardForm": "gram_jax.rewards.forms",
}

__all__ = [
    "AdaptConfig",
    "Candidates",
    "Comparison",
    "Execution",
    "GramError",
    "GreedyResponses",
    "JudgeSpec",
    "ModelConfig",
    "PairBatch",
    "PairScore",
    "Placement",
    "RewardForm",
    "SamplingConfig",
    "Scorer",
    "Sequences",
    "TextGenerator",
    "adapt",
    "evaluate",
    "evaluate_pairs",
    "export_hf",
    "load_model",
    "load_tokenizer",
    "make_placement",
    "make_spec",
    "read_recipe",
    "read_records",
    "score_pair",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("gram_jax.version").installed_version()
    if name not in _PUBLIC:
        raise AttributeError(f"module 'gram_jax' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
