"""The exported judge in PyTorch: the same label logits, from a script that runs without gram_jax."""

import importlib.util
import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from gram_jax.files import write_atomic
from gram_jax.judge.encode import encode_items
from gram_jax.judge.messages import Prompt
from gram_jax.scoring.scorer import Scorer

logger = logging.getLogger(__name__)

SCRIPT = '''\
"""Label logits of an exported judge, from PyTorch: python check.py FOLDER < prompts.json"""
import json
import sys

import torch
from transformers import AutoModelForCausalLM

given = json.load(sys.stdin)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
with torch.no_grad():
    for tokens in given["prompts"]:
        last = model(torch.tensor([tokens])).logits[0, -1]
        print(json.dumps([last[label].item() for label in given["label_ids"]]))
'''


def compare_with_transformers(
    judge: Scorer, exported: Path, pairs: Sequence[tuple[Prompt, str, str]], script: Path
) -> float | None:
    """Largest difference of the pairs' log-odds between `judge` and its export in transformers.

    script: the written program that computes the latter. None if PyTorch is not installed or the program fails.
    """
    write_atomic(script, SCRIPT)
    if not importlib.util.find_spec("torch"):
        logger.info(f"PyTorch is not installed: the comparison in {script} is skipped.")
        return None
    shown = [side for p, a, b in pairs for side in ((p, a, b), (p, b, a))]
    encoded = encode_items(judge.tokenizer, judge.spec.comparison, shown, judge.spec.max_length)
    given = {"label_ids": judge.spec.label_ids, "prompts": [e.tokens.tolist() for e in encoded]}
    done = subprocess.run(
        [sys.executable, str(script), str(exported)],
        input=json.dumps(given),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        logger.warning("%s failed: %s", script, last)
        return None
    logits = [json.loads(line) for line in done.stdout.strip().splitlines()]
    diffs = [first - second for first, second in logits]
    theirs = [(one - other) / 2 for one, other in zip(diffs[::2], diffs[1::2], strict=True)]
    ours = [score.margin for score in judge.score_many(pairs)]
    difference = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    logger.info(
        f"Log-odds of {len(pairs)} pairs in transformers: largest difference {difference:.1e} ({script})"
    )
    return difference
