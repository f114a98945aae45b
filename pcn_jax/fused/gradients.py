"""The weighted sum of the class gradients for the price of about one plain gradient.

1. One pass through the network and back gives every example's cotangents at every site
   (see `sites`), without any weight gradient.
2. From them come the norms of the class gradients, in the way that is cheapest at each
   site (see `strategies`).
3. Scaling the loss of an example scales its cotangents, so with the class weights known
   the weighted gradient needs no second pass: only the weight gradients that a plain
   step takes, once.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from pcn_jax.fused import strategies
from pcn_jax.fused.class_layout import ClassLayout
from pcn_jax.fused.plan import Choice, block_size, choose
from pcn_jax.fused.program import Slot
from pcn_jax.fused.sites import (
    Site,
    Taps,
    dense_factors,
    example_gradients,
    weight_gradients,
)
from pcn_jax.fused.tracing import Traced, pull_back_to_params, tap
from pcn_jax.precision import at_least_float32

_HIGHEST = jax.lax.Precision.HIGHEST
_MANY_NUMBERS = 2**17


class Measured(NamedTuple):
    """Everything about the class gradients of a batch, and how to add them up.

    Attributes:
      losses: Of each example, `[B]`.
      aux: The auxiliary output.
      squares: Squared norms of the rows `[R]`, scaled by `scale` squared.
      gramian: Inner products of the rows `[R, R]`, so scaled, or `None`.
      products: Inner products of the rows with their references `[R]`, scaled by
        `scale` and by `1 / reference_norms`, or `None`.
      scale: What the rows were divided by so that no square over- or underflows, `[R]`.
      add_up: From weights of the rows `[R]` to the weighted sum, shaped like `params`.
    """

    losses: jax.Array
    aux: Any
    squares: jax.Array
    gramian: jax.Array | None
    products: jax.Array | None
    scale: jax.Array
    add_up: Callable[[jax.Array], chex.ArrayTree]


def measure(
    traced: Traced,
    params: chex.ArrayTree,
    inputs: Any,
    labels: jax.Array,
    *args: Any,
    seeds: jax.Array,
    layout: ClassLayout,
    reference: chex.ArrayTree | None = None,
    with_gramian: bool = False,
) -> Measured:
    """Passes through the network and back, and measures the class gradients.

    Args:
      traced: The loss function, traced with these arguments.
      params: Parameters.
      inputs: Arrays `[B, ...]`.
      labels: Integers `[B]`.
      *args: What else the loss takes.
      seeds: Weights of the examples' losses in the objective, `[B]`.
      layout: Which rows the examples belong to.
      reference: Gradients with which to take inner products, leaves `[R, ...]`.
      with_gramian: Whether to take the inner products of all rows.

    Returns:
      What was measured.
    """
    given = jax.tree.leaves((params, inputs, labels, *args))
    losses, aux, taps = tap(traced, given, seeds)
    scale = _scale_of_rows(traced.sites, taps, layout)
    weights = layout.to_examples(1 / scale)
    options = {
        "with_reference": reference is not None,
        "with_gramian": with_gramian,
    }
    choices = choices_of(traced, layout.num_rows, **options)
    ways: dict[str, list[tuple[Site, Taps, Choice]]] = {
        way: [] for way in ("examples", "pairs", "rows", "masked", "stream", "lookup")
    }
    for site, taken, choice in zip(traced.sites, taps, choices, strict=True):
        ways[choice.way].append((site, taken, choice))

    # Small parameters: the gradients of all examples, side by side.
    of_examples = {
        site.params[0]: at_least_float32(example_gradients(site, taken))
        for site, taken, _ in ways["examples"]
    }
    # Explicit class gradients, of parameters and of what is computed from them.
    rows: dict[Slot, jax.Array] = {}
    for site, taken, choice in ways["rows"] + ways["masked"]:
        for slot, grads in _rows(site, taken, weights, layout, choice).items():
            rows[slot] = rows[slot] + grads if slot in rows else grads
    in_place = set() if reference is not None else traced.in_place
    to_params = functools.partial(pull_back_to_params, traced, given)
    stacks = [grads for slot, grads in rows.items() if slot in in_place]
    behind = {slot: grads for slot, grads in rows.items() if slot not in in_place}
    if behind:
        stacks += jax.vmap(to_params)(behind)
    matrices = [at_least_float32(x).reshape(layout.num_rows, -1) for x in stacks]

    # What needs neither: inner products of pairs of examples.
    factors: list[tuple[jax.Array, ...]] = [
        dense_factors(site, taken) for site, taken, _ in ways["pairs"]
    ]
    if of_examples:
        small = _side_by_side(of_examples.values())
        if with_gramian or layout.num_rows * small.shape[1] <= _MANY_NUMBERS:
            members = jnp.where(layout.members, weights[None, :], 0)
            matrices.append(
                jnp.matmul(members.astype(small.dtype), small, precision=_HIGHEST)
            )
        else:
            factors.append((small[:, None, :],))

    gramian = products = None
    if with_gramian:
        parts = [jnp.matmul(x, x.T, precision=_HIGHEST) for x in matrices]
        if factors:
            parts.append(strategies.pair_gramian(factors, weights, layout))
        gramian = sum(parts[1:], start=parts[0])
        squares = jnp.diagonal(gramian)
    else:
        squares = sum(
            (jnp.sum(x * x, axis=1) for x in matrices),
            start=jnp.zeros(layout.num_rows, losses.dtype),
        )
        for site, taken, choice in ways["stream"]:
            squares += strategies.stream_squares(
                site, taken, weights, layout, choice.at_once
            )
        for site, taken, _ in ways["lookup"]:
            squares += strategies.lookup_squares(site, taken, weights, layout)
        if factors:
            size = block_size(layout.size, layout.num_rows, factors[0][0].shape[1])
            squares += strategies.pair_squares(factors, weights, layout, size)
    if reference is not None:
        units = [x.reshape(layout.num_rows, -1) for x in jax.tree.leaves(reference)]
        products = sum(
            jnp.sum(x * y.astype(x.dtype), axis=1)
            for x, y in zip(matrices, units, strict=True)
        )

    def add_up(row_weights: jax.Array) -> chex.ArrayTree:
        of_rows, each = row_weights * scale, layout.to_examples(row_weights)
        sums = {slot: _weighted_sum(of_rows, x) for slot, x in rows.items()}
        sums |= {slot: _weighted_sum(each, x) for slot, x in of_examples.items()}
        for site, taken, _ in ways["pairs"] + ways["stream"] + ways["lookup"]:
            sums |= weight_gradients(site, taken, each)
        return jax.tree.unflatten(jax.tree.structure(params), to_params(sums))

    return Measured(losses, aux, squares, gramian, products, scale, add_up)


def choices_of(
    traced: Traced, num_rows: int, *, with_reference: bool, with_gramian: bool
) -> list[Choice]:
    """Chooses a way for each site of a loss function."""
    return [
        choose(
            site,
            num_rows,
            keep_rows=with_reference or not traced.in_place.issuperset(site.params),
            with_gramian=with_gramian,
        )
        for site in traced.sites
    ]


def _scale_of_rows(
    sites: Sequence[Site], taps: Sequence[Taps], layout: ClassLayout
) -> jax.Array:
    """The size of the cotangents of each row `[R]`, 1 where it is zero.

    All cotangents of an example scale with its loss, so a look at the fewest will do.
    """
    cotangent, axis = min(
        (
            (x, axis)
            for site, taken in zip(sites, taps, strict=True)
            for axis, x in zip(site.out_axes, taken.cotangents, strict=True)
        ),
        key=lambda found: found[0].size,
    )
    sizes = jnp.moveaxis(jnp.abs(at_least_float32(cotangent)), axis, 0)
    of_examples = sizes.reshape(layout.size, -1).max(axis=1)
    of_rows = jnp.where(layout.members, of_examples[None, :], 0).max(axis=1)
    return jnp.where(of_rows > jnp.finfo(of_rows.dtype).tiny, of_rows, 1)


def _rows(
    site: Site, taps: Taps, weights: jax.Array, layout: ClassLayout, choice: Choice
) -> dict[Slot, jax.Array]:
    """Class-summed gradients `[R, *param.shape]` of each parameter of a site."""
    if choice.way == "masked":
        return strategies.sum_masked(site, taps, weights, layout)
    (slot,) = site.params
    if site.kind != "elementwise":
        return {slot: strategies.sum_rows(site, taps, weights, layout, choice.at_once)}
    grads = at_least_float32(example_gradients(site, taps))
    members = jnp.where(layout.members, weights[None, :], 0).astype(grads.dtype)
    return {slot: jnp.tensordot(members, grads, 1, precision=_HIGHEST)}


def _side_by_side(arrays: Iterable[jax.Array]) -> jax.Array:
    return jnp.concatenate([x.reshape(len(x), -1) for x in arrays], axis=1)


def _weighted_sum(weights: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.tensordot(weights.astype(x.dtype), x, 1, precision=_HIGHEST)
