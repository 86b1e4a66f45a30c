"""Both attention back ends against the definition."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gram_jax.model.attention import attention

# Several blocks and a rest, documents across block borders, padding at the end of one row.
T, B, N, K, H = 300, 2, 4, 2, 8


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(B, T, n, H)).astype(np.float32) for n in (N, K, K))
    segments = np.ones((B, T), np.int32)
    segments[0, 100:] = 2
    segments[1, 130:200], segments[1, 200:] = 2, 0
    weight = rng.normal(size=(B, T, N, H)).astype(np.float32)
    return q, k, v, segments, weight


def by_definition(q, k, v, segments):
    out = np.zeros_like(q, dtype=np.float64)
    for b in range(B):
        seen = (segments[b][:, None] == segments[b]) & np.tri(T, dtype=bool)
        for n in range(N):
            scores = q[b, :, n] @ k[b, :, n // (N // K)].T.astype(np.float64) / np.sqrt(H)
            weights = np.where(seen, np.exp(scores - scores.max(-1, keepdims=True)), 0)
            out[b, :, n] = weights / weights.sum(-1, keepdims=True) @ v[b, :, n // (N // K)]
    return out


@pytest.mark.parametrize("backend", ["xla", "blocked"])
def test_attention_is_its_definition(backend, inputs, execution):
    q, k, v, segments, _ = inputs
    execution = dataclasses.replace(execution, attention=backend)
    got = attention(q, k, v, segments, execution)
    np.testing.assert_allclose(got, by_definition(q, k, v, segments), atol=1e-5)


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_blocked_and_xla_agree_forward_and_backward(compute_dtype, inputs, execution):
    q, k, v, segments, weight = inputs

    def result(backend):
        def loss(q, k, v):
            out = attention(q, k, v, segments, dataclasses.replace(execution, attention=backend))
            assert out.dtype == compute_dtype
            return jnp.sum(out.astype(jnp.float32) * weight)

        cast = [jnp.asarray(x, compute_dtype) for x in (q, k, v)]
        return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*cast)

    tolerance = 1e-4 if compute_dtype == "float32" else 0.2
    (loss_a, grads_a), (loss_b, grads_b) = result("xla"), result("blocked")
    np.testing.assert_allclose(loss_a, loss_b, atol=10 * tolerance)
    for a, b in zip(grads_a, grads_b, strict=True):
        assert np.isfinite(a.astype(jnp.float32)).all()
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), atol=tolerance)
