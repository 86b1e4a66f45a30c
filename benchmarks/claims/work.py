"""Train and test a cell; an interrupted one resumes.

The folder of results has cells/ (one file for each finished cell), runs/ (runs in training), starts/ (models from which
several cells start), draws/ (the pairs of a run) and sets/ (scores of a cell in testing). All except cells/ are deleted
when no other cell needs them.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from cells import Cell
from pools import Pools, digest, write_pairs, write_whole
from sizes import Size

from gram_jax.cli.console import Console
from gram_jax.data.records import Comparison
from gram_jax.data.self_supervised import corrupted_pairs
from gram_jax.interop.hf_export import export_hf
from gram_jax.interop.models import load_model, load_spec, load_tokenizer
from gram_jax.recipes.reading import make_recipe
from gram_jax.run.metrics import read_metrics
from gram_jax.scoring.scalar import ScalarRewardModel
from gram_jax.scoring.scorer import Scorer
from gram_jax.sharding import make_placement
from gram_jax.training.loop import train

# Tables of the recipe that no result depends on.
NOT_IN_KEY = ("checkpoint", "log")
# Of every stage, except the learning rate.
OPTIMIZER = {
    "warmup_steps": 0.1,
    "lr_scheduler_type": "cosine",
    "b1": 0.9,
    "b2": 0.999,
    "eps": 1e-8,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
}
CORRUPTION_SMOOTHING = 0.2  # the responses that are corrupted may be bad themselves
# Weight of the divergence of both orders; with 1 the demo's judge learned nothing (docs/first-stages.md).
CONSISTENCY = 0.1
EDGE = 0.1  # share of the steps over which the first and the last loss are averaged


@dataclass(frozen=True)
class Run:
    """One training: of `stage`, from the end of another run (None: the base model), on `count` pairs of a source.

    source: of Pools.draw, or "corruptions" of unlabeled pairs. layout: of stage 1. unlabeled: number of unlabeled pairs
    of stage 2, with order consistency.
    """

    stage: str
    start: "Run | None"
    source: str
    count: int
    seed: int
    smoothing: float
    rate: float
    layout: str = ""
    unlabeled: int = 0


def run_of(cell: Cell, pools: Pools) -> Run | None:
    """The last training of a cell, with those before it; None for the base model."""
    run, unlabeled = None, 0
    if cell.unlabeled:
        count = round(cell.unlabeled * pools.count("unlabeled", pools.size.unlabeled))
        run = _first_run(cell, pools.size.layout, count)
        unlabeled = count if cell.first == "consistency" else 0
    stage = "finetune" if cell.kind == "generative" else "bradley_terry"
    if cell.labels:
        count = pools.count("labels", cell.labels)
        settings = (cell.seed, cell.smoothing, cell.rate)
        run = Run(stage, run, "labels", count, *settings, unlabeled=unlabeled)
    if cell.domain:
        run = Run(stage, run, "domain", cell.domain, cell.seed, cell.smoothing, cell.rate)
    return run


def _first_run(cell: Cell, layout: str, count: int) -> Run | None:
    """The first stage of a cell on unlabeled pairs; None if they are used in stage 2."""
    if cell.first == "consistency":
        return None
    if cell.first == "corruptions":
        return Run("finetune", None, "corruptions", count, cell.seed, CORRUPTION_SMOOTHING, 1.0)
    layout = "gram" if cell.first == "gram" else layout
    return Run("pretrain", None, "unlabeled", count, cell.seed, 0.0, 1.0, layout=layout)


@dataclass(frozen=True, eq=False)
class Workshop:
    """Trains and tests cells. folder: of the results; model: the base model."""

    folder: Path
    pools: Pools
    model: str
    console: Console

    @property
    def size(self) -> Size:
        """The size of the grid."""
        return self.pools.size

    @cached_property
    def _keys(self) -> dict[Run, str]:
        return {}

    @cached_property
    def _test_digests(self) -> dict[str, str]:
        sets = {**self.pools.tests, **self.pools.long}
        return {name: digest(pairs) for name, pairs in sets.items()}

    @cached_property
    def _pool_digests(self) -> dict[str, list[str]]:
        # Including the ids of the pairs: draws and the order shown depend on them.
        pools = {source: self.pools.pool(source) for source in ("unlabeled", "labels", "domain")}
        pools["corruptions"] = pools["unlabeled"]
        return {source: [digest(of), _hash([p.id for p in of])] for source, of in pools.items()}

    def run_key(self, run: Run) -> str:
        """A hash of everything that decides the weights at the end of a run.

        Only keys of the recipe that are stated here count: a new setting that is off by default changes no hash.
        """
        if run not in self._keys:
            values = self._values(run, "", "", "")
            decides = {name: part for name, part in values.items() if name not in NOT_IN_KEY}
            if values["data"].get("pretraining_layout") == "gram":  # that of the first cells
                del values["data"]["pretraining_layout"]
            start = self.model if run.start is None else self.run_key(run.start)
            drawn = [self._pool_digests[run.source], run.count, self.size.domain_train]
            if run.source == "corruptions":
                drawn.append(run.source)
            if run.unlabeled:
                drawn += [self._pool_digests["unlabeled"], run.unlabeled]
            self._keys[run] = _hash([decides, start, drawn])
        return self._keys[run]

    def key(self, cell: Cell) -> str:
        """A hash of everything that decides a cell's results: its runs, the tested pairs, the judge specification."""
        run = run_of(cell, self.pools)
        trained = self.model if run is None else self.run_key(run)
        tested = {name: self._test_digests[name] for name in self.sets(cell)}
        if cell.domain:
            tested["part"] = cell.seed
        asked = [self.pools.spec.hash, self.size.compute_dtype, cell.kind]
        return _hash([trained, tested, asked])

    def done(self, cell: Cell) -> Path:
        """The file of a cell's result."""
        return self.folder / "cells" / f"{self.key(cell)}.json"

    def compute(self, cell: Cell) -> dict[str, Any]:
        """Train the missing runs and score every tested pair: a value for JSON.

        {"sets": {name: {"p": P(chosen) of every pair, "gap": P(chosen) when shown first minus when shown second}},
        "training": of the cell's own run, or None; "test_seconds"}.
        """
        run = run_of(cell, self.pools)
        model, training = self.model, None
        if run is not None:
            model, training = self._trained(run)
        begun = time.monotonic()
        sets = self._ask(cell, model)
        return {
            "sets": sets,
            "training": training,
            "test_seconds": round(time.monotonic() - begun, 1),
        }

    def clear(self, cell: Cell, coming: Sequence[Cell]) -> None:
        """Keep the runs of a finished cell from which later cells start, and remove the others."""
        needed = {run for other in coming for run in self._parts(other)[1:]}
        own = self._parts(cell)
        if own and own[0] in needed:
            self.as_start(own[0])
        for run in own:
            if run not in needed:
                self._remove_run(run)
                shutil.rmtree(self._start(run), ignore_errors=True)
        self._partial(cell).unlink(missing_ok=True)

    def as_start(self, run: Run) -> Path:
        """The model at the end of a run, as a folder from which other runs start."""
        place = self._start(run)
        if not place.exists():
            source, _ = self._trained(run)
            cfg, params = load_model(source, make_placement({}), "float32")
            judge = {"tokenizer": load_tokenizer(source), "spec": load_spec(source)}
            place.parent.mkdir(exist_ok=True)
            export_hf(place, cfg, params, dtype=None, **judge)
        self._remove_run(run)
        return place

    def _parts(self, cell: Cell) -> list[Run]:
        """The runs of a cell, the last first."""
        parts, run = [], run_of(cell, self.pools)
        while run is not None:
            parts.append(run)
            run = run.start
        return parts

    def _trained(self, run: Run) -> tuple[str, dict[str, Any]]:
        """(the run's folder, figures of its training); a finished run is not computed again."""
        start = self.model if run.start is None else str(self.as_start(run.start))
        folder, pairs = self._folder(run), self.folder / "draws" / f"{self.run_key(run)}.jsonl"
        drawn = self._drawn(run)
        write_pairs(pairs, drawn)
        if run.unlabeled:
            plain = self.pools.draw("unlabeled", run.unlabeled, run.seed)
            write_pairs(Path(unlabeled_file(str(pairs))), plain)
        recipe = make_recipe(self._values(run, start, str(folder), str(pairs)))
        done = train(recipe, progress=self.console.progress)
        rows = read_metrics(folder / "metrics.jsonl")
        losses = [row["loss"] for row in rows if "loss" in row]
        edge = max(1, round(EDGE * len(losses)))
        training = {
            "stage": run.stage,
            "pairs": len(drawn),
            "steps": done.steps,
            "first_loss": round(float(np.mean(losses[:edge])), 4),
            "last_loss": round(float(np.mean(losses[-edge:])), 4),
            "step_seconds": round(step_seconds(rows), 1),
        }
        self.console.say(f"trained: {json.dumps(training)}")
        return str(folder), training

    def _drawn(self, run: Run) -> list[Comparison]:
        if run.source == "corruptions":
            return corrupted_pairs(self.pools.draw("unlabeled", run.count, run.seed), seed=run.seed)
        return self.pools.draw(run.source, run.count, run.seed)

    def _values(self, run: Run, start: str, folder: str, pairs: str) -> dict[str, Any]:
        """The recipe of a run."""
        size, rank = self.size, run.stage == "bradley_terry"
        loss: dict[str, dict[str, Any]] = {
            "pretrain": {"loss_chunk_size": 512},
            "finetune": {"label_smoothing": run.smoothing},
            "bradley_terry": {},
        }
        return {
            "stage": run.stage,
            "run": {"output_dir": folder, "seed": run.seed, "num_train_epochs": self._epochs(run)},
            "model": {"name_or_path": start, "param_dtype": "float32"},
            "judge": {
                "template": size.template,
                "labels": ["A", "B"],
                "max_length": size.max_length,
                "thinking": False,
                "system": "",
            },
            "data": self._data(run, pairs),
            "batch": {
                "batch_size": size.rank_rows if rank else size.rows,
                "max_length": size.rank_length if rank else size.length,
                "packing": True,
                "gradient_accumulation_steps": 1,
            },
            "optimizer": {"learning_rate": size.rates[run.stage] * run.rate, **OPTIMIZER},
            "loss": loss[run.stage] | ({"order_consistency": CONSISTENCY} if run.unlabeled else {}),
            "execution": {
                "compute_dtype": size.compute_dtype,
                "attention": "auto",
                "remat": "none",
            },
            "checkpoint": {"save_steps": size.save_every, "max_to_keep": 1},
            "log": {"tensorboard": False},
        }

    def _data(self, run: Run, pairs: str) -> dict[str, Any]:
        """The table `data` of the recipe."""
        data: dict[str, Any] = {
            "train": [pairs],
            "schema": "pairs" if run.stage == "pretrain" else "trl-standard",
            "overlong": "error",
            "on_bad": "error",
        }
        if run.unlabeled:
            data |= {"train": [pairs, unlabeled_file(pairs)], "schema": "auto"}
        if run.stage == "bradley_terry":
            return data
        if run.stage == "finetune":
            return data | {"position_augmentation": self.size.orders}
        return data | {
            "position_augmentation": "hash",
            "pretraining_layout": run.layout,
        }

    def _epochs(self, run: Run) -> int:
        return 1 if run.stage == "pretrain" else self.size.epochs

    def sets(self, cell: Cell) -> dict[str, list[Comparison]]:
        """The sets on which a cell is tested."""
        pools = self.pools
        if cell.domain:
            return {self.size.domain: pools.tests[self.size.domain]}
        everything = cell.labels in (0, self.size.base) and cell.unlabeled in (0, 1)
        plain = cell.rate == 1 and cell.smoothing == (0.1 if cell.kind == "generative" else 0)
        return {**pools.tests, **(pools.long if everything and plain else {})}

    def _ask(self, cell: Cell, model: str) -> dict[str, Any]:
        partial = self._partial(cell)
        answers = json.loads(partial.read_text()) if partial.exists() else {}
        reader: Any = None
        for name, pairs in self.sets(cell).items():
            if name in answers:
                continue
            if cell.domain:
                pairs = [
                    p
                    for p, test in zip(pairs, self.pools.domain_test(cell.seed), strict=True)
                    if test
                ]
            if reader is None:
                reader = self._reader(cell, model)
            scores = list(reader.stream((p.prompt, p.chosen, p.rejected) for p in pairs))
            answers[name] = {
                "p": [round(score.first, 8) for score in scores],
                "gap": [round(score.position_bias, 5) for score in scores],
            }
            write_whole(partial, json.dumps(answers))
        return answers

    def _reader(self, cell: Cell, model: str) -> Scorer | ScalarRewardModel:
        if cell.kind == "discriminative":
            return ScalarRewardModel.load(model, compute_dtype=self.size.compute_dtype)
        return Scorer.load(model, compute_dtype=self.size.compute_dtype, spec=self.pools.spec)

    def _folder(self, run: Run) -> Path:
        return self.folder / "runs" / f"{run.stage}-{self.run_key(run)}"

    def _start(self, run: Run) -> Path:
        return self.folder / "starts" / f"{run.stage}-{self.run_key(run)}"

    def _partial(self, cell: Cell) -> Path:
        return self.folder / "sets" / f"{self.key(cell)}.json"

    def _remove_run(self, run: Run) -> None:
        shutil.rmtree(self._folder(run), ignore_errors=True)
        pairs = self.folder / "draws" / f"{self.run_key(run)}.jsonl"
        for path in (pairs, Path(unlabeled_file(str(pairs)))):
            path.unlink(missing_ok=True)


def unlabeled_file(pairs: str) -> str:
    """The file of the unlabeled pairs of stage 2, next to that of the labeled ones."""
    return f"{pairs.removesuffix('.jsonl')}.unlabeled.jsonl"


def step_seconds(rows: Sequence[dict[str, Any]]) -> float:
    """Total seconds of the steps of a run, over all its processes, without compiling, loading and saving.

    rows: of metrics.jsonl, in which tokens count from the beginning and speeds from the previous row.
    """
    seconds, before = 0.0, 0
    for row in rows:
        if row.get("tokens_per_second"):
            seconds += (row["num_tokens"] - before) / row["tokens_per_second"]
            before = row["num_tokens"]
    return seconds


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
