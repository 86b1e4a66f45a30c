"""The launch scripts: what they would run, and that they run it."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def launch(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "launch" / "one_machine.sh"), *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_dry_run_prints_both_stages_and_runs_nothing():
    done = launch(
        "a write.toml", "judge.toml", "--set", "run.seed=1", DRY_RUN="1", GRAM_JAX="false"
    )
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        r"false train a\ write.toml --set run.seed=1 ",
        "false train judge.toml --set run.seed=1 ",
    ]


def test_a_failed_first_stage_stops_the_second(tmp_path: Path):
    log = tmp_path / "log"
    fake = tmp_path / "fake"
    fake.write_text(f'#!/bin/sh\necho "$@" >> {log}\nexit 3\n')
    fake.chmod(0o755)
    assert launch("w.toml", "j.toml", GRAM_JAX=str(fake)).returncode == 3
    assert log.read_text() == "train w.toml\n"


def test_too_few_arguments_show_the_usage():
    done = launch("only-one.toml")
    assert done.returncode == 2
    assert "WRITE_RECIPE JUDGE_RECIPE" in done.stderr
