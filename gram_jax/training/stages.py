"""The differences between the three stages: examples, weights, objective."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from gram_jax import tree
from gram_jax.data.examples import Examples, make_examples
from gram_jax.data.reading import read_sources, rendered_rows
from gram_jax.data.report import ReadReport
from gram_jax.interop.models import load_model
from gram_jax.judge.spec import JudgeSpec, make_spec
from gram_jax.model.config import ModelConfig
from gram_jax.model.execution import Execution
from gram_jax.model.lora import LoraConfig, init_lora, lora_scales, lora_specs
from gram_jax.model.specs import SCORE, init_params, param_specs, score_spec
from gram_jax.recipes.tables import Recipe, SourceConfig
from gram_jax.sharding import Placement
from gram_jax.training.objectives import (
    Objective,
    bradley_terry_objective,
    consistent_verdict_objective,
    pretrain_objective,
    rationale_objective,
    verdict_objective,
)
from gram_jax.tree import Tree


def make_objective(
    recipe: Recipe, cfg: ModelConfig, execution: Execution, label_ids: tuple[int, int]
) -> Objective:
    """The objective of the recipe's stage. label_ids: of the judge's two verdicts (`verdict_ids`)."""
    loss = recipe.loss
    if recipe.stage == "pretrain":
        assert loss.loss_chunk_size is not None  # checked when the recipe is read
        return pretrain_objective(cfg, execution, chunk_size=loss.loss_chunk_size)
    if recipe.stage == "finetune":
        assert loss.label_smoothing is not None
        if loss.order_consistency:
            return consistent_verdict_objective(
                cfg,
                execution,
                label_ids=label_ids,
                smoothing=loss.label_smoothing,
                consistency=loss.order_consistency,
            )
        return verdict_objective(
            cfg, execution, label_ids=label_ids, smoothing=loss.label_smoothing
        )
    if recipe.stage == "rationale":
        assert loss.label_smoothing is not None and loss.loss_chunk_size is not None
        assert loss.verdict_weight is not None and loss.rationale_weight is not None
        return rationale_objective(
            cfg,
            execution,
            label_ids=label_ids,
            smoothing=loss.label_smoothing,
            verdict_weight=loss.verdict_weight,
            rationale_weight=loss.rationale_weight,
            chunk_size=loss.loss_chunk_size,
        )
    return bradley_terry_objective(cfg, execution)


def verdict_ids(recipe: Recipe, spec: JudgeSpec) -> tuple[int, int]:
    """The token ids of the verdicts of the recipe's stage."""
    if recipe.stage == "rationale" and spec.rationale is not None:
        return spec.rationale.label_ids
    return spec.label_ids


def judge_spec(recipe: Recipe, tokenizer: Any) -> JudgeSpec:
    """The recipe's judge on this tokenizer."""
    judge, rows = recipe.judge, None
    if judge.template == "from-dataset":
        rows = rendered_rows(recipe.data.train[0], map=recipe.data.map)
    return make_spec(tokenizer, **dataclasses.asdict(judge), rows=rows)


def pair_kind(recipe: Recipe) -> Literal["pair", "comparison", "preference"]:
    """The kind of records of the stage."""
    if recipe.stage == "pretrain":
        return "pair"
    return "comparison" if recipe.loss.order_consistency else "preference"


def read_pairs(
    recipe: Recipe, sources: Sequence[SourceConfig], limit: int | None
) -> tuple[list[Any], ReadReport]:
    """The records of the stage from these sources, and the report of their rows."""
    return read_sources(
        sources,
        pair_kind(recipe),
        schema=recipe.data.schema,
        map=recipe.data.map,
        on_bad=recipe.data.on_bad,
        limit=limit,
    )


def stage_examples(
    recipe: Recipe, records: Sequence[Any], report: ReadReport, tokenizer: Any, spec: JudgeSpec
) -> Examples:
    """The encoded examples of these records."""
    return make_examples(
        recipe.stage,
        records,
        tokenizer,
        spec,
        position_augmentation=recipe.data.position_augmentation,
        seed=recipe.run.seed,
        overlong=recipe.data.overlong,
        read=report,
        pretraining_layout=recipe.data.pretraining_layout,
        keep_unlabeled=recipe.loss.order_consistency > 0,
    )


def trained_specs(recipe: Recipe, cfg: ModelConfig) -> Tree:
    """ParamSpec of every trained weight: the model's or those of LoRA, and a scalar head for Bradley-Terry."""
    specs = param_specs(cfg) if recipe.lora is None else lora_specs(cfg, recipe.lora.config)
    head = {SCORE: score_spec(cfg)} if recipe.stage == "bradley_terry" else {}
    return {**specs, **head}


def start_weights(
    recipe: Recipe, start: str, specs: Tree, placement: Placement
) -> tuple[ModelConfig, Tree, Tree]:
    """(config, weights to train, frozen weights) at the start of a run.

    start: name of the initial model, with a step if it is a run. specs: of `trained_specs`. Weights to train have the
    recipe's param_dtype, frozen ones its compute_dtype.
    """
    dtype = recipe.model.param_dtype
    if recipe.lora is None:
        cfg, loaded = load_model(start, placement, dtype)
        frozen: Tree = {}
    else:
        cfg, frozen, loaded = frozen_weights(recipe, start, placement)
    trained = initial_weights(specs, loaded, recipe.run.seed, dtype, placement)
    return cfg, trained, frozen


def initial_weights(specs: Tree, loaded: Tree, seed: int, dtype: str, placement: Placement) -> Tree:
    """The weights to train: the loaded ones, and random ones for what is missing (LoRA, a scalar head)."""
    found, fresh = tree.flatten(loaded), {}
    missing = tree.split(specs, lambda path: path not in found)[0]
    key = jax.random.key(seed)
    if "layers" in missing:
        lora, missing = tree.split(missing, lambda path: path.startswith("layers/lora/"))
        fresh = tree.flatten(init_lora(lora, key, placement, dtype))
    if missing:
        head_key = jax.random.fold_in(key, 1)
        fresh |= tree.flatten(init_params(missing, head_key, placement, dtype))
    trained = tree.map_with_path(
        lambda path, _: fresh[path] if path in fresh else found[path], specs
    )
    return jax.tree.map(lambda x: x.astype(dtype), trained)


def frozen_weights(
    recipe: Recipe, start: str, placement: Placement
) -> tuple[ModelConfig, Tree, Tree]:
    """(config, frozen base with LoRA's scale, {} or the base's scalar head, which is trained or dropped)."""
    assert recipe.lora is not None
    cfg, base = load_model(start, placement, recipe.execution.compute_dtype)
    head: Tree = {}
    if SCORE in base and SCORE not in frozen_specs(recipe, cfg):
        head = {SCORE: base.pop(SCORE)}
    return cfg, with_lora_scale(base, cfg, recipe.lora.config, placement), head


def frozen_specs(recipe: Recipe, cfg: ModelConfig) -> Tree:
    """ParamSpec of the base of a LoRA: the model's weights without the scalar head that the stage trains."""
    specs = param_specs(cfg)
    if recipe.stage == "bradley_terry":
        specs.pop(SCORE, None)
    return specs


def with_lora_scale(base: Tree, cfg: ModelConfig, lora: LoraConfig, placement: Placement) -> Tree:
    """The frozen base with the scale of its LoRA."""
    return tree.merge(base, {"layers": {"lora_scale": lora_scales(cfg, lora, placement)}})


def abstract_frozen(recipe: Recipe, cfg: ModelConfig, placement: Placement) -> Tree:
    """Shapes and shardings of `frozen_weights`, {} without LoRA."""
    if recipe.lora is None:
        return {}
    base = tree.map_with_path(
        lambda _, spec: jax.ShapeDtypeStruct(
            spec.shape, recipe.execution.compute_dtype, sharding=placement.sharding(*spec.axes)
        ),
        frozen_specs(recipe, cfg),
    )
    scale = jax.ShapeDtypeStruct((cfg.layers,), "float32", sharding=placement.sharding())
    return tree.merge(base, {"layers": {"lora_scale": scale}})


def abstract_batch(batch: Any, placement: Placement) -> Any:
    """Shapes and shardings of a batch on the devices."""
    sharding = placement.sharding("batch")
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(x.dtype), sharding=sharding), batch
    )
