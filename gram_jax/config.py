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


@dataclass(frozen=True, config=STRICT)
class Run:
    """folder: where everything of the run goes; steps or epochs: exactly one of them.

    max_skipped: so many batches in a row with a non-finite loss or gradient are left out; one more
    stops the run.
    """

    folder: Annotated[str, Field(min_length=1)]
    seed: Count
    steps: Positive | None = None
    epochs: Positive | None = None
    max_skipped: Count = 0


@dataclass(frozen=True, config=STRICT)
class Model:
    """start: name of the weights to begin from; dtype: of the trained master weights."""

    start: Annotated[str, Field(min_length=1)]
    dtype: Dtype


@dataclass(frozen=True, config=STRICT)
class Judge:
    """template: "default", "from-dataset" or a file; labels may be absent with "from-dataset" only.

    system: absent leaves the system turn to the chat format, "" drops it, text replaces it.
    """

    template: Annotated[str, Field(min_length=1)]
    max_length: Positive
    thinking: bool
    labels: tuple[str, str] | None = None
    system: str | None = None


@dataclass(frozen=True, config=STRICT)
class Source:
    """A source of data with settings of its own; a plain string is the path alone."""

    path: Annotated[str, Field(min_length=1)]
    schema: str = "auto"
    split: str | None = None
    limit: Positive | None = None

    @property
    def spec(self) -> SourceSpec:
        """The same for the data room."""
        return SourceSpec(self.path, self.schema, self.split, self.limit)


@dataclass(frozen=True, config=STRICT)
class Data:
    """train, valid: sources, each a path or name, or a table of a Source.

    overlong: what becomes of an example longer than judge.max_length; limit: at most so many
    training records. orders, in stages write and judge: "both" shows a pair in both orders in one
    batch, "hash" in one of them by a hash, "fixed" as the source has it. attack_share, in stage
    judge: of so many of the training pairs the rejected response is an attack (docs/attacks.md).
    """

    train: Annotated[tuple[Source, ...], Field(min_length=1)]
    overlong: Literal["shorten", "drop", "error"]
    on_bad: Literal["error", "skip"]
    valid: tuple[Source, ...] = ()
    schema: str = "auto"
    orders: Literal["both", "hash", "fixed"] | None = None
    limit: Positive | None = None
    attack_share: Annotated[float, Field(ge=0, le=1)] = 0.0


@dataclass(frozen=True, config=STRICT)
class Batch:
    """A step reads `rows` rows of `length` positions, in `microbatches` parts.

    pack: several examples share a row.
    """

    rows: Positive
    length: Annotated[int, Field(ge=2)]
    pack: bool
    microbatches: Positive


@dataclass(frozen=True, config=STRICT)
class Optimizer:
    """AdamW. warmup: a share of the steps if below 1, else a number of steps.

    clip: largest global norm of the gradient, 0 for none. moments, second_moment: how Adam's first
    and second moment are kept (docs/optimizer-memory.md).
    """

    learning_rate: Annotated[float, Field(gt=0)]
    warmup: Annotated[float, Field(ge=0)]
    schedule: Literal["cosine", "linear", "constant"]
    b1: Annotated[float, Field(ge=0, lt=1)]
    b2: Annotated[float, Field(ge=0, lt=1)]
    eps: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    clip: Annotated[float, Field(ge=0)]
    moments: First = "float32"
    second_moment: Second = "float32"


@dataclass(frozen=True, config=STRICT)
class Loss:
    """smoothing: stage judge, torch's label_smoothing.

    chunk: stage write, rows of logits that may exist at once.
    """

    smoothing: Annotated[float, Field(ge=0, lt=1)] | None = None
    chunk: Positive | None = None


@dataclass(frozen=True, config=STRICT)
class Executing:
    """As model/execution.py has it."""

    compute: Dtype
    attention: AttentionBackend
    remat: Remat


@dataclass(frozen=True, config=STRICT)
class Between:
    """Sizes of the mesh axes over slices or hosts; they multiply to the number of these."""

    data: Positive = 1
    fsdp: Positive = 1
    tensor: Positive = 1
    sequence: Positive = 1


@dataclass(frozen=True, config=STRICT)
class Mesh:
    """Sizes of the mesh axes; one may be -1, whatever is left: fsdp, where no other is.

    between: further sizes over slices or hosts, between which the network is slow; an axis is as
    large as both multiplied. Without it all devices are taken as equally near.
    """

    data: int = 1
    fsdp: int | None = None
    tensor: int = 1
    sequence: int = 1
    between: Between = field(default_factory=Between)

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
    """Low-rank adaptation: see model/lora.py."""

    rank: Positive
    alpha: Annotated[float, Field(gt=0)]
    targets: Annotated[tuple[str, ...], Field(min_length=1)]

    @property
    def config(self) -> LoraConfig:
        """The same for the model room."""
        return LoraConfig(self.rank, self.alpha, self.targets)


@dataclass(frozen=True, config=STRICT)
class Evaluate:
    """every: steps between evaluations on data.valid (0: only at the end).

    limit: at most so many records of data.valid.
    """

    every: Count = 0
    limit: Positive | None = None


@dataclass(frozen=True, config=STRICT)
class Checkpoint:
    """every: steps between saves (0: only at the end); keep: how many to keep.

    keep_every: steps whose number is a multiple of it are kept for good as well; 0 for none.
    """

    every: Count = 0
    keep: Positive = 2
    keep_every: Count = 0


@dataclass(frozen=True, config=STRICT)
class Log:
    """every: steps between two lines of metrics.jsonl, which hold means over those steps."""

    every: Positive = 1
    tensorboard: bool = True
    wandb: bool = False


@dataclass(frozen=True, config=STRICT)
class Recipe:
    """A run, complete. stage: "write" (stage 1), "judge" (stage 2) or "rank" (the baseline)."""

    stage: Stage
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

    An override's value is TOML (`data.train=["a.jsonl"]`); a bare word is a string, and an empty
    value removes the key. Raises RecipeError for a file that cannot be read, an unknown key (naming
    the nearest known one), a missing key, a value of the wrong type or range, and values that do
    not go together.
    """
    values, where = read_values(path, overrides)
    return make_recipe(values, where)


def read_values(path: str | Path, overrides: Sequence[str]) -> tuple[dict[str, Any], str]:
    """The values of a TOML file with overrides, and what to call them in messages. Raises RecipeError."""
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(
            f"recipe {str(path)!r} cannot be read: {error.strerror or error}"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not a TOML file: {error}") from error
    for override in overrides:
        _apply(values, override)
    return values, str(path) + (f" with --set {' --set '.join(overrides)}" if overrides else "")


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


def _cross_checks(recipe: Recipe) -> Iterator[str]:
    """Everything about a recipe that no single value shows."""
    run, optimizer, stage = recipe.run, recipe.optimizer, recipe.stage
    if (run.steps is None) == (run.epochs is None):
        found = "both" if run.steps is not None else "neither"
        yield f"[run] needs exactly one of steps and epochs; found {found}"
    needed = {"write": {"loss.chunk", "data.orders"}, "judge": {"loss.smoothing", "data.orders"}}
    for key in ("loss.chunk", "loss.smoothing", "data.orders"):
        section, name = key.split(".")
        given = getattr(getattr(recipe, section), name) is not None
        wanted = key in needed.get(stage, set())
        if wanted and not given:
            yield f'[{section}] {name} is missing: stage "{stage}" needs it'
        if given and not wanted:
            yield f'[{section}] {name} means nothing in stage "{stage}": remove it'
    if recipe.data.attack_share and stage != "judge":
        yield f'[data] attack_share means nothing in stage "{stage}": remove it'
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
    saves = recipe.checkpoint
    if saves.keep_every and (not saves.every or saves.keep_every % saves.every):
        found = f"every = {saves.every}" if saves.every else "every = 0 (saves only at the end)"
        yield (
            f"[checkpoint] keep_every = {saves.keep_every}: expected a multiple of every, whose "
            f"steps are the ones that are saved; found {found}"
        )
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
