"""Ways to the norms of the class gradients at one site, and from there to the sum.

Each looks at the taps of a site and finds the squared norms of the rows of its weight
gradient, `[R]`; a row is one class that the batch shows. They differ in what they pay.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pcn_jax.fused.class_layout import Chunk, ClassLayout, over_chunks
from pcn_jax.fused.sites import (
    Site,
    Taps,
    chunk_gradient,
    lookup_factors,
)
from pcn_jax.precision import at_least_float32

Factors = tuple[jax.Array, ...]
"""Arrays whose outer product is the gradient of an example; the last is scaled."""
_HIGHEST = lax.Precision.HIGHEST


def sum_rows(
    site: Site, taps: Taps, weights: jax.Array, layout: ClassLayout, chunk_size: int
) -> jax.Array:
    """Class-summed gradients `[R, *param.shape]`, a few examples at a time."""

    def add(rows: jax.Array, row: jax.Array, _: jax.Array, chunk: Chunk) -> jax.Array:
        grad = chunk_gradient(site, taps, weights, chunk)
        grad += lax.dynamic_index_in_dim(rows, row, keepdims=False)
        updated: jax.Array = lax.dynamic_update_index_in_dim(rows, grad, row, 0)
        return updated

    dtype = at_least_float32(taps.values[site.params[0]]).dtype
    rows = jnp.zeros((layout.num_rows, *site.param_shape), dtype)
    return over_chunks(layout, chunk_size, add, rows)


def stream_squares(
    site: Site, taps: Taps, weights: jax.Array, layout: ClassLayout, chunk_size: int
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
        total += chunk_gradient(site, taps, weights, chunk)
        square = jnp.sum(total * total)  # the last chunk of a row has the last word
        return total, lax.dynamic_update_index_in_dim(squares, square, row, 0)

    dtype = at_least_float32(taps.values[site.params[0]]).dtype
    carry = jnp.zeros(site.param_shape, dtype), jnp.zeros(layout.num_rows, dtype)
    return over_chunks(layout, chunk_size, add, carry)[1]


def pair_squares(
    factors: Sequence[Factors],
    weights: jax.Array,
    layout: ClassLayout,
    block_size: int,
) -> jax.Array:
    """Squared norms `[R]` from inner products of examples, without any weight gradient.

        ‖Σ_i a_i δ_iᵀ‖² = Σ_ij ⟨a_i, a_j⟩ ⟨δ_i, δ_j⟩

    The examples are sorted by class, so only blocks near the diagonal hold pairs of one
    class, and by symmetry only those on one side of it are needed.

    Args:
      factors: For each site arrays `[B, T, size]` whose outer products, summed over
        `T`, are the gradients of the examples (see `sites.dense_factors`).
      weights: One an example, `[B]`.
      layout: The batch.
      block_size: Examples in a block.

    Returns:
      The sum of the squares over all sites, in float32 or wider.
    """
    size, number = layout.size, -(-layout.size // block_size)
    places = jnp.arange(number * block_size, dtype=jnp.int32)
    positions = layout.order[jnp.minimum(places, size - 1)]
    rows = jnp.where(places < size, layout.rows[positions], layout.num_rows)
    positions, rows = (x.reshape(number, block_size) for x in (positions, rows))
    flat = [tuple(x.reshape(size, -1) for x in arrays) for arrays in factors]
    tokens = [arrays[0].shape[1] for arrays in factors]
    dtype = weights.dtype

    def block(k: jax.Array) -> list[Factors]:
        at = positions[k]
        taken = []
        for times, arrays in zip(tokens, flat, strict=True):
            *others, last = (x[at] for x in arrays)
            weighted = last * weights[at].astype(last.dtype)[:, None]
            shape = block_size * times, -1
            taken.append(tuple(x.reshape(shape) for x in (*others, weighted)))
        return taken

    def within_rows(k: jax.Array, j: jax.Array, left: Any, right: Any) -> jax.Array:
        pairs = _pair_products(left, right, tokens).astype(dtype)
        same = rows[k][:, None] == rows[j][None, :]
        return jnp.where(same, pairs, 0).sum(axis=1)

    def outer(k: jax.Array, sums: jax.Array) -> jax.Array:
        here = block(k)

        def add(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            j, sums = carry
            return j + 1, sums + 2 * within_rows(k, j, here, block(j))

        def may_match(carry: tuple[jax.Array, jax.Array]) -> jax.Array:
            j = jnp.minimum(carry[0], number - 1)
            return (carry[0] < number) & (rows[j, 0] <= rows[k, -1])

        start = k + 1, within_rows(k, k, here, here)
        _, of_block = lax.while_loop(may_match, add, start)
        updated: jax.Array = lax.dynamic_update_index_in_dim(sums, of_block, k, 0)
        return updated

    sums = lax.fori_loop(0, number, outer, jnp.zeros((number, block_size), dtype))
    numbers = jnp.arange(layout.num_rows, dtype=rows.dtype)[:, None]
    members = rows.reshape(1, -1) == numbers
    return jnp.where(members, sums.reshape(1, -1), 0).sum(axis=1)


def pair_gramian(
    factors: Sequence[Factors], weights: jax.Array, layout: ClassLayout
) -> jax.Array:
    """Inner products `[R, R]` of all rows, from those of all examples."""
    flat = []
    for *others, last in factors:
        weighted = last * weights.astype(last.dtype)[:, None, None]
        flat.append(tuple(x.reshape(-1, x.shape[-1]) for x in (*others, weighted)))
    pairs = _pair_products(flat, flat, [last.shape[1] for *_, last in factors])
    members = layout.members.astype(pairs.dtype)
    by_row = jnp.matmul(members, pairs, precision=_HIGHEST)
    return jnp.matmul(by_row, members.T, precision=_HIGHEST)


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


def _pair_products(
    left: Sequence[Factors],
    right: Sequence[Factors],
    tokens: Sequence[int],
) -> jax.Array:
    """Inner products `[m, n]` of the gradients of examples, added over sites."""
    total = []
    for ours, theirs, times in zip(left, right, tokens, strict=True):
        products = functools.reduce(jnp.multiply, map(_products, ours, theirs))
        if times > 1:
            m, n = (size // times for size in products.shape)
            products = products.reshape(m, times, n, times).sum(axis=(1, 3))
        total.append(products)
    return sum(total[1:], start=total[0])


def _products(x: jax.Array, y: jax.Array) -> jax.Array:
    return lax.dot_general(
        x,
        y,
        (((1,), (1,)), ((), ())),
        precision=_HIGHEST,
        preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
    )
