"""Plans: what is read from a program, what is computed in closed form, and that the program is the one that runs."""

import importlib.util
import itertools
import json
import logging
import math
import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from forks import Fork
from jax.sharding import NamedSharding, PartitionSpec
from tiny_runs import compiled_programs, tiny_recipe  # noqa: F401

import gram_jax.training.loop as loop
from gram_jax import tree
from gram_jax.errors import RecipeError
from gram_jax.interop.models import model_config
from gram_jax.model.quantize import quantize
from gram_jax.model.specs import init_params, param_count, param_specs
from gram_jax.plan.chips import CHIPS, chip_of, link_bandwidth
from gram_jax.plan.collectives import collectives, type_bytes
from gram_jax.plan.command import PlanOptions, run_plan
from gram_jax.plan.cycles import NORMS, OTHER, PRODUCTS, ROPE, operations, pallas_calls
from gram_jax.plan.flops import Flops, layer_weights, scoring_flops, training_flops
from gram_jax.plan.hlo import parse_hlo
from gram_jax.plan.models import PUBLISHED, published_config
from gram_jax.plan.plan import (
    MemoryFit,
    ProgramPlan,
    bytes_on_a_device,
    donated_leaves,
    make_plan,
    plan_training,
)
from gram_jax.plan.programs import PlanRequest, Program, scoring_program, training_program
from gram_jax.plan.report import compared, does_not_fit, mesh_line, plan_tables
from gram_jax.plan.search import SIZES, fastest_meshes, largest_batch, what_would_fit
from gram_jax.plan.topology import (
    PlanTarget,
    cuda_compiler_installed,
    make_target,
    read_topology,
)
from gram_jax.recipes.reading import recipe_to_toml
from gram_jax.recipes.tables import AdapterConfig
from gram_jax.run.directory import RunDirectory
from gram_jax.sharding import make_placement
from gram_jax.training.setup import set_up

LOCAL = read_topology("local")
CFG = model_config("tiny-random")
V5E = CHIPS["v5e"]


def planned(recipe, cfg=CFG, target: PlanTarget | None = None) -> ProgramPlan:
    return plan_training(PlanRequest(recipe, cfg, target or make_target(LOCAL, recipe)))


@pytest.fixture
def recipe(tmp_path: Path):
    """Makes recipes: of a stage, sharded over eight devices by default."""

    def make(stage: str = "finetune", **changes: Any):
        return tiny_recipe(
            stage, tmp_path / "run", **{"mesh__fsdp": 8, "batch__batch_size": 8} | changes
        )

    return make


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


# A gather that is started before a loop of eight trips and fused in pieces with the products in it; and a kernel of
# Pallas, whose text goes on over several lines, one of which looks like the end of a computation.
AROUND = """\
HloModule jit_step

FileNames
1 "/src/gram_jax/model/rope.py"
2 "/src/gram_jax/model/layer.py"
3 "/src/gram_jax/model/matmul.py"

FunctionNames
1 "_by_permutation"
2 "_project_heads"
3 "matmul"

FileLocations
1 {file_name_id=1 function_name_id=1 line=63 end_line=63 column=4 end_column=9}
2 {file_name_id=2 function_name_id=2 line=81 end_line=81 column=4 end_column=9}
3 {file_name_id=3 function_name_id=3 line=14 end_line=14 column=4 end_column=9}

StackFrames
1 {file_location_id=2 parent_frame_id=1}
2 {file_location_id=1 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=2}

%condition (p: (s32[], bf16[8,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(8)
  %p = (s32[], bf16[8,8]{1,0}) parameter(0)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%piece.1 (a: bf16[1,8]) -> bf16[8,8] {
  %a = bf16[1,8]{1,0} parameter(0)
  ROOT %gather.1 = bf16[8,8]{1,0} all-gather(%a), channel_id=4, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}, frontend_attributes={chain_id="2"}
}

%piece.2 (b: bf16[1,8]) -> bf16[8,8] {
  %b = bf16[1,8]{1,0} parameter(0)
  ROOT %gather.2 = bf16[8,8]{1,0} all-gather(%b), channel_id=4, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}, frontend_attributes={chain_id="2"}
}

%body (q: (s32[], bf16[8,8])) -> (s32[], bf16[8,8]) {
  %q = (s32[], bf16[8,8]{1,0}) parameter(0)
  %product = bf16[8,8] fusion(%x), kind=kOutput, calls=%piece.2, metadata={op_name="jit(step)/dot_general" stack_frame_id=3}, backend_config={"estimated_cycles":"1000"}
  %turn = bf16[8,8] fusion(%x), kind=kLoop, calls=%quiet, metadata={op_name="jit(step)/mul" stack_frame_id=2}, backend_config={"estimated_cycles":"200"}
  ROOT %out = (s32[], bf16[8,8]) tuple(%i.2, %y)
}

%quiet (r: bf16[8,8]) -> bf16[8,8] {
  ROOT %r = bf16[8,8] parameter(0)
}

%loud (s: bf16[8,8]) -> bf16[8,8] {
  %s = bf16[8,8] parameter(0)
  ROOT %update = bf16[8,8] multiply(%s, %s), backend_config={"estimated_cycles":"50"}
}

ENTRY %main (w: bf16[1,8]) -> bf16[8,8] {
  %w = bf16[1,8]{1,0} parameter(0)
  %start = bf16[8,8] fusion(%w), kind=kCustom, calls=%piece.1
  %loop = (s32[], bf16[8,8]{1,0}) while(%tuple), condition=%condition, body=%body
  %kernel = bf16[8,8]{1,0} custom-call(%w), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={"a": {
"b": 1
}}, metadata={op_name="splash"}
  ROOT %either = bf16[8,8] conditional(%flag, %w, %w), true_computation=%quiet, false_computation=%loud
}
"""  # noqa: E501


def test_a_gather_around_a_loop_counts_once_and_a_kernels_lines_are_one_instruction():
    module = parse_hlo(AROUND)
    gather = collectives(module, [0] * 8)["all-gather"]
    assert (gather.count, gather.links) == (1, 7 * 16)
    kernel = module.computations["main"]["kernel"]
    assert 'op_name="splash"' in kernel.attributes and pallas_calls(module) == 1
    assert list(module.computations["main"]) == ["w", "start", "loop", "kernel", "either"]


def test_estimated_cycles_count_by_trips_and_have_a_kind_and_a_line():
    found = operations(parse_hlo(AROUND))
    assert [(one.name, one.cycles, one.runs, one.kind, one.place) for one in found] == [
        ("product", 8000, 8, PRODUCTS, "model/matmul.py:14 matmul"),
        ("turn", 1600, 8, ROPE, "model/rope.py:63 _by_permutation"),
        ("update", 50, 1, OTHER, "multiply"),
    ]


def test_the_source_of_an_instruction_is_read_from_a_real_program():
    def inner(x):
        return jnp.sin(x) @ x

    text = jax.jit(lambda x: inner(x)).lower(jnp.ones((4, 4))).compile().as_text()
    module = parse_hlo(text)
    calls = [
        module.stack(this) for c in module.computations.values() for this in c.values() if this
    ]
    (stack,) = {tuple(frame.function for frame in stack[:2]) for stack in calls if len(stack) > 1}
    assert stack[0].endswith("inner") and stack[1].endswith("<lambda>")


def test_a_computation_of_another_thread_ends_with_its_name():
    text = """
%offload.1 (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  ROOT %done = f32[8]{0:T(1024)} call-done(%a)
}, execution_thread="sparsecore"

ENTRY %main (x: f32[8]) -> f32[8] {
  ROOT %x = f32[8]{0} parameter(0)
}
"""
    module = parse_hlo(text)
    assert {name: list(found) for name, found in module.computations.items()} == {
        "offload.1": ["a", "done"],
        "main": ["x"],
    }


def test_a_loop_counts_by_its_trips_an_async_pair_once_a_conditional_by_its_larger_branch():
    found = collectives(parse_hlo(LOOP), [0] * 8)
    gather, permute, reduce = (found[k] for k in ("all-gather", "collective-permute", "all-reduce"))
    assert (gather.count, gather.payload, gather.links) == (3, 3 * 4 * 128, 3 * 3 * 128)
    assert (permute.count, permute.links) == (1, 32)
    assert (reduce.count, reduce.payload, reduce.links) == (1, 32, 2 * 32 / 2)
    assert found.keys() == {"all-gather", "collective-permute", "all-reduce"}
    assert [t.asynchronous_links for t in (gather, permute, reduce)] == [gather.links, 0, 0]
    assert donated_leaves(LOOP) == 2


def test_the_pieces_of_a_fused_collective_are_one_and_a_scattered_reduction_is_no_all_reduce():
    found = collectives(parse_hlo(FUSED), [0] * 8)
    assert found.keys() == {"all-gather", "reduce-scatter"}
    gather, scatter = found["all-gather"], found["reduce-scatter"]
    assert (gather.count, gather.payload, gather.links) == (1, 8 * 16, 7 * 16)
    assert (scatter.count, scatter.payload, scatter.links) == (1, 256, 256 * 7 / 8)
    assert (gather.asynchronous_links, scatter.asynchronous_links) == (gather.links, 0)


def test_a_collective_that_a_sparse_core_carries_out_counts_as_asynchronous():
    """As libtpu writes it with xla_tpu_enable_sparse_core_collective_offload_reduce_scatter."""
    text = """\
HloModule jit_step

%offload (p: f32[64]) -> f32[8] {
  %p = f32[64]{0} parameter(0)
  ROOT %scatter = f32[8]{0} reduce-scatter(%p), channel_id=6, replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%add
}, execution_thread="sparsecore"

ENTRY %main (g: f32[64]) -> f32[8] {
  %g = f32[64]{0} parameter(0)
  %start = ((f32[64]{0}, token[]), f32[8]{0}) call-start(%g), async_execution_thread="sparsecore", to_apply=%offload
  ROOT %done = f32[8]{0} call-done(%start)
}
"""
    found = collectives(parse_hlo(text), [0] * 8)
    assert found.keys() == {"reduce-scatter"}
    scatter = found["reduce-scatter"]
    assert (scatter.count, scatter.links, scatter.asynchronous_links) == (1, 224, 224)


def test_between_slices_the_devices_of_a_slice_share_the_work():
    """Groups of four over two slices of two: a device gets its own part of the other slice by network."""
    found = collectives(parse_hlo(LOOP), [0, 0, 1, 1] * 2)
    gather, reduce = found["all-gather"], found["all-reduce"]
    assert (gather.network, gather.links) == (3 * 128, 3 * 2 * 128)
    assert (gather.asynchronous_network, gather.asynchronous_links) == (
        gather.network,
        gather.links,
    )
    assert (reduce.network, reduce.links) == (0, 32)
    apart = collectives(parse_hlo(LOOP), [0, 1] * 4)["all-reduce"]
    assert (apart.network, apart.links) == (32, 0)


@pytest.mark.parametrize(
    ("old", "new"), [("[2,4]<=[8]", "[2,4]<<[8]"), ("all-reduce(%v, %scalar)", "all-reduce[%v]")]
)
def test_unknown_forms_of_groups_and_instructions_are_errors(old: str, new: str):
    with pytest.raises(ValueError, match="unknown form"):
        collectives(parse_hlo(LOOP.replace(old, new)), [0] * 8)


def test_bytes_of_a_type():
    sizes = {"bf16[8,128]{1,0:T(8,128)(2,1)}": 2048, "(f32[2], pred[3])": 11, "s32[]": 4}
    assert {text: type_bytes(text) for text in sizes} == sizes


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
    found = collectives(parse_hlo(text), [0] * 8)
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


def test_training_is_three_forward_passes_and_stage_one_has_a_head(recipe):
    judge = recipe("finetune")
    a, b = training_flops(recipe("pretrain"), CFG), training_flops(judge, CFG)
    tokens = 8 * 192
    assert a.layers == b.layers == 6 * layer_weights(CFG) * tokens
    assert a.model == b.model and b.head == 0
    assert a.head == 6 * CFG.vocab_size * CFG.embed_size * tokens
    assert training_flops(judge, CFG, targets=24).head == a.head * 24 / 192
    assert a.attention == 3 * scoring_flops(CFG, 4, 192).attention
    thin = replace(judge, lora=AdapterConfig(rank=4, alpha=8.0, target_modules=("q", "v")))
    # two layers; q: 64 x 4 and 4 x 64; v: 64 x 4 and 4 x 32
    extra = 2 * (64 * 4 + 4 * 64 + 64 * 4 + 4 * 32)
    assert training_flops(thin, CFG).layers == (4 * layer_weights(CFG) + 6 * extra) * tokens


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
        ("qwen3-30b-a3b", 30_532_122_624),
        ("mistral-7b", 7_248_023_552),
        ("ministral-3-8b", 8_489_553_920),
        ("smollm3-3b", 3_075_098_624),
        ("phi-4", 14_659_507_200),
        ("gemma-2-9b", 9_241_705_984),
        ("gemma-3-12b", 11_766_034_176),  # without the model of images
        ("olmo-2-7b", 7_298_617_344),
    ],
)
def test_published_shapes_have_the_published_number_of_weights(name: str, count: int):
    assert param_count(param_specs(PUBLISHED[name])) == count


def test_a_published_shape_has_its_hub_name_too():
    assert published_config("Qwen/Qwen3-8B-Base") == PUBLISHED["qwen3-8b"]
    assert published_config("meta-llama/Llama-3.3-70B-Instruct") == PUBLISHED["llama3.3-70b"]
    assert published_config("google/gemma-2-9b-it") == PUBLISHED["gemma-2-9b"]
    assert published_config("allenai/OLMo-2-1124-7B-Instruct") == PUBLISHED["olmo-2-7b"]
    assert published_config("Qwen/Qwen3-7B") is None


def test_topologies_are_read_as_they_are_written():
    two = read_topology("2xv5e:16x16")
    assert (two.chip.name, two.shape, two.slices, two.name) == ("v5e", (16, 16), 2, "2xv5e:16x16")
    assert read_topology("v5e:16x16", slices=2) == two
    shapes = {"v5p:2x2x1": (2, 2, 1), "v6e:1": (1, 1), "h200": (1,), "h200:8": (8,)}
    assert {name: read_topology(name).shape for name in shapes} == shapes
    assert LOCAL.chip is None


@pytest.mark.parametrize(
    ("text", "slices"),
    [
        *((text, None) for text in ("v5e:4", "v5p:4x4", "v9:2x2", "4x4", "v5e-16", "v5e:0x4", "")),
        *((text, None) for text in ("0xv5e:4x4", "512xv5e:4x4")),
        *(("2xv5e:4x4", 4), ("local", 2), ("v5e:2x2", 9999)),
    ],
)
def test_other_topologies_are_rejected(text: str, slices: int | None):
    with pytest.raises(RecipeError, match=r"--(topology|slices)"):
        read_topology(text, slices)


@pytest.mark.parametrize(
    ("kind", "chip"),
    [("TPU v5 lite", "v5e"), ("TPU v5p", "v5p"), ("TPU7x", "tpu7x"), ("NVIDIA H200", "h200")],
)
def test_the_data_sheet_of_a_device_is_found_by_its_kind(kind: str, chip: str):
    assert chip_of(SimpleNamespace(device_kind=kind)) is CHIPS[chip]


def test_a_device_without_a_data_sheet_has_no_chip():
    assert chip_of(jax.devices("cpu")[0]) is chip_of(SimpleNamespace(device_kind="TPU v9")) is None


def test_a_small_slice_has_fewer_links():
    assert link_bandwidth(V5E, (2, 2)) == 2 * 50e9
    assert link_bandwidth(V5E, (4, 4)) == link_bandwidth(V5E, ()) == 4 * 50e9
    assert link_bandwidth(V5E, (1, 1)) == 0
    assert link_bandwidth(CHIPS["tpu7x"], (4, 4, 4)) == 6 * 100e9 / 2


@pytest.mark.slow
def test_two_devices_of_one_chip_have_no_bound_by_links(recipe):
    placement = make_placement({"fsdp": 2}, devices=jax.devices()[:2])
    target = PlanTarget(read_topology("tpu7x:1x1x1"), placement, CHIPS["tpu7x"])
    plan = planned(recipe(mesh__fsdp=2), target=target)
    assert plan.traffic and plan.seconds.keys() == {"compute", "memory"}


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"fsdp": 8}, {"data": 2, "fsdp": 4}, {"fsdp": 4, "tensor": 2}])
def test_no_device_ever_holds_the_hidden_states_of_the_whole_batch(mesh, recipe):
    """On a pod the batch is what grows: an array of all its rows on each device ends every large run.

    With a vocabulary much smaller than the batch XLA would gather the table, and there would be nothing to see.
    """
    axes = {f"mesh__{axis}": size for axis, size in mesh.items()}
    plan = planned(recipe(batch__batch_size=24, **axes), replace(CFG, vocab_size=16 * 1009))
    shapes = {dims for _, dims in re.findall(r"\b(f32|bf16)\[([0-9,]+)\]", plan.hlo)}
    assert not shapes & {"24,192,64", "4608,64", "24,192,32", "4608,32"}
    assert any(dims.endswith(",192,64") for dims in shapes)  # of its own rows it does


def vocabulary_products(hlo: str, size: int) -> list[str]:
    """Lines of a program that multiply something with a dimension of the vocabulary's size (or a shard of it)."""
    sizes = "|".join(str(size // n) for n in (1, 2, 4, 8) if size % n == 0)
    pattern = re.compile(
        rf"= \S*\[(?:\d+,)*(?:{sizes})(?:,\d+)*\]\S* (dot|convolution|custom-call)\("
    )
    return [line for line in hlo.splitlines() if pattern.search(line)]


@pytest.mark.slow
def test_no_product_of_vocabulary_size_is_in_the_programs_of_stage_two_and_scoring(recipe):
    cfg = replace(CFG, vocab_size=8 * 1009)  # no other dimension has this size, on any shard
    finetune = recipe("finetune")
    target = make_target(LOCAL, finetune)
    score = scoring_program(PlanRequest(finetune, cfg, target), pairs=8)
    for plan in (planned(finetune, cfg, target), make_plan(score, target)):
        assert not vocabulary_products(plan.hlo, cfg.vocab_size)
        # Nor is there an array [rows, T, vocabulary], whatever computes it.
        held = {
            tuple(int(n) for n in dims.split(","))
            for dims in re.findall(r"\w+\[([0-9,]+)\]", plan.hlo)
        }
        wide = [d for d in held if any(n in (8072, 4036, 2018, 1009) for n in d)]
        assert max(math.prod(d) for d in wide) <= cfg.vocab_size * cfg.embed_size
    # The same search finds the head of stage 1.
    assert vocabulary_products(planned(recipe("pretrain"), cfg, target).hlo, cfg.vocab_size)


def stripped(hlo: str) -> str:
    """A program's text without source locations."""
    hlo = re.sub(r",? ?metadata=\{[^}]*\}", "", hlo)
    hlo = re.sub(r"(?m)^(FileNames|FunctionNames|FileLocations|StackFrames)\n(.+\n)*", "", hlo)
    return re.sub(r"stack_frame_id=\d+", "", hlo)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "finetune", "bradley_terry"])
def test_the_program_of_a_plan_is_the_one_that_runs_and_its_state_is_donated_whole(
    stage: str, recipe, tmp_path: Path
):
    chosen = recipe(stage)
    job = set_up(chosen, RunDirectory(tmp_path, {}), make_placement(chosen.mesh.sizes))
    running = loop.compile_for(job)[0].as_text()
    request = PlanRequest(chosen, job.cfg, make_target(LOCAL, chosen))
    program = training_program(request, label_ids=job.spec.label_ids)
    plan = make_plan(program, request.target)
    assert stripped(plan.hlo) == stripped(running)
    assert len(running) > 10_000
    assert plan.program.state_leaves == plan.donated > 30
    assert plan.fit.fits and plan.fit.results < 1000
    assert plan.fit.donated >= 0.9 * plan.fit.arguments
    change = {"batch.gradient_accumulation_steps": 1, "execution.remat": "full"}
    assert stripped(plan_training(request, change).hlo) != stripped(running)


def tight(target: PlanTarget, capacity: int) -> PlanTarget:
    """The same devices with this little memory."""
    chip = replace(V5E, memory=capacity)
    return replace(target, topology=replace(read_topology("v5e:2x4"), chip=chip), chip=chip)


@pytest.mark.slow
def test_too_little_memory_is_an_answer_with_what_would_fit(recipe):
    large = recipe(batch__batch_size=64)
    target = make_target(LOCAL, large)
    small = tight(target, planned(large).fit.needed - 1)
    plan = planned(large, target=small)
    assert not plan.fit.fits
    advice = what_would_fit(PlanRequest(large, CFG, small), plan)
    assert "batch.gradient_accumulation_steps = 2" in advice
    hopeless = tight(target, plan.fit.arguments - 1)
    at_once = planned(large, target=hopeless)
    assert not at_once.fit.fits and at_once.compile_seconds < 0.1  # nothing is compiled
    assert "[mesh] fsdp" in what_would_fit(PlanRequest(large, CFG, hopeless), at_once)


def program_of(lower, arguments: Any = ()) -> Program:
    """A program that is lowered by `lower`."""
    settings = {"compute_dtype": "float32", "param_dtype": "float32"}
    return Program("made up", lower, arguments, settings, 1, Flops(1.0, 1.0))


def test_what_the_compiler_rejects_for_memory_is_an_answer_too(recipe):
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (32.50G) exceeds"
        " available HBM (15.75G)."
    )

    def fail(error: Exception):
        raise error

    target = tight(make_target(LOCAL, recipe()), int(15.75 * 2**30))
    weights = jax.ShapeDtypeStruct((2**28,), jnp.float32, sharding=target.placement.sharding())
    fit = make_plan(program_of(lambda: fail(RuntimeError(message)), weights), target).fit
    assert fit.arguments == 2**30 and not fit.fits
    assert does_not_fit(fit) == "does not fit: needs at least 33.5 GiB of 15.8 GiB"
    with pytest.raises(ValueError, match="a bug"):
        make_plan(program_of(lambda: fail(ValueError("a bug"))), target)
    vmem = "RESOURCE_EXHAUSTED: E1001: CompileTimeScopedVmemOom:\nRan out of memory in memory space vmem"
    unknown = "INVALID_ARGUMENT: No such compile option: 'nonsense'"
    unread = "INVALID_ARGUMENT: Failed to parse 'abc' into flag xla_tpu_scoped_vmem_limit_kib: "
    for message in (vmem, unknown, unread):
        with pytest.raises(
            RecipeError, match=r"rejects execution.compiler_options: .*(Vmem|nonsense|abc)"
        ):
            make_plan(program_of(lambda text=message: fail(RuntimeError(text))), target)


@pytest.mark.slow
def test_a_plan_is_announced_before_it_compiles(recipe, caplog):
    with caplog.at_level(logging.INFO, "gram_jax.plan"):
        plan = planned(recipe())
    (record,) = caplog.records
    assert record.args == (", ".join(f"{k} {v}" for k, v in plan.program.settings.items()),)


@pytest.mark.slow
def test_the_search_finds_the_largest_batch_and_then_the_cheapest_remat(recipe, caplog):
    target = make_target(LOCAL, recipe())

    def needed(rows: int, remat: str) -> int:
        return planned(recipe(batch__batch_size=rows, execution__remat=remat)).fit.needed

    small = tight(target, max(needed(24, "dots"), needed(24, "full")))
    assert needed(32, "full") > small.capacity and needed(24, "none") > small.capacity
    with caplog.at_level(logging.INFO, "gram_jax.plan.search"):
        chosen, plan = largest_batch(PlanRequest(recipe(), CFG, small, slots=1))
    assert chosen.slots == 1
    assert (chosen.recipe.batch.batch_size, chosen.recipe.execution.remat) == (24, "dots")
    assert plan.fit.fits and plan.program.settings["batch_size"] == 24
    tried = [record.getMessage() for record in caplog.records]
    assert len(tried) == len(set(tried)) <= 8
    assert largest_batch(PlanRequest(recipe(), CFG, tight(target, 1000))) is None


@pytest.mark.slow
def test_the_search_for_a_mesh_compares_all_that_divide_the_model_and_the_batch(recipe):
    chip = replace(V5E, memory=2**40)
    target = replace(make_target(LOCAL, recipe()), chip=chip)
    plans = fastest_meshes(PlanRequest(recipe(), CFG, target), ("tensor",))
    # The model has two key-value heads, eight rows go to any number of shards.
    meshes = [tuple(plan.target.placement.mesh.shape.values()) for plan in plans]
    assert sorted(meshes) == [(1, 4, 2, 1), (1, 8, 1, 1)]
    assert all(plan.fit.fits and mesh_line(plan) for plan in plans)
    with pytest.raises(RecipeError, match="--search-mesh"):
        run_plan(recipe(), LOCAL, PlanOptions(search_mesh=("tensor",), score=True))


def test_the_search_tries_sizes_at_most_a_quarter_apart():
    assert SIZES[:12] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16]
    assert all(4 * (b - a) <= max(a, 4) for a, b in itertools.pairwise(SIZES))


def test_a_plan_is_for_the_given_number_of_slots(recipe):
    packed = recipe(batch__packing=True)
    target = make_target(LOCAL, packed)
    few, many = (
        bytes_on_a_device(training_program(PlanRequest(packed, CFG, target, slots)).arguments)
        for slots in (1, 5)
    )
    assert many - few == 4 * 3 * 4  # three arrays of four more for the only row of a device


@pytest.mark.parametrize("weights", ["int8", "int8_dynamic", "float8_dynamic"])
def test_a_planned_scoring_call_has_the_arrays_of_quantized_weights(weights, recipe):
    target = make_target(LOCAL, recipe())
    program = scoring_program(PlanRequest(recipe(), CFG, target), weights=weights)
    params = init_params(param_specs(CFG), jax.random.key(0), target.placement, "float32")
    planned, real = (
        {path: (leaf.shape, leaf.dtype) for path, leaf in tree.flatten(of).items()}
        for of in (program.arguments[0], quantize(params, weights))
    )
    assert planned == real
    assert program.settings["param_dtype"] == weights


@pytest.mark.parametrize(
    ("stage", "packing", "options"),
    [
        ("finetune", True, {"pairs": 8}),
        ("finetune", True, {"weights": "int8"}),
        ("finetune", True, {"slots": 8, "score": True}),
        ("finetune", False, {"slots": 8}),
        ("pretrain", True, {"slots": 8}),
        ("finetune", True, {"search": True, "score": True}),
    ],
)
def test_options_that_a_program_does_not_have_are_rejected(stage, packing, options, recipe):
    with pytest.raises(RecipeError, match=r"--(pairs|slots|search|weights)"):
        run_plan(recipe(stage, batch__packing=packing), LOCAL, PlanOptions(**options))


def test_a_long_warm_up_can_be_planned_if_the_data_decides_the_steps(recipe):
    changes = {"run__max_steps": None, "run__num_train_epochs": 1, "optimizer__warmup_steps": 2000}
    assert planned(recipe(**changes)).fit.fits


def made_up(text: str) -> tuple[Program, Any]:
    """A program that compiles to this text, and its memory."""
    sizes = {"argument": 10, "temp": 0, "output": 8, "alias": 8}
    memory = SimpleNamespace(
        **{f"{name}_size_in_bytes": size for name, size in sizes.items()}, peak_memory_in_bytes=25
    )
    compiled = SimpleNamespace(memory_analysis=lambda: memory, as_text=lambda: text)
    return program_of(lambda: SimpleNamespace(compile=lambda: compiled)), memory


def test_the_table_of_operations_has_times_of_all_runs_and_lines(recipe):
    program, _ = made_up(AROUND)
    plan = make_plan(program, tight(make_target(LOCAL, recipe()), 100))
    *_, estimate, costly = plan_tables(plan, operations=2)
    assert len(costly[2]) == 2
    time, runs, kind, line, _ = costly[2][0]
    assert (runs, kind, line) == (8, PRODUCTS, "model/matmul.py:14 matmul")
    assert time == f"{1e3 * 8000 / V5E.clock:,.1f} ms"
    assert [row[0] for row in estimate[2]][-2:] == [
        "forecast, if asynchronous collectives overlap with other work",
        "forecast, if no collective overlaps",
    ]
    assert len(list(plan_tables(plan))) == len(list(plan_tables(plan, operations=2))) - 1


def test_only_asynchronous_collectives_can_be_hidden(recipe):
    """Of 112 + 224 bytes the reduction's 224 are waited for."""
    last = "calls=%all-reduce-scatter.3"
    program, _ = made_up(FUSED.replace(last, last + ', backend_config={"estimated_cycles":"50"}'))
    estimate = make_plan(program, tight(make_target(LOCAL, recipe()), 100)).estimate
    assert estimate is not None
    assert estimate.synchronous == pytest.approx(estimate.links * 224 / 336)
    least, most = estimate.forecast
    assert most - least == pytest.approx(estimate.links * 112 / 336)


def test_links_and_network_have_a_synchronous_part_each(recipe, monkeypatch):
    """The gather runs inside slices of four, asynchronously; the reduction is synchronous and crosses slices."""
    text = FUSED.replace("mesh['x'=1,'y'=8] {'y'}", "{{0,1,2,3},{4,5,6,7}}")
    last = "calls=%all-reduce-scatter.3"
    text = text.replace(last, last + ', backend_config={"estimated_cycles":"50"}')
    program, _ = made_up(text)
    monkeypatch.setattr(PlanTarget, "slices", [0] * 4 + [1] * 4)
    plan = make_plan(program, tight(make_target(LOCAL, recipe()), 100))
    moved = {kind: (t.links, t.network) for kind, t in plan.traffic.items()}
    assert moved == {"all-gather": (3 * 16, 0), "reduce-scatter": (256 * 3 / 4, 64 / 2)}
    assert plan.estimate is not None
    of_links = plan.seconds["interconnect"] * 192 / (192 + 48)
    assert plan.estimate.synchronous == pytest.approx(of_links + plan.seconds["network"])


@pytest.mark.parametrize(
    ("needed", "words"), [(90, "does not say how much"), (101, "needs at least 101 B of 100 B")]
)
def test_a_program_that_the_compiler_gives_up_needs_at_least_what_is_known(needed, words):
    assert words in does_not_fit(MemoryFit(arguments=needed, needed=needed, capacity=100))


def test_a_program_whose_peak_is_more_than_its_sum_needs_the_peak(recipe):
    """libtpu reports no temporaries for a single chip."""
    program, memory = made_up("")
    target = tight(make_target(LOCAL, recipe()), 24)
    fit = make_plan(program, target).fit
    assert fit.needed == 25 and not fit.fits
    memory.temp_size_in_bytes = 20
    assert make_plan(program, target).fit.needed == 30


HIDING = """
import importlib.util as u
found = u.find_spec
u.find_spec = lambda name, *a: None if name == "{}" else found(name, *a)
"""


@pytest.fixture
def plan_command(tmp_path: Path):
    """Runs the command on a recipe in a process of its own: what a plan sets in the environment stays there."""

    def run(*arguments: object, hidden: str = "", **changes: Any) -> SimpleNamespace:
        """hidden: a module that the command does not find."""
        path, out, err = (tmp_path / name for name in ("recipe.toml", "out.txt", "err.txt"))
        path.write_text(recipe_to_toml(tiny_recipe("finetune", tmp_path / "run", **changes)))
        (tmp_path / "train.jsonl").unlink()  # no data is read
        code = HIDING.format(hidden) + "from gram_jax.cli import main; main()"
        env = os.environ | {"XLA_FLAGS": "", "COLUMNS": "160"}
        status = Fork(code, ["plan", *map(str, (path, *arguments))], env, tmp_path, out, err).wait(
            300
        )
        assert "Traceback" not in err.read_text()
        return SimpleNamespace(returncode=status, stdout=out.read_text(), stderr=err.read_text())

    return run


@pytest.mark.slow
def test_the_command_prints_tables_and_as_json_everything(plan_command, tmp_path: Path):
    old = tmp_path / "old.json"
    old.write_text(plan_command("--json").stdout)
    done = plan_command("--against", old, batch__batch_size=16)
    assert done.returncode == 0, done.stderr
    for words in ("headroom", "donated", "all", "model FLOPs", "compile time"):
        assert words in done.stdout
    _, _, compared = done.stdout.partition("compared")
    cells = [[cell.strip() for cell in line.split("│")] for line in compared.splitlines()]
    changes = {row[1]: row[-2] for row in cells if len(row) > 4}
    assert changes["temporaries"].startswith("+") and changes["temporaries"] != "+0.0%"
    values = json.loads(plan_command("--score", "--json").stdout)
    assert values["program"] == "score" and values["memory"]["fits"]
    assert values["flops"]["model"] > 0


@pytest.mark.slow
def test_a_missing_model_asks_for_its_shape(plan_command):
    done = plan_command(model__name_or_path="runs/nowhere")
    assert done.returncode == 2
    assert "--model-config" in done.stderr and "qwen3-8b" in done.stderr
    assert len(done.stderr.splitlines()) == 2 and "runs/nowhere" in done.stderr


@pytest.mark.slow
def test_a_missing_compiler_is_an_error_with_what_to_install(plan_command):
    done = plan_command("--topology", "v5e:2x2", hidden="libtpu")
    assert done.returncode == 2 and 'pip install "jax[tpu]"' in done.stderr


@pytest.mark.slow
def test_a_plan_for_an_absent_gpu_needs_its_compiler(plan_command):
    done = plan_command("--topology", "h200", "--json", execution__attention="auto")
    if cuda_compiler_installed():
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["settings"]["attention"] == "blocked"
    else:
        assert done.returncode == 2 and "jax-cuda13-pjrt==" in done.stderr


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu, the compiler for TPUs"
)


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("mode", ["train", "score"])
def test_a_small_model_compiles_for_an_absent_tpu(mode: str, plan_command):
    done = plan_command(
        *("--topology", "v5e:2x2", "--json"),
        *(["--score"] if mode == "score" else []),
        batch__max_length=256,
        judge__max_length=256,
        execution__attention="auto",
        execution__compute_dtype="bfloat16",
    )
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert values["topology"] == "v5e:2x2" and values["mesh"] == {"fsdp": 4}
    assert values["memory"]["capacity"] == int(15.75 * 2**30)
    traffic = values["collectives"]
    assert traffic["all-gather"]["count"] >= 14  # seven matrices, two layers
    assert values["seconds"].keys() == {"compute", "memory", "interconnect"}
    assert values["bound"] in values["seconds"]
    estimate = values["estimate"]
    assert {PRODUCTS, ROPE, NORMS} <= estimate["by_kind"].keys()
    assert sum(estimate["by_kind"].values()) == pytest.approx(estimate["compiled"])
    assert estimate["forecast"][0] > estimate["compiled"] and estimate["kernels"] > 0
    costly = estimate["operations"]
    assert [one["cycles"] for one in costly] == sorted((o["cycles"] for o in costly), reverse=True)
    assert any(one["place"].startswith("model/matmul.py:") for one in costly)
    *_, rows = compared(values, values)
    assert {row[-1] for row in rows} <= {"", "+0.0%"} and len(rows) > 10
    if mode == "train":
        assert values["state"]["leaves"] == values["state"]["donated"]
        # The gradients of matrices reach a device as its part of the sum; the rest is summed whole.
        assert traffic["reduce-scatter"]["links"] > traffic["all-reduce"]["links"]


@pytest.mark.slow
@needs_libtpu
def test_a_model_too_large_for_a_tpu_ends_with_status_1(plan_command):
    done = plan_command("--topology", "v5e:2x2", "--model-config", "qwen3-32b")
    assert done.returncode == 1, done.stderr
    assert "does not fit: needs" in done.stdout
