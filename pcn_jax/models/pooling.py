"""Poolings with a type, and an average that keeps to one dtype.

flax's poolings carry no types, and its `avg_pool` divides by an integer array, an
error where `jax_numpy_dtype_promotion` is strict.
"""

from collections.abc import Callable

import jax
from flax import linen as nn

max_pool: Callable[..., jax.Array] = nn.max_pool
_pool: Callable[..., jax.Array] = nn.pool


def avg_pool(
    x: jax.Array, window: tuple[int, int], strides: tuple[int, int]
) -> jax.Array:
    """Averages over windows of `[B, H, W, channels]`, without padding."""
    total = _pool(x, 0.0, jax.lax.add, window, strides, "VALID")
    return total / (window[0] * window[1])
