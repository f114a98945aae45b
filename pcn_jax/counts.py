"""Which examples are of which class, how many, and what is divided by that."""

from typing import Any

import jax
import jax.numpy as jnp


def at_least_one(count: jax.Array) -> jax.Array:
    """The count, or 1 in place of 0, where something is divided by it."""
    return jnp.maximum(count, 1)


def inverse_shares(counts: jax.Array, dtype: Any) -> jax.Array:
    """`B / B_l`, `[C]`; for an absent class `B`, where it multiplies nothing."""
    counts = counts.astype(dtype)
    return counts.sum() / jnp.where(counts == 0, 1, counts)


def members(labels: jax.Array, num_classes: int) -> jax.Array:
    """Whether an example is of a class: booleans `[C, B]`."""
    return jnp.arange(num_classes, dtype=labels.dtype)[:, None] == labels[None, :]


def mean_loss(losses: jax.Array, counts: jax.Array) -> jax.Array:
    """Mean loss of a batch, from the mean loss `[C]` and the examples of each class."""
    counts = counts.astype(losses.dtype)
    return jnp.sum(losses * counts) / at_least_one(counts.sum())
