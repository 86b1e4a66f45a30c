"""From samples to what is learned from, by loops over tokens: columns, rewards, advantages, the loss of a batch."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax.batch import Sequences
from gram_jax.model.generate import Samples
from gram_jax.recipes.rl import AlgorithmConfig
from gram_jax.rl import objective
from gram_jax.rl.objective import VALUE, RolloutBatch, TokenStats, rollout_objective
from gram_jax.rl.rollout import make_rollout
from gram_jax.sharding import make_placement

WIDTH = 8
PROMPTS = [np.array([11, 12, 13]), np.array([21])]
# Two responses to each: one ends by its stop token 2, one is cut off, one ends at once, one in the middle.
WRITTEN = [[31, 32, 2], [41, 42, 43], [2], [51, 2]]
STOPPED = [True, False, True, True]
REWARDS = np.array([0.9, 0.3, 0.2, 0.6], np.float32)
DRAW = np.random.default_rng(0)
NOW, START, VALUES, ENTROPY = (DRAW.normal(size=(4, WIDTH)).astype(np.float32) for _ in range(4))


def samples() -> Samples:
    tokens = np.zeros((4, 3), np.int32)
    for row, written in enumerate(WRITTEN):
        tokens[row, : len(written)] = written
    lengths = np.array([len(written) for written in WRITTEN], np.int32)
    return Samples(tokens, np.zeros((4, 3), np.float32), lengths, np.array(STOPPED))


ALGORITHM = AlgorithmConfig(
    kind="ppo",
    num_epochs=1,
    num_mini_batches=1,
    gradient_accumulation_steps=1,
    clip_range=0.2,
    kl_coef=0.05,
    gamma=1.0,
    gae_lambda=0.95,
    vf_coef=0.5,
    clip_range_vf=0.2,
    ent_coef=0.0,
)


def rollout(**settings):
    return make_rollout(
        replace(ALGORITHM, **settings),
        PROMPTS,
        samples(),
        REWARDS,
        width=WIDTH,
        policy=lambda seqs, targets: TokenStats(*map(jnp.asarray, (NOW, ENTROPY, VALUES))),
        reference=lambda seqs, targets: TokenStats(*map(jnp.asarray, (START, ENTROPY, VALUES))),
        place=make_placement({}, devices=jax.devices()[:1]),
    )


def columns(row: int) -> range:
    """In which a row's written tokens are predicted: the first by the prompt's last token."""
    first = len(PROMPTS[row // 2]) - 1
    return range(first, first + len(WRITTEN[row]))


def test_every_written_token_is_the_target_of_the_column_before_it():
    batch, figures = rollout(kind="grpo")
    for row, written in enumerate(WRITTEN):
        whole = [*PROMPTS[row // 2], *written]
        assert batch.seqs.tokens[row].tolist() == whole + [0] * (WIDTH - len(whole))
        assert batch.seqs.segments[row].tolist() == [1] * len(whole) + [0] * (WIDTH - len(whole))
        assert np.flatnonzero(batch.mask[row]).tolist() == list(columns(row))
        assert [int(batch.targets[row, at]) for at in columns(row)] == written
        assert np.flatnonzero(batch.old[row]).tolist() == list(columns(row))
        for at in columns(row):
            assert (batch.old[row, at], batch.reference[row, at]) == (NOW[row, at], START[row, at])
    apart = [sum(NOW[row, at] - START[row, at] for at in columns(row)) for row in range(4)]
    entropy = [ENTROPY[row, at] for row in range(4) for at in columns(row)]
    expected = {
        "reward": 0.5, "min_reward": 0.2, "max_reward": 0.9, "length": 9 / 4, "stopped": 3 / 4, "num_tokens": 9,
        "kl": np.mean(apart), "entropy": np.mean(entropy), "reward_std": np.std(REWARDS),
    }  # fmt: skip
    assert figures == pytest.approx(expected, abs=1e-6)


def test_a_ppo_token_earns_its_divergence_and_the_last_one_the_reward():
    batch, _ = rollout(kind="ppo", kl_coef=0.1, gamma=0.9, gae_lambda=0.8)
    advantages, returns = np.zeros((4, WIDTH)), np.zeros((4, WIDTH))
    for row in range(4):
        later, following = 0.0, 0.0  # cut off or ended: nothing comes behind the last token
        for at in reversed(columns(row)):
            earned = -0.1 * (NOW[row, at] - START[row, at])
            earned += REWARDS[row] if at == columns(row)[-1] else 0
            later = earned + 0.9 * following - VALUES[row, at] + 0.9 * 0.8 * later
            following = VALUES[row, at]
            advantages[row, at], returns[row, at] = later, later + VALUES[row, at]
    np.testing.assert_allclose(batch.returns, returns, atol=1e-5)
    written = np.asarray(batch.mask) > 0
    mean, deviation = advantages[written].mean(), advantages[written].std()
    expected = np.where(written, (advantages - mean) / deviation, 0)
    np.testing.assert_allclose(batch.advantages, expected, atol=1e-4)
    np.testing.assert_allclose(batch.values, np.where(written, VALUES, 0))


def test_rloo_takes_the_divergence_of_a_response_off_its_reward():
    batch, _ = rollout(kind="rloo", kl_coef=0.1)
    apart = [sum(NOW[row, at] - START[row, at] for at in columns(row)) for row in range(4)]
    whole = REWARDS - 0.1 * np.array(apart)
    for row in range(4):
        expected = whole[row] - whole[row ^ 1]  # the group's other one
        for at in range(WIDTH):
            here = expected if at in columns(row) else 0
            assert float(batch.advantages[row, at]) == pytest.approx(here, abs=1e-6)
    assert not batch.returns.any()


def test_grpo_leaves_the_divergence_to_the_loss():
    batch, _ = rollout(kind="grpo", kl_coef=5.0)
    for row, sign in enumerate((1, -1, -1, 1)):
        found = [float(batch.advantages[row, at]) for at in range(WIDTH)]
        expected = [sign * (at in columns(row)) for at in range(WIDTH)]
        assert found == pytest.approx(expected, abs=1e-4)


def test_the_loss_of_a_batch_is_a_sum_over_written_tokens(monkeypatch):
    """Clipping, the k3 divergence, the critic's clipped error and the entropy, each by hand; padding counts nothing."""
    batch, _ = rollout(kind="ppo", kl_coef=0.1)
    moved = NOW + DRAW.normal(size=NOW.shape).astype(np.float32) * 0.3
    worth = VALUES + DRAW.normal(size=NOW.shape).astype(np.float32) * 0.3
    seen = TokenStats(*map(jnp.asarray, (moved, ENTROPY, worth)))
    monkeypatch.setattr(objective, "token_stats", lambda *_, **__: seen)
    algorithm = replace(ALGORITHM, kind="grpo", kl_coef=0.3, vf_coef=0.7, ent_coef=0.05)
    loss = rollout_objective(None, None, temperature=1.0, chunk_size=1, algorithm=algorithm)
    total, metrics = loss({VALUE: jnp.zeros(1)}, batch)
    parts, entropy = {"policy_loss": 0.0, "kl_in_loss": 0.0, "value_loss": 0.0, "clipped": 0}, 0.0
    for row in range(4):
        for at in columns(row):
            advantage, returned = float(batch.advantages[row, at]), float(batch.returns[row, at])
            ratio = np.exp(moved[row, at] - NOW[row, at])
            held = min(max(ratio, 0.8), 1.2)
            parts["policy_loss"] -= min(ratio * advantage, held * advantage)
            parts["clipped"] += held * advantage < ratio * advantage
            gap = START[row, at] - moved[row, at]
            parts["kl_in_loss"] += np.exp(gap) - 1 - gap
            old, new = VALUES[row, at], worth[row, at]
            near = min(max(new, old - 0.2), old + 0.2)
            parts["value_loss"] += max((new - returned) ** 2, (near - returned) ** 2) / 2
            entropy += ENTROPY[row, at]
    for name, expected in parts.items():
        assert metrics[name] == (pytest.approx(expected, abs=1e-4), 9), name
    assert parts["clipped"] > 0
    whole = parts["policy_loss"] + 0.3 * parts["kl_in_loss"] + 0.7 * parts["value_loss"]
    assert float(total) == pytest.approx(whole - 0.05 * entropy, abs=1e-4)
    without, found = loss({}, batch)  # no critic, no loss of it
    assert "value_loss" not in found
    assert float(without) == pytest.approx(float(total) - 0.7 * parts["value_loss"], abs=1e-4)


def test_columns_that_nobody_wrote_cannot_spoil_the_loss(monkeypatch):
    """A token that the model holds impossible makes no infinity where it was not written."""
    seqs = Sequences(*(jnp.zeros((1, 2), jnp.int32),) * 3)
    mask, zero = jnp.array([[1.0, 0.0]]), jnp.zeros((1, 2))
    batch = RolloutBatch(seqs, seqs.tokens, mask, zero, zero, mask, zero, zero)
    seen = TokenStats(jnp.array([[0.0, -1e9]]), zero, zero)
    monkeypatch.setattr(objective, "token_stats", lambda *_, **__: seen)
    algorithm = replace(ALGORITHM, kind="grpo", kl_coef=1.0, vf_coef=0.0)
    total, _ = rollout_objective(None, None, temperature=1.0, chunk_size=1, algorithm=algorithm)(
        {}, batch
    )
    assert float(total) == -1
