"""The format of reinforcement-learning recipes: a frozen dataclass for each table of the TOML file."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from gram_jax.recipes.strict import STRICT
from gram_jax.recipes.tables import (
    AdapterConfig,
    BaseModelConfig,
    CheckpointConfig,
    Count,
    ExecutionConfig,
    MeshConfig,
    OptimizerConfig,
    Positive,
    Seed,
    Steps,
    Text,
    TrackingConfig,
)

Share = Annotated[float, Field(gt=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, config=STRICT)
class RlRunConfig:
    """Length, output directory and seed."""

    output_dir: Text
    """Directory of the run"""
    seed: Seed
    """Seed for prompts, sampling and mini-batches"""
    max_steps: Steps
    """Number of steps, each one rollout and its updates"""


@dataclass(frozen=True, config=STRICT)
class PolicyConfig(BaseModelConfig):
    """The policy; its initial weights are also the frozen reference policy."""

    system: str | None = None
    """The system message: absent for the chat format's default, "" for none, or a text"""


@dataclass(frozen=True, config=STRICT)
class RewardConfig:
    """The reward of a response (docs/rewards.md)."""

    judge: Text | None = None
    """The judge whose verdicts are the reward"""
    kind: Literal["judge", "label"] = "judge"
    """"judge": the reward of a judge; "label": the policy is a judge that writes rationales, the data are labeled
    pairs, and the reward is 1 if its verdict is the label (docs/thinking.md)"""
    compare_with: Literal["greedy", "group", "neighbors", "reference"] = "greedy"
    """What a response is compared with: the policy's "greedy" response (as in the paper), the other responses to the
    prompt ("group"), the two next to it ("neighbors"), or "reference" texts"""
    references: tuple[str, ...] = ()
    """Texts that all responses are compared with; default: the preferred response of the data"""
    scale: Literal["probability", "log_odds", "normalized"] = "probability"
    """Scale of rewards: probability or log-odds of being better; "normalized" log-odds have mean 0 and standard
    deviation 1 among the responses to a prompt"""
    length_penalty: NotNegative = 0.0
    """Subtracted for every 1,000 characters"""
    num_devices: Count = 0
    """Number of devices reserved for the judge, the last ones of each process; 0: the judge uses the policy's mesh"""

    def __post_init__(self) -> None:
        if self.references and self.compare_with != "reference":
            raise ValueError(
                f'references are for compare_with = "reference", found "{self.compare_with}"'
            )
        if (self.kind == "judge") != (self.judge is not None):
            raise ValueError('expected a judge, or kind = "label" without one')

    @property
    def needs_greedy(self) -> bool:
        """Whether the reward compares with the policy's greedy response."""
        return self.kind == "judge" and self.compare_with == "greedy"


@dataclass(frozen=True, config=STRICT)
class PromptConfig:
    """Prompts, taken from pairs or candidates."""

    train: Text
    """Source of training prompts"""
    valid: str | None = None
    """Source of prompts for the win rate against the reference policy; default: the training prompts"""
    schema: str = "auto"
    """Schema of the rows; "auto" detects it from their fields"""
    map: dict[str, str] | None = None
    """Columns of the sources for those of a schema, as {prompt = "question"} (docs/data.md)"""
    limit: Positive | None = None
    """Maximum number of prompts"""


@dataclass(frozen=True, config=STRICT)
class RolloutConfig:
    """The rollout of a step."""

    prompts_per_step: Positive
    """Number of prompts of a step"""
    num_generations: Positive
    """Number of responses to each prompt"""
    max_prompt_length: Positive
    """Maximum number of tokens of a prompt; longer prompts are dropped"""
    max_new_tokens: Positive
    """Maximum number of tokens of a response"""
    temperature: Annotated[float, Field(gt=0)]
    """Sampling temperature"""


@dataclass(frozen=True, config=STRICT)
class AlgorithmConfig:
    """The policy update (docs/rl.md)."""

    kind: Literal["ppo", "grpo", "rloo"]
    """"ppo" with a critic and GAE; "grpo" or "rloo" with the group as the baseline"""
    num_epochs: Positive
    """Number of passes over the responses of a step"""
    num_mini_batches: Positive
    """Number of updates in a pass"""
    gradient_accumulation_steps: Positive
    """Number of microbatches that an update is split into, to save memory"""
    clip_range: Share
    """Clip range: maximum distance from 1 of the probability ratio to the sampling policy"""
    kl_coef: NotNegative
    """Weight of the KL divergence from the reference policy: in the reward for ppo and rloo, in the loss for grpo"""
    gamma: Share
    """Discount of GAE (ppo)"""
    gae_lambda: Share
    """Lambda of GAE (ppo)"""
    vf_coef: NotNegative
    """Weight of the critic's loss (ppo)"""
    clip_range_vf: Annotated[float, Field(gt=0)]
    """Maximum change of the critic's value (ppo)"""
    ent_coef: NotNegative
    """Weight of the entropy bonus"""
    kl_target: Annotated[float, Field(gt=0)] | None = None
    """Target KL divergence of a response; kl_coef changes by at most 2 % a step; absent: kl_coef is constant"""

    def __post_init__(self) -> None:
        if self.kl_target and (self.kind == "grpo" or not self.kl_coef):
            raise ValueError(
                f"kl_target = {self.kl_target}: expected ppo or rloo, and a kl_coef above 0; "
                f"found {self.kind} and kl_coef = {self.kl_coef}"
            )


@dataclass(frozen=True, config=STRICT)
class WinRateConfig:
    """Win rates of greedy responses against those of the reference policy."""

    eval_steps: Count = 0
    """Number of steps between evaluations; 0: at the end only"""
    limit: Positive = 32
    """Number of prompts"""


@dataclass(frozen=True, config=STRICT)
class RlRecipe:
    """A reinforcement-learning run."""

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
        """Number of responses of a step."""
        return self.sampling.prompts_per_step * self.sampling.num_generations

    @property
    def updates(self) -> int:
        """Number of updates in a step."""
        return self.algorithm.num_epochs * self.algorithm.num_mini_batches
