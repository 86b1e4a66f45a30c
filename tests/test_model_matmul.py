"""The product of the layers in both number formats, forward and backward, and in 8 bits."""

import jax
import ml_dtypes
import numpy as np
import pytest

from gram_jax.errors import LayoutError
from gram_jax.model.matmul import matmul, quantize


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


def rounded(x, axis, dtype):
    """(values in float64, scale) of x by the definition, one scale over `axis`."""
    x = np.asarray(x, np.float32)
    most = np.float32(127 if dtype == "int8" else 448)
    largest = np.abs(x).max(axis, keepdims=True)
    eight = np.rint if dtype == "int8" else lambda v: v.astype(ml_dtypes.float8_e4m3fn)
    return eight(x * (most / largest)).astype(np.float64), (largest / most).astype(np.float64)


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_a_product_in_8_bits_is_that_of_rounded_tokens_and_channels(dtype, compute):
    x, w, _ = operands(compute)
    found = matmul(x, quantize(w, (0, 1), dtype), 2)
    (rows, per_token), (columns, per_channel) = (
        rounded(np.asarray(part, np.float32).reshape(*shape), axis, dtype)
        for part, shape, axis in ((x, (2, 8, 48), 2), (w, (48, 24), 0))
    )
    assert found.dtype == compute and found.shape == (2, 8, 24)
    tolerance = 1e-6 if compute == "float32" else 2**-8
    right = (rows @ columns) * per_token * per_channel
    np.testing.assert_allclose(np.asarray(found, np.float64), right, rtol=tolerance, atol=1e-5)


@pytest.mark.parametrize(("dtype", "steps"), [("int8", 127), ("float8_e4m3fn", 16)])
def test_a_product_in_8_bits_is_near_the_exact_one(dtype, steps):
    x, w, _ = operands("float32")
    found, exact = matmul(x, quantize(w, (0, 1), dtype), 2), matmul(x, w, 2)
    # Each of the 48 terms has two roundings, of at most half a step of the largest value.
    largest = np.abs(x).max((2, 3))[..., None] * np.abs(w).max((0, 1))
    assert (np.abs(found - exact) <= 48 * largest / steps).all()
    assert np.std(found - exact) < 2 / steps * np.std(exact)


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
def test_the_result_of_a_token_does_not_depend_on_the_others(dtype):
    x, w, _ = operands("float32")
    eight = quantize(w, (0, 1), dtype)
    x = x.at[1, 3].set(0)
    alone = matmul(x, eight, 2)
    others = matmul(x.at[0].mul(1e3), eight, 2)
    np.testing.assert_array_equal(alone[1], others[1])
    assert not np.asarray(alone[1, 3]).any()


def test_products_in_8_bits_refuse_gradients():
    x, w, _ = operands("float32")
    eight = quantize(w, (0, 1), "int8")
    with pytest.raises(LayoutError, match="no gradient"):
        jax.grad(lambda x: matmul(x, eight, 2).sum())(x)


@pytest.mark.parametrize(("dtype", "of"), [("int8", "i8"), ("float8_e4m3fn", "f8E4M3FN")])
def test_both_operands_of_a_product_in_8_bits_have_8_bits(dtype, of):
    x, w, _ = operands("bfloat16")
    text = jax.jit(matmul, static_argnums=2).lower(x, quantize(w, (0, 1), dtype), 2).as_text()
    (dot,) = [line for line in text.splitlines() if "dot_general" in line]
    assert dot.count(f"x{of}>") == 2
