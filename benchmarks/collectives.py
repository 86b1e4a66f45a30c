"""Collectives of a training step by mesh, counted in compiled programs: python benchmarks/collectives.py [TOPOLOGY]

TOPOLOGY: eight devices to compile for, such as v5e:2x4 (needs libtpu and no TPU); by default eight
fake devices of this CPU. `--list` also prints every collective with its place in the model.
Nothing is run. The result is in docs/meshes.md.
"""

import argparse
import os
import re
from dataclasses import replace

os.environ["XLA_FLAGS"] = " ".join(
    (os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8")
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from typing import Any

import jax
import jax.numpy as jnp

from gram_jax.batch import Sequences, TokenBatch, VerdictBatch
from gram_jax.model.config import ModelConfig
from gram_jax.model.execution import Execution
from gram_jax.model.specs import param_specs
from gram_jax.plan.collectives import KINDS, Traffic, collectives
from gram_jax.plan.hlo import parse_hlo
from gram_jax.plan.topology import LOCAL, devices_of, read_topology
from gram_jax.recipes.tables import OptimizerConfig
from gram_jax.sharding import Placement, make_placement
from gram_jax.training.objectives import pretrain_objective, verdict_objective
from gram_jax.training.optimizer import make_optimizer, make_schedule
from gram_jax.training.state import abstract_state, shardings_of
from gram_jax.training.step import make_train_step

MESHES: tuple[dict[str, int], ...] = (
    {"data": 8},
    {"fsdp": 8},
    {"tensor": 8},
    {"data": 2, "tensor": 4},
    {"fsdp": 2, "tensor": 4},
    {"sequence": 8},
    {"fsdp": 2, "tensor": 2, "sequence": 2},
    {"data": 2, "fsdp": 4},
)
# Small, with no two sizes alike, so that shapes in the HLO can be identified.
CFG = ModelConfig(
    family="llama",
    vocab_size=4096,
    embed_size=512,
    layers=2,
    query_heads=16,
    kv_heads=8,
    head_size=128,
    mlp_size=1536,
    norm_eps=1e-5,
    rope_theta=1e4,
    rope_scaling=None,
    qkv_bias=False,
    qk_norm=False,
    tied_head=True,
    context_length=8192,
)
ROWS, LENGTH, SLOTS = 16, 1024, 2
OPTIMIZER = OptimizerConfig(
    learning_rate=1e-3,
    warmup_steps=0,
    lr_scheduler_type="constant",
    b1=0.9,
    b2=0.99,
    eps=1e-8,
    weight_decay=0.01,
    max_grad_norm=1.0,
)


def compiled_step(stage: str, cfg: ModelConfig, placement: Placement, remat: str) -> str:
    """The HLO of one step: one micro-batch, AdamW, clipping, bfloat16 products, float32 weights."""
    platform = placement.mesh.devices.flat[0].platform
    # A CPU's compiler may turn bfloat16 into float32, also in collectives.
    compute_dtype = "float32" if platform == "cpu" else "bfloat16"
    execution = Execution(compute_dtype, "auto", remat, placement)
    if stage == "pretrain":
        objective = pretrain_objective(cfg, execution, chunk_size=ROWS * LENGTH)
    else:
        objective = verdict_objective(cfg, execution, label_ids=(70, 71), smoothing=0.1)
    specs = param_specs(cfg)
    optimizer = make_optimizer(OPTIMIZER, 100, specs)
    state = abstract_state(specs, optimizer, placement, "float32")
    step = make_train_step(
        objective,
        optimizer,
        make_schedule(OPTIMIZER, 100),
        shardings_of(state),
        placement,
        microbatches=1,
        max_skipped=0,
    )
    return step.lower(state, {}, batch_of(stage, placement)).compile().as_text()


def batch_of(stage: str, placement: Placement) -> TokenBatch | VerdictBatch:
    """A batch as shapes."""

    def array(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        axes = ("batch", "time" if shape[1] == LENGTH else None)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=placement.sharding(*axes))

    seqs = Sequences(*(array(ROWS, LENGTH) for _ in range(3)))
    if stage == "pretrain":
        return TokenBatch(seqs, array(ROWS, LENGTH), array(ROWS, LENGTH, dtype=jnp.float32))
    slots = array(ROWS, SLOTS)
    return VerdictBatch(seqs, slots, slots, array(ROWS, SLOTS, dtype=jnp.float32))


def per_layer_and_rest(
    stage: str, placement: Placement, remat: str
) -> tuple[dict[str, tuple[Traffic, Traffic]], str]:
    """By kind (traffic of a layer, the rest), from programs of 2 and 4 layers; and the HLO of 2."""
    few, many = (compiled_step(stage, replace(CFG, layers=n), placement, remat) for n in (2, 4))
    two, four = (collectives(parse_hlo(text), [0] * 8) for text in (few, many))
    found = {}
    for kind in KINDS:
        a, b = two.get(kind, Traffic()), four.get(kind, Traffic())
        if a.count or b.count:
            layer = (b + a.times(-1)).times(0.5)
            found[kind] = layer, a + layer.times(-2)
    return found, few


def places(hlo: str) -> list[str]:
    """Every collective of a program: kind, shapes, groups, computation and source."""
    lines = []
    for name, computation in parse_hlo(hlo).computations.items():
        for this in computation.values():
            kind = this.opcode.removesuffix("-start")
            if kind in KINDS:
                source = re.search(r'op_name="([^"]*)"', this.attributes)
                groups = re.search(r"(?:replica_groups|source_target_pairs)=\S+", this.attributes)
                shapes = re.sub(r"\{[^}]*\}", "", this.type)
                lines.append(
                    f"    {kind} {shapes} {groups[0][:60] if groups else ''} {name} {source[1] if source else ''}"
                )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("topology", nargs="?", default=LOCAL)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--remat", default="dots")
    parser.add_argument("--mesh", help="only this one, such as fsdp=8")
    parser.add_argument("--stage", help="only this one")
    options = parser.parse_args()
    devices = devices_of(read_topology(options.topology))
    print("| mesh | stage | kind | per layer | per step | MiB received per layer | per step |")
    print("|---|---|---|---|---|---|---|")
    for mesh in MESHES:
        name = " x ".join(f"{axis} {size}" for axis, size in mesh.items())
        if options.mesh and options.mesh != name.replace(" x ", ",").replace(" ", "="):
            continue
        for stage in ("pretrain", "finetune"):
            if options.stage in (None, stage):
                found, hlo = per_layer_and_rest(
                    stage, make_placement(mesh, devices=devices), options.remat
                )
                for kind, (layer, rest) in found.items():
                    print(
                        f"| {name} | {stage} | {kind} | {layer.count:g} | {rest.count:g} "
                        f"| {layer.links / 2**20:.2f} | {rest.links / 2**20:.2f} |",
                        flush=True,
                    )
                if options.list:
                    print("\n".join(places(hlo)))


if __name__ == "__main__":
    main()
