"""The card of an exported model: README.md with front matter, as the Hugging Face hub reads it."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gram_jax.checkpoint.manifest import has_manifest, renew_entry, verify
from gram_jax.console import Console
from gram_jax.errors import ReportError
from gram_jax.evals.folder import fingerprint_as
from gram_jax.evals.same_judge import HELD
from gram_jax.files import write_atomic
from gram_jax.interop.hub import CARD, HubResult, front_matter, push_folder
from gram_jax.interop.models import load_spec, model_config
from gram_jax.interop.resolve import resolve_model
from gram_jax.judge.spec import JudgeSpec
from gram_jax.reports import attacked, tables
from gram_jax.reports.concerns import concerns, no_use_of
from gram_jax.reports.document import Block, Section, Table
from gram_jax.reports.evidence import Evidence, last_part, read_evidence
from gram_jax.reports.provenance import (
    Origin,
    Stage,
    find_origin,
    hub_dataset,
    shown_source,
    shown_start,
)
from gram_jax.reports.render import render_card
from gram_jax.reports.schema import Temperature
from gram_jax.reports.words import number, visible

TAGS = ("reward-model", "generative-reward-model", "llm-as-a-judge", "rlhf", "gram", "gram_jax")
STAGES = {
    "pretrain": "1: writing both responses",
    "finetune": "2: judging",
    "bradley_terry": "ranking (baseline)",
}
MARK = re.compile(r"\n<!-- gram_jax card ([0-9a-f]{16}): .* -->\n*\Z")


@dataclass(frozen=True)
class CardWishes:
    """What a user adds to what is found.

    run: the run that the model was exported from; evaluations: folders of results; license, base: in the hub's words;
    push: a repository, public: for everyone to see; overwrite: a card of somebody's too.
    """

    run: Path | None = None
    evaluations: tuple[Path, ...] = ()
    license: str | None = None
    base: str | None = None
    push: str | None = None
    public: bool = False
    overwrite: bool = False


def write_card(folder: Path, wishes: CardWishes, console: Console) -> Path:
    """Write the card of an exported model, and push the folder where that is wished.

    Raises ReportError where the folder is no exported judge, results are of another judge or of other weights, the run
    is of another judge, the card that is there is somebody's, or a model is to be pushed whose licence is not known;
    CheckpointError for what the hub refuses.
    """
    folder = folder.expanduser()
    spec = _spec(folder)
    found = read_evidence(wishes.evaluations)
    _check_judge(folder, spec, found)
    _check_weights(folder, found)
    origin = find_origin(wishes.run, wishes.base, wishes.license, spec.hash)
    card = folder / CARD
    if card.exists() and not wishes.overwrite and not is_ours(card.read_text(encoding="utf-8")):
        raise ReportError(
            f"{card} was not written by gram_jax, or was changed since: --overwrite replaces it"
        )
    if origin.license is None:
        missing = "no licence is known: give --license, in the hub's words, such as apache-2.0"
        if wishes.push:
            raise ReportError(f"{folder} is not pushed: {missing}")
        console.warn(missing)
    write_atomic(card, make_card(folder, spec, origin, found, wishes.push), error=ReportError)
    renew_entry(folder, CARD)
    console.say(str(card))
    if wishes.push:
        if has_manifest(folder):
            verify(folder)
        address = push_folder(
            folder,
            wishes.push,
            public=wishes.public,
            message="A judge made with gram_jax",
            replaceable=lambda text: wishes.overwrite or is_ours(text),
        )
        console.say(address)
    return card


def _check_judge(folder: Path, spec: JudgeSpec, found: Sequence[Evidence]) -> None:
    """Raises ReportError for results of a judge that is asked in another way."""
    for one in found:
        if one.about.judge != spec.hash:
            raise ReportError(
                f"{one.folder} holds results of a judge that is asked in another way (judge {one.about.judge[:12]}, "
                f"that of {folder} is {spec.hash[:12]}): evaluate this model"
            )


def _check_weights(folder: Path, found: Sequence[Evidence]) -> None:
    """Raises ReportError for results of other weights; the model is loaded once for each way of holding them."""
    ours: dict[str, str] = {}
    for place, one in ((x.folder, file) for x in found for file in (x.evaluation, x.attack)):
        if one is None:
            continue
        held = str([one.settings.get(key) for key in HELD])
        if held not in ours:
            ours[held] = fingerprint_as(folder, one.settings)
        if ours[held] != one.fingerprint:
            raise ReportError(
                f"{place} holds results of {one.model}, whose weights are not those of {folder}, by another training "
                f"or by rounding: evaluate {folder} itself"
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
            f"{folder} has no judge.json, so nobody can say how it is to be asked: `gram-jax spec` writes one"
        )
    return spec


def is_ours(text: str) -> bool:
    """Whether a card is as `make_card` made it; one that was changed by hand is not."""
    found = MARK.search(text)
    return found is not None and found.group(1) == _digest(text[: found.start()])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def make_card(
    folder: Path, spec: JudgeSpec, origin: Origin, found: Sequence[Evidence], repo: str | None
) -> str:
    """The card's text, front matter and all. repo: where it will stand on the hub, None for a folder of its own."""
    name = (repo or folder.resolve().name).split("/")[-1]
    head = front_matter(
        name,
        list(_results(found)),
        license=origin.license,
        base_model=origin.base,
        datasets=list(origin.datasets) or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=list(TAGS),
    )
    last = origin.stages[-1].recipe if origin.stages else None
    cfg = model_config(folder)
    body = render_card(
        name=name,
        place=repo or folder.resolve().name,
        pushed=repo is not None,
        spec=spec,
        labels=tuple(label.strip() for label in spec.labels),
        size=f"{cfg.layers} layers of width {cfg.embed_size}",
        origin=origin,
        foundation=last is not None and last.stage == "pretrain",
        smoothing=last.loss.label_smoothing if last is not None else None,
        evaluated=list(_evaluated(found)),
        training=list(_training(origin.stages)),
        calibration=list(_calibration(found)),
    )
    text = f"{head}\n{body}".rstrip("\n")
    note = 'written by "gram-jax card", which replaces it as long as nobody changes it'
    return f"{text}\n<!-- gram_jax card {_digest(text)}: {note} -->\n"


def _results(found: Sequence[Evidence]) -> Iterable[HubResult]:
    for folder, one in _named(found):
        where = f" ({folder})" if folder else ""
        for name, source in one.evaluation.sources.items() if one.evaluation else ():
            place = (hub_dataset(source.source, one.folder) or visible(name), visible(name))
            # The first figure of a best-of-n set is a share; grades have units of their own.
            averages = source.official[: 1 if source.benchmark == "best_of_n" else None]
            told = [(visible(average.name), average.value) for average in averages]
            if source.pairs is not None:
                of = "accuracy over pairs of responses" if source.ranks else "accuracy"
                pairs = (f"{of}, both orders averaged", source.pairs.accuracy)
                # The first one is what a reader of the index takes for the result.
                told.insert(len(told) if source.ranks else 0, pairs)
            for what, value in told:
                yield HubResult(*place, what + where, value)


def _named(found: Sequence[Evidence]) -> list[tuple[str, Evidence]]:
    """Results under the last part of their folder's path, "" where there is one folder only.

    Where it lies on somebody's disk is nobody's business, and neither is the path of the model.
    """
    if len(found) < 2:
        return [("", one) for one in found]
    names = [visible(last_part(one.folder)) for one in found]
    if len(set(names)) < len(names):
        names = [f"{name}, {at}" for at, name in enumerate(names, 1)]
    return list(zip(names, found, strict=True))


def _evaluated(found: Sequence[Evidence]) -> Iterable[Block]:
    """Figures and concerns of every folder of results."""
    for folder, one in _named(found):
        if folder:
            yield Section(folder, tuple(_figures(one)))
        else:
            yield from _figures(one)


def _figures(one: Evidence) -> Iterable[Block]:
    if one.evaluation is not None:
        yield tables.overview(one.evaluation)
    if (known := concerns(one)) is not None:
        yield known
    for name, source in one.evaluation.sources.items() if one.evaluation else ():
        if (averages := tables.official(source.official)) is not None:
            yield Section(visible(name), (averages,))
    if one.attack is not None:
        shown = (attacked.left_alone(one.attack), *attacked.tables(one.attack))
        yield Section("Attacks", shown)


def _calibration(found: Sequence[Evidence]) -> Iterable[tuple[str, str]]:
    """(source, what makes its probabilities mean what they say) of every source where that was measured."""
    for folder, one in _named(found):
        for name, source in one.evaluation.sources.items() if one.evaluation else ():
            if source.calibration is not None:
                about = f"{visible(name)} ({folder})" if folder else visible(name)
                yield about, _advice(source.calibration.temperature)


def _advice(fitted: Temperature | None) -> str:
    if fitted is None:
        return "no temperature could be fitted"
    if useless := no_use_of(fitted):
        return useless
    value = number(fitted.value, 2)
    return (
        f"divide the log-odds by {value}, P = 1 / (1 + exp(-margin / {value})). On pairs that it was not fitted on "
        f"the ECE is {number(fitted.ece_after)} then, {number(fitted.ece_before)} without"
    )


def _training(stages: Sequence[Stage]) -> Iterable[Block]:
    if stages:
        columns = tuple(STAGES[stage.recipe.stage] for stage in stages)
        described = [_describe(stage) for stage in stages]
        names = dict.fromkeys(name for one in described for name in one)
        rows = tuple((name, *(one.get(name, "–") for one in described)) for name in names)
        prose = frozenset(range(1, len(columns) + 1))
        yield Table("Stages", ("", *columns), rows, prose=prose)


def _describe(stage: Stage) -> dict[str, str]:
    """What a run did, by name: its recipe, then its data."""
    recipe, optimizer = stage.recipe, stage.recipe.optimizer
    length = f"{stage.info['steps']:,} steps" if "steps" in stage.info else "not begun"
    told = {
        "began with": visible(shown_start(stage)),
        "data": ", ".join(
            visible(shown_source(source.path, stage.folder)) for source in recipe.data.train
        ),
        "length": length + ("" if stage.info.get("finished") else ", not finished"),
        "batch": f"{recipe.batch.batch_size} rows of {recipe.batch.max_length} tokens",
        "learning rate": f"{optimizer.learning_rate:g}, {optimizer.lr_scheduler_type}",
        "seed": str(recipe.run.seed),
        "computed in": recipe.execution.compute_dtype,
    }
    if recipe.loss.label_smoothing is not None:
        told["label smoothing"] = f"{recipe.loss.label_smoothing:g}"
    if recipe.data.position_augmentation is not None:
        told["orders of showing"] = recipe.data.position_augmentation
    if recipe.lora is not None:
        told["weights trained"] = f"LoRA of rank {recipe.lora.rank}, merged"
    return told | _describe_data(stage.info.get("data"))


def _describe_data(data: Any) -> dict[str, str]:
    """The data report of run.json; nothing where a run of an older version has none."""
    if not isinstance(data, dict):
        return {}
    told = {
        "rows read": f"{data['rows_read']:,}",
        "left out": ", ".join(f"{n:,} {visible(why)}" for why, n in data["dropped"].items())
        or "none",
        "examples": f"{data['examples']:,} in {data['documents']:,} documents",
        "shortened": f"{data['shortened']:,}",
        "tokens": f"{data['tokens']:,}",
        "tokens of a document": f"mean {data['mean_length']:.0f}, median {data['median_length']:.0f}, "
        f"longest {data['max_length']:,}",
    }
    if data["first_share"] is not None:
        told["first is the better one"] = number(data["first_share"], 2)
    return told
