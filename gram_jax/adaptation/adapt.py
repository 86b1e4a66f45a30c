"""Adapt a judge to a task with a small labeled set.

The prompts are split into three parts. The first is for training. The second selects the epoch, with the unadapted
judge as a candidate, and fits a temperature. The third tests the judge before and after.

In a job of several processes training is data-parallel, each process scores its part of the second part, and process 0
scores the third, whose scores are files.
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
from gram_jax.adaptation.recipe import RUN, make_adapt_recipe, write_template
from gram_jax.adaptation.report import compare_verdicts, doubts
from gram_jax.adaptation.settings import PARTS, split, write_split
from gram_jax.checkpoint.orbax import complete_steps
from gram_jax.checkpoint.run_info import read_info
from gram_jax.data.mapping import ColumnMap
from gram_jax.data.records import contents_of
from gram_jax.distributed.collectives import (
    all_gather_objects,
    assert_equal,
    barrier,
    broadcast_object,
    process_part,
)
from gram_jax.distributed.lock import folder_lock, hold_lock
from gram_jax.distributed.process import ProcessContext
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
from gram_jax.interop.resolve import pin_step
from gram_jax.judge.spec import JudgeSpec
from gram_jax.progress import ProgressFactory, no_progress
from gram_jax.recipes.tables import Recipe
from gram_jax.run.verify import CHECKPOINTS
from gram_jax.scoring.scorer import Scorer
from gram_jax.sharding import Placement, make_placement
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
    map: ColumnMap | None = None,
    spec: JudgeSpec | None = None,
    accept: bool = False,
    process: ProcessContext | None = None,
    progress: ProgressFactory = no_progress,
) -> dict[str, Any]:
    """Adapt a judge to a task and export it to out/judge. Returns the content of adaptation.json.

    The same call after an interruption resumes. model: name of the judge. source: labeled pairs of the task. out:
    folder for the run, the figures and the judge. schema, on_bad, map: as for `read_records`. spec: specification to
    use instead of the saved one. accept: export the best epoch even if the unadapted judge is better. process: this
    process, in a job of several processes that make the same call.

    Raises NotBetterError if the unadapted judge is better and `accept` is false, DataError if the data cannot be used,
    JudgeError for a judge that writes rationales, InUseError if another job adapts in this folder, and the errors of
    `train`.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "pairs.jsonl").write_text('{"prompt": "1 + 1?", "chosen": "2", "rejected": "3"}')
    >>> adapt("tiny-random", str(folder / "pairs.jsonl"), folder / "adapted", AdaptConfig(num_train_epochs=1))
    Traceback (most recent call last):
    gram_jax.errors.DataError: ...
    """
    model_config(model)  # raises before the data are read
    make_folder(out)
    options = _Options(compute_dtype, schema, on_bad, map, spec, accept, process, progress)
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
    map: ColumnMap | None
    spec: JudgeSpec | None
    accept: bool
    process: ProcessContext | None
    progress: ProgressFactory


def _adapt(
    model: str, source: str, out: Path, settings: AdaptConfig, options: _Options
) -> dict[str, Any]:
    compute_dtype, schema, on_bad, map, spec, accept, process, progress = options
    model = broadcast_object(pinned(model, out / RUN))
    main, here = jax.process_index() == 0, _on_this_process()
    work = read_dataset(source, "pairs", schema=schema, on_bad=on_bad, map=map)
    parts = split(work.records, settings.held_out, settings.seed)
    logger.info("%s", _rows_read(work))
    judge = Scorer.load(model, compute_dtype=compute_dtype, spec=spec, placement=here)
    assert_equal("set of pairs, or judge", [judge.spec.hash, contents_of(work.records)])
    files = {part: out / "data" / f"{part}.jsonl" for part in PARTS}
    if main:
        for part in PARTS:
            write_split(files[part], parts[part])
        write_template(judge.spec, out)
    barrier("gram_jax: the splits are written")
    recipe, ends = make_adapt_recipe(model, judge, files["train"], out, settings)
    tested = EvalDataset(str(files["test"]), "pairs", parts["test"], work.read)

    def measured(scorer: Scorer, name: str, overwrite: bool) -> PairVerdicts | None:
        if not main:
            return None
        folder = EvaluationFolder(out / name, scorer, name, overwrite=overwrite, progress=progress)
        return folder.add(tested)[1]

    def on_choose(scorer: Scorer) -> np.ndarray:
        own = parts["choose"][process_part(len(parts["choose"]))]
        to = OutputSink(progress=progress)
        scores = score_pairs(scorer, model, str(files["choose"]), own, to)
        margins = all_gather_objects(verdicts_on(own, scores).margin.tolist() if own else [])
        return np.concatenate([np.array(of_process) for of_process in margins])

    before = measured(judge, "before", overwrite=False)
    unadapted = negative_log_likelihood(on_choose(judge))
    del judge  # frees the memory of its weights for training

    def at(step: int) -> Scorer:
        name = f"{recipe.run.output_dir}@{step}"
        return Scorer.load(name, compute_dtype=compute_dtype, placement=here)

    margins: dict[int, np.ndarray] = {}
    losses = {0: unadapted}  # by step; step 0 is the unadapted judge
    for end in ends:
        done = broadcast_object(complete_steps(Path(recipe.run.output_dir) / CHECKPOINTS))
        if end not in done:
            _train(recipe, end, process, progress)
        margins[end] = on_choose(at(end))
        losses[end] = negative_log_likelihood(margins[end])
        if out_of_patience(list(losses.values())[1:], settings.patience):
            break
    best = min(margins, key=losses.__getitem__)
    better, temperature = losses[best] < unadapted, fit_temperature(margins[best])
    after = measured(at(best), "after", overwrite=True)  # more patience may select another epoch
    test = None
    if before is not None and after is not None:
        test = compare_verdicts(before, after, temperature)
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
        "test": broadcast_object(test),
        "exported": None,
    }
    if main:
        write_json(out / FILE, result, error=DataError)
    if not better and not accept:
        raise NotBetterError(
            f"no epoch is better than {model} unadapted: its loss on the {len(parts['choose'])} selection pairs is "
            f"{unadapted:.4f}, the best epoch's {losses[best]:.4f}. Nothing is exported; {out / FILE} "
            "has the figures. Try more pairs, another learning rate or fewer epochs; --accept exports the best epoch "
            "anyway"
        )
    result["exported"] = str(out / "judge")
    _export(recipe.run.output_dir, best, out / "judge")
    if main:
        write_json(out / FILE, result, error=DataError)
    for doubt in doubts(result):
        logger.warning("%s", doubt)
    return result


def pinned(model: str, run: Path) -> str:
    """The judge to adapt; of a training run RUN@STEP, its newest step at the first call, because it may continue.

    run: folder of the adaptation's own training run.
    """
    start = str(read_info(run).get("start", ""))
    return start if start.startswith(f"{model}@") else pin_step(model)


def _left_out(work: EvalDataset) -> dict[str, int]:
    """Number of rows without a labeled pair, by reason."""
    ties = {"tie": work.skipped_ties} if work.skipped_ties else {}
    return {**work.read.dropped, **ties}


def _rows_read(work: EvalDataset) -> str:
    out = ", ".join(f"{count} {why}" for why, count in _left_out(work).items())
    return f"{work.source}: {work.read.rows} rows read, {len(work.records)} labeled pairs, left out: {out or 'none'}"


def _on_this_process() -> Placement:
    """Every device of this process holds all weights and scores pairs of its own."""
    return make_placement({"data": -1}, devices=jax.local_devices())


def _train(
    recipe: Recipe, stop_at_step: int, process: ProcessContext | None, progress: ProgressFactory
) -> None:
    try:
        train(recipe, process=process, progress=progress, stop_at_step=stop_at_step)
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


def _export(run: str, step: int, folder: Path) -> None:
    """Export the judge of a step as a Hugging Face folder; all processes read the checkpoint."""
    one = make_placement({}, devices=jax.local_devices()[:1])
    cfg, params = load_model(f"{run}@{step}", one, None)
    if jax.process_index() == 0:
        tokenizer, spec = load_tokenizer(run), load_spec(run)
        export_hf(folder, cfg, params, dtype=None, tokenizer=tokenizer, spec=spec, overwrite=True)
    barrier("gram_jax: the judge is exported")
