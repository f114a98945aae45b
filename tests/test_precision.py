"""Sums of products are taken in float32 or wider."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pcn_jax
from pcn_jax.precision import wide_dot


def matrices(dtype: Any) -> tuple[jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0))
    shapes = (8, 512), (512, 6)
    x, y = (jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True))
    return x.astype(dtype), y.astype(dtype)


def in_float64(x: jax.Array, y: jax.Array) -> np.ndarray:
    product: np.ndarray = np.asarray(x, np.float64) @ np.asarray(y, np.float64)
    return product


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_is_exact_in_float32(dtype: Any) -> None:
    x, y = matrices(dtype)
    found = wide_dot(x, y)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, in_float64(x, y), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("asked", "taken"),
    [
        (None, "DEFAULT"),
        ("high", "HIGH"),
        ("highest", "HIGHEST"),
        (("default", "highest"), "HIGHEST"),
        ("BF16_BF16_F32", "HIGHEST"),
    ],
)
def test_pairs_are_multiplied_as_precisely_as_the_loss_multiplies(
    asked: Any, taken: str
) -> None:
    def loss(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        logits = jnp.dot(x, w, precision=asked)
        return jnp.where(y == 0, jnp.square(logits).sum(axis=1), 0)

    fused = pcn_jax.pcn_value_and_grad(loss, 2, path="fused")
    given = jnp.ones((64, 32)), jnp.ones((4, 64)), jnp.zeros(4, jnp.int32)
    lines = jax.jit(fused).lower(*given).as_text().splitlines()
    for numbers in (64, 32):  # inputs with inputs, cotangents with cotangents
        factors = f"(tensor<4x{numbers}xf32>, tensor<4x{numbers}xf32>) -> tensor<4x4x"
        (products,) = (x for x in lines if "dot_general" in x and factors in x)
        assert f"precision = [{taken}, {taken}]" in products
