"""Write results on RewardBench in the file format of the rewardbench package."""

import json
from collections.abc import Sequence
from pathlib import Path

from gram_jax.data.records import Comparison
from gram_jax.errors import DataError
from gram_jax.evals.datasets import stem_of
from gram_jax.evals.pairwise import PairVerdicts
from gram_jax.evals.results import JudgeResults, SourceResult
from gram_jax.files import write_atomic, write_json


def write_reward_bench(
    folder: Path,
    about: JudgeResults,
    records: Sequence[Comparison],
    verdicts: PairVerdicts,
    found: SourceResult,
) -> None:
    """Write MODEL.json and MODEL_outputs.jsonl with the keys of RewardBench's own result files.

    results: 1 if right, 0 if wrong or a tie; their mean is the accuracy. scores_chosen, scores_rejected:
    probabilities that sum to 1.
    """
    name = stem_of(about.model)
    summary = {
        "accuracy": found.pairs.accuracy,
        "num_prompts": len(records),
        "model": about.model,
        "ref_model": None,
        "tokenizer": about.model,
        "chat_template": f"gram_jax judge {about.judge}",
        "extra_results": {subset.name: subset.accuracy for subset in found.subsets},
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", summary, error=DataError)
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
