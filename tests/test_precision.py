"""Products that are as exact as their operands, on every platform."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcn_jax import precision
from pcn_jax.precision import full_dot


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
    found = full_dot(x, y)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, in_float64(x, y), rtol=0, atol=1e-4)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.vmap])
def test_where_there_is_a_gpu_the_cpu_computes_as_ever(
    wrap: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_has_tf32", lambda: True)
    x, y = matrices(jnp.float32)
    given = (x[None], y[None]) if wrap is jax.vmap else (x, y)
    found = wrap(full_dot)(*given).reshape(8, 6)
    np.testing.assert_allclose(found, in_float64(x, y), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("platform", "splits"), [("cuda", True), ("cpu", False)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_only_products_of_float32_are_split_and_only_on_a_gpu(
    platform: str, splits: bool, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_has_tf32", lambda: True)
    traced = jax.jit(full_dot).trace(*matrices(dtype))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("algorithm" in text) == (splits and dtype == jnp.float32)
    assert text.count("dot_general") == 1  # the other one is not even compiled
