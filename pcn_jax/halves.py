"""Two halves of each class: their noise is independent, and what they share is true."""

import chex
import jax
import jax.numpy as jnp

from pcn_jax.geometry import class_alignment
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
    rank = (same & earlier).sum(axis=1, dtype=jnp.float32).astype(labels.dtype)
    return jnp.where(labels < 0, labels, 2 * labels + rank % 2)


def half_products(halves: chex.ArrayTree, norms: jax.Array) -> jax.Array:
    """Inner products of the two halves of each class.

    Args:
      halves: Gradients of the halves, leaves `[2C, ...]`, those of a class together.
      norms: Their norms, `[2C]`.

    Returns:
      The products, `[C]`.
    """
    first, second = (jax.tree.map(lambda g, k=k: g[k::2], halves) for k in (0, 1))
    return class_alignment(first, second) * norms[::2] * norms[1::2]


def of_halves(halves: ClassStatistics, products: jax.Array) -> ClassStatistics:
    """Statistics of classes from those of their halves.

    Args:
      halves: Statistics of the halves, `[2C]`, those of a class together.
      products: Inner products of the two halves of each class, `[C]`.

    Returns:
      Statistics `[C]` with `squared_mean_norms`.
    """
    norms, counts = halves.norms.reshape(-1, 2), halves.counts.reshape(-1, 2)
    squares = jnp.square(norms).sum(axis=1) + 2 * products
    shares = jnp.maximum(counts, 1).astype(products.dtype)
    shares /= jnp.maximum(counts.sum(), 1).astype(products.dtype)
    gramian = halves.gramian
    if gramian is not None:
        number = len(products)
        gramian = gramian.reshape(number, 2, number, 2).sum(axis=(1, 3))
    return ClassStatistics(
        norms=jnp.sqrt(jnp.maximum(squares, 0)),
        counts=counts.sum(axis=1, dtype=counts.dtype),
        gramian=gramian,
        squared_mean_norms=products / shares.prod(axis=1),
    )
