"""The short form of benchmarks/chaos.py: kills at random moments do not change a run's result."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def test_runs_that_are_killed_at_random_give_the_same_result():
    command = [sys.executable, ROOT / "benchmarks" / "chaos.py", "--kills", "2", "--per-run", "2"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, "--stages", "finetune"],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kills in" in done.stdout
    assert "DIFFERS" not in done.stdout
