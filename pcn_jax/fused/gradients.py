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
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from pcn_jax.fused import strategies
from pcn_jax.fused.class_layout import ClassLayout, sort_by_class
from pcn_jax.fused.example_axis import NotProven, follow_examples
from pcn_jax.fused.plan import Choice, choose, measured_in_place
from pcn_jax.fused.program import Program, Slot, evaluate, flatten, needed_for
from pcn_jax.fused.sites import Site, Taps, find_sites, weight_gradients
from pcn_jax.precision import at_least_float32

_FEW_NUMBERS = 4096


class Traced(NamedTuple):
    """A loss function, understood.

    Attributes:
      program: All of it, with what only the auxiliary output needs.
      sites: Where parameters meet examples.
      in_place: Slots of parameters whose gradient has the norm of a parameter's.
      params: Slots of the parameters.
      aux: Structure of the auxiliary output.
    """

    program: Program
    sites: list[Site]
    in_place: set[Slot]
    params: list[Slot]
    aux: Any


def trace(
    losses_fn: Callable[..., tuple[jax.Array, Any]],
    params: chex.ArrayTree,
    inputs: Any,
    labels: jax.Array,
    *args: Any,
) -> Traced:
    """Traces a loss function and proves that examples do not interact in it.

    Args:
      losses_fn: Returns losses `[B]` and an auxiliary output.
      params: Parameters.
      inputs: Arrays `[B, ...]`.
      labels: Integers `[B]`.
      *args: What else it takes.

    Returns:
      What it is made of.

    Raises:
      NotProven: If examples interact, or if that cannot be excluded.
    """
    given = params, inputs, labels, *args
    closed, shapes = jax.make_jaxpr(losses_fn, return_shape=True)(*given)
    program = flatten(closed)
    counted = jax.tree.leaves((inputs, labels))
    if any(jnp.shape(x)[:1] != jnp.shape(labels) for x in counted):
        raise NotProven("not all inputs have the examples on their first axis")
    number = len(jax.tree.leaves(params))
    axes = [
        *[None] * number,
        *[0] * len(counted),
        *[None] * (len(program.inputs) - number - len(counted)),
    ]
    of_losses = needed_for(program, program.outputs[:1])._replace(
        outputs=program.outputs[:1]
    )
    known = follow_examples(of_losses, axes)
    if known[program.outputs[0]] != 0:
        raise NotProven("the losses do not depend on the examples")
    slots = program.inputs[:number]
    depends = set(slots)
    for equation in of_losses.equations:
        if depends.intersection(equation.inputs):
            depends.update(equation.outputs)
    sites = find_sites(of_losses, known, depends)
    if not sites:
        raise NotProven("no parameter meets an example")
    uses = itertools.chain.from_iterable(site.params for site in sites)
    return Traced(
        program,
        sites,
        measured_in_place(of_losses, set(uses)),
        slots,
        jax.tree.structure(shapes[1]),
    )


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
    losses, aux, taps = _tap(traced, given, seeds)
    scale = _scale_of_rows(traced.sites, taps, layout)
    weights = (1 / jnp.append(scale, 1))[layout.row]
    choices = choices_of(
        traced,
        layout.num_rows,
        with_reference=reference is not None,
        with_gramian=with_gramian,
    )
    ways: dict[str, list[tuple[Site, Taps, Choice]]] = {}
    for site, tap, choice in zip(traced.sites, taps, choices, strict=True):
        ways.setdefault(choice.way, []).append((site, tap, choice))

    rows: dict[Slot, jax.Array] = {}
    for way in ("rows", "examples", "masked"):
        for site, tap, choice in ways.get(way, ()):
            for slot, grads in _rows(site, tap, weights, layout, choice).items():
                rows[slot] = rows[slot] + grads if slot in rows else grads
    in_place = traced.in_place if reference is None else set()
    stacks = [grads for slot, grads in rows.items() if slot in in_place]
    elsewhere = {slot: grads for slot, grads in rows.items() if slot not in in_place}
    to_params = functools.partial(_pull_back_to_params, traced, given)
    if elsewhere:
        stacks = [*stacks, *jax.vmap(to_params)(elsewhere)]
    matrices = [at_least_float32(x).reshape(layout.num_rows, -1) for x in stacks]

    products = None
    if reference is not None:
        units = [x.reshape(layout.num_rows, -1) for x in jax.tree.leaves(reference)]
        pairs = zip(matrices, units, strict=True)
        products = sum(jnp.sum(x * y.astype(x.dtype), axis=1) for x, y in pairs)
    gramian = None
    pairs_of = [(site, tap) for site, tap, _ in ways.get("pairs", ())]
    if with_gramian:
        parts = [jnp.matmul(x, x.T, precision=_HIGHEST) for x in matrices]
        if pairs_of:
            parts.append(strategies.pair_gramian(pairs_of, weights, layout))
        gramian = sum(parts[1:], start=parts[0])
        squares = jnp.diagonal(gramian)
    else:
        squares = jnp.zeros(layout.num_rows, losses.dtype)
        for matrix in matrices:
            squares += jnp.sum(matrix * matrix, axis=1)
        for site, tap, choice in ways.get("stream", ()):
            squares += strategies.stream_squares(
                site, tap, weights, layout, choice.at_once or 1
            )
        for site, tap, _ in ways.get("lookup", ()):
            squares += strategies.lookup_squares(site, tap, weights, layout)
        if pairs_of:
            block = ways["pairs"][0][2].at_once or 1
            squares += strategies.pair_squares(pairs_of, weights, layout, block)

    def add_up(row_weights: jax.Array) -> chex.ArrayTree:
        example_weights = jnp.append(row_weights, 0)[layout.row]
        factors = row_weights * scale
        sums = {
            slot: jnp.tensordot(factors.astype(x.dtype), x, 1, precision=_HIGHEST)
            for slot, x in rows.items()
        }
        for way in ("pairs", "stream", "lookup"):
            for site, tap, _ in ways.get(way, ()):
                sums |= weight_gradients(site, tap, example_weights)
        return jax.tree.unflatten(jax.tree.structure(params), to_params(sums))

    return Measured(losses, aux, squares, gramian, products, scale, add_up)


def params_of(traced: Traced) -> list[list[int]]:
    """Of each site, the positions of the parameters that it uses, as `jax.tree` counts."""
    made_by = {
        slot: equation
        for equation in traced.program.equations
        for slot in equation.outputs
    }
    place = {slot: k for k, slot in enumerate(traced.params)}

    def behind(slot: Slot) -> set[int]:
        if slot in place:
            return {place[slot]}
        inputs = made_by[slot].inputs if slot in made_by else ()
        return set().union(*map(behind, inputs))

    return [sorted(set().union(*map(behind, site.params))) for site in traced.sites]


def choices_of(
    traced: Traced, num_rows: int, *, with_reference: bool, with_gramian: bool
) -> list[Choice]:
    """Chooses a way for each site of a loss function."""
    on_cpu = jax.default_backend() == "cpu"
    return [
        choose(
            site,
            num_rows,
            keep_rows=with_reference or not traced.in_place.issuperset(site.params),
            with_gramian=with_gramian,
            on_cpu=on_cpu,
        )
        for site in traced.sites
    ]


def _tap(
    traced: Traced, given: Sequence[Any], seeds: jax.Array
) -> tuple[jax.Array, Any, list[Taps]]:
    """One pass forwards and one back: losses, auxiliary output and taps."""
    program, sites = traced.program, traced.sites
    place = {site.equation.outputs: k for k, site in enumerate(sites)}
    probes = [
        [
            jnp.zeros(program.types[slot].shape, program.types[slot].dtype)
            for slot in itertools.compress(site.equation.outputs, site.differentiable)
        ]
        for site in sites
    ]

    def forward(probes: list[list[jax.Array]]) -> tuple[jax.Array, Any]:
        def add_probes(outputs: tuple[Slot, ...], results: list[Any]) -> list[Any]:
            if outputs not in place:
                return results
            site, more = sites[place[outputs]], iter(probes[place[outputs]])
            flags = site.differentiable
            return [
                x + next(more) if flag else x
                for x, flag in zip(results, flags, strict=True)
            ]

        values = evaluate(program, given, add_probes)
        operands = [{x: values[x] for x in site.axes} for site in sites]
        losses, *aux = (values[slot] for slot in program.outputs)
        return at_least_float32(losses), (operands, aux)

    losses, pullback, (operands, aux) = jax.vjp(forward, probes, has_aux=True)
    (cotangents,) = pullback(seeds.astype(losses.dtype))
    taps = [Taps(*pair) for pair in zip(operands, cotangents, strict=True)]
    return losses, jax.tree.unflatten(traced.aux, aux), taps


def _scale_of_rows(
    sites: Sequence[Site], taps: Sequence[Taps], layout: ClassLayout
) -> jax.Array:
    """The size of the cotangents of each row `[R]`, 1 where it is zero.

    All cotangents of an example scale with its loss, so a look at small ones will do.
    """
    largest: dict[int, list[jax.Array]] = {}
    for site, tap in zip(sites, taps, strict=True):
        for axis, x in zip(site.out_axes, tap.cotangents, strict=True):
            others = [d for d in range(x.ndim) if d != axis]
            numbers = x.size // max(x.shape[axis], 1)
            largest.setdefault(max(numbers, _FEW_NUMBERS), []).append(
                jnp.max(jnp.abs(at_least_float32(x)), axis=others, initial=0)
            )
    of_examples = functools.reduce(jnp.maximum, largest[min(largest)])
    rows = (
        jnp.zeros(layout.num_rows + 1, of_examples.dtype)
        .at[layout.row]
        .max(of_examples)
    )
    rows = rows[: layout.num_rows]
    usable = rows > jnp.finfo(rows.dtype).tiny
    return jnp.where(usable, rows, 1)


def _rows(
    site: Site, taps: Taps, weights: jax.Array, layout: ClassLayout, choice: Choice
) -> dict[Slot, jax.Array]:
    if choice.way == "masked":
        return strategies.sum_masked(site, taps, weights, layout)
    (slot,) = site.params
    if choice.way == "examples":
        return {slot: strategies.sum_examples(site, taps, weights, layout)}
    return {slot: strategies.sum_rows(site, taps, weights, layout, choice.at_once or 1)}


def _pull_back_to_params(
    traced: Traced, given: Sequence[Any], grads: dict[Slot, jax.Array]
) -> list[jax.Array]:
    """From gradients by values that depend on parameters alone, to the parameters."""
    program = needed_for(traced.program, grads)
    number = len(traced.params)

    def values(params: Sequence[jax.Array]) -> dict[Slot, jax.Array]:
        known = evaluate(program, [*params, *given[number:]])
        return {slot: known[slot] for slot in grads}

    expected, pullback = jax.vjp(values, list(given[:number]))
    (by_params,) = pullback(
        {slot: grad.astype(expected[slot].dtype) for slot, grad in grads.items()}
    )
    return list(by_params)


_HIGHEST = jax.lax.Precision.HIGHEST
