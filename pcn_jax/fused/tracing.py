"""A loss function, understood: its program, its sites, and passes through it."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from pcn_jax.counts import at_least_one
from pcn_jax.fused.axis_rules import Axis, NotProvenError
from pcn_jax.fused.copies import give_copies
from pcn_jax.fused.example_axis import Followed, follow_examples
from pcn_jax.fused.linearity import check_linear
from pcn_jax.fused.open_loops import open_loops
from pcn_jax.fused.plan import measured_in_place
from pcn_jax.fused.program import (
    Program,
    Slot,
    dependent_on,
    evaluate,
    flatten,
    leading_to,
    needed_for,
    used_in,
)
from pcn_jax.fused.sites import Site, find_sites
from pcn_jax.fused.taps import Taps
from pcn_jax.precision import at_least_float32


class Traced(NamedTuple):
    """A loss function, understood.

    Attributes:
      losses_fn: The function.
      program: All of it, with what only the auxiliary output needs.
      sites: Where parameters meet examples.
      in_place: Slots of parameters whose gradient has the norm of a parameter's.
      params: Slots of the parameters.
      aux: Structure of the auxiliary output.
      statistics: What computes the last arguments of `program`, in which examples meet,
        from the others; `None` if they meet nowhere.
    """

    losses_fn: Callable[..., tuple[jax.Array, Any]]
    program: Program
    sites: list[Site]
    in_place: set[Slot]
    params: list[Slot]
    aux: Any
    statistics: Program | None

    def arguments(self, *given: Any) -> list[Any]:
        """The arguments of `program`, flat, from those of the loss function."""
        flat = jax.tree.leaves(given)
        if self.statistics is None:
            return flat
        values = evaluate(self.statistics, flat)
        return [*flat, *(values[slot] for slot in self.statistics.outputs)]


def trace(
    losses_fn: Callable[..., tuple[jax.Array, Any]],
    params: chex.ArrayTree,
    inputs: Any,
    labels: jax.Array,
    *args: Any,
    freeze: bool = False,
) -> Traced:
    """Traces a loss function and proves that examples do not interact in it.

    Args:
      losses_fn: Returns losses `[B]` and an auxiliary output.
      params: Parameters.
      inputs: Arrays `[B, ...]`.
      labels: Integers `[B]`.
      *args: What else it takes.
      freeze: Whether examples may meet in statistics: those become arguments, and so
        have no derivative.

    Returns:
      What it is made of.

    Raises:
      NotProvenError: If examples interact, or if that cannot be excluded.
    """
    given = params, inputs, labels, *args
    closed, shapes = jax.make_jaxpr(losses_fn, return_shape=True)(*given)
    program = flatten(closed)
    counted = jax.tree.leaves((inputs, labels))
    for path, x in jax.tree_util.tree_leaves_with_path(inputs):
        if jnp.shape(x)[:1] != jnp.shape(labels):
            name = jax.tree_util.keystr(path).removeprefix(".")
            raise NotProvenError(
                f"{name} has shape {jnp.shape(x)}, and so not the {len(labels)} "
                "examples on its first axis: what is of all examples goes behind the "
                "labels"
            )
    number = len(jax.tree.leaves(params))
    axes = [
        *[None] * number,
        *[0] * len(counted),
        *[None] * (len(program.inputs) - number - len(counted)),
    ]
    slots = program.inputs[:number]
    program, (known, found) = _proven(program, axes, slots, freeze=freeze)
    statistics = None
    if found:
        statistics = needed_for(program, found)._replace(outputs=found)
        program = _given(program, found)
    of_losses = _of_losses(program)
    depends = _with_derivative(of_losses, slots)
    check_linear(of_losses, {x for x in depends if known.get(x, 0) is None})
    opened = open_loops(program, known, depends, used_in(of_losses))
    program = opened.program
    of_losses = _of_losses(program)
    others = [x for x in of_losses.equations if x.outputs not in opened.loops]
    sites_of = functools.partial(find_sites, axes=opened.axes, depends=opened.depends)
    sites = [
        *sites_of(of_losses._replace(equations=others)),
        *sites_of(of_losses._replace(equations=opened.inside)),
    ]
    if not sites:
        raise NotProvenError("no parameter meets an example")
    uses = itertools.chain.from_iterable(site.params for site in sites)
    return Traced(
        losses_fn,
        program,
        sites,
        measured_in_place(of_losses, slots, set(uses)),
        slots,
        jax.tree.structure(shapes[1]),
        statistics,
    )


def _proven(
    program: Program, axes: Sequence[Axis], slots: Sequence[Slot], *, freeze: bool
) -> tuple[Program, Followed]:
    """The program, with copies of parameters for the examples if that can be proven."""

    def follow(program: Program) -> Followed:
        of_losses = _of_losses(program)
        depends = _with_derivative(of_losses, slots)
        followed = follow_examples(of_losses, axes, depends, freeze=freeze)
        if followed.axes[program.outputs[0]] != 0:
            raise NotProvenError("the losses do not depend on the examples")
        return followed

    if not freeze:
        size = program.shape(program.outputs[0])[0]
        depends = _with_derivative(_of_losses(program), slots)
        with_copies = give_copies(program, depends, size)
        if with_copies is not program:
            try:
                return with_copies, follow(with_copies)
            except NotProvenError:
                pass  # another axis is as long as the batch, or copies are summed up
    return program, follow(program)


def _given(program: Program, slots: list[Slot]) -> Program:
    """The same with some of its values as further arguments."""
    others = [x for x in program.equations if not set(slots).intersection(x.outputs)]
    return program._replace(equations=others, inputs=[*program.inputs, *slots])


def _with_derivative(program: Program, slots: Sequence[Slot]) -> set[Slot]:
    """The slots through which a derivative goes from the losses to some slots."""
    return dependent_on(program, slots) & leading_to(program, program.outputs)


def _of_losses(program: Program) -> Program:
    """Without what only the auxiliary output needs."""
    losses = program.outputs[:1]
    return needed_for(program, losses)._replace(outputs=losses)


def tap(
    traced: Traced, given: Sequence[Any], seeds: jax.Array
) -> tuple[jax.Array, Any, list[Taps]]:
    """Passes through the network and back, without taking any weight gradient.

    Args:
      traced: The loss function.
      given: What `arguments` returns.
      seeds: Weights of the examples' losses in their mean, `[B]`.

    Returns:
      Losses `[B]` in float32 or wider, the auxiliary output and the taps of each site.
    """
    program, sites = traced.program, traced.sites
    probes = {
        slot: jnp.zeros(program.types[slot].shape, program.types[slot].dtype)
        for site in sites
        for slot in _results(site)
    }

    def forward(probes: dict[Slot, jax.Array]) -> tuple[jax.Array, Any]:
        def add_probes(outputs: tuple[Slot, ...], results: list[Any]) -> list[Any]:
            return [
                x + probes[slot] if slot in probes else x
                for slot, x in zip(outputs, results, strict=True)
            ]

        # Open loops read those of their sites, whose slots nothing else fills.
        constants = {**program.constants, **probes}
        values = evaluate(program._replace(constants=constants), given, add_probes)
        operands = [{x: values[x] for x in site.axes} for site in sites]
        losses, *aux = (values[slot] for slot in program.outputs)
        return at_least_float32(losses), (operands, aux)

    losses, pullback, (operands, aux) = jax.vjp(forward, probes, has_aux=True)
    seeds = seeds.astype(losses.dtype)
    (cotangents,) = pullback(seeds / at_least_one(seeds.sum()))
    taps = [
        Taps(values, [cotangents[slot] for slot in _results(site)])
        for site, values in zip(sites, operands, strict=True)
    ]
    return losses, jax.tree.unflatten(traced.aux, aux), taps


def _results(site: Site) -> list[Slot]:
    """Those that have a derivative."""
    return list(itertools.compress(site.equation.outputs, site.differentiable))


def pull_back_to_params(
    traced: Traced, given: Sequence[Any], grads: dict[Slot, jax.Array]
) -> list[jax.Array]:
    """From gradients by values that depend on parameters alone, to the parameters.

    Args:
      traced: The loss function.
      given: What `arguments` returns.
      grads: Gradients, by the slots of the values.

    Returns:
      Gradients by the parameters, flat.
    """
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


def weighted_gradient(
    traced: Traced, weights: jax.Array, params: chex.ArrayTree, *given: Any
) -> chex.ArrayTree:
    """Gradient of a weighted mean of the losses, in a pass of its own.

    Args:
      traced: The loss function.
      weights: Of the examples' losses, `[B]`; zero for padding.
      params: Its parameters.
      *given: Its other arguments.

    Returns:
      A pytree like `params`; nothing in the loss function is held fixed.
    """
    losses, pullback = jax.vjp(lambda x: traced.losses_fn(x, *given)[0], params)
    (gradient,) = pullback(weights.astype(losses.dtype))
    return gradient


def params_of(traced: Traced) -> list[list[int]]:
    """Of each site, which parameters it uses, in the order of `jax.tree.leaves`."""
    behind = {slot: {k} for k, slot in enumerate(traced.params)}
    for equation in traced.program.equations:
        used = [behind[slot] for slot in equation.inputs if slot in behind]
        behind |= dict.fromkeys(equation.outputs, set().union(*used))
    return [
        sorted(set().union(*(behind[slot] for slot in site.params)))
        for site in traced.sites
    ]
