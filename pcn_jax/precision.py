"""Sums and norms are taken in float32 or wider, whatever the parameters are kept in."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def at_least_float32(x: jax.Array) -> jax.Array:
    """Casts 16-bit floats, integers and booleans to float32; leaves wider floats alone.

    Args:
      x: Any real array.

    Returns:
      The same values, in float32 or float64.

    Example:
      >>> at_least_float32(jnp.ones(2, jnp.bfloat16)).dtype
      dtype('float32')
    """
    return x.astype(sum_dtype(x.dtype))


def sum_dtype(dtype: Any) -> Any:
    """The dtype in which numbers of a dtype are summed: float64, or float32."""
    return dtype if dtype in (jnp.float32, jnp.float64) else jnp.dtype(jnp.float32)


def full_dot(
    x: jax.Array, y: jax.Array, contracted: tuple[int, int] = (1, 0)
) -> jax.Array:
    """A product of matrices that is as exact as they are.

    An accelerator rounds the numbers that it multiplies, unless it is told not to. GPUs
    that round to 19 bits (TF32) take three such products instead, which are as good as
    one of float32 and faster there.

    Args:
      x: An array.
      y: Another of the same dtype.
      contracted: The axis of each that is summed over.

    Returns:
      What `jax.lax.dot_general` does, in float32 or wider.

    Example:
      >>> full_dot(jnp.array([[1.0, 2.0]]), jnp.array([[3.0], [4.0]])).tolist()
      [[11.0]]
    """

    def dot(x: jax.Array, y: jax.Array, *, precision: lax.PrecisionLike) -> jax.Array:
        product: jax.Array = lax.dot_general(
            x,
            y,
            (((contracted[0],), (contracted[1],)), ((), ())),
            precision=precision,
            preferred_element_type=sum_dtype(x.dtype),
        )
        return product

    exact = functools.partial(dot, precision=lax.Precision.HIGHEST)
    if x.dtype != jnp.float32 or not _has_tf32():
        return exact(x, y)
    split = functools.partial(dot, precision=lax.DotAlgorithmPreset.TF32_TF32_F32_X3)
    product: jax.Array = lax.platform_dependent(x, y, cuda=split, default=exact)
    return product


def _has_tf32() -> bool:
    """Whether there is an NVIDIA GPU, of compute capability 8 or more."""
    capability = str(getattr(jax.devices()[0], "compute_capability", ""))
    major = capability.split(".", maxsplit=1)[0]
    return jax.default_backend() == "gpu" and major.isdigit() and int(major) >= 8
