"""The short form of benchmarks/attack_product.py: kills, pairs of commands, damage and hostile files."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def test_attacked_commands_end_with_the_undisturbed_result_or_a_message():
    attacks = ("kills", "together", "damage", "hostile")
    command = [sys.executable, ROOT / "benchmarks" / "attack_product.py", *attacks]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, "--count", "2", "--every", "150", "--commands", "score", "convert"],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = dict(re.findall(r"^(\w+): (.*) in \d+ s$", done.stdout, re.MULTILINE))
    assert set(found) == set(attacks)
    assert "FAILED" not in done.stdout
