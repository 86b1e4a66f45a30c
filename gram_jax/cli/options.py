"""Options that several commands have. `--help` imports no jax, so this module does not either."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter, validators

from gram_jax.errors import DataError

if TYPE_CHECKING:
    from gram_jax.distributed.process import ProcessContext
    from gram_jax.judge.spec import JudgeSpec
    from gram_jax.scoring.results import Shard
    from gram_jax.scoring.text_scorer import TextScorer
    from gram_jax.scoring.think import Think
    from gram_jax.sharding import Placement

MODEL = "a run (or RUN@STEP), an exported folder, a hub name, a .gguf file, or smollm2-135m"
RECIPE = "A TOML file, or a name that `gram-jax recipe` lists."
JOB = Group("Several processes (detected inside Slurm and on TPU pods)", sort_key=9)
SHARDS = Group(
    "Several processes without communication; gram-jax merge joins their parts", sort_key=9
)
THINK = Group(
    "Rationales, for a judge whose specification has a rationale (docs/thinking.md)", sort_key=8
)

GROUP = Group("Several processes that share one sharded copy of the weights", sort_key=9)

ComputeDtype = Literal["auto", "float32", "bfloat16"]
WeightFormat = Literal["auto", "float32", "bfloat16", "int8", "int8_dynamic", "float8_dynamic"]
AtLeastOne = Parameter(validator=validators.Number(gte=1))
TwoOrMore = Parameter(validator=validators.Number(gte=2))
NotNegative = Parameter(validator=validators.Number(gte=0))
Seed = Annotated[int, Parameter(validator=validators.Number(gte=0, lt=2**32))]
RecipeName = Annotated[Path, Parameter(help=RECIPE)]
Judge = Annotated[str, Parameter(help=f"The judge: {MODEL}.")]
JudgeOption = Annotated[str, Parameter(name=["--model", "-m"], help=f"The judge: {MODEL}.")]
ModelOption = Annotated[str, Parameter(name=["--model", "-m"], help=f"The model: {MODEL}.")]
Overrides = Annotated[
    list[str] | None,
    Parameter(
        name="--set", help="Change a key of the recipe, such as optimizer.learning_rate=1e-5."
    ),
]


def read_spec(path: Path | None) -> "JudgeSpec | None":
    """The specification in a judge.json, if one is given."""
    from gram_jax.judge.spec import JudgeSpec

    return None if path is None else JudgeSpec.load(path)


def seconds(least: float) -> Callable[[Any, float], None]:
    """A validator of durations, which also rejects nan and inf."""

    def check(_: Any, value: float) -> None:
        if not least <= value < math.inf:
            raise ValueError(f"{value:g} s: expected a number of seconds of at least {least:g}")

    return check


@Parameter(name="*")
@dataclass(frozen=True)
class JudgeOptions:
    """Options of commands that load a judge."""

    compute_dtype: ComputeDtype = "auto"
    """Dtype of matrix products; auto: bfloat16 on accelerators, float32 on CPUs."""
    weights: WeightFormat = "auto"
    """Format in which weights are stored; auto: the compute dtype. int8_dynamic, float8_dynamic: products in 8 bits,
    too."""
    spec: Path | None = None
    """A judge.json to use instead of the one saved with the model."""
    max_length: Annotated[int | None, AtLeastOne] = None
    """Maximum number of tokens of a pair, for a model without judge.json."""
    tokens_per_call: Annotated[int | None, AtLeastOne] = None
    """Number of tokens per call and device; fewer need less memory."""
    mesh: str | None = None
    """Axes over which the weights are sharded, as fsdp=4 or tensor=2,fsdp=-1. Default: each device holds all of them;
    in a job of several processes fsdp=-1."""
    server: str | None = None
    """URL of a server that runs this judge; only specification and tokenizer are then read from the model."""
    protocol: Literal["gram", "vllm", "vllm_generative", "sglang", "sglang_generative"] = "gram"
    """Protocol of the server (docs/scoring.md)."""

    def arguments(self) -> dict[str, Any]:
        """The options as arguments of Scorer.load. Raises DataError if --server is among them."""
        if self.server is not None:
            raise DataError("this command needs the weights of the judge: leave out --server")
        options = vars(self) | {"spec": read_spec(self.spec), "placement": self._placement()}
        others = ("server", "protocol", "mesh")
        return {name: x for name, x in options.items() if name not in others}

    def _placement(self) -> "Placement | None":
        import jax

        from gram_jax.sharding import make_placement, parse_mesh

        if self.mesh is None and jax.process_count() == 1:
            return None
        return make_placement(None if self.mesh is None else parse_mesh(self.mesh))

    def load(self, model: str, process: "ProcessContext | None" = None) -> "TextScorer":
        """Load the judge. Raises DataError if --server is combined with an option of local weights, or with a group."""
        from gram_jax.scoring.remote import RemoteScorer
        from gram_jax.scoring.scalar import load_judge

        if self.server is None:
            return load_judge(model, **self.arguments())
        together = process is not None and not process.alone
        if together or replace(self, spec=None, server=None, protocol="gram") != JudgeOptions():
            raise DataError(
                "--server loads no weights: leave out --weights, --compute-dtype, --max-length, --tokens-per-call and "
                "--mesh, and the options of processes that share weights"
            )
        return RemoteScorer.load(
            model, self.server, protocol=self.protocol, spec=read_spec(self.spec)
        )


@Parameter(name="*", group=THINK)
@dataclass(frozen=True)
class ThinkOptions:
    """Rationales before the verdicts."""

    votes: Annotated[int | None, AtLeastOne] = None
    """Number of rationales for each order of a pair; default: none, only the one-token verdict."""
    think_tokens: Annotated[int | None, AtLeastOne] = None
    """Maximum number of tokens of a rationale; default: that of the specification."""
    think_temperature: Annotated[float, NotNegative] = 1.0
    """Sampling temperature of rationales; 0 selects the most likely tokens, with one vote only."""
    think_top_p: Annotated[float, Parameter(validator=validators.Number(gt=0, lte=1))] = 1.0
    """Sample from the most likely tokens of this total probability."""
    think_seed: Seed = 0
    """Seed of rationales."""
    combine: Literal["mean", "majority"] = "mean"
    """Verdict of several votes: the mean of their probabilities, or the majority."""
    think_below: Annotated[float | None, NotNegative] = None
    """Generate rationales only if the margin of the one-token verdict is smaller; in log-odds, fitted by `think`."""

    def settings(self) -> "Think | None":
        """How the judge thinks; None: it reads the one-token verdict. Raises DataError for options without --votes."""
        from gram_jax.scoring.think import Think

        if self.votes is None:
            if self != ThinkOptions():
                raise DataError("options of rationales need --votes N, the number of rationales")
            return None
        return Think(
            self.votes,
            self.think_tokens,
            self.think_temperature,
            self.think_top_p,
            self.think_seed,
            self.combine,
            self.think_below,
        )

    def apply(self, scorer: "TextScorer") -> "TextScorer":
        """The judge, with rationales if there are votes."""
        think = self.settings()
        return scorer if think is None else scorer.thinking(think)


@Parameter(name="*")
@dataclass(frozen=True)
class RowOptions:
    """Options of commands that read rows of data."""

    schema: str = "auto"
    """Schema of the rows; auto: detected from their fields."""
    on_bad: Literal["error", "skip"] = "error"
    """Handling of a row that does not fit its schema; skipped rows are counted."""
    map: Annotated[list[str] | None, Parameter(name="--map")] = None
    """The column of a field, as prompt=question, or the meaning of a value of the label, as label:left=A. Repeat it for
    more (docs/data.md)."""

    def arguments(self) -> dict[str, Any]:
        """The options as arguments of functions that read rows."""
        from gram_jax.data.mapping import parse_map

        return vars(self) | {"map": parse_map(self.map) if self.map else None}


@Parameter(name="*", group=SHARDS)
@dataclass(frozen=True)
class ShardOptions:
    """Options of commands whose rows several processes can share."""

    shard: Annotated[str | None, Parameter(env_var="GRAM_JAX_SHARD")] = None
    """I/N, from 0/N to N-1/N: write every N-th part of the rows; auto: from the variables of Slurm or a TPU pod."""
    part_rows: Annotated[int, AtLeastOne] = 1000
    """Number of rows of a part; the same for all shards."""

    def place(self, group: "GroupOptions") -> "Shard | None":
        """The shard, None for all rows."""
        import os

        from gram_jax.distributed.shard import find_shard
        from gram_jax.scoring.results import Shard

        if self.shard is None:
            return None
        place = find_shard(self.shard, os.environ, in_group=group.several)
        return Shard(place.index, place.count, self.part_rows)


def thought_report(scorer: "TextScorer") -> str:
    """How much a judge thought and how often without a verdict; "" for one that does not think."""
    report = getattr(scorer, "report", None)
    return f"; {report()}" if report else ""


def after_shard(place: "Shard | None", out: str | Path | None) -> str:
    """The next command after a shard as text; "" if all rows were written."""
    if place is None:
        return ""
    return f". Shard {place.index} of {place.count}; after the last one: gram-jax merge {out}"


@Parameter(name="*", group=JOB)
@dataclass(frozen=True)
class JobOptions:
    """Options of a process in a job of several."""

    coordinator: Annotated[str | None, Parameter(env_var="GRAM_JAX_COORDINATOR")] = None
    """host:port of process 0."""
    processes: Annotated[int | None, AtLeastOne, Parameter(env_var="GRAM_JAX_PROCESSES")] = None
    """Number of processes."""
    process: Annotated[int | None, Parameter(env_var="GRAM_JAX_PROCESS")] = None
    """Index of this process."""
    local_devices: Annotated[str | None, Parameter(env_var="JAX_LOCAL_DEVICE_IDS")] = None
    """GPUs of this machine that this process uses, such as 0,1; default all."""
    cluster: Literal["auto", "none"] = "auto"
    """auto: detect Slurm and TPU pods; none: one process, also inside Slurm and on a TPU pod."""
    join_timeout: Annotated[
        float, Parameter(env_var="GRAM_JAX_JOIN_TIMEOUT", validator=seconds(1))
    ] = 300
    """Seconds to wait for all processes."""
    # At least three heartbeats.
    lost_after: Annotated[float, Parameter(env_var="GRAM_JAX_LOST_AFTER", validator=seconds(3))] = (
        30
    )
    """Seconds without a heartbeat after which a process is lost."""


@Parameter(name="*", group=GROUP)
@dataclass(frozen=True)
class GroupOptions:
    """This process's place in a group, which is one shard."""

    coordinator: str | None = None
    """host:port of process 0."""
    processes: Annotated[int | None, AtLeastOne] = None
    """Number of processes."""
    process: int | None = None
    """Index of this process."""
    local_devices: str | None = None
    """GPUs of this machine that this process uses, as 0,1; default all."""
    cluster: Literal["auto", "none"] = "none"
    """auto: the tasks of this Slurm step, the hosts of this TPU pod, or the processes of the variables GRAM_JAX_*."""

    @property
    def several(self) -> bool:
        """Whether there is a group."""
        return self.cluster == "auto" or self._place != (None, None, None)

    @property
    def _place(self) -> tuple[str | None, int | None, int | None]:
        return self.coordinator, self.processes, self.process

    def job(self) -> JobOptions:
        """The group as a job."""
        import os

        from gram_jax.distributed.cluster import launcher_place

        place = self._place
        if self.cluster == "auto" and place == (None, None, None):
            place = launcher_place(os.environ)
        return JobOptions(*place, self.local_devices, "auto" if self.several else "none")


@Parameter(name="*")
@dataclass(frozen=True)
class StopOptions:
    """When a process of a run exits."""

    grace: Annotated[float, Parameter(env_var="GRAM_JAX_GRACE", validator=seconds(0))] = 25
    """Seconds from SIGTERM until the process has to exit."""
    # More than a save may take (checkpoint/orbax.py).
    stuck_after: Annotated[
        float, Parameter(env_var="GRAM_JAX_STUCK_AFTER", validator=seconds(0))
    ] = 4500
    """Seconds without progress after which the process prints its stacks and exits; 0: never."""
