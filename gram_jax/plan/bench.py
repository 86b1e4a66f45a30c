"""`gram-jax bench`: throughput of scoring on this machine, also as a share of the machine's limit.

Every share counts the FLOPs that the verdicts need (judging_flops in plan/flops.py), without padding and recomputed
prefixes, so figures of different machines, models and programs are comparable.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import jax

from gram_jax.compile_cache import keep_compiled_programs
from gram_jax.data.reading import read_records
from gram_jax.errors import JudgeError
from gram_jax.formatting import format_bytes, format_count, format_seconds
from gram_jax.judge.encode import encode_items
from gram_jax.judge.spec import DEFAULT_LENGTH, JudgeSpec
from gram_jax.model.execution import AskedCompute, inference_execution
from gram_jax.model.quantize import Weights, loaded_dtype, quantize
from gram_jax.model.specs import init_params, param_specs
from gram_jax.plan.command import named_config
from gram_jax.plan.flops import judging_flops
from gram_jax.plan.machine import MachineInfo, measure_machine, peak_memory
from gram_jax.plan.workloads import MIX, random_pairs, random_ranking
from gram_jax.scoring.calls import WorkCounters
from gram_jax.scoring.engine import ScoringEngine, ScoringMethod
from gram_jax.scoring.scorer import Scorer
from gram_jax.sharding import Placement

# Rows of the table: key of WorkloadResult.rates, label, format.
FIGURES: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("pairs_per_second", "pairs/s", format_count),
    ("tokens_per_second", "tokens/s, one by one", format_count),
    ("shared", "tokens shared", "{:.1%}".format),
    ("useful", "useful positions", "{:.1%}".format),
    ("flops_per_second", "useful FLOP/s", format_count),
    ("of_ceiling", "of a matrix product", "{:.1%}".format),
    ("of_peak", "of the data sheet (MFU)", "{:.1%}".format),
)


@dataclass(frozen=True)
class BenchConfig:
    """What to measure. Raises JudgeError for values that contradict each other.

    model: a judge by name, or model_config: random weights of a model's shape. source: pairs of any schema, scored from
    text. Without it random tokens: sequences of each of `lengths` (a number, or "mix"), and rankings of each of
    `best_of` responses by a round robin in both orders. pairs: of each workload. rounds: timed, after a warm-up. The
    rest is as in Scorer.load.
    """

    model: str | None = None
    model_config: str | None = None
    source: str | None = None
    lengths: tuple[str, ...] = (MIX,)
    best_of: tuple[int, ...] = ()
    pairs: int = 32
    rounds: int = 3
    compute_dtype: AskedCompute = "auto"
    weights: Weights = "auto"
    max_length: int | None = None
    tokens_per_call: int | None = None
    method: ScoringMethod | None = None
    placement: Placement | None = None
    spec: JudgeSpec | None = None

    def __post_init__(self) -> None:
        if (self.model is None) == (self.model_config is None):
            raise JudgeError(
                "give --model, or --model-config for random weights of a shape: one of the two"
            )
        if self.model is None and (self.source is not None or self.spec is not None):
            raise JudgeError(
                "a source and --spec need a tokenizer: give --model instead of --model-config, or leave them out"
            )
        wrong = [length for length in self.lengths if length != MIX and not length.isdecimal()]
        if wrong:
            raise JudgeError(f'a length is a number of tokens, or "{MIX}"; found {wrong[0]!r}')


class Workload(NamedTuple):
    """run: scores `pairs` pairs."""

    name: str
    pairs: int
    run: Callable[[], Any]


@dataclass(frozen=True)
class WorkloadResult:
    """seconds: median over the rounds; spread: fastest, slowest; work: of one round; flops: that its verdicts need."""

    name: str
    comparisons: int
    seconds: float
    spread: tuple[float, float]
    work: WorkCounters
    flops: float

    def rates(self, machine: MachineInfo) -> dict[str, Any]:
        """Throughput and shares."""
        work, flops = self.work, self.flops / self.seconds
        return {
            "pairs_per_second": self.comparisons / self.seconds,
            "tokens_per_second": work.tokens_requested / self.seconds,
            "shared": 1 - work.tokens_unique / work.tokens_requested,
            "useful": work.tokens_unique / work.tokens_computed,
            "flops_per_second": flops,
            "of_ceiling": flops / machine.ceiling,
            "of_peak": machine.peak and flops / machine.peak,
        }


@dataclass(frozen=True)
class BenchReport:
    """seconds_before: of loading, compiling and tokenizing; peak_bytes_of: "of a device" or "of the process"."""

    machine: MachineInfo
    program: str
    seconds_before: dict[str, float]
    peak_bytes: int
    peak_bytes_of: str
    workloads: list[WorkloadResult]

    def to_dict(self) -> dict[str, Any]:
        """All figures, for JSON."""
        rates = [asdict(one) | one.rates(self.machine) for one in self.workloads]
        return asdict(self) | {"workloads": rates}


def run_bench(config: BenchConfig) -> BenchReport:
    """Measure every workload. Raises JudgeError for lengths beyond the judge's budget."""
    keep_compiled_programs()
    times: dict[str, float] = {}
    with _timed(times, "load"):
        scorer, engine = _load(config)
    machine = measure_machine(engine.execution.placement, engine.execution.compute_dtype)
    with _timed(times, "compile and warm up"):
        engine.warm_up(rankings=bool(config.best_of))
    if scorer is not None and config.source is not None:
        workloads = iter([_text_workload(config, scorer, times)])
    else:
        workloads = _random_workloads(config, engine)
    found = [_measure(workload, engine, config.rounds) for workload in workloads]
    whose, memory = peak_memory()
    return BenchReport(machine, engine.method, times, memory, whose, found)


def report_lines(report: BenchReport) -> list[str]:
    """The machine and the times before the first round, as text."""
    machine = report.machine
    peak = "" if machine.peak is None else f", {format_count(machine.peak)}FLOP/s by its data sheet"
    times = (f"{what}: {format_seconds(took)}" for what, took in report.seconds_before.items())
    return [
        f"{machine.devices} device(s): {machine.kind}; {machine.compute_dtype}, "
        f"{format_count(machine.ceiling)}FLOP/s in a matrix product{peak}; program: {report.program}",
        "; ".join(times),
        f"peak memory {report.peak_bytes_of}: {format_bytes(report.peak_bytes)}",
    ]


def report_rows(report: BenchReport) -> list[tuple[str, ...]]:
    """A row for each figure, with a column for each workload."""
    rates = [one.rates(report.machine) for one in report.workloads]
    rows: list[tuple[str, ...]] = [
        (label, *(show(one[key]) for one in rates))
        for key, label, show in FIGURES
        if all(one[key] is not None for one in rates)
    ]
    rows.append(("seconds", *(f"{one.seconds:.3g}" for one in report.workloads)))
    spreads = ("{:.3g}, {:.3g}".format(*one.spread) for one in report.workloads)
    return [*rows, ("fastest, slowest", *spreads)]


@contextmanager
def _timed(times: dict[str, float], what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    times[what] = time.perf_counter() - start


def _load(config: BenchConfig) -> tuple[Scorer | None, ScoringEngine]:
    """The scorer of a model, if there is one, and the engine to measure."""
    if config.model is not None:
        scorer = Scorer.load(
            config.model,
            compute_dtype=config.compute_dtype,
            weights=config.weights,
            max_length=config.max_length,
            tokens_per_call=config.tokens_per_call,
            method=config.method,
            placement=config.placement,
            spec=config.spec,
        )
        return scorer, scorer.engine
    assert config.model_config is not None  # __post_init__: one of the two
    cfg = named_config(config.model_config)
    execution = inference_execution(config.compute_dtype, config.placement)
    held = loaded_dtype(config.weights, execution.compute_dtype)
    params = init_params(param_specs(cfg), jax.random.key(0), execution.placement, held)
    return None, ScoringEngine(
        quantize(params, config.weights),
        cfg,
        (0, 1),  # any two labels
        execution,
        config.max_length or min(DEFAULT_LENGTH, cfg.context_length),
        config.method,
        config.tokens_per_call,
    )


def _text_workload(config: BenchConfig, scorer: Scorer, times: dict[str, float]) -> Workload:
    records, _ = read_records(str(config.source), "pair", limit=config.pairs)
    texts = [(record.prompt, record.first, record.second) for record in records]
    both = [shown for p, a, b in texts for shown in ((p, a, b), (p, b, a))]
    with _timed(times, "tokenize"):
        encode_items(scorer.tokenizer, scorer.spec.comparison, both, scorer.spec.max_length)
    return Workload("text to score", len(texts), partial(scorer.score_many, texts))


def _random_workloads(config: BenchConfig, engine: ScoringEngine) -> Iterator[Workload]:
    max_length, vocab = engine.max_length, engine.cfg.vocab_size
    for length in config.lengths:
        if length != MIX and int(length) > max_length:
            raise JudgeError(
                f"sequences of {length} tokens: this judge reads {max_length} (max_length)"
            )
        orders = random_pairs(length, config.pairs, max_length, vocab)
        name = length if length == MIX else f"{length} tokens"
        run = partial(engine.label_logit_diffs, orders, paired=True)
        yield Workload(name, config.pairs, run)
    for count in config.best_of:
        orders = random_ranking(count, max_length, vocab)
        run = partial(engine.label_logit_diffs, orders, paired=False)
        yield Workload(f"best of {count}", len(orders) // 2, run)


def _measure(workload: Workload, engine: ScoringEngine, rounds: int) -> WorkloadResult:
    workload.run()  # warm-up
    seconds, engine.counters = [], WorkCounters()
    for _ in range(rounds):
        start = time.perf_counter()
        workload.run()
        seconds.append(time.perf_counter() - start)
    done = asdict(engine.counters)
    work = WorkCounters(**{name: value // rounds for name, value in done.items()})
    median, spread = statistics.median(seconds), (min(seconds), max(seconds))
    flops = judging_flops(engine.cfg, work)
    return WorkloadResult(workload.name, workload.pairs, median, spread, work, flops)
