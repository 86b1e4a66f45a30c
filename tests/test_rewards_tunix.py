"""Our rewards in the real Tunix: GRPO trains a tiny policy on a CPU. Skipped where Tunix is not installed."""

import jax
import numpy as np
import optax
import pytest

from gram_jax.interop.models import load_tokenizer
from gram_jax.judge.messages import Message
from gram_jax.rewards.forms import RewardForm
from gram_jax.rewards.messages import prompt_of
from gram_jax.rewards.tunix import tunix_reward
from gram_jax.scoring.scorer import Scorer
from gram_jax.sharding import make_placement

pytestmark = pytest.mark.slow

pytest.importorskip("tunix")
nnx = pytest.importorskip("flax.nnx")

GROUP, STEPS = 4, 2
QUESTIONS = ("Name a prime.", "Say hello.")


def tiny_policy(tokenizer, mesh):
    """Qwen2 of two layers; weights are drawn here because Tunix' own start is zeros."""
    from tunix.models.qwen2 import model as qwen2

    config = qwen2.ModelConfig(
        num_layers=2,
        vocab_size=len(tokenizer),
        embed_dim=32,
        hidden_dim=48,
        num_heads=4,
        head_dim=8,
        num_kv_heads=2,
        rope_theta=10_000,
        norm_eps=1e-6,
        use_tied_embedding=True,
    )
    model = qwen2.Qwen2(config, rngs=nnx.Rngs(0))
    random = np.random.default_rng(0)
    with mesh:
        nnx.update(
            model,
            jax.tree.map(
                lambda w: (
                    jax.numpy.asarray(random.normal(0, 0.1, w.shape), w.dtype) if w.ndim > 1 else w
                ),
                nnx.state(model),
            ),
        )
    return model


def test_grpo_trains_on_win_rates_in_the_group():
    from tunix.rl import rl_cluster
    from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
    from tunix.rl.rollout.base_rollout import RolloutConfig

    placement = make_placement({}, devices=jax.devices()[:1])
    with pytest.warns(UserWarning, match=r"no judge.json"):
        judge = Scorer.load("tiny-random", placement=placement, max_length=256)
    tokenizer = load_tokenizer("tiny-random")
    tokenizer.bos_token = "<|im_start|>"  # Tunix asks for one
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    cluster = rl_cluster.RLCluster(
        actor=tiny_policy(tokenizer, mesh),
        reference=tiny_policy(tokenizer, mesh),
        tokenizer=tokenizer,
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh=dict.fromkeys(
                (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT), mesh
            ),
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optax.adam(1e-3), eval_every_n_steps=100, max_steps=STEPS
            ),
            rollout_config=RolloutConfig(
                max_tokens_to_generate=8, max_prompt_length=64, kv_cache_size=128, temperature=1.0
            ),
        ),
    )
    function = tunix_reward(judge, RewardForm("group", group_size=GROUP))
    seen, asked = [], set()

    def reward(prompts, completions, **columns):
        found = function(prompts=prompts, completions=completions, **columns)
        seen.append(found)
        asked.update(prompt_of(str(prompt)) for prompt in prompts)
        return found

    reward.__name__ = function.__name__
    learner = GRPOLearner(cluster, GRPOConfig(num_generations=GROUP, beta=0.04), [reward])
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        for question in QUESTIONS
    ]
    learner.train([{"prompts": np.array(prompts)}] * STEPS)
    assert asked == {(Message("user", question),) for question in QUESTIONS}
    assert len(seen) == STEPS
    for rewards in seen:
        assert len(rewards) == GROUP * len(QUESTIONS)
        assert np.mean(rewards) == pytest.approx(0.5, abs=1e-5)
        assert np.std(rewards) > 0
