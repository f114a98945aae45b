"""Poolings with a type, an average in one dtype, and a maximum that is fast on CPU.

flax's poolings carry no types, its `avg_pool` divides by an integer array, an error
where `jax_numpy_dtype_promotion` is strict, and the derivative of its `max_pool` takes
XLA longer on CPU than all the rest of a small network.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

_max_pool: Callable[..., jax.Array] = nn.max_pool
_pool: Callable[..., jax.Array] = nn.pool


def max_pool(
    x: jax.Array,
    window: tuple[int, int],
    strides: tuple[int, int],
    padding: str | tuple[tuple[int, int], ...] = "VALID",
) -> jax.Array:
    """Maxima of windows, as flax's; the first of equal numbers has the gradient.

    Args:
      x: `[B, H, W, channels]`.
      window: Height and width of a window.
      strides: Distances of windows. Windows that touch without overlapping are fast.
      padding: As in flax.

    Returns:
      `[B, height, width, channels]`.

    Example:
      >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), (2, 2), (2, 2))[0, :, :, 0]
      Array([[ 5.,  7.],
             [13., 15.]], dtype=float32)
    """
    if window != strides or padding != "VALID":
        return _max_pool(x, window, strides, padding)
    batch, *size, channels = x.shape
    height, width = (side // by for side, by in zip(size, window, strict=True))
    x = x[:, : height * window[0], : width * window[1]]
    x = x.reshape(batch, height, window[0], width, window[1], channels)
    places = [x[:, :, i, :, j] for i in range(window[0]) for j in range(window[1])]
    return functools.reduce(_larger, places)


def avg_pool(
    x: jax.Array, window: tuple[int, int], strides: tuple[int, int]
) -> jax.Array:
    """Averages over windows of `[B, H, W, channels]`, without padding."""
    total = _pool(x, 0.0, jax.lax.add, window, strides, "VALID")
    return total / (window[0] * window[1])


def _larger(a: jax.Array, b: jax.Array) -> jax.Array:
    """The larger number, `a` of two equal ones, NaN if one is NaN."""
    return jnp.where((a >= b) | jnp.isnan(a), a, b)
