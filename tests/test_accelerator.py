"""The short form of benchmarks/accelerator.py: every measurement has a result, and the page is made of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from quick_programs import FLAGS

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "accelerator.py"


def test_every_measurement_of_the_tiny_form_has_a_result(tmp_path):
    results, page = tmp_path / "results.json", tmp_path / "results.md"
    done = subprocess.run(
        [sys.executable, SCRIPT, results, "--tiny", "--minutes", "5", "--page", page],
        env=os.environ | {"XLA_FLAGS": FLAGS},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(results.read_text())
    measured = found["measured"]
    assert not found["not measured"] and len(measured) == 7
    assert not [name for name, one in measured.items() if "error" in one]
    for stage in (1, 2):
        assert measured[f"stage {stage} tiny-random"]["ms per step"] > 0
    invariance = measured["batch invariance tiny-random"]
    assert invariance["padded: differing"] == invariance["prefix_shared: differing"] == 0
    assert all(f"## {name}" in page.read_text() for name in measured)


def test_without_time_nothing_is_measured_and_the_page_is_that_of_the_file(tmp_path):
    results, page = tmp_path / "results.json", tmp_path / "results.md"
    about = {"device": "TPU v9", "devices": 4, "gram_jax": "0", "jax": "0", "date": "2026-11-29"}
    measured = {"peaks": {"copied bytes/s": 2.0**30}}
    results.write_text(
        json.dumps({"about": about, "measured": measured, "not measured": ["attention"]})
    )
    command = [sys.executable, SCRIPT, results, "--minutes", "0", "--page", page]
    assert subprocess.run(command, timeout=200).returncode == 0
    text = page.read_text()
    assert "4 x TPU v9" in text and "1.0 GiB/s" in text and "attention" in text
