"""Sums and norms are taken in float32 or wider, whatever the parameters are kept in."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_WIDE = jnp.float32, jnp.float64, jnp.complex64, jnp.complex128


def at_least_float32(x: jax.Array) -> jax.Array:
    """Casts 16-bit floats, integers and booleans to float32; leaves others alone.

    Args:
      x: Any array.

    Returns:
      The same values, in float32 or wider.

    Example:
      >>> at_least_float32(jnp.ones(2, jnp.bfloat16)).dtype
      dtype('float32')
    """
    return x.astype(sum_dtype(x.dtype))


def sum_dtype(dtype: Any) -> Any:
    """The dtype in which numbers of a dtype are summed: its own, or float32."""
    return dtype if dtype in _WIDE else jnp.dtype(jnp.float32)


def widest_dtype(arrays: Iterable[Any]) -> Any:
    """The dtype of numbers that belong to all of some arrays: float32 or wider.

    Example:
      >>> widest_dtype([jnp.ones(2, jnp.bfloat16), jnp.ones(3)])
      dtype('float32')
    """
    dtypes = (sum_dtype(jax.typeof(x).dtype) for x in arrays)
    return max(dtypes, key=lambda dtype: jnp.finfo(dtype).bits)


def wide_dot(
    x: jax.Array,
    y: jax.Array,
    contracted: tuple[int, int] = (1, 0),
    precision: lax.Precision = lax.Precision.HIGHEST,
) -> jax.Array:
    """A product of matrices whose sums are taken in float32 or wider.

    Args:
      x: An array.
      y: Another of the same dtype.
      contracted: The axis of each that is summed over.
      precision: Of the numbers that are multiplied. Accelerators round those of float32
        unless it is the highest.

    Returns:
      What `jax.lax.dot_general` does, in float32 or wider.

    Example:
      >>> wide_dot(jnp.array([[1.0, 2.0]]), jnp.array([[3.0], [4.0]])).tolist()
      [[11.0]]
    """
    product: jax.Array = lax.dot_general(
        x,
        y,
        (((contracted[0],), (contracted[1],)), ((), ())),
        precision=precision,
        preferred_element_type=sum_dtype(x.dtype),
    )
    return product
