"""Policy gradients as arithmetic, by hand."""

from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax.errors import CheckpointError
from gram_jax.rl.advantages import (
    adapted_kl_coef,
    divergence_per_token,
    generalized_advantages,
    group_advantages,
    leave_one_out_advantages,
    whiten,
)
from gram_jax.rl.loop import next_kl_coef
from gram_jax.rl.objective import policy_loss, value_loss
from gram_jax.run.metrics import MetricsWriter


def test_group_advantages_have_mean_zero_and_deviation_one():
    found = group_advantages(jnp.array([[1.0, 2.0, 3.0, 2.0], [5.0, 5.0, 5.0, 5.0]]))
    assert found[0].tolist() == pytest.approx([-(2**0.5), 0, 2**0.5, 0], abs=1e-4)
    assert found[1].tolist() == [0, 0, 0, 0]  # nothing to learn from equals
    plain = group_advantages(jnp.array([[1.0, 3.0]]), scale=False)
    assert plain.tolist() == [[-1, 1]]


@pytest.mark.parametrize("n", [3, 7, 8, 16])
@pytest.mark.parametrize("reward", [0.1, 0.3, 7.7, 1234.56])
def test_equal_rewards_teach_nothing_whatever_their_mean_rounds_to(n, reward):
    equal = jnp.full((2, n), reward, jnp.float32)
    assert not group_advantages(equal).any()
    assert not leave_one_out_advantages(equal).any()


def test_leave_one_out_is_the_reward_less_the_others_mean():
    rewards = np.random.default_rng(0).normal(size=(3, 5))
    others = (rewards.sum(1, keepdims=True) - rewards) / 4
    np.testing.assert_allclose(
        leave_one_out_advantages(jnp.array(rewards)), rewards - others, atol=1e-6
    )


def test_generalized_advantages_by_hand():
    rewards = jnp.array([[0.0, 0.0, 1.0, 9.0]])
    values = jnp.array([[0.5, 0.4, 0.3, 9.0]])
    mask = jnp.array([[1.0, 1.0, 1.0, 0.0]])  # the last column was not written
    found, returns = generalized_advantages(rewards, values, mask, gamma=0.9, gae_lambda=0.8)
    d2 = 1 - 0.3
    d1 = 0.9 * 0.3 - 0.4 + 0.72 * d2
    d0 = 0.9 * 0.4 - 0.5 + 0.72 * d1
    assert found[0].tolist() == pytest.approx([d0, d1, d2, 0])
    assert returns[0].tolist() == pytest.approx([d0 + 0.5, d1 + 0.4, 1.0, 0])


def test_with_full_traces_advantages_are_returns_less_values():
    draw = np.random.default_rng(1)
    rewards, values = draw.normal(size=(2, 4, 6))
    found, returns = generalized_advantages(
        jnp.array(rewards), jnp.array(values), jnp.ones((4, 6)), gamma=1.0, gae_lambda=1.0
    )
    to_go = rewards[:, ::-1].cumsum(1)[:, ::-1]
    np.testing.assert_allclose(found, to_go - values, atol=1e-5)
    np.testing.assert_allclose(returns, to_go, atol=1e-5)


def test_columns_before_the_response_change_nothing():
    rewards, values = jnp.array([[7.0, 0.2, 1.0]]), jnp.array([[7.0, 0.1, 0.3]])
    late, _ = generalized_advantages(
        rewards, values, jnp.array([[0.0, 1.0, 1.0]]), gamma=1.0, gae_lambda=0.9
    )
    alone, _ = generalized_advantages(
        rewards[:, 1:], values[:, 1:], jnp.ones((1, 2)), gamma=1.0, gae_lambda=0.9
    )
    assert late[0, 0] == 0 and late[0, 1:].tolist() == pytest.approx(alone[0].tolist())


def test_whitening_counts_only_what_was_written():
    mask = jnp.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    found = whiten(jnp.array([[1.0, 2.0, 50.0], [3.0, 4.0, -9.0]]), mask)
    assert float(found.sum()) == pytest.approx(0, abs=1e-5)
    assert float((found**2).sum() / 4) == pytest.approx(1, abs=1e-4)
    assert found[:, 2].tolist() == [0, 0]


def test_divergences_agree_in_expectation_and_are_never_negative_where_they_should_not_be():
    p, r = jnp.array([0.5, 0.3, 0.2]), jnp.array([0.2, 0.3, 0.5])
    true = float((p * jnp.log(p / r)).sum())
    means = {
        kind: float((p * divergence_per_token(jnp.log(p), jnp.log(r), kind)).sum())
        for kind in ("k1", "k2", "k3")
    }
    assert means["k1"] == pytest.approx(true, rel=1e-5) == means["k3"]
    assert (divergence_per_token(jnp.log(p), jnp.log(r), "k3") >= 0).all()
    assert means["k2"] == pytest.approx(float((p * jnp.log(p / r) ** 2).sum() / 2), rel=1e-5)


def test_the_weight_of_the_divergence_is_steered_by_at_most_a_fiftieth():
    for apart, factor in ((0.0, 0.98), (4.5, 0.99), (5.0, 1.0), (5.5, 1.01), (5e6, 1.02)):
        assert adapted_kl_coef(0.3, apart, 5.0) == pytest.approx(0.3 * factor)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.5, 2.0, -2.4, 0.0),  # held: no more reward for going further
        (0.5, 2.0, -1.0, -1.0),
        (0.5, -2.0, 1.6, 0.0),
        (1.5, -2.0, 3.0, 3.0),
    ],
)
def test_the_clipped_loss_and_its_gradient(ratio, advantage, loss, gradient):
    def at(log):
        return policy_loss(log, jnp.float32(0), jnp.float32(advantage), 0.2).loss

    log = jnp.log(jnp.float32(ratio))
    assert float(at(log)) == pytest.approx(loss)
    assert float(jax.grad(at)(log)) == pytest.approx(gradient, abs=1e-6)
    assert bool(policy_loss(log, 0.0, advantage, 0.2).clipped) == (gradient == 0)


def test_a_value_that_moved_too_far_gets_the_worse_of_both_errors():
    found = value_loss(jnp.array([1.0, 0.1]), jnp.zeros(2), jnp.array([1.0, 1.0]), 0.2)
    assert found.tolist() == pytest.approx([0.5 * 0.64, 0.5 * 0.81])


def test_lost_metrics_of_a_steered_divergence_are_one_error_on_every_process():
    """The processes other than the first have no file."""
    run = SimpleNamespace(directory=SimpleNamespace(path=Path("run")))
    outputs = SimpleNamespace(run=run, metrics=MetricsWriter(None, [{"step": 1, "kl": 0.5}]))
    algorithm = SimpleNamespace(kl_target=1.0, kl_coef=0.1)
    assert next_kl_coef(algorithm, outputs, 0) == 0.1
    with pytest.raises(CheckpointError, match=r"run/metrics\.jsonl has no kl_weight"):
        next_kl_coef(algorithm, outputs, 1)
