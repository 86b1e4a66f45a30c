"""The token cache: the examples of a recipe, whole or not used."""

import json
import logging
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from cli_runner import run_cli
from damage import flip, truncate
from tiny_runs import compiled_programs, tiny_recipe, train, write_pairs  # noqa: F401

from gram_jax.data import cache
from gram_jax.data.batches import BatchPlan
from gram_jax.data.cache import Build, load_cache
from gram_jax.data.examples import Examples, make_examples, sources_of
from gram_jax.data.pool import ProcessPool
from gram_jax.data.reading import SourcesStream, read_sources
from gram_jax.data.report import ReadReport
from gram_jax.errors import DataError
from gram_jax.interop.tiny import tiny_tokenizer
from gram_jax.judge.spec import make_spec
from gram_jax.judge.tokens import text_encoder
from gram_jax.recipes.reading import recipe_to_toml
from gram_jax.run.metrics import read_metrics
from gram_jax.training import examples as training
from gram_jax.training.examples import cache_folder, training_examples

TOKENIZER = tiny_tokenizer()
SPEC = make_spec(TOKENIZER, max_length=192)


def same(one: Examples, other: Examples) -> bool:
    pairs = zip(one.columns.values(), other.columns.values(), strict=True)
    facts = [(x.read, x.read.by_source, x.shortened, x.per_unit, x.stage) for x in (one, other)]
    return all(np.array_equal(a, b) for a, b in pairs) and facts[0] == facts[1]


def mixed_rows(folder: Path) -> list[str]:
    """Three sources with repeated ids, ties, equal responses, overlong and weighted rows."""
    draw, files = random.Random(0), []
    for name in "abc":
        rows = []
        for n in range(30):
            row = {
                "id": f"{n % 25}",
                "prompt": f"{name} {n % 7}",
                "response_a": f"yes {n}",
                "response_b": "no",
            }
            row |= {"label": draw.choice(["A", "B", "B", "tie"]), "weight": draw.choice([1, 2.5])}
            if n % 11 == 3:
                row["response_a"] = "long " * 200
            if n % 13 == 5:
                row["response_a"] = "no"
            rows.append(json.dumps(row))
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
        files.append(str(folder / f"{name}.jsonl"))
    return files


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        (
            "finetune",
            {"position_augmentation": "hash", "attack_share": 0.3, "overlong": "truncate"},
        ),
        ("finetune", {"position_augmentation": "both", "limit": 50}),
        ("pretrain", {}),
        ("bradley_terry", {"overlong": "truncate"}),
    ],
)
def test_a_cache_holds_the_examples_that_are_encoded_in_memory(
    tmp_path, monkeypatch, stage, changes
):
    monkeypatch.setattr(cache, "CHUNK", 16)  # several shards
    files = mixed_rows(tmp_path)
    changes = {f"data__{key}": value for key, value in changes.items()}
    make = partial(tiny_recipe, stage, tmp_path / "run", data__train=files, **changes)
    in_memory = training_examples(make(data__cache_dir=""), TOKENIZER, SPEC)
    cached = make(data__cache_dir=str(tmp_path / "cache"), data__num_workers=2)
    built, opened = (training_examples(cached, TOKENIZER, SPEC) for _ in range(2))
    assert same(built, in_memory) and same(opened, in_memory)
    assert built.fingerprint() == opened.fingerprint() == in_memory.fingerprint()
    assert len(set(in_memory.source.tolist())) == (2 if "data__limit" in changes else 3)
    plans = [
        BatchPlan(x, batch_size=4, max_length=192, seed=0, packing=True) for x in (built, in_memory)
    ]
    arrays = [[*plan.batch(1).seqs, *plan.batch(1)[1:]] for plan in plans]
    assert all(np.array_equal(a, b) for a, b in zip(*arrays, strict=True))
    assert not isinstance(arrays[0][0], np.memmap)


def test_small_data_leave_no_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = tiny_recipe("finetune", tmp_path / "run")
    assert cache_folder(recipe, TOKENIZER, SPEC) is None
    training_examples(recipe, TOKENIZER, SPEC)
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(training, "SMALL_BYTES", 10)
    found = cache_folder(recipe, TOKENIZER, SPEC)
    assert found is not None and found.is_relative_to(tmp_path / "cache" / "gram_jax")


def test_the_key_covers_what_determines_the_examples_and_nothing_else(tmp_path, monkeypatch):
    data = write_pairs(tmp_path / "train.jsonl", 8)

    def key(stage="finetune", spec=SPEC, **changes) -> Path:
        changes = {"data__cache_dir": str(tmp_path / "cache"), **changes}
        folder = cache_folder(tiny_recipe(stage, tmp_path / "run", **changes), TOKENIZER, spec)
        assert folder is not None
        return folder

    hashed = partial(key, data__position_augmentation="hash")
    different = [
        key(),
        hashed(),
        hashed(run__seed=1),
        key("pretrain"),
        key(spec=replace(SPEC, max_length=128)),
        key(data__limit=3),
        key(data__train=[{"path": str(data), "limit": 3}]),
        key(data__train=[{"path": str(data), "schema": "trl-standard"}]),
        key(data__schema="trl-standard"),
        key(data__on_bad="skip"),
        key(data__overlong="truncate"),
        key(data__attack_share=0.5),
        key(data__train=[str(data), str(data)]),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(cache, "FORMAT", cache.FORMAT + 1)
        different.append(key())
    same_key = [
        key(run__seed=1),
        key(optimizer__learning_rate=1.0),
        key(batch__max_length=100),
        key(data__num_workers=1),
        key(data__train=[{"path": str(data), "weight": 2.0}]),
    ]
    assert set(same_key) == {different[0]}
    lines = data.read_text().splitlines()
    data.write_text("\n".join([*lines[1:], lines[0]]) + "\n")
    different.append(key())
    assert len(set(different)) == len(different)


# Building


@contextmanager
def counting(seen: list[int], total, *, done=0, label="", unit="tokens"):
    """A ProgressFactory that records the number of records done, at the start and after each update."""

    class Bar:
        def update(self, count=1, *, units=0.0, values=None):
            seen.append(seen[-1] + count)

        def pause(self):
            pass

    seen.append(done)
    yield Bar()


def small_build(source: Path, *, stop_after: int | None = None, workers: int = 2) -> Build:
    """The build of a file of pairs; after `stop_after` records its reading fails."""
    stream = SourcesStream([str(source)])

    def read() -> ReadReport:
        stream.scan()
        return stream.read

    def records():
        for number, record in enumerate(stream):
            if number == stop_after:
                raise RuntimeError("interrupted")
            yield record

    encode = partial(
        make_examples,
        "finetune",
        tokenizer=text_encoder(TOKENIZER),
        spec=SPEC,
        position_augmentation="hash",
        seed=0,
        overlong="truncate",
        read=ReadReport(0, 0),
    )
    return Build("finetune", 1, read, records, encode, workers)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "CHUNK", 16)
        yield write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", 200)


@pytest.fixture(scope="module")
def whole(pairs) -> tuple[Examples, Path]:
    """The examples of `pairs`, and the folder of their cache, which is not changed."""
    return load_cache(pairs.parent / "whole", small_build(pairs)), pairs.parent / "whole"


def test_an_interrupted_build_resumes_after_its_last_whole_shard(whole, pairs, tmp_path):
    folder = tmp_path / "cache"
    with pytest.raises(RuntimeError, match="interrupted"):
        load_cache(folder, small_build(pairs, stop_after=170, workers=1))
    assert not folder.exists()
    seen: list[int] = []
    found = load_cache(folder, small_build(pairs), progress=partial(counting, seen))
    assert seen[0] >= 100 and seen[0] % 16 == 0 and seen[-1] == 200
    assert same(found, whole[0]) and found.fingerprint() == whole[0].fingerprint()
    assert sorted(p.name for p in tmp_path.iterdir() if "cache" in p.name) == [
        "cache",
        "cache.lock",
    ]


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("tokens", flip),
        ("weights", truncate),
        ("label", Path.unlink),
        *(("shards.jsonl", change) for change in (flip, truncate, Path.unlink)),
    ],
)
def test_damage_to_an_unfinished_build_costs_its_shards_alone(whole, pairs, tmp_path, what, change):
    expected, finished = whole
    unfinished = tmp_path / f"cache{cache.PARTIAL}"
    shutil.copytree(finished, unfinished)
    change(unfinished / what)
    found = load_cache(tmp_path / "cache", small_build(pairs, workers=1))
    assert same(found, expected)


def test_damaged_caches_are_named_and_built_again(whole, pairs, tmp_path, caplog):
    expected, folder = whole[0], tmp_path / "whole"
    shutil.copytree(whole[1], folder)
    changes = {
        "tokens": flip,
        "source": truncate,
        "figures.json": Path.unlink,
        "gram_jax_manifest.json": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    }
    for name, change in changes.items():
        caplog.clear()
        change(folder / name)
        with caplog.at_level(logging.WARNING):
            assert same(load_cache(folder, small_build(pairs, workers=1)), expected)
        assert name in caplog.text
    # the cache of another key under this name
    other = load_cache(tmp_path / "other", small_build(write_pairs(tmp_path / "o.jsonl", 20, 1)))
    shutil.rmtree(folder)
    (tmp_path / "other").rename(folder)
    with caplog.at_level(logging.WARNING):
        found = load_cache(folder, small_build(pairs, workers=1))
    assert "swapped" in caplog.text and same(found, expected) and not same(found, other)


def test_data_that_change_while_they_are_encoded_are_an_error(pairs, tmp_path):
    build = small_build(pairs)
    shorter = replace(build, records=lambda: list(small_build(pairs).records())[:-1])
    with pytest.raises(DataError, match="199"):
        load_cache(tmp_path / "cache", shorter)
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_written_is_named(pairs, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cache_dir"):
        load_cache(tmp_path / "file" / "key", small_build(pairs))


# Processes


def test_processes_import_no_jax_and_keep_the_order_of_the_arguments():
    with ProcessPool(partial(sorted, reverse=True), 2) as pool:
        assert list(pool.map([[n, n + 1] for n in range(9)])) == [[n + 1, n] for n in range(9)]
    loaded = "import sys, gram_jax.data.pool, gram_jax.data.examples; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_an_error_of_a_process_is_raised_here():
    with ProcessPool(int, 1) as pool, pytest.raises(DataError, match="invalid literal"):
        list(pool.map(["1", "one"]))
    with ProcessPool(os._exit, 2) as pool, pytest.raises(DataError, match="status 3"):
        list(pool.map([3] * 20))


# Reading


def test_a_stream_gives_the_records_of_a_list(tmp_path):
    files = mixed_rows(tmp_path)
    for limit in (None, 40):
        stream = SourcesStream(files, limit=limit)
        expected, report = read_sources(files, limit=limit)
        for _ in range(2):
            assert list(stream) == expected
        assert stream.read == report and stream.read.by_source == report.by_source
        assert len({record.id for record in expected}) == len(expected)


def test_the_source_of_a_record_follows_from_the_numbers_of_each():
    read = ReadReport(9, 9, {}, (2, 0, 4))
    assert sources_of(read, 0, 6).tolist() == [0, 0, 2, 2, 2, 2]
    assert sources_of(read, 1, 3).tolist() == [0, 2]


# Runs


def test_data_are_prepared_ahead_of_a_run(tmp_path):
    source, folder = write_pairs(tmp_path / "pairs.jsonl", 20), tmp_path / "cache"
    recipe = tiny_recipe("finetune", tmp_path / "run", data__train=[str(source)])
    (tmp_path / "recipe.toml").write_text(recipe_to_toml(recipe))
    words = ["data", "prepare", str(tmp_path / "recipe.toml"), "--set", f"data.cache_dir={folder}"]
    done = run_cli(*words)
    assert done.status == 0 and "20 in 40 documents" in done.output, done.output
    (before,) = (path.stat().st_ino for path in folder.iterdir() if path.is_dir())
    assert run_cli(*words).status == 0
    assert [path.stat().st_ino for path in folder.iterdir() if path.is_dir()] == [before]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_on_a_mixture_in_a_cache_is_that_in_memory_and_resumes(tmp_path, compiled_programs):  # noqa: F811
    few, many = (write_pairs(tmp_path / f"{n}.jsonl", n, seed=n) for n in (6, 18))
    train_on = [{"path": str(few), "weight": 2.0}, {"path": str(many), "weight": 0.5}]

    def run(name: str, *stops: int | None, **changes):
        recipe = tiny_recipe("finetune", tmp_path / name, data__train=train_on, **changes)
        for stop in stops:
            result = train(recipe, stop)
        return read_metrics(result.folder / "metrics.jsonl"), json.loads(
            (result.folder / "run.json").read_text()
        )

    cached = {"data__cache_dir": str(tmp_path / "cache")}
    plain, at_once, in_two = (
        run("plain", None),
        run("cached", None, **cached),
        run("two", 2, None, **cached),
    )
    drop = ("tokens_per_second",)
    lines = [
        [{k: v for k, v in row.items() if k not in drop} for row in rows]
        for rows, _ in (plain, at_once, in_two)
    ]
    assert lines[0] == lines[1] == lines[2]
    assert plain[1]["examples"] == at_once[1]["examples"]
    shares = [(row["share/6"], row["share/18"]) for row in plain[0]]
    assert all(sum(pair) == pytest.approx(1) for pair in shares)
    assert [one["share"] for one in plain[1]["data"]["sources"]] == pytest.approx([12 / 21, 9 / 21])


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [("kills", "--trials", "3", "--pairs", "9000"), ("damage", "--trials", "8")]
)
def test_killed_builds_and_damaged_caches_end_as_undisturbed_ones(words):
    """The short form of benchmarks/token_cache.py."""
    script = Path(__file__).parents[1] / "benchmarks" / "token_cache.py"
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system is not permitted")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_is_named_and_leaves_nothing_that_looks_whole(whole, pairs, small_disk):
    folder = small_disk / "cache"
    for _ in range(2):
        with pytest.raises(DataError, match=r"full.*data\.cache_dir"):
            load_cache(folder, small_build(pairs))
        assert not folder.exists()
    subprocess.run(["mount", "-o", "remount,size=2m", str(small_disk)], check=True)
    seen: list[int] = []
    found = load_cache(folder, small_build(pairs), progress=partial(counting, seen))
    assert seen[0] > 0 and same(found, whole[0])
