"""The compute type of a demo: measured when it starts, kept in demo.json when it resumes."""

import json
import logging
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from gram_jax.errors import CheckpointError
from gram_jax.files import write_atomic
from gram_jax.model.execution import Compute
from gram_jax.model.matmul import matmul

logger = logging.getLogger(__name__)

STATE = "demo.json"
# bfloat16 has to be this much faster in one matrix product for the whole model to gain.
WORTH_BFLOAT16 = 1.4


def demo_compute(folder: Path, *, fast: bool) -> Compute:
    """The compute type of the demo in `folder`, which is created if it is new.

    Raises CheckpointError if the folder holds something else than this demo.
    """
    path, kind = folder / STATE, "fast" if fast else "full"
    if path.is_file():
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            found, compute_dtype = state["kind"], state["compute_dtype"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(
                f"{path} is damaged: delete {folder} to start the demo again, or give another --folder"
            ) from error
        if found != kind:
            raise CheckpointError(
                f"{folder} holds a {found} demo, not a {kind} one: give another --folder, or delete it"
            )
        logger.info("Resuming the demo in %s (delete the folder to start again)", folder)
        return compute_dtype
    if folder.exists() and any(folder.iterdir()):
        raise CheckpointError(f"{folder} is not empty and holds no demo: give another --folder")
    speeds = matmul_speeds()
    compute_dtype: Compute = "float32"
    if not fast and speeds["bfloat16"] > WORTH_BFLOAT16 * speeds["float32"]:
        compute_dtype = "bfloat16"
    shown = ", ".join(f"{name} {speed:.0f}" for name, speed in speeds.items())
    logger.info("Speed of a matrix product in GFLOP/s: %s. Compute type: %s.", shown, compute_dtype)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps({"kind": kind, "compute_dtype": compute_dtype}) + "\n")
    return compute_dtype


def matmul_speeds() -> dict[str, float]:
    """GFLOP/s of a product of SmolLM2's shapes by compute type; takes a fraction of a second."""
    speeds = {}
    for dtype in ("float32", "bfloat16"):
        x, w = jnp.ones((1, 1024, 576), dtype), jnp.ones((576, 1536), dtype)
        compiled = jax.jit(matmul, static_argnums=2).lower(x, w, 1).compile()
        seconds = []
        for _ in range(8):  # the first is a warm-up
            start = time.perf_counter()
            compiled(x, w).block_until_ready()
            seconds.append(time.perf_counter() - start)
        speeds[dtype] = 2 * 1024 * 576 * 1536 / min(seconds) / 1e9
    return speeds
