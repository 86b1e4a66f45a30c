"""The recipe of reinforcement learning: one TOML file that states every number which changes results."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import Field
from pydantic.dataclasses import dataclass

from gram_jax.errors import RecipeError
from gram_jax.recipes.checks import check_saves
from gram_jax.recipes.reading import changed_values, read_values
from gram_jax.recipes.strict import STRICT, plain_values, validated
from gram_jax.recipes.tables import (
    AdapterConfig,
    CheckpointConfig,
    Count,
    Dtype,
    ExecutionConfig,
    MeshConfig,
    OptimizerConfig,
    Positive,
)

Share = Annotated[float, Field(gt=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, config=STRICT)
class RlRunConfig:
    """How long, where to, and the seed of everything random."""

    output_dir: Annotated[str, Field(min_length=1)]
    """where everything of the run goes"""
    seed: Count
    """of prompts, samples and minibatches"""
    max_steps: Positive
    """rounds of sampling and learning"""


@dataclass(frozen=True, config=STRICT)
class PolicyConfig:
    """The model that learns, which is also the frozen reference."""

    name_or_path: Annotated[str, Field(min_length=1)]
    """a run (or RUN@STEP), an exported folder, a hub name, a .gguf file, or smollm2-135m"""
    param_dtype: Dtype
    """of its master weights"""
    system: str | None = None
    """the system turn: absent leaves it to the chat format, "" drops it, text replaces it"""


@dataclass(frozen=True, config=STRICT)
class RewardConfig:
    """What a response is worth (docs/rewards.md)."""

    judge: Annotated[str, Field(min_length=1)]
    """the model whose verdicts are the reward"""
    compare_with: Literal["greedy", "group", "neighbors", "reference"] = "greedy"
    """what a response is compared with: the policy's own "greedy" response (the paper's), others to the prompt, or
    "reference" texts"""
    references: tuple[str, ...] = ()
    """texts that all responses are compared with; none: the response that the data prefers for the prompt"""
    scale: Literal["probability", "log_odds", "normalized"] = "probability"
    """of rewards: probability or log-odds of being better; "normalized" log-odds have mean 0 and standard deviation 1
    among a prompt's responses"""
    length_penalty: NotNegative = 0.0
    """taken off for every 1,000 characters"""
    num_devices: Count = 0
    """so many, the last ones, are the judge's alone; 0: it lies on the policy's mesh"""


@dataclass(frozen=True, config=STRICT)
class PromptConfig:
    """Where prompts come from: pairs or candidates, of which the prompts are taken."""

    train: Annotated[str, Field(min_length=1)]
    """a source of prompts to learn from"""
    valid: str | None = None
    """a source of prompts for the win rate against the start; by default the training prompts"""
    schema: str = "auto"
    """form of the rows; "auto" looks at their fields"""
    limit: Positive | None = None
    """at most so many prompts"""


@dataclass(frozen=True, config=STRICT)
class RolloutConfig:
    """What a step writes."""

    prompts_per_step: Positive
    """of a step"""
    num_generations: Positive
    """responses to each prompt"""
    max_prompt_length: Positive
    """most tokens of a prompt; longer ones are left out"""
    max_new_tokens: Positive
    """most tokens of a response"""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """of the distribution that is sampled from"""


@dataclass(frozen=True, config=STRICT)
class AlgorithmConfig:
    """How the policy learns from a step (docs/rl.md)."""

    kind: Literal["ppo", "grpo", "rloo"]
    """how: "ppo" with a critic and GAE, or "grpo" or "rloo" with the group as the baseline"""
    num_epochs: Positive = 1
    """passes over a step's responses"""
    num_mini_batches: Positive = 1
    """updates of the weights in a pass"""
    gradient_accumulation_steps: Positive = 1
    """parts that an update is computed in, one after the other, to need less memory"""
    clip_range: Share = 0.2
    """how far the ratio to the policy that wrote may move from 1"""
    kl_coef: NotNegative = 0.05
    """weight of the divergence from the start: of rewards in ppo and rloo, of the loss in grpo"""
    kl_target: Annotated[float, Field(gt=0)] | None = None
    """divergence of a response that the weight is steered to, by at most 2 % a step; none: the weight stays"""
    gamma: Share = 1.0
    """gamma of GAE"""
    gae_lambda: Share = 0.95
    """lambda of GAE"""
    vf_coef: NotNegative = 0.5
    """weight of the critic's loss"""
    clip_range_vf: Annotated[float, Field(gt=0)] = 0.2
    """how far the critic's value may move"""
    ent_coef: NotNegative = 0.0
    """weight of the bonus for entropy"""


@dataclass(frozen=True, config=STRICT)
class WinRateConfig:
    """Win rates of greedy responses against the start's."""

    eval_steps: Count = 0
    """steps between them; 0: only at the end"""
    limit: Positive = 32
    """prompts"""


@dataclass(frozen=True, config=STRICT)
class TrackingConfig:
    """Where the metrics of every step go: always into metrics.jsonl of the run's directory."""

    tensorboard: bool = True
    """event files as well"""
    wandb: bool = False
    """Weights & Biases as well"""


@dataclass(frozen=True, config=STRICT)
class RlRecipe:
    """A run, complete."""

    run: RlRunConfig
    policy: PolicyConfig
    reward: RewardConfig
    data: PromptConfig
    sampling: RolloutConfig
    algorithm: AlgorithmConfig
    optimizer: OptimizerConfig
    execution: ExecutionConfig
    mesh: MeshConfig = field(default_factory=MeshConfig)
    lora: AdapterConfig | None = None
    evaluate: WinRateConfig = field(default_factory=WinRateConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: TrackingConfig = field(default_factory=TrackingConfig)

    @property
    def rows(self) -> int:
        """Responses of a step."""
        return self.sampling.prompts_per_step * self.sampling.num_generations

    @property
    def updates(self) -> int:
        """Of the weights in a step."""
        return self.algorithm.num_epochs * self.algorithm.num_mini_batches


# What may differ in a continuation.
FREE = (
    "run.output_dir",
    "algorithm.gradient_accumulation_steps",
    "mesh.",
    "evaluate.",
    "checkpoint.",
    "reward.num_devices",
    "log.",
)


def read_rl_recipe(path: str | Path, overrides: Sequence[str] = ()) -> RlRecipe:
    """The recipe of a TOML file with overrides, as read_recipe reads one. Raises RecipeError."""
    values, where = read_values(path, overrides)
    return make_rl_recipe(values, where)


def make_rl_recipe(values: Mapping[str, Any], where: str = "recipe") -> RlRecipe:
    """The recipe of nested plain values. Raises RecipeError with everything that is wrong."""
    recipe = validated(RlRecipe, json.dumps(values, default=str), where)
    if problems := list(_cross_checks(recipe)):
        raise RecipeError("\n  ".join([f"{where}:", *problems]))
    return recipe


def rl_recipe_to_toml(recipe: RlRecipe) -> str:
    """As text, every default spelled out."""
    return tomli_w.dumps(rl_recipe_values(recipe))


def rl_recipe_values(recipe: RlRecipe) -> dict[str, Any]:
    """As nested plain values; what is absent (None) has no key."""
    return plain_values(asdict(recipe))


def changed_on_rl_resume(stored: Path, recipe: RlRecipe) -> list[str]:
    """Keys that change results and differ from the recipe at `stored`, each as "key: before -> now"."""
    before, now = rl_recipe_values(read_rl_recipe(stored)), rl_recipe_values(recipe)
    return changed_values(before, now, FREE)


def _cross_checks(recipe: RlRecipe) -> Iterator[str]:
    sampling, algorithm, reward = recipe.sampling, recipe.algorithm, recipe.reward
    if sampling.num_generations < 2:
        alone = f"[sampling] num_generations = {sampling.num_generations}: expected at least 2 for"
        if algorithm.kind != "ppo":
            yield f'{alone} [algorithm] kind = "{algorithm.kind}", whose baseline is the group'
        if reward.compare_with in ("group", "neighbors"):
            yield f'{alone} [reward] compare_with = "{reward.compare_with}"'
        if reward.scale == "normalized":
            yield f'{alone} [reward] scale = "normalized", which is 0 for a group of 1'
    if reward.references and reward.compare_with != "reference":
        yield f'[reward] references are for compare_with = "reference", found "{reward.compare_with}"'
    if algorithm.kl_target and (algorithm.kind == "grpo" or not algorithm.kl_coef):
        yield (
            f"[algorithm] kl_target = {algorithm.kl_target}: expected ppo or rloo, and a kl_coef above 0; "
            f"found {algorithm.kind} and kl_coef = {algorithm.kl_coef}"
        )
    if problem := check_saves(recipe.checkpoint):
        yield problem
    if recipe.lora is not None:
        try:
            _ = recipe.lora.config
        except RecipeError as error:
            yield f"[lora] {error}"
    unit = algorithm.num_mini_batches * algorithm.gradient_accumulation_steps
    if recipe.rows % unit:
        yield (
            f"[algorithm] num_mini_batches = {algorithm.num_mini_batches} x gradient_accumulation_steps = "
            f"{algorithm.gradient_accumulation_steps} do not divide the {recipe.rows} responses of a step"
        )
