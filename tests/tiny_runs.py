"""Recipes and data for training tests: "tiny-random" on pairs of which the better one says "zzz"."""

import json
import random
from pathlib import Path
from typing import Any

import jax
import pytest

import gram_jax.training.loop as loop
from gram_jax.recipes.reading import make_recipe
from gram_jax.recipes.tables import Recipe
from gram_jax.run.lifecycle import RunResult
from gram_jax.sharding import make_placement

WORDS = ["ash", "elm", "fir", "oak", "yew", "bay", "fig"]


def write_pairs(path: Path, count: int, seed: int = 0) -> Path:
    """Preferences that a model without knowledge can learn: the chosen response holds "zzz"."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        chosen, rejected = ([draw.choice(WORDS) for _ in range(3)] for _ in range(2))
        chosen[draw.randrange(3)] = "zzz"
        row = {"prompt": f"{number}", "chosen": " ".join(chosen), "rejected": " ".join(rejected)}
        rows.append(json.dumps(row))
    path.write_text("\n".join(rows) + "\n")
    return path


def tiny_values(stage: str, folder: Path, **changes: Any) -> dict[str, Any]:
    """A recipe's values; `section__key=value` changes one of them."""
    data = folder.parent / "train.jsonl"
    if not data.exists():
        write_pairs(data, 8)
    values: dict[str, Any] = {
        "stage": stage,
        "run": {"output_dir": str(folder), "seed": 0, "max_steps": 6},
        "model": {"name_or_path": "tiny-random", "param_dtype": "float32"},
        "judge": {
            "template": "default",
            "labels": ["A", "B"],
            "max_length": 192,
            "thinking": False,
        },
        "data": {"train": [str(data)], "overlong": "drop", "on_bad": "error"},
        "batch": {
            "batch_size": 4,
            "max_length": 192,
            "packing": False,
            "gradient_accumulation_steps": 1,
        },
        "optimizer": {
            "learning_rate": 3e-3,
            "warmup_steps": 0.1,
            "lr_scheduler_type": "cosine",
            "b1": 0.9,
            "b2": 0.99,
            "eps": 1e-8,
            "weight_decay": 0.01,
            "max_grad_norm": 1.0,
        },
        "execution": {"compute_dtype": "float32", "attention": "blocked", "remat": "none"},
        "log": {"tensorboard": False},
    }
    if stage != "bradley_terry":
        values["data"]["position_augmentation"] = "both"
    values["loss"] = {
        "pretrain": {"loss_chunk_size": 256},
        "finetune": {"label_smoothing": 0.1},
        "bradley_terry": {},
        "rationale": {"label_smoothing": 0.1, "loss_chunk_size": 256},
    }[stage]
    for name, value in changes.items():
        section, key = name.split("__")
        values.setdefault(section, {})[key] = value
    return values


def tiny_recipe(stage: str, folder: Path, **changes: Any) -> Recipe:
    """The recipe of `tiny_values`."""
    return make_recipe(tiny_values(stage, folder, **changes))


def tiny_rl_values(folder: Path, kind: str = "grpo", **changes: Any) -> dict[str, Any]:
    """Values of a recipe of reinforcement learning; `section__key=value` changes one of them."""
    prompts = folder.parent / "prompts.jsonl"
    if not prompts.exists():
        rows = [{"prompt": f"Say {at}.", "chosen": "a", "rejected": "b"} for at in range(8)]
        prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {
        "run": {"output_dir": str(folder), "seed": 0, "max_steps": 3},
        "policy": {"name_or_path": "tiny-random", "param_dtype": "float32"},
        "reward": {"judge": "tiny-random"},
        "data": {"train": str(prompts)},
        "sampling": {
            "prompts_per_step": 4, "num_generations": 4, "max_prompt_length": 60, "max_new_tokens": 8,
            "temperature": 1.0,
        },
        "algorithm": {
            "kind": kind, "num_epochs": 1, "num_mini_batches": 1, "gradient_accumulation_steps": 1,
            "clip_range": 0.2, "kl_coef": 0.0, "gamma": 1.0, "gae_lambda": 0.95, "vf_coef": 0.5,
            "clip_range_vf": 0.2, "ent_coef": 0.0,
        },
        "optimizer": {
            "learning_rate": 3e-3, "warmup_steps": 0.0, "lr_scheduler_type": "constant", "b1": 0.9, "b2": 0.99,
            "eps": 1e-8, "weight_decay": 0.0, "max_grad_norm": 1.0,
        },
        "execution": {"compute_dtype": "float32", "attention": "auto", "remat": "none"},
        "mesh": {"data": 1, "fsdp": 1},
    }  # fmt: skip
    for key, value in changes.items():
        section, _, name = key.partition("__")
        found.setdefault(section, {})[name] = value
    return found


@pytest.fixture(scope="module", autouse=True)
def compiled_programs(program_folder):
    """Programs that several tests compile are compiled once."""
    before = (
        jax.config.jax_compilation_cache_dir,
        jax.config.jax_persistent_cache_min_compile_time_secs,
    )
    jax.config.update("jax_compilation_cache_dir", str(program_folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    yield
    jax.config.update("jax_compilation_cache_dir", before[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])


def train(recipe: Recipe, stop_at_step: int | None = None, *, curves: bool = False) -> RunResult:
    """`train` on one device. curves: whether they are drawn, which takes half a second."""
    placement = make_placement({}, devices=jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        if not curves:
            patch.setattr(loop, "plot_curves", lambda *_, **__: None)
        return loop.train(recipe, placement=placement, stop_at_step=stop_at_step)
