"""One command for a new accelerator: the most informative measurements first, within the minutes that there are.

    python benchmarks/accelerator.py RESULTS.json [--minutes 9] [--page RESULTS.md] [--small NAME] [--large NAME]

Measures on the devices that JAX finds, GPUs, TPUs, or with --tiny a CPU. Weights and tokens are random, so nothing is
downloaded. The order: peaks of products and memory; scoring and both training stages of a small shape; attention back
ends; padded rows against the prefix tree; batch invariance; scoring and training of the largest shape that fits;
PyTorch and transformers, if they are installed and PyTorch has a GPU. On TPUs a training step also has the forecast of
`gram-jax plan`, so that the forecast can be judged.

Every result is in RESULTS.json as soon as it exists, a measurement that fails with its error, and the process ends at
--minutes whatever it is doing. `--page` writes the results as Markdown; with `--minutes 0` those of an existing file.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

# PyTorch runs in another process and needs memory, too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
from common import training_settings

from gram_jax.errors import RecipeError, in_short
from gram_jax.files import read_json, write_json
from gram_jax.formatting import format_bytes, format_count, format_value
from gram_jax.interop.models import model_config
from gram_jax.model.attention import attention
from gram_jax.model.config import ModelConfig
from gram_jax.model.execution import Execution, inference_execution
from gram_jax.model.specs import init_params, param_count, param_specs
from gram_jax.plan.bench import BenchConfig, run_bench
from gram_jax.plan.machine import measure_machine, peak_memory
from gram_jax.plan.models import PUBLISHED, published_config
from gram_jax.plan.plan import make_plan
from gram_jax.plan.programs import PlanRequest, training_program
from gram_jax.plan.topology import make_target, read_topology
from gram_jax.plan.workloads import random_pairs
from gram_jax.recipes.reading import read_recipe
from gram_jax.scoring.engine import ScoringEngine
from gram_jax.sharding import make_placement
from gram_jax.training.compiling import free_bytes
from gram_jax.version import installed_version

TINY = "tiny-random"
STAGES = {2: "finetune", 1: "pretrain"}
ROWS = 4  # per device and step
# Bytes for each weight: bf16 to score; f32 weights, gradients and two moments to train. Activations have the rest.
BYTES = {"score": 2, "train": 16}
SHARE = 0.6
ROUNDS = 5
Measurement = Callable[[], dict[str, Any]]


def measurements(small: str, large: str | None, tiny: bool) -> Iterator[tuple[str, Measurement]]:
    """(name, function) of every measurement, the most informative first."""
    length = 64 if tiny else 2048
    lengths = ("64",) if tiny else ("mix", "2048")
    score = partial(scoring, lengths=lengths, pairs=2 if tiny else 256)
    yield "peaks", partial(peaks, tiny)
    yield f"score {small}, padded", partial(score, small, method="padded")
    for stage in STAGES:
        yield f"stage {stage} {small}", partial(training, stage, small, length)
    yield "attention", partial(attention_backends, length, tiny)
    tree = partial(score, small, method="prefix_shared", best_of=() if tiny else (8,))
    yield f"score {small}, prefix tree", tree
    yield f"batch invariance {small}", partial(invariance, small, 3 if tiny else 32)
    if not tiny:
        scored, trained = (large or largest(kind) for kind in ("score", "train"))
        yield f"score {scored}, padded", partial(score, scored, method="padded")
        for stage in STAGES:
            yield f"stage {stage} {trained}", partial(training, stage, trained, length)
        yield f"transformers {small}", partial(transformers, small, length)


def shape_of(name: str) -> ModelConfig:
    """A published shape, or the tiny one."""
    return published_config(name) or model_config(name)


def largest(kind: str) -> str:
    """The largest published shape that fits the memory of all devices together with space for activations."""
    placement = make_placement({})
    memory = (free_bytes(placement) or 0) * placement.mesh.size
    counts = {name: param_count(param_specs(cfg)) for name, cfg in PUBLISHED.items()}
    fitting = {name: n for name, n in counts.items() if n * BYTES[kind] <= SHARE * memory}
    return max(fitting or {min(counts, key=counts.__getitem__): 0}, key=counts.__getitem__)


def peaks(tiny: bool) -> dict[str, Any]:
    """FLOP/s of a matrix product in both types and bytes per second of a copy, of one device; the devices' names."""
    placement = make_placement({})
    found = {kind: asdict(measure_machine(placement, kind)) for kind in ("bfloat16", "float32")}
    x = jnp.zeros(2**22 if tiny else 2**29, jnp.float32)
    copying = min(seconds_of(partial(jax.jit(lambda x: x + 1), x)))
    return {
        "device": found["bfloat16"]["kind"],
        "devices": found["bfloat16"]["devices"],
        **{f"{kind} FLOP/s": one["ceiling"] for kind, one in found.items()},
        "bfloat16 data sheet": found["bfloat16"]["peak"],
        "copied bytes/s": 2 * x.nbytes / copying,
    }


def scoring(
    name: str, *, lengths: tuple[str, ...], pairs: int, method: Any, best_of: tuple[int, ...] = ()
) -> dict[str, Any]:
    """Throughput of pairs of these lengths, and of rankings."""
    which = {"model": name} if name == TINY else {"model_config": name}
    max_length = min(2048, shape_of(name).context_length)
    report = run_bench(
        BenchConfig(
            **which,
            lengths=lengths,
            best_of=best_of,
            pairs=pairs,
            method=method,
            max_length=max_length,
        )
    ).to_dict()
    return {
        **{
            f"{one['name']}: {figure}": one[figure]
            for one in report["workloads"]
            for figure in ("pairs_per_second", "tokens_per_second", "of_ceiling", "of_peak")
        },
        "peak bytes": report["peak_bytes"],
        "compile seconds": report["seconds_before"].get("compile and warm up"),
    }


def training(stage: int, name: str, length: int) -> dict[str, Any]:
    """Time of a step on random weights, with the compiler's memory and, on TPUs, the plan's forecast."""
    devices, tiny = len(jax.devices()), name == TINY
    settings: dict[str, Any] = {
        **training_settings(STAGES[stage], ROWS * devices, length, devices),
        "run.max_steps": 1000,
        "run.num_train_epochs": "",
        "execution.compute_dtype": "float32" if tiny else "bfloat16",
    }
    changes = [f"{key}={value}" for key, value in settings.items()]
    recipe = read_recipe(f"gram-qwen3-1.7b-{STAGES[stage]}", changes)
    target = make_target(read_topology("local"), recipe)
    program = training_program(PlanRequest(recipe, shape_of(name), target))
    plan = make_plan(program, target)
    if plan.compiled is None or not plan.fit.fits:
        return {"does not fit": plan.fit.needed}
    state, frozen, batch = filled(program.arguments, shape_of(name).vocab_size)

    def step() -> Any:
        nonlocal state
        state, metrics = plan.compiled(state, frozen, batch)
        return metrics

    seconds = seconds_of(step)
    took = statistics.median(seconds)
    bound = plan.seconds.get("compute")
    found = {
        "ms per step": 1e3 * took,
        "fastest, slowest ms": [1e3 * min(seconds), 1e3 * max(seconds)],
        "tokens/s/device": program.tokens / took / devices,
        "model FLOP/s/device": program.flops.needed / took / devices,
        "of the data sheet": bound / took if bound else None,
        "temporaries": plan.fit.temporaries,
        "peak bytes": peak_memory()[1],
        "compile seconds": plan.compile_seconds,
    }
    if plan.estimate is not None:
        found["forecast ms, asynchronous collectives overlap or not"] = [
            1e3 * s for s in plan.estimate.forecast
        ]
    return found


def filled(abstract: Any, vocabulary: int) -> Any:
    """Arrays of these shapes: small normal numbers, moments of 0, random tokens, one document a row."""

    def fill(path: Any, leaf: Any) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        draw = partial(jax.random.randint, jax.random.key(0), leaf.shape, 0)
        if "opt_state" in name:
            return jnp.zeros(leaf.shape, leaf.dtype)
        if name.endswith("seqs.positions"):
            return jnp.broadcast_to(jnp.arange(leaf.shape[-1], dtype=leaf.dtype), leaf.shape)
        if name.endswith(("seqs.segments", "weights")):
            return jnp.ones(leaf.shape, leaf.dtype)
        if name.endswith(("seqs.tokens", "targets")):
            return draw(vocabulary, leaf.dtype)
        if name.endswith("verdict_at"):
            return jnp.full(leaf.shape, 1, leaf.dtype)
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return 0.02 * jax.random.normal(jax.random.key(0), leaf.shape, leaf.dtype)
        return jnp.zeros(leaf.shape, leaf.dtype)

    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(lambda: jax.tree.map_with_path(fill, abstract), out_shardings=shardings)()


def attention_backends(length: int, tiny: bool) -> dict[str, Any]:
    """Milliseconds of a layer's attention, forward and with gradient, by length and back end, on one device."""
    placement = make_placement({}, devices=jax.devices()[:1])
    dtype = "float32" if tiny else "bfloat16"
    N, K, H = (4, 2, 32) if tiny else (16, 8, 128)
    found: dict[str, Any] = {}
    for T in (length,) if tiny else (512, length, 4 * length):
        B = max(1, 4 * length // T)
        shapes = [(B, T, heads, H) for heads in (N, K, K)]
        q, k, v = (jax.random.normal(jax.random.key(0), shape, dtype) for shape in shapes)
        for backend in ("auto", "splash", "cudnn", "blocked", "xla"):
            execution = Execution(dtype, backend, "none", placement, packed=False)
            mixed = partial(_mixed, segments=jnp.ones((B, T), jnp.int32), execution=execution)
            for what, function in (("forward", mixed), ("gradient", jax.grad(mixed, (0, 1, 2)))):
                name = f"{B} x {T} {backend}, {what}, ms"
                try:
                    found[name] = 1e3 * min(seconds_of(partial(jax.jit(function), q, k, v)))
                except RecipeError:
                    break  # this back end does not support this device
                except Exception as error:
                    found[name] = in_short(str(error))
    return found


def _mixed(q: Any, k: Any, v: Any, *, segments: jax.Array, execution: Execution) -> jax.Array:
    return attention(q, k, v, segments, execution).astype(jnp.float32).sum()


def seconds_of(run: Callable[[], Any]) -> list[float]:
    """Of ROUNDS runs after one that may compile."""
    seconds = []
    for _ in range(1 + ROUNDS):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def invariance(name: str, pairs: int) -> dict[str, Any]:
    """Pairs whose bits differ if they are scored one by one, by program."""
    cfg, execution = shape_of(name), inference_execution("auto")
    params = init_params(
        param_specs(cfg), jax.random.key(0), execution.placement, execution.compute_dtype
    )
    orders = random_pairs("mix", pairs, 1024, cfg.vocab_size)
    found: dict[str, Any] = {"pairs": pairs}
    for method in ("padded", "prefix_shared"):
        engine = ScoringEngine(params, cfg, (0, 1), execution, 1024, method)
        together = engine.label_logit_diffs(orders, paired=True)
        alone = [
            engine.label_logit_diffs(orders[i : i + 2], paired=True) for i in range(0, 2 * pairs, 2)
        ]
        found[f"{method}: differing"] = int((together != np.concatenate(alone)).sum())
    return found


TORCH = """
import json, sys, time, torch
from transformers import Qwen3Config, Qwen3Model
if not torch.cuda.is_available():
    sys.exit("PyTorch has no GPU")
shape, length, rows = json.loads(sys.argv[1]), int(sys.argv[2]), 8
model = Qwen3Model(Qwen3Config(**shape, attn_implementation="sdpa")).to("cuda", torch.bfloat16).eval()
tokens = torch.randint(0, shape["vocab_size"], (rows, length), device="cuda")
seconds = []
with torch.no_grad():
    for _ in range(6):
        torch.cuda.synchronize(); start = time.perf_counter()
        model(tokens, use_cache=False)
        torch.cuda.synchronize(); seconds.append(time.perf_counter() - start)
print(json.dumps({"tokens_per_second": rows * length / min(seconds[1:]), "torch": torch.__version__}))
"""


def transformers(name: str, length: int) -> dict[str, Any]:
    """Forward passes of transformers (sdpa, bf16, eager), without a head: tokens per second of one GPU."""
    cfg = shape_of(name)
    shape = {
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.embed_size,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.query_heads,
        "num_key_value_heads": cfg.kv_heads,
        "head_dim": cfg.head_size,
        "intermediate_size": cfg.mlp_size,
    }
    command = [sys.executable, "-c", TORCH, json.dumps(shape), str(length)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"error": next(iter(reversed(done.stderr.strip().splitlines())), "no output")}
    return json.loads(done.stdout.splitlines()[-1])


def page(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    about = results["about"]
    parts = [
        f"# Measured on {about['devices']} x {about['device']}",
        f"gram_jax {about['gram_jax']}, JAX {about['jax']}, {about['date']}; random weights and tokens.",
    ]
    for name, found in results["measured"].items():
        rows = [f"| {key} | {_shown(key, value)} |" for key, value in found.items()]
        parts.append("\n".join([f"## {name}", "", "| | |", "|---|---|", *rows]))
    if left := results["not measured"]:
        parts.append(f"Not measured within the time: {', '.join(left)}.")
    return "\n\n".join(parts) + "\n"


def _shown(key: str, value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(format_value(float(one)) for one in value)
    if isinstance(value, int | float) and (
        "bytes" in key or key in ("temporaries", "does not fit")
    ):
        return format_bytes(value) + ("/s" if "/s" in key else "")
    if isinstance(value, float) and value >= 1e4:
        return format_count(value)
    return format_value(value)


def main() -> None:
    """Measure until the time is over, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--small", default="qwen3-0.6b", help="published shape measured first")
    parser.add_argument("--large", help="instead of the largest that fits")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, for a CPU")
    chosen = parser.parse_args()
    if chosen.minutes > 0:
        end = time.monotonic() + 60 * chosen.minutes
        # Whatever is running; each result has been written at once.
        late = threading.Timer(60 * chosen.minutes + 5, os._exit, (0,))
        late.daemon = True
        late.start()
        device = jax.devices()[0]
        results: dict[str, Any] = {
            "about": {
                "device": device.device_kind,
                "devices": len(jax.devices()),
                "gram_jax": installed_version(),
                "jax": jax.__version__,
                "date": time.strftime("%Y-%m-%d"),
            },
            "measured": {},
            "not measured": [],
        }
        small = TINY if chosen.tiny else chosen.small
        planned = list(measurements(small, chosen.large, chosen.tiny))
        results["not measured"] = [name for name, _ in planned]
        for name, measure in planned:
            if time.monotonic() > end:
                break
            start = time.perf_counter()
            try:
                found = measure()
            except Exception as error:  # the next measurements are still of interest
                found = {"error": in_short(f"{type(error).__name__}: {error}")}
            found["seconds of this measurement"] = time.perf_counter() - start
            results["measured"][name] = found
            results["not measured"].remove(name)
            write_json(chosen.results, results)
            print(name, json.dumps(found), flush=True)
            if chosen.page:
                chosen.page.write_text(page(results))
        late.cancel()
    elif chosen.page:
        chosen.page.write_text(page(read_json(chosen.results)))


if __name__ == "__main__":
    main()
