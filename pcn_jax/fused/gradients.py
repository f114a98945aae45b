"""The weighted sum of the class gradients for the price of about one plain gradient.

1. One pass through the network and back gives every example's cotangents at every site
   (see `taps`), without any weight gradient.
2. From them come the norms of the class gradients, in the way that is cheapest at each
   site (see `strategies`).
3. Scaling the loss of an example scales its cotangents, so with the class weights known
   the weighted gradient needs no second pass: only the weight gradients that a plain
   step takes, once. Where statistics were held fixed, it takes a whole pass.
"""

import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np

from pcn_jax.counts import at_least_one
from pcn_jax.fused import pairs, strategies
from pcn_jax.fused.class_layout import ClassLayout
from pcn_jax.fused.plan import Choice, Way, block_size, choose
from pcn_jax.fused.program import Slot
from pcn_jax.fused.sites import Site
from pcn_jax.fused.taps import (
    Taps,
    example_gradients,
    masked_gradients,
    repeated,
    weight_gradients,
)
from pcn_jax.fused.tracing import Traced, pull_back_to_params, tap, weighted_gradient
from pcn_jax.precision import at_least_float32, wide_dot

_MANY_NUMBERS = 2**17
"""Up to so many, the rows of small parameters are cheaper than their pairs."""
_LARGE = 200
"""Gradients of so many numbers are not copied to lie beside others."""
_ROUNDING = 8
"""Errors of a squared norm, in units of the rounding of its examples' squared norms."""

_Ways = dict[Way, list[tuple[Site, Taps, int]]]
"""The sites by the way that was chosen, with their taps and examples at once."""


class Measured(NamedTuple):
    """Everything about the class gradients of a batch, and how to add them up.

    Attributes:
      losses: Of each example, `[B]`.
      aux: The auxiliary output.
      norms: Of the rows, `[R]`.
      halves: Inner products of the halves of a class, in the row of the first `[R]`;
        zero elsewhere. Or `None`.
      gramian: Inner products of the rows `[R, R]`, or `None`.
      alignment: Cosines of the rows with their references `[R]`, or `None`.
      add_up: From weights of the rows `[R]` to the weighted sum, shaped like `params`.
    """

    losses: jax.Array
    aux: Any
    norms: jax.Array
    halves: jax.Array | None
    gramian: jax.Array | None
    alignment: jax.Array | None
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
      seeds: Weights of the examples' losses in their mean, 1 or 0 for padding, `[B]`.
      layout: Which rows the examples belong to.
      reference: Gradients of norm 1 with which to take cosines, leaves `[R, ...]`.
      with_gramian: Whether to take the inner products of all rows.

    Returns:
      What was measured.
    """
    given = traced.arguments(params, inputs, labels, *args)
    losses, aux, taps = tap(traced, given, seeds)
    # Rows are taken over this up to the end, so that no square over- or underflows.
    scale = _scale_of_rows(traced.sites, taps, layout)
    weights = layout.to_examples(1 / scale)
    choices = choices_of(
        traced,
        layout.num_rows,
        by_halves=layout.by_halves,
        with_reference=reference is not None,
        with_gramian=with_gramian,
    )
    ways: _Ways = {way: [] for way in get_args(Way)}
    for site, taken, choice in zip(traced.sites, taps, choices, strict=True):
        ways[choice.way].append((site, taken, choice.at_once))

    # Small parameters: the gradients of all examples. Others: those of all classes,
    # where that is cheap or parameters are not used as they are; or neither.
    of_examples = {
        site.params[0]: at_least_float32(example_gradients(site, taken, layout.size))
        for site, taken, _ in ways["examples"]
    }
    of_rows = _explicit_rows(ways, weights, layout)
    to_params = functools.partial(pull_back_to_params, traced, given)
    in_place = traced.in_place if reference is None else set()
    direct = {slot: x for slot, x in of_rows.items() if slot in in_place}
    behind = {slot: x for slot, x in of_rows.items() if slot not in in_place}
    stacks = [*direct.values(), *(jax.vmap(to_params)(behind) if behind else ())]
    matrices = [at_least_float32(x).reshape(layout.num_rows, -1) for x in stacks]
    sources = [pairs.of_site(site, taken) for site, taken, _ in ways["pairs"]]
    for small in _side_by_side(of_examples.values()):
        if with_gramian or layout.num_rows * small.shape[1] <= _MANY_NUMBERS:
            matrices.append(strategies.sum_by_row(small, weights, layout))
        else:
            sources.append(pairs.of_gradients(small))

    def add_up(row_weights: jax.Array) -> chex.ArrayTree:
        scaled, each = row_weights * scale, layout.to_examples(row_weights)
        if traced.statistics is not None:
            each *= seeds / at_least_one(seeds.sum())
            return weighted_gradient(traced, each, params, inputs, labels, *args)
        sums = {slot: _weighted_sum(scaled, x) for slot, x in of_rows.items()}
        sums |= {slot: _weighted_sum(each, x) for slot, x in of_examples.items()}
        for site, taken, _ in ways["pairs"] + ways["stream"] + ways["lookup"]:
            sums |= weight_gradients(site, taken, each)
        return jax.tree.unflatten(jax.tree.structure(params), to_params(sums))

    gramian = halves = alignment = None
    if with_gramian:
        gramian, singles = _gramian(matrices, sources, weights, layout)
        squares = jnp.diagonal(gramian)
        if layout.by_halves:
            halves = jnp.pad(jnp.diagonal(gramian, offset=1), (0, 1))
    else:
        (squares, halves), singles = _sums(matrices, sources, ways, weights, layout)
    if halves is not None:
        is_half = jnp.diff(layout.wholes, append=layout.num_classes) == 0
        halves = jnp.where(is_half, halves, 0) * scale * jnp.roll(scale, -1)
    # Where examples nearly cancel, the rest is rounding: not even its sign is known.
    rounding = _ROUNDING * float(np.finfo(singles.dtype).eps)
    norms = jnp.sqrt(jnp.maximum(squares, rounding * singles))
    norms = jnp.where(jnp.isinf(norms), jnp.nan, norms)  # too large to be known
    if reference is not None:
        products = _products(matrices, jax.tree.leaves(reference))
        alignment = jnp.clip(products / jnp.where(norms == 0, 1, norms), -1, 1)
    if gramian is not None:
        gramian *= scale[:, None] * scale[None, :]
    return Measured(losses, aux, norms * scale, halves, gramian, alignment, add_up)


def choices_of(
    traced: Traced,
    num_rows: int,
    *,
    by_halves: bool,
    with_reference: bool,
    with_gramian: bool,
) -> list[Choice]:
    """Chooses a way for each site of a loss function."""
    return [
        choose(
            site,
            num_rows,
            by_halves=by_halves,
            keep_rows=with_reference or not traced.in_place.issuperset(site.params),
            with_gramian=with_gramian,
        )
        for site in traced.sites
    ]


def _scale_of_rows(
    sites: Sequence[Site], taps: Sequence[Taps], layout: ClassLayout
) -> jax.Array:
    """The size of the largest cotangent of each row `[R]`, 1 where all are zero."""
    of_examples = functools.reduce(
        jnp.maximum,
        (
            jnp.max(
                jnp.abs(at_least_float32(x)),
                axis=[d for d in range(x.ndim) if d != axis],
            )
            .reshape(layout.size, -1)
            .max(axis=1)
            for site, taken in zip(sites, taps, strict=True)
            for axis, x in zip(site.out_axes, taken.cotangents, strict=True)
        ),
    )
    of_rows = jnp.where(layout.members, of_examples[None, :], 0).max(axis=1)
    return jnp.where(of_rows > float(np.finfo(of_rows.dtype).tiny), of_rows, 1)


def _explicit_rows(
    ways: _Ways, weights: jax.Array, layout: ClassLayout
) -> dict[Slot, jax.Array]:
    """Class-summed gradients `[R, *shape]`, added over the uses of a parameter."""
    total: dict[Slot, jax.Array] = {}
    for site, taken, _ in ways["masked"]:
        grads = masked_gradients(site, taken, weights, layout)
        _add(total, {slot: at_least_float32(x) for slot, x in grads.items()})
    for site, taken, at_once in ways["rows"]:
        if site.kind == "elementwise":
            each = at_least_float32(example_gradients(site, taken, layout.size))
            rows = strategies.sum_by_row(each, weights, layout)
        else:
            rows = strategies.sum_rows(
                site, taken, *_places(site.size, weights, layout), at_once
            )
        _add(total, {site.params[0]: rows})
    return total


def _places(
    size: int, weights: jax.Array, layout: ClassLayout
) -> tuple[jax.Array, ClassLayout]:
    """The batch where each example has several places on the axis of size `size`."""
    return repeated(weights, size), layout.repeated(size // layout.size)


def _add(total: dict[Slot, jax.Array], more: dict[Slot, jax.Array]) -> None:
    for slot, x in more.items():
        total[slot] = total[slot] + x if slot in total else x


def _sums(
    matrices: Sequence[jax.Array],
    sources: Sequence[pairs.PairSource],
    ways: _Ways,
    weights: jax.Array,
    layout: ClassLayout,
) -> tuple[strategies.RowSums, jax.Array]:
    """Inner products of the rows, and the squared norms of their examples, added up."""
    zeros = jnp.zeros(layout.num_rows, weights.dtype)
    found = [strategies.RowSums(zeros, zeros if layout.by_halves else None)]
    found += [strategies.row_sums(x, layout) for x in matrices]
    found += [
        strategies.stream_sums(
            site, taken, *_places(site.size, weights, layout), at_once
        )
        for site, taken, at_once in ways["stream"]
    ]
    found += [
        strategies.lookup_sums(site, taken, *_places(site.size, weights, layout))
        for site, taken, _ in ways["lookup"]
    ]
    singles = zeros
    for size, tokens in sorted({(source.size, source.tokens) for source in sources}):
        alike = [x for x in sources if (x.size, x.tokens) == (size, tokens)]
        sites = [
            site
            for site, _, _ in ways["pairs"]
            if (site.size, site.tokens) == (size, tokens)
        ]
        block = block_size(size, layout.num_wholes, tokens, sites)
        of_pairs = pairs.pair_sums(alike, *_places(size, weights, layout), block)
        found.append(strategies.RowSums(of_pairs.squares, of_pairs.halves))
        singles += of_pairs.singles
    return jax.tree.map(lambda *x: functools.reduce(operator.add, x), *found), singles


def _gramian(
    matrices: Sequence[jax.Array],
    sources: Sequence[pairs.PairSource],
    weights: jax.Array,
    layout: ClassLayout,
) -> tuple[jax.Array, jax.Array]:
    """Inner products of all rows `[R, R]`, and the same of the examples `[R]`."""
    singles = jnp.zeros(layout.num_rows, weights.dtype)
    parts = [wide_dot(x, x, contracted=(1, 1)) for x in matrices]
    for size in sorted({source.size for source in sources}):
        alike = [source for source in sources if source.size == size]
        gramian, more = pairs.pair_gramian(alike, *_places(size, weights, layout))
        parts.append(gramian)
        singles += more
    return functools.reduce(operator.add, parts), singles


def _products(
    matrices: Sequence[jax.Array], reference: Sequence[jax.Array]
) -> jax.Array:
    """Inner products of the rows with their references, `[R]`."""
    parts = [
        jnp.sum(x * y.astype(x.dtype).reshape(x.shape), axis=1)
        for x, y in zip(matrices, reference, strict=True)
    ]
    return functools.reduce(operator.add, parts)


def _side_by_side(arrays: Iterable[jax.Array]) -> list[jax.Array]:
    """As matrices `[B, size]`, small ones together: fewer kernels, little to copy."""
    matrices = [x.reshape(len(x), -1) for x in arrays]
    small = [x for x in matrices if x.shape[1] < _LARGE]
    large = [x for x in matrices if x.shape[1] >= _LARGE]
    return large + ([jnp.concatenate(small, axis=1)] if small else [])


def _weighted_sum(weights: jax.Array, x: jax.Array) -> jax.Array:
    return wide_dot(weights.astype(x.dtype), x, (0, 0))
