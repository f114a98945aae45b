"""Two halves of each class: their noise is independent, and what they share is true."""

import chex
import jax
import jax.numpy as jnp

from pcn_jax.checks import check_labels
from pcn_jax.counts import at_least_one
from pcn_jax.geometry import class_alignment
from pcn_jax.weights import ClassStatistics


def split_halves(labels: jax.Array) -> jax.Array:
    """Every other example of a class goes to its second half.

    Args:
      labels: Class of each example, integers `[B]`; below zero for padding.

    Returns:
      `2 l` or `2 l + 1` for an example of class `l`, int32 `[B]`; padding is left as it
      is.

    Raises:
      ValueError: If labels are not integers `[B]`.

    Example:
      >>> split_halves(jnp.array([1, 0, 1, 1, -1])).tolist()
      [2, 0, 3, 2, -1]
    """
    labels = check_labels(labels, ndim=1)
    order = jnp.argsort(labels, stable=True)
    place = jnp.arange(len(labels), dtype=labels.dtype)
    is_first = jnp.diff(labels[order], prepend=labels[order[:1]] - 1) != 0
    first = jax.lax.cummax(jnp.where(is_first, place, 0))
    rank = jnp.zeros_like(labels).at[order].set(place - first)
    within = jnp.minimum(labels, jnp.iinfo(labels.dtype).max // 2)  # no overflow
    return jnp.where(labels < 0, labels, 2 * within + rank % 2)


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
    shares = at_least_one(counts).astype(products.dtype)
    shares /= at_least_one(counts.sum()).astype(products.dtype)
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
