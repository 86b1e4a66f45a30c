"""The product of the layers in both number formats, forward and backward."""

import jax
import numpy as np
import pytest

from gram_jax.model.matmul import matmul


def operands(dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    x, w, d_y = (
        jax.random.normal(key, shape)
        for key, shape in zip(keys, [(2, 8, 3, 16), (3, 16, 24), (2, 8, 24)], strict=True)
    )
    return x.astype(dtype), w.astype(dtype), d_y.astype(dtype)


@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 1e-5), ("bfloat16", 2**-8)])
def test_a_product_and_its_gradients_are_those_of_numpy_rounded_once(dtype, rounding):
    x, w, d_y = operands(dtype)
    y, back = jax.vjp(lambda x, w: matmul(x, w, 2), x, w)
    exact = [np.asarray(v, np.float64) for v in (x, w, d_y)]
    expected = [
        np.einsum(*args)
        for args in [
            ("btgh,ghd->btd", exact[0], exact[1]),
            ("btd,ghd->btgh", exact[2], exact[1]),
            ("btgh,btd->ghd", exact[0], exact[2]),
        ]
    ]
    for found, right in zip([y, *back(d_y)], expected, strict=True):
        assert found.dtype == dtype
        # one rounding of the sum; sums in bfloat16 would miss this several times over
        np.testing.assert_allclose(np.asarray(found, np.float64), right, rtol=rounding, atol=1e-5)


@pytest.mark.parametrize(("platform", "sums"), [("cpu", "f32"), ("tpu", "bf16"), ("cuda", "bf16")])
def test_only_the_cpu_is_asked_for_sums_in_float32(platform, sums):
    x, w, _ = operands("bfloat16")
    traced = jax.jit(matmul, static_argnums=2).trace(x, w, 2)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    (dot,) = [line for line in text.splitlines() if "dot_general" in line]
    assert dot.rstrip().endswith(f"{sums}>")
