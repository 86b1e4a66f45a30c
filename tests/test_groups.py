"""A group of processes that shares one sharded copy of the weights is one shard."""

import json

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
    pairs, elsewhere = write_pairs(tmp_path / "pairs.jsonl", 23), tmp_path / "no such file"
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    options = ("--model", "tiny-random", "--max-length", "256")
    shards = ("--part-rows", "4", "--shard")
    running = []
    for shard in ("0/2", "1/2"):
        port = free_port()
        for only, source in (((0,), pairs), ((1,), elsewhere)):
            words = (str(out), *options, *shards, shard)
            place = {"only": only, "port": port, "name": "score"}
            running.append(start_job(tmp_path, source, 2, *words, **place))
    try:
        assert [job.wait(300) for job in running] == [[0]] * 4
    finally:
        for job in running:
            job.kill()
    for words in (("score", pairs, whole, *options), ("merge", out)):
        ran = run_cli(*words)
        assert ran.status == 0, ran.output
    assert out.read_bytes() == whole.read_bytes()
    parts = (tmp_path / "out.jsonl.parts").glob("part-*.json")
    assert len({json.dumps(json.loads(path.read_text())["code"]) for path in parts}) == 1
