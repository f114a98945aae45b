"""Sums over the examples of each class: what adds up exactly, batch after batch."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from pcn_jax.class_gradients import ClassValue
from pcn_jax.counts import at_least_one
from pcn_jax.precision import at_least_float32


class ClassSums(NamedTuple):
    """Sums over examples, in float32 or wider.

    Attributes:
      losses: Sum of the losses of each class, `[C]`.
      counts: Examples of each class, int32 `[C]`.
      grads: Sums of the gradients of each class, leaves `[C, *param.shape]`.
    """

    losses: jax.Array
    counts: jax.Array
    grads: chex.ArrayTree


def to_sums(value: ClassValue, class_grads: chex.ArrayTree) -> ClassSums:
    """Turns means over a batch into sums."""
    total = value.counts.sum()

    def times_total(grad: jax.Array) -> jax.Array:
        grad = at_least_float32(grad)
        return grad * total.astype(grad.dtype)

    return ClassSums(
        losses=value.losses * value.counts.astype(value.losses.dtype),
        counts=jnp.array(value.counts),  # a copy, which may be donated
        grads=jax.tree.map(times_total, class_grads),
    )


def add(a: ClassSums, b: ClassSums) -> ClassSums:
    """Adds sums; where this is not being traced, into the memory of `a`."""
    total: ClassSums = _add(a, b)
    return total


def to_means(
    sums: ClassSums, like: chex.ArrayTree, aux: Any = None
) -> tuple[ClassValue, chex.ArrayTree]:
    """Divides once: class losses, and gradients in the dtypes of `like`."""
    total = at_least_one(sums.counts.sum())
    grads = jax.tree.map(
        lambda g, x: (g / total.astype(g.dtype)).astype(x.dtype), sums.grads, like
    )
    losses = sums.losses / at_least_one(sums.counts).astype(sums.losses.dtype)
    return ClassValue(losses, sums.counts, aux), grads


_add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b), donate_argnums=0)
