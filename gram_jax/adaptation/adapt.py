"""`gram-jax adapt`: a foundation judge becomes the judge of a task, from a small labeled set.

The prompts are divided into three parts: what is trained on, what chooses the epoch (the judge as it came among the
candidates) and fits a temperature, and what the result is measured on, before and after. docs/adapt.md has the files.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from scipy.special import expit

from gram_jax.checkpoint.orbax import complete_steps
from gram_jax.console import Console
from gram_jax.data.batches import make_batches
from gram_jax.data.comparison import Comparison
from gram_jax.errors import DataError, GramError, StoppedError
from gram_jax.evals.calibration import (
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
)
from gram_jax.evals.datasets import EvalDataset, read_dataset
from gram_jax.evals.evaluate import EvaluationFolder, make_folder
from gram_jax.evals.intervals import BootstrapTable, mean_score
from gram_jax.evals.paired import paired_gain
from gram_jax.evals.pairwise import PairVerdicts, verdicts_on
from gram_jax.evals.scores import OutputSink, score_pairs
from gram_jax.files import write_json
from gram_jax.hashing import stable_hash
from gram_jax.interop.hf_export import export_hf
from gram_jax.interop.models import load_model, load_spec, load_tokenizer
from gram_jax.judge.messages import Prompt
from gram_jax.judge.spec import JudgeSpec
from gram_jax.model.config import ModelConfig
from gram_jax.model.lora import NUM_CONTRACTED_DIMS
from gram_jax.recipes.reading import make_recipe
from gram_jax.recipes.tables import Recipe
from gram_jax.run.verify import CHECKPOINTS
from gram_jax.scoring.scorer import Scorer
from gram_jax.sharding import make_placement
from gram_jax.training.loop import train
from gram_jax.training.setup import training_examples

Method = Literal["lora", "full"]
FULL_RATE = 3e-5  # as in stage 2
STEPS = 40  # of an epoch, about: few labels want many small steps
MOST_ROWS = 8  # of a step, where the settings do not say
LEAST = 10  # pairs in each part; with fewer nothing can be chosen and nothing measured
PARTS = ("train", "choose", "test")
FILE = "adaptation.json"


@dataclass(frozen=True)
class AdaptConfig:
    """How a judge is adapted.

    patience: number of epochs without a new least loss on the selection split after which training ends; 0: never.
    held_out: share of the prompts in each of the two splits that are not trained on. learning_rate: at its peak, None:
    `default_rate`. batch_size: rows of a step, rounded up to a multiple of the devices; None: about 40 steps an epoch,
    at most 8 rows. max_length: tokens of a row.
    """

    method: Method = "lora"
    num_train_epochs: int = 3
    patience: int = 1
    learning_rate: float | None = None
    label_smoothing: float = 0.1
    lora_rank: int = 16
    held_out: float = 0.2
    batch_size: int | None = None
    max_length: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises DataError for shares that leave nothing to train on, and for other values out of range."""
        if not 0 < self.held_out < 0.5:
            raise DataError(
                f"held_out = {self.held_out}: expected a share above 0 and below 0.5; it is kept twice"
            )
        if not 0 <= self.label_smoothing < 1 or self.num_train_epochs < 1 or self.patience < 0:
            raise DataError(
                "expected label_smoothing from 0 to below 1, at least one epoch, and a patience of 0 or more"
            )


@dataclass(frozen=True)
class Choice:
    """Which step of the training is taken; better: than the judge as it came.

    losses: {step: loss where it is chosen}, 0 for the judge as it came.
    """

    step: int
    better: bool
    temperature: float
    losses: Mapping[int, float]


class NotBetterError(GramError):
    """No epoch was better than the judge as it came; the report is written, nothing is exported."""


def default_rate(method: Method, cfg: ModelConfig) -> float:
    """Peak learning rate. LoRA's falls with the width D of the model: 5e-4 (2000 / D) ** p.

    p is 0.781 for Llama's family and 0.0775 for Qwen's, as fitted over many models at alpha 32 by J. Schulman and
    Thinking Machines Lab (LoRA Without Regret, 2025, and the documentation of Tinker). Here alpha is twice the rank, 32
    at the default one; other models of Llama's class go by its fit. docs/adapt.md tries width 576.

    >>> from gram_jax.interop.models import model_config
    >>> default_rate("full", model_config("tiny-random"))
    3e-05
    """
    if method == "full":
        return FULL_RATE
    power = 0.781 if cfg.family == "llama" else 0.0775
    return 5e-4 * (2000 / cfg.embed_size) ** power


def split(records: Sequence[Comparison], held_out: float, seed: int) -> dict[str, list[Comparison]]:
    """Records by part: all of a prompt lie in one, by a hash of (seed, prompt).

    Raises DataError where a part has fewer than 10 pairs.
    """
    edges = (held_out, 2 * held_out)
    parts: dict[str, list[Comparison]] = {part: [] for part in PARTS}
    for record in records:
        at = stable_hash(seed, _text(record.prompt), "part") / 2**64
        parts["test" if at < edges[0] else "choose" if at < edges[1] else "train"].append(record)
    sizes = ", ".join(f"{part} {len(members)}" for part, members in parts.items())
    if min(map(len, parts.values())) < LEAST:
        raise DataError(
            f"{len(records)} labeled pairs give {sizes}: expected at least {LEAST} in each part. All pairs of a prompt "
            "lie in one part, so many pairs of few prompts do not help; take more pairs, or another --held-out"
        )
    return parts


def adapt(
    model: str,
    source: str,
    out: Path,
    settings: AdaptConfig,
    *,
    compute: Literal["auto", "float32", "bfloat16"] = "auto",
    schema: str = "auto",
    on_bad: Literal["error", "skip"] = "error",
    spec: JudgeSpec | None = None,
    accept: bool = False,
    console: Console,
) -> dict[str, Any]:
    """Adapt a judge; returns what adaptation.json holds. Started again after an interruption, it goes on.

    accept: export the best epoch also where the judge as it came was better. Raises NotBetterError where it was and
    accept is not set, DataError for data that cannot be used, and what training raises.
    """
    make_folder(out)
    work = read_dataset(source, "pairs", schema=schema, on_bad=on_bad)
    parts = split(work.records, settings.held_out, settings.seed)
    console.say(_rows_read(work))
    judge = Scorer.load(model, compute=compute, spec=spec)
    files = {part: _write(out / "data" / f"{part}.jsonl", parts[part]) for part in PARTS}
    recipe, ends = _recipe(model, judge, files["train"], out, settings)
    tested = EvalDataset(str(files["test"]), "pairs", parts["test"], work.read)

    def measured(scorer: Scorer, name: str) -> PairVerdicts:
        folder = EvaluationFolder(out / name, scorer, name, progress=console.progress)
        return folder.add(tested)[1]

    def on_choose(scorer: Scorer) -> np.ndarray:
        to = OutputSink(progress=console.progress)
        scores = score_pairs(scorer, model, str(files["choose"]), parts["choose"], to)
        return verdicts_on(parts["choose"], scores).margin

    before = measured(judge, "before")
    as_it_came = negative_log_likelihood(on_choose(judge))
    del judge  # its weights make room for training

    def at(step: int) -> Scorer:
        return Scorer.load(f"{recipe.run.output_dir}@{step}", compute=compute)

    margins: dict[int, np.ndarray] = {}
    for end in ends:
        if end not in complete_steps(Path(recipe.run.output_dir) / CHECKPOINTS):
            _train(recipe, end, console)
        margins[end] = on_choose(at(end))
        if _waited_enough(margins, settings.patience):
            break
    choice = _choose(margins, as_it_came)
    after = measured(at(choice.step), "after")
    result = {
        "format": 1,
        "model": model,
        "source": source,
        "settings": asdict(settings),
        "rows": work.read.rows,
        "left_out": _left_out(work),
        "pairs": {part: len(members) for part, members in parts.items()},
        "choosing": {"loss": {str(at): x for at, x in choice.losses.items()}, "step": choice.step},
        "better_where_chosen": choice.better,
        "temperature": choice.temperature,
        "test": _compared(before, after, choice.temperature),
        "exported": None,
    }
    write_json(out / FILE, result, error=DataError)
    if not choice.better and not accept:
        raise NotBetterError(
            f"no epoch is better than {model} as it came: its loss on the {len(parts['choose'])} pairs that choose is "
            f"{as_it_came:.4f}, the best epoch's {choice.losses[choice.step]:.4f}. Nothing is exported; {out / FILE} "
            "has the figures. Try more pairs, another learning rate or fewer epochs; --accept exports the best epoch "
            "all the same"
        )
    result["exported"] = str(_export(recipe.run.output_dir, choice.step, out / "judge"))
    write_json(out / FILE, result, error=DataError)
    for doubt in doubts(result):
        console.warn(doubt)
    return result


def _left_out(work: EvalDataset) -> dict[str, int]:
    """Rows of the source that are no labeled pair to learn from, by reason."""
    ties = {"tie": work.skipped_ties} if work.skipped_ties else {}
    return {**work.read.dropped, **ties}


def _rows_read(work: EvalDataset) -> str:
    out = ", ".join(f"{count} {why}" for why, count in _left_out(work).items())
    return f"{work.source}: {work.read.rows} rows read, {len(work.records)} labeled pairs, left out: {out or 'none'}"


def _train(recipe: Recipe, until: int, console: Console) -> None:
    try:
        train(recipe, progress=console.progress, stop_at_step=until)
    except StoppedError as stopped:  # its own advice would train all epochs and choose none
        raise StoppedError(
            "stopped in training, what was done is saved: the same command goes on from there",
            stopped.status,
        ) from stopped


def _waited_enough(margins: Mapping[int, np.ndarray], patience: int) -> bool:
    """Whether the last `patience` epochs, from {step: margins of the chosen responses}, brought no new least loss."""
    losses = [negative_log_likelihood(found) for found in margins.values()]
    return 0 < patience < len(losses) and min(losses[-patience:]) >= min(losses[:-patience])


def _choose(margins: Mapping[int, np.ndarray], as_it_came: float) -> Choice:
    """The step with the least loss, from {step: margins of the chosen responses}."""
    losses = {step: negative_log_likelihood(found) for step, found in margins.items()}
    best = min(losses, key=losses.__getitem__)
    temperature = fit_temperature(margins[best])
    return Choice(best, losses[best] < as_it_came, temperature, {0: as_it_came, **losses})


def _export(run: str, step: int, folder: Path) -> Path:
    """The judge of a step as a Hugging Face folder."""
    one = make_placement({}, devices=jax.devices()[:1])
    cfg, params = load_model(f"{run}@{step}", one, None)
    tokenizer, spec = load_tokenizer(run), load_spec(run)
    return export_hf(
        folder, cfg, params, dtype=None, tokenizer=tokenizer, spec=spec, overwrite=True
    )


def _recipe(
    model: str, judge: Scorer, train_file: Path, out: Path, settings: AdaptConfig
) -> tuple[Recipe, list[int]]:
    """(the recipe of the training, the steps at which its epochs end); a checkpoint is kept of each."""
    spec, devices = judge.spec, jax.device_count()
    length = max(settings.max_length, spec.max_length)
    template = out / "data" / "template.txt"
    template.write_text(spec.template, encoding="utf-8")
    rank = {
        "rank": settings.lora_rank,
        "alpha": 2.0 * settings.lora_rank,
        "target_modules": list(NUM_CONTRACTED_DIMS),
    }
    values: dict[str, Any] = {
        "stage": "finetune",
        "run": {
            "output_dir": str(out / "run"),
            "seed": settings.seed,
            "num_train_epochs": settings.num_train_epochs,
        },
        "model": {"name_or_path": model, "param_dtype": "float32"},
        "judge": {
            "template": str(template),
            "labels": list(spec.labels),
            "max_length": spec.max_length,
            "thinking": spec.thinking,
        }
        | ({} if spec.system is None else {"system": spec.system}),
        "data": {
            "train": [str(train_file)],
            "schema": "trl-conversational",
            "position_augmentation": "both",
            "overlong": "truncate",
            "on_bad": "error",
        },
        "batch": {
            "batch_size": devices,
            "max_length": length,
            "packing": True,
            "gradient_accumulation_steps": 1,
        },
        "optimizer": {
            "learning_rate": settings.learning_rate
            if settings.learning_rate is not None
            else default_rate(settings.method, judge.cfg),
            "warmup_steps": 0.1,
            "lr_scheduler_type": "cosine",
            "b1": 0.9,
            "b2": 0.999,
            "eps": 1e-8,
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
        },
        "loss": {"label_smoothing": settings.label_smoothing},
        "execution": {
            "compute_dtype": judge.execution.compute,
            "attention": "auto",
            "remat": "dots",
        },
        "log": {"tensorboard": False},
    }
    if settings.method == "lora":
        values["lora"] = rank
    examples = training_examples(make_recipe(values), judge.tokenizer, spec)
    full = int(examples.documents.lengths.sum()) // length
    rows = settings.batch_size or min(max(1, round(full / STEPS)), MOST_ROWS)
    rows = -(-rows // devices) * devices
    values["batch"] |= {
        "batch_size": rows,
        "gradient_accumulation_steps": rows // devices,
    }  # a row at a time on each
    batches = make_batches(
        examples, batch_size=rows, max_length=length, seed=settings.seed, packing=True
    )
    ends = [batches.steps(epoch) for epoch in range(1, settings.num_train_epochs + 1)]
    keep = {
        "save_steps": ends[0],
        "max_to_keep": 1000,
    }  # of every epoch, and what interruptions leave between
    return make_recipe(values | {"checkpoint": keep}), ends


def _compared(before: PairVerdicts, after: PairVerdicts, temperature: float) -> dict[str, Any]:
    """The same pairs before and after: each with its interval, and the difference with that of paired prompts."""
    gain, interval = paired_gain(before.correct, after.correct, after.cluster)
    found = {
        name: {
            "accuracy": float(verdicts.correct.mean()),
            "interval": BootstrapTable.of(
                verdicts.correct, verdicts.cluster, verdicts.subset
            ).interval(mean_score),
            "nll": negative_log_likelihood(verdicts.margin),
            "ece": expected_calibration_error(expit(verdicts.margin)),
        }
        for name, verdicts in (("before", before), ("after", after))
    }
    found["after"]["ece_with_temperature"] = expected_calibration_error(
        expit(after.margin / temperature)
    )
    found["after"]["nll_with_temperature"] = negative_log_likelihood(after.margin, temperature)
    return found | {
        "gain": gain,
        "gain_interval": interval,
    }


def doubts(result: dict[str, Any]) -> list[str]:
    """What speaks against a judge that was exported: nothing worse goes out without a word."""
    test, found = result["test"], []
    if not result["better_where_chosen"]:
        found.append(
            f"the exported judge is no better than {result['model']} on the pairs that choose: --accept took it "
            "all the same"
        )
    if test["gain"] < 0:
        low, high = test["gain_interval"]
        surely = "worse" if high < 0 else "perhaps worse"
        found.append(
            f"the exported judge is {surely} on the {result['pairs']['test']} pairs that measure: "
            f"{test['gain']:+.3f} of the accuracy ({low:+.3f} to {high:+.3f})"
        )
    elif test["after"]["nll"] > test["before"]["nll"]:
        found.append(
            f"the exported judge's loss is higher on the pairs that measure: {test['before']['nll']:.3f} before, "
            f"{test['after']['nll']:.3f} after"
        )
    return found


def result_rows(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, before, after) for a terminal."""
    before, after = result["test"]["before"], result["test"]["after"]
    low, high = result["test"]["gain_interval"]

    def accuracy(found: dict[str, Any]) -> str:
        return f"{found['accuracy']:.3f} ({found['interval'][0]:.3f} to {found['interval'][1]:.3f})"

    return [
        ("accuracy (95 %)", accuracy(before), accuracy(after)),
        (
            "gain (95 %, the same prompts)",
            "",
            f"{result['test']['gain']:+.3f} ({low:+.3f} to {high:+.3f})",
        ),
        ("NLL", f"{before['nll']:.3f}", f"{after['nll']:.3f}"),
        ("ECE", f"{before['ece']:.3f}", f"{after['ece']:.3f}"),
        (
            f"NLL / ECE with temperature {result['temperature']:.2f}",
            "",
            f"{after['nll_with_temperature']:.3f} / {after['ece_with_temperature']:.3f}",
        ),
    ]


def _write(path: Path, records: Sequence[Comparison]) -> Path:
    """A part as a file that a recipe can name; left alone where it says the same already."""
    path.parent.mkdir(exist_ok=True)
    rows = [
        {
            "id": record.id,
            "prompt": [{"role": m.role, "content": m.content} for m in record.prompt],
            "chosen": [{"role": "assistant", "content": record.chosen}],
            "rejected": [{"role": "assistant", "content": record.rejected}],
            "weight": record.weight,
        }
        for record in records
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _text(prompt: Prompt) -> str:
    return json.dumps([[message.role, message.content] for message in prompt])
