"""Parts of the model, compiled for TPUs on a machine that has none."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

COMPILER = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",  # else libtpu asks the cloud what it runs on
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def run_worker(name: str) -> dict[str, Any]:
    """The JSON object that a worker prints."""
    env = {**os.environ, **COMPILER, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name(name)],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed")
def test_splash_is_recomputed_only_with_whole_layers_and_needs_no_copies_or_halves_of_heads():
    found = run_worker("tpu_attention_worker.py")
    # Forward, dq, dkv: others keep output and log-sum-exp, "full" runs the forward kernel again.
    assert found["kernels"] == {"none": 3, "dots": 3, "attention": 3, "full": 4}
    assert found["unwanted"] == []


@pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed")
def test_programs_for_tpus_gather_weights_not_logits_multiply_integers_and_use_the_kernels_of_groups():
    found = run_worker("tpu_programs_worker.py")
    # A whole cube is gathered in two steps, of 16 MiB less a device's own part; without them, an all-reduce of 31.5.
    assert found["a cube"] == {"all-gather": pytest.approx(16 * 63 / 64)}
    assert found["part of a cube"]["all-gather"] == pytest.approx(4 * 15 / 16)
    assert found["a plane"] == {"all-gather": pytest.approx(16 * 15 / 16)}
    assert found["int8"] == "s32 s8 s8"
    # Three products forward, their three transposes and three gradients of matrices.
    assert found["kernels"] == 9
    assert found["copies"] == []
    assert found["asynchronous"] > 0.7  # 0 without the options of the chip
    # Two layers, recomputed: five reduce-scatters of hidden states in each and no all-reduce, which would be 1.5.
    received = found["residual"]
    assert 7.5 < received["reduce-scatter"] < 7.6 and received["all-reduce"] < 0.5
    for exchanged, of_vocabulary in found["loops of stage 1"]:
        assert exchanged and not of_vocabulary
