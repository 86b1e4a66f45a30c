"""One side of the comparison of scorers: score_worker.py SIDE FOLDER PAIRS.json.

FOLDER: an exported judge; PAIRS: a list of [prompt, first, second]. Every side computes from text the probability that
the first is better, over both orders, with the judge's own prompt and budget.

SIDE: "prefix_shared" and "padded" are gram_jax's two programs. "torch" is transformers and PyTorch as usually written:
both orders, the input's order, batches of 8, padded on the left, the logits of every position. "torch-best" is sorted
by length and computes the logits of the last position only. "compare" ranks: PAIRS is then one prompt and its
responses, and the result is the log-odds of all pairs i < j as probabilities; "compare" and "compare-padded" give the
same from pairs that are scored one by one.
"""

import itertools
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from duel import serve
from scipy.special import expit

from gram_jax.judge.encode import encode_items
from gram_jax.judge.spec import JudgeSpec
from gram_jax.judge.tokenizer import folder_tokenizer

BATCH = 8
# With last-position logits a batch needs little memory; 8 and 16 sequences were equally fast, 4 slower.
BEST_BATCH = 8


def ours(folder: Path, given: Any, side: str) -> Callable[[], dict[str, Any]]:
    from gram_jax.scoring.scorer import Scorer

    judge = Scorer.load(
        folder,
        compute_dtype="float32",
        method="padded" if side.endswith("padded") else "prefix_shared",
    )
    judge.warm_up(rankings=side == "compare")

    def score() -> dict[str, Any]:
        scores = judge.score_many(given)
        if side.startswith("compare"):
            return {"scores": expit([score.margin for score in scores]).tolist()}
        return {"scores": [score.first for score in scores]}

    def compare() -> dict[str, Any]:
        prompt, responses = given
        table = judge.compare(prompt, responses)
        found = [table[i, j] for i, j in itertools.combinations(range(len(responses)), 2)]
        return {"scores": expit(found).tolist()}

    return compare if side == "compare" else score


def torchs(folder: Path, given: Sequence[Any], side: str) -> Callable[[], dict[str, Any]]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    tokenizer, spec = folder_tokenizer(folder), JudgeSpec.load(folder)
    labels, best = list(spec.label_ids), side == "torch-best"
    shown = [order for p, a, b in given for order in ((p, a, b), (p, b, a))]

    def score() -> dict[str, Any]:
        encoded = encode_items(tokenizer, spec.comparison, shown, spec.max_length)
        texts = [text.tokens for text in encoded]
        order = sorted(range(len(texts)), key=lambda at: -len(texts[at]) * best)
        size = BEST_BATCH if best else BATCH
        first = np.zeros(len(texts))
        for batch in (order[at : at + size] for at in range(0, len(order), size)):
            longest = max(len(texts[at]) for at in batch)
            tokens = torch.zeros((len(batch), longest), dtype=torch.long)
            mask = torch.zeros_like(tokens)
            for row, at in enumerate(batch):
                tokens[row, longest - len(texts[at]) :] = torch.from_numpy(
                    texts[at].astype(np.int64)
                )
                mask[row, longest - len(texts[at]) :] = 1
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            with torch.inference_mode():
                logits = model(
                    tokens,
                    attention_mask=mask,
                    position_ids=positions,
                    use_cache=False,
                    logits_to_keep=int(best),
                ).logits[:, -1, labels]
            first[batch] = torch.softmax(logits, -1)[:, 0].numpy()
        return {"scores": ((first[::2] + 1 - first[1::2]) / 2).tolist()}

    return score


def main() -> None:
    side, folder, pairs = sys.argv[1:]
    warnings.simplefilter("ignore")
    make = torchs if side.startswith("torch") else ours
    serve(make(Path(folder), json.loads(Path(pairs).read_text()), side))


if __name__ == "__main__":
    main()
