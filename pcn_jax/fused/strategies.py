"""Ways to the norms of the class gradients at one site, and from there to the sum.

Each looks at the taps of a site and finds the squared norms of the rows of its weight
gradient, `[R]`; a row is one class that the batch shows. They differ in what they pay.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from pcn_jax.fused.class_layout import Chunk, ClassLayout, over_chunks
from pcn_jax.fused.sites import (
    Site,
    Taps,
    chunk_gradient,
    dense_factors,
    example_gradients,
    lookup_factors,
    masked_gradients,
)
from pcn_jax.precision import at_least_float32

_HIGHEST = lax.Precision.HIGHEST


def sum_rows(
    site: Site, taps: Taps, weights: jax.Array, layout: ClassLayout, chunk_size: int
) -> jax.Array:
    """Class-summed gradients `[R, *param.shape]`, a few examples at a time."""

    def add(rows: jax.Array, row: jax.Array, _: jax.Array, chunk: Chunk) -> jax.Array:
        grad = chunk_gradient(site, taps, weights, chunk)
        grad += lax.dynamic_index_in_dim(rows, row, keepdims=False)
        return lax.dynamic_update_index_in_dim(rows, grad, row, 0)

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


def sum_examples(
    site: Site, taps: Taps, weights: jax.Array, layout: ClassLayout
) -> jax.Array:
    """Class-summed gradients `[R, *param.shape]` of an elementwise site."""
    grads = example_gradients(site, taps, weights)
    members = layout.row == jnp.arange(layout.num_rows, dtype=layout.row.dtype)[:, None]
    return jnp.tensordot(members.astype(grads.dtype), grads, 1, precision=_HIGHEST)


def sum_masked(
    site: Site, taps: Taps, weights: jax.Array, layout: ClassLayout
) -> dict[int, jax.Array]:
    """Class-summed gradients of any site, each in float32 or wider, by slot."""
    grads = masked_gradients(site, taps, weights, layout)
    return {slot: at_least_float32(grad) for slot, grad in grads.items()}


def pair_squares(
    dense: Sequence[tuple[Site, Taps]],
    weights: jax.Array,
    layout: ClassLayout,
    block_size: int,
) -> jax.Array:
    """Squared norms `[R]` at dense sites, without any gradient.

        ‖Σ_i a_i δ_iᵀ‖² = Σ_ij ⟨a_i, a_j⟩ ⟨δ_i, δ_j⟩

    The examples are sorted by class, so only blocks near the diagonal hold pairs of one
    class, and by symmetry only those on one side of it are needed.

    Args:
      dense: Sites and their taps.
      weights: One an example, `[B]`.
      layout: The batch.
      block_size: Examples in a block.

    Returns:
      The sum of the squares over all sites, in float32 or wider.
    """
    factors = [dense_factors(site, taps) for site, taps in dense]
    size = layout.size
    number = -(-size // block_size)
    places = jnp.arange(number * block_size).reshape(number, block_size)
    positions = layout.order[jnp.minimum(places, size - 1)]
    rows = jnp.where(places < size, layout.row[positions], layout.num_rows)
    dtype = jnp.result_type(*(at_least_float32(x).dtype for x, _ in factors))

    def block(k: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        at = positions[k]
        factor = weights[at][:, None, None]
        return [(x[at], y[at] * factor.astype(y.dtype)) for x, y in factors]

    def outer(k: jax.Array, squares: jax.Array) -> jax.Array:
        here = block(k)

        def add(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            j, sums = carry
            pairs = _pair_products(here, block(j)).astype(dtype)
            same = rows[k][:, None] == rows[j][None, :]
            twice = jnp.where(j > k, 2, 1).astype(dtype)
            return j + 1, sums + twice * jnp.where(same, pairs, 0).sum(axis=1)

        def may_match(carry: tuple[jax.Array, jax.Array]) -> jax.Array:
            j, _ = carry
            return (j < number) & (rows[jnp.minimum(j, number - 1), 0] <= rows[k, -1])

        _, sums = lax.while_loop(may_match, add, (k, jnp.zeros(block_size, dtype)))
        return squares.at[rows[k]].add(sums, mode="drop")

    return lax.fori_loop(0, number, outer, jnp.zeros(layout.num_rows, dtype))


def pair_gramian(
    dense: Sequence[tuple[Site, Taps]], weights: jax.Array, layout: ClassLayout
) -> jax.Array:
    """Inner products `[R, R]` of all rows at dense sites, from those of all examples."""
    factors = [dense_factors(site, taps) for site, taps in dense]
    factor = weights[:, None, None]
    given = [(x, y * factor.astype(y.dtype)) for x, y in factors]
    pairs = _pair_products(given, given)
    members = layout.row == jnp.arange(layout.num_rows, dtype=layout.row.dtype)[:, None]
    by_row = jnp.matmul(members.astype(pairs.dtype), pairs, precision=_HIGHEST)
    return jnp.matmul(by_row, members.astype(pairs.dtype).T, precision=_HIGHEST)


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
    rows = jnp.repeat(layout.row, tokens)
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
    left: Sequence[tuple[jax.Array, jax.Array]],
    right: Sequence[tuple[jax.Array, jax.Array]],
) -> jax.Array:
    """Inner products `[m, n]` of the gradients of examples, added over sites."""
    total = []
    for (a, u), (b, v) in zip(left, right, strict=True):
        products = _all_products(a, b) * _all_products(u, v)  # of tokens
        total.append(
            products.reshape(len(a), a.shape[1], len(b), b.shape[1]).sum(axis=(1, 3))
        )
    return sum(total[1:], start=total[0])


def _all_products(x: jax.Array, y: jax.Array) -> jax.Array:
    return lax.dot_general(
        x.reshape(-1, x.shape[-1]),
        y.reshape(-1, y.shape[-1]),
        (((1,), (1,)), ((), ())),
        precision=_HIGHEST,
        preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
    )
