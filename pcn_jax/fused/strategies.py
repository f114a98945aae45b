"""Ways to the norms of the class gradients at one site, and from there to the sum.

Each looks at the taps of a site and finds the squared norms of the rows of its weight
gradient, `[R]`; a row is one class that the batch shows. They differ in what they pay.
"""

import jax
import jax.numpy as jnp
from jax import lax

from pcn_jax.fused.class_layout import Chunk, ClassLayout, over_chunks
from pcn_jax.fused.sites import (
    Site,
    Taps,
    lookup_factors,
    summed_gradient,
    summed_gradients,
    take_examples,
)
from pcn_jax.precision import at_least_float32, full_dot


def sum_rows(
    site: Site, taps: Taps, weights: jax.Array, layout: ClassLayout, at_once: int
) -> jax.Array:
    """Class-summed gradients `[R, *param.shape]`, from so many examples at a time."""
    if at_once == layout.size:
        return sum_by_row(summed_gradients(site, taps), weights, layout)

    def add(rows: jax.Array, row: jax.Array, _: jax.Array, chunk: Chunk) -> jax.Array:
        grad = _chunk_gradient(site, taps, weights, chunk)
        grad += lax.dynamic_index_in_dim(rows, row, keepdims=False)
        updated: jax.Array = lax.dynamic_update_index_in_dim(rows, grad, row, 0)
        return updated

    dtype = at_least_float32(taps.values[site.params[0]]).dtype
    rows = jnp.zeros((layout.num_rows, *site.param_shape), dtype)
    return over_chunks(layout, at_once, add, rows)


def stream_squares(
    site: Site, taps: Taps, weights: jax.Array, layout: ClassLayout, at_once: int
) -> jax.Array:
    """Squared norms of the same `[R]`, with the memory of one row."""

    def add(
        carry: tuple[jax.Array, jax.Array],
        row: jax.Array,
        is_first: jax.Array,
        chunk: Chunk,
    ) -> tuple[jax.Array, jax.Array]:
        total, squares = carry
        total = jnp.where(is_first, 0, total)
        total += _chunk_gradient(site, taps, weights, chunk)
        square = jnp.sum(total * total)  # the last chunk of a row has the last word
        return total, lax.dynamic_update_index_in_dim(squares, square, row, 0)

    dtype = at_least_float32(taps.values[site.params[0]]).dtype
    carry = jnp.zeros(site.param_shape, dtype), jnp.zeros(layout.num_rows, dtype)
    return over_chunks(layout, at_once, add, carry)[1]


def lookup_squares(
    site: Site, taps: Taps, weights: jax.Array, layout: ClassLayout
) -> jax.Array:
    """Squared norms `[R]` at a lookup: only numbers that were looked up have gradients.

    Gradients that belong to the same class and to the same place of the table are
    brought together by sorting, so nothing as large as the table is made.
    """
    indices, cotangents = lookup_factors(site, taps)
    tokens = indices.shape[1]
    grads = at_least_float32(cotangents)
    grads *= weights.astype(grads.dtype)[:, None, None]
    rows = jnp.repeat(layout.rows, tokens)
    inside = (indices.reshape(-1) >= 0) & (rows < layout.num_rows)
    rows = jnp.where(inside, rows, layout.num_rows)
    order = jnp.lexsort((indices.reshape(-1), rows))
    rows, places = rows[order], indices.reshape(-1)[order]
    starts = (jnp.diff(rows, prepend=-1) != 0) | (jnp.diff(places, prepend=-2) != 0)
    group = jnp.cumsum(starts, dtype=jnp.int32) - 1
    grads = grads.reshape(len(rows), -1)[order]
    sums = jax.ops.segment_sum(grads, group, len(rows), indices_are_sorted=True)
    row_of_group = jnp.full(len(rows), layout.num_rows).at[group].set(rows)
    squares = jnp.zeros(layout.num_rows, sums.dtype)
    return squares.at[row_of_group].add(jnp.sum(sums * sums, axis=1), mode="drop")


def sum_by_row(
    of_examples: jax.Array, weights: jax.Array, layout: ClassLayout
) -> jax.Array:
    """Sums gradients of examples `[B, ...]` over each row, `[R, ...]`."""
    members = jnp.where(layout.members, weights[None, :], 0).astype(of_examples.dtype)
    return full_dot(members, of_examples)


def _chunk_gradient(
    site: Site, taps: Taps, weights: jax.Array, chunk: Chunk
) -> jax.Array:
    positions, counts = chunk
    if len(positions) == 1:  # its gradient is smaller than its cotangents
        grad = summed_gradient(site, take_examples(site, taps, positions))
        return grad * weights[positions[0]].astype(grad.dtype)
    weights = jnp.where(counts, weights[positions], 0)
    return summed_gradient(site, take_examples(site, taps, positions, weights))
