"""Follows the examples of a batch through a program, to prove that they never meet.

Every value either has one axis that counts the examples, the batch axis, and then its
slice for one example depends on no other, or it has none, and then it is the same for
all of them. On that axis each example may have several places, one after the other, as
where `[B, T, D]` became `[B * T, D]`; its slice is then all of them. A primitive that
mixes slices, or that is not known here, ends the proof; but not where no parameter is
behind them, as where inputs are mixed with each other. Statistics, such as the mean of
a batch, may be let pass to be held fixed.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from pcn_jax.fused.axis_rules import (
    REARRANGING,
    Axis,
    NotProvenError,
    Rule,
    StatisticError,
    Use,
    common_axis,
    mixes,
    rule_of,
)
from pcn_jax.fused.copies import GIVEN
from pcn_jax.fused.program import (
    Equation,
    Program,
    Slot,
    flatten,
    has_gradient,
    needed_for,
    used_in,
)


class Followed(NamedTuple):
    """What became of the examples.

    Attributes:
      axes: The axis of every slot. Where a value without one meets examples and is as
        long as the batch, its slices belong to the examples, as those of a dropout mask
        do.
      statistics: Slots of what is taken over all examples and depends on parameters.
    """

    axes: dict[Slot, Axis]
    statistics: list[Slot]


def follow_examples(
    program: Program,
    axes: Sequence[Axis],
    depends: set[Slot] | None = None,
    *,
    freeze: bool = False,
    size: int | None = None,
) -> Followed:
    """Finds the batch axis of every value of a program.

    Args:
      program: A program without equations that its outputs do not need.
      axes: Axis of each of its inputs.
      depends: The slots through which a derivative goes to parameters. In the others
        examples may meet as they like: whatever is in the place of an example is its
        own, since no gradient goes through it to the others. `None` for any, in a part
        of a program, which may also run on some of the examples.
      freeze: Whether they may also meet in statistics, because those are held fixed.
      size: How many examples there are; `None` for the length of their axes.

    Returns:
      The axes, and the statistics.

    Raises:
      NotProvenError: At the first primitive that lets examples interact, or may do so.
    """
    known: dict[Slot, Axis] = dict.fromkeys(program.constants)
    known.update(zip(program.inputs, axes, strict=True))
    size, used = size or _size(program, known), used_in(program)
    statistics: list[Slot] = []
    # What is made of inputs of several examples and has no axis for them. A net behind
    # inputs of all examples would pass for a parameter, and be gone through once a
    # class: that is refused.
    mixed: set[Slot] = set()
    refused: dict[Slot, NotProvenError] = {}
    for equation in program.equations:
        name = equation.primitive
        use = _use(equation, program, known, size, used, is_whole=depends is not None)
        is_free = depends is not None and depends.isdisjoint(equation.outputs)
        outputs: Sequence[Axis] = [None] * len(equation.outputs)
        reason = next((refused[x] for x in equation.inputs if x in refused), None)
        if any(axis is not None for axis in use.axes):
            try:
                rule = _WITH_PROGRAMS.get(name) or rule_of(name)
                # Axes of NumPy, as of a permutation, are none for jax.vmap.
                outputs = [x if x is None else int(x) for x in rule(use)]
            except NotProvenError as error:
                error.source = error.source or equation.source
                if not is_free and not (freeze and isinstance(error, StatisticError)):
                    raise
                if not is_free:
                    statistics += equation.outputs
                elif not isinstance(error, StatisticError):
                    outputs = _as_they_lie(use)
                    mixed.update(equation.outputs)
                    reason = error if _has_all_numbers(use) else reason
        elif name == GIVEN:
            outputs = [equation.params["axis"]]
        elif is_free and mixed.intersection(equation.inputs):
            outputs = _as_long_as_the_batch(use)
            mixed.update(equation.outputs)
        known.update(zip(equation.outputs, outputs, strict=True))
        if reason is not None:
            if not is_free:
                raise reason
            if name in REARRANGING and list(outputs) == [None]:
                refused[equation.outputs[0]] = reason
    return Followed(known, statistics)


def _use(
    equation: Equation,
    program: Program,
    known: dict[Slot, Axis],
    size: int,
    used: set[Slot],
    *,
    is_whole: bool = False,
) -> Use:
    return Use(
        equation,
        [None if slot is None else known[slot] for slot in equation.operands],
        [() if slot is None else program.shape(slot) for slot in equation.operands],
        [program.shape(slot) for slot in equation.outputs],
        size,
        [slot in used for slot in equation.outputs],
        program if is_whole else None,
    )


def _size(program: Program, axes: dict[Slot, Axis]) -> int:
    """How many examples there are, by the inputs of a program."""
    places = ((slot, axes[slot]) for slot in program.inputs)
    return math.gcd(*(program.shape(x)[a] for x, a in places if a is not None))


def _as_they_lie(use: Use) -> Sequence[Axis]:
    """Each result has the axis of an operand, if it is as long there as the batch."""
    places = [
        (axis, shape[axis])
        for axis, shape in zip(use.axes, use.shapes, strict=True)
        if axis is not None
    ]
    return [
        next((a for a, size in places if result[a : a + 1] == (size,)), None)
        for result in use.results
    ]


def _has_all_numbers(use: Use) -> bool:
    """Whether a primitive puts all of an operand with examples elsewhere."""
    operand = next(k for k, axis in enumerate(use.axes) if axis is not None)
    return math.prod(use.results[0]) >= math.prod(use.shapes[operand])


def _as_long_as_the_batch(use: Use) -> Sequence[Axis]:
    """Where examples without an axis are put together anew, one by one."""
    name, (result, *_) = use.equation.primitive, use.results
    if name == "concatenate":
        axis = use.params["dimension"]
        return [axis if result[axis] == use.size else None]
    if name in ("slice", "gather") and use.size in result:
        return [result.index(use.size)]
    return [None] * len(use.results)


def _custom_derivative(use: Use) -> Sequence[Axis]:
    """Looks into the function and into its derivative, which may be anything."""
    outputs = _follow_inner(flatten(use.params["call_jaxpr"]), use.axes, use.size)
    known = dict(zip(use.equation.operands, use.axes, strict=True))
    axes = [known[slot] for slot in use.equation.inputs]
    values = use.equation.types
    chosen = [
        k
        for k, (axis, value) in enumerate(zip(axes, values, strict=True))
        if axis is not None and has_gradient(value)
    ]

    def pullback(cotangents: list[jax.Array], values: list[jax.Array]) -> Any:
        def function(*some: jax.Array) -> list[jax.Array]:
            given = list(values)
            for k, value in zip(chosen, some, strict=True):
                given[k] = value
            return [x for x in use.equation.apply(*given) if has_gradient(x)]

        return jax.vjp(function, *(values[k] for k in chosen))[1](cotangents)

    results = jax.eval_shape(use.equation.apply, *values)
    cotangents = [x for x in results if has_gradient(x)]
    # Whose own parts may be the function again, as in logaddexp; nobody differentiates
    # them a second time.
    pulled_back = jax.make_jaxpr(pullback)(cotangents, values)
    derivative = flatten(pulled_back, differentiable=False)
    with_gradient = [
        axis for axis, x in zip(outputs, results, strict=True) if has_gradient(x)
    ]
    found = _follow_inner(derivative, [*with_gradient, *axes], use.size)
    if any(then not in (None, axes[k]) for k, then in zip(chosen, found, strict=True)):
        raise mixes("a custom derivative moves the batch axis")
    return outputs


def _linear_solve(use: Use) -> Sequence[Axis]:
    """Looks into the solution and into the products that its derivative is made of."""
    given = iter(use.axes)
    of_each = [list(itertools.islice(given, n)) for n in use.params["const_lengths"]]
    of_rhs = list(given)
    for body, axes in zip(use.params["jaxprs"], of_each, strict=True):
        if body is not None:
            found = _follow_inner(flatten(body), [*axes, *of_rhs], use.size)
            if found != [use.axis] * len(found):
                raise mixes("a linear solver moves the batch axis")
    return [use.axis] * len(of_rhs)


def _follow_inner(
    program: Program,
    axes: Sequence[Axis],
    size: int,
    results: Sequence[Slot] | None = None,
) -> list[Axis]:
    """Axes of the outputs of a part; anything of those that are not among `results`."""
    results = program.outputs if results is None else list(results)
    needed = needed_for(program, results)._replace(outputs=results)
    try:
        known = follow_examples(needed, axes, size=size).axes
    except StatisticError as reason:  # in a loop or a branch it cannot be held fixed
        inside = NotProvenError(*reason.args)
        inside.source = reason.source
        raise inside from None
    return [known.get(slot) for slot in program.outputs]


def _follow_loop(
    body: Program,
    axes: Sequence[Axis],
    carry: slice,
    size: int,
    results: Sequence[Slot] | None = None,
) -> tuple[list[Axis], list[Axis]]:
    """Axes of a loop's inputs and outputs, once what it carries has settled."""
    inputs = list(axes)
    while True:
        outputs = _follow_inner(body, inputs, size, results)
        carried = len(inputs[carry])
        joined = [
            before if after is None else after
            for before, after in zip(inputs[carry], outputs[:carried], strict=True)
        ]
        if inputs[carry] == joined:
            return inputs, [*joined, *outputs[carried:]]
        if any(
            before is not None and before != after
            for before, after in zip(inputs[carry], joined, strict=True)
        ):
            raise mixes("a loop moves the batch axis")
        inputs[carry] = joined


class Scan(NamedTuple):
    """What a `scan` does.

    Attributes:
      body: What it does in each step.
      carry: Which inputs of the body it carries from step to step; what comes before
        is the same in all of them, and what comes after has a slice for each.
      axes: The batch axis, of each input of the body.
      results: The same of each result of the loop.
      live: The outputs of the body in which examples were followed: all, or those
        without which the results that are used could not be known.
      size: How many examples there are.
    """

    body: Program
    carry: slice
    axes: list[Axis]
    results: list[Axis]
    live: list[Slot]
    size: int


def follow_scan(
    equation: Equation, program: Program, axes: dict[Slot, Axis], used: set[Slot]
) -> Scan:
    """Follows the examples into a loop of fixed length.

    Args:
      equation: The loop, a `scan`.
      program: Where it is.
      axes: The axis of each of its operands.
      used: The slots that matter. In results that are not among them, such as
        measurements of layers, examples may meet.

    Returns:
      The inside of the loop.

    Raises:
      NotProvenError: If examples interact in it, or may do so.
    """
    return _follow_scan(_use(equation, program, axes, _size(program, axes), used))


def _follow_scan(use: Use) -> Scan:
    # How many operands are of which kind has been said in several ways by JAX; that
    # what is scanned has one axis more outside of the loop has always been so.
    body = flatten(use.params["jaxpr"])
    scanned, stacked = (
        sum(
            len(outside) > len(body.shape(slot))
            for outside, slot in zip(shapes, slots, strict=True)
        )
        for shapes, slots in ((use.shapes, body.inputs), (use.results, body.outputs))
    )
    start, carries = len(use.axes) - scanned, len(use.results) - stacked
    if 0 in use.axes[start:]:
        raise mixes("a loop (lax.scan, lax.map) runs over them")
    inner = [*use.axes[:start], *(x if x is None else x - 1 for x in use.axes[start:])]
    carry, live = slice(start - carries, start), body.outputs
    try:
        inputs, outputs = _follow_loop(body, inner, carry, use.size)
    except NotProvenError:
        if all(use.live):
            raise
        live = _live_outputs(body, carry, use.live)
        inputs, outputs = _follow_loop(body, inner, carry, use.size, live)
    stacks = [y if y is None else y + 1 for y in outputs[carries:]]
    return Scan(body, carry, inputs, [*outputs[:carries], *stacks], live, use.size)


def _live_outputs(body: Program, carry: slice, live: Sequence[bool]) -> list[Slot]:
    """Those without which the live ones are not known, in this step or a later one."""
    carried = list(zip(body.inputs[carry], body.outputs, strict=False))
    found = list(itertools.compress(body.outputs, live))
    while True:
        used = used_in(needed_for(body, found)._replace(outputs=found))
        more = [after for before, after in carried if before in used]
        if set(more) <= set(found):
            return found
        found = list(dict.fromkeys([*found, *more]))


def _scan(use: Use) -> Sequence[Axis]:
    return _follow_scan(use).results


def _while(use: Use) -> Sequence[Axis]:
    first, second = use.params["cond_nconsts"], use.params["body_nconsts"]
    carry = slice(second, len(use.axes) - first)
    body = flatten(use.params["body_jaxpr"])
    inputs, outputs = _follow_loop(body, use.axes[first:], carry, use.size)
    condition = flatten(use.params["cond_jaxpr"])
    given = [*use.axes[:first], *inputs[carry]]
    if _follow_inner(condition, given, use.size) != [None]:
        raise mixes("the condition of a while loop depends on them")
    return outputs


def _cond(use: Use) -> Sequence[Axis]:
    branches = [
        _follow_inner(flatten(branch), use.axes[1:], use.size)
        for branch in use.params["branches"]
    ]
    if use.axes[0] is not None:
        raise mixes("the predicate of a cond depends on them")
    return [
        None if set(found) == {None} else common_axis(found)
        for found in zip(*branches, strict=True)
    ]


_WITH_PROGRAMS: dict[str, Rule] = {
    "custom_jvp_call": _custom_derivative,
    "custom_vjp_call": _custom_derivative,
    "custom_linear_solve": _linear_solve,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}
"""Primitives that have programs inside."""
