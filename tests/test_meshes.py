"""Whatever the mesh, the numbers are those of one device; and no device ever holds what is not its own."""

import itertools
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
import pytest
from tiny_runs import compiled_programs, tiny_recipe  # noqa: F401

from gram_jax import sharding, tree
from gram_jax.batch import PairBatch, Sequences, TokenBatch, VerdictBatch
from gram_jax.checkpoint.orbax import Checkpoints
from gram_jax.data.feed import process_shard, to_device
from gram_jax.errors import RecipeError
from gram_jax.interop.hf_export import export_hf
from gram_jax.interop.hf_files import load_hf
from gram_jax.model.config import ModelConfig
from gram_jax.model.decoder import hidden_states
from gram_jax.model.execution import Execution
from gram_jax.model.specs import init_params, param_specs
from gram_jax.recipes.reading import make_recipe
from gram_jax.recipes.tables import OptimizerConfig
from gram_jax.scoring.pair import score_pair
from gram_jax.sharding import MESH_AXES, Placement, granules_of, hybrid_mesh, make_placement
from gram_jax.training.objectives import pretrain_objective, verdict_objective
from gram_jax.training.optimizer import make_optimizer, make_schedule
from gram_jax.training.state import abstract_state, init_state, shardings_of
from gram_jax.training.step import make_train_step

pytestmark = pytest.mark.slow

# Eight heads of each kind, so that every mesh of eight devices can cut them.
CFG = ModelConfig(
    family="llama",
    vocab_size=320,
    embed_size=64,
    layers=2,
    query_heads=8,
    kv_heads=8,
    head_size=8,
    mlp_size=64,
    norm_eps=1e-5,
    rope_theta=1e4,
    rope_scaling=None,
    qkv_bias=False,
    qk_norm=False,
    tied_head=True,
    context_length=512,
)
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
ROWS, LENGTH, STEPS = 8, 64, 4
LABELS = (70, 71)
SHAPES = [s for s in itertools.product((1, 2, 4, 8), repeat=4) if math.prod(s) == 8]


def stages(shape: tuple[int, ...]) -> tuple[str, ...]:
    """Both stages on one axis; of 4 x 2 and 2 x 4 on the same two axes each has one; the meshes of three take turns.

    So each stage meets every axis alone and with any other. Where stage 2 runs, pairs are scored too.
    """
    if max(shape) == 8:
        return "pretrain", "finetune"
    first = shape.index(4) < shape.index(2) if 4 in shape else shape.index(1) % 2
    return ("pretrain",) if first else ("finetune",)


def rows(seed: int, shape: tuple[int, ...] = (ROWS, LENGTH)) -> Sequences:
    """Two documents in every row, and padding at its end."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, CFG.vocab_size, shape).astype(np.int32)
    segments, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    segments[..., :30], segments[..., 30:56] = 1, 2
    positions[..., :30], positions[..., 30:56] = np.arange(30), np.arange(26)
    return Sequences(np.where(segments > 0, tokens, 0), positions, segments)


def batch_of(stage: str, seed: int) -> TokenBatch | VerdictBatch:
    seqs, rng = rows(seed), np.random.default_rng(seed + 100)
    if stage == "pretrain":
        weights = (seqs.segments > 0) * rng.random(seqs.tokens.shape) > 0.3
        return TokenBatch(seqs, np.roll(seqs.tokens, -1, 1), weights.astype(np.float32))
    at = np.broadcast_to(np.array([29, 55], np.int32), (ROWS, 2)).copy()
    label = rng.integers(0, 2, (ROWS, 2)).astype(np.int32)
    return VerdictBatch(seqs, at, label, np.ones((ROWS, 2), np.float32))


def losses(stage: str, placement: Placement) -> tuple[list[float], int]:
    """(loss of four steps, number of compiled programs)."""
    execution = Execution("float32", "auto", "dots", placement)
    if stage == "pretrain":
        objective = pretrain_objective(CFG, execution, chunk_size=256)
    else:
        objective = verdict_objective(CFG, execution, label_ids=LABELS, smoothing=0.1)
    specs = param_specs(CFG)
    optimizer = make_optimizer(OPTIMIZER, STEPS, specs)
    abstract = abstract_state(specs, optimizer, placement, "float32")
    state = init_state(
        init_params(specs, jax.random.key(0), placement, "float32"), optimizer, abstract
    )
    step = make_train_step(
        objective,
        optimizer,
        make_schedule(OPTIMIZER, STEPS),
        shardings_of(abstract),
        placement,
        microbatches=1,
        max_skipped=0,
    )
    found = []
    for number in range(STEPS):
        state, metrics = step(state, {}, to_device(batch_of(stage, number), placement))
        total, count = metrics["loss"]
        found.append(float(total) / float(count))
    assert shardings_of(state) == shardings_of(abstract)
    return found, step._cache_size()


def scores(placement: Placement) -> np.ndarray:
    seqs = rows(7, (ROWS, 2, LENGTH))
    pair = PairBatch(seqs, np.full((ROWS, 2), 55, np.int32))
    params = init_params(param_specs(CFG), jax.random.key(0), placement, "float32")
    execution = Execution("float32", "auto", "none", placement)
    return score_pair(params, CFG, to_device(pair, placement), LABELS, execution)


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """What one device computes."""
    placement = make_placement({}, devices=jax.devices()[:1])
    return {stage: losses(stage, placement)[0] for stage in ("pretrain", "finetune")} | {
        "scores": scores(placement)
    }


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_every_mesh_of_eight_devices_gives_the_losses_and_scores_of_one(shape, alone):
    placement = make_placement(dict(zip(MESH_AXES, shape, strict=True)))
    for stage in stages(shape):
        found, programs = losses(stage, placement)
        np.testing.assert_allclose(found, alone[stage], atol=1e-5, rtol=0)
        assert programs == 1
        assert found[-1] != found[0]
    if "finetune" not in stages(shape):
        return
    before = score_pair._cache_size()
    np.testing.assert_allclose(scores(placement), alone["scores"], atol=1e-5, rtol=0)
    scores(placement)
    assert score_pair._cache_size() == before + 1


def loss_and_gradients(cfg: ModelConfig, placement: Placement, length: int) -> Any:
    """Of the hidden states of rows of this length, lowered."""
    execution = Execution("float32", "auto", "full", placement)
    specs = param_specs(cfg)
    params = init_params(specs, jax.random.key(0), placement, "float32")
    pattern = np.random.default_rng(3).normal(size=(length, cfg.embed_size)).astype(np.float32)

    def loss(params: tree.Tree, seqs: Sequences) -> jax.Array:
        return ((hidden_states(params, cfg, seqs, execution) * pattern) ** 2).mean()

    program = jax.jit(jax.value_and_grad(loss))
    return program.lower(params, to_device(rows(7, (ROWS, length)), placement)), params


@pytest.mark.parametrize("norms", ["pre", "post", "both"])
@pytest.mark.parametrize(
    ("sizes", "length"),
    [
        ({"tensor": 8}, 64),
        ({"tensor": 8}, 60),  # which tensor does not divide
        ({"tensor": 2, "sequence": 4}, 64),
        ({"tensor": 2, "sequence": 4}, 60),  # nor both together
        ({"data": 2, "fsdp": 2, "tensor": 2}, 60),
    ],
)
def test_gradients_with_a_residual_stream_of_a_part_of_the_positions_are_those_of_one_device(
    sizes, length, norms
):
    cfg = replace(CFG, traits=replace(CFG.traits, norms=norms))
    one = make_placement({}, devices=jax.devices()[:1])
    found = []
    for placement in (one, make_placement(sizes)):
        program, params = loss_and_gradients(cfg, placement, length)
        found.append(program.compile()(params, to_device(rows(7, (ROWS, length)), placement)))
    for expected, leaf in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(leaf, expected, atol=5e-6 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize(
    "sizes", [{"tensor": 8}, {"fsdp": 4, "tensor": 2}, {"tensor": 2, "sequence": 4}], ids=str
)
def test_a_device_keeps_the_residual_stream_of_its_own_positions_only(sizes):
    placement = make_placement(sizes)
    text = loss_and_gradients(CFG, placement, LENGTH)[0].compile().as_text()
    B, D = ROWS // placement.batch_shards, CFG.embed_size
    of_group, own = (LENGTH // placement.shards(axis) for axis in ("time", "residual_time"))
    assert f"f32[{CFG.layers},{B},{own},{D}]" in text  # the inputs of all layers
    assert f"f32[{CFG.layers},{B},{of_group},{D}]" not in text
    assert f"f32[{B},{of_group},{D}]" in text  # of a product


def parts_of(leaf: jax.Array) -> int:
    """In how many different parts a leaf lies."""
    return len({str(shard.index) for shard in leaf.addressable_shards})


class Doors:
    """Notes the size of everything that a device holds or is handed while a block runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.monkeypatch = monkeypatch

    @contextmanager
    def programs(self) -> Iterator[list[int]]:
        """Every array of every program that is compiled meanwhile, as one device has it."""
        seen, jit = [], jax.jit

        def noting(function, **settings):
            def call(*arguments):
                compiled = jit(function, **settings).lower(*arguments).compile()
                shapes = re.findall(r"\b[a-z]+\d+\[([\d,]*)\]", compiled.as_text())
                seen.extend(math.prod(int(n) for n in dims.split(",") if n) for dims in shapes)
                return compiled(*arguments)

            return call

        with self.monkeypatch.context() as patch:
            patch.setattr(jax, "jit", noting)
            yield seen

    @contextmanager
    def callbacks(self) -> Iterator[list[int]]:
        """What is read for a device."""
        seen, make = [], jax.make_array_from_callback

        def noting(shape, sharding, read, **settings):
            def sized(index):
                part = read(index)
                seen.append(np.size(part))
                return part

            return make(shape, sharding, sized, **settings)

        with self.monkeypatch.context() as patch:
            patch.setattr(jax, "make_array_from_callback", noting)
            yield seen

    @contextmanager
    def puts(self) -> Iterator[list[int]]:
        """What the host hands to a device."""
        seen, put = [], jax.device_put

        def noting(x, *arguments, **settings):
            seen.extend(np.size(leaf) for leaf in jax.tree.leaves(x))
            return put(x, *arguments, **settings)

        with self.monkeypatch.context() as patch:
            patch.setattr(jax, "device_put", noting)
            yield seen


@pytest.mark.parametrize("birth", ["random", "folder", "restored"])
def test_weights_and_moments_lie_in_parts_from_their_first_moment(birth, tmp_path, monkeypatch):
    placement = make_placement({"fsdp": 4, "tensor": 2})
    specs = param_specs(CFG)
    optimizer = make_optimizer(OPTIMIZER, STEPS, specs)
    abstract = abstract_state(specs, optimizer, placement, "float32")
    doors = Doors(monkeypatch)
    if birth == "folder":
        one = make_placement({}, devices=jax.devices()[:1])
        first = init_params(specs, jax.random.key(0), one, "float32")
        export_hf(
            tmp_path / "hf", CFG, first, dtype=None, tokenizer=None, spec=None, overwrite=False
        )
        with doors.callbacks() as weights:
            params = load_hf(tmp_path / "hf", placement, "float32")[1]
    else:
        with doors.programs() as weights:
            params = init_params(specs, jax.random.key(0), placement, "float32")
    with doors.programs() as moments:
        state = init_state(params, optimizer, abstract)
    held = [weights, moments]
    if birth == "restored":
        with Checkpoints(tmp_path / "saved", keep=1) as checkpoints:
            checkpoints.save(1, state, blocking=True)
            with doors.puts() as restored:
                state = checkpoints.restore(1, abstract)
        held.append(restored)
    largest = CFG.layers * CFG.embed_size * CFG.mlp_size
    table = CFG.vocab_size * CFG.embed_size
    for sizes in held:  # the largest part of the table came by, and nothing more than that
        assert max(sizes) == table // 8
    named = tree.flatten(state.params)
    for path, spec in tree.walk(specs):
        leaf = named[path]
        wanted = math.prod(
            placement.mesh.shape[name] for axis in spec.axes for name in dict(placement.rules)[axis]
        )
        assert parts_of(leaf) == wanted
        assert max(shard.data.size for shard in leaf.addressable_shards) == leaf.size // wanted
    cut = [x for x in jax.tree.leaves(state) if x.size >= largest]
    assert len(cut) >= 3 * 3  # weights and both moments of gate, up and down
    assert all(parts_of(x) == 8 for x in cut)


@dataclass(frozen=True)
class FakeDevice:
    """What the layout of a mesh looks at."""

    id: int
    process_index: int
    slice_index: int = 0
    platform: str = "gpu"
    device_kind: str = "fake"
    coords: tuple[int, ...] = ()
    core_on_chip: int = 0


def plane_of_chips(*, slice_index: int = 0) -> list[FakeDevice]:
    """A slice of 4 x 4 chips."""
    places = [(x, y, 0) for y in range(4) for x in range(4)]
    return [
        FakeDevice(16 * slice_index + i, 0, slice_index, "tpu", "TPU v6 lite", place)
        for i, place in enumerate(places)
    ]


@pytest.mark.parametrize("slices", [1, 2])
def test_axes_of_a_mesh_may_share_an_axis_of_the_torus(slices):
    devices = [one for n in range(slices) for one in plane_of_chips(slice_index=n)]
    sizes = {"fsdp": 8, "tensor": 2}
    mesh = make_placement(sizes, dcn={"data": slices}, devices=devices).mesh
    assert dict(mesh.shape) == {"data": slices, "fsdp": 8, "tensor": 2, "sequence": 1}
    for first, second in mesh.devices.reshape(-1, 2):
        assert first.slice_index == second.slice_index
        assert sum(abs(a - b) for a, b in zip(first.coords, second.coords, strict=True)) == 1


@pytest.mark.parametrize("by", ["slice_index", "process_index"])
def test_dcn_axes_cross_slices_or_hosts_and_no_other_does(by):
    devices = [
        FakeDevice(id=i, process_index=i // 4, slice_index=i // 8 if by == "slice_index" else 0)
        for i in range(16)
    ]
    granules = granules_of(devices)
    assert len(granules) == (2 if by == "slice_index" else 4)
    ici = {"data": 1, "fsdp": 8 if by == "slice_index" else 2, "tensor": 1, "sequence": 1}
    if by == "process_index":
        ici["tensor"] = 2
    dcn = {"data": len(granules), "fsdp": 1, "tensor": 1, "sequence": 1}
    mesh = hybrid_mesh(devices, ici, dcn)
    assert mesh.shape == tuple(ici[axis] * dcn[axis] for axis in MESH_AXES)
    for index in range(mesh.shape[0]):  # a step along data leads to another granule, no other does
        assert len({getattr(device, by) for device in mesh[index].flat}) == 1
    assert len({getattr(mesh[i, 0, 0, 0], by) for i in range(mesh.shape[0])}) == len(granules)


def test_an_axis_may_have_an_ici_and_a_dcn_part():
    devices = [FakeDevice(id=i, process_index=i // 4) for i in range(8)]
    ici = {"data": 2, "fsdp": 2, "tensor": 1, "sequence": 1}
    mesh = hybrid_mesh(devices, ici, {"data": 2, "fsdp": 1, "tensor": 1, "sequence": 1})
    assert [d.process_index for d in mesh[:, 0, 0, 0]] == [0, 0, 1, 1]


def test_dcn_sizes_that_do_not_fit_the_slices_are_refused():
    devices = [FakeDevice(id=i, process_index=i // 4) for i in range(8)]
    with pytest.raises(RecipeError, match=r"data = 4 multiplies to 4, .* 2 slices or hosts"):
        make_placement({}, dcn={"data": 4}, devices=devices)
    with pytest.raises(
        RecipeError, match=r"4 device\(s\) of each of 2 .*nearest valid sizes are 2"
    ):
        make_placement({"fsdp": 3}, dcn={"data": 2}, devices=devices)
    with pytest.raises(RecipeError, match="nearest valid sizes are 4 and 8"):
        make_placement({"fsdp": 5})


def test_several_slices_need_dcn_axes_and_several_hosts_of_one_do_not():
    slices = [FakeDevice(id=i, process_index=i // 4, slice_index=i // 8) for i in range(16)]
    with pytest.raises(RecipeError, match=r"in 2 slices.*--set mesh\.dcn\.data=2"):
        make_placement({"fsdp": -1}, devices=slices)
    hosts = [FakeDevice(id=i, process_index=i // 4, slice_index=1) for i in range(16)]
    assert make_placement({"fsdp": -1}, devices=hosts).mesh.shape["fsdp"] == 16


def test_the_rows_of_a_process_are_one_block_of_a_mesh_over_hosts(tmp_path):
    """The whole mesh's shape counts where a recipe is read."""
    recipe = tiny_recipe("finetune", tmp_path / "run", mesh__dcn={"data": 2})
    assert recipe.mesh.whole == {"data": 2, "fsdp": None, "tensor": 1, "sequence": 1}
    from gram_jax.recipes.reading import recipe_values

    values = recipe_values(recipe)
    values["mesh"] = {"data": 3, "fsdp": 1, "dcn": {"data": 2}}
    with pytest.raises(RecipeError, match=r"4 is not a multiple of 6 .*nearest valid size is 6"):
        make_recipe(values)
    assert process_shard(make_placement({"data": 2, "fsdp": 4}), 16) == (0, 1)


def test_a_gather_in_two_steps_has_the_values_and_gradients_of_one(monkeypatch):
    placement = make_placement({"fsdp": 4, "tensor": 2})
    x, w = np.random.default_rng(0).normal(size=(2, 16, 16)).astype(np.float32)

    def found() -> Any:
        def loss(w: jax.Array) -> jax.Array:
            return ((x @ placement.gather(w, "embed", "mlp")) ** 3).sum()

        return jax.jit(jax.value_and_grad(loss))(placement.put(w, "embed", "mlp"))

    once = found()
    devices = placement.mesh.devices.reshape(1, 2, 2, 2, 1)
    axes = ("data", "fsdp", "line", "tensor", "sequence")
    lines = jax.sharding.Mesh(devices, axes, axis_types=(placement.mesh.axis_types[0],) * 5)
    monkeypatch.setattr(sharding, "lines_of_torus", lambda mesh: lines)
    for one, other in zip(once, found(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_no_device_holds_the_gradients_of_all_layers_whole():
    """They are cut as their weights are. Of one layer a CPU's program does hold a whole gradient (docs/meshes.md)."""
    placement = make_placement({"fsdp": 8})
    execution = Execution("float32", "blocked", "full", placement)
    objective = verdict_objective(CFG, execution, label_ids=LABELS, smoothing=0.1)
    specs = param_specs(CFG)
    optimizer = make_optimizer(OPTIMIZER, STEPS, specs)
    abstract = abstract_state(specs, optimizer, placement, "float32")
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placement.sharding("batch")),
        batch_of("finetune", 0),
    )
    step = make_train_step(
        objective,
        optimizer,
        make_schedule(OPTIMIZER, STEPS),
        shardings_of(abstract),
        placement,
        microbatches=1,
        max_skipped=0,
    )
    text = step.lower(abstract, {}, batch).compile().as_text()
    L, D, F = CFG.layers, CFG.embed_size, CFG.mlp_size
    assert f"f32[{D},{F}]" in text
    assert f"f32[{L},{D},{F}]" not in text
    assert f"f32[{L},{D // 8},{F}]" in text
