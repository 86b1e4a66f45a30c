"""Recipes: the TOML file that says everything about a run, read strictly, and its resolved text.

A recipe holds no code and inherits from nothing. Every number that changes results has to be
written in it; only what does not (how often something is logged, kept, evaluated) has a default
here. The dataclasses below are the format: one for each table.
"""

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tomli_w
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from gram_jax.data.sources import SourceSpec
from gram_jax.errors import RecipeError
from gram_jax.model.attention.choice import Task, refusals
from gram_jax.model.execution import AttentionBackend, Remat
from gram_jax.model.lora import LoraConfig
from gram_jax.sharding import MESH_AXES, nearest_multiple

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Stage = Literal["write", "judge", "rank"]
Dtype = Literal["float32", "bfloat16"]
First = Literal["float32", "bfloat16", "int8"]
Second = Literal["float32", "bfloat16", "int8", "factored"]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]

# Below this learning rate Adam's steps vanish in the rounding of bf16 weights: at 1e-5 a judge
# learned nothing.
LEAST_BF16_LEARNING_RATE = 1e-4

# Those that come with the package: inside of it in a wheel, beside it in a checkout.
_INSIDE = Path(str(files("gram_jax"))) / "configs"
RECIPES = _INSIDE if _INSIDE.is_dir() else _INSIDE.parents[1] / "configs"


@dataclass(frozen=True, config=STRICT)
class Run:
    """How long, where to, and the seed of everything random. Exactly one of steps and epochs is given."""

    folder: Annotated[str, Field(min_length=1)]
    """where everything of the run goes; all processes of a job see the same"""
    seed: Count
    """of the order of the data, of new weights, of attacks"""
    steps: Positive | None = None
    """updates of the weights"""
    epochs: Positive | None = None
    """passes over the training data"""
    max_skipped: Count = 0
    """batches in a row that may be left out for a loss or gradient that is no number; one more stops the run"""


@dataclass(frozen=True, config=STRICT)
class Model:
    """The weights to begin from, and how they are held."""

    start: Annotated[str, Field(min_length=1)]
    """a run (or RUN@STEP), an exported folder, a hub name, a .gguf file, or smollm2-135m"""
    dtype: Dtype
    """of the trained master weights; below a learning rate of 1e-4 Adam's steps vanish in bfloat16"""


@dataclass(frozen=True, config=STRICT)
class Judge:
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
class Source:
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
class Data:
    """What is trained and evaluated on. A source is a path or name, or a table with settings of its own."""

    train: Annotated[tuple[Source, ...], Field(min_length=1)]
    """sources, read in turn; which examples a step takes follows from the seed"""
    overlong: Literal["shorten", "drop", "error"]
    """what becomes of an example longer than judge.max_length; "shorten" cuts inside the responses"""
    on_bad: Literal["error", "skip"]
    """what becomes of a row that does not fit the form; what is skipped is counted"""
    valid: tuple[Source, ...] = ()
    """sources that are evaluated on and never trained on"""
    schema: str = "auto"
    """form of the rows of sources that state none (below); "auto" looks at their fields"""
    orders: Literal["both", "hash", "fixed"] | None = None
    """both ways in one batch ("both"), one way by a hash of seed and id ("hash"), or as it stands ("fixed")"""
    limit: Positive | None = None
    """at most so many training records of all sources together"""
    attack_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """share of the training pairs whose rejected response is replaced by an attack (docs/attacks.md)"""


@dataclass(frozen=True, config=STRICT)
class Batch:
    """What a step reads."""

    rows: Positive
    """of a step, over all devices"""
    length: Annotated[int, Field(ge=2)]
    """tokens of a row"""
    pack: bool
    """several examples share a row, each seeing itself alone"""
    microbatches: Positive
    """parts that a step is computed in, one after the other, to need less memory"""


@dataclass(frozen=True, config=STRICT)
class Optimizer:
    """AdamW. Norms and biases do not decay."""

    learning_rate: Annotated[float, Field(gt=0)]
    """at its peak"""
    warmup: Annotated[float, Field(ge=0)]
    """a share of the steps if below 1, else a number of steps"""
    schedule: Literal["cosine", "linear", "constant"]
    """how the rate falls to 0 behind the warm-up; "constant" stays"""
    b1: Annotated[float, Field(ge=0, lt=1)]
    """decay of the first moment"""
    b2: Annotated[float, Field(ge=0, lt=1)]
    """decay of the second moment"""
    eps: Annotated[float, Field(gt=0)]
    """added to the root of the second moment"""
    weight_decay: Annotated[float, Field(ge=0)]
    """times the learning rate, taken off the matrices' weights in a step"""
    clip: Annotated[float, Field(ge=0)]
    """largest global norm of the gradient; 0 for none"""
    moments: First = "float32"
    """how the first moment is kept (docs/optimizer-memory.md)"""
    second_moment: Second = "float32"
    """how the second moment is kept (docs/optimizer-memory.md)"""


@dataclass(frozen=True, config=STRICT)
class Loss:
    """What the losses need to know (docs/concepts.md)."""

    smoothing: Annotated[float, Field(ge=0, lt=1)] | None = None
    """torch's label_smoothing: half of it lies on the wrong verdict"""
    chunk: Positive | None = None
    """positions whose logits over the vocabulary may exist at once, over all devices"""


@dataclass(frozen=True, config=STRICT)
class Executing:
    """How the model is computed. It changes no result beyond rounding."""

    compute: Dtype
    """number format of products, which add up in float32"""
    attention: AttentionBackend
    """back end; "auto" chooses by device and task (docs/attention.md)"""
    remat: Remat
    """what the backward pass computes again: "full" everything, "dots" all but products, "none" nothing"""


@dataclass(frozen=True, config=STRICT)
class Between:
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
class Mesh:
    """Sizes of the mesh axes in devices (docs/meshes.md). One may be -1, whatever is left: fsdp, where no other is.

    Without mesh.between all devices are taken as equally near.
    """

    data: int = 1
    """cuts the rows of the batch"""
    fsdp: int | None = None
    """cuts the rows, and every matrix with its gradient and moments; -1 where no other size is"""
    tensor: int = 1
    """cuts heads, the MLP's width and the vocabulary"""
    sequence: int = 1
    """cuts the positions of a row"""
    between: Between = field(default_factory=Between)
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
    def between_sizes(self) -> dict[str, int]:
        """Over slices or hosts, for make_placement."""
        return {axis: getattr(self.between, axis) for axis in MESH_AXES}

    @property
    def whole(self) -> dict[str, int | None]:
        """Of the mesh; None where the number of devices decides."""
        both = ((axis, self.sizes[axis], self.between_sizes[axis]) for axis in MESH_AXES)
        return {axis: inside * outside if inside > 0 else None for axis, inside, outside in both}


@dataclass(frozen=True, config=STRICT)
class Lora:
    """Low-rank adaptation (arXiv 2106.09685): W + (alpha / rank) a b, of which a and b are trained.

    Without the table all weights are.
    """

    rank: Positive
    """inner size of a b"""
    alpha: Annotated[float, Field(gt=0)]
    """scale, divided by the rank"""
    targets: Annotated[tuple[str, ...], Field(min_length=1)]
    """matrices of every layer, of q, k, v, o, gate, up, down"""

    @property
    def config(self) -> LoraConfig:
        """The same for the model room."""
        return LoraConfig(self.rank, self.alpha, self.targets)


@dataclass(frozen=True, config=STRICT)
class Evaluate:
    """Evaluation on data.valid while training."""

    every: Count = 0
    """steps between evaluations; 0: only at the end"""
    limit: Positive | None = None
    """at most so many records of data.valid"""


@dataclass(frozen=True, config=STRICT)
class Checkpoint:
    """When the state is saved."""

    every: Count = 0
    """steps between saves; 0: only at the end"""
    keep: Positive = 2
    """how many are kept, the newest"""
    keep_every: Count = 0
    """steps whose number is a multiple of it are kept for good as well; 0 for none"""


@dataclass(frozen=True, config=STRICT)
class Log:
    """Where metrics go: always into metrics.jsonl of the run's folder."""

    every: Positive = 1
    """steps between two lines, which hold means over those steps"""
    tensorboard: bool = True
    """event files as well"""
    wandb: bool = False
    """Weights & Biases as well"""


@dataclass(frozen=True, config=STRICT)
class Recipe:
    """A run, complete."""

    stage: Stage
    """what is learned: "write" (stage 1), "judge" (stage 2) or "rank" (the discriminative baseline)"""
    run: Run
    model: Model
    judge: Judge
    data: Data
    batch: Batch
    optimizer: Optimizer
    execution: Executing
    loss: Loss = field(default_factory=Loss)
    mesh: Mesh = field(default_factory=Mesh)
    lora: Lora | None = None
    evaluate: Evaluate = field(default_factory=Evaluate)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    log: Log = field(default_factory=Log)

    @property
    def packed(self) -> bool:
        """Whether a row may hold several documents: always in stage rank, which compares two."""
        return self.batch.pack or self.stage == "rank"


_Kind = TypeVar("_Kind")

# Keys that mean nothing in the other stages; all but attack_share, which has a default, are required in theirs.
STAGES_OF: dict[str, tuple[Stage, ...]] = {
    "loss.chunk": ("write",),
    "loss.smoothing": ("judge",),
    "data.orders": ("write", "judge"),
    "data.attack_share": ("judge",),
}

# What may differ between a run and its continuation: it changes no result, or only its last bits.
FREE_ON_RESUME = (
    "run.folder",
    "run.max_skipped",
    "data.valid",
    "batch.microbatches",
    "loss.chunk",
    "execution.attention",
    "execution.remat",
    "mesh.",
    "evaluate.",
    "checkpoint.",
    "log.",
)


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a TOML file, with overrides such as "optimizer.learning_rate=1e-5".

    path: of a file, or the name of a recipe that comes with gram_jax, such as "smollm2-135m-judge".
    An override's value is TOML (`data.train=["a.jsonl"]`); a bare word is a string, and an empty
    value removes the key. Raises RecipeError for a file that cannot be read, an unknown key (naming
    the nearest known one), a missing key, a value of the wrong type or range, and values that do
    not go together.

    >>> recipe = read_recipe("smollm2-135m-judge", ["optimizer.learning_rate=1e-5", "run.steps=20"])
    >>> recipe.stage, recipe.run.steps, recipe.optimizer.learning_rate
    ('judge', 20, 1e-05)
    """
    values, where = read_values(path, overrides)
    return make_recipe(values, where)


def read_values(path: str | Path, overrides: Sequence[str]) -> tuple[dict[str, Any], str]:
    """The values of a TOML file with overrides, and what to call them in messages. Raises RecipeError."""
    try:
        values = tomllib.loads(recipe_text(path))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path} is not a TOML file: {error}") from error
    for override in overrides:
        _apply(values, override)
    return values, str(path) + (f" with --set {' --set '.join(overrides)}" if overrides else "")


def recipe_names() -> list[str]:
    """The names of the recipes that come with gram_jax."""
    # a copy of gram_jax/ alone has none
    names = [file.name for file in RECIPES.iterdir()] if RECIPES.is_dir() else []
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def recipe_text(path: str | Path) -> str:
    """The text of a recipe: of the file at this path, or else of the one that comes with gram_jax by this name.

    Raises RecipeError where there is neither, or no text in the file.
    """
    file = Path(path)
    if not file.is_file() and str(path) in recipe_names():
        return (RECIPES / f"{path}.toml").read_text(encoding="utf-8")
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        names = f"\n  by name alone there are {', '.join(recipe_names()) or 'none'}"
        raise RecipeError(
            f"recipe {str(path)!r} cannot be read: {error.strerror or error}"
            + (names if isinstance(error, FileNotFoundError) else "")
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not a TOML file: {error}") from error


def make_recipe(values: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """The recipe of nested plain values, checked as if they had been read from the file `where`."""
    recipe = validated(Recipe, json.dumps(_sources_as_tables(values), default=str), where)
    if problems := list(_cross_checks(recipe)):
        raise RecipeError("\n  ".join([f"{where}:", *problems]))
    return recipe


def validated(kind: type[_Kind], text: str, where: str) -> _Kind:
    """A value of the dataclass `kind` from JSON: lists may become tuples there and tables dataclasses, however strict.

    Raises RecipeError with a line for everything that is wrong.
    """
    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        found = error.errors()
        lines = [_explain(problem, kind) for problem in found if not _follows(problem, found)]
        raise RecipeError("\n  ".join([f"{where}:", *lines])) from None


def recipe_to_toml(recipe: Recipe) -> str:
    """The recipe as text with every default spelled out; reading it gives an equal value."""
    return tomli_w.dumps(recipe_values(recipe))


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """The recipe as nested plain values; what is absent (None) has no key, as in TOML."""
    values = plain_values(dataclasses.asdict(recipe))
    for key in ("train", "valid"):
        sources = values["data"][key]
        plain = [s["path"] if s == {"path": s["path"], "schema": "auto"} else s for s in sources]
        values["data"][key] = plain
    return values


def changed_on_resume(before: Recipe, now: Recipe) -> list[str]:
    """Keys that change results and differ between two recipes, each as "key: before -> now"."""
    a, b = _leaves(recipe_values(before)), _leaves(recipe_values(now))
    return [
        f"{key}: {a.get(key, 'absent')!r} -> {b.get(key, 'absent')!r}"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key) and not key.startswith(FREE_ON_RESUME)
    ]


def check_rows(rows: int, microbatches: int, shards: int) -> str | None:
    """None where every microbatch has as many rows on every batch shard, else what to say.

    >>> check_rows(8, 2, 2)
    >>> print(check_rows(10, 2, 2).split(": ")[1])
    the nearest valid sizes are 8 and 12
    """
    unit = microbatches * shards
    if rows % unit == 0:
        return None
    return (
        f"batch.rows = {rows} is not a multiple of {unit} ({microbatches} microbatches x {shards} "
        f"batch shards): {nearest_multiple(rows, unit)}"
    )


def check_saves(saves: Checkpoint) -> str | None:
    """None where every step that is kept for good is one that is saved, else what to say."""
    if not saves.keep_every or (saves.every and saves.keep_every % saves.every == 0):
        return None
    found = f"every = {saves.every}" if saves.every else "every = 0 (saves only at the end)"
    return (
        f"[checkpoint] keep_every = {saves.keep_every}: expected a multiple of every, whose steps are "
        f"the ones that are saved; found {found}"
    )


def _cross_checks(recipe: Recipe) -> Iterator[str]:
    """Everything about a recipe that no single value shows."""
    run, optimizer, stage = recipe.run, recipe.optimizer, recipe.stage
    if (run.steps is None) == (run.epochs is None):
        found = "both" if run.steps is not None else "neither"
        yield f"[run] needs exactly one of steps and epochs; found {found}"
    for key, stages in STAGES_OF.items():
        section, name = key.split(".")
        table = getattr(recipe, section)
        default = type(table).__dataclass_fields__[name].default
        given = getattr(table, name) != default
        if stage in stages and not given and default is None:
            yield f'[{section}] {name} is missing: stage "{stage}" needs it'
        if given and stage not in stages:
            yield f'[{section}] {name} means nothing in stage "{stage}": remove it'
    if optimizer.warmup >= 1 and optimizer.warmup != int(optimizer.warmup):
        yield (
            f"[optimizer] warmup = {optimizer.warmup}: expected a share below 1 or a whole number"
        )
    if run.steps is not None and optimizer.warmup >= max(run.steps, 1):
        yield f"[optimizer] warmup = {optimizer.warmup:g} leaves nothing of run.steps = {run.steps}"
    if recipe.model.dtype == "bfloat16" and optimizer.learning_rate < LEAST_BF16_LEARNING_RATE:
        yield (
            f'[model] dtype = "bfloat16" with learning_rate = {optimizer.learning_rate:g}: such '
            'small steps vanish in bfloat16. Use dtype = "float32" (compute may stay bfloat16) or '
            f"a learning rate of at least {LEAST_BF16_LEARNING_RATE:g}"
        )
    if recipe.judge.labels is None and recipe.judge.template != "from-dataset":
        yield '[judge] labels is missing: such as ["A", "B"] (only "from-dataset" finds them itself)'
    if recipe.evaluate.every and not recipe.data.valid:
        yield f"[evaluate] every = {recipe.evaluate.every}: there is no data.valid to evaluate on"
    if problem := check_saves(recipe.checkpoint):
        yield problem
    if recipe.lora is not None:
        try:
            _ = recipe.lora.config
        except RecipeError as error:
            yield f"[lora] {error}"
    sizes = recipe.mesh.sizes
    if bad := {axis: size for axis, size in sizes.items() if size < 1 and size != -1}:
        yield f"[mesh] {bad}: expected sizes of at least 1, or -1 for what is left"
    elif list(sizes.values()).count(-1) > 1:
        free = ", ".join(axis for axis, size in sizes.items() if size == -1)
        yield f"[mesh] {free}: at most one size may be -1 (whatever is left)"
    else:
        whole = recipe.mesh.whole
        shards = (whole["data"] or 1) * (whole["fsdp"] or 1)
        if problem := check_rows(recipe.batch.rows, recipe.batch.microbatches, shards):
            yield problem
        for problem in refusals(recipe.execution.attention, _attention_task(recipe)):
            yield f'[execution] attention = "{recipe.execution.attention}": {problem}'


def _attention_task(recipe: Recipe) -> Task:
    """What the recipe alone says of its attention, before model and devices are known."""
    sizes = recipe.mesh.whole
    return Task(
        packed=recipe.packed,
        length=recipe.batch.length,
        compute=recipe.execution.compute,
        sequence=sizes["sequence"],
        tensor=sizes["tensor"],
    )


def _sources_as_tables(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with every source that is a plain string as the table that it stands for."""
    data = values.get("data")
    if not isinstance(data, Mapping):
        return dict(values)

    def tables(sources: Any) -> Any:
        if not isinstance(sources, list | tuple):
            return sources
        return [{"path": source} if isinstance(source, str) else source for source in sources]

    lists = {key: tables(data[key]) for key in ("train", "valid") if key in data}
    return {**values, "data": {**data, **lists}}


def _follows(problem: Mapping[str, Any], problems: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a list is only too short because its entries are wrong."""
    size = len(problem["loc"])
    return problem["type"] == "too_short" and any(
        len(other["loc"]) > size and other["loc"][:size] == problem["loc"] for other in problems
    )


_EXPECTED = {
    "dataclass_type": "a table",
    "too_short": "at least one entry",
    "tuple_type": 'a list, such as ["a", "b"]',
    "float_type": "a number",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "string_type": "a text",
    "bool_type": "true or false",
}


def _explain(problem: Mapping[str, Any], recipe: Any) -> str:
    """One of pydantic's findings as a line: section, key, expected, found."""
    *section, name = problem["loc"] or ("recipe",)
    kind = problem["type"]
    place = f"[{'.'.join(map(str, section))}] {name}" if section else f"{name}"
    if kind == "unexpected_keyword_argument":
        known = _known_keys(section, recipe)
        near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else _elsewhere(str(name), recipe)
        return f"{place} is not a known key{hint} (known here: {', '.join(known)})"
    if kind in ("missing", "missing_argument"):
        return f"{place} is missing"
    expected = _EXPECTED.get(kind, problem["msg"].removeprefix("Input should be "))
    return f"{place} = {json.dumps(problem['input'], default=str)}: expected {expected}"


def _known_keys(section: Sequence[Any], recipe: Any) -> list[str]:
    """The keys that the format has in a section."""
    kind: Any = recipe
    for name in section:
        if isinstance(name, int):
            continue
        kind = _table_of(typing.get_type_hints(kind).get(name))
    return [f.name for f in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []


def _table_of(kind: Any) -> Any:
    """The dataclass inside a type such as `Lora | None` or `tuple[str | Source, ...]`."""
    if dataclasses.is_dataclass(kind):
        return kind
    for part in typing.get_args(kind) if not isinstance(kind, types.NoneType) else ():
        if (found := _table_of(part)) is not None:
            return found
    return None


def _elsewhere(name: str, recipe: Any) -> str:
    """Where a key of this name belongs, if it is one of another section."""
    for section in dataclasses.fields(recipe):
        if name in _known_keys([section.name], recipe):
            return f"; it belongs to [{section.name}]"
    return ""


def _apply(values: dict[str, Any], override: str) -> None:
    """Write one "section.key=value" into the values of a file."""
    path, equals, text = override.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not equals or not all(keys):
        raise RecipeError(
            f"--set {override}: expected key=value, such as optimizer.learning_rate=1e-5"
        )
    node = values
    for key in keys[:-1]:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise RecipeError(f"--set {override}: {key} is not a table of the recipe")
    if not text.strip():
        node.pop(keys[-1], None)
        return
    try:
        node[keys[-1]] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        node[keys[-1]] = text.strip()


def plain_values(value: Any) -> Any:
    """Without what is absent (None), tuples as lists: as TOML has it."""
    if isinstance(value, Mapping):
        return {key: plain_values(item) for key, item in value.items() if item is not None}
    return [plain_values(item) for item in value] if isinstance(value, tuple | list) else value


def _leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _leaves(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found
