"""Compiles training steps with splash attention for four TPU v5e, without any TPU; prints one JSON object.

A process of its own, since the TPU's compiler wants the environment set before JAX starts:
python tests/tpu_attention_worker.py (in the environment of test_tpu_programs.py).
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
from conftest import tiny_config
from jax.experimental import topologies

from gram_jax import tree
from gram_jax.batch import Sequences
from gram_jax.model.attention import backend_of
from gram_jax.model.decoder import hidden_states
from gram_jax.model.execution import Execution
from gram_jax.model.specs import param_specs
from gram_jax.plan.hlo import HloModule, parse_hlo
from gram_jax.sharding import make_placement

ROWS, LENGTH = 4, 256
# Heads as wide as the vector unit, of which a half would be padded.
CONFIG = replace(tiny_config("qwen3", True), head_size=128)


def compiled_text(execution: Execution) -> str:
    """The program that gives a loss and its gradient for every weight of a tiny decoder."""
    cfg, placement = CONFIG, execution.placement
    params = tree.map_with_path(
        lambda _, spec: jax.ShapeDtypeStruct(
            spec.shape, "float32", sharding=placement.sharding(*spec.axes)
        ),
        param_specs(cfg),
    )
    row = jax.ShapeDtypeStruct((ROWS, LENGTH), "int32", sharding=placement.sharding("batch"))

    def loss(params: tree.Tree, *rows: jax.Array) -> jax.Array:
        hidden = hidden_states(params, cfg, Sequences(*rows), execution)
        return jnp.sum(hidden.astype(jnp.float32) ** 2)

    assert backend_of(execution, cfg, LENGTH) == "splash"
    return jax.jit(jax.value_and_grad(loss)).lower(params, row, row, row).compile().as_text()


def halves_and_transpositions(module: HloModule) -> Iterator[str]:
    """Types of float32 halves of heads, and of copies of heads in another order."""
    sizes = {LENGTH * heads * CONFIG.head_size for heads in (CONFIG.query_heads, CONFIG.kv_heads)}
    for computation in module.computations.values():
        for this in computation.values():
            for kind, dims in re.findall(r"(\w+)\[([\d,]+)\]", this.type):
                shape = [int(size) for size in dims.split(",")]
                half = kind == "f32" and CONFIG.head_size // 2 in shape
                if half and 2 * math.prod(shape) in sizes:
                    yield this.type
                if this.opcode in ("copy", "transpose") and math.prod(shape) in sizes:
                    yield this.type


def main() -> None:
    """Kernels in the program of every kind of recomputation, each on another mesh; what should not be in the last."""
    found = {}
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    for backend, remat, sizes in (
        ("splash", "none", {"data": 2, "sequence": 2}),
        ("auto", "dots", {"fsdp": 2, "tensor": 2}),
        ("auto", "attention", {"fsdp": 4}),
        ("auto", "full", {"fsdp": 4}),
    ):
        placement = make_placement(sizes, devices=topology.devices)
        text = compiled_text(Execution("bfloat16", backend, remat, placement))
        found[remat] = text.count('custom_call_target="tpu_custom_call"')
    unwanted = list(halves_and_transpositions(parse_hlo(text)))
    print(json.dumps({"kernels": found, "unwanted": unwanted}))


if __name__ == "__main__":
    main()
