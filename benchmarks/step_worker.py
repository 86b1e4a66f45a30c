"""One side of a comparison of training steps: step_worker.py {jax,torch,torch-last} FOLDER ROWS LENGTH.

FOLDER: an exported judge. Every side has the same tokens, drawn from a fixed seed. "torch" computes the logits of every
position, as is usual; "torch-last" those of the last position only.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from duel import serve

from gram_jax.judge.spec import JudgeSpec

LEARNING_RATE, SMOOTHING = 1e-5, 0.1


def token_rows(folder: Path, rows: int, length: int) -> np.ndarray:
    """i32 [rows, length]: random tokens, the same on every side."""
    vocabulary = 40_000
    return np.random.default_rng(0).integers(100, vocabulary, (rows, length), dtype=np.int32)


def jax_side(folder: Path, rows: int, length: int) -> Callable[[], dict[str, Any]]:
    import jax

    from gram_jax.batch import Sequences, VerdictBatch
    from gram_jax.interop.models import load_model
    from gram_jax.model.execution import Execution
    from gram_jax.model.specs import param_specs
    from gram_jax.recipes.tables import OptimizerConfig
    from gram_jax.sharding import make_placement
    from gram_jax.training.objectives import verdict_objective
    from gram_jax.training.optimizer import make_optimizer, make_schedule
    from gram_jax.training.state import abstract_state, init_state, shardings_of
    from gram_jax.training.step import make_train_step

    placement = make_placement({}, devices=jax.devices()[:1])
    cfg, params = load_model(folder, placement, "float32")
    label_ids = JudgeSpec.load(folder).label_ids
    execution = Execution("float32", "blocked", "dots", placement)
    tokens = token_rows(folder, rows, length)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    segments = np.ones_like(tokens)

    settings = OptimizerConfig(LEARNING_RATE, 0.0, "constant", 0.9, 0.999, 1e-8, 0.0, 1.0)
    specs = param_specs(cfg)
    optimizer = make_optimizer(settings, 100, specs)
    abstract = abstract_state(specs, optimizer, placement, "float32")
    step = make_train_step(
        verdict_objective(cfg, execution, label_ids=label_ids, smoothing=SMOOTHING),
        optimizer,
        make_schedule(settings, 100),
        shardings_of(abstract),
        placement,
        microbatches=1,
        max_skipped=0,
    )
    label = (np.arange(rows) % 2).astype(np.int32)[:, None]
    batch = VerdictBatch(
        Sequences(tokens, positions, segments),
        np.full((rows, 1), length - 1, np.int32),
        label,
        np.ones((rows, 1), np.float32),
    )
    state = init_state(params, optimizer, abstract)

    def train() -> dict[str, Any]:
        nonlocal state
        state, metrics = step(state, {}, batch)
        loss, count = jax.device_get(metrics["loss"])
        jax.block_until_ready(state)
        return {"loss": float(loss / count)}

    return train


def torch_side(folder: Path, rows: int, length: int, keep: int) -> Callable[[], dict[str, Any]]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    )
    label_ids = list(JudgeSpec.load(folder).label_ids)
    tokens = torch.from_numpy(token_rows(folder, rows, length).astype(np.int64))
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0
    )
    label = torch.arange(rows) % 2
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=SMOOTHING)

    def train() -> dict[str, Any]:
        optimizer.zero_grad(set_to_none=True)
        logits = model(tokens, use_cache=False, logits_to_keep=keep).logits[:, -1, label_ids]
        loss = criterion(logits, label)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return {"loss": loss.item()}

    return train


def main() -> None:
    side, folder, rows, length = sys.argv[1:]
    arguments = Path(folder), int(rows), int(length)
    if side == "jax":
        serve(jax_side(*arguments))
    else:
        serve(torch_side(*arguments, keep=1 if side == "torch-last" else 0))


if __name__ == "__main__":
    main()
