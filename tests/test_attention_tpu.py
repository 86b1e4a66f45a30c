"""Splash attention inside the decoder, compiled for TPUs on a machine that has none."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

COMPILER = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",  # else libtpu asks the cloud what it runs on
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed")
def test_splash_compiles_for_tpu_and_is_recomputed_only_with_whole_layers():
    worker = Path(__file__).with_name("tpu_attention_worker.py")
    package = str(Path(__file__).parents[1])
    env = {**os.environ, **COMPILER, "PYTHONPATH": package}
    done = subprocess.run(
        [sys.executable, worker], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kernels = json.loads(done.stdout.splitlines()[-1])
    # Forward, dq, dkv: others keep output and log-sum-exp, "full" runs the forward kernel again.
    assert kernels == {"none": 3, "dots": 3, "attention": 3, "full": 4}
