"""The folder of an evaluation: evaluation.json with all figures, the scores behind them, RewardBench's own files."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from gram_jax.console import Console
from gram_jax.data.comparison import Comparison, contents_of
from gram_jax.errors import DataError
from gram_jax.evals.evaluation import evaluate_workload
from gram_jax.evals.pairwise import Verdicts
from gram_jax.evals.same_judge import refuse_other_judge
from gram_jax.evals.scores import Target
from gram_jax.evals.workload import Workload, stem_of
from gram_jax.files import write_atomic
from gram_jax.interop.models import load_model
from gram_jax.model.quantize import quantize_int8
from gram_jax.scoring.fingerprint import weights_fingerprint
from gram_jax.scoring.scalar import ScalarRewardModel
from gram_jax.scoring.scorer import Scorer
from gram_jax.sharding import make_placement
from gram_jax.version import installed_version

FORMAT = 1
FILE = "evaluation.json"


class EvaluationFolder:
    """Results of one judge on any number of sources; later ones join those that are there.

    overwrite: score the sources anew; the results of others stay if they are of the same judge. Raises DataError where
    the folder cannot be made, or holds the results of another judge.
    """

    def __init__(
        self,
        folder: Path | None,
        scorer: Scorer | ScalarRewardModel,
        model: str,
        *,
        overwrite: bool,
        console: Console,
    ):
        self.folder, self.console = folder, console
        self.scorer, self.model, self.overwrite = scorer, model, overwrite
        self.content: dict[str, Any] = {
            "format": FORMAT,
            "gram_jax": installed_version(),
            "model": model,
            "judge": scorer.spec.hash,
            "fingerprint": weights_fingerprint(scorer.params),
            "settings": settings_of(scorer),
            "sources": {},
        }
        if folder is not None:
            make_folder(folder)
            refuse_other_judge(folder / "attack.json", self.content)
            self._take_over(folder / FILE)

    def evaluate(self, work: Workload) -> tuple[dict[str, Any], Verdicts]:
        """Score a source, add what is found to the folder, and return it with the verdicts it rests on."""
        name, source = self._place(work)
        if work.source != source:
            self.console.warn(
                f"{work.source} has the rows of {source}, under which its figures stand"
            )
        work = replace(work, source=source)
        file = None if self.folder is None else self.folder / f"{name}.scores.jsonl"
        to = Target(file, self.overwrite, self.console)
        found, verdicts = evaluate_workload(self.scorer, self.model, work, to)
        self.content["sources"][name] = found
        if self.folder is not None:
            write_json(self.folder / FILE, self.content)
            if work.benchmark == "rewardbench":
                template = self.scorer.spec.hash
                place = self.folder / "rewardbench" / name
                write_reward_bench(place, self.model, template, work.records, verdicts, found)
        return found, verdicts

    def _place(self, work: Workload) -> tuple[str, str]:
        """Its name here and how it was spelled first, for the same file or the same contents.

        A new one has its stem for a name, with a number where another source has it.
        """
        there, contents = self.content["sources"], contents_of(work.records)
        for name, found in there.items():
            same_file = os.path.realpath(found["source"]) == os.path.realpath(work.source)
            same_contents = (found.get("contents"), found["benchmark"]) == (
                contents,
                work.benchmark,
            )
            if same_file or same_contents:
                return name, found["source"]
        stem, number = stem_of(work.source), 1
        name = stem
        while name in there:
            number += 1
            name = f"{stem}-{number}"
        return name, work.source

    def _take_over(self, path: Path) -> None:
        """Go on with the sources that are there; with `overwrite` a file that is of no use is begun anew."""
        if not path.exists():
            return
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
            deciding = ("format", "judge", "fingerprint", "settings")
            same = [there[key] == self.content[key] for key in deciding]
            sources = dict(there["sources"])
        except (ValueError, KeyError, TypeError) as error:
            problem = f"{path} is damaged ({error})"
        else:
            if all(same):
                self.content["sources"] = sources
                return
            problem = (
                f"{path.parent} holds the evaluation of another judge, or with other settings: {there.get('model')}, "
                f"{there.get('settings')}; asked for is {self.model}, {self.content['settings']}"
            )
        if not self.overwrite:
            raise DataError(f"{problem}. Give another folder, or --overwrite")
        self.console.warn(f"{problem}. It is begun anew")


def settings_of(scorer: Scorer | ScalarRewardModel) -> dict[str, Any]:
    """How the judge is run and asked, as evaluation.json and attack.json hold it."""
    layers = scorer.params["layers"]
    held = "int8" if "scales" in layers else str(jax.tree.leaves(layers)[0].dtype)
    return {
        "compute": scorer.execution.compute,
        "weights": held,
        "max_length": scorer.spec.max_length,
        "labels": ", ".join(scorer.spec.labels),
    }


def fingerprint_as(model: Path, settings: Mapping[str, Any]) -> str:
    """The fingerprint of a model's weights when they are held as these settings (`settings_of`) say.

    Raises DataError for settings that do not say it.
    """
    held, compute = settings.get("weights"), settings.get("compute")
    dtype = compute if held == "int8" else held
    if dtype not in ("float32", "bfloat16"):
        raise DataError(
            f"settings with weights {held!r} and compute {compute!r}: expected float32 or bfloat16, or int8 weights"
        )
    _, params = load_model(model, make_placement({}, devices=jax.devices()[:1]), dtype)
    return weights_fingerprint(quantize_int8(params) if held == "int8" else params)


def make_folder(folder: Path) -> None:
    """Raises DataError where there is a file, or no parent folder."""
    if folder.is_file():
        raise DataError(f"{folder} is a file: --out takes a folder for the results")
    if not folder.parent.is_dir():
        raise DataError(f"{folder} cannot be made: there is no folder {folder.parent}")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be made: {error.strerror or error}") from error


def write_json(path: Path, content: Any) -> None:
    """The whole file or none of it. Raises DataError where it cannot be written."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text, error=DataError)


def write_reward_bench(
    folder: Path,
    model: str,
    template: str,
    records: Sequence[Comparison],
    verdicts: Verdicts,
    found: dict[str, Any],
) -> None:
    """MODEL.json and MODEL_outputs.jsonl with the keys of RewardBench's own result files.

    results: 1 right, 0 wrong or a tie, so that their mean is the accuracy. scores_chosen, scores_rejected:
    probabilities that sum to 1.
    """
    name = stem_of(model)
    summary = {
        "accuracy": found["pairs"]["accuracy"],
        "num_prompts": len(records),
        "model": model,
        "ref_model": None,
        "tokenizer": model,
        "chat_template": f"gram_jax judge {template}",
        "extra_results": {row["name"]: row["accuracy"] for row in found["subsets"]},
    }
    write_json(folder / f"{name}.json", summary)
    lines = (
        json.dumps(
            {
                "prompt": [{"role": m.role, "content": m.content} for m in record.prompt],
                "results": int(p > rest),
                "scores_chosen": float(p),
                "scores_rejected": float(rest),
                "text_chosen": record.chosen,
                "text_rejected": record.rejected,
                "subset": record.source,
                "id": record.id,
            },
            ensure_ascii=False,
        )
        + "\n"
        for record, p, rest in zip(records, verdicts.p, verdicts.p_rejected, strict=True)
    )
    write_atomic(folder / f"{name}_outputs.jsonl", lines, error=DataError)
