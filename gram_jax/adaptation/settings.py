"""The splits of the labeled pairs, and the default learning rate."""

import json
from collections.abc import Sequence
from pathlib import Path

from gram_jax.adaptation.config import Method
from gram_jax.data.records import Comparison
from gram_jax.errors import DataError
from gram_jax.files import write_atomic
from gram_jax.hashing import stable_hash
from gram_jax.judge.messages import Prompt
from gram_jax.model.config import ModelConfig

FULL_RATE = 3e-5  # as in stage 2
LEAST = 10  # minimum number of pairs in each split
PARTS = ("train", "choose", "test")


def default_rate(method: Method, cfg: ModelConfig) -> float:
    """Peak learning rate. For LoRA it decreases with the width D of the model: 5e-4 (2000 / D) ** p.

    p is 0.781 for Llama models and 0.0775 for Qwen models, fitted at alpha 32 by J. Schulman and Thinking Machines Lab
    (LoRA Without Regret, 2025, and the documentation of Tinker). Here alpha is twice the rank, by default 32. Other
    models use the fit for Llama.

    >>> from gram_jax.interop.models import model_config
    >>> default_rate("full", model_config("tiny-random"))
    3e-05
    """
    if method == "full":
        return FULL_RATE
    power = 0.781 if cfg.family == "llama" else 0.0775
    return 5e-4 * (2000 / cfg.embed_size) ** power


def split(records: Sequence[Comparison], held_out: float, seed: int) -> dict[str, list[Comparison]]:
    """Records by split; the split of a record is a function of (seed, prompt).

    Raises DataError if a split has fewer than LEAST pairs.
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
            "are in one part: use more pairs of different prompts, or another --held-out"
        )
    return parts


def write_split(path: Path, records: Sequence[Comparison]) -> Path:
    """Write a split as a data file of a recipe."""
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise DataError(f"{path.parent} cannot be made: {error.strerror or error}") from error
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
    return write_atomic(path, (json.dumps(row) + "\n" for row in rows), error=DataError)


def _text(prompt: Prompt) -> str:
    return json.dumps([[message.role, message.content] for message in prompt])
