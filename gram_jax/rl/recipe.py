"""The recipe of reinforcement learning: one TOML file that states every number which changes results."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import Field
from pydantic.dataclasses import dataclass

from gram_jax.config import (
    STRICT,
    Checkpoint,
    Count,
    Dtype,
    Executing,
    Mesh,
    Optimizer,
    Positive,
    plain_values,
    read_values,
    validated,
)
from gram_jax.errors import RecipeError

Share = Annotated[float, Field(gt=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, config=STRICT)
class RlRun:
    """folder: of the run; steps: rounds of sampling and learning."""

    folder: Annotated[str, Field(min_length=1)]
    seed: Count
    steps: Positive


@dataclass(frozen=True, config=STRICT)
class PolicyStart:
    """start: the model that learns, which is also the frozen reference; dtype: of its master weights."""

    start: Annotated[str, Field(min_length=1)]
    dtype: Dtype
    system: str | None = None


@dataclass(frozen=True, config=STRICT)
class Reward:
    """judge: whose verdicts are the reward. against: "greedy", the policy's own greedy response (the paper's), or
    "group" or "circle" among the responses to a prompt; as_: see rl/rewards.py.
    """

    judge: Annotated[str, Field(min_length=1)]
    against: Literal["greedy", "group", "circle"] = "greedy"
    as_: Literal["probability", "log_odds"] = "probability"
    length_penalty: NotNegative = 0.0


@dataclass(frozen=True, config=STRICT)
class Prompts:
    """train: a source whose prompts are taken; valid: of the win rate against the start, by default the train set's."""

    train: Annotated[str, Field(min_length=1)]
    valid: str | None = None
    schema: str = "auto"
    limit: Positive | None = None


@dataclass(frozen=True, config=STRICT)
class Sampling:
    """prompts: of a step; group: responses to each; prompt_length, new: most tokens (longer prompts are left out)."""

    prompts: Positive
    group: Positive
    prompt_length: Positive
    new: Positive
    temperature: Annotated[float, Field(gt=0)] = 1.0


@dataclass(frozen=True, config=STRICT)
class Algorithm:
    """kind: "ppo" with a critic and GAE, "grpo" or "rloo". epochs, minibatches: of every step's rows. kl: weight of the
    divergence from the start: of rewards in ppo and rloo, of the loss in grpo.
    """

    kind: Literal["ppo", "grpo", "rloo"]
    epochs: Positive = 1
    minibatches: Positive = 1
    microbatches: Positive = 1
    clip: Share = 0.2
    kl: NotNegative = 0.05
    discount: Share = 1.0
    trace: Share = 0.95
    value: NotNegative = 0.5
    value_clip: Annotated[float, Field(gt=0)] = 0.2
    entropy: NotNegative = 0.0


@dataclass(frozen=True, config=STRICT)
class Winning:
    """every: steps between win rates against the start (0: only at the end); limit: prompts."""

    every: Count = 0
    limit: Positive = 32


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
FREE = ("run.folder", "algorithm.microbatches", "mesh.", "evaluate.", "checkpoint.")


def read_rl_recipe(path: str | Path, overrides: Sequence[str] = ()) -> RlRecipe:
    """The recipe of a TOML file with overrides, as config.read_recipe reads one. Raises RecipeError."""
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
    return tomli_w.dumps(plain_values(asdict(recipe)))


def _cross_checks(recipe: RlRecipe) -> Iterator[str]:
    sampling, algorithm, reward = recipe.sampling, recipe.algorithm, recipe.reward
    if algorithm.kind != "ppo" and sampling.group < 2:
        yield f"[sampling] group = {sampling.group}: {algorithm.kind} compares within groups of at least 2"
    if reward.against != "greedy" and sampling.group < 2:
        yield f'[sampling] group = {sampling.group}: against = "{reward.against}" needs at least 2'
    unit = algorithm.minibatches * algorithm.microbatches
    if recipe.rows % unit:
        yield (
            f"[algorithm] {algorithm.minibatches} minibatches of {algorithm.microbatches} microbatches do not divide "
            f"the {recipe.rows} responses of a step"
        )
