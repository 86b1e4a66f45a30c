"""The launch scripts with the real program: processes that form a job, are stopped, and resume."""

import json
import sys
from pathlib import Path

import pytest
import tomli_w
from jobs import environment
from launch_fakes import LAUNCH, stop, wait_for
from test_launch_slurm import SCRIPT, Slurm
from tiny_runs import tiny_values, write_pairs

pytestmark = pytest.mark.slow

SECONDS = 200  # for two lives of two processes on a busy machine


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    place = Slurm(tmp_path)
    place.program(
        "gram-jax",
        f"#!/bin/sh\nexec {sys.executable} -c 'from gram_jax.cli import main; main()' \"$@\"\n",
    )
    return place


def recipe(folder: Path, steps: int) -> str:
    write_pairs(folder / "train.jsonl", 16)
    values = tiny_values(
        "finetune", folder / "run", run__max_steps=steps, batch__batch_size=8, log__logging_steps=10
    )
    (folder / "run.toml").write_text(tomli_w.dumps(values))
    return "run.toml"


def stop_when_it_trains(process, folder: Path) -> int:
    """SIGTERM once there are metrics; the exit status."""
    metrics = folder / "run" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and bool(metrics.read_text()), "training", SECONDS)
    return stop(process, seconds=SECONDS)[0]


def finished(folder: Path) -> bool:
    return bool(json.loads((folder / "run" / "run.json").read_text()).get("finished"))


def surroundings(folder: Path) -> dict[str, str]:
    wanted = ("XLA_FLAGS", "JAX_PLATFORMS", "HF_HUB_OFFLINE", "PYTHONPATH")
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "xla")}
    return {name: environment(1)[name] for name in wanted} | cache


def test_a_preempted_slurm_job_saves_requeues_itself_and_finishes(slurm: Slurm, tmp_path: Path):
    command = ("sbatch", "--nodes=2", SCRIPT, recipe(tmp_path, 160))
    process = slurm.start(*command, **surroundings(tmp_path))
    assert stop_when_it_trains(process, tmp_path) == 0
    assert slurm.lives() == 2
    assert finished(tmp_path)


def test_local_processes_save_at_sigterm_and_go_on_when_started_again(slurm: Slurm, tmp_path: Path):
    command = (str(LAUNCH / "local_processes.sh"), "2", recipe(tmp_path, 160))
    process = slurm.start(*command, **surroundings(tmp_path))
    assert stop_when_it_trains(process, tmp_path) == 75
    assert not finished(tmp_path)
    assert "is saved" in (tmp_path / "logs" / "process-0.log").read_text()
    again = slurm.start(*command, **surroundings(tmp_path))
    try:
        again.communicate(timeout=SECONDS)
    finally:
        again.kill()
    assert again.returncode == 0
    assert finished(tmp_path)
    assert "resuming from step" in (tmp_path / "logs" / "process-0.log").read_text()
