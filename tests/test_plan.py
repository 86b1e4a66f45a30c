"""Plans: what is read from a program, what is reckoned in closed form, and that the program is the one that runs."""

import dataclasses
import importlib.util
import itertools
import json
import logging
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from tiny_runs import compiled_programs, tiny_recipe, tiny_values, write_pairs  # noqa: F401

import gram_jax.training.loop as loop
from gram_jax.errors import RecipeError
from gram_jax.interop.models import model_config
from gram_jax.model.specs import param_count, param_specs
from gram_jax.plan.chips import CHIPS, link_bandwidth
from gram_jax.plan.collectives import collectives, type_bytes
from gram_jax.plan.command import PlanOptions, run_plan
from gram_jax.plan.flops import Flops, layer_weights, scoring_flops, training_flops
from gram_jax.plan.gpu import compiler_installed
from gram_jax.plan.models import PUBLISHED, published_config
from gram_jax.plan.plan import (
    ProgramPlan,
    bytes_on_a_device,
    donated_leaves,
    make_plan,
    plan_scoring,
    plan_training,
)
from gram_jax.plan.programs import PlanRequest, Program, training_program
from gram_jax.plan.report import does_not_fit
from gram_jax.plan.search import SIZES, largest_batch, what_would_fit
from gram_jax.plan.target import PlanTarget, make_target
from gram_jax.plan.topology import read_topology
from gram_jax.recipes.reading import make_recipe, recipe_to_toml
from gram_jax.recipes.tables import AdapterConfig
from gram_jax.run.directory import RunDirectory
from gram_jax.sharding import make_placement
from gram_jax.training.setup import set_up

LOCAL = read_topology("local")


def planned(recipe, cfg, target, **options) -> ProgramPlan:
    return plan_training(PlanRequest(recipe, cfg, target), **options)


# A loop of three trips around an asynchronous all-gather, a conditional whose second branch moves more, and one
# all-reduce over groups of two that the entry runs once.
LOOP = """\
HloModule jit_step, input_output_alias={ {0}: (0, {}, may-alias), {1}: (2, {}, may-alias) }, entry_computation_layout={()}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%condition (p: (s32[], f32[4,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(3)
  %p = (s32[], f32[4,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%body (p.1: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p.1 = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)}) parameter(0)
  %x = f32[4,8]{1,0:T(8,128)} get-tuple-element(%p.1), index=1
  %start = (f32[4,8]{1,0:T(8,128)}, f32[16,8]{1,0:T(8,128)}) all-gather-start(%x), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}, use_global_device_ids=true
  %done = f32[16,8]{1,0:T(8,128)} all-gather-done(%start)
  ROOT %out = (s32[], f32[4,8]) tuple(%i.2, %y)
}

%quiet (q: f32[8]) -> f32[8] {
  ROOT %q = f32[8] parameter(0)
}

%loud (r: f32[8]) -> f32[8] {
  %r = f32[8] parameter(0)
  ROOT %swap = f32[8] collective-permute(%r), channel_id=2, source_target_pairs={{0,1},{1,0}}
}

ENTRY %main (x: f32[4,8], v: f32[8]) -> f32[8] {
  %x.1 = f32[4,8]{1,0} parameter(0)
  %v = f32[8]{0} parameter(1)
  %loop = (s32[], f32[4,8]{1,0}) while(%tuple), condition=%condition, body=%body, metadata={op_name="while"}
  %either = f32[8] conditional(%flag, %v, %v), branch_computations={%quiet, %loud}
  ROOT %total = (f32[8]{0}, f32[]) all-reduce(%v, %scalar), replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
}
"""  # noqa: E501

# How a TPU's compiler writes it: one gather in two pieces among products, a reduce-scatter as a fusion.
FUSED = """\
HloModule jit_step

%fused_computation.1 (p: bf16[1,8]) -> (bf16[8,8], u32[]) {
  %p = bf16[1,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %gather.1 = bf16[8,8]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=4, replica_groups=mesh['x'=1,'y'=8] {'y'}, dimensions={0}, frontend_attributes={chain_id="2"}
}

%async_collective_fusion.2 (p.2: bf16[1,8]) -> bf16[8,8] {
  %p.2 = bf16[1,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %gather.2 = bf16[8,8]{1,0:T(8,128)(2,1)} all-gather(%p.2), channel_id=4, replica_groups=mesh['x'=1,'y'=8] {'y'}, dimensions={0}, frontend_attributes={chain_id="2"}
}

%all-reduce-scatter.3 (input: f32[64]) -> f32[8] {
  %input = f32[64]{0} parameter(0)
  %all-reduce.9 = f32[64]{0} all-reduce(%input), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  ROOT %part = f32[8]{0} dynamic-slice(%all-reduce.9, %at), dynamic_slice_sizes={8}
}

ENTRY %main (w: bf16[1,8], g: f32[64]) -> f32[8] {
  %w = bf16[1,8]{1,0} parameter(0)
  %g = f32[64]{0} parameter(1)
  %f1 = (bf16[8,8], u32[]) fusion(%w), kind=kCustom, calls=%fused_computation.1
  %f2 = bf16[8,8] fusion(%w), kind=kOutput, calls=%async_collective_fusion.2
  ROOT %rs = f32[8] fusion(%g), kind=kCustom, calls=%all-reduce-scatter.3
}
"""  # noqa: E501


def test_a_loop_counts_by_its_trips_an_async_pair_once_a_conditional_by_its_larger_branch():
    found = collectives(LOOP, [0] * 8)
    gather, permute, reduce = (found[k] for k in ("all-gather", "collective-permute", "all-reduce"))
    assert (gather.count, gather.payload, gather.links) == (3, 3 * 4 * 128, 3 * 3 * 128)
    assert (permute.count, permute.links) == (1, 32)
    assert (reduce.count, reduce.payload, reduce.links) == (1, 32, 2 * 32 / 2)
    assert found.keys() == {"all-gather", "collective-permute", "all-reduce"}
    assert donated_leaves(LOOP) == 2


def test_the_pieces_of_a_fused_collective_are_one_and_a_scattered_reduction_is_no_all_reduce():
    found = collectives(FUSED, [0] * 8)
    assert found.keys() == {"all-gather", "reduce-scatter"}
    gather, scatter = found["all-gather"], found["reduce-scatter"]
    assert (gather.count, gather.payload, gather.links) == (1, 8 * 16, 7 * 16)
    assert (scatter.count, scatter.payload, scatter.links) == (1, 256, 256 * 7 / 8)


def test_between_slices_the_devices_of_a_slice_share_the_work():
    """Groups of four over two slices of two: a device gets its own part of the other slice by network."""
    found = collectives(LOOP, [0, 0, 1, 1] * 2)
    gather, reduce = found["all-gather"], found["all-reduce"]
    assert (gather.network, gather.links) == (3 * 128, 3 * 2 * 128)
    assert (reduce.network, reduce.links) == (0, 32)
    apart = collectives(LOOP, [0, 1] * 4)["all-reduce"]
    assert (apart.network, apart.links) == (32, 0)


def test_unknown_ways_to_write_groups_stop_the_count():
    text = LOOP.replace("[2,4]<=[8]", "[2,4]<<[8]")
    with pytest.raises(ValueError, match="replica groups"):
        collectives(text, [0] * 8)


@pytest.mark.parametrize(
    ("text", "size"),
    [("bf16[8,128]{1,0:T(8,128)(2,1)}", 2048), ("(f32[2], pred[3])", 11), ("s32[]", 4)],
)
def test_bytes_of_a_type(text: str, size: int):
    assert type_bytes(text) == size


def test_collectives_of_a_real_program_are_those_of_its_closed_form():
    """Five layers scanned, weights over 8 devices: a gather a layer forward; backward gather and reduction of dw."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    cut, whole = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((None, "x"), ()))
    rows = NamedSharding(mesh, PartitionSpec("x"))
    L, B, D = 5, 16, 64

    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        def layer(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
            w = jax.lax.with_sharding_constraint(w, whole)
            return jax.lax.with_sharding_constraint(jnp.tanh(x @ w), rows), None

        return jnp.sum(jax.lax.scan(jax.checkpoint(layer), x, w)[0])

    arrays = (
        jax.ShapeDtypeStruct((L, D, D), jnp.float32, sharding=cut),
        jax.ShapeDtypeStruct((B, D), jnp.float32, sharding=rows),
    )
    text = jax.jit(jax.grad(loss), out_shardings=cut).lower(*arrays).compile().as_text()
    found = collectives(text, [0] * 8)
    matrix = D * D * 4
    assert found["all-gather"].count == 2 * L
    assert found["all-gather"].payload == 2 * L * matrix
    assert found["all-gather"].links == 2 * L * matrix * 7 / 8
    # A CPU's compiler reduces the gradient whole and cuts it; others scatter it.
    summed = {k: t for k, t in found.items() if k in ("all-reduce", "reduce-scatter")}
    assert sum(t.payload for t in summed.values()) == L * matrix
    assert sum(t.count for t in summed.values()) == L


def test_flops_are_those_counted_by_hand():
    """One token through Qwen3-1.7B: 28 layers of 2 x 2048 x 2048 (q, o), 2 x 2048 x 1024 (k, v), 3 x 2048 x 6144."""
    cfg = PUBLISHED["qwen3-1.7b"]
    weights = 28 * (2 * 2048 * 2048 + 2 * 2048 * 1024 + 3 * 2048 * 6144)
    assert layer_weights(cfg) == weights == 1_409_286_144
    flops = scoring_flops(cfg, 1, 1024)
    assert flops.layers == 2 * weights * 2 * 1024
    # scores and sums: 2 products x 2 x 16 heads x 128, over 1024^2 / 2 causal pairs, 28 layers, 2 rows
    assert flops.attention == 2 * 2 * 16 * 128 * (1024**2 / 2) * 28 * 2
    assert flops.model / 2048 == pytest.approx(2.94e9, rel=2e-3)  # GFLOP a token


def test_training_is_three_forward_passes_and_stage_one_has_a_head(tmp_path: Path):
    cfg = model_config("tiny-random")
    write, judge = (tiny_recipe(stage, tmp_path / "run") for stage in ("pretrain", "finetune"))
    a, b = training_flops(write, cfg), training_flops(judge, cfg)
    tokens = 4 * 192
    assert a.layers == b.layers == 6 * layer_weights(cfg) * tokens
    assert a.model == b.model and b.head == 0
    assert a.head == 6 * cfg.vocab_size * cfg.embed_size * tokens
    assert a.attention == 3 * scoring_flops(cfg, 2, 192).attention
    thin = dataclasses.replace(
        judge, lora=AdapterConfig(rank=4, alpha=8.0, target_modules=("q", "v"))
    )
    # two layers; q: 64 x 4 and 4 x 64; v: 64 x 4 and 4 x 32
    extra = 2 * (64 * 4 + 4 * 64 + 64 * 4 + 4 * 32)
    assert training_flops(thin, cfg).layers == (4 * layer_weights(cfg) + 6 * extra) * tokens


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-1.7b", 1_720_574_976),
        ("qwen3-4b", 4_022_468_096),
        ("qwen3-8b", 8_190_735_360),
        ("qwen3-14b", 14_768_307_200),
        ("qwen3-32b", 32_762_123_264),
        ("llama3.2-1b", 1_235_814_400),
        ("llama3.2-3b", 3_212_749_824),
        ("llama3.1-8b", 8_030_261_248),
        ("llama3.3-70b", 70_553_706_496),
    ],
)
def test_published_shapes_have_the_published_number_of_weights(name: str, count: int):
    assert param_count(param_specs(PUBLISHED[name])) == count


def test_a_published_shape_is_known_by_its_hub_name():
    assert published_config("Qwen/Qwen3-8B-Base") == PUBLISHED["qwen3-8b"]
    assert published_config("meta-llama/Llama-3.3-70B-Instruct") == PUBLISHED["llama3.3-70b"]
    assert published_config("Qwen/Qwen3-7B") is None


def test_topologies_are_read_as_they_are_written():
    two = read_topology("2xv5e:16x16")
    assert (two.chip.name, two.shape, two.slices, two.name) == ("v5e", (16, 16), 2, "2xv5e:16x16")
    assert read_topology("v5e:16x16", slices=2) == two
    assert read_topology("v5p:2x2x1").shape == (2, 2, 1)
    assert read_topology("v6e:1").shape == (1, 1)
    assert read_topology("h200").shape == (1,)
    assert read_topology("local").chip is None


@pytest.mark.parametrize(
    "text",
    ["v5e:4", "v5p:4x4", "v9:2x2", "4x4", "v5e-16", "v5e:0x4", "0xv5e:4x4", "512xv5e:4x4", ""],
)
def test_other_topologies_are_refused_with_an_example(text: str):
    with pytest.raises(RecipeError, match="such as"):
        read_topology(text)


def test_contradicting_numbers_of_slices_are_refused():
    with pytest.raises(RecipeError, match="slices"):
        read_topology("2xv5e:4x4", slices=4)
    with pytest.raises(RecipeError, match="name a chip and a shape"):
        read_topology("local", slices=2)
    with pytest.raises(RecipeError, match="9999 slices, expected 1 to 511"):
        read_topology("v5e:2x2", slices=9999)


def test_a_small_slice_has_fewer_links():
    v5e = CHIPS["v5e"]
    assert link_bandwidth(v5e, (2, 2)) == 2 * 50e9
    assert link_bandwidth(v5e, (4, 4)) == link_bandwidth(v5e, ()) == 4 * 50e9
    assert link_bandwidth(v5e, (1, 1)) == 0
    assert link_bandwidth(CHIPS["tpu7x"], (4, 4, 4)) == 6 * 100e9 / 2


@pytest.mark.slow
def test_two_devices_of_one_chip_have_no_bound_by_links(tmp_path: Path):
    chip = CHIPS["tpu7x"]
    recipe = tiny_recipe("finetune", tmp_path / "run", mesh__fsdp=2, batch__batch_size=8)
    placement = make_placement({"fsdp": 2}, devices=jax.devices()[:2])
    target = PlanTarget(read_topology("tpu7x:1x1x1"), placement, chip)
    plan = planned(recipe, model_config("tiny-random"), target)
    assert plan.traffic and plan.seconds.keys() == {"compute", "memory"}


def plan_of(tmp_path: Path, stage: str, target: PlanTarget | None = None, **changes) -> ProgramPlan:
    recipe = tiny_recipe(stage, tmp_path / "run", mesh__fsdp=8, batch__batch_size=8, **changes)
    return planned(recipe, model_config("tiny-random"), target or make_target(LOCAL, recipe))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "finetune", "bradley_terry"])
def test_the_state_is_donated_whole(stage: str, tmp_path: Path):
    plan = plan_of(tmp_path, stage)
    leaves, donated = plan.state
    assert leaves == donated > 30
    assert plan.fit.fits and plan.fit.results < 1000
    assert plan.fit.donated >= 0.9 * plan.fit.arguments


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"fsdp": 8}, {"data": 2, "fsdp": 4}, {"fsdp": 4, "tensor": 2}])
def test_no_device_ever_holds_the_hidden_states_of_the_whole_batch(mesh, tmp_path: Path):
    """On a pod the batch is what grows: an array of all its rows on each device ends every large run.

    With a vocabulary much smaller than the batch XLA would gather the table, and there would be nothing to see.
    """
    axes = {f"mesh__{axis}": size for axis, size in mesh.items()}
    recipe = tiny_recipe("finetune", tmp_path / "run", batch__batch_size=24, **axes)
    cfg = dataclasses.replace(model_config("tiny-random"), vocab_size=16 * 1009)
    plan = planned(recipe, cfg, make_target(LOCAL, recipe))
    shapes = {dims for _, dims in re.findall(r"\b(f32|bf16)\[([0-9,]+)\]", plan.hlo)}
    wide = {"24,192,64", "4608,64", "24,192,32", "4608,32"}
    assert not shapes & wide
    assert any(dims.endswith(",192,64") for dims in shapes)  # of its own rows it does


def vocabulary_products(hlo: str, size: int) -> list[str]:
    """Lines of a program that multiply something with a dimension of the vocabulary's size (or a shard of it)."""
    sizes = "|".join(str(size // n) for n in (1, 2, 4, 8) if size % n == 0)
    pattern = re.compile(
        rf"= \S*\[(?:\d+,)*(?:{sizes})(?:,\d+)*\]\S* (dot|convolution|custom-call)\("
    )
    return [line for line in hlo.splitlines() if pattern.search(line)]


def odd_vocabulary():
    """The tiny model with a vocabulary whose size no other dimension has, on any of its shards."""
    return dataclasses.replace(model_config("tiny-random"), vocab_size=8 * 1009)


@pytest.mark.slow
def test_no_product_of_vocabulary_size_is_in_the_programs_of_stage_two_and_scoring(tmp_path: Path):
    cfg = odd_vocabulary()
    recipes = {
        stage: tiny_recipe(stage, tmp_path / "run", mesh__fsdp=8, batch__batch_size=8)
        for stage in ("pretrain", "finetune")
    }
    target = make_target(LOCAL, recipes["finetune"])
    judge = planned(recipes["finetune"], cfg, target)
    score = plan_scoring(PlanRequest(recipes["finetune"], cfg, target), pairs=8)
    assert not vocabulary_products(judge.hlo, cfg.vocab_size)
    assert not vocabulary_products(score.hlo, cfg.vocab_size)
    # The look that finds none does find the head of stage 1.
    assert vocabulary_products(planned(recipes["pretrain"], cfg, target).hlo, cfg.vocab_size)
    # Nor is anything of [rows, T, vocabulary] there, whatever computes it.
    for plan in (judge, score):
        held = {
            tuple(int(n) for n in dims.split(","))
            for dims in re.findall(r"\w+\[([0-9,]+)\]", plan.hlo)
        }
        wide = [d for d in held if any(n in (8072, 4036, 2018, 1009) for n in d)]
        assert max(math.prod(d) for d in wide) <= cfg.vocab_size * cfg.embed_size


def stripped(hlo: str) -> str:
    """A program's text without what says where it was written."""
    hlo = re.sub(r",? ?metadata=\{[^}]*\}", "", hlo)
    hlo = re.sub(r"(?m)^(FileNames|FunctionNames|FileLocations|StackFrames)\n(.+\n)*", "", hlo)
    return re.sub(r"stack_frame_id=\d+", "", hlo)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "finetune", "bradley_terry"])
def test_the_program_of_a_plan_is_the_one_that_runs(stage: str, tmp_path: Path):
    recipe = tiny_recipe(stage, tmp_path / "run", mesh__fsdp=8, batch__batch_size=8)
    job = set_up(recipe, RunDirectory(tmp_path, {}), make_placement(recipe.mesh.sizes))
    running = loop.compiled_step(job)[0].as_text()
    request = PlanRequest(recipe, job.cfg, make_target(LOCAL, recipe))
    program = training_program(request, label_ids=job.spec.label_ids)
    assert stripped(make_plan(program, request.target).hlo) == stripped(running)
    assert len(running) > 10_000
    change = {"batch.gradient_accumulation_steps": 1, "execution.remat": "full"}
    assert stripped(plan_training(request, change).hlo) != stripped(running)


def tight(target: PlanTarget, capacity: int) -> PlanTarget:
    """The same devices with so little memory."""
    chip = dataclasses.replace(CHIPS["v5e"], memory=capacity)
    topology = dataclasses.replace(read_topology("v5e:2x4"), chip=chip)
    return dataclasses.replace(target, topology=topology, chip=chip)


@pytest.mark.slow
def test_too_little_memory_is_an_answer_with_what_would_fit(tmp_path: Path):
    recipe = tiny_recipe("finetune", tmp_path / "run", mesh__fsdp=8, batch__batch_size=64)
    cfg, target = model_config("tiny-random"), make_target(LOCAL, recipe)
    needed = planned(recipe, cfg, target).fit.needed
    small = tight(target, needed - 1)
    plan = planned(recipe, cfg, small)
    assert not plan.fit.fits and "does not fit: needs" in does_not_fit(plan.fit)
    assert "batch.gradient_accumulation_steps = 2" in what_would_fit(
        PlanRequest(recipe, cfg, small), plan
    )
    hopeless = tight(target, plan.fit.arguments - 1)
    at_once = planned(recipe, cfg, hopeless)
    assert at_once.compile_seconds < 0.1  # nothing had to be compiled to know it
    assert does_not_fit(at_once.fit).startswith("does not fit: needs at least")
    assert "Weights, optimizer state" in what_would_fit(PlanRequest(recipe, cfg, hopeless), at_once)


def program_of(lower, arguments: Any = ()) -> Program:
    """A program that is lowered by `lower`."""
    return Program("made up", lower, arguments, {}, 1, Flops(1.0, 1.0, 0.0), "float32")


def test_what_the_compiler_refuses_for_memory_is_an_answer_too(tmp_path: Path):
    words = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (32.50G) exceeds"
        " available HBM (15.75G)."
    )

    def refuse():
        raise RuntimeError(words)

    def break_down():
        raise ValueError("a bug")

    target = make_target(LOCAL, tiny_recipe("finetune", tmp_path / "run", batch__batch_size=8))
    target = tight(target, int(15.75 * 2**30))
    whole = target.placement.sharding()
    weights = jax.ShapeDtypeStruct((2**28,), jnp.float32, sharding=whole)
    fit = make_plan(program_of(refuse, weights), target).fit
    assert fit.arguments == 2**30 and not fit.fits
    assert does_not_fit(fit) == "does not fit: needs at least 33.5 GiB of 15.8 GiB"
    with pytest.raises(ValueError, match="a bug"):
        make_plan(program_of(break_down), target)


@pytest.mark.slow
def test_the_search_finds_the_largest_batch_and_then_the_cheapest_remat(tmp_path: Path, caplog):
    recipe = tiny_recipe("finetune", tmp_path / "run", mesh__fsdp=8, batch__batch_size=8)
    cfg, target = model_config("tiny-random"), make_target(LOCAL, recipe)

    def needed(rows: int, remat: str) -> int:
        values = tiny_values("finetune", tmp_path / "run", mesh__fsdp=8, batch__batch_size=rows)
        values["execution"]["remat"] = remat
        return planned(make_recipe(values), cfg, target).fit.needed

    small = tight(target, max(needed(24, "dots"), needed(24, "full")))
    assert needed(32, "full") > small.capacity and needed(24, "none") > small.capacity
    with caplog.at_level(logging.INFO, "gram_jax.plan.search"):
        chosen, plan = largest_batch(PlanRequest(recipe, cfg, small))
    assert (chosen.recipe.batch.batch_size, chosen.recipe.execution.remat) == (24, "dots")
    assert plan.fit.fits and plan.settings["batch_size"] == 24
    tried = [record.getMessage() for record in caplog.records]
    assert len(tried) == len(set(tried)) <= 8
    assert largest_batch(PlanRequest(recipe, cfg, tight(target, 1000))) is None


def test_the_search_tries_sizes_at_most_a_quarter_apart():
    assert SIZES[:12] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16]
    assert all(4 * (b - a) <= max(a, 4) for a, b in itertools.pairwise(SIZES))


def test_a_plan_is_for_the_slots_that_were_asked_for(tmp_path: Path):
    recipe = tiny_recipe(
        "finetune", tmp_path / "run", mesh__fsdp=8, batch__batch_size=8, batch__packing=True
    )
    cfg, target = model_config("tiny-random"), make_target(LOCAL, recipe)
    sizes = [
        bytes_on_a_device(training_program(PlanRequest(recipe, cfg, target, slots)).arguments)
        for slots in (1, 5)
    ]
    assert (
        sizes[1] - sizes[0] == 4 * 3 * 4
    )  # three arrays of four more for the only row of a device
    found = largest_batch(PlanRequest(recipe, cfg, tight(target, 2 * sizes[1]), slots=5))
    assert found is None or found[0].slots == 5


def test_options_that_a_program_does_not_have_are_refused(tmp_path: Path):
    packed = tiny_recipe("finetune", tmp_path / "run", batch__packing=True)
    loose = tiny_recipe("finetune", tmp_path / "run", batch__packing=False)
    writing = tiny_recipe("pretrain", tmp_path / "run", batch__packing=True)
    for recipe, changed in (
        (packed, {"pairs": 8}),
        (packed, {"slots": 8, "score": True}),
        (loose, {"slots": 8}),
        (writing, {"slots": 8}),
        (packed, {"search": True, "score": True}),
    ):
        with pytest.raises(RecipeError, match=r"--(pairs|slots|search)"):
            run_plan(recipe, LOCAL, PlanOptions(**changed))


def test_a_long_warm_up_can_be_planned_where_the_data_decides_the_steps(tmp_path: Path):
    changes = {"run__max_steps": None, "run__num_train_epochs": 1, "optimizer__warmup_steps": 2000}
    assert plan_of(tmp_path, "finetune", **changes).fit.fits


def test_what_needs_more_at_its_peak_than_in_its_sum_needs_that(tmp_path: Path):
    """As libtpu says of a single chip, where it names no temporaries."""
    sizes = {"argument": 10, "temp": 0, "output": 8, "alias": 8}
    memory = SimpleNamespace(
        **{f"{name}_size_in_bytes": size for name, size in sizes.items()}, peak_memory_in_bytes=25
    )
    compiled = SimpleNamespace(memory_analysis=lambda: memory, as_text=lambda: "")
    program = program_of(lambda: SimpleNamespace(compile=lambda: compiled))
    target = tight(make_target(LOCAL, tiny_recipe("finetune", tmp_path / "run")), 24)
    fit = make_plan(program, target).fit
    assert fit.needed == 25 and not fit.fits
    memory.temp_size_in_bytes = 20  # with what no moment needs all at once
    assert make_plan(program, target).fit.needed == 30


def gram_jax(*arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """The command in a process of its own: what a plan sets in the environment stays there."""
    command = [sys.executable, "-c", "from gram_jax.cli import main; main()", "plan"]
    return subprocess.run(
        [*command, *map(str, arguments)],
        env=os.environ | {"XLA_FLAGS": "", "COLUMNS": "160"} | (env or {}),
        capture_output=True,
        text=True,
        timeout=300,
    )


def recipe_file(tmp_path: Path, stage: str = "finetune", **changes) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_to_toml(tiny_recipe(stage, tmp_path / "run", **changes)))
    return path


@pytest.mark.slow
def test_the_command_prints_tables_and_as_json_everything(tmp_path: Path):
    path = recipe_file(tmp_path)
    (tmp_path / "train.jsonl").unlink()  # no data is read
    said = gram_jax(path)
    assert said.returncode == 0, said.stderr
    for words in ("head-room", "donated", "all", "model FLOPs", "compile time"):
        assert words in said.stdout
    values = json.loads(gram_jax(path, "--score", "--json").stdout)
    assert values["program"] == "score" and values["memory"]["fits"]
    assert values["flops"]["model"] > 0


@pytest.mark.slow
def test_a_model_that_is_nowhere_asks_for_its_shape(tmp_path: Path):
    path = recipe_file(tmp_path, model__name_or_path="runs/nowhere")
    said = gram_jax(path)
    assert said.returncode == 2
    assert "--model-config" in said.stderr and "qwen3-8b" in said.stderr


@pytest.mark.slow
def test_a_missing_compiler_says_what_to_install(tmp_path: Path):
    hidden = tmp_path / "sitecustomize.py"
    hidden.write_text(
        "import importlib.util as u\n"
        "found = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'libtpu' else found(name, *a)\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    said = gram_jax(recipe_file(tmp_path), "--topology", "v5e:2x2", env={"PYTHONPATH": path})
    assert said.returncode == 2
    assert 'pip install "jax[tpu]"' in said.stderr and "Traceback" not in said.stderr


@pytest.mark.slow
def test_a_gpu_that_is_not_there_needs_its_compiler_or_is_compiled_for(tmp_path: Path):
    said = gram_jax(
        recipe_file(tmp_path, execution__attention="auto"), "--topology", "h200", "--json"
    )
    if compiler_installed():
        assert said.returncode == 0, said.stderr
        assert json.loads(said.stdout)["settings"]["attention"] == "blocked"
    else:
        assert said.returncode == 2 and "jax-cuda13-pjrt==" in said.stderr
        assert "Traceback" not in said.stderr


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu, the compiler for TPUs"
)


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("mode", ["train", "score"])
def test_a_small_model_compiles_for_a_tpu_that_is_not_there(mode: str, tmp_path: Path):
    path = recipe_file(
        tmp_path,
        batch__max_length=256,
        judge__max_length=256,
        execution__attention="auto",
        execution__compute_dtype="bfloat16",
    )
    said = gram_jax(
        path, "--topology", "v5e:2x2", "--json", *(["--score"] if mode == "score" else [])
    )
    assert said.returncode == 0, said.stderr
    values = json.loads(said.stdout)
    assert values["topology"] == "v5e:2x2" and values["mesh"] == {"fsdp": 4}
    assert values["memory"]["capacity"] == int(15.75 * 2**30)
    assert values["collectives"]["all-gather"]["count"] >= 14  # seven matrices, two layers
    assert values["seconds"].keys() == {"compute", "memory", "interconnect"}
    assert values["bound"] in values["seconds"]
    if mode == "train":
        assert values["state"]["leaves"] == values["state"]["donated"]
        # The gradients of matrices reach a device as its part of the sum; the rest is summed whole.
        traffic = values["collectives"]
        assert traffic["reduce-scatter"]["links"] > traffic["all-reduce"]["links"]


@pytest.mark.slow
@needs_libtpu
def test_a_model_too_large_for_a_tpu_ends_with_status_1(tmp_path: Path):
    said = gram_jax(recipe_file(tmp_path), "--topology", "v5e:2x2", "--model-config", "qwen3-32b")
    assert said.returncode == 1, said.stderr
    assert "does not fit: needs" in said.stdout and "Traceback" not in said.stderr
