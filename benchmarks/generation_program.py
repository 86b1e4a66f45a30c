"""The TPU compiler's estimate of generation: reading the prompts, and one token of every row.

    python benchmarks/generation_program.py qwen3-1.7b v5e:1x1 [--prompts 16] [--copies 8] [--length 1024] [--new 256]

Compiles the programs of gram_jax.model.generate in bfloat16 for one chip, which need no TPU. The floor of a token is
the time to read the weights once and the keys and values of prompts and continuations once, at the chip's bandwidth.
"""

import argparse
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gram_jax import tree
from gram_jax.model.execution import Execution
from gram_jax.model.generate import advance_batch, begin_batch
from gram_jax.model.specs import param_specs
from gram_jax.plan.cycles import Operation, operations
from gram_jax.plan.hlo import parse_hlo
from gram_jax.plan.models import PUBLISHED
from gram_jax.plan.topology import devices_of, read_topology
from gram_jax.sharding import make_placement

GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", choices=sorted(PUBLISHED))
    parser.add_argument("topology", help="one chip, such as v5e:1x1")
    for name, value in (("prompts", 16), ("copies", 8), ("length", 1024), ("new", 256)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--layers", type=int, help="default: those of the model")
    parser.add_argument("--operations", type=int, default=0)
    chosen = parser.parse_args()
    cfg = PUBLISHED[chosen.model]
    cfg = dataclasses.replace(cfg, layers=chosen.layers or cfg.layers)
    topology = read_topology(chosen.topology)
    chip = topology.chip
    if chip is None or chip.clock is None:
        parser.error(f"{chosen.topology}: the compiler's clock is not known")
    placement = make_placement({}, devices=devices_of(topology))
    execution = Execution("bfloat16", "auto", "none", placement, packed=True)
    whole = placement.sharding()

    def array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=whole)

    specs = tree.flatten(param_specs(cfg))
    weights = tree.unflatten({name: array(s.shape, jnp.bfloat16) for name, s in specs.items()})
    U, n, P, S = chosen.prompts, chosen.copies, chosen.length, chosen.new
    of = {"execution": execution, "head": "bfloat16"}
    prompts = array((U, P), jnp.int32), array((U,), jnp.int32)
    reading = begin_batch.lower(weights, cfg, *prompts, copies=n, new=S, **of)
    state = jax.tree.map(lambda x: array(x.shape, x.dtype), reading.out_info)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), (U, n)))
    scalars = array((), jnp.float32), array((), jnp.float32), array((), jnp.int32)
    extending = advance_batch.lower(
        weights,
        cfg,
        state,
        array(keys.shape, keys.dtype),
        *scalars,
        **of,
        stop_token_ids=(2,),
        greedy=False,
        truncated=False,
    )
    kept = U * (P + n * S) * 2 * cfg.layers * cfg.kv_heads * cfg.head_size * 2
    read = sum(leaf.size for leaf in jax.tree.leaves(weights)) * 2
    floor = 1e3 * (read + kept) / chip.memory_bandwidth
    print(f"weights {read / GIB:.2f} GiB, keys and values {kept / GIB:.2f} GiB")
    for name, lowered in (("reading the prompts", reading), ("a token of every row", extending)):
        compiled = lowered.compile()
        found = operations(parse_hlo(compiled.as_text()))
        memory = compiled.memory_analysis().temp_size_in_bytes / GIB
        print(f"{name}: {_milliseconds(found, chip.clock):.2f} ms, {memory:.2f} GiB temporaries")
        for kind in sorted({one.kind for one in found}):
            of_kind = [one for one in found if one.kind == kind]
            print(f"  {kind}: {_milliseconds(of_kind, chip.clock):.2f} ms")
        for one in found[: chosen.operations]:
            taken = 1e3 * one.cycles / chip.clock
            print(f"  {taken:9.3f} ms {one.runs:5} runs  {one.type[:48]:48} {one.place}")
    print(f"floor of a token: {floor:.2f} ms")


def _milliseconds(found: list[Operation], clock: float) -> float:
    return 1e3 * sum(one.cycles for one in found) / clock


if __name__ == "__main__":
    main()
