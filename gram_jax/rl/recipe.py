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
from gram_jax.recipes.reading import read_values
from gram_jax.recipes.strict import STRICT, plain_values, validated
from gram_jax.recipes.tables import Checkpoint, Count, Dtype, Executing, Mesh, Optimizer, Positive

Share = Annotated[float, Field(gt=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, config=STRICT)
class RlRun:
    """How long, where to, and the seed of everything random."""

    folder: Annotated[str, Field(min_length=1)]
    """where everything of the run goes"""
    seed: Count
    """of prompts, samples and minibatches"""
    steps: Positive
    """rounds of sampling and learning"""


@dataclass(frozen=True, config=STRICT)
class PolicyStart:
    """The model that learns, which is also the frozen reference."""

    start: Annotated[str, Field(min_length=1)]
    """a run (or RUN@STEP), an exported folder, a hub name, a .gguf file, or smollm2-135m"""
    dtype: Dtype
    """of its master weights"""
    system: str | None = None
    """the system turn: absent leaves it to the chat format, "" drops it, text replaces it"""


@dataclass(frozen=True, config=STRICT)
class Reward:
    """What a response is worth (docs/rewards.md)."""

    judge: Annotated[str, Field(min_length=1)]
    """the model whose verdicts are the reward"""
    against: Literal["greedy", "group", "neighbors", "reference"] = "greedy"
    """what a response is compared with: the policy's own "greedy" response (the paper's), others to the prompt, or
    "reference" texts"""
    references: tuple[str, ...] = ()
    """texts that all responses are compared with; none: the response that the data prefers for the prompt"""
    as_: Literal["probability", "log_odds", "normalized"] = "probability"
    """of being better; "normalized" log-odds have mean 0 and standard deviation 1 among a prompt's responses"""
    length_penalty: NotNegative = 0.0
    """taken off for every 1,000 characters"""
    devices: Count = 0
    """so many, the last ones, are the judge's alone; 0: it lies on the policy's mesh"""


@dataclass(frozen=True, config=STRICT)
class Prompts:
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
class Sampling:
    """What a step writes."""

    prompts: Positive
    """of a step"""
    group: Positive
    """responses to each prompt"""
    prompt_length: Positive
    """most tokens of a prompt; longer ones are left out"""
    new: Positive
    """most tokens of a response"""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """of the distribution that is sampled from"""


@dataclass(frozen=True, config=STRICT)
class Algorithm:
    """How the policy learns from a step (docs/rl.md)."""

    kind: Literal["ppo", "grpo", "rloo"]
    """how: "ppo" with a critic and GAE, or "grpo" or "rloo" with the group as the baseline"""
    epochs: Positive = 1
    """passes over a step's responses"""
    minibatches: Positive = 1
    """updates of the weights in a pass"""
    microbatches: Positive = 1
    """parts that an update is computed in, one after the other, to need less memory"""
    clip: Share = 0.2
    """how far the ratio to the policy that wrote may move from 1"""
    kl: NotNegative = 0.05
    """weight of the divergence from the start: of rewards in ppo and rloo, of the loss in grpo"""
    kl_target: Annotated[float, Field(gt=0)] | None = None
    """divergence of a response that the weight is steered to, by at most 2 % a step; none: the weight stays"""
    discount: Share = 1.0
    """gamma of GAE"""
    trace: Share = 0.95
    """lambda of GAE"""
    value: NotNegative = 0.5
    """weight of the critic's loss"""
    value_clip: Annotated[float, Field(gt=0)] = 0.2
    """how far the critic's value may move"""
    entropy: NotNegative = 0.0
    """weight of the bonus for entropy"""


@dataclass(frozen=True, config=STRICT)
class Winning:
    """Win rates of greedy responses against the start's."""

    every: Count = 0
    """steps between them; 0: only at the end"""
    limit: Positive = 32
    """prompts"""


@dataclass(frozen=True, config=STRICT)
class RlRecipe:
    """A run, complete."""

    run: RlRun
    policy: PolicyStart
    reward: Reward
    data: Prompts
    sampling: Sampling
    algorithm: Algorithm
    optimizer: Optimizer
    execution: Executing
    mesh: Mesh = field(default_factory=Mesh)
    evaluate: Winning = field(default_factory=Winning)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)

    @property
    def rows(self) -> int:
        """Responses of a step."""
        return self.sampling.prompts * self.sampling.group

    @property
    def updates(self) -> int:
        """Of the weights in a step."""
        return self.algorithm.epochs * self.algorithm.minibatches


# What may differ in a continuation.
FREE = (
    "run.folder",
    "algorithm.microbatches",
    "mesh.",
    "evaluate.",
    "checkpoint.",
    "reward.devices",
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


def _cross_checks(recipe: RlRecipe) -> Iterator[str]:
    sampling, algorithm, reward = recipe.sampling, recipe.algorithm, recipe.reward
    if algorithm.kind != "ppo" and sampling.group < 2:
        yield f"[sampling] group = {sampling.group}: {algorithm.kind} compares within groups of at least 2"
    if reward.against in ("group", "neighbors") and sampling.group < 2:
        yield f'[sampling] group = {sampling.group}: against = "{reward.against}" needs at least 2'
    if reward.as_ == "normalized" and sampling.group < 2:
        yield f'[sampling] group = {sampling.group}: as_ = "normalized" leaves 0 of a group below 2'
    if reward.references and reward.against != "reference":
        yield f'[reward] references are for against = "reference", found "{reward.against}"'
    if algorithm.kl_target and (algorithm.kind == "grpo" or not algorithm.kl):
        yield (
            f"[algorithm] kl_target = {algorithm.kl_target}: expected ppo or rloo, and a kl above 0 at first; found "
            f"{algorithm.kind} and kl = {algorithm.kl}"
        )
    if problem := check_saves(recipe.checkpoint):
        yield problem
    unit = algorithm.minibatches * algorithm.microbatches
    if recipe.rows % unit:
        yield (
            f"[algorithm] {algorithm.minibatches} minibatches of {algorithm.microbatches} microbatches do not divide "
            f"the {recipe.rows} responses of a step"
        )
