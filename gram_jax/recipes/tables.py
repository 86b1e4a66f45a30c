"""The format of recipes: a frozen dataclass for each table of the TOML file.

Every number that changes results is required. Keys that change no result (intervals of logging, saving, evaluation) and
features that are off by default have defaults. Checks inside a table are in its `__post_init__`.
"""

from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WrapSerializer
from pydantic.dataclasses import dataclass

from gram_jax.data.examples import (
    Overlong,
    PositionAugmentation,
    PretrainingLayout,
    Stage,
)
from gram_jax.data.reading import OnBad
from gram_jax.data.sources import SourceSpec
from gram_jax.model.execution import AttentionBackend, Remat
from gram_jax.model.lora import LoraConfig
from gram_jax.recipes.strict import STRICT
from gram_jax.sharding import MESH_AXES

Dtype = Literal["float32", "bfloat16"]
MomentDtype = Literal["float32", "bfloat16", "int8"]
LoraTarget = Literal["q", "k", "v", "o", "gate", "up", "down"]
SecondMomentDtype = Literal["float32", "bfloat16", "int8", "factored"]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Steps = Annotated[int, Field(ge=1, lt=2**31)]  # counted in int32
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # jax.random.key ignores higher bits
Text = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True, config=STRICT)
class RunConfig:
    """Length, output directory and seed. Exactly one of max_steps and num_train_epochs is required."""

    output_dir: Text
    """Directory of the run; shared by all processes of a job"""
    seed: Seed
    """Seed for shuffling, initialisation and attacks"""
    max_steps: Steps | None = None
    """Number of optimizer steps"""
    num_train_epochs: Positive | None = None
    """Number of passes over the training data"""
    max_skipped: Count = 0
    """Maximum number of consecutive batches skipped for a non-finite loss or gradient; one more stops the run"""

    def __post_init__(self) -> None:
        if (self.max_steps is None) == (self.num_train_epochs is None):
            found = "neither" if self.max_steps is None else "both"
            raise ValueError(
                f"expected exactly one of max_steps and num_train_epochs; found {found}. "
                "On the command line, --set run.max_steps= removes a value"
            )


@dataclass(frozen=True, config=STRICT)
class BaseModelConfig:
    """The initial weights and their dtype."""

    name_or_path: Text
    """A run (or RUN@STEP), an exported directory, a hub name, a .gguf file, or smollm2-135m"""
    param_dtype: Dtype
    """Dtype of the master weights; with a learning rate below 1e-4 Adam's updates are lost in bfloat16"""


@dataclass(frozen=True, config=STRICT)
class JudgeConfig:
    """The judge specification, saved next to the weights as judge.json."""

    template: Text
    """"default", "from-dataset" (read from GRAM's rendered rows), or a text file with {prompt}, {first}, {second}"""
    max_length: Positive
    """Maximum number of tokens of an example: the prompt and both responses"""
    thinking: bool
    """Value of enable_thinking in the chat format, for models with a thinking mode"""
    labels: tuple[str, str] | None = None
    """Verdicts for the first and the second response, one token each; may be absent with "from-dataset" only"""
    system: str | None = None
    """The system message: absent for the chat format's default, "" for none, or a text"""
    rationale: Text | None = None
    """Text before the verdict (docs/thinking.md): "think", "from-template", or a text with {rationale}"""
    stop: tuple[str, ...] = ()
    """Texts that end a rationale; default the first line after {rationale}"""
    max_rationale: Positive = 1024
    """Maximum number of tokens of a rationale; rows with a longer one are dropped"""


@dataclass(frozen=True, config=STRICT)
class SourceConfig(SourceSpec):
    """A data source with settings; a plain string is the path alone."""

    path: Text
    """A file, a directory, a dataset of the hub, or tfds:NAME"""
    schema: str = "auto"
    """Schema of the rows (below); "auto" detects it from their fields"""
    split: str | None = None
    """Split of a dataset that has several, such as "train[:10%]"; may also follow the path after a colon"""
    limit: Positive | None = None
    """Maximum number of records of this source"""
    map: dict[str, str] | None = None
    """Columns of this source for those of a schema, as {prompt = "question"} (docs/data.md)"""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Number of passes over this source in an epoch; with 0.5, two epochs make one pass"""

    @property
    def name(self) -> str:
        """The last part of the path without its suffixes."""
        return Path(self.path).name.split(".")[0] or self.path


def _source_values(source: SourceConfig, values: Any) -> Any:
    return source.path if source == SourceConfig(source.path) else values(source)


SourceLike = Annotated[
    SourceConfig,
    BeforeValidator(lambda source: {"path": source} if isinstance(source, str) else source),
    WrapSerializer(_source_values),
]


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    """Training and evaluation data. A source is a path or name, or a table with settings."""

    train: Annotated[tuple[SourceLike, ...], Field(min_length=1)]
    """Training sources; the seed determines the order of their examples"""
    overlong: Overlong
    """Handling of an example longer than judge.max_length; "truncate" removes the middle of its responses"""
    on_bad: OnBad
    """Handling of a row that does not match its schema; skipped rows are counted"""
    valid: tuple[SourceLike, ...] = ()
    """Evaluation sources"""
    schema: str = "auto"
    """Schema of the rows of sources that state none (below); "auto" detects it from their fields"""
    map: dict[str, str] | None = None
    """Columns of sources that state none for those of a schema, as {prompt = "question"} (docs/data.md)"""
    max_overlap: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Maximum share of the evaluation pairs that are also training pairs; more stop the run before its first step"""
    position_augmentation: PositionAugmentation | None = None
    """Orders in which a pair is shown: both in one batch ("both"), one by a hash of seed and id ("hash"), or as given
    ("fixed")"""
    pretraining_layout: PretrainingLayout = "judge"
    """Text of stage 1: that of the judge's template, which stage 2 and scoring show, or GRAM's own ("gram")"""
    limit: Positive | None = None
    """Maximum number of training records, all sources together"""
    attack_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the training pairs whose rejected response is replaced by an attack (docs/attacks.md)"""
    cache_dir: str | None = None
    """Directory of the token cache; default the user's cache directory for data of more than 4 MB; "" for no cache"""
    num_workers: Positive | None = None
    """Number of processes that encode examples for the cache; default the number of cores"""

    @property
    def passes(self) -> dict[str, float]:
        """Passes over each training source in an epoch, by a name of its own."""
        found: dict[str, float] = {}
        for number, source in enumerate(self.train, start=1):
            name = source.name if source.name not in found else f"{source.name}-{number}"
            found[name] = source.weight
        return found


@dataclass(frozen=True, config=STRICT)
class BatchConfig:
    """The batch of a step."""

    batch_size: Positive
    """Global batch size in rows, over all devices and accumulation steps"""
    max_length: Annotated[int, Field(ge=2)]
    """Number of tokens of a row"""
    packing: bool
    """Pack several examples into a row; each attends to itself only"""
    gradient_accumulation_steps: Positive
    """Number of microbatches that the batch is split into, to save memory"""


@dataclass(frozen=True, config=STRICT)
class OptimizerConfig:
    """AdamW. Norms and biases have no weight decay."""

    learning_rate: Annotated[float, Field(gt=0)]
    """Peak learning rate"""
    warmup_steps: Annotated[float, Field(ge=0)]
    """Number of warm-up steps; below 1, a ratio of all steps"""
    lr_scheduler_type: Literal["cosine", "linear", "constant"]
    """Decay to 0 after the warm-up; "constant" does not decay"""
    b1: Annotated[float, Field(ge=0, lt=1)]
    """Decay of the first moment"""
    b2: Annotated[float, Field(ge=0, lt=1)]
    """Decay of the second moment"""
    eps: Annotated[float, Field(gt=0)]
    """Added to the root of the second moment"""
    weight_decay: Annotated[float, Field(ge=0)]
    """Weight decay of the matrices, multiplied by the learning rate"""
    max_grad_norm: Annotated[float, Field(ge=0)]
    """Maximum global norm of the gradient; 0: no clipping"""
    first_moment_dtype: MomentDtype = "float32"
    """Storage format of the first moment (docs/optimizer-memory.md)"""
    second_moment_dtype: SecondMomentDtype = "float32"
    """Storage format of the second moment (docs/optimizer-memory.md)"""

    def __post_init__(self) -> None:
        if self.warmup_steps >= 1 and self.warmup_steps != int(self.warmup_steps):
            raise ValueError(
                f"warmup_steps = {self.warmup_steps}: expected a ratio below 1 or a whole number of steps"
            )


@dataclass(frozen=True, config=STRICT)
class LossConfig:
    """Parameters of the losses (docs/concepts.md)."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Label smoothing as torch defines it: half of it is assigned to the wrong verdict"""
    verdict_weight: Annotated[float, Field(ge=0)] | None = None
    """Weight of the verdict's loss in stage "rationale\""""
    rationale_weight: Annotated[float, Field(ge=0)] | None = None
    """Weight of the rationale's next-token loss, a mean over its tokens, in stage "rationale\""""
    order_consistency: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the divergence of the verdicts in both orders; above 0, data.train may have pairs without labels"""
    loss_chunk_size: Positive | None = None
    """Maximum number of positions whose vocabulary logits are in memory at once, over all devices"""


@dataclass(frozen=True, config=STRICT)
class ExecutionConfig:
    """Execution of the model; affects results by rounding only."""

    compute_dtype: Dtype
    """Dtype of matrix products, which accumulate in float32"""
    attention: AttentionBackend
    """Back end; "auto" chooses one for the device and task (docs/attention.md)"""
    remat: Remat
    """Rematerialisation in the backward pass: "none", "dots" (all but matrix products and attention's output),
    "attention" (all but attention's output) or "full", by memory saved"""
    compiler_options: dict[str, str | int | float | bool] | None = None
    """Options of libtpu, added to those for the chip (docs/meshes.md); "" removes one. Ignored on other platforms"""


@dataclass(frozen=True, config=STRICT)
class DcnConfig:
    """Sizes of the mesh axes over slices or hosts. Their product is the number of slices or hosts."""

    data: Positive = 1
    """Slices or hosts along this axis"""
    fsdp: Positive = 1
    """Slices or hosts along this axis"""
    tensor: Positive = 1
    """Slices or hosts along this axis"""
    sequence: Positive = 1
    """Slices or hosts along this axis"""


@dataclass(frozen=True, config=STRICT)
class MeshConfig:
    """Sizes of the mesh axes in devices (docs/meshes.md). One may be -1 (the remaining devices), by default fsdp.

    Without mesh.dcn all devices are assumed to be equally close.
    """

    data: int = 1
    """Shards the rows of the batch"""
    fsdp: int | None = None
    """Shards the rows, and every matrix with its gradient and moments; default -1 if no other size is -1"""
    tensor: int = 1
    """Shards heads, the width of the MLP and the vocabulary"""
    sequence: int = 1
    """Shards the positions of a row"""
    dcn: DcnConfig = field(default_factory=DcnConfig)
    """Sizes over slices or hosts, connected by a slower network; the size of an axis is the product of both"""

    def __post_init__(self) -> None:
        if self.fsdp is None:
            taken = -1 in (self.data, self.tensor, self.sequence)
            object.__setattr__(self, "fsdp", 1 if taken else -1)
        if bad := {axis: size for axis, size in self.sizes.items() if size < 1 and size != -1}:
            raise ValueError(
                f"{bad}: expected sizes of at least 1, or -1 for the remaining devices"
            )
        free = [axis for axis, size in self.sizes.items() if size == -1]
        if len(free) > 1:
            raise ValueError(f"{', '.join(free)}: at most one size may be -1")

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes inside a slice or host."""
        return {axis: getattr(self, axis) for axis in MESH_AXES}

    @property
    def dcn_sizes(self) -> dict[str, int]:
        """Sizes over slices or hosts."""
        return {axis: getattr(self.dcn, axis) for axis in MESH_AXES}

    @property
    def whole(self) -> dict[str, int | None]:
        """Sizes of the whole mesh; None if it depends on the number of devices."""
        both = ((axis, self.sizes[axis], self.dcn_sizes[axis]) for axis in MESH_AXES)
        return {axis: inside * outside if inside > 0 else None for axis, inside, outside in both}


@dataclass(frozen=True, config=STRICT)
class AdapterConfig:
    """Low-rank adaptation (arXiv 2106.09685): W + (alpha / rank) a b with a and b trained.

    Without this table all weights are trained.
    """

    rank: Positive
    """Inner size of a b"""
    alpha: Annotated[float, Field(gt=0)]
    """Scale, divided by the rank"""
    target_modules: Annotated[tuple[LoraTarget, ...], Field(min_length=1)]
    """Matrices of every layer"""

    @property
    def config(self) -> LoraConfig:
        """The settings as a LoraConfig of gram_jax.model."""
        return LoraConfig(self.rank, self.alpha, self.target_modules)


@dataclass(frozen=True, config=STRICT)
class EvalConfig:
    """Evaluation on data.valid during training."""

    eval_steps: Count = 0
    """Number of steps between evaluations; 0: at the end only"""
    limit: Positive | None = None
    """Maximum number of records of data.valid"""


@dataclass(frozen=True, config=STRICT)
class CheckpointConfig:
    """Saving of the training state."""

    save_steps: Count = 0
    """Number of steps between saves; 0: at the end only"""
    max_to_keep: Positive = 2
    """Number of newest checkpoints to keep"""
    keep_period: Count = 0
    """Keep checkpoints whose step is a multiple of this permanently; 0: none"""

    def __post_init__(self) -> None:
        if self.keep_period and (not self.save_steps or self.keep_period % self.save_steps):
            only = "" if self.save_steps else ", which saves the last step only"
            raise ValueError(
                f"keep_period = {self.keep_period}: expected a multiple of save_steps; "
                f"found save_steps = {self.save_steps}{only}"
            )


@dataclass(frozen=True, config=STRICT)
class TrackingConfig:
    """Logging of metrics, in addition to metrics.jsonl in the output directory."""

    tensorboard: bool = False
    """Write TensorBoard event files (extra tensorboard)"""
    wandb: bool = False
    """Log to Weights & Biases (extra wandb)"""


@dataclass(frozen=True, config=STRICT)
class LoggingConfig(TrackingConfig):
    """Logging of metrics, in addition to metrics.jsonl in the output directory."""

    logging_steps: Positive = 1
    """Number of steps between lines of metrics; a line has the means over these steps"""


@dataclass(frozen=True, config=STRICT)
class Recipe:
    """A training run."""

    stage: Stage
    """"pretrain" (stage 1), "finetune" (stage 2), "rationale" (stage 2 with rationales before the verdicts) or
    "bradley_terry" (the discriminative baseline)"""
    run: RunConfig
    model: BaseModelConfig
    judge: JudgeConfig
    data: DataConfig
    batch: BatchConfig
    optimizer: OptimizerConfig
    execution: ExecutionConfig
    loss: LossConfig = field(default_factory=LossConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    lora: AdapterConfig | None = None
    evaluate: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LoggingConfig = field(default_factory=LoggingConfig)

    @property
    def packed(self) -> bool:
        """Whether a row may hold several documents; always if the loss compares two."""
        compares = self.stage == "bradley_terry" or self.loss.order_consistency > 0
        return self.batch.packing or compares
