"""The Flax view of the model: the same arrays, the same numbers, and errors for what it does not support."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import FAMILIES, tiny_config
from flax import nnx
from model_cases import random_params, random_rows
from nnx_cases import changed, paths_of, with_lora

from gram_jax import tree
from gram_jax.batch import Sequences
from gram_jax.errors import DataError, LayoutError, RecipeError
from gram_jax.interop.nnx import Frozen, nnx_model, to_params
from gram_jax.model.attention.masked import dot
from gram_jax.model.decoder import hidden_states
from gram_jax.model.execution import Execution
from gram_jax.model.heads import unembedding
from gram_jax.model.lora import NUM_CONTRACTED_DIMS
from gram_jax.model.quantize import quantize

T = 16


@nnx.jit
def apply(view, tokens, positions, cache=None, mask=None, segments=None):
    return view(tokens, positions, cache, mask, segment_ids=segments)


@nnx.jit
def apply_last(view, tokens, positions, cache, mask):
    return view(tokens, positions, cache, mask, decode_only_last_token=True)


@partial(jax.jit, static_argnums=(1, 3))
def our_logits(params, cfg, seqs, execution):
    hidden = hidden_states(params, cfg, seqs, execution)
    return dot("btd,vd->btv", hidden, unembedding(params, cfg).astype(hidden.dtype))


def padded_rows(cfg, real):
    """tokens, positions, mask as RL tools make them of real, bool [B, T]: causal, padding unseen."""
    real = np.asarray(real, bool)
    B, T = real.shape
    tokens = np.random.default_rng(1).integers(1, cfg.vocab_size, (B, T)).astype(np.int32)
    positions = np.maximum(np.cumsum(real, axis=1) - 1, 0).astype(np.int32)
    return tokens, positions, np.tril(np.ones((T, T), bool)) & real[:, None, :]


REAL = np.array([[0] * 5 + [1] * 11, [1] * 16, [1] * 9 + [0] * 7, [0, 0, 1, 1, 0, 1, 1, 1] * 2])


@pytest.mark.parametrize("family", FAMILIES)
def test_variables_are_the_arrays_of_the_tree(family, execution, one_device):
    cfg = tiny_config(family, tied=family == "qwen2")
    params = random_params(cfg, one_device)
    view = nnx_model(params, cfg, execution)
    assert view.layers.q.get_value() is params["layers"]["q"]
    state = {"/".join(path): leaf for path, leaf in nnx.to_flat_state(nnx.state(view, nnx.Param))}
    assert state.keys() == tree.flatten(params).keys()
    back = tree.flatten(to_params(view))
    assert back.keys() == state.keys()
    assert all(back[path] is leaf for path, leaf in tree.walk(params))


@pytest.mark.parametrize(
    ("family", "compute_dtype"),
    [("llama3", "float32"), ("qwen2", "bfloat16"), ("qwen3", "float32")],
)
def test_logits_are_ours_bit_for_bit(family, compute_dtype, one_device):
    execution = Execution(compute_dtype, "blocked", "none", one_device)
    cfg = tiny_config(family, tied=family == "qwen2")
    params = random_params(cfg, one_device)
    seqs = random_rows(cfg, [[7, 5], [16], [3]], T)
    view = nnx_model(params, cfg, execution)
    logits, cache = apply(view, seqs.tokens, seqs.positions, segments=seqs.segments)
    assert logits.dtype == jnp.float32
    assert cache is None
    np.testing.assert_array_equal(logits, our_logits(params, cfg, seqs, execution))
    real = seqs.segments > 0
    assert len(np.unique(np.asarray(logits)[real], axis=0)) == real.sum()


def test_a_causal_mask_equals_segments_and_another_is_refused_or_gives_nan(execution, one_device):
    cfg = tiny_config("llama", tied=True)
    params = random_params(cfg, one_device)
    view = nnx_model(params, cfg, execution)
    tokens, positions, mask = padded_rows(cfg, REAL)
    segments = REAL.astype(np.int32)
    ours = our_logits(params, cfg, Sequences(tokens, positions, segments), execution)
    for given in ((mask, None), (mask.astype(np.int32), segments)):
        np.testing.assert_array_equal(apply(view, tokens, positions, None, *given)[0], ours)
    mask[1, 4, 9] = True  # a later key
    mask[3, -1, 2] = False  # a key of the same document
    with pytest.raises(DataError, match="row 1 is not causal"):
        view(tokens, positions, None, mask)
    logits, _ = apply(view, tokens, positions, None, mask)
    assert np.isnan(logits).all((1, 2)).tolist() == [False, True, False, True]
    assert np.isfinite(logits[np.array([0, 2])]).all()


def test_forms_that_do_not_fit_are_refused(execution, one_device):
    cfg = tiny_config("llama", tied=True)
    view = nnx_model(random_params(cfg, one_device), cfg, execution)
    tokens, positions, mask = padded_rows(cfg, REAL)
    wide = np.pad(mask, ((0, 0), (0, 0), (0, 4)))
    for arguments, message in (
        ((None, mask.astype(np.float32)), "is float32"),
        ((None, mask[:, :1]), r"expected \(4, 16, 16\)"),
        ((view.init_cache(4, 20, "float32"), None), "attention mask"),
        ((view.init_cache(4, 20, "float32"), mask), r"expected \(4, 16, 20\)"),
        ((view.init_cache(4, 8, "float32"), wide), "4 x 8"),
        (({"layer_0": {}}, wide), "layer_0"),
    ):
        with pytest.raises(DataError, match=message):
            view(tokens, positions, *arguments)
    with pytest.raises(DataError, match="segment_ids have shape"):
        view(tokens, positions, segment_ids=REAL[:, :3])


@pytest.mark.slow
def test_gradients_and_updates_are_those_of_our_functions(execution, one_device):
    cfg = tiny_config("llama", tied=False)
    params = random_params(cfg, one_device)
    before = jax.tree.map(np.array, params)
    seqs = random_rows(cfg, [[7, 5], [16]], T)

    def nll(logits):
        return -jax.nn.log_softmax(logits)[..., 3].mean()

    rule = optax.sgd(0.1, momentum=0.9)

    @nnx.jit
    def step(view, optimizer):
        loss, grads = nnx.value_and_grad(
            lambda m: nll(m(seqs.tokens, seqs.positions, segment_ids=seqs.segments)[0])
        )(view)
        optimizer.update(view, grads)
        return loss, grads

    @jax.jit
    def our_step(params, state):
        loss, grads = jax.value_and_grad(lambda p: nll(our_logits(p, cfg, seqs, execution)))(params)
        updates, state = rule.update(grads, state, params)
        return loss, grads, optax.apply_updates(params, updates)

    view = nnx_model(params, cfg, execution)
    loss, grads = step(view, nnx.Optimizer(view, rule, wrt=nnx.Param))
    ours, our_grads, updated = our_step(params, rule.init(params))
    assert float(loss) == pytest.approx(float(ours), rel=1e-6)
    # Two programs, compiled apart: f32 rounding, weights and gradients of order one.
    for found, expected in ((nnx.to_pure_dict(grads), our_grads), (to_params(view), updated)):
        leaves = tree.flatten(found)
        assert leaves.keys() == tree.flatten(expected).keys()
        for path, leaf in tree.walk(expected):
            np.testing.assert_allclose(leaves[path], leaf, rtol=0, atol=1e-5, err_msg=path)
    jax.tree.map(np.testing.assert_array_equal, params, before)
    assert not np.array_equal(view.layers.q.get_value(), before["layers"]["q"])


def test_shardings_are_kept_and_told_to_optimizers(cube):
    execution = Execution("float32", "blocked", "none", cube)
    cfg = tiny_config("llama", tied=False)
    params = random_params(cfg, cube)
    seqs = random_rows(cfg, [[7], [12], [3], [16]], T)
    view = nnx_model(params, cfg, execution)
    for path, spec in tree.walk(nnx.to_pure_dict(nnx.get_partition_spec(nnx.state(view)))):
        assert spec == tree.flatten(params)[path].sharding.spec, path
    moments = nnx.Optimizer(view, optax.adam(1e-2), wrt=nnx.Param).opt_state[0].mu
    assert moments["layers"]["q"].get_value().sharding == params["layers"]["q"].sharding
    logits, _ = apply(view, seqs.tokens, seqs.positions, segments=seqs.segments)
    np.testing.assert_array_equal(logits, our_logits(params, cfg, seqs, execution))


def test_a_cache_gives_the_logits_of_the_whole_row_until_it_overflows(execution, one_device):
    """Rows begin at different columns; 10 columns at once, then one at a time."""
    cfg, first = tiny_config("qwen3", tied=True), 10
    params = random_params(cfg, one_device)
    view = nnx_model(params, cfg, execution)
    real = REAL[:2].astype(bool)
    tokens, positions, mask = padded_rows(cfg, real)
    whole = our_logits(params, cfg, Sequences(tokens, positions, real.astype(np.int32)), execution)
    cache, found = view.init_cache(2, T, view.config.dtype), []
    last, _ = apply_last(view, tokens[:, :first], positions[:, :first], cache, mask[:, :first])
    for begin, end in [(0, first), *((at, at + 1) for at in range(first, T))]:
        part = slice(begin, end)
        logits, cache = apply(view, tokens[:, part], positions[:, part], cache, mask[:, part])
        found.append(np.asarray(logits))
    assert cache["end_index"].tolist() == [T, T]
    np.testing.assert_allclose(
        np.concatenate(found, axis=1)[real], np.asarray(whole)[real], rtol=0, atol=1e-4
    )
    np.testing.assert_allclose(last, found[0][:, -1:], rtol=0, atol=1e-5)
    beyond, _ = apply(view, tokens[:, :1], positions[:, -1:] + 1, cache, mask[:, -1:])
    assert np.isnan(beyond).all()


def test_what_nobody_trains_is_no_param(execution, one_device):
    cfg = tiny_config("llama", tied=True)
    params = random_params(cfg, one_device)
    whole = tree.flatten(params).keys()
    thin = {f"layers/lora/{name}/{part}" for name in "qv" for part in "ab"}
    matrices = {f"layers/{name}" for name in NUM_CONTRACTED_DIMS}

    view = nnx_model(with_lora(params, cfg, one_device), cfg, execution)
    assert paths_of(view, nnx.LoRAParam) == thin
    assert paths_of(view, nnx.Param) == whole | thin
    assert paths_of(view, Frozen) == {"layers/lora_scale"}

    view = nnx_model(quantize(params, "int8"), cfg, execution)
    assert paths_of(view, nnx.Param) == whole - matrices
    scales = {f"layers/scales/{name}" for name in NUM_CONTRACTED_DIMS}
    assert paths_of(view, Frozen) == matrices | scales


def test_a_lora_on_int8_is_our_model_and_trains_alone(execution, one_device):
    cfg = tiny_config("llama", tied=True)
    params = with_lora(quantize(random_params(cfg, one_device), "int8"), cfg, one_device)
    seqs = random_rows(cfg, [[7, 5], [16]], T)
    view = nnx_model(params, cfg, execution)

    @nnx.jit
    def step(view):
        def spread(model):
            return model(seqs.tokens, seqs.positions, segment_ids=seqs.segments)[0].var()

        grads = nnx.grad(spread, argnums=nnx.DiffState(0, nnx.LoRAParam))(view)
        nnx.Optimizer(view, optax.sgd(1.0), wrt=nnx.LoRAParam).update(view, grads)

    logits, _ = apply(view, seqs.tokens, seqs.positions, segments=seqs.segments)
    np.testing.assert_array_equal(logits, our_logits(params, cfg, seqs, execution))
    step(view)
    assert changed(view, params) == paths_of(view, nnx.LoRAParam)


def test_trees_that_are_not_this_model_are_refused(execution, one_device):
    cfg = tiny_config("llama", tied=True)
    params = random_params(cfg, one_device)
    layers = params["layers"]
    thin = with_lora(params, cfg, one_device)["layers"]["lora"]
    without = {name: leaf for name, leaf in layers.items() if name != "q"}
    for line, found in {
        "layers/q: missing": {**params, "layers": without},
        "score: not expected": {**params, "score": jnp.zeros(32)},
        "layers/q: shape": {**params, "layers": {**layers, "q": layers["k"]}},
        "layers/lora_scale: missing": {**params, "layers": {**layers, "lora": thin}},
    }.items():
        with pytest.raises(LayoutError, match=line):
            nnx_model(found, cfg, execution)
    with pytest.raises(RecipeError, match="packed = True"):
        nnx_model(params, cfg, Execution("float32", "auto", "none", one_device, packed=False))


def test_weights_that_a_tool_adds_stop_the_call_and_the_way_back(execution, one_device):
    cfg = tiny_config("llama", tied=True)
    view = nnx_model(random_params(cfg, one_device), cfg, execution)
    view.embed_lora_a = nnx.LoRAParam(jnp.zeros((32, 4)))
    tokens = np.ones((1, 4), np.int32)
    with pytest.raises(LayoutError, match="a tool changed embed_lora_a"):
        apply(view, tokens, tokens)
    with pytest.raises(LayoutError, match="embed_lora_a is new"):
        to_params(view)


def test_training_and_scoring_do_not_load_flax():
    code = (
        "import sys, gram_jax.cli, gram_jax.training.loop, gram_jax.rl.loop, gram_jax.scoring.scorer;"
        "sys.exit('flax' in sys.modules)"
    )
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
