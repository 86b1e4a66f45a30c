"""Golden outputs: record every deterministic result of the library, and compare with them after a change.

    python benchmarks/golden.py record FILE.json
    python benchmarks/golden.py compare FILE.json [--only rl ...]

Models and data are random (golden_cases.py), except for "tiny-random" and the data of the demo. Floats are compared
exactly, so both commands have to run on the same machine. `compare` prints every difference and exits with status 1 if
there is one; `record` writes nothing if a section fails.
"""

import argparse
import dataclasses
import functools
import hashlib
import json
import logging
import os
import random
import re
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from itertools import product
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import golden_cases as cases
import jax
import numpy as np
import orbax.checkpoint as ocp
from fastapi.testclient import TestClient
from safetensors.numpy import load_file

import gram_jax
from gram_jax.attacks.evaluate import choose_pairs, run_attacks
from gram_jax.attacks.suite import choose_attacks
from gram_jax.data.batches import BatchPlan
from gram_jax.evals.best_of_n import run_best_of_n
from gram_jax.interop.models import model_config
from gram_jax.interop.tiny import tiny_tokenizer
from gram_jax.judge.encode import Encoded, encode_fitting_items, encode_items
from gram_jax.judge.messages import as_prompt
from gram_jax.model.generate import SamplingConfig
from gram_jax.model.specs import param_count, param_specs
from gram_jax.plan.flops import judging_flops, scoring_flops, training_flops
from gram_jax.plan.models import PUBLISHED
from gram_jax.recipes.reading import make_recipe, make_rl_recipe
from gram_jax.reports.report import write_reports
from gram_jax.rl.loop import run_rl
from gram_jax.scoring.calls import WorkCounters
from gram_jax.scoring.padded import padded_logits
from gram_jax.scoring.scalar import ScalarRewardModel
from gram_jax.serve.app import make_app
from gram_jax.training.examples import training_examples
from gram_jax.training.optimizer import make_optimizer

DEMO = Path(gram_jax.__file__).parent / "demo" / "assets"
METHODS = ("prefix_shared", "padded")
RANKINGS = ("groups", "round_robin", "bradley_terry", "knockout", "linear")
SAVED = ("params", "rest")  # items of a checkpoint
TIMED = ("tokens_per_second",)  # figures of a run that depend on the clock
ADAPTATION = ("rows", "temperature", "pairs", "better_where_chosen", "choosing", "test")
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "pretrain": ("pretrain", {"batch__packing": True}),
    "finetune": ("finetune", {}),
    "bradley_terry": ("bradley_terry", {}),
    "finetune/packed": ("finetune", {"batch__packing": True, "execution__remat": "full"}),
    "finetune/lora": ("finetune", {"lora__rank": 4, "lora__alpha": 8.0, "lora__target_modules": ["q", "v", "down"]}),
    "finetune/accumulated": ("finetune", {"batch__gradient_accumulation_steps": 2}),
    "finetune/bfloat16": ("finetune", {"execution__compute_dtype": "bfloat16"}),
}  # fmt: skip
RL_RUNS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "ppo": {"algorithm__num_mini_batches": 2, "algorithm__num_epochs": 2, "reward__compare_with": "group"},
    "rloo": {"algorithm__kl_target": 0.02, "reward__scale": "log_odds"},
}  # fmt: skip


# Recipes, models and files of the library.


def training_recipe(stage: str, folder: Path, data: Sequence[Path | str], **changes: Any) -> Any:
    """A recipe of a stage; `table__key=value` changes a key."""
    values: dict[str, Any] = {
        "stage": stage,
        "run": {"output_dir": str(folder), "seed": 0, "max_steps": 4},
        "model": {"name_or_path": "tiny-random", "param_dtype": "float32"},
        "judge": {"template": "default", "labels": ["A", "B"], "max_length": 192, "thinking": False},
        "data": {"train": [str(path) for path in data], "overlong": "drop", "on_bad": "error"},
        "batch": {"batch_size": 4, "max_length": 192, "packing": False, "gradient_accumulation_steps": 1},
        "optimizer": _adamw(warmup_steps=0.25, lr_scheduler_type="cosine", weight_decay=0.01),
        "loss": {"pretrain": {"loss_chunk_size": 256}, "finetune": {"label_smoothing": 0.1}}.get(stage, {}),
        "execution": {"compute_dtype": "float32", "attention": "blocked", "remat": "none"},
        "log": {"tensorboard": False},
    }  # fmt: skip
    if stage != "bradley_terry":
        values["data"]["position_augmentation"] = "both"
    return make_recipe(_changed(values, changes))


def rl_recipe(kind: str, folder: Path, data: Path, judge: Path, **changes: Any) -> Any:
    values = {
        "run": {"output_dir": str(folder), "seed": 0, "max_steps": 2},
        "policy": {"name_or_path": "tiny-random", "param_dtype": "float32"},
        "reward": {"judge": str(judge)},
        "data": {"train": str(data)},
        "sampling": {"prompts_per_step": 2, "num_generations": 4, "max_prompt_length": 60, "max_new_tokens": 8,
                     "temperature": 1.0},
        "algorithm": {"kind": kind, "num_epochs": 1, "num_mini_batches": 1, "gradient_accumulation_steps": 1,
                      "clip_range": 0.2, "clip_range_vf": 0.2, "kl_coef": 0.1, "gamma": 1.0, "gae_lambda": 0.95,
                      "vf_coef": 0.5, "ent_coef": 0.0},
        "optimizer": _adamw(warmup_steps=0.0, lr_scheduler_type="constant", weight_decay=0.0),
        "execution": {"compute_dtype": "float32", "attention": "auto", "remat": "none"},
        "mesh": {"data": 1, "fsdp": 1},
    }  # fmt: skip
    return make_rl_recipe(_changed(values, changes))


def _adamw(**settings: Any) -> dict[str, Any]:
    fixed = {"learning_rate": 3e-3, "b1": 0.9, "b2": 0.99, "eps": 1e-8, "max_grad_norm": 1.0}
    return fixed | settings


def _changed(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    for name, value in changes.items():
        table, key = name.split("__")
        values.setdefault(table, {})[key] = value
    return values


def one_device() -> Any:
    return gram_jax.make_placement({}, devices=jax.devices()[:1])


def random_model(folder: Path, family: str) -> Path:
    return folder if folder.exists() else cases.write_model(folder, family, tiny_tokenizer())


@functools.cache
def random_judge(folder: Path) -> Path:
    """A random judge with a budget of 256 tokens."""
    made = random_model(folder / "judge", "llama")
    gram_jax.make_spec(tiny_tokenizer(), max_length=256).save(made)
    return made


def load_scorer(name: str | Path, **options: Any) -> gram_jax.Scorer:
    defaults = {"compute_dtype": "float32", "method": "prefix_shared", "placement": one_device()}
    return gram_jax.Scorer.load(name, **(defaults | options))


def exported(name: str | Path, folder: Path, dtype: str | None = None) -> Path:
    """The export of a model, in files of at most 100 kB."""
    cfg, params = gram_jax.load_model(name, one_device(), None)
    params = {key: value for key, value in params.items() if key != "score"}
    options = {"tokenizer": None, "spec": None, "shard_bytes": 100_000}
    return gram_jax.export_hf(folder, cfg, params, dtype=dtype, **options)


def metrics_of(run: Path) -> dict[str, list[Any]]:
    """Every figure of a run, as the list of its values."""
    found: dict[str, list[Any]] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        for name, value in json.loads(line).items():
            if name not in TIMED:
                found.setdefault(name, []).append(value)
    return found


def weights_of(run: Path) -> dict[str, str]:
    """Hashes of the last checkpoint of a run as Orbax reads it, and of its model's tensors under Hugging Face names."""
    steps = [path for path in (run / "checkpoints").iterdir() if path.name.isdigit()]
    last = max(steps, key=lambda path: int(path.name))
    read = ocp.StandardCheckpointer().restore
    found = {item: digest_of_all(jax.tree.leaves(read(last / item))) for item in SAVED}
    return found | {"named": digest(tensors_of(exported(run, run.with_name(f"{run.name}-hf"))))}


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for path in files for name, tensor in load_file(path).items()}


# Values: hashes, and numbers without their names.


def digest(value: Any) -> str:
    """Hash of arrays (dtype, shape, bytes), texts, numbers and nested collections of these."""
    seen = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, np.ndarray | jax.Array):
            array = np.ascontiguousarray(value)
            seen.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
        elif isinstance(value, dict):
            for key in sorted(value):
                add(key)
                add(value[key])
        elif isinstance(value, list | tuple):
            seen.update(f"[{len(value)}]".encode())
            for one in value:
                add(one)
        else:
            plain = value.item() if isinstance(value, np.generic) else value
            seen.update(repr(plain).encode())

    add(value)
    return seen.hexdigest()[:32]


def digest_of_all(arrays: Sequence[Any]) -> str:
    """Hash of a set of arrays without their names and their order. Empty arrays are left out."""
    return digest(sorted(digest(array) for array in arrays if array.size))


def digests(values: dict[str, Any]) -> dict[str, str]:
    return {name: digest(value) for name, value in values.items()}


def numbers(value: Any) -> list[float]:
    """All numbers of nested collections. Entries of a dict are ordered by value: a renamed key changes nothing."""
    if isinstance(value, dict):
        value = sorted(map(numbers, value.values()), key=str)
    if isinstance(value, list | tuple | np.ndarray):
        return [number for one in value for number in numbers(one)]
    return [value] if isinstance(value, bool | int | float | np.number) else []


def score_table(scores: Sequence[gram_jax.PairScore]) -> dict[str, list[Any]]:
    return {name: [getattr(score, name) for score in scores] for name in gram_jax.PairScore._fields}


def safetensors_content(path: Path) -> list[Any]:
    """Header and data of a file. Its bytes differ from run to run: safetensors writes the metadata in any order."""
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    return [json.loads(raw[8:end]), hashlib.sha256(raw[end:]).hexdigest()]


# Sections: a function for each subject returns {name: value, collection, or dict of these}.


def scores(folder: Path) -> dict[str, Any]:
    judge, items, found = random_judge(folder), cases.comparisons(), {}
    kinds = [*product(METHODS, ("float32", "bfloat16"), ("auto",)), ("prefix_shared", "float32", "int8")]  # fmt: skip
    for method, compute_dtype, weights in kinds:
        scorer = load_scorer(judge, method=method, compute_dtype=compute_dtype, weights=weights)
        name = f"{method}/{compute_dtype}/{weights}"
        found[name] = score_table(scorer.score_many(items))
        found[f"{name}/alone"] = score_table([scorer.score(*one) for one in items[:22:7]])
    scorer = load_scorer("tiny-random", max_length=256)
    found["tiny-random"] = score_table(scorer.score_many(items[:8]))
    for family, compute_dtype in product(cases.FAMILIES, ("float32", "bfloat16")):
        model = random_model(folder / family, family)
        found[f"arrays/{family}/{compute_dtype}"] = logits_and_probabilities(model, compute_dtype)
    return found


def logits_and_probabilities(name: Path, compute_dtype: str) -> dict[str, Any]:
    """Of random tokens [B, O, T]; the last positions of every other row are padding."""
    tokens = np.random.default_rng(1).integers(3, 280, (3, 2, 40), dtype=np.int32)
    T = tokens.shape[-1]
    last = np.where(np.arange(len(tokens))[:, None] % 2, T - 5, T - 1) + np.zeros((1, 2), np.int32)
    segments = (np.arange(T) <= last[..., None]).astype(np.int32)
    positions = np.broadcast_to(np.arange(T, dtype=np.int32), tokens.shape)
    pair = gram_jax.PairBatch(
        gram_jax.Sequences(tokens, positions, segments), last.astype(np.int32)
    )
    cfg, params = gram_jax.load_model(name, one_device(), compute_dtype)
    execution = gram_jax.Execution(compute_dtype, "blocked", "none", one_device())
    logits = padded_logits(params, cfg, pair, (35, 36), execution)
    shares = gram_jax.score_pair(params, cfg, pair, (35, 36), execution)
    return {"logits": np.ravel(logits).tolist(), "probabilities": np.ravel(shares).tolist()}


def rankings(folder: Path) -> dict[str, Any]:
    scorer, draw = load_scorer(random_judge(folder)), random.Random(3)
    responses = [cases.words(draw, 2 + at) for at in range(6)]
    responses.append(responses[0])
    methods: dict[str, dict[str, Any]] = {
        f"{method}/{orders}": {"method": method, "order_mode": orders}
        for method, orders in product(RANKINGS, ("both", "one"))
    }
    methods["reference/texts"] = {"method": "reference", "references": ["oak elm", "the sun"]}
    methods["reference/count"] = {"method": "reference", "references": 2}
    found = {}
    for name, options in (methods | {"default": {}}).items():
        ranked = scorer.rank("Name trees.", responses, **options)._asdict().items()
        found[name] = {k: np.ravel(x).astype(float).tolist() for k, x in ranked if x is not None}
    return found


def encoding(folder: Path) -> dict[str, Any]:
    (folder / "template.txt").write_text(cases.TEMPLATE)
    no_thoughts = "assistant\\n<think>\\n\\n</think>\\n\\n"
    thinking = tiny_tokenizer().chat_template.replace("assistant\\n", no_thoughts)
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "default": (tiny_tokenizer(), {}),
        "system": (tiny_tokenizer(), {"system": "Be strict.", "labels": ("1", "2")}),
        "file": (tiny_tokenizer(), {"template": folder / "template.txt"}),
        "dataset": (tiny_tokenizer(), {"template": "from-dataset", "rows": cases.rendered_rows()}),
        "thinking": (tiny_tokenizer(thinking), {"max_length": 400}),
    }
    encoders = {"truncate": encode_items, "drop": encode_fitting_items}
    found = {}
    for name, (tokenizer, options) in kinds.items():
        spec = gram_jax.make_spec(tokenizer, **{"max_length": 256, **options})
        found[f"{name}/spec"] = digests(dataclasses.asdict(spec))
        for layout, overlong in product(("comparison", "pretraining", "response"), encoders):
            items = [one[:2] if layout == "response" else one for one in cases.comparisons()]
            rows = encoders[overlong](tokenizer, getattr(spec, layout), items, spec.max_length)
            names = [field.name for field in dataclasses.fields(Encoded)]
            columns = {x: [row and getattr(row, x) for row in rows] for x in names}
            found[f"{name}/{layout}/{overlong}"] = digests(columns)
    return found


def data(folder: Path) -> dict[str, Any]:
    def records_of(source: Path, kind: str, **options: Any) -> str:
        records, report = gram_jax.read_records(source, kind, **options)
        rows = [dataclasses.asdict(record) for record in records]
        return digest([report.rows, report.kept, list(report.dropped.values()), rows])

    found = {}
    for name, rows in cases.schema_rows().items():
        source = cases.write_lines(folder / f"{name}.jsonl", rows)
        kinds = ["candidates"]
        kinds += ["pair"] * (name != "several")
        kinds += ["preference"] * (name not in ("unlabeled", "several"))
        kinds += ["graded"] * (name in ("several", "rewardbench2"))
        found |= {f"{name}/{kind}": records_of(source, kind) for kind in kinds}
    for name, path in cases.file_formats(folder):
        found[f"file/{name}"] = records_of(path, "preference")
    broken = folder / "broken.jsonl"
    broken.write_text((folder / "plain.jsonl").read_text() + '{"prompt": 3}\n[1]\n')
    found["skipped"] = records_of(broken, "preference", on_bad="skip")
    for name, kind in {"heldout": "preference", "preferences": "preference", "unlabeled": "pair"}.items():  # fmt: skip
        found[f"demo/{name}"] = records_of(DEMO / f"demo_{name}.jsonl.gz", kind)
    return found


def batches(folder: Path) -> dict[str, Any]:
    size = {"batch__max_length": 384, "judge__max_length": 384, "data__limit": 60}
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "pretrain": ("pretrain", {}),
        "bradley_terry": ("bradley_terry", {}),
        "finetune": ("finetune", {}),
        "finetune/hash": ("finetune", {"data__position_augmentation": "hash"}),
        "finetune/fixed": ("finetune", {"data__position_augmentation": "fixed"}),
        "finetune/truncate": ("finetune", {"data__overlong": "truncate", "judge__max_length": 256}),
        "finetune/attacks": ("finetune", {"data__attack_share": 0.3}),
    }
    tokenizer, found = gram_jax.load_tokenizer("tiny-random"), {}
    for (name, (stage, changes)), packing in product(kinds.items(), (False, True)):
        source = DEMO / f"demo_{'unlabeled' if stage == 'pretrain' else 'preferences'}.jsonl.gz"
        recipe = training_recipe(stage, folder / "none", [source], **(size | changes))
        spec = gram_jax.make_spec(tokenizer, max_length=recipe.judge.max_length)
        examples = training_examples(recipe, tokenizer, spec)
        plan = BatchPlan(examples, batch_size=4, max_length=384, seed=0, packing=packing)
        for step in range(6):
            arrays = plan.batch(step)._asdict()
            arrays |= arrays.pop("seqs")._asdict()
            found[f"{name}/{'packed' if packing else 'padded'}/{step}"] = digests(arrays)
    return found


@functools.cache
def trained(folder: Path, name: str) -> Path:
    """The folder of a run of RUNS, with evaluation on other pairs after steps 2 and 4."""
    stage, changes = RUNS[name]
    run = folder / f"run-{name.replace('/', '-')}"
    source = cases.write_pairs(folder / "train.jsonl", 12)
    valid = cases.write_pairs(folder / "valid.jsonl", 6, seed=1)
    held_out = {"data__valid": [str(valid)], "evaluate__eval_steps": 2}
    recipe = training_recipe(stage, run, [source], **held_out, **changes)
    gram_jax.train(recipe, placement=one_device())
    return run


def training(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in RUNS:
        run = trained(folder, name)
        found[name] = {"metrics": metrics_of(run), "hash": weights_of(run)}
    for moments in (("bfloat16", "bfloat16"), ("int8", "int8"), ("float32", "factored")):
        found[f"optimizer/{'/'.join(moments)}"] = optimizer_steps(*moments)
    return found


def optimizer_steps(first: str, second: str) -> dict[str, str]:
    """Updates and state of three steps with compact moments."""
    changes = {"optimizer__first_moment_dtype": first, "optimizer__second_moment_dtype": second}
    recipe = training_recipe("finetune", Path("x"), ["x"], **changes)
    optimizer = make_optimizer(recipe.optimizer, 10, param_specs(model_config("tiny-random")))
    params = gram_jax.load_model("tiny-random", one_device(), None)[1]
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    updates = None
    for _ in range(3):
        updates, state = update(jax.tree.map(lambda x: 0.1 * x + x * x, params), state, params)
    found = {"updates": updates, "state": state}
    return {name: digest_of_all(jax.tree.leaves(value)) for name, value in found.items()}


def baseline(folder: Path) -> dict[str, Any]:
    run, items = trained(folder, "bradley_terry"), cases.comparisons()
    model = ScalarRewardModel.load(run, compute_dtype="float32", placement=one_device())
    rewards = model.rewards([one[:2] for one in items]).tolist()
    return {"rewards": rewards, **score_table(list(model.stream(items)))}


def reinforcement(folder: Path) -> dict[str, Any]:
    found, source = {}, cases.write_pairs(folder / "prompts.jsonl", 8)
    for kind, changes in RL_RUNS.items():
        run = folder / f"rl-{kind}"
        recipe = rl_recipe(kind, run, source, random_judge(folder), **changes)
        run_rl(recipe, placement=one_device())
        found[kind] = {"metrics": metrics_of(run), "hash": weights_of(run)}
    return found


def generation(folder: Path) -> dict[str, Any]:
    judge, found = random_judge(folder), {}
    generator = gram_jax.TextGenerator.load(judge, compute_dtype="float32", placement=one_device())
    prompts = [as_prompt(text) for text in ("Name a tree.", "Why?", "a " * 90)]
    settings = {
        "greedy": SamplingConfig(12, 0),
        "sampled": SamplingConfig(12, 0.8, seed=3),
        "nucleus": SamplingConfig(12, 1.0, top_p=0.7, seed=4),
    }
    for name, sampling in settings.items():
        samples = generator.generate(prompts, sampling).samples
        logprobs = np.ravel(samples.logprobs).astype(float)
        found[name] = {"tokens": np.ravel(samples.tokens).tolist(), "logprobs": logprobs.tolist()}
    out = folder / "best_of_n"
    out.mkdir()
    policy, sampling = "tiny-random", SamplingConfig(8)
    best = run_best_of_n(policy, str(judge), prompts, out, sampling, n=4, compute_dtype="float32")
    found["best_of_n"] = {"table": numbers(best["best_of"]), "rewards": numbers(best["rewards"])}
    return found


def exports(folder: Path) -> dict[str, Any]:
    sources = {"tiny-random": "tiny-random", "finetune": trained(folder, "finetune/lora")}
    sources |= {family: random_model(folder / family, family) for family in cases.FAMILIES}
    found = {}
    for (name, source), dtype in product(sources.items(), (None, "bfloat16")):
        out = exported(source, folder / f"out-{name}-{dtype}", dtype)
        before, after = (
            digest_of_all(jax.tree.leaves(gram_jax.load_model(x, one_device(), dtype)[1]))
            for x in (source, out)
        )
        files = sorted(out.glob("*.safetensors"))
        found[f"{name}/{dtype}"] = {
            "files": digests({path.name: safetensors_content(path) for path in files}),
            "tensors": digests(tensors_of(out)),
            "config": digest(json.loads((out / "config.json").read_text())),
            "imported_again": before == after,
        }
    return found


def adaptation(folder: Path) -> dict[str, Any]:
    source, found = cases.write_pairs(folder / "adapt.jsonl", 150), {}
    spec = gram_jax.make_spec(tiny_tokenizer(), max_length=192)
    for method, rate in {"full": 3e-3, "lora": 1e-2}.items():
        settings = gram_jax.AdaptConfig(method, 2, 1, rate, batch_size=8, max_length=192)
        out = folder / f"adapted-{method}"
        gram_jax.adapt("tiny-random", str(source), out, settings, spec=spec, accept=True)
        params = gram_jax.load_model(out / "judge", one_device(), None)[1]
        held = json.loads((out / "adaptation.json").read_text())
        found[method] = {name: numbers(held[name]) for name in ADAPTATION}
        found[method]["weights"] = digest_of_all(jax.tree.leaves(params))
    return found


def evaluation(folder: Path) -> dict[str, Any]:
    out, demo = folder / "evaluated", DEMO / "demo_heldout.jsonl.gz"
    scorer = load_scorer(random_judge(folder))
    names = ("several", "judgebench", "labeled", "rmbench", "rewardbench", "rewardbench2")
    sources = {x: cases.write_lines(folder / f"{x}.jsonl", cases.schema_rows()[x]) for x in names}
    gram_jax.evaluate(
        scorer, [str(demo), *map(str, sources.values())], model="golden", limit=60, out=out
    )
    held = json.loads((out / "evaluation.json").read_text())["sources"].values()
    found: dict[str, Any] = {
        name: {key: numbers(value) for key, value in values.items()}
        for name, values in zip(("demo", *sources), held, strict=True)
    }
    pairs = choose_pairs(gram_jax.read_records(demo)[0], 8, seed=0)
    report = run_attacks(scorer, "golden", str(demo), pairs, out, choose_attacks(None), seed=0)
    found["attacks/clean"] = numbers(report.clean.model_dump())
    found["attacks/any"] = numbers(report.any_hostile.model_dump())
    for entry in report.attacks:
        found[f"attacks/{entry.name}"] = numbers(entry.model_dump(exclude={"example"}))
    write_reports([out], out=out / "r.html", markdown=out / "r.md", overwrite=False)
    page, lines = (out / "r.html").read_text(), (out / "r.md").read_text().splitlines()
    tags = ("h1", "h2", "h3", "table", "tr", "td", "th", "svg", "details")
    found["report/html"] = {tag: len(re.findall(f"<{tag}[ >]", page)) for tag in tags}
    starts = {"headings": "#", "table_rows": "|"}
    found["report/markdown"] = {k: sum(x.startswith(v) for x in lines) for k, v in starts.items()}
    return found


def server(folder: Path) -> dict[str, Any]:
    def client(**options: Any) -> TestClient:
        scorer = load_scorer(random_judge(folder))
        return TestClient(make_app(scorer, "golden", warm_up=False, group_wait=0.3, **options))

    posts, found = cases.requests(RANKINGS), {}
    with client() as server:
        answers = {name: server.post(path, json=body) for name, (path, body) in posts.items()}
        for path in ("/health", "/healthz", "/readyz", "/v1/models", "/", "/metrics"):
            answers[f"get{path}"] = server.get(path)
    for name, answer in answers.items():
        body = answer.json() if "json" in answer.headers["content-type"] else {}
        rows = [{k: v for k, v in row.items() if k != "created"} for row in body.pop("data", [])]
        rest = {k: v for k, v in body.items() if k not in ("id", "created")}
        found[name] = {"status": answer.status_code, "numbers": numbers(rest), "data": numbers(rows)}  # fmt: skip
    with client(token="secret") as server:
        for name, headers in {"without": {}, "with": {"authorization": "Bearer secret"}}.items():
            path, body = posts["pair"]
            found[f"token/{name}"] = server.post(path, json=body, headers=headers).status_code
    return found


def plans(folder: Path) -> dict[str, Any]:
    work = WorkCounters(
        sequences=32, tokens_requested=30000, tokens_unique=20000, attention_pairs=9000000
    )
    found = {}
    for name, cfg in (PUBLISHED | {"tiny-random": model_config("tiny-random")}).items():
        found[name] = {
            "parameters": param_count(param_specs(cfg)),
            "scoring": numbers(dataclasses.astuple(scoring_flops(cfg, 16, 2048))),
            "judging": judging_flops(cfg, work),
        }
        for run, (stage, changes) in RUNS.items():
            recipe = training_recipe(stage, folder, ["x"], **changes)
            found[name][run] = numbers(dataclasses.astuple(training_flops(recipe, cfg)))
    return found


SECTIONS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "scores": scores, "rank": rankings, "encoding": encoding, "data": data, "batches": batches,
    "train": training, "baseline": baseline, "rl": reinforcement, "generation": generation, "export": exports,
    "adapt": adaptation, "evaluation": evaluation, "server": server, "plan": plans,
}  # fmt: skip


# The command.


def compute(only: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """({name: value as JSON holds it, which keeps every bit of a float}, the sections that failed)."""
    found: dict[str, Any] = {}
    failed = []
    for name in only:
        start = time.perf_counter()
        try:
            with tempfile.TemporaryDirectory() as folder, silence():
                found |= flattened(SECTIONS[name](Path(folder)), name)
        except Exception:
            traceback.print_exc()
            failed.append(name)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return json.loads(json.dumps(found, default=lambda x: x.item())), failed


@contextmanager
def silence() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def flattened(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inside in value.items():
            yield from flattened(inside, f"{name}/{key}")
    else:
        yield name, value


def differences(expected: dict[str, Any], found: dict[str, Any]) -> Iterator[str]:
    for name in dict.fromkeys([*expected, *found]):
        if name not in found or name not in expected:
            yield f"{name}: {'missing now' if name in expected else 'not recorded before'}"
        elif json.dumps(expected[name]) != json.dumps(found[name]):  # so that NaN equals NaN
            yield f"{name}:\n  expected {expected[name]}\n  found    {found[name]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable()
    print(f"gram_jax of {Path(gram_jax.__file__).parent}", file=sys.stderr)
    found, failed = compute(options.only)
    if options.action == "record":
        if failed:
            sys.exit(f"failed: {', '.join(failed)}; nothing was recorded")
        options.file.write_text(json.dumps(found, indent=1) + "\n")
        return
    expected = json.loads(options.file.read_text())
    expected = {name: x for name, x in expected.items() if name.split("/")[0] in options.only}
    lines = list(differences(expected, found))
    print("\n".join([*lines, f"{len(lines)} of {len(expected)} values differ"]))
    sys.exit(bool(lines or failed))


if __name__ == "__main__":
    main()
