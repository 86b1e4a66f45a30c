"""Mutation testing of the suite: python benchmarks/mutation.py RESULTS.jsonl [--per-module N] [--seed S]

A seeded sample of small faults (`mutants.py`) is put, one at a time, into a copy of the package, and the tests of the
faulty module run until one fails. The table has the number of caught faults, the list below it the others. An
interrupted run resumes. `--again` tries the survivors again, after tests were written; the table then shows both
figures.

Large libraries are imported once; each fault has a forked process of its own. Compiled programs are kept on disk with
RESULTS. A first round without faults records the lines and the seconds of each test, so that those that reach a fault
run first, the fastest before the others; files that never reach it are left out. A fault that makes the tests take
several times as long counts as caught.
"""

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mutants import Mutant, all_mutants, sample

ROOT = Path(__file__).parents[1]

# The tests of a module, without those that start jobs of several processes, which take too long.
TESTS = {
    "losses": ["losses"],
    "model.layer": ["model_decoder", "model_parity"],
    "model.heads": ["model_decoder", "pair"],
    "model.cache": ["generate"],
    "model.generate": ["generate"],
    "training.objectives": ["objectives", "step"],
    "judge.spec": ["judge", "tails"],
    "judge.labels": ["judge", "tails"],
    "judge.template": ["judge", "encode"],
    "judge.guard": ["encode", "judge", "tails"],
    "judge.encode": ["encode", "judge", "tails"],
    "judge.truncate": ["encode"],
    "judge.recover": ["judge"],
    "data.reading": ["records"],
    "data.records": ["records", "pairwise"],
    "data.packing": ["batches"],
    "data.batches": ["batches", "feed"],
    "data.examples": ["batches"],
    "scoring.engine": ["prefix_tree", "scorer"],
    "scoring.pair": ["pair", "scorer"],
    "scoring.padded": ["scorer"],
    "scoring.prefix_layout": ["prefix_tree", "scorer"],
    "scoring.scorer": ["scorer", "score_files", "ranking"],
    "scoring.rows": ["score_files"],
    "scoring.fingerprint": ["fingerprint"],
    "ranking.jobs": ["ranking", "score_files"],
    "ranking.tournament": ["ranking"],
    "ranking.bradley_terry": ["ranking"],
    "interop.hf_files": ["hf_files", "models", "damaged_exports"],
    "interop.hf_export": ["hf_files", "models", "damaged_exports"],
    "interop.hf_names": ["hf_names", "hf_files"],
    "interop.hf_config": ["hf_config", "models"],
    "checkpoint.orbax": ["orbax", "damaged_steps"],
    "checkpoint.manifest": ["manifests", "hf_files", "damaged_exports", "damaged_steps"],
    "run.directory": ["loop", "resume", "damaged_runs"],
    "run.lifecycle": ["loop", "resume", "rl"],
    "distributed.lock": ["life"],
    "run.metrics": ["loop"],
}

# Mutants that compute the same, by reading: module -> (its line, its change) -> why.
EQUIVALENT: dict[str, dict[tuple[str, str], str]] = {
    "checkpoint.manifest": {
        (
            "THREADS = 8  # files read at once: hashlib lets go of the interpreter, and network disks have queues",
            "8 -> 9",
        ): "how many files are read at once",
    },
    "interop.hf_export": {
        ("shard_bytes: int = 5_000_000_000,", "5_000_000_000 -> 5000000001"): "size of a file",
    },
}
STRICT = "strict=True -> strict=False"  # of zip: both lists always have the same length

# Third-party modules that take long to import.
HEAVY = [
    *("jax", "jax.numpy", "jax.experimental.pallas", "numpy", "scipy.stats", "scipy.optimize"),
    *("optax",),
    *("orbax.checkpoint", "safetensors.numpy", "gguf", "pyarrow.parquet", "datasets", "tokenizers"),
    *("transformers", "transformers.models.llama.modeling_llama", "torch", "jinja2", "pydantic"),
    *("flax.nnx", "cyclopts", "rich", "hypothesis", "fastapi.testclient", "matplotlib.pyplot"),
]
SETTLED = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--per-module", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modules", nargs="*", default=list(TESTS))
    parser.add_argument("--again", action="store_true", help="try the survivors again")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="time limit")
    parser.add_argument("--table", action="store_true", help="print the table, run nothing")
    args = parser.parse_args()
    until = time.monotonic() + 60 * args.minutes
    plan = {module: drawn(module, args.per_module, args.seed) for module in args.modules}
    if not args.table:
        # tests look for data next to the checkout, and the copy is elsewhere
        os.environ.setdefault("GRAM_JAX_SHARED_DATA", str(ROOT.parent / "shared" / "data"))
        preload()
        with tempfile.TemporaryDirectory() as place:
            workshop = Workshop(Path(place) / "copy", args.results)
            run_all(workshop, plan, args.results, again=args.again, until=until)
    print_table(plan, read_lines(args.results))


def drawn(module: str, count: int, seed: int) -> list[Mutant]:
    return sample(all_mutants(source_of(module)), count, f"{seed} {module}")


def source_of(module: str) -> str:
    return (ROOT / path_of(module)).read_text()


def path_of(module: str) -> str:
    return f"gram_jax/{module.replace('.', '/')}.py"


def test_files(module: str) -> list[str]:
    files = [f"tests/test_{name}.py" for name in TESTS[module]]
    return [path_of(module)] * (">>>" in source_of(module)) + files


def preload() -> None:
    """Import the libraries without starting JAX's back end, which must happen after the fork."""
    os.environ |= {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    for name in HEAVY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    import hypothesis
    import jax

    assert not any(name.startswith("gram_jax") for name in sys.modules)
    sys.path[:] = [place for place in sys.path if Path(place).resolve() != ROOT]
    hypothesis.settings.register_profile("mutation", deadline=None, derandomize=True, database=None)
    hypothesis.settings.load_profile("mutation")
    update = jax.config.update
    jax.config.update = lambda name, value: None if name in SETTLED else update(name, value)
    jax.config.settled = update


def run_all(
    workshop: "Workshop",
    plan: dict[str, list[Mutant]],
    results: Path,
    *,
    again: bool,
    until: float,
) -> None:
    """Try every mutant of the plan without a line; with `again`, also those that survived."""
    last = {(line["module"], line["key"]): line["caught"] for line in read_lines(results)}
    for module, mutants in plan.items():
        for mutant in mutants:
            if time.monotonic() > until:
                return
            known = last.get((module, key_of(mutant)))
            if known is not None and (known or not again or why_equivalent(module, mutant)):
                continue
            start = time.monotonic()
            caught, by = workshop.try_out(module, mutant)
            line = {"module": module, "key": key_of(mutant), "line": mutant.line}
            line |= {"kind": mutant.kind, "change": mutant.change, "caught": caught, "by": by}
            line["seconds"] = round(time.monotonic() - start, 1)
            with results.open("a") as file:
                file.write(json.dumps(line) + "\n")
            word = "caught" if caught else "SURVIVED"
            print(f"{line['seconds']:6.1f} s {word:8} {module}:{mutant.line} {mutant.change[:90]}"
                  f" | {by}", flush=True)  # fmt: skip


class Workshop:
    """A copy of the package and its tests, in which one file at a time is replaced."""

    def __init__(self, copy: Path, results: Path) -> None:
        self.copy = copy
        self.cache = results.with_suffix(".programs")
        self.notes = results.with_suffix(".lines.json")
        self.report = copy.parent / "report.json"
        self.output = results.with_suffix(".output")
        for name in ("gram_jax", "tests", "configs", "benchmarks", "launch", "docs", "tools"):
            ignored = shutil.ignore_patterns("__pycache__", "runs")
            shutil.copytree(ROOT / name, copy / name, ignore=ignored)
        for name in ("pyproject.toml", "README.md", "BUILD.md", "Makefile"):
            shutil.copy(ROOT / name, copy / name)

    def try_out(self, module: str, mutant: Mutant) -> tuple[bool, str]:
        """Whether the tests catch it, and which."""
        known = {name: self.lines_of(name) for name in test_files(module)}
        first, last = mutant.lines
        order: list[tuple[str, list[str]]] = []
        seconds = 0.0
        for name, notes in known.items():
            reached = {
                test
                for test, lines in notes["lines"].items()
                if any(first <= line <= last for line in lines.get(module, ()))
            }
            if reached:
                cost = notes["seconds"]
                seconds += sum(cost.values())
                order.append((name, sorted(cost, key=lambda t: (t not in reached, cost[t]))))
        if not order:
            return False, "never reached"
        order.sort(key=lambda item: min(known[item[0]]["seconds"][test] for test in item[1][:1]))
        (self.copy / path_of(module)).write_text(mutant.source)
        try:
            plugin = Queue([test for _, tests in order for test in tests], self.report)
            code = self._fork([name for name, _ in order], plugin, 60 + 5 * seconds)
        finally:
            (self.copy / path_of(module)).write_text(source_of(module))
        if code is None:
            return True, "time-out"
        by = json.loads(self.report.read_text()) if self.report.is_file() else "collection"
        return code != pytest.ExitCode.OK, by if code else ""

    def lines_of(self, test_file: str) -> dict[str, Any]:
        """The seconds of each test of a file and the lines that it runs, without faults."""
        notes = json.loads(self.notes.read_text()) if self.notes.is_file() else {}
        sources = [source_of(module) for module in TESTS] + [(self.copy / test_file).read_text()]
        print_of = hashlib.sha256("".join(sources).encode()).hexdigest()
        if notes.get(test_file, {}).get("of") != print_of:
            seconds = self._without_fault(test_file, Clock(self.report))
            lines = self._without_fault(test_file, Tracer(self.copy, self.report))
            # a control: tests pass in this order and with programs from the disk
            self._without_fault(test_file, Queue(sorted(seconds, key=seconds.get), self.report))
            notes[test_file] = {"of": print_of, "seconds": seconds, "lines": lines}
            self.notes.write_text(json.dumps(notes))
        return notes[test_file]

    def _without_fault(self, test_file: str, plugin: object) -> Any:
        start = time.monotonic()
        code = self._fork([test_file], plugin, 3600)
        assert code == 0, f"{test_file} fails without a fault: see {self.output}"
        name = type(plugin).__name__
        print(f"{time.monotonic() - start:6.1f} s {name:8} {test_file}", flush=True)
        return json.loads(self.report.read_text()) if self.report.is_file() else None

    def _fork(self, files: list[str], plugin: object, limit: float) -> int | None:
        """pytest's exit code in a process of its own; None if it exceeds the limit."""
        self.report.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            code = 99
            try:
                os.setpgid(0, 0)
                code = self._pytest(files, plugin)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        end = time.monotonic() + limit
        code = None
        while code is None and time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
            else:
                time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # with its children
        if code is None:
            os.waitpid(child, 0)
        return code

    def _pytest(self, files: list[str], plugin: object) -> int:
        import jax

        output = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(self.copy)
        sys.dont_write_bytecode = True  # else the next mutant could run this one's
        sys.path[:0] = [str(self.copy), str(self.copy / "tests")]
        os.environ["PYTHONPATH"] = str(self.copy)
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        jax.config.settled("jax_compilation_cache_dir", str(self.cache.resolve()))
        jax.config.settled("jax_persistent_cache_min_compile_time_secs", 0.0)
        options = [
            "-x",
            "-q",
            "-m",
            "",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:randomly",
            "--tb=short",
        ]
        options += ["--basetemp", str(self.copy.parent / "basetemp")]
        return int(pytest.main([*options, *files], plugins=[plugin]))


class Queue:
    """Runs the tests in a given order, file by file, and records the first that fails."""

    def __init__(self, order: list[str], report: Path) -> None:
        self.place = {test: at for at, test in enumerate(order)}
        self.report = report

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: self.place.get(item.nodeid, len(self.place)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.report.is_file():
            self.report.write_text(json.dumps(report.nodeid))


class Clock:
    """Seconds of every test, with its set-up."""

    def __init__(self, report: Path) -> None:
        self.report = report
        self.seconds: dict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration

    def pytest_sessionfinish(self) -> None:
        self.report.write_text(json.dumps(self.seconds))


class Tracer:
    """The lines of the package's modules that every test runs.

    Lines that run at collection or set-up count for all tests of the file, which may share them.
    """

    def __init__(self, copy: Path, report: Path) -> None:
        self.names = {str(copy / path_of(module)): module for module in TESTS}
        self.report = report
        self.found: set[tuple[str, int]] = set()
        self.shared: set[tuple[str, int]] = set()
        self.lines: dict[str, set[tuple[str, int]]] = {}
        threading.settrace(self._enter)
        sys.settrace(self._enter)

    def _enter(self, frame: Any, event: str, value: Any) -> Callable | None:
        return self._line if frame.f_code.co_filename in self.names else None

    def _line(self, frame: Any, event: str, value: Any) -> Callable:
        self.found.add((self.names[frame.f_code.co_filename], frame.f_lineno))
        return self._line

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Any:
        self.shared |= self.found
        self.found.clear()
        sys.settrace(self._enter)  # some tests switch it off
        yield
        self.lines[item.nodeid] = set(self.found)
        self.found.clear()

    def pytest_sessionfinish(self) -> None:
        sys.settrace(None)
        threading.settrace(None)
        report: dict[str, dict[str, list[int]]] = {}
        for test, lines in self.lines.items():
            report[test] = defaultdict(list)
            for module, line in sorted(lines | self.shared):
                report[test][module].append(line)
        self.report.write_text(json.dumps(report))


def key_of(mutant: Mutant) -> str:
    """Identifies a mutant of the present source."""
    return hashlib.sha256(mutant.source.encode()).hexdigest()[:16]


def read_lines(results: Path) -> list[dict[str, Any]]:
    return (
        [json.loads(line) for line in results.read_text().splitlines()] if results.is_file() else []
    )


def print_table(plan: dict[str, list[Mutant]], lines: list[dict[str, Any]]) -> None:
    """Mutants caught at the first trial and at the last, and the survivors."""
    first: dict[tuple[str, str], dict[str, Any]] = {}
    last: dict[tuple[str, str], dict[str, Any]] = {}
    for line in lines:
        first.setdefault((line["module"], line["key"]), line)
        last[line["module"], line["key"]] = line
    total = [0, 0, 0, 0]
    survivors: list[tuple[str, Mutant]] = []
    print(
        "\n| module | mutants | equivalent | caught at first | caught now |\n|---|---|---|---|---|"
    )
    for module, mutants in plan.items():
        tried = [mutant for mutant in mutants if (module, key_of(mutant)) in last]
        if not tried:
            continue
        missed = [mutant for mutant in tried if not last[module, key_of(mutant)]["caught"]]
        row = [len(tried), sum(bool(why_equivalent(module, mutant)) for mutant in missed)]
        row += [sum(table[module, key_of(m)]["caught"] for m in tried) for table in (first, last)]
        total = [a + b for a, b in zip(total, row, strict=True)]
        print(f"| {module} | " + " | ".join(map(str, row)) + " |")
        survivors += [(module, mutant) for mutant in missed]
    print("| all | " + " | ".join(map(str, total)) + " |\n")
    for module, mutant in sorted(survivors, key=lambda item: why_equivalent(*item) or ""):
        why = why_equivalent(module, mutant)
        note = f"equivalent: {why}" if why else last[module, key_of(mutant)]["by"] or "survived"
        print(f"{path_of(module)}:{mutant.line} [{mutant.kind}] {mutant.change} ({note})")
        print(f"    {mutant.place}")


def why_equivalent(module: str, mutant: Mutant) -> str | None:
    """Why a mutant computes the same; None if it does not or if that is not known."""
    if mutant.change == STRICT:
        return "lists of the same length"
    return EQUIVALENT.get(module, {}).get((mutant.place, mutant.change))


if __name__ == "__main__":
    main()
