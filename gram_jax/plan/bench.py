"""`gram-jax bench`: how fast this machine judges, and how far that is from what it could do.

Every share is counted against what the verdicts need (plan/flops.py, judging_flops): padding, and beginnings computed
again, are no work. So the figures of different machines, models and programs can be compared.
"""

import itertools
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gram_jax.compile_cache import keep_compiled_programs
from gram_jax.console import Console
from gram_jax.data.records import read_records
from gram_jax.errors import JudgeError
from gram_jax.formatting import format_bytes, format_count, format_seconds
from gram_jax.judge.encode import Encoded, encode_items
from gram_jax.judge.spec import DEFAULT_LENGTH
from gram_jax.model.execution import AskedCompute, Execution
from gram_jax.model.quantize import quantize_int8
from gram_jax.model.specs import init_params, param_specs
from gram_jax.plan.command import named_config
from gram_jax.plan.flops import judging_flops
from gram_jax.plan.topology import local_chip
from gram_jax.scoring.calls import WorkCounters
from gram_jax.scoring.engine import (
    ScoringEngine,
    ScoringMethod,
    default_method,
    default_tokens_per_call,
)
from gram_jax.scoring.scorer import Scorer, Weights, compute_type
from gram_jax.sharding import Placement, make_placement

MIX = "mix"  # long-tailed lengths, as pairs of real data have them: median 600, a tenth above 1,500
MIX_MEDIAN, MIX_SIGMA = 600, 0.75
HEAD = 0.35  # share of a sequence that is instruction and question; both responses have the rest
CEILING_SIZE = {"cpu": 2048, "gpu": 8192, "tpu": 8192}  # of the square matrices that are multiplied
CEILING_RUNS = 8


@dataclass(frozen=True)
class Bench:
    """What to measure.

    model: a judge by name, or model_config: random weights of a model's shape. source: pairs of any schema, from text
    to score. Without it random tokens: sequences of each of `lengths` (a number, or "mix"), and rankings of each of
    `best_of` responses by a round robin in both orders. pairs: of each workload. rounds: after one for nothing.
    """

    model: str | None = None
    model_config: str | None = None
    source: str | None = None
    lengths: tuple[str, ...] = (MIX,)
    best_of: tuple[int, ...] = ()
    pairs: int = 32
    rounds: int = 3
    compute: AskedCompute = "auto"
    weights: Weights = "auto"
    max_length: int | None = None
    tokens_per_call: int | None = None
    method: ScoringMethod | None = None

    def __post_init__(self) -> None:
        """Raises JudgeError for what does not go together."""
        if (self.model is None) == (self.model_config is None):
            raise JudgeError(
                "give --model, or --model-config for random weights of a shape: one of the two"
            )
        if self.source is not None and self.model is None:
            raise JudgeError(
                "texts need a tokenizer: give --model in place of --model-config, or leave the source out"
            )
        wrong = [length for length in self.lengths if length != MIX and not length.isdecimal()]
        if wrong:
            raise JudgeError(f'a length is a number of tokens, or "{MIX}"; found {wrong[0]!r}')


@dataclass(frozen=True)
class Measured:
    """One workload. seconds: median over the rounds; work: of one round; flops: that its verdicts need."""

    name: str
    comparisons: int
    seconds: float
    spread: tuple[float, float]
    work: WorkCounters
    flops: float


@dataclass(frozen=True)
class Machine:
    """ceiling: FLOPs a second of a matrix product, over all devices, measured; peak: of the data sheet, or None."""

    devices: int
    kind: str
    compute: str
    ceiling: float
    peak: float | None


def run_bench(bench: Bench, console: Console) -> dict[str, Any]:
    """Measure, print a table, and return all figures. Raises JudgeError for lengths that the judge does not read."""
    keep_compiled_programs()
    times: dict[str, float] = {}
    with _timed(times, "load"):
        scorer, engine = _judge(bench)
    machine = look_at(engine.execution.placement, engine.execution.compute)
    with _timed(times, "compile and warm up"):
        engine.warm_up(rankings=bool(bench.best_of))
    found = []
    for name, count, run in _workloads(bench, scorer, engine, times):
        found.append(measure(name, engine, run, comparisons=count, rounds=bench.rounds))
    whose, memory = peak_memory()
    peak = "" if machine.peak is None else f", {format_count(machine.peak)}FLOP/s by its data sheet"
    console.say(
        f"{machine.devices} device(s): {machine.kind}; {machine.compute}, "
        f"{format_count(machine.ceiling)}FLOP/s in a matrix product{peak}; program: {engine.method}"
    )
    console.say("; ".join(f"{what}: {format_seconds(seconds)}" for what, seconds in times.items()))
    columns = [_column(one, machine) for one in found]
    rows = [(name, *(column[name] for column in columns)) for name in columns[0]]
    console.table("", ("", *(one.name for one in found)), rows)
    console.say(f"most memory {whose}: {format_bytes(memory)}")
    return {
        "machine": asdict(machine),
        "program": engine.method,
        "seconds_before": times,
        "peak_bytes": memory,
        "peak_bytes_of": whose,
        "workloads": [asdict(one) | _rates(one, machine) for one in found],
    }


@contextmanager
def _timed(times: dict[str, float], what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    times[what] = time.perf_counter() - start


def _judge(bench: Bench) -> tuple[Scorer | None, ScoringEngine]:
    """The engine to measure, and what reads text for it, if anything does."""
    if bench.model is not None:
        scorer = Scorer.load(
            bench.model,
            compute=bench.compute,
            weights=bench.weights,
            max_length=bench.max_length,
            tokens_per_call=bench.tokens_per_call,
            method=bench.method,
        )
        return scorer, scorer.engine
    assert bench.model_config is not None  # __post_init__: one of the two
    cfg = named_config(bench.model_config)
    placement = make_placement({"data": -1})
    compute = compute_type(bench.compute, placement)
    stored = compute if bench.weights in ("auto", "int8") else bench.weights
    params = init_params(param_specs(cfg), jax.random.key(0), placement, stored)
    execution = Execution(compute, "auto", "none", placement, packed=False)
    method = bench.method or default_method(execution)
    engine = ScoringEngine(
        quantize_int8(params) if bench.weights == "int8" else params,
        cfg,
        (0, 1),  # which two tokens are compared does not matter
        execution,
        bench.max_length or min(DEFAULT_LENGTH, cfg.context_length),
        method,
        bench.tokens_per_call or default_tokens_per_call(execution, method),
    )
    return None, engine


def _workloads(
    bench: Bench, scorer: Scorer | None, engine: ScoringEngine, times: dict[str, float]
) -> Iterator[tuple[str, int, Callable[[], Any]]]:
    """(name, pairs, what to run)."""
    if bench.source is not None and scorer is not None:  # __post_init__: a source needs a model
        records, _ = read_records(bench.source, "pair", limit=bench.pairs)
        texts = [(record.prompt, record.first, record.second) for record in records]
        both = [shown for p, a, b in texts for shown in ((p, a, b), (p, b, a))]
        with _timed(times, "tokenize"):
            encode_items(scorer.tokenizer, scorer.spec.comparison, both, scorer.spec.max_length)
        yield "text to score", len(texts), lambda: scorer.score_many(texts)
        return
    for length in bench.lengths:
        if length != MIX and int(length) > engine.max_length:
            raise JudgeError(
                f"sequences of {length} tokens: this judge reads {engine.max_length} (max_length)"
            )
        texts = random_pairs(length, bench.pairs, engine.max_length, engine.cfg.vocab_size)
        name = length if length == MIX else f"{length} tokens"
        yield name, bench.pairs, partial(engine.label_logit_diffs, texts, paired=True)
    for count in bench.best_of:
        rivals = random_rivals(count, min(1024, engine.max_length), engine.cfg.vocab_size)
        yield (
            f"best of {count}",
            len(rivals) // 2,
            partial(engine.label_logit_diffs, rivals, paired=False),
        )


def random_pairs(length: str, count: int, max_length: int, vocab: int) -> list[Encoded]:
    """Both orders of `count` pairs of random tokens: sequences of `length` tokens, or of the long-tailed mix."""
    random = np.random.default_rng(0)
    if length == MIX:
        drawn = np.exp(random.normal(np.log(MIX_MEDIAN), MIX_SIGMA, count))
        lengths = np.clip(drawn, 32, max_length).astype(int)
    else:
        lengths = np.full(count, int(length))
    orders = []
    for total in lengths:
        head = int(total * HEAD)
        one = int((total - head) * random.uniform(0.3, 0.7))
        texts = [random.integers(0, vocab, size) for size in (head, one, total - head - one)]
        orders += [_shown(texts[0], *pair) for pair in (texts[1:], texts[:0:-1])]
    return orders


def random_rivals(count: int, length: int, vocab: int) -> list[Encoded]:
    """All ordered comparisons of `count` responses to one prompt, of about `length` tokens each."""
    random = np.random.default_rng(0)
    head = random.integers(0, vocab, int(length * HEAD))
    size = (length - len(head)) // 2
    responses = [
        random.integers(0, vocab, int(size * random.uniform(0.7, 1.3))) for _ in range(count)
    ]
    meetings = itertools.permutations(range(count), 2)
    return [_shown(head, responses[i], responses[j]) for i, j in meetings]


def _shown(head: np.ndarray, first: np.ndarray, second: np.ndarray) -> Encoded:
    tokens = np.concatenate([head, first, second]).astype(np.int32)
    starts = (len(head), len(head) + len(first))
    return Encoded(tokens, np.zeros(len(tokens), np.float32), field_starts=starts)


def measure(
    name: str, engine: ScoringEngine, run: Callable[[], Any], *, comparisons: int, rounds: int
) -> Measured:
    """Do the work once for nothing, then `rounds` times."""
    run()
    seconds, before = [], engine.counters
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    done = engine.counters - before
    one = WorkCounters(**{name: value // rounds for name, value in asdict(done).items()})
    flops = judging_flops(
        engine.cfg,
        sequences=one.sequences,
        tokens_requested=one.tokens_requested,
        tokens_unique=one.tokens_unique,
        attention_pairs=one.attention_pairs,
    )
    spread = (min(seconds), max(seconds))
    return Measured(name, comparisons, statistics.median(seconds), spread, one, flops)


def look_at(placement: Placement, compute: str) -> Machine:
    """The devices of a mesh and what they reach in a plain matrix product."""
    devices = placement.mesh.devices
    first = devices.flat[0]
    chip = local_chip(first)
    peak = None
    if chip is not None:
        peak = chip.f32_flops if compute == "float32" else chip.bf16_flops
        peak *= devices.size / chip.devices
    # Fake devices share one machine, whose ceiling one product reaches.
    alike = 1 if first.platform == "cpu" else devices.size
    reached = ceiling(first.platform, compute) * alike
    return Machine(devices.size, first.device_kind, compute, reached, peak)


def ceiling(platform: str, compute: str) -> float:
    """FLOPs a second of a square matrix product on one device, the best of some."""
    size = CEILING_SIZE.get(platform, CEILING_SIZE["gpu"])
    a, b = jax.random.normal(jax.random.key(0), (2, size, size)).astype(compute)
    precision = "highest" if compute == "float32" else "default"
    product = jax.jit(lambda a, b: jnp.dot(a, b, precision=precision))
    jax.block_until_ready(product(a, b))
    best = float("inf")
    for _ in range(CEILING_RUNS):
        start = time.perf_counter()
        jax.block_until_ready(product(a, b))
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


def peak_memory() -> tuple[str, int]:
    """Whose memory, and the most bytes of it in use so far: of the fullest device, or of this process."""
    found = [
        (device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()
    ]
    if known := [value for value in found if value]:
        return "of a device", max(known)
    unit = 1 if sys.platform == "darwin" else 1024
    return "of the process", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _rates(found: Measured, machine: Machine) -> dict[str, Any]:
    work, flops = found.work, found.flops / found.seconds
    return {
        "pairs_per_second": found.comparisons / found.seconds,
        "tokens_per_second": work.tokens_requested / found.seconds,
        "shared": 1 - work.tokens_unique / work.tokens_requested,
        "useful": work.tokens_unique / work.tokens_computed,
        "flops_per_second": flops,
        "of_ceiling": flops / machine.ceiling,
        "of_peak": machine.peak and flops / machine.peak,
    }


def _column(found: Measured, machine: Machine) -> dict[str, str]:
    """What the table says of a workload."""
    rates = _rates(found, machine)
    column = {
        "pairs/s": format_count(rates["pairs_per_second"]),
        "tokens/s, one by one": format_count(rates["tokens_per_second"]),
        "tokens shared": f"{rates['shared']:.1%}",
        "useful positions": f"{rates['useful']:.1%}",
        "useful FLOP/s": format_count(rates["flops_per_second"]),
        "of a matrix product": f"{rates['of_ceiling']:.1%}",
        "of the data sheet (MFU)": rates["of_peak"] and f"{rates['of_peak']:.1%}",
        "seconds": f"{found.seconds:.3g}",
        "fastest, slowest": "{:.3g}, {:.3g}".format(*found.spread),
    }
    return {name: value for name, value in column.items() if value is not None}
