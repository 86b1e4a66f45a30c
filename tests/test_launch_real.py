"""The script of one machine with the real program: processes that form a job, are stopped, and resume."""

import json
import sys
from pathlib import Path

import pytest
import tomli_w
from jobs import environment
from launch_fakes import LAUNCH, Place, stop, wait_for
from tiny_runs import tiny_values, write_pairs

pytestmark = pytest.mark.slow

SECONDS = 200  # for two lives of two processes on a busy machine


REAL = f"#!/bin/sh\nexec {sys.executable} -c 'from gram_jax.cli import main; main()' \"$@\"\n"


def recipe(folder: Path, steps: int) -> str:
    write_pairs(folder / "train.jsonl", 16)
    values = tiny_values(
        "finetune", folder / "run", run__max_steps=steps, batch__batch_size=8, log__logging_steps=10
    )
    (folder / "run.toml").write_text(tomli_w.dumps(values))
    return "run.toml"


def wait_until_it_trains(folder: Path) -> None:
    metrics = folder / "run" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and bool(metrics.read_text()), "training", SECONDS)


def finished(folder: Path) -> bool:
    return bool(json.loads((folder / "run" / "run.json").read_text()).get("finished"))


def surroundings(folder: Path) -> dict[str, str]:
    wanted = ("XLA_FLAGS", "JAX_PLATFORMS", "HF_HUB_OFFLINE", "PYTHONPATH")
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "xla")}
    return {name: environment(1)[name] for name in wanted} | cache


def test_local_processes_save_at_sigterm_and_go_on_when_started_again(tmp_path: Path):
    place = Place(tmp_path)
    place.program("gram-jax", REAL)
    command = (str(LAUNCH / "local_processes.sh"), "2", recipe(tmp_path, 160))
    process = place.start(*command, **surroundings(tmp_path))
    wait_until_it_trains(tmp_path)
    assert stop(process, seconds=SECONDS)[0] == 75
    assert not finished(tmp_path)
    assert "is saved" in (tmp_path / "logs" / "process-0.log").read_text()
    again = place.start(*command, **surroundings(tmp_path))
    try:
        again.communicate(timeout=SECONDS)
    finally:
        again.kill()
    assert again.returncode == 0
    assert finished(tmp_path)
    assert "resuming from step" in (tmp_path / "logs" / "process-0.log").read_text()
