"""A job on two hosts whose network is slow, lossy and cut; benchmarks/hosts.py is the long form."""

from pathlib import Path

import pytest
import tomli_w
from hosts import disturbed_run, missing, start_job_on, two_hosts
from jobs import COMMAND, Job, environment
from test_jobs import check_close
from tiny_runs import tiny_values, train, write_pairs

from gram_jax.errors import LOST
from gram_jax.recipes.reading import make_recipe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]

LOST_AFTER = 5


def values_of(run: Path, data: Path) -> dict:
    settings = {"run__max_steps": 10, "checkpoint__save_steps": 1, "log__logging_steps": 1}
    settings |= {"data__train": [str(data / "train.jsonl")], "batch__batch_size": 8}
    return tiny_values("finetune", run, **settings)


def recipe_of(hosts) -> Path:
    write_pairs(hosts.outside / "train.jsonl", 16)
    path = hosts.outside / "run.toml"
    path.write_text(tomli_w.dumps(values_of(hosts.work / "run", hosts.work)))
    return hosts.work / path.name


def test_a_network_that_is_slow_and_lossy_is_endured_and_one_that_is_cut_ends_the_job(tmp_path):
    with two_hosts(tmp_path / "hosts") as hosts:
        found = disturbed_run(
            hosts, recipe_of(hosts), "run", command="train", lost_after=LOST_AFTER, steps=1
        )
        assert found.statuses == [LOST, LOST]
        assert LOST_AFTER - 2 < found.seconds < LOST_AFTER + 10
        assert found.resumed >= 3 and found.delayed and found.lossy
        train(make_recipe(values_of(tmp_path / "alone", hosts.outside)))
        check_close(tmp_path / "alone", hosts.outside / "run")


def test_hosts_that_do_not_share_the_folder_are_told_so(tmp_path):
    with two_hosts(tmp_path / "hosts", shared=False) as hosts:
        recipe = recipe_of(hosts)
        for name in ("run.toml", "train.jsonl"):
            (tmp_path / "hosts" / "work" / name).write_bytes((hosts.outside / name).read_bytes())
        job = start_job_on(hosts, recipe)
        assert job.wait(120) == [2, 2]
        assert "a directory that all of them share" in "".join(job.texts())


def test_shards_need_no_network(tmp_path):
    with two_hosts(tmp_path / "hosts", joined=False) as hosts:
        write_pairs(hosts.outside / "pairs.jsonl", 12)
        options = ["--model=tiny-random", "--max-length=256"]

        def run(*commands: list[str]) -> None:
            outputs = [tmp_path / f"{name}-{len(commands)}.txt" for name in "ab"[: len(commands)]]
            started = [
                host.start([*COMMAND, *words], environment(1), hosts.work, output)
                for host, words, output in zip(hosts.hosts, commands, outputs, strict=False)
            ]
            job = Job(started, outputs)
            assert job.wait(120) == [0] * len(commands), job.texts()

        shard = ["score", "pairs.jsonl", "scores.jsonl", *options, "--part-rows=3"]
        run([*shard, "--shard=0/2"], [*shard, "--shard=1/2"])
        run(["merge", "scores.jsonl"], ["score", "pairs.jsonl", "alone.jsonl", *options])
        merged, alone = (hosts.outside / f"{name}.jsonl" for name in ("scores", "alone"))
        assert merged.read_bytes() == alone.read_bytes()
        assert not hosts.link.passed
