"""The Flax view in the real Tunix and qwix, on a CPU. Skipped where they are not installed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from model_cases import random_params
from nnx_cases import changed, paths_of, with_lora

from gram_jax.errors import LayoutError
from gram_jax.interop.models import load_tokenizer, model_config
from gram_jax.interop.nnx import nnx_model, to_params
from gram_jax.model.generate import SamplingConfig, generate

pytestmark = pytest.mark.slow

pytest.importorskip("tunix")


@pytest.fixture
def small(execution, one_device):
    """A sharp random model of the tiny tokenizer's size, the tokenizer, an execution."""
    tokenizer, cfg = load_tokenizer("tiny-random"), model_config("tiny-random")
    tokenizer.bos_token = "<|im_start|>"  # Tunix asks for one
    return random_params(cfg, one_device), cfg, tokenizer, execution


def preferences(cfg, seed=0):
    """Two prompts, padded on the left, with two responses each, padded on the right."""
    rng = np.random.default_rng(seed)
    before, after = np.ones((2, 6), np.int32), np.ones((2, 6), np.int32)
    before[0, :2], after[1, 4:] = 0, 0

    def draw():
        return rng.integers(1, cfg.vocab_size, (2, 6)).astype(np.int32)

    return {
        "prompt_ids": draw(),
        "prompt_mask": before,
        "chosen_ids": draw(),
        "chosen_mask": after,
        "rejected_ids": draw(),
        "rejected_mask": after,
    }


def test_tunix_learns_preferences_with_dpo(small):
    from tunix.sft.dpo import dpo_trainer as dpo

    params, cfg, _, execution = small
    view = nnx_model(params, cfg, execution)
    margins = []

    class Trainer(dpo.DPOTrainer):
        def _post_process_train_step(self, aux):
            margins.append(float(aux["rewards/margin"]))
            super()._post_process_train_step(aux)

    trainer = Trainer(
        view,
        nnx_model(params, cfg, execution),
        optax.sgd(1e-3),
        dpo.DPOTrainingConfig(eval_every_n_steps=100, max_steps=3),
    )
    trainer.train([dpo.TrainingInput(**preferences(cfg))] * 3)
    assert margins[0] == pytest.approx(0, abs=1e-6)  # policy and reference are one model
    assert margins[0] < margins[1] < margins[2]
    assert not np.array_equal(to_params(view)["layers"]["q"], params["layers"]["q"])


def test_tunix_trains_our_lora_and_nothing_else_by_grpo(small, one_device):
    from tunix.rl import rl_cluster
    from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
    from tunix.rl.rollout.base_rollout import RolloutConfig

    params, cfg, tokenizer, execution = small
    params = with_lora(params, cfg, one_device)
    roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)
    cluster = rl_cluster.RLCluster(
        actor=nnx_model(params, cfg, execution),
        reference=nnx_model(params, cfg, execution),
        tokenizer=tokenizer,
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh=dict.fromkeys(roles, one_device.mesh),
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optax.adam(1e-2), eval_every_n_steps=100, max_steps=2
            ),
            rollout_config=RolloutConfig(
                max_tokens_to_generate=8, max_prompt_length=32, kv_cache_size=64, temperature=1.0
            ),
        ),
    )
    written = []

    def reward(prompts, completions, **_):
        written.extend(completions)
        return [float(len(text.encode())) for text in completions]

    learner = GRPOLearner(cluster, GRPOConfig(num_generations=4, beta=0.04), [reward])
    learner.train([{"prompts": np.array(["Name a prime.", "Say hello."])}] * 2)
    assert len(written) == 16
    assert len(set(written)) > 2
    actor = cluster.actor_trainer.model
    assert changed(actor, params) == paths_of(actor, nnx.LoRAParam)


def test_tunix_samples_what_our_sampler_samples(small):
    from tunix.generate import sampler

    params, cfg, tokenizer, execution = small
    sizes = sampler.CacheConfig(64, cfg.layers, cfg.kv_heads, cfg.head_size)
    theirs = sampler.Sampler(nnx_model(params, cfg, execution), tokenizer, sizes)
    texts = ["Name a prime.", "Hello"]
    found = theirs(texts, max_generation_steps=12, max_prompt_length=32)
    prompts = [theirs.tokenize(text).tolist() for text in texts]
    stops = [tokenizer.eos_token_id]
    sampling = SamplingConfig(12, temperature=0, stop_token_ids=stops)
    ours = generate(params, cfg, prompts, execution, sampling)
    for row, (tokens, length) in enumerate(zip(found.tokens, ours.lengths, strict=True)):
        kept = length - int(ours.stopped[row])
        assert list(tokens)[:kept] == ours.tokens[row, :kept].tolist()
        assert len(set(tokens)) > 4


def test_qwix_quantises_training_and_is_told_where_it_sees_no_weights(small):
    import qwix

    params, cfg, _, execution = small
    tokens = np.arange(16, dtype=np.int32).reshape(2, 8)
    positions = np.tile(np.arange(8, dtype=np.int32), (2, 1))

    def quantised(provider, **options):
        view = nnx_model(params, cfg, execution)
        return qwix.quantize_model(view, provider, tokens, positions, **options)

    def integer_products(operations):
        rule = qwix.QtRule(
            module_path=".*", op_names=operations, weight_qtype=jnp.int8, act_qtype=jnp.int8
        )
        graph, state = nnx.split(quantised(qwix.QtProvider([rule])))
        traced = jax.make_jaxpr(lambda s: nnx.merge(graph, s)(tokens, positions)[0])(state)
        return str(traced).count("preferred_element_type=int32")

    assert integer_products(("dot_general",)) == 7  # the matrices of the layers
    assert integer_products(("dot_general", "einsum")) == 10  # attention and the head as well
    rule = qwix.QuantizationRule(module_path=".*", weight_qtype=jnp.int8)
    with pytest.raises(LayoutError, match=r"cannot see the weights.*quantize"):
        quantised(qwix.PtqProvider([rule]))
    with pytest.raises(LayoutError, match=r"embed_lora_a.*lora_specs"):
        quantised(qwix.LoraProvider(module_path=".*", rank=4, alpha=8.0), rngs=nnx.Rngs(0))
