"""The same numbers as transformers in PyTorch, for every family."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FAMILIES, tiny_config
from model_cases import LABELS, random_params

from gram_jax import tree
from gram_jax.batch import Sequences
from gram_jax.interop.hf_config import config_to_hf
from gram_jax.interop.hf_names import tensor_mappings
from gram_jax.losses import next_token_nll
from gram_jax.model.config import DynamicScaling, LinearScaling, Llama3Scaling, YarnScaling
from gram_jax.model.decoder import hidden_states
from gram_jax.model.heads import hidden_at, label_logits, unembedding
from gram_jax.model.rope import attention_factor, rotary_frequencies

pytestmark = pytest.mark.torch


def in_pytorch(cfg, params):
    """The transformers model that holds the same weights."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    settings = config_to_hf(cfg, "float32")
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**settings), attn_implementation="eager"
    ).eval()
    leaves = {path: np.asarray(leaf) for path, leaf in tree.walk(params)}
    weights = {}
    for name, slot in tensor_mappings(cfg, "hf").items():
        leaf = leaves[slot.rule.path]
        leaf = leaf[slot.at]
        weights[name] = torch.from_numpy(slot.to_stored(leaf).copy())
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= ({"lm_head.weight"} if cfg.tied_head else set())
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(family, tied, execution, one_device):
    torch = pytest.importorskip("torch")
    cfg = tiny_config(family, tied)
    params = random_params(cfg, one_device)
    tokens = np.random.default_rng(1).integers(0, cfg.vocab_size, (2, 40)).astype(np.int32)
    # Far positions, so that a wrong frequency cannot hide.
    positions = np.broadcast_to(np.arange(40, dtype=np.int32) + 300, (2, 40))
    seqs = Sequences(tokens, positions, np.ones_like(tokens))

    with torch.no_grad():
        theirs = in_pytorch(cfg, params)(
            torch.from_numpy(tokens).long(), position_ids=torch.from_numpy(positions.copy()).long()
        ).logits.numpy()

    hidden = hidden_states(params, cfg, seqs, execution)
    ours = jnp.einsum("btd,vd->btv", hidden, unembedding(params, cfg))
    assert np.abs(theirs).max() > 1  # the weights are large enough to tell
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
    verdict_at = jnp.array([[39], [11]])
    labels = label_logits(params, cfg, hidden_at(hidden, verdict_at), LABELS)
    picked = np.stack([theirs[0, 39, list(LABELS)], theirs[1, 11, list(LABELS)]])[:, None]
    np.testing.assert_allclose(labels, picked, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_transformers(family, execution, one_device):
    torch = pytest.importorskip("torch")
    cfg = tiny_config(family, tied=family != "llama3")
    params = random_params(cfg, one_device)
    tokens = np.random.default_rng(2).integers(0, cfg.vocab_size, (2, 24)).astype(np.int32)
    positions = np.broadcast_to(np.arange(24, dtype=np.int32), tokens.shape)
    seqs = Sequences(tokens, positions, np.ones_like(tokens))

    def loss(params):
        hidden = hidden_states(params, cfg, seqs, execution)[:, :-1]
        weights = np.ones((2, 23), np.float32)
        head = unembedding(params, cfg)
        return next_token_nll(
            hidden,
            head,
            tokens[:, 1:],
            weights,
            chunk_size=16,
            placement=execution.placement,
        )[0]

    model = in_pytorch(cfg, params)
    ids = torch.from_numpy(tokens).long()
    logits = model(ids).logits[:, :-1].flatten(0, 1)
    theirs = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="sum")
    theirs.backward()
    ours, gradients = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(ours, theirs.item(), rtol=1e-5)
    leaves = {path: np.asarray(leaf) for path, leaf in tree.walk(gradients)}
    for name, slot in tensor_mappings(cfg, "hf").items():
        leaf = leaves[slot.rule.path]
        found = slot.to_stored(leaf[slot.at])
        expected = model.get_parameter(name).grad.numpy()
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max(), name


SCALINGS = {
    "none": None,
    "linear": LinearScaling(4.0),
    "dynamic": DynamicScaling(4.0),
    "llama3": Llama3Scaling(8.0, 1.0, 4.0, 128),
    "yarn": YarnScaling(4.0, 128, 32.0, 1.0, None, None, None, truncate=True),
    "yarn with mscale": YarnScaling(4.0, 128, 8.0, 1.0, None, 0.7, 0.9, truncate=True),
    "yarn not truncated": YarnScaling(4.0, 128, 32.0, 1.0, 1.3, None, None, truncate=False),
}


@pytest.mark.parametrize("name", SCALINGS)
def test_rotary_frequencies_and_factors_are_those_of_transformers(name, one_device):
    cfg = replace(tiny_config("llama", True), head_size=64, rope_scaling=SCALINGS[name])
    rotary = in_pytorch(cfg, random_params(cfg, one_device)).model.rotary_emb
    np.testing.assert_allclose(rotary_frequencies(cfg), rotary.inv_freq.numpy(), rtol=2e-6)
    assert attention_factor(cfg.rope_scaling) == pytest.approx(rotary.attention_scaling)
