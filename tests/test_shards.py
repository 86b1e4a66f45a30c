"""Commands in shards: after the merge a folder has the bytes of one process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_runner import run_cli
from forks import Fork
from tiny_runs import compiled_programs, write_pairs  # noqa: F401

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
SHARDS = ["0/3", "1/3", "2/3"]


def run(*words: object) -> str:
    ran = run_cli(*words)
    assert ran.status == 0, ran.output
    return ran.stdout


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, without parts and pictures."""
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.is_file() and path.suffix != ".png"
    }


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "pairs.jsonl", 12)


def test_scores_and_rankings_in_shards_have_the_bytes_of_one_process(pairs, tmp_path):
    """The numbers of tokens per call differ."""
    for command in ("score", "rank"):
        whole, out = tmp_path / f"{command}.jsonl", tmp_path / f"{command}-shards.jsonl"
        run(command, pairs, whole, "--model", "tiny-random")
        for at, shard in enumerate(SHARDS):
            words = (command, pairs, out, "--model", "tiny-random", "--shard", shard)
            run(*words, "--part-rows", 2, "--tokens-per-call", 4000 * (at + 1))
        run("merge", out)
        assert out.read_bytes() == whole.read_bytes()
        meta = [path.with_name(path.name + ".meta.json").read_bytes() for path in (out, whole)]
        assert meta[0] == meta[1]


def commands(pairs: Path) -> dict[str, tuple[list, list]]:
    """Words before the folder, and after it."""
    bon = ["tiny-random", "tiny-random", pairs]
    few = ["--n", 2, "--limit", 5, "--max-new-tokens", 4]
    return {
        "evaluate": (["tiny-random", pairs], []),
        "attack": (["tiny-random", pairs], ["--only", "verdict,quotes", "--pairs", 5]),
        "bon": (bon, few),
    }


@pytest.mark.parametrize("command", ["evaluate", "attack", "bon"])
def test_a_folder_of_shards_has_the_figures_of_one_process(pairs, tmp_path, command):
    before, after = commands(pairs)[command]
    one, several = tmp_path / "one", tmp_path / "several"
    run(command, *before, "--out", one, *after)
    words = [command, *before, "--out", several, *after]
    if command == "bon":
        ran = run_cli(*words, "--shard", "0/3")
        assert ran.status == 2 and "--samples-only" in ran.output
        run(*words, "--samples-only")
    for shard in SHARDS:
        run(*words, "--shard", shard, "--part-rows", 2)
    run("merge", several)
    assert "evaluation.json" not in contents(several)
    run(*words)
    assert contents(several) == contents(one)


def test_kills_of_shards_lose_double_and_change_no_row():
    """The short form of benchmarks/shards.py."""
    sizes = ["--pairs", "60", "--shards", "3", "--killed-pairs", "200", "--kills", "2"]
    command = [sys.executable, ROOT / "benchmarks" / "shards.py", *sizes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "DIFFERENT" not in done.stdout


def test_the_place_in_a_slurm_array_is_found(pairs, tmp_path, monkeypatch):
    out = tmp_path / "out.jsonl"
    words = ("score", pairs, out, "--model", "tiny-random", "--shard", "auto", "--part-rows", 3)
    ran = run_cli(*words)
    assert ran.status == 2 and "found none" in ran.output
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "1")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    for task in "12":
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
        run(*words)
    run("merge", out)
    assert len(out.read_bytes().splitlines()) == 12


def test_a_row_with_one_response_is_ranked(tmp_path):
    rows = [["a", "b"], ["only one"], ["x", "x", "y"], ["z", "z"]]
    source, out = tmp_path / "candidates.jsonl", tmp_path / "r.jsonl"
    lines = [json.dumps({"prompt": f"Q{at}?", "responses": texts}) for at, texts in enumerate(rows)]
    source.write_text("\n".join([*lines, json.dumps({"prompt": "Q?", "responses": []})]))
    run("rank", source, out, "--model", "tiny-random", "--on-bad", "skip")
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert found[1]["ranking"] == [0] and found[1]["scores"] == [0]
    assert found[1]["comparisons"] == found[3]["comparisons"] == 0
    assert [len(row["ranking"]) for row in found] == [2, 1, 3, 2]


def test_of_two_evaluations_in_one_folder_the_second_is_refused(pairs, tmp_path):
    """While the first is stopped: both used to end with status 0, and one source was lost."""
    out, other = tmp_path / "out", write_pairs(tmp_path / "other.jsonl", 6, seed=3)
    words = ["evaluate", "tiny-random", str(pairs), "--out", str(out)]
    code, log = "from gram_jax.cli import main; main()", tmp_path / "log"
    first = Fork(code, words, os.environ, tmp_path, log)
    try:
        limit = time.monotonic() + 60
        while not (out / "lock.json").exists() and time.monotonic() < limit:
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)
        for command in (
            ("evaluate", "tiny-random", other, "--out", out),
            ("attack", "tiny-random", other, "--out", out, "--only", "quotes"),
        ):
            ran = run_cli(*command)
            assert ran.status == 2 and f"process {first.pid} on " in ran.output
        first.send_signal(signal.SIGCONT)
        assert first.wait(60) == 0
    finally:
        first.kill()
    run("evaluate", "tiny-random", other, "--out", out)
    found = json.loads((out / "evaluation.json").read_text())["sources"]
    assert set(found) == {"pairs", "other"}
