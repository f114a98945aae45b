"""Two halves of each class: their noise is independent, and what they share is true."""

import jax
import jax.numpy as jnp

from pcn_jax.weights import ClassStatistics


def split_halves(labels: jax.Array) -> jax.Array:
    """Every other example of a class goes to its second half.

    Args:
      labels: Class of each example, integers `[B]`; below zero for padding.

    Returns:
      `2 l` or `2 l + 1` for an example of class `l`, `[B]`; padding is left as it is.

    Example:
      >>> split_halves(jnp.array([1, 0, 1, 1, -1])).tolist()
      [2, 0, 3, 2, -1]
    """
    same = labels[:, None] == labels[None, :]
    places = jnp.arange(len(labels), dtype=jnp.int32)
    earlier = places[None, :] < places[:, None]
    rank = (same & earlier).sum(axis=1, dtype=labels.dtype)
    return jnp.where(labels < 0, labels, 2 * labels + rank % 2)


def of_halves(
    norms: jax.Array, counts: jax.Array, products: jax.Array
) -> ClassStatistics:
    """Statistics of classes from those of their halves.

    Args:
      norms: Norms of the gradients of the halves, `[2C]`, those of a class together.
      counts: Their examples, int32 `[2C]`.
      products: Inner products of the two halves of each class, `[C]`.

    Returns:
      Statistics `[C]` with `squared_mean_norms`.
    """
    norms, halves = norms.reshape(-1, 2), counts.reshape(-1, 2)
    squares = jnp.square(norms).sum(axis=1) + 2 * products
    shares = jnp.maximum(halves, 1).astype(products.dtype) / jnp.maximum(
        counts.sum(), 1
    ).astype(products.dtype)
    return ClassStatistics(
        norms=jnp.sqrt(jnp.maximum(squares, 0)),
        counts=halves.sum(axis=1, dtype=counts.dtype),
        squared_mean_norms=products / shares.prod(axis=1),
    )
