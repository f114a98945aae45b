"""Norms of class gradients from pairs of examples, without any weight gradient.

    ‖Σ_i g_i‖² = Σ_ij ⟨g_i, g_j⟩

Where the gradient of an example is a sum of few outer products, `g_i = Σ_t a_it δ_itᵀ`,
its inner products with others cost far less than it would itself:

    ⟨g_i, g_j⟩ = Σ_ts ⟨a_it, a_js⟩ ⟨δ_it, δ_js⟩

Factors are multiplied as precisely as the loss function multiplies them. An accelerator
rounds each number of `a` and `δ` by itself, in a weight gradient as in these products:
so both have the same norm.

Where the gradients of a class nearly cancel, what is left of the sum is rounding. How
much that is follows from the squared lengths of the single gradients, also added up.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import lax

from pcn_jax.fused.class_layout import ClassLayout
from pcn_jax.fused.conv import patch_products
from pcn_jax.fused.sites import DenseNumbers, Site
from pcn_jax.fused.taps import Taps, take_examples
from pcn_jax.precision import wide_dot


class PairSource(NamedTuple):
    """Some parameters, and how to take inner products of the gradients by them.

    Attributes:
      take: From positions in the batch `[m]`, or `None` for all as they lie, and as
        many weights of the losses to what `products` needs of these examples.
      products: From `m` and `n` examples to inner products `[m, n]`.
      tokens: `T`, the outer products that the gradient of an example is the sum of.
      size: `B`, the examples; or all places of theirs.
    """

    take: Callable[[jax.Array | None, jax.Array], Any]
    products: Callable[[Any, Any], jax.Array]
    tokens: int
    size: int


class PairSums(NamedTuple):
    """What the inner products of pairs of examples add up to, over all sources.

    Attributes:
      squares: Over the pairs of each row: its squared norm, `[R]`.
      halves: Over the pairs of a row and the next, where these are the halves of a
        class: the inner product of the two, `[R]`, else zero; `None` if not asked for.
      singles: Over the examples of each row, each with itself, `[R]`.
    """

    squares: jax.Array
    halves: jax.Array | None
    singles: jax.Array


class _Members(NamedTuple):
    """Where some examples belong: to which row, and of which class it is a half."""

    rows: jax.Array
    wholes: jax.Array

    @classmethod
    def of(cls, rows: jax.Array, layout: ClassLayout) -> Self:
        wholes = layout.wholes[jnp.minimum(rows, layout.num_rows - 1)]
        return cls(rows, jnp.where(rows < layout.num_rows, wholes, layout.num_classes))


def of_site(site: Site, taps: Taps) -> PairSource:
    """The parameter of a product or a convolution."""
    products = _conv_products if site.kind == "conv" else _dense_products
    return PairSource(
        take=functools.partial(take_examples, site, taps),
        products=functools.partial(products, site),
        tokens=site.tokens,
        size=site.size,
    )


def of_gradients(grads: jax.Array) -> PairSource:
    """Parameters whose gradients are known, `[B, size]`."""

    def take(positions: jax.Array | None, weights: jax.Array) -> jax.Array:
        taken = grads
        if positions is not None:
            taken = jnp.take(grads, positions, axis=0, mode="clip")
        return taken * weights.astype(grads.dtype)[:, None]

    return PairSource(take, _row_products, tokens=1, size=len(grads))


def pair_sums(
    sources: Sequence[PairSource],
    weights: jax.Array,
    layout: ClassLayout,
    block_size: int,
) -> PairSums:
    """Adds up the inner products of the examples of each class.

    The examples are sorted by class, so only blocks near the diagonal hold pairs of one
    class, and by symmetry only those on one side of it are needed.

    Args:
      sources: What to take inner products of.
      weights: One an example, `[B]`.
      layout: The batch.
      block_size: Examples in a block.

    Returns:
      The sums, in float32 or wider.
    """
    size, number = layout.size, -(-layout.size // block_size)
    if number == 1:
        return _sums_of_one_block(sources, weights, layout)
    places = jnp.arange(number * block_size, dtype=jnp.int32)
    positions = layout.order[jnp.minimum(places, size - 1)]
    rows = jnp.where(places < size, layout.rows[positions], layout.num_rows)
    positions, members = jax.tree.map(
        lambda x: x.reshape(number, block_size), (positions, _Members.of(rows, layout))
    )

    def block(k: jax.Array) -> list[Any]:
        at = positions[k]
        return [source.take(at, weights[at]) for source in sources]

    def of_blocks(left: Sequence[Any], k: jax.Array, j: jax.Array) -> PairSums:
        products = _all_products(sources, left, block(j)).astype(weights.dtype)
        ours, theirs = (jax.tree.map(lambda x, at=at: x[at], members) for at in (k, j))
        return _of_examples(products, ours, theirs, by_halves=layout.by_halves)

    def outer(k: jax.Array, sums: PairSums) -> PairSums:
        left = block(k)

        def add(carry: tuple[jax.Array, PairSums]) -> tuple[jax.Array, PairSums]:
            j, found = carry
            more = of_blocks(left, k, j)
            more = more._replace(
                squares=2 * more.squares, singles=jnp.zeros_like(more.singles)
            )
            return j + 1, jax.tree.map(jnp.add, found, more)

        def may_match(carry: tuple[jax.Array, PairSums]) -> jax.Array:
            j = jnp.minimum(carry[0], number - 1)
            is_near: jax.Array = members.wholes[j, 0] <= members.wholes[k, -1]
            return (carry[0] < number) & is_near

        _, found = lax.while_loop(may_match, add, (k + 1, of_blocks(left, k, k)))
        update = functools.partial(lax.dynamic_update_index_in_dim, index=k, axis=0)
        updated: PairSums = jax.tree.map(update, sums, found)
        return updated

    zeros = jnp.zeros((number, block_size), weights.dtype)
    start = PairSums(zeros, zeros if layout.by_halves else None, zeros)
    of_examples = lax.fori_loop(0, number, outer, start)
    numbers = jnp.arange(layout.num_rows, dtype=rows.dtype)[:, None]
    is_member = rows[None, :] == numbers
    sums: PairSums = jax.tree.map(
        lambda x: jnp.where(is_member, x.reshape(1, -1), 0).sum(axis=1), of_examples
    )
    return sums


def _of_examples(
    products: jax.Array, ours: _Members, theirs: _Members, *, by_halves: bool
) -> PairSums:
    """Sums `[m, n]` over those of the `n` that are of the same row or class, `[m]`."""
    rows, their_rows = ours.rows[:, None], theirs.rows[None, :]
    squares, halves = jnp.where(rows == their_rows, products, 0).sum(axis=1), None
    if by_halves:
        of_one_class = ours.wholes[:, None] == theirs.wholes[None, :]
        is_second = of_one_class & (rows < their_rows)
        halves = jnp.where(is_second, products, 0).sum(axis=1)
    return PairSums(squares, halves, jnp.diagonal(products))


def _sums_of_one_block(
    sources: Sequence[PairSource], weights: jax.Array, layout: ClassLayout
) -> PairSums:
    """The same from all pairs: no loop, so less to compile."""
    products = _all_pairs(sources, weights).astype(weights.dtype)
    all_of_them = _Members.of(layout.rows, layout)
    of_examples, structure = jax.tree.flatten(
        _of_examples(products, all_of_them, all_of_them, by_halves=layout.by_halves)
    )
    members = layout.members.astype(products.dtype)
    sums = wide_dot(jnp.stack(of_examples), members.T)
    return PairSums(*jax.tree.unflatten(structure, list(sums)))


def pair_gramian(
    sources: Sequence[PairSource], weights: jax.Array, layout: ClassLayout
) -> tuple[jax.Array, jax.Array]:
    """Inner products `[R, R]` of all rows, and `PairSums.singles`."""
    pairs = _all_pairs(sources, weights)
    members = layout.members.astype(pairs.dtype)
    by_row = wide_dot(members, pairs)
    gramian = wide_dot(by_row, members.T)
    return gramian, wide_dot(members, jnp.diagonal(pairs))


def _all_pairs(sources: Sequence[PairSource], weights: jax.Array) -> jax.Array:
    """Inner products `[B, B]` of the gradients of all examples."""
    everything = [source.take(None, weights) for source in sources]
    return _all_products(sources, everything, everything)


def _all_products(
    sources: Sequence[PairSource], left: Sequence[Any], right: Sequence[Any]
) -> jax.Array:
    """Inner products `[m, n]`, added over the sources."""
    products = [
        source.products(ours, theirs)
        for source, ours, theirs in zip(sources, left, right, strict=True)
    ]
    return functools.reduce(operator.add, products)


def _dense_products(site: Site, left: Taps, right: Taps) -> jax.Array:
    inputs, cotangents = (
        _row_products(ours, theirs, _precision_of(site))
        for ours, theirs in zip(
            _dense_factors(site, left), _dense_factors(site, right), strict=True
        )
    )
    return _over_tokens(inputs * cotangents, site.tokens)


def _conv_products(site: Site, left: Taps, right: Taps) -> jax.Array:
    params, precision = site.equation.params, _precision_of(site)
    spec = params["dimension_numbers"].out_spec
    ours, theirs = (
        taps.cotangents[0].transpose(spec[0], *spec[2:], spec[1])
        for taps in (left, right)
    )
    inputs = patch_products(
        left.values[site.operand],
        right.values[site.operand],
        site.param_shape,
        ours.shape[1:-1],
        params,
        precision=precision,
    )
    ours, theirs = (x.reshape(-1, x.shape[-1]) for x in (ours, theirs))
    products = _row_products(ours, theirs, precision)
    return _over_tokens(inputs * products, site.tokens)


def _dense_factors(site: Site, taps: Taps) -> tuple[jax.Array, jax.Array]:
    """Inputs `[m * T, K]` and cotangents `[m * T, O]`."""
    (cotangent,), (out_axis,) = taps.cotangents, site.out_axes
    values, axis = taps.values[site.operand], site.axes[site.operand]
    values = values.astype(jnp.promote_types(values.dtype, cotangent.dtype))
    numbers = DenseNumbers.of(site)
    tokens, of_tokens = (
        [d for d in axes if d != examples]
        for axes, examples in (
            (numbers.free, axis),
            (numbers.of_operand, out_axis),
        )
    )
    contracted = site.equation.params["dimension_numbers"][0][numbers.side]
    rows = cotangent.shape[out_axis] * site.tokens
    return (
        values.transpose(axis, *tokens, *contracted).reshape(rows, -1),
        cotangent.transpose(out_axis, *of_tokens, *numbers.of_param).reshape(rows, -1),
    )


def _over_tokens(products: jax.Array, tokens: int) -> jax.Array:
    """Sums `[m * T, n * T]` over the tokens of each pair of examples."""
    if tokens == 1:
        return products
    m, n = (size // tokens for size in products.shape)
    return products.reshape(m, tokens, n, tokens).sum(axis=(1, 3))


def _row_products(
    x: jax.Array, y: jax.Array, precision: lax.Precision = lax.Precision.HIGHEST
) -> jax.Array:
    return wide_dot(x, y, (1, 1), precision)


def _precision_of(site: Site) -> lax.Precision:
    """That of a product or convolution; the highest if it is not one of the three."""
    given = site.equation.params["precision"] or lax.Precision.DEFAULT
    of_both = given if isinstance(given, tuple) else (given, given)
    known = [x for x in lax.Precision if x in of_both]
    return known[-1] if known else lax.Precision.HIGHEST
