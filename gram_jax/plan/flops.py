"""Model FLOPs in closed form, independent of the program that computes them.

Convention (PaLM, arXiv 2204.02311, appendix B): a multiply-add is two; forward 2 N per token with N
the weights of the layers, training 6 N; attention is causal, so half of the square. Recomputed work,
norms, softmax and the embedding lookup are not counted. Every position of a row counts, padding too,
and a row counts as one document.
"""

import math
from dataclasses import dataclass

from gram_jax import tree
from gram_jax.model.config import ModelConfig
from gram_jax.model.lora import lora_specs
from gram_jax.model.specs import param_specs
from gram_jax.recipes.tables import Recipe
from gram_jax.scoring.calls import WorkCounters


@dataclass(frozen=True)
class Flops:
    """Model FLOPs of one step, or of one call of the scorer, over all devices.

    head: the product with the vocabulary, in stages pretrain and rationale; the convention leaves it out.
    """

    layers: float
    attention: float
    head: float = 0.0

    @property
    def model(self) -> float:
        """The base of model FLOPs utilisation (MFU)."""
        return self.layers + self.attention

    @property
    def needed(self) -> float:
        """FLOPs with those of the head."""
        return self.model + self.head


def layer_weights(cfg: ModelConfig) -> int:
    """N: weights of the matrices that a token is multiplied by (no embedding, no head)."""
    layers = tree.flatten(param_specs(cfg)["layers"])
    matrices = [spec for spec in layers.values() if spec.init == "normal"]
    experts = sum(math.prod(spec.shape) for spec in matrices if "experts" in spec.axes)
    read = experts * cfg.experts.per_token // cfg.experts.count if cfg.experts else 0
    return sum(math.prod(spec.shape) for spec in matrices) - experts + read


def attention_flops(cfg: ModelConfig, rows: int, length: int) -> float:
    """Forward: scores and their sums of values, 2 x 2 x H for each of T^2 / 2 causal pairs."""
    return 2.0 * cfg.layers * rows * length**2 * cfg.query_heads * cfg.head_size


def training_flops(recipe: Recipe, cfg: ModelConfig, targets: int = 0) -> Flops:
    """Model FLOPs of one step of a recipe. A frozen matrix (under LoRA) has no weight gradient: factor 4, not 6.

    targets: number of tokens of rationales that a row may hold (stage rationale).
    """
    rows, length = recipe.batch.batch_size, recipe.batch.max_length
    tokens, factor = rows * length, 6.0 if recipe.lora is None else 4.0
    layers = factor * layer_weights(cfg)
    if recipe.lora is not None:
        thin = tree.flatten(lora_specs(cfg, recipe.lora.config))
        layers += 6.0 * sum(math.prod(s.shape) for s in thin.values())
    predicted = rows * (length if recipe.stage == "pretrain" else targets)
    return Flops(
        layers * tokens,
        3 * attention_flops(cfg, rows, length),
        factor * cfg.vocab_size * cfg.embed_size * predicted,
    )


def scoring_flops(cfg: ModelConfig, pairs: int, length: int) -> Flops:
    """Model FLOPs of one call of the scorer: `pairs` pairs in both orders, padded to `length`."""
    rows = 2 * pairs
    layers = 2.0 * layer_weights(cfg) * rows * length
    return Flops(layers, attention_flops(cfg, rows, length))


def judging_flops(cfg: ModelConfig, work: WorkCounters) -> float:
    """Least FLOPs of verdicts: in the last layer, keys and values of every token, and the rest at the verdicts only."""
    of_layer = 2.0 * layer_weights(cfg) / cfg.layers
    keys_and_values = 4.0 * cfg.embed_size * cfg.kv_heads * cfg.head_size
    pair = 4.0 * cfg.query_heads * cfg.head_size
    last = (
        keys_and_values * work.tokens_unique
        + (of_layer - keys_and_values) * work.sequences
        + pair * work.tokens_requested
    )
    inner = of_layer * work.tokens_unique + pair * work.attention_pairs
    return (cfg.layers - 1) * inner + last
