"""The format of recipes: a frozen dataclass for each table of the TOML file.

A recipe holds no code and inherits from nothing. Every number that changes results has to be
written in it; only what does not (how often something is logged, kept, evaluated) has a default
here.
"""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from gram_jax.data.sources import SourceSpec
from gram_jax.model.execution import AttentionBackend, Remat
from gram_jax.model.lora import LoraConfig
from gram_jax.recipes.strict import STRICT
from gram_jax.sharding import MESH_AXES

Stage = Literal["pretrain", "finetune", "bradley_terry"]
Dtype = Literal["float32", "bfloat16"]
MomentDtype = Literal["float32", "bfloat16", "int8"]
SecondMomentDtype = Literal["float32", "bfloat16", "int8", "factored"]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, config=STRICT)
class RunConfig:
    """How long, where to, and the seed of everything random. Exactly one of steps and epochs is given."""

    output_dir: Annotated[str, Field(min_length=1)]
    """where everything of the run goes; all processes of a job see the same"""
    seed: Count
    """of the order of the data, of new weights, of attacks"""
    max_steps: Positive | None = None
    """updates of the weights"""
    num_train_epochs: Positive | None = None
    """passes over the training data"""
    max_skipped: Count = 0
    """batches in a row that may be left out for a loss or gradient that is no number; one more stops the run"""


@dataclass(frozen=True, config=STRICT)
class BaseModelConfig:
    """The weights to begin from, and how they are held."""

    name_or_path: Annotated[str, Field(min_length=1)]
    """a run (or RUN@STEP), an exported folder, a hub name, a .gguf file, or smollm2-135m"""
    param_dtype: Dtype
    """of the trained master weights; below a learning rate of 1e-4 Adam's steps vanish in bfloat16"""


@dataclass(frozen=True, config=STRICT)
class JudgeConfig:
    """How the model is asked and answers: saved beside the weights as judge.json."""

    template: Annotated[str, Field(min_length=1)]
    """one of "default", "from-dataset" (that of GRAM's rendered rows), a text file with {prompt}, {first}, {second}"""
    max_length: Positive
    """most tokens of an example, the prompt and both responses"""
    thinking: bool
    """the switch of that name in the chat format of models that think"""
    labels: tuple[str, str] | None = None
    """the verdicts for the first and the second response, one token each; may be absent with "from-dataset" only"""
    system: str | None = None
    """the system turn: absent leaves it to the chat format, "" drops it, text replaces it"""


@dataclass(frozen=True, config=STRICT)
class SourceConfig:
    """A source of data with settings of its own; a plain string is the path alone."""

    path: Annotated[str, Field(min_length=1)]
    """a file, a folder, a dataset of the hub, or tfds:NAME"""
    schema: str = "auto"
    """form of the rows (below); "auto" looks at their fields"""
    split: str | None = None
    """of a dataset that has several, such as "train[:10%]"; also behind a colon in the path"""
    limit: Positive | None = None
    """at most so many records of it"""

    @property
    def spec(self) -> SourceSpec:
        """The same for the data room."""
        return SourceSpec(self.path, self.schema, self.split, self.limit)


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    """What is trained and evaluated on. A source is a path or name, or a table with settings of its own."""

    train: Annotated[tuple[SourceConfig, ...], Field(min_length=1)]
    """sources, read in turn; which examples a step takes follows from the seed"""
    overlong: Literal["truncate", "drop", "error"]
    """what becomes of an example longer than judge.max_length; "truncate" cuts inside the responses"""
    on_bad: Literal["error", "skip"]
    """what becomes of a row that does not fit the form; what is skipped is counted"""
    valid: tuple[SourceConfig, ...] = ()
    """sources that are evaluated on and never trained on"""
    schema: str = "auto"
    """form of the rows of sources that state none (below); "auto" looks at their fields"""
    position_augmentation: Literal["both", "hash", "fixed"] | None = None
    """both ways in one batch ("both"), one way by a hash of seed and id ("hash"), or as it stands ("fixed")"""
    limit: Positive | None = None
    """at most so many training records of all sources together"""
    attack_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """share of the training pairs whose rejected response is replaced by an attack (docs/attacks.md)"""


@dataclass(frozen=True, config=STRICT)
class BatchConfig:
    """What a step reads."""

    batch_size: Positive
    """of a step, over all devices"""
    max_length: Annotated[int, Field(ge=2)]
    """tokens of a row"""
    packing: bool
    """several examples share a row, each seeing itself alone"""
    gradient_accumulation_steps: Positive
    """parts that a step is computed in, one after the other, to need less memory"""


@dataclass(frozen=True, config=STRICT)
class OptimizerConfig:
    """AdamW. Norms and biases do not decay."""

    learning_rate: Annotated[float, Field(gt=0)]
    """at its peak"""
    warmup_steps: Annotated[float, Field(ge=0)]
    """a share of the steps if below 1, else a number of steps"""
    lr_scheduler_type: Literal["cosine", "linear", "constant"]
    """how the rate falls to 0 behind the warm-up; "constant" stays"""
    b1: Annotated[float, Field(ge=0, lt=1)]
    """decay of the first moment"""
    b2: Annotated[float, Field(ge=0, lt=1)]
    """decay of the second moment"""
    eps: Annotated[float, Field(gt=0)]
    """added to the root of the second moment"""
    weight_decay: Annotated[float, Field(ge=0)]
    """times the learning rate, taken off the matrices' weights in a step"""
    max_grad_norm: Annotated[float, Field(ge=0)]
    """largest global norm of the gradient; 0 for none"""
    first_moment_dtype: MomentDtype = "float32"
    """how the first moment is kept (docs/optimizer-memory.md)"""
    second_moment_dtype: SecondMomentDtype = "float32"
    """how the second moment is kept (docs/optimizer-memory.md)"""


@dataclass(frozen=True, config=STRICT)
class LossConfig:
    """What the losses need to know (docs/concepts.md)."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] | None = None
    """torch's label_smoothing: half of it lies on the wrong verdict"""
    loss_chunk_size: Positive | None = None
    """positions whose logits over the vocabulary may exist at once, over all devices"""


@dataclass(frozen=True, config=STRICT)
class ExecutionConfig:
    """How the model is computed. It changes no result beyond rounding."""

    compute_dtype: Dtype
    """number format of products, which add up in float32"""
    attention: AttentionBackend
    """back end; "auto" chooses by device and task (docs/attention.md)"""
    remat: Remat
    """what the backward pass computes again: "full" everything, "dots" all but products, "none" nothing"""


@dataclass(frozen=True, config=STRICT)
class DcnConfig:
    """Sizes of the mesh axes over slices or hosts; they multiply to the number of these."""

    data: Positive = 1
    """slices or hosts along this axis"""
    fsdp: Positive = 1
    """slices or hosts along this axis"""
    tensor: Positive = 1
    """slices or hosts along this axis"""
    sequence: Positive = 1
    """slices or hosts along this axis"""


@dataclass(frozen=True, config=STRICT)
class MeshConfig:
    """Sizes of the mesh axes in devices (docs/meshes.md). One may be -1, whatever is left: fsdp, where no other is.

    Without mesh.dcn all devices are taken as equally near.
    """

    data: int = 1
    """cuts the rows of the batch"""
    fsdp: int | None = None
    """cuts the rows, and every matrix with its gradient and moments; -1 where no other size is"""
    tensor: int = 1
    """cuts heads, the MLP's width and the vocabulary"""
    sequence: int = 1
    """cuts the positions of a row"""
    dcn: DcnConfig = field(default_factory=DcnConfig)
    """further sizes over slices or hosts, between which the network is slow; an axis is as large as both multiplied"""

    def __post_init__(self) -> None:
        if self.fsdp is None:
            taken = -1 in (self.data, self.tensor, self.sequence)
            object.__setattr__(self, "fsdp", 1 if taken else -1)

    @property
    def sizes(self) -> dict[str, int]:
        """Of a slice or host, for make_placement."""
        return {axis: getattr(self, axis) for axis in MESH_AXES}

    @property
    def dcn_sizes(self) -> dict[str, int]:
        """Over slices or hosts, for make_placement."""
        return {axis: getattr(self.dcn, axis) for axis in MESH_AXES}

    @property
    def whole(self) -> dict[str, int | None]:
        """Of the mesh; None where the number of devices decides."""
        both = ((axis, self.sizes[axis], self.dcn_sizes[axis]) for axis in MESH_AXES)
        return {axis: inside * outside if inside > 0 else None for axis, inside, outside in both}


@dataclass(frozen=True, config=STRICT)
class AdapterConfig:
    """Low-rank adaptation (arXiv 2106.09685): W + (alpha / rank) a b, of which a and b are trained.

    Without the table all weights are.
    """

    rank: Positive
    """inner size of a b"""
    alpha: Annotated[float, Field(gt=0)]
    """scale, divided by the rank"""
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)]
    """matrices of every layer, of q, k, v, o, gate, up, down"""

    @property
    def config(self) -> LoraConfig:
        """The same for the model room."""
        return LoraConfig(self.rank, self.alpha, self.target_modules)


@dataclass(frozen=True, config=STRICT)
class EvalConfig:
    """Evaluation on data.valid while training."""

    eval_steps: Count = 0
    """steps between evaluations; 0: only at the end"""
    limit: Positive | None = None
    """at most so many records of data.valid"""


@dataclass(frozen=True, config=STRICT)
class CheckpointConfig:
    """When the state is saved."""

    save_steps: Count = 0
    """steps between saves; 0: only at the end"""
    max_to_keep: Positive = 2
    """how many are kept, the newest"""
    keep_period: Count = 0
    """steps whose number is a multiple of it are kept for good as well; 0 for none"""


@dataclass(frozen=True, config=STRICT)
class LoggingConfig:
    """Where metrics go: always into metrics.jsonl of the run's folder."""

    logging_steps: Positive = 1
    """steps between two lines, which hold means over those steps"""
    tensorboard: bool = True
    """event files as well"""
    wandb: bool = False
    """Weights & Biases as well"""


@dataclass(frozen=True, config=STRICT)
class Recipe:
    """A run, complete."""

    stage: Stage
    """what is learned: "pretrain" (stage 1), "finetune" (stage 2) or "bradley_terry" (the discriminative baseline)"""
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
        """Whether a row may hold several documents: always in stage rank, which compares two."""
        return self.batch.packing or self.stage == "bradley_terry"
