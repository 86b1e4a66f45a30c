"""Set up a run of reinforcement learning before its first step: models, prompts, rewards, programs."""

import logging
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import optax

from gram_jax import tree
from gram_jax.compiler import compiler_options
from gram_jax.data.reading import check_source
from gram_jax.distributed.collectives import assert_equal
from gram_jax.errors import DataError, RecipeError
from gram_jax.generation.generator import TextGenerator
from gram_jax.interop.models import load_spec, model_config
from gram_jax.interop.resolve import pin_step
from gram_jax.model.config import ModelConfig
from gram_jax.model.execution import Execution
from gram_jax.model.lora import lora_specs
from gram_jax.model.specs import ParamSpec, param_specs
from gram_jax.progress import log_time
from gram_jax.recipes.rl import RlRecipe
from gram_jax.rewards.forms import RewardForm
from gram_jax.rl.judged import RewardFunction, judged_reward
from gram_jax.rl.objective import VALUE, rollout_objective, token_stats
from gram_jax.rl.prompts import PromptSet, read_prompts
from gram_jax.rl.verdicts import (
    VerdictGenerator,
    label_reward,
    read_comparisons,
    verdict_generator,
)
from gram_jax.run.directory import RunDirectory, check_same_data
from gram_jax.run.metrics import check_writers
from gram_jax.scoring.scalar import load_judge
from gram_jax.sharding import Placement, local_placement, make_placement, to_local
from gram_jax.training.optimizer import make_optimizer, make_schedule
from gram_jax.training.stages import with_lora_scale
from gram_jax.training.state import TrainState, abstract_state, shardings_of
from gram_jax.training.step import make_train_step
from gram_jax.tree import Tree

logger = logging.getLogger(__name__)

CHUNK = 2048  # rows of logits at once
WIDTH = 64  # the number of columns of a row is a multiple of this


@dataclass(frozen=True)
class RlSetup:
    """A run before its first step.

    start, judge: names of the models that the run began with, with a step if they are runs. reference: the policy's
    start, frozen, on the mesh of the job. frozen: weights under LoRA, {} without. reward: of the responses that this
    process has sampled; contest: of win rates. token_stats, update: jitted (rl/objective.py, training/step.py).
    """

    recipe: RlRecipe
    placement: Placement
    start: str
    judge: str | None
    reference: TextGenerator
    frozen: Tree
    prompts: PromptSet
    valid: PromptSet
    reward: RewardFunction
    contest: RewardFunction
    specs: Tree
    optimizer: optax.GradientTransformation
    abstract: TrainState
    token_stats: Any
    update: Any

    @property
    def width(self) -> int:
        """The number of columns, enough for every prompt with its response."""
        sampling = self.recipe.sampling
        return -(-(sampling.max_prompt_length + sampling.max_new_tokens) // WIDTH) * WIDTH

    def full_params(self, params: Tree) -> Tree:
        """Trained and frozen weights together."""
        return tree.merge(params, self.frozen)

    def policy(self, params: Tree) -> TextGenerator:
        """The policy with these trained weights, on the devices of this process."""
        return self.on_this_process(policy_weights(self.full_params(params)))

    def on_this_process(self, params: Tree) -> TextGenerator:
        """A model with these weights that samples without the other processes; all processes call this."""
        execution = replace(self.reference.execution, placement=local_placement(self.placement))
        params = to_local(params, self.placement)
        return replace(self.reference, params=params, execution=execution)


def set_up_rl(
    recipe: RlRecipe,
    directory: RunDirectory,
    placement: Placement | None,
    reward: RewardFunction | None,
) -> RlSetup:
    """Check what needs no weights, load policy and judge, read the prompts, build the programs.

    reward: instead of the recipe's judge. Raises RecipeError if the run in the directory began with other prompts.
    """
    if placement is None:
        place, judges = _placements(recipe)
    else:
        place, judges = placement, local_placement(placement)
    _check_parts(recipe, place)
    check_writers(tensorboard=recipe.log.tensorboard, wandb=recipe.log.wandb)
    info, judge = directory.info, None
    start = info.get("start") or pin_step(recipe.policy.name_or_path)
    if reward is None and recipe.reward.judge is not None:
        judge = info.get("reward_judge") or pin_step(recipe.reward.judge)
        model_config(judge)  # raises if there is no such model
    specs = _trained_specs(recipe, model_config(start))
    steps = recipe.run.max_steps * recipe.updates
    optimizer = make_optimizer(recipe.optimizer, steps, specs)
    for source in filter(None, (recipe.data.train, recipe.data.valid)):
        kind = "prompts" if recipe.reward.kind == "judge" else "preference"
        check_source(source, kind, schema=recipe.data.schema, map=recipe.data.map)
    reference = _load_policy(recipe, start, place)
    prompts = _read(recipe, recipe.data.train, reference)
    valid = _read(recipe, recipe.data.valid, reference) if recipe.data.valid else prompts
    if recipe.data.valid and (shared := len({*prompts.prompts} & {*valid.prompts})):
        logger.warning(
            "%d of the %d prompts of data.valid are in data.train", shared, len(valid.prompts)
        )
    assert_equal("policy, judge or set of prompts", [start, judge, prompts.fingerprint])
    check_same_data(directory, steps=recipe.run.max_steps, examples=prompts.fingerprint)
    if isinstance(reference, VerdictGenerator):
        reward = reward or label_reward(reference, prompts, valid)
    contest = reward
    if judge is not None:
        reward, contest = _rewards(recipe, judge, judges, prompts)
    assert reward is not None and contest is not None
    abstract = abstract_state(specs, optimizer, place, recipe.policy.param_dtype)
    options = {
        "cfg": reference.cfg,
        "execution": reference.execution,
        "temperature": recipe.sampling.temperature,
        "chunk_size": CHUNK,
    }
    frozen: Tree = {}
    if recipe.lora is not None:
        frozen = with_lora_scale(reference.params, reference.cfg, recipe.lora.config, place)
    return RlSetup(
        recipe=recipe,
        placement=place,
        start=start,
        judge=judge,
        reference=reference,
        frozen=frozen,
        prompts=prompts,
        valid=valid,
        reward=reward,
        contest=contest,
        specs=specs,
        optimizer=optimizer,
        abstract=abstract,
        token_stats=jax.jit(
            partial(token_stats, **options),
            compiler_options=compiler_options(place, recipe.execution.compiler_options),
        ),
        update=_update_step(recipe, optimizer, abstract, place, options),
    )


def policy_weights(params: Tree) -> Tree:
    """The policy's weights without the critic's head."""
    return {name: leaf for name, leaf in params.items() if name != VALUE}


def _load_policy(recipe: RlRecipe, start: str, place: Placement) -> TextGenerator:
    wanted = recipe.execution
    with log_time(logger, "load the policy"):
        loaded = TextGenerator.load(
            start, compute_dtype=wanted.compute_dtype, placement=place, system=recipe.policy.system
        )
    execution = Execution(wanted.compute_dtype, wanted.attention, wanted.remat, place, packed=False)
    loaded = replace(loaded, execution=execution)
    return loaded if recipe.reward.kind == "judge" else verdict_generator(loaded, load_spec(start))


def _read(recipe: RlRecipe, source: str, generator: TextGenerator) -> PromptSet:
    """The prompts of a source. Raises RecipeError if one leaves too little context for a response."""
    options = {
        "schema": recipe.data.schema,
        "map": recipe.data.map,
        "longest": recipe.sampling.max_prompt_length,
        "limit": recipe.data.limit,
    }
    if isinstance(generator, VerdictGenerator):
        found = read_comparisons(source, generator, **options)
    else:
        found = read_prompts(source, generator, **options)
    new = recipe.sampling.max_new_tokens
    space = generator.cfg.context_length - new
    if (longest := max(map(len, found.tokens))) > space:
        raise RecipeError(
            f"a prompt has {longest} tokens; with {new} new tokens the model's context has space for "
            f"{max(0, space)}: lower [sampling] max_prompt_length, which drops longer prompts, or max_new_tokens"
        )
    return found


def _rewards(
    recipe: RlRecipe, judge: str, place: Placement, prompts: PromptSet
) -> tuple[RewardFunction, RewardFunction]:
    """Rewards of a step's responses, and of win rates. Raises DataError if a preferred response is missing."""
    asked = recipe.reward
    scorer = load_judge(judge, compute_dtype=recipe.execution.compute_dtype, placement=place)
    against = "reference" if asked.compare_with == "greedy" else asked.compare_with
    form = RewardForm(against, asked.scale, asked.references, asked.length_penalty)
    preferred = None
    if asked.compare_with == "reference" and not asked.references:
        preferred = prompts.preferred
        if lacking := sum(prompt not in preferred for prompt in prompts.prompts):
            raise DataError(
                f'[reward] compare_with = "reference" without references takes the preferred responses of '
                f"{recipe.data.train}: {lacking} of its {len(prompts.prompts)} prompts have none: give references, or "
                "a source of preferences"
            )
    return judged_reward(scorer, form, preferred), judged_reward(scorer, RewardForm("reference"))


def _trained_specs(recipe: RlRecipe, cfg: ModelConfig) -> Tree:
    """ParamSpec of every trained weight: all of them or those of LoRA, and PPO's critic."""
    specs = param_specs(cfg) if recipe.lora is None else lora_specs(cfg, recipe.lora.config)
    if recipe.algorithm.kind != "ppo":
        return specs
    return {**specs, VALUE: ParamSpec((cfg.embed_size,), ("act_embed",), "zeros")}


def _update_step(
    recipe: RlRecipe,
    optimizer: optax.GradientTransformation,
    abstract: TrainState,
    place: Placement,
    options: dict[str, Any],
) -> Any:
    return make_train_step(
        rollout_objective(**options, algorithm=recipe.algorithm),
        optimizer,
        make_schedule(recipe.optimizer, recipe.run.max_steps * recipe.updates),
        shardings_of(abstract),
        place,
        microbatches=recipe.algorithm.gradient_accumulation_steps,
        max_skipped=0,
        options=recipe.execution.compiler_options,
    )


def _check_parts(recipe: RlRecipe, place: Placement) -> None:
    unit = recipe.algorithm.num_mini_batches * recipe.algorithm.gradient_accumulation_steps
    if recipe.rows % (unit * place.batch_shards):
        raise RecipeError(
            f"{recipe.rows} responses a step cannot be divided into {unit} parts x {place.batch_shards} batch "
            "shards: change [sampling] prompts_per_step or num_generations, or [algorithm] num_mini_batches or "
            "gradient_accumulation_steps"
        )
    if recipe.sampling.prompts_per_step < jax.process_count():
        raise RecipeError(
            f"[sampling] prompts_per_step = {recipe.sampling.prompts_per_step}: expected at least one for each of the "
            f"{jax.process_count()} processes, which sample responses to different prompts"
        )


def _placements(recipe: RlRecipe) -> tuple[Placement, Placement]:
    """The policy's mesh over the job; the judge's over this process: the same devices, or the last `num_devices`."""
    here, apart = jax.local_devices(), recipe.reward.num_devices
    if apart >= len(here):
        raise RecipeError(
            f"[reward] num_devices = {apart} leaves none of the {len(here)} devices of a process to the policy: "
            "expected less"
        )
    processes = [jax.local_devices(process_index=i) for i in range(jax.process_count())]
    devices = [device for own in processes for device in own[: len(own) - apart]]
    policy = make_placement(recipe.mesh.sizes, dcn=recipe.mesh.dcn_sizes, devices=devices)
    if not apart:
        return policy, local_placement(policy)
    return policy, make_placement({"data": -1}, devices=here[-apart:])
