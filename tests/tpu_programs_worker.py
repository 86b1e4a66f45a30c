"""Compiles parts of the model and of generation for TPUs, without any TPU; prints JSON.

A process of its own, since the TPU's compiler wants the environment set before JAX starts:
python tests/tpu_programs_worker.py (in the environment of test_tpu_programs.py).
"""

import json
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from conftest import tiny_config
from jax.experimental import topologies
from vocabulary_loops import exchanged_in_loops

from gram_jax import tree
from gram_jax.batch import Sequences
from gram_jax.compiler import compiler_options
from gram_jax.model.config import Experts
from gram_jax.model.decoder import hidden_states
from gram_jax.model.execution import Execution
from gram_jax.model.experts import EXPERT_MATRICES, mixture
from gram_jax.model.generate import advance_batch, begin_batch
from gram_jax.model.matmul import matmul, quantize
from gram_jax.model.specs import param_specs
from gram_jax.plan.collectives import collectives
from gram_jax.plan.cycles import operations
from gram_jax.plan.hlo import HloModule, parse_hlo
from gram_jax.sharding import Placement, make_placement


def placement_of(topology: str, sizes: dict[str, int]) -> Placement:
    """A mesh over a slice that need not be present."""
    found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    return make_placement(sizes, devices=found.devices)


def array(placement: Placement, shape: tuple[int, ...], *axes: str | None) -> Any:
    """A bfloat16 array as a shape."""
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=placement.sharding(*axes))


def compiled(program: Any, *arrays: Any) -> HloModule:
    """The parsed text of a program."""
    return parse_hlo(jax.jit(program).lower(*arrays).compile().as_text())


def gather(topology: str, sizes: dict[str, int]) -> dict[str, float]:
    """MiB received for a product with a gathered matrix of 16 MiB, by kind of collective."""
    placement = placement_of(topology, sizes)
    x = array(placement, (1024, 2, 1024), "batch")
    w = array(placement, (1024, 8192), "embed", "mlp")
    module = compiled(lambda x, w: matmul(x, placement.gather(w, "embed", "mlp"), 1), x, w)
    return {kind: traffic.links / 2**20 for kind, traffic in collectives(module).items()}


def product(dtype: str) -> str:
    """Types of the result and the operands of the product of a program."""
    placement = placement_of("v6e:2x2", {"data": 4})
    x, w = array(placement, (4, 256, 512), "batch"), array(placement, (512, 1024))
    module = compiled(lambda x, w: matmul(x, quantize(w, (0,), dtype), 1), x, w)
    (found,) = [
        [this.type, *(here[name.strip("% ")].type for name in this.operands.split(","))]
        for here in module.computations.values()
        for this in here.values()
        if this.opcode == "convolution"
    ]
    return " ".join(text.partition("[")[0] for text in found)


def kernels_of_experts() -> int:
    """Number of kernels in the forward and backward pass of a mixture."""
    placement = placement_of("v5e:2x2", {"fsdp": 4})
    experts = Experts(count=8, per_token=2, normalized=True, balance=0.0)
    cfg = replace(tiny_config("qwen3", False), embed_size=256, mlp_size=128, experts=experts)
    execution = Execution("bfloat16", "xla", "none", placement)
    shapes = {
        "expert_gate": (8, 256, 128),
        "expert_up": (8, 256, 128),
        "expert_down": (8, 128, 256),
    }
    weights = {name: array(placement, shapes[name]) for name in EXPERT_MATRICES}
    weights["router"] = array(placement, (256, 8))

    def loss(h: jax.Array, weights: dict[str, jax.Array]) -> jax.Array:
        return mixture(h, weights, cfg, execution)[0].astype(jnp.float32).sum()

    h = array(placement, (4, 256, 256), "batch")
    module = compiled(jax.grad(loss, argnums=(0, 1)), h, weights)
    lines = [this for here in module.computations.values() for this in here.values()]
    return sum("tpu_custom_call" in this.attributes for this in lines)


def compiled_decoder(topology: str, sizes: dict[str, int]) -> tuple[HloModule, int]:
    """Loss and gradients of a decoder of two layers, and the bytes of the hidden states of one `fsdp` shard."""
    placement = placement_of(topology, sizes)
    cfg = replace(tiny_config("qwen3", True), embed_size=512, mlp_size=512, head_size=128)
    cfg = replace(cfg, query_heads=4, kv_heads=4, layers=2)
    B, T = 8, 1024
    execution = Execution("bfloat16", "auto", "full", placement)
    params = tree.map_with_path(
        lambda _, spec: jax.ShapeDtypeStruct(
            spec.shape, "float32", sharding=placement.sharding(*spec.axes)
        ),
        param_specs(cfg),
    )
    row = jax.ShapeDtypeStruct((B, T), jnp.int32, sharding=placement.sharding("batch"))

    def loss(params: tree.Tree, *rows: jax.Array) -> jax.Array:
        hidden = hidden_states(params, cfg, Sequences(*rows), execution)
        return jnp.sum(hidden.astype(jnp.float32) ** 2)

    step = jax.jit(jax.value_and_grad(loss), compiler_options=compiler_options(placement))
    module = parse_hlo(step.lower(params, row, row, row).compile().as_text())
    return module, B // sizes["fsdp"] * T * cfg.embed_size * 2


def residual_of_a_tensor_group() -> dict[str, float]:
    """Bytes received in a decoder's loss and gradients over `tensor`, in hidden states of all positions, by kind."""
    module, one = compiled_decoder("v5e:2x4", {"fsdp": 2, "tensor": 4})
    return {kind: traffic.links / one for kind, traffic in collectives(module).items()}


def asynchronous_gathers(topology: str) -> float:
    """Share of the gathered bytes of a decoder that are asynchronous."""
    found = collectives(compiled_decoder(topology, {"fsdp": 4})[0])["all-gather"]
    return found.asynchronous_links / found.links


def copies_of_the_cache() -> list[str]:
    """Copies of the cache of the continuations, or of a layer of it, in a step of generation."""
    placement = placement_of("v5e:2x2", {"data": 4})
    cfg = replace(tiny_config("qwen3", True), embed_size=256, mlp_size=256, head_size=128)
    execution = Execution("bfloat16", "auto", "none", placement, packed=True)
    specs = tree.flatten(param_specs(cfg))
    weights = tree.unflatten({name: array(placement, s.shape) for name, s in specs.items()})
    U, n, S = 4, 8, 256
    integers = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((U, 128), (U,), ())]
    reading = begin_batch.lower(
        weights, cfg, *integers[:2], execution=execution, head="bfloat16", copies=n, new=S
    )
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), (U, n)))
    one = jax.ShapeDtypeStruct((), jnp.float32)
    step = advance_batch.lower(
        *(weights, cfg, reading.out_info, keys, one, one, integers[2]),
        execution=execution, head="bfloat16", stop_token_ids=(2,), greedy=False, truncated=False,
    )  # fmt: skip
    of_layer = f"{U // 4},{n},{cfg.kv_heads},{S},128]"
    return [
        f"{one.name} {one.type}"
        for one in operations(parse_hlo(step.compile().as_text()))
        if f"bf16[1,{of_layer}" in one.type
        or (f"bf16[{cfg.layers},{of_layer}" in one.type and one.name.startswith("copy"))
    ]


def main() -> None:
    """All of them, by name."""
    found = {
        "a cube": gather("v5p:4x4x4", {"fsdp": 64}),
        "part of a cube": gather("v5p:4x4x4", {"fsdp": 16, "tensor": 4}),
        "a plane": gather("v5e:4x4", {"fsdp": 16}),
        "int8": product("int8"),
        "kernels": kernels_of_experts(),
        "copies": copies_of_the_cache(),
        "asynchronous": asynchronous_gathers("v5p:2x2x1"),
        "residual": residual_of_a_tensor_group(),
        "loops of stage 1": [
            exchanged_in_loops(placement_of("v5e:2x4", {"fsdp": 8}), tied=tied)
            for tied in (True, False)
        ],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
