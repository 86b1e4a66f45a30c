"""Adapt a judge to a task with a small labeled set.

The prompts are split into three parts. The first is for training. The second selects the epoch, with the unadapted
judge as a candidate, and fits a temperature. The third tests the judge before and after.
"""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from gram_jax.adaptation.config import AdaptConfig
from gram_jax.adaptation.recipe import make_adapt_recipe
from gram_jax.adaptation.report import compare_verdicts, doubts
from gram_jax.adaptation.settings import PARTS, split, write_split
from gram_jax.checkpoint.orbax import complete_steps
from gram_jax.distributed.lock import folder_lock, hold_lock
from gram_jax.errors import DataError, GramError, StoppedError
from gram_jax.evals.calibration import (
    fit_temperature,
    negative_log_likelihood,
)
from gram_jax.evals.datasets import EvalDataset, read_dataset
from gram_jax.evals.evaluate import EvaluationFolder, make_folder
from gram_jax.evals.pairwise import PairVerdicts, verdicts_on
from gram_jax.evals.scores import OutputSink, score_pairs
from gram_jax.files import explain_full_disk, write_json
from gram_jax.interop.hf_export import export_hf
from gram_jax.interop.models import load_model, load_spec, load_tokenizer, model_config
from gram_jax.judge.spec import JudgeSpec
from gram_jax.progress import ProgressFactory, no_progress
from gram_jax.recipes.tables import Recipe
from gram_jax.run.verify import CHECKPOINTS
from gram_jax.scoring.scorer import Scorer
from gram_jax.sharding import make_placement
from gram_jax.training.loop import train

logger = logging.getLogger(__name__)

FILE = "adaptation.json"


class NotBetterError(GramError):
    """No epoch is better than the unadapted judge. The report is written and no judge is exported."""


def adapt(
    model: str,
    source: str,
    out: Path,
    settings: AdaptConfig,
    *,
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    schema: str = "auto",
    on_bad: Literal["error", "skip"] = "error",
    spec: JudgeSpec | None = None,
    accept: bool = False,
    progress: ProgressFactory = no_progress,
) -> dict[str, Any]:
    """Adapt a judge to a task; returns the content of adaptation.json. A call after an interruption resumes.

    accept: export the best epoch even if the unadapted judge is better. Raises NotBetterError if it is better and
    accept is not set, DataError if the data cannot be used, InUseError if another process adapts in this folder, and
    the errors of `train`.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "pairs.jsonl").write_text('{"prompt": "1 + 1?", "chosen": "2", "rejected": "3"}')
    >>> adapt("tiny-random", str(folder / "pairs.jsonl"), folder / "adapted", AdaptConfig(num_train_epochs=1))
    Traceback (most recent call last):
    gram_jax.errors.DataError: ...
    """
    model_config(model)  # raises before the data are read
    make_folder(out)
    options = _Options(compute_dtype, schema, on_bad, spec, accept, progress)
    alone = hold_lock(folder_lock(out), error=DataError)
    with (
        alone if jax.process_index() == 0 else nullcontext(),
        explain_full_disk(out, "Free some space and run the same command again", error=DataError),
    ):
        return _adapt(model, source, out, settings, options)


class _Options(NamedTuple):
    compute_dtype: Literal["auto", "float32", "bfloat16"]
    schema: str
    on_bad: Literal["error", "skip"]
    spec: JudgeSpec | None
    accept: bool
    progress: ProgressFactory


def _adapt(
    model: str, source: str, out: Path, settings: AdaptConfig, options: _Options
) -> dict[str, Any]:
    compute_dtype, schema, on_bad, spec, accept, progress = options
    work = read_dataset(source, "pairs", schema=schema, on_bad=on_bad)
    parts = split(work.records, settings.held_out, settings.seed)
    logger.info("%s", _rows_read(work))
    judge = Scorer.load(model, compute_dtype=compute_dtype, spec=spec)
    files = {part: write_split(out / "data" / f"{part}.jsonl", parts[part]) for part in PARTS}
    recipe, ends = make_adapt_recipe(model, judge, files["train"], out, settings)
    tested = EvalDataset(str(files["test"]), "pairs", parts["test"], work.read)

    def measured(scorer: Scorer, name: str) -> PairVerdicts:
        folder = EvaluationFolder(out / name, scorer, name, progress=progress)
        return folder.add(tested)[1]

    def on_choose(scorer: Scorer) -> np.ndarray:
        to = OutputSink(progress=progress)
        scores = score_pairs(scorer, model, str(files["choose"]), parts["choose"], to)
        return verdicts_on(parts["choose"], scores).margin

    before = measured(judge, "before")
    unadapted = negative_log_likelihood(on_choose(judge))
    del judge  # frees the memory of its weights for training

    def at(step: int) -> Scorer:
        return Scorer.load(f"{recipe.run.output_dir}@{step}", compute_dtype=compute_dtype)

    margins: dict[int, np.ndarray] = {}
    losses = {0: unadapted}  # by step; step 0 is the unadapted judge
    for end in ends:
        if end not in complete_steps(Path(recipe.run.output_dir) / CHECKPOINTS):
            _train(recipe, end, progress)
        margins[end] = on_choose(at(end))
        losses[end] = negative_log_likelihood(margins[end])
        if out_of_patience(list(losses.values())[1:], settings.patience):
            break
    best = min(margins, key=losses.__getitem__)
    better, temperature = losses[best] < unadapted, fit_temperature(margins[best])
    after = measured(at(best), "after")
    result = {
        "format": 1,
        "model": model,
        "source": source,
        "settings": asdict(settings),
        "rows": work.read.rows,
        "left_out": _left_out(work),
        "pairs": {part: len(members) for part, members in parts.items()},
        "choosing": {"loss": {str(step): loss for step, loss in losses.items()}, "step": best},
        "better_where_chosen": better,
        "temperature": temperature,
        "test": compare_verdicts(before, after, temperature),
        "exported": None,
    }
    write_json(out / FILE, result, error=DataError)
    if not better and not accept:
        raise NotBetterError(
            f"no epoch is better than {model} unadapted: its loss on the {len(parts['choose'])} selection pairs is "
            f"{unadapted:.4f}, the best epoch's {losses[best]:.4f}. Nothing is exported; {out / FILE} "
            "has the figures. Try more pairs, another learning rate or fewer epochs; --accept exports the best epoch "
            "anyway"
        )
    result["exported"] = str(_export(recipe.run.output_dir, best, out / "judge"))
    write_json(out / FILE, result, error=DataError)
    for doubt in doubts(result):
        logger.warning("%s", doubt)
    return result


def _left_out(work: EvalDataset) -> dict[str, int]:
    """Number of rows without a labeled pair, by reason."""
    ties = {"tie": work.skipped_ties} if work.skipped_ties else {}
    return {**work.read.dropped, **ties}


def _rows_read(work: EvalDataset) -> str:
    out = ", ".join(f"{count} {why}" for why, count in _left_out(work).items())
    return f"{work.source}: {work.read.rows} rows read, {len(work.records)} labeled pairs, left out: {out or 'none'}"


def _train(recipe: Recipe, stop_at_step: int, progress: ProgressFactory) -> None:
    try:
        train(recipe, progress=progress, stop_at_step=stop_at_step)
    except (
        StoppedError
    ) as stopped:  # its message suggests `gram-jax train`, which would not select an epoch
        raise StoppedError(
            "training stopped and its state is saved: the same command resumes", stopped.status
        ) from stopped


def out_of_patience(losses: Sequence[float], patience: int) -> bool:
    """Whether the last `patience` epochs did not lower the smallest loss; never if `patience` is 0.

    >>> out_of_patience([0.6, 0.7, 0.65], 2), out_of_patience([0.6, 0.7, 0.5], 2)
    (True, False)
    """
    return 0 < patience < len(losses) and min(losses[-patience:]) >= min(losses[:-patience])


def _export(run: str, step: int, folder: Path) -> Path:
    """Export the judge of a step as a Hugging Face folder."""
    one = make_placement({}, devices=jax.devices()[:1])
    cfg, params = load_model(f"{run}@{step}", one, None)
    tokenizer, spec = load_tokenizer(run), load_spec(run)
    return export_hf(
        folder, cfg, params, dtype=None, tokenizer=tokenizer, spec=spec, overwrite=True
    )
