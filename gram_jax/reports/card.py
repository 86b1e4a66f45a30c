"""The model card of an exported model: README.md with front matter for the Hugging Face hub."""

import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gram_jax.checkpoint.manifest import has_manifest, renew_entry, verify
from gram_jax.distributed.lock import file_lock, hold_lock
from gram_jax.errors import ReportError
from gram_jax.evals.calibration import why_unusable
from gram_jax.evals.identity import fingerprint_as, number_format
from gram_jax.evals.results import SourceResult, TemperatureFit
from gram_jax.evals.tables import Table
from gram_jax.files import expand_user, write_atomic
from gram_jax.formatting import NONE, format_figure
from gram_jax.interop.hub import CARD, HubResult, front_matter, push_folder
from gram_jax.interop.models import has_scalar_head, load_spec, model_config
from gram_jax.interop.resolve import resolve_model
from gram_jax.judge.spec import JudgeSpec
from gram_jax.recipes.rl import RlRecipe
from gram_jax.recipes.tables import Recipe
from gram_jax.reports.loading import ModelResults, last_part, numbered, read_folders
from gram_jax.reports.provenance import Origin, StageRun, find_origin
from gram_jax.reports.report import render, tidy
from gram_jax.reports.text import visible

logger = logging.getLogger(__name__)

TAGS = ("reward-model", "rlhf", "gram", "gram_jax")
GENERATIVE = ("generative-reward-model", "llm-as-a-judge")  # more tags, of a judge with verdicts
STAGES = {
    "pretrain": "1: writing both responses",
    "finetune": "2: judging",
    "rationale": "2: judging, with rationales",
    "bradley_terry": "ranking (baseline)",
    "rl": "reinforcement learning",
}
MARK = re.compile(r"\n<!-- gram_jax card ([0-9a-f]{16}): .* -->\n*\Z")


@dataclass(frozen=True)
class CardOptions:
    """The options of `gram-jax card`.

    run: the run that the model was exported from; evaluations: folders of results; license, base, datasets: names on
    the hub; push: repository to push to; public: make it public; overwrite: replace a card that gram_jax did not write.
    """

    run: Path | None = None
    evaluations: tuple[Path, ...] = ()
    license: str | None = None
    base: str | None = None
    datasets: tuple[str, ...] = ()
    push: str | None = None
    public: bool = False
    overwrite: bool = False


def write_card(folder: Path, options: CardOptions) -> Path:
    """Write the card of an exported model, and push the folder if a repository is given.

    Raises ReportError if the folder is not an exported judge, if results or the run are of another judge or other
    weights, if gram_jax did not write the existing card, or if `push` is set and no licence is known. Raises
    CheckpointError if a file is damaged or the hub rejects the push, InUseError if another process writes the folder.
    """
    folder = expand_user(folder, error=ReportError)
    spec = _spec(folder)
    with hold_lock(file_lock(folder.absolute()), error=ReportError):
        return _write_card(folder, spec, options)


def _write_card(folder: Path, spec: JudgeSpec, options: CardOptions) -> Path:
    if has_manifest(folder):  # else the card would describe, and record as intact, what was damaged
        verify(folder, wanted=lambda name: name != CARD)
    found = read_folders(options.evaluations)
    _check_results(folder, spec, found)
    origin = find_origin(
        options.run,
        base=options.base,
        license=options.license,
        datasets=options.datasets,
        judge=spec.hash,
    )
    card = folder / CARD
    there = card.read_text(encoding="utf-8", errors="replace") if card.exists() else None
    if there is not None and not options.overwrite and not is_ours(there):
        raise ReportError(
            f"{card} was not written by gram_jax, or was changed since: --overwrite replaces it"
        )
    if origin.license is None:
        missing = "no licence is known: give --license, in the hub's words, such as apache-2.0"
        if options.push:
            raise ReportError(f"{folder} is not pushed: {missing}")
        logger.warning(missing)
    write_atomic(card, make_card(folder, spec, origin, found, options.push), error=ReportError)
    renew_entry(folder, CARD)
    logger.info("%s", card)
    if options.push:
        if has_manifest(folder):
            verify(folder)
        address = push_folder(
            folder,
            options.push,
            public=options.public,
            message="A judge made with gram_jax",
            replaceable=lambda text: options.overwrite or is_ours(text),
        )
        logger.info("%s", address)
    return card


def _check_results(folder: Path, spec: JudgeSpec, found: Sequence[ModelResults]) -> None:
    """Raises ReportError for results of another judge or other weights; loads weights once per number format."""
    ours: dict[tuple[str, str], str] = {}
    for one in found:
        if one.about.judge != spec.hash:
            raise ReportError(
                f"{one.folder} holds results of a judge with another specification (judge {one.about.judge[:12]}, "
                f"that of {folder} is {spec.hash[:12]}): evaluate this model"
            )
        for file in filter(None, (one.evaluation, one.attack)):
            held = number_format(file.settings)
            if held not in ours:
                ours[held] = fingerprint_as(folder, file.settings)
            if ours[held] != file.fingerprint:
                raise ReportError(
                    f"{one.folder} holds results of {file.model}, whose weights are not those of {folder}, by another "
                    f"training or by rounding: evaluate {folder} itself"
                )


def _spec(folder: Path) -> JudgeSpec:
    source = resolve_model(folder)
    if source.kind != "folder":
        raise ReportError(
            f"{folder} is a {source.kind}, a card belongs to an exported model: gram-jax convert {folder} NEW_FOLDER"
        )
    spec = load_spec(folder)
    if spec is None:
        raise ReportError(
            f"{folder} has no judge.json, which states its prompt and labels: `gram-jax spec` writes one"
        )
    return spec


def is_ours(text: str) -> bool:
    """Whether a card is unchanged since `make_card` wrote it."""
    found = MARK.search(text)
    return found is not None and found[1] == _digest(text[: found.start()])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def make_card(
    folder: Path, spec: JudgeSpec, origin: Origin, found: Sequence[ModelResults], repo: str | None
) -> str:
    """The text of the card with front matter. repo: its repository on the hub, None for a local folder."""
    name, scalar = (repo or folder.resolve().name).split("/")[-1], has_scalar_head(folder)
    head = front_matter(
        name,
        list(_hub_results(found, origin)),
        license=origin.license,
        base_model=origin.base,
        datasets=list(origin.datasets) or None,
        library_name="transformers",
        pipeline_tag="text-classification" if scalar else "text-generation",
        tags=[*TAGS, *(() if scalar else GENERATIVE)],
    )
    last = origin.stages[-1] if origin.stages else None
    cfg = model_config(folder)
    body = render(
        "card.md.j2",
        name=name,
        scalar=scalar,
        place=repo or folder.resolve().name,
        spec=spec,
        labels=tuple(label.strip() for label in spec.labels),
        size=f"{cfg.layers} layers of width {cfg.embed_size}",
        origin=origin,
        foundation=last is not None and last.stage == "pretrain",
        smoothing=last.smoothing if last is not None else None,
        results=_named(found),
        training=_training(origin),
        calibration=[
            (name + suffix, _advice(source.calibration.temperature))
            for suffix, name, source in _sources(found)
        ],
    )
    text = f"{head}\n{tidy(body)}".rstrip("\n")
    note = 'written by "gram-jax card", which replaces it unless it was edited'
    return f"{text}\n<!-- gram_jax card {_digest(text)}: {note} -->\n"


def _hub_results(found: Sequence[ModelResults], origin: Origin) -> Iterator[HubResult]:
    """The metrics for the index of the hub, which shows the first one as the result."""
    for suffix, name, source in _sources(found):
        dataset = origin.hub_dataset(source.source) or visible(name)
        # Only the first metric of a best-of-n set is a share; the others have the unit of the grades.
        figures = source.official[: 1 if source.benchmark == "best_of_n" else None]
        metrics = [(visible(figure.name), figure.value) for figure in figures]
        of = "accuracy over pairs of responses" if source.ranks else "accuracy"
        pairs = (f"{of}, both orders averaged", source.pairs.accuracy)
        metrics.insert(len(metrics) if source.ranks else 0, pairs)
        for metric, value in metrics:
            yield HubResult(dataset, visible(name), metric + suffix, value)


def _named(found: Sequence[ModelResults]) -> list[tuple[str, ModelResults]]:
    """Results with the last part of their folder's path, "" for a single folder; a card shows no paths."""
    if len(found) < 2:
        return [("", one) for one in found]
    names = numbered([visible(last_part(one.folder)) for one in found])
    return list(zip(names, found, strict=True))


def _sources(found: Sequence[ModelResults]) -> Iterator[tuple[str, str, SourceResult]]:
    """(" (FOLDER)" or "", name, source) of every source."""
    for folder, one in _named(found):
        for name, source in one.sources.items():
            yield f" ({folder})" if folder else "", name, source


def _advice(fit: TemperatureFit | None) -> str:
    if fit is None:
        return "no temperature could be fitted"
    if why := why_unusable(fit):
        return why
    value = format_figure(fit.value, 2)
    return (
        f"divide the log-odds by {value}, P = 1 / (1 + exp(-margin / {value})). On pairs that it was not fitted on "
        f"the ECE is then {format_figure(fit.ece_after)}, {format_figure(fit.ece_before)} without"
    )


def _training(origin: Origin) -> Table | None:
    """A table with one column per run; None if no run is known."""
    if not origin.stages:
        return None
    columns = tuple(STAGES[stage.stage] for stage in origin.stages)
    described = [_describe(stage, origin) for stage in origin.stages]
    names = dict.fromkeys(name for one in described for name in one)
    rows = tuple((name, *(one.get(name, NONE) for one in described)) for name in names)
    return Table("Stages", ("", *columns), rows, prose=frozenset(range(1, len(columns) + 1)))


def _describe(stage: StageRun, origin: Origin) -> dict[str, str]:
    """Properties of a run by name: its recipe, then its data."""
    recipe, optimizer = stage.recipe, stage.recipe.optimizer
    length = f"{stage.info['steps']:,} steps" if "steps" in stage.info else "not begun"
    rows = {
        "began with": origin.shown_model(stage.start),
        "data": ", ".join(map(origin.shown_source, stage.sources)),
        "length": length + ("" if stage.info.get("finished") else ", not finished"),
        "batch": _batch(recipe),
        "learning rate": f"{optimizer.learning_rate:g}, {optimizer.lr_scheduler_type}",
        "seed": str(recipe.run.seed),
        "computed in": recipe.execution.compute_dtype,
    }
    if stage.smoothing is not None:
        rows["label smoothing"] = f"{stage.smoothing:g}"
    if isinstance(recipe, RlRecipe):
        judge = recipe.reward.judge
        rows["algorithm"] = (
            f"{recipe.algorithm.kind}, weight of the KL divergence {recipe.algorithm.kl_coef:g}"
        )
        rows["reward"] = "the labels" if judge is None else origin.shown_model(judge)
    elif recipe.data.position_augmentation is not None:
        rows["orders of showing"] = recipe.data.position_augmentation
    if recipe.lora is not None:
        rows["weights trained"] = f"LoRA of rank {recipe.lora.rank}, merged"
    if data := stage.info.get("data"):  # present after the start of the run
        rows |= {
            "rows read": f"{data['rows_read']:,}",
            "left out": ", ".join(f"{n:,} {why}" for why, n in data["dropped"].items()) or "none",
            "examples": f"{data['examples']:,} in {data['documents']:,} documents",
            "shortened": f"{data['shortened']:,}",
            "tokens": f"{data['tokens']:,}",
            "tokens of a document": f"mean {data['mean_length']:.0f}, median {data['median_length']:.0f}, "
            f"longest {data['max_length']:,}",
        }
        if data["first_share"] is not None:
            rows["first is the better one"] = format_figure(data["first_share"], 2)
    return rows


def _batch(recipe: Recipe | RlRecipe) -> str:
    if isinstance(recipe, Recipe):
        return f"{recipe.batch.batch_size} rows of {recipe.batch.max_length} tokens"
    sampling = recipe.sampling
    return (
        f"{sampling.num_generations} responses of at most {sampling.max_new_tokens} tokens to each of "
        f"{sampling.prompts_per_step} prompts"
    )
