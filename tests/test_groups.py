"""A group of processes that shares one sharded copy of the weights is one shard."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from cli_runner import run_cli
from jobs import free_port, start_job
from tiny_runs import write_pairs

from gram_jax.distributed.shard import ShardPlace, find_shard
from gram_jax.errors import ClusterError, RecipeError
from gram_jax.judge.encode import Encoded
from gram_jax.scoring.group import pack, unpack
from gram_jax.scoring.scorer import Scorer
from gram_jax.sharding import make_placement, parse_mesh

ARRAY = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_COUNT": "2"}


def test_sequences_are_sent_whole():
    sent = [
        Encoded(np.arange(size, dtype=np.int32), np.ones(size, np.float32), field_starts=(1, size))
        for size in (3, 1, 7)
    ]
    for sequences in (sent, []):
        found = unpack(pack(sequences))
        assert [text.tokens.tolist() for text in found] == [x.tokens.tolist() for x in sequences]
        assert [text.field_starts for text in found] == [x.field_starts for x in sequences]


@pytest.mark.parametrize("text", ["", "fsdp", "fsdp=0", "fsdp=2,", "fsdp=2,fsdp=2", "fsdp=2 "])
def test_a_mesh_that_cannot_be_read_is_refused(text):
    with pytest.raises(RecipeError, match="axis=size"):
        parse_mesh(text)


def test_the_shard_of_a_group_in_slurm_is_the_task_of_the_array():
    step = {"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "n[1-2]"}
    step |= {"SLURM_JOB_ID": "7"}
    assert find_shard("auto", ARRAY | step, in_group=True) == ShardPlace(1, 2)
    with pytest.raises(ClusterError, match="array"):
        find_shard("auto", step, in_group=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*no judge.json")
def test_sharded_weights_give_the_same_scores():
    """Bit for bit if they are gathered (fsdp); up to rounding if products are summed in parts (tensor)."""
    pairs = [("Name a prime.", "Seven.", text) for text in ("Nine.", "Ten, or eight.", "A" * 40)]
    devices = jax.devices()[:2]

    def scorer(mesh: dict[str, int]) -> Scorer:
        return Scorer.load("tiny-random", placement=make_placement(mesh, devices=devices))

    whole, gathered, parts = (scorer({axis: 2}) for axis in ("data", "fsdp", "tensor"))
    expected = [score.first for score in whole.score_many(pairs)]
    assert [score.first for score in gathered.score_many(pairs)] == expected
    found = [score.first for score in parts.score_many(pairs)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert whole.identity == gathered.identity
    assert parts.identity == whole.identity._replace(program="prefix_shared, tensor 2")


def test_a_server_has_no_group(tmp_path):
    pairs = write_pairs(tmp_path / "pairs.jsonl", 2)
    words = ("score", pairs, tmp_path / "out.jsonl", "--model", "tiny-random")
    ran = run_cli(*words, "--server", "http://127.0.0.1:9", "--mesh", "fsdp=2")
    assert ran.status == 2 and "leave out" in ran.output
    ran = run_cli(*words, "--coordinator", "127.0.0.1:9")
    assert ran.status == 2 and "--process" in ran.output


@pytest.mark.slow
def test_shards_of_two_processes_have_the_bytes_of_one_process(tmp_path):
    """Each of two shards is written by two processes of two devices; the second processes see no input."""
    pairs = write_pairs(tmp_path / "pairs.jsonl", 23)
    options = ("--model", "tiny-random", "--max-length", "256")
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    elsewhere = tmp_path / "no such file.jsonl"

    def start(count: int, out: Path, *more: str, source: Path = pairs, **place):
        return start_job(tmp_path, source, count, str(out), *options, *more, name="score", **place)

    running = [start(1, whole)]
    for at in range(2):
        shard, port = ("--shard", f"{at}/2", "--part-rows", "4"), free_port()
        for only, source in (((0,), pairs), ((1,), elsewhere)):
            place = {"only": only, "port": port, "source": source}
            running.append(start(2, out, *shard, **place))
    assert [job.wait(200) for job in running] == [[0]] * 5
    ran = run_cli("merge", out)
    assert ran.status == 0, ran.output
    assert out.read_bytes() == whole.read_bytes()
    parts = tmp_path / "out.jsonl.parts"
    codes = {json.dumps(json.loads(p.read_text())["code"]) for p in parts.glob("part-*.json")}
    assert len(codes) == 1


@pytest.mark.slow
def test_an_error_of_the_first_process_ends_the_group(tmp_path):
    words = (str(tmp_path / "out.jsonl"), "--model", "tiny-random")
    job = start_job(tmp_path, tmp_path / "missing.jsonl", 2, *words, name="score", devices=1)
    assert job.wait(100) == [2, 2]
    assert all("missing.jsonl does not exist" in text for text in job.texts())
