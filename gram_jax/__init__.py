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

if TYPE_CHECKING:  # the public names once more, for type checkers and editors
    from gram_jax.adaptation.adapt import adapt as adapt
    from gram_jax.adaptation.config import AdaptConfig as AdaptConfig
    from gram_jax.batch import PairBatch as PairBatch
    from gram_jax.batch import Sequences as Sequences
    from gram_jax.data.reading import read_records as read_records
    from gram_jax.data.records import Candidates as Candidates
    from gram_jax.data.records import Comparison as Comparison
    from gram_jax.errors import GramError as GramError
    from gram_jax.evals.evaluate import evaluate as evaluate
    from gram_jax.evals.pairwise import evaluate_pairs as evaluate_pairs
    from gram_jax.generation.generator import TextGenerator as TextGenerator
    from gram_jax.generation.greedy import GreedyResponses as GreedyResponses
    from gram_jax.interop.hf_export import export_hf as export_hf
    from gram_jax.interop.models import load_model as load_model
    from gram_jax.interop.models import load_tokenizer as load_tokenizer
    from gram_jax.judge.spec import JudgeSpec as JudgeSpec
    from gram_jax.judge.spec import make_spec as make_spec
    from gram_jax.model.config import ModelConfig as ModelConfig
    from gram_jax.model.execution import Execution as Execution
    from gram_jax.model.generate import SamplingConfig as SamplingConfig
    from gram_jax.recipes.reading import read_recipe as read_recipe
    from gram_jax.rewards.forms import RewardForm as RewardForm
    from gram_jax.scoring.pair import PairScore as PairScore
    from gram_jax.scoring.pair import score_pair as score_pair
    from gram_jax.scoring.remote import RemoteScorer as RemoteScorer
    from gram_jax.scoring.scalar import load_judge as load_judge
    from gram_jax.scoring.scorer import Scorer as Scorer
    from gram_jax.scoring.think import Think as Think
    from gram_jax.scoring.think import Thought as Thought
    from gram_jax.sharding import Placement as Placement
    from gram_jax.sharding import make_placement as make_placement
    from gram_jax.training.loop import train as train

_PUBLIC = {
    "Scorer": "gram_jax.scoring.scorer",
    "load_judge": "gram_jax.scoring.scalar",
    "RemoteScorer": "gram_jax.scoring.remote",
    "Think": "gram_jax.scoring.think",
    "Thought": "gram_jax.scoring.think",
    "PairScore": "gram_jax.scoring.pair",
    "score_pair": "gram_jax.scoring.pair",
    "JudgeSpec": "gram_jax.judge.spec",
    "make_spec": "gram_jax.judge.spec",
    "ModelConfig": "gram_jax.model.config",
    "load_model": "gram_jax.interop.models",
    "export_hf": "gram_jax.interop.hf_export",
    "read_records": "gram_jax.data.reading",
    "read_recipe": "gram_jax.recipes.reading",
    "evaluate": "gram_jax.evals.evaluate",
    "evaluate_pairs": "gram_jax.evals.pairwise",
    "GramError": "gram_jax.errors",
    "train": "gram_jax.training.loop",
    "adapt": "gram_jax.adaptation.adapt",
    "AdaptConfig": "gram_jax.adaptation.config",
    "Comparison": "gram_jax.data.records",
    "Candidates": "gram_jax.data.records",
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

if not TYPE_CHECKING:  # type checkers read the aliases above
    __all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("gram_jax.version").installed_version()
    if name not in _PUBLIC:
        raise AttributeError(f"module 'gram_jax' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(_PUBLIC)
