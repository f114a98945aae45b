"""Ways to the norms of the class gradients at one site, and from there to the sum.

Each looks at the taps of a site and finds the squared norms of the rows of its weight
gradient, `[R]`; a row is one class that the batch shows. They differ in what they pay.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pcn_jax.fused import plan
from pcn_jax.fused.class_layout import Chunk, ClassLayout, over_chunks
from pcn_jax.fused.sites import Site
from pcn_jax.fused.taps import (
    Taps,
    lookup_factors,
    summed_gradient,
    summed_gradients,
    take_examples,
)
from pcn_jax.precision import at_least_float32, wide_dot


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


class RowSums(NamedTuple):
    """Inner products of the rows.

    Attributes:
      squares: Of each with itself, `[R]`.
      halves: Of each with the next, `[R]`, where these are the halves of a class;
        elsewhere anything. `None` if not asked for.
    """

    squares: jax.Array
    halves: jax.Array | None


def row_sums(rows: jax.Array, layout: ClassLayout) -> RowSums:
    """Inner products of rows that are there, `[R, size]`."""
    squares, halves = jnp.sum(rows * rows, axis=1), None
    if layout.by_halves:
        # Every other row is a second half, unless rows are missing.
        each = 2 if layout.num_rows == layout.num_classes else 1
        first = jnp.arange(0, layout.num_rows - 1, each)

        # One product after the other: XLA's reductions of two rows are slow on CPU.
        def product(k: jax.Array) -> jax.Array:
            return wide_dot(rows[k], rows[k + 1], contracted=(0, 0))

        in_turn = plan.is_cpu()
        products = lax.map(product, first) if in_turn else jax.vmap(product)(first)
        halves = jnp.zeros_like(squares).at[first].set(products)
    return RowSums(squares, halves)


class _Stream(NamedTuple):
    """The row before, the row so far, and what was found of all rows."""

    before: jax.Array | None
    total: jax.Array
    sums: RowSums


def stream_sums(
    site: Site, taps: Taps, weights: jax.Array, layout: ClassLayout, at_once: int
) -> RowSums:
    """The same of the rows that `sum_rows` makes, with the memory of one or two."""

    def add(
        carry: _Stream, row: jax.Array, is_first: jax.Array, chunk: Chunk
    ) -> _Stream:
        total = jnp.where(is_first, 0, carry.total)
        total += _chunk_gradient(site, taps, weights, chunk)
        # The last chunk of a row has the last word.
        before, found = None, RowSums(jnp.sum(total * total), None)
        if carry.before is not None:
            before = jnp.where(is_first, carry.total, carry.before)
            found = RowSums(found.squares, jnp.sum(before * total))
        update = functools.partial(lax.dynamic_update_index_in_dim, index=row, axis=0)
        return _Stream(before, total, jax.tree.map(update, carry.sums, found))

    dtype = at_least_float32(taps.values[site.params[0]]).dtype
    total, sums = jnp.zeros(site.param_shape, dtype), jnp.zeros(layout.num_rows, dtype)
    start = _Stream(None, total, RowSums(sums, None))
    if layout.by_halves:
        start = _Stream(total, total, RowSums(sums, sums))
    squares, halves = over_chunks(layout, at_once, add, start).sums
    # Of each row with the one before it, so far.
    return RowSums(squares, None if halves is None else jnp.roll(halves, -1))


def lookup_sums(
    site: Site, taps: Taps, weights: jax.Array, layout: ClassLayout
) -> RowSums:
    """The same at a lookup: only numbers that were looked up have gradients.

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
    wholes = jnp.append(layout.wholes, layout.num_classes)[rows]
    order = jnp.lexsort((rows, indices.reshape(-1), wholes))
    rows, places, wholes = rows[order], indices.reshape(-1)[order], wholes[order]
    is_new = (jnp.diff(wholes, prepend=-1) != 0) | (jnp.diff(places, prepend=-2) != 0)
    starts = is_new | (jnp.diff(rows, prepend=-1) != 0)
    group = jnp.cumsum(starts, dtype=jnp.int32) - 1
    grads = grads.reshape(len(rows), -1)[order]
    sums = jax.ops.segment_sum(grads, group, len(rows), indices_are_sorted=True)
    row_of_group = jnp.full(len(rows), layout.num_rows).at[group].set(rows)

    def by_row(of_groups: jax.Array) -> jax.Array:
        zeros = jnp.zeros(layout.num_rows, of_groups.dtype)
        return zeros.at[row_of_group].add(of_groups, mode="drop")

    squares, halves = by_row(jnp.sum(sums * sums, axis=1)), None
    if layout.by_halves:  # where a group is followed by that of the other half
        is_new_of_group = jnp.zeros(len(rows), bool).at[group].max(is_new)
        products = jnp.sum(sums[:-1] * sums[1:], axis=1)
        products = jnp.where(is_new_of_group[1:], 0, products)
        halves = by_row(jnp.pad(products, (0, 1)))
    return RowSums(squares, halves)


def sum_by_row(
    of_examples: jax.Array, weights: jax.Array, layout: ClassLayout
) -> jax.Array:
    """Sums gradients of examples `[B, ...]` over each row, `[R, ...]`."""
    members = jnp.where(layout.members, weights[None, :], 0).astype(of_examples.dtype)
    return wide_dot(members, of_examples)


def _chunk_gradient(
    site: Site, taps: Taps, weights: jax.Array, chunk: Chunk
) -> jax.Array:
    positions, counts = chunk
    if len(positions) == 1:  # its gradient is smaller than its cotangents
        grad = summed_gradient(site, take_examples(site, taps, positions))
        return grad * weights[positions[0]].astype(grad.dtype)
    weights = jnp.where(counts, weights[positions], 0)
    return summed_gradient(site, take_examples(site, taps, positions, weights))
