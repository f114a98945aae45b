"""Poolings: what flax's give, and a gradient that is the same."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pcn_jax.models.pooling import avg_pool, max_pool


def images(*shape: int, seed: int = 0) -> jax.Array:
    """Rounded, so that many numbers of a window are equal."""
    values = np.random.default_rng(seed).normal(size=shape).round(1)
    return jnp.asarray(np.maximum(values, 0), jnp.float32)


@pytest.mark.parametrize("shape", [(3, 8, 6, 2), (2, 7, 9, 3), (1, 2, 2, 1)])
@pytest.mark.parametrize("window", [(2, 2), (1, 2), (2, 1)])
def test_max_pool_and_its_gradient(
    shape: tuple[int, ...], window: tuple[int, int]
) -> None:
    x = images(*shape)

    def pooled_by(pool: Any) -> Any:
        y, pullback = jax.vjp(lambda x: pool(x, window, window), x)
        return y, pullback(images(*y.shape, seed=1))[0]

    ours, theirs = pooled_by(max_pool), pooled_by(nn.max_pool)
    for found, expected in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_windows_that_overlap(strides: tuple[int, int]) -> None:
    x = images(2, 7, 7, 3)
    padding = ((1, 1), (1, 1))
    found = max_pool(x, (3, 3), strides, padding)
    expected = nn.max_pool(x, (3, 3), strides, padding)
    np.testing.assert_array_equal(found, expected)


def test_nan_is_kept_wherever_it_is() -> None:
    for place in range(4):
        x = jnp.zeros(4).at[place].set(jnp.nan).reshape(1, 2, 2, 1)
        assert jnp.isnan(max_pool(x, (2, 2), (2, 2))).all()


def test_avg_pool_keeps_the_dtype() -> None:
    x = images(2, 4, 4, 3).astype(jnp.bfloat16)
    y = avg_pool(x, (2, 2), (2, 2))
    assert y.dtype == jnp.bfloat16
    expected = x.reshape(2, 2, 2, 2, 2, 3).astype(jnp.float32).mean(axis=(2, 4))
    np.testing.assert_allclose(y.astype(jnp.float32), expected, atol=0.01)
