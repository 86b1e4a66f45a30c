"""Random damage to checkpoints and exports: python benchmarks/corruption.py [TRIALS] [SEED]

Each trial copies a folder and changes bytes of one or two of its files (a flipped bit, a truncation, two files
exchanged, a deletion). It checks that loading is refused with the name of a changed file, and that a run then resumes
from its newest good step, bit for bit. As a control, the same folder is loaded without the manifest.

A trial draws from (seed, its number) alone. Orbax names its shards at random, so the same draw can
hit another shard of a newly made run; exports repeat exactly.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    )

import dataclasses
import json
import logging
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from tiny_runs import tiny_recipe

from gram_jax.checkpoint.manifest import MANIFEST, find_damage, write_manifest
from gram_jax.checkpoint.orbax import PARAMS, REST, Checkpoints
from gram_jax.errors import CheckpointError
from gram_jax.files import read_json
from gram_jax.interop.hf_config import config_from_hf
from gram_jax.interop.hf_export import export_hf
from gram_jax.interop.hf_files import CONFIG, INDEX, WEIGHTS
from gram_jax.interop.models import load_model, load_spec, load_tokenizer
from gram_jax.judge.spec import JudgeSpec
from gram_jax.judge.tokenizer import folder_tokenizer
from gram_jax.recipes.reading import read_recipe
from gram_jax.sharding import Placement, make_placement
from gram_jax.training.loop import train

KINDS = ("bit flip", "truncation", "swap", "deletion")
STEPS, LAST = (2, 4, 6), 6
# Results of the control.
HARMLESS, ERROR, WRONG = "same result", "error", "silently wrong"


@dataclass(frozen=True)
class Subject:
    """A folder that is damaged. steps: numbers of a run's checkpoints, none for an export."""

    name: str
    folder: Path
    steps: tuple[int, ...]
    good: dict[Any, Any]  # undamaged: step -> state and "texts" of a run, "export" of an export


def main() -> None:
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    logging.disable(logging.CRITICAL)  # Orbax reports each damaged metadata file, too
    with tempfile.TemporaryDirectory() as place:
        start = time.perf_counter()
        subjects = make_subjects(Path(place))
        print(f"{len(subjects)} folders made in {time.perf_counter() - start:.0f} s", flush=True)
        start = time.perf_counter()
        table = run_trials(subjects, trials, seed, Path(place) / "trial")
        print(f"{trials} trials, seed {seed}, in {time.perf_counter() - start:.0f} s\n")
        print_table(table)
        speed(Path(place) / "speed")


def make_subjects(place: Path, stages: tuple[str, ...] = ("finetune", "pretrain")) -> list[Subject]:
    """Tiny runs of both stages on a mesh of several devices, and exports in one file and in many."""
    subjects = []
    for stage in stages:
        run = place / f"run-{stage}"
        recipe = tiny_recipe(stage, run, checkpoint__save_steps=2, checkpoint__max_to_keep=3)
        train(recipe, placement=_mesh())
        good: dict[Any, Any] = {s: saved_state(run / "checkpoints", s) for s in STEPS}
        assert not same(good[LAST], good[STEPS[-2]])  # else a fall-back could not be detected
        subjects.append(
            Subject(f"run, {stage}", run, STEPS, good | {"texts": raw_texts(run / "model")})
        )
    run = place / f"run-{stages[0]}"
    cfg, params = load_model(run, _one(), None)
    tokenizer, spec = load_tokenizer(run), load_spec(run)
    for name, size in (("one file", 10**9), ("many files", 60_000)):
        folder = place / name.replace(" ", "-")
        export_hf(folder, cfg, params, dtype=None, tokenizer=tokenizer, spec=spec, shard_bytes=size)
        load_export(folder)
        subjects.append(Subject(f"export, {name}", folder, (), {"export": raw_export(folder)}))
    return subjects


def run_trials(
    subjects: list[Subject], trials: int, seed: int, scratch: Path, *, resume_every: int = 20
) -> dict[tuple[str, str], Counter]:
    """(subject, kind) -> counts. Raises AssertionError at the first trial that fails."""
    for subject in subjects:  # else the control could call everything wrong
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(subject.folder, scratch)
        assert control(scratch, subject) == HARMLESS, subject.name
    table: dict[tuple[str, str], Counter] = {}
    for number in range(trials):
        draw = random.Random(f"{seed}, {number}")
        turn, at = divmod(number, len(subjects))
        subject, kind = subjects[at], KINDS[turn % len(KINDS)]
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(subject.folder, scratch)
        before = contents(scratch)
        targets = damage(scratch, subject, kind, draw)
        damaged = contents(scratch)
        changed = {name for name, data in before.items() if damaged.get(name) != data}
        assert changed == set(targets), f"trial {number}: {kind} of {targets} changed {changed}"
        where = f"trial {number} (seed {seed}): {subject.name}, {kind} of {targets}"
        counts = table.setdefault((subject.name, kind), Counter())
        counts["trials"] += 1
        counts[control(scratch, subject)] += 1
        assert contents(scratch) == damaged, f"{where}: the control wrote into the folder"
        if not subject.steps:
            assert_named(refusal_of(lambda: load_export(scratch)), targets, where)
        elif targets[0].startswith("model/"):
            assert_named(refusal_of(lambda: load_model(scratch, _one(), None)), targets, where)
        else:
            check_refused(scratch, subject, targets, where)
            if counts["fell back"] % resume_every == resume_every - 1:
                check_resumed(scratch, subject, targets, where)
                counts["resumed"] += 1
            else:
                check_fall_back(scratch, subject, targets, where)
            counts["fell back"] += 1
        counts["refused"] += 1
    return table


# --- damage


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def damage(folder: Path, subject: Subject, kind: str, draw: random.Random) -> list[str]:
    """Change one file, or two for a swap, and return their names.

    Of a run, files of the newest step, or in 15 % of the trials of model/. Half of the draws are by
    file, so that small metadata are drawn; half by byte, so that weights are.
    """
    places = [folder]
    if subject.steps:
        places = (
            [folder / "checkpoints" / str(LAST)] if draw.random() < 0.85 else [folder / "model"]
        )
    files = sorted(p for place in places for p in place.rglob("*") if p.is_file())
    files = [p for p in files if p.stat().st_size]
    by_file = draw.random() < 0.5 or kind == "swap"
    path = draw.choices(files, None if by_file else [p.stat().st_size for p in files])[0]
    data = path.read_bytes()
    if kind == "bit flip":
        bit = draw.randrange(len(data) * 8)
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        return [path.relative_to(folder).as_posix()]
    if kind == "truncation":
        path.write_bytes(data[: draw.randrange(len(data))])
        return [path.relative_to(folder).as_posix()]
    if kind == "deletion":
        path.unlink()
        return [path.relative_to(folder).as_posix()]
    other = draw.choice([p for p in files if p.read_bytes() != data])
    path.write_bytes(other.read_bytes())
    other.write_bytes(data)
    return [p.relative_to(folder).as_posix() for p in (path, other)]


# --- the checks


def refusal_of(read: Callable[[], Any]) -> str | None:
    """The text of the CheckpointError; None if reading succeeds."""
    try:
        read()
    except CheckpointError as error:
        return str(error)
    return None


def assert_named(text: str | None, names: list[str], where: str) -> None:
    assert text is not None, f"{where}: was not refused"
    for name in names:
        # A step's own files are named within the step.
        short = name.split("/", 2)[2] if name.startswith("checkpoints/") else name
        short = short.removeprefix("model/")
        # If the manifest itself is damaged, it does not name the other file of a swap.
        expected = MANIFEST if any(n.endswith(MANIFEST) for n in names) else short
        assert expected in text, f"{where}: {expected} is not named in\n{text}"


def check_refused(run: Path, subject: Subject, targets: list[str], where: str) -> None:
    """The newest step is not restored, and the message names what was changed."""
    abstract = abstract_state(subject.good[LAST])
    with Checkpoints(run / "checkpoints", keep=None) as reader:
        assert_named(refusal_of(lambda: reader.restore(LAST, abstract)), targets, where)


def check_fall_back(run: Path, subject: Subject, targets: list[str], where: str) -> None:
    """The step before is restored bit for bit, and the damaged one is kept aside, unchanged."""
    folder = run / "checkpoints"
    before = contents(folder / str(LAST))
    reports: list[str] = []
    with Checkpoints(folder, keep=3) as checkpoints:
        step = checkpoints.newest_good(reports.append)
        assert step == STEPS[-2], f"{where}: resumed from {step}"
        assert len(reports) == 1, f"{where}: {reports}"
        assert_named(reports[0], targets, where)
        found = checkpoints.restore(step, abstract_state(subject.good[step]))
        assert same(found, subject.good[step]), f"{where}: step {step} changed"
        assert LAST not in checkpoints.all_steps(), where
    assert contents(folder / "damaged" / f"{LAST}-1") == before, f"{where}: was not kept"


def check_resumed(run: Path, subject: Subject, targets: list[str], where: str) -> None:
    """The run, started again, warns, and ends with the bits of the uninterrupted one."""
    (run / "run.json").write_text(
        json.dumps(json.loads((run / "run.json").read_text()) | {"finished": False})
    )
    recipe = read_recipe(run / "recipe.toml")
    recipe = dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, output_dir=str(run)))
    with kept_warnings() as warnings:
        train(recipe, placement=_mesh())
    assert_named("".join(warnings), targets, where)
    with Checkpoints(run / "checkpoints", keep=None) as reader:
        found = reader.restore(LAST, abstract_state(subject.good[LAST]))
    assert same(found, subject.good[LAST]), f"{where}: the run ended with other bits"


@contextmanager
def kept_warnings() -> Iterator[list[str]]:
    """The warnings that gram_jax logs in the block."""
    kept: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: kept.append(record.getMessage())
    logger = logging.getLogger("gram_jax")
    logger.addHandler(handler)
    try:
        yield kept
    finally:
        logger.removeHandler(handler)


def load_export(folder: Path) -> None:
    """Load an export as a scorer does."""
    load_spec(folder)
    load_tokenizer(folder)
    load_model(folder, _one(), None)


# --- the control: the same without our manifest


def control(folder: Path, subject: Subject) -> str:
    """The result without verification: a copy without a manifest, read by Orbax or safetensors
    and by the parsers of the small files.
    """
    copy = folder.with_name("control")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(MANIFEST))
    try:
        if subject.steps:
            same_state = same(
                raw_state(copy / "checkpoints", subject.good[LAST]), subject.good[LAST]
            )
            unchanged = same_state and raw_texts(copy / "model") == subject.good["texts"]
        else:
            unchanged = raw_export(copy) == subject.good["export"]
    except Exception:
        return ERROR
    return HARMLESS if unchanged else WRONG


def raw_state(checkpoints: Path, like: dict[str, Any]) -> dict[str, Any]:
    """The newest step as a plain CheckpointManager of Orbax restores it."""
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for item in (PARAMS, REST):
        handler = ocp.StandardCheckpointHandler()
        registry.add(item, ocp.args.StandardRestore, handler)
    abstract = abstract_state(like)
    params = {PARAMS: abstract.pop(PARAMS)}
    with ocp.CheckpointManager(checkpoints, handler_registry=registry) as manager:
        args = {
            PARAMS: ocp.args.StandardRestore(params[PARAMS]),
            REST: ocp.args.StandardRestore(abstract),
        }
        found = manager.restore(LAST, args=ocp.args.Composite(**args))
    return {**found[REST], PARAMS: found[PARAMS]}


def raw_texts(folder: Path) -> tuple[Any, ...]:
    """Config, tokenizer, chat template and judge.json."""
    tokenizer = folder_tokenizer(folder)
    tokens = str(sorted(tokenizer.special_tokens_map.items()))
    state = tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template, tokens
    return config_from_hf(read_json(folder / CONFIG)), *state, JudgeSpec.load(folder)


def raw_export(folder: Path) -> tuple[Any, ...]:
    """The same, and the tensors that the index (or the only file) names."""
    files = [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        weight_map = read_json(folder / INDEX)["weight_map"]
        tensors = {}
        for name, file in weight_map.items():
            tensors[name] = load_file(folder / file)[name]
    else:
        tensors = load_file(files[0])
    bits = {name: (x.shape, str(x.dtype), x.tobytes()) for name, x in sorted(tensors.items())}
    return *raw_texts(folder), bits


# --- states


def abstract_state(state: dict[str, Any]) -> dict[str, Any]:
    """The shapes of a state, on one device."""
    one = _one().sharding()
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), state)


def saved_state(checkpoints: Path, step: int) -> dict[str, Any]:
    """A step as numpy arrays, in the structure that Orbax stores."""
    shapes = {}
    for item in (PARAMS, REST):
        found = ocp.StandardCheckpointHandler().metadata(epath.Path(checkpoints / str(step) / item))
        shapes[item] = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), dict(found.tree)
        )
    with Checkpoints(checkpoints, keep=None) as reader:
        abstract = abstract_state({**shapes[REST], PARAMS: shapes[PARAMS]})
        return jax.tree.map(np.asarray, reader.restore(step, abstract))


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether two states have the same structure, types and bits."""
    if jax.tree.structure(found) != jax.tree.structure(expected):
        return False
    return all(
        a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    )


def _one() -> Placement:
    return make_placement({}, devices=jax.devices()[:1])


def _mesh() -> Placement:
    return make_placement({"fsdp": 4}, devices=jax.devices()[:4])


# --- figures


def print_table(table: dict[tuple[str, str], Counter]) -> None:
    """A row per folder and kind of damage, and the sums."""
    columns = ("trials", "refused", "fell back", "resumed", HARMLESS, ERROR, WRONG)
    total = sum(table.values(), Counter())
    line = "| {:<20} | {:<10} |" + " {:>14} |" * len(columns)
    print(line.format("folder", "damage", *columns))
    print(line.format("---", "---", *["---:"] * len(columns)))
    for (name, kind), counts in sorted(table.items()):
        print(line.format(name, kind, *(counts[column] for column in columns)))
    print(line.format("all", "", *(total[column] for column in columns)))
    print(
        "\nrefused: by name. fell back: to step 4, bit for bit, in trials that damaged step 6; "
        "resumed: of those, by\nthe run itself, which ended with the bits of the uninterrupted one. "
        f"The last three columns: without the manifest.\n{total[WRONG]} of {total['trials']} "
        "would have been restored silently wrong."
    )


def speed(place: Path, megabytes: int = 1600) -> None:
    """Throughput of hashing, and the share of verification in restoring a state; with a warm disk cache."""
    place.mkdir()
    print(f"\n{os.cpu_count()} processors")
    (place / "file").write_bytes(np.random.default_rng(0).bytes(512 << 20))
    for threads in (1, os.cpu_count() or 1):
        folder = place / f"files-{threads}"
        folder.mkdir()
        for number in range(threads):
            os.link(place / "file", folder / str(number))
        seconds = _median(lambda folder=folder: write_manifest(folder))
        print(f"hashing {threads} file(s) at once: {threads * 0.537 / seconds:.2f} GB/s")
    width = megabytes * 1_000_000 // (4 * 12)
    draw = np.random.default_rng(0)
    leaf = {name: draw.random(width, np.float32) for name in "abcd"}
    state = jax.device_put({"params": leaf, "mu": leaf, "nu": leaf}, _one().sharding())
    with Checkpoints(place / "c", keep=1) as checkpoints:
        start = time.perf_counter()
        checkpoints.save(1, state, blocking=True)
        saving = time.perf_counter() - start
    print(f"state of {megabytes / 1000:.1f} GB: saved in {saving:.2f} s, manifest included")
    abstract = abstract_state(state)
    step = place / "c" / "1"
    files = sum(p.stat().st_size for p in step.rglob("*") if p.is_file())
    verifying = _median(lambda: find_damage(step, of="step 1"))
    hashing = _median(lambda: write_manifest(step, of="step 1"))

    def restore() -> None:
        with Checkpoints(place / "c", keep=None) as checkpoints:
            checkpoints._verified |= {(1, PARAMS), (1, REST)}  # what restoring costs by itself
            jax.block_until_ready(checkpoints.restore(1, abstract))

    restoring = _median(restore)
    print(
        f"verify {verifying:.2f} s ({files / verifying / 1e9:.2f} GB/s), restore {restoring:.2f} s: "
        f"{verifying / restoring:.2f} of it; the manifest is {hashing / saving:.2f} of a save"
    )


def _median(work: Callable[[], Any], rounds: int = 3) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return sorted(times)[rounds // 2]


if __name__ == "__main__":
    main()
