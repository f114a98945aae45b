"""Follows the examples of a batch through a program, to prove that they never meet.

Every value either has one axis that counts the examples, and then its slice for one
example depends on no other, or it has none, and then it is the same for all of them. On
that axis each example may have several places, one after the other, as where
`[B, T, D]` became `[B * T, D]`; its slice is then all of them. A primitive that mixes
slices, or that is not known here, ends the proof; but not where no parameter is behind
them, as where inputs are mixed with each other. Statistics, such as the mean of a
batch, may be let pass to be held fixed.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from pcn_jax.fused.program import (
    Equation,
    Program,
    Slot,
    evaluate,
    flatten,
    is_float,
    needed_for,
)

Axis = int | None
"""Position of the axis that counts the examples; `None` for a value without one."""


class NotProvenError(Exception):
    """It could not be shown that the examples of the batch do not interact."""


class StatisticError(NotProvenError):
    """They interact in a value that all of them share, such as a mean."""


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
    """Finds the axis that counts the examples, of every value of a program.

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
    size = size or _size(program, known)
    statistics: list[Slot] = []
    # Inputs of all examples that a reshape put on one axis. A net behind them would
    # pass for a parameter, and be gone through once a class.
    spread: dict[Slot, NotProvenError] = {}
    for equation in program.equations:
        use = _use(equation, program, known, size, is_whole=depends is not None)
        outputs: Sequence[Axis] = [None] * len(equation.outputs)
        lost = next((spread[x] for x in equation.inputs if x in spread), None)
        if any(axis is not None for axis in use.axes):
            try:
                # Axes of NumPy, as of a permutation, are none for jax.vmap.
                outputs = [x if x is None else int(x) for x in _rule(equation)(use)]
            except NotProvenError as reason:
                if depends is not None and depends.isdisjoint(equation.outputs):
                    outputs = _as_they_lie(use)
                    lost = reason if equation.primitive == "reshape" else lost
                elif freeze and isinstance(reason, StatisticError):
                    statistics += equation.outputs
                else:
                    raise
        known.update(zip(equation.outputs, outputs, strict=True))
        if lost is not None:
            if depends is None or not depends.isdisjoint(equation.outputs):
                raise lost
            if equation.primitive in _REARRANGING and list(outputs) == [None]:
                spread[equation.outputs[0]] = lost
    return Followed(known, statistics)


class _Use(NamedTuple):
    """A primitive in use: what a rule looks at.

    Attributes:
      equation: The primitive.
      axes: Of its operands.
      shapes: Of its operands.
      results: Shapes of its results.
      size: How many examples there are.
      whole: The program that it is in, if that always runs on the whole batch: a part,
        such as the body of a loop, may run on some examples.
    """

    equation: Equation
    axes: list[Axis]
    shapes: list[tuple[int, ...]]
    results: list[tuple[int, ...]]
    size: int
    whole: Program | None

    @property
    def params(self) -> dict[str, Any]:
        return self.equation.params

    @property
    def axis(self) -> int:
        """The one axis of all operands that have one."""
        return _common(self.axes)


def _use(
    equation: Equation,
    program: Program,
    known: dict[Slot, Axis],
    size: int,
    *,
    is_whole: bool = False,
) -> _Use:
    return _Use(
        equation,
        [None if slot is None else known[slot] for slot in equation.operands],
        [() if slot is None else program.shape(slot) for slot in equation.operands],
        [program.shape(slot) for slot in equation.outputs],
        size,
        program if is_whole else None,
    )


def _size(program: Program, axes: dict[Slot, Axis]) -> int:
    """How many examples there are, by the inputs of a program."""
    places = ((slot, axes[slot]) for slot in program.inputs)
    return math.gcd(*(program.shape(x)[a] for x, a in places if a is not None))


def _as_they_lie(use: _Use) -> Sequence[Axis]:
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


Rule = Callable[[_Use], Sequence[Axis]]
"""From a primitive in use to the axis of each of its results."""


def _rule(equation: Equation) -> Rule:
    name = equation.primitive
    if name in _RULES:
        return _RULES[name]
    if name.startswith("reduce_window"):
        return _reduce_window
    if name.startswith(("reduce_", "argm")):
        return _reduce
    raise NotProvenError(f"the primitive {name!r} is not known to keep examples apart")


def _common(axes: Iterable[Axis]) -> int:
    found = {axis for axis in axes if axis is not None}
    if len(found) != 1:
        raise _mixes("values of different examples are combined")
    return found.pop()


_INTERACT = "examples of the batch interact: "


def _mixes(what: str) -> NotProvenError:
    return NotProvenError(_INTERACT + what)


def _statistic(what: str) -> StatisticError:
    return StatisticError(_INTERACT + what)


def _elementwise(use: _Use) -> Sequence[Axis]:
    return [use.axis] * len(use.results)


def _each_by_itself(use: _Use) -> Sequence[Axis]:
    return use.axes


def _along(name: str) -> Rule:
    """For primitives that work along one axis or several, and keep the others."""

    def rule(use: _Use) -> Sequence[Axis]:
        along = use.params.get(name, len(use.shapes[0]) - 1)
        if use.axis in (along if isinstance(along, Sequence) else [along]):
            raise _mixes("something is computed along the axis that counts them")
        return [use.axis] * len(use.results)

    return rule


def _reduce(use: _Use) -> Sequence[Axis]:
    axes = use.params["axes"]
    if use.axis in axes:
        raise _statistic("something is taken over all of them, such as a mean")
    return [use.axis - sum(gone < use.axis for gone in axes)] * len(use.results)


def _reduce_window(use: _Use) -> Sequence[Axis]:
    steps = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
    apart = all(use.params[name][use.axis] == 1 for name in steps)
    if not apart or tuple(use.params["padding"][use.axis]) != (0, 0):
        raise _mixes("a window spans several of them")
    return [use.axis] * len(use.results)


def _broadcast(use: _Use) -> Sequence[Axis]:
    new = use.params["broadcast_dimensions"][use.axis]
    if use.results[0][new] != use.shapes[0][use.axis]:
        raise NotProvenError("a batch of one example is repeated")
    return [new]


def _reshape(use: _Use) -> Sequence[Axis]:
    (old, *_), (result,) = use.shapes, use.results
    before = math.prod(old[: use.axis])
    if use.params.get("dimensions") is None:
        # Each example may have more places than before, or fewer, but whole ones.
        # Of one example any axis would do: the one that has it alone comes first.
        found = [
            new
            for new, length in enumerate(result)
            if math.prod(result[:new]) == before and length % use.size == 0
        ]
        if found:
            return [min(found, key=result.__getitem__)]
    raise NotProvenError(
        f"a reshape of {old} to {result} does not keep them on an axis"
    )


def _squeeze(use: _Use) -> Sequence[Axis]:
    gone = use.params["dimensions"]
    if use.axis in gone:
        raise NotProvenError("a squeeze removes the axis that counts the examples")
    return [use.axis - sum(dimension < use.axis for dimension in gone)]


def _stack(use: _Use) -> Sequence[Axis]:
    return [use.axis + (use.params["axis"] <= use.axis)]


def _unstack(use: _Use) -> Sequence[Axis]:
    gone = use.params["axis"]
    if use.axis == gone:
        raise _mixes("they are taken apart")
    return [use.axis - (gone < use.axis)] * len(use.results)


def _tile(use: _Use) -> Sequence[Axis]:
    if use.params["reps"][use.axis] != 1:
        raise _mixes("the batch is repeated")
    return [use.axis]


def _transpose(use: _Use) -> Sequence[Axis]:
    return [list(use.params["permutation"]).index(use.axis)]


def _pad(use: _Use) -> Sequence[Axis]:
    padding = tuple(use.params["padding_config"][use.axis])
    if padding != (0, 0, 0) or use.axes[1] is not None:
        raise _mixes("the batch is padded")
    return [use.axis]


def _slice(use: _Use) -> Sequence[Axis]:
    strides = use.params.get("strides")
    whole = use.results[0][use.axis] == use.shapes[0][use.axis]
    if not whole or (strides is not None and strides[use.axis] != 1):
        raise _mixes("some of them are picked out")
    return [use.axis]


def _dynamic_slice(use: _Use) -> Sequence[Axis]:
    if any(axis is not None for axis in use.axes[1:]):
        raise NotProvenError("a slice begins elsewhere in each example")
    return _slice(use)


def _dynamic_update_slice(use: _Use) -> Sequence[Axis]:
    if any(axis is not None for axis in use.axes[2:]):
        raise NotProvenError("an update begins elsewhere in each example")
    axis = _common(use.axes[:2])
    if use.shapes[1][axis] != use.shapes[0][axis]:
        raise _mixes("some of them are overwritten")
    return [axis]


def _gather(use: _Use) -> Sequence[Axis]:
    numbers, sizes = use.params["dimension_numbers"], use.params["slice_sizes"]
    operand, indices = use.axes
    rank = len(use.results[0])
    batch = [d for d in range(rank) if d not in numbers.offset_dims]
    if operand is None:
        axis = _common([indices])
        if axis == len(batch):  # where the numbers of one index lie
            raise _mixes("together they are an index")
        return [batch[axis]]
    if operand in numbers.operand_batching_dims:
        place = list(numbers.operand_batching_dims).index(operand)
        paired = numbers.start_indices_batching_dims[place]
        if indices in (None, paired):
            return [batch[paired]]
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    looked_up = operand in gone or operand in numbers.start_index_map
    crossed = indices is not None and use.shapes[0][operand] > 1
    if indices is not None and _look_up_themselves(use, operand, indices):
        return [batch[indices]]
    if crossed or looked_up or sizes[operand] != use.shapes[0][operand]:
        raise _mixes("an index looks them up")
    kept = [d for d in range(len(use.shapes[0])) if d not in gone]
    return [numbers.offset_dims[kept.index(operand)]]


def _look_up_themselves(use: _Use, operand: int, axis: int) -> bool:
    """Whether the examples do, as in `log_probs[jnp.arange(len(labels)), labels]`.

    An index has a column for each axis of the operand that is looked up; that of the
    examples' axis must then count them.
    """
    numbers, slot = use.params["dimension_numbers"], use.equation.operands[1]
    shape, size = use.shapes[1], use.shapes[0][operand]
    is_looked_up = operand in {*numbers.collapsed_slice_dims} & {
        *numbers.start_index_map
    }
    if use.whole is None or slot is None or not is_looked_up:
        return False
    if axis == len(shape) - 1 or shape[axis] != size:
        return False
    column = list(numbers.start_index_map).index(operand)
    found = _constant_column(use.whole, slot, column)
    number = np.arange(size).reshape(-1, *[1] * (len(shape) - 2 - axis))
    return found is not None and bool((found == number).all())


def _constant_column(program: Program, slot: Slot, column: int) -> np.ndarray | None:
    """What is in a column of an index, if that is the same whatever the arguments."""
    made_by = {made: x for x in program.equations for made in x.outputs}
    last = len(program.shape(slot)) - 1
    while slot in made_by and made_by[slot].primitive == "concatenate":
        if made_by[slot].params["dimension"] != last:
            return None
        for part in made_by[slot].operands:
            assert part is not None  # a literal has no axes
            if column < program.shape(part)[last]:
                slot = part
                break
            column -= program.shape(part)[last]
    needed = needed_for(program, [slot])._replace(inputs=[])
    used = {slot, *(x for equation in needed.equations for x in equation.inputs)}
    if used.intersection(program.inputs):
        return None
    constants = {k: x for k, x in program.constants.items() if k in used}
    if any(isinstance(x, jax.core.Tracer) for x in constants.values()):
        return None
    with jax.ensure_compile_time_eval():
        values = evaluate(needed._replace(constants=constants), ())
    found: np.ndarray = np.asarray(values[slot])[..., column]
    return found


def _dot_general(use: _Use) -> Sequence[Axis]:
    contracted, batched = use.params["dimension_numbers"]
    lhs, rhs = use.axes
    if lhs is not None and rhs is not None:
        pairs = list(zip(*batched, strict=True))
        if (lhs, rhs) in zip(*contracted, strict=True):
            raise _statistic("a sum of products is taken over them")
        if (lhs, rhs) not in pairs:
            raise _mixes("products are taken between them")
        return [pairs.index((lhs, rhs))]
    side = 0 if rhs is None else 1
    if use.axis in contracted[side]:
        raise _statistic("a sum of products is taken over them")
    if use.axis in batched[side]:
        return [list(batched[side]).index(use.axis)]
    free = [
        [
            dimension
            for dimension in range(len(use.shapes[k]))
            if dimension not in (*contracted[k], *batched[k])
        ]
        for k in (0, 1)
    ]
    before = len(batched[0]) + side * len(free[0])
    return [before + free[side].index(use.axis)]


def _conv(use: _Use) -> Sequence[Axis]:
    numbers = use.params["dimension_numbers"]
    if use.axes[1] is not None or use.params["batch_group_count"] != 1:
        raise NotProvenError("a convolution has kernels that depend on examples")
    if use.axis != numbers.lhs_spec[0]:
        raise _mixes("a convolution runs over them")
    return [numbers.out_spec[0]]


def _custom_derivative(use: _Use) -> Sequence[Axis]:
    """Looks into the function and into its derivative, which may be anything."""
    outputs = _follow_inner(flatten(use.params["call_jaxpr"]), use.axes, use.size)
    known = dict(zip(use.equation.operands, use.axes, strict=True))
    axes = [known[slot] for slot in use.equation.inputs]
    values = use.equation.types
    chosen = [
        k
        for k, (axis, value) in enumerate(zip(axes, values, strict=True))
        if axis is not None and is_float(value)
    ]

    def pullback(cotangents: list[jax.Array], values: list[jax.Array]) -> Any:
        def function(*some: jax.Array) -> list[jax.Array]:
            given = list(values)
            for k, value in zip(chosen, some, strict=True):
                given[k] = value
            return [x for x in use.equation.apply(*given) if is_float(x)]

        return jax.vjp(function, *(values[k] for k in chosen))[1](cotangents)

    results = jax.eval_shape(use.equation.apply, *values)
    cotangents = [x for x in results if is_float(x)]
    # Whose own parts may be the function again, as in logaddexp; nobody differentiates
    # them a second time.
    pulled_back = jax.make_jaxpr(pullback)(cotangents, values)
    derivative = flatten(pulled_back, differentiable=False)
    with_gradient = [
        axis for axis, x in zip(outputs, results, strict=True) if is_float(x)
    ]
    found = _follow_inner(derivative, [*with_gradient, *axes], use.size)
    if any(then not in (None, axes[k]) for k, then in zip(chosen, found, strict=True)):
        raise _mixes("a custom derivative moves the axis that counts them")
    return outputs


def _follow_inner(program: Program, axes: Sequence[Axis], size: int) -> list[Axis]:
    try:
        needed = needed_for(program, program.outputs)
        known = follow_examples(needed, axes, size=size).axes
    except StatisticError as reason:  # of this part of the program alone
        raise NotProvenError(str(reason)) from None
    return [known[slot] for slot in program.outputs]


def _follow_loop(
    body: Program, axes: Sequence[Axis], carry: slice, size: int
) -> tuple[list[Axis], list[Axis]]:
    """Axes of a loop's inputs and outputs, once what it carries has settled."""
    inputs = list(axes)
    while True:
        outputs = _follow_inner(body, inputs, size)
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
            raise _mixes("a loop moves the axis that counts them")
        inputs[carry] = joined


class Scan(NamedTuple):
    """What a `scan` does.

    Attributes:
      body: What it does in each step.
      carry: Which inputs of the body it carries from step to step; what comes before
        is the same in all of them, and what comes after has a slice for each.
      axes: The axis that counts the examples, of each input of the body.
      results: The same of each result of the loop.
      size: How many examples there are.
    """

    body: Program
    carry: slice
    axes: list[Axis]
    results: list[Axis]
    size: int


def follow_scan(equation: Equation, program: Program, axes: dict[Slot, Axis]) -> Scan:
    """Follows the examples into a loop of fixed length.

    Args:
      equation: The loop, a `scan`.
      program: Where it is.
      axes: The axis of each of its operands.

    Returns:
      The inside of the loop.

    Raises:
      NotProvenError: If examples interact in it, or may do so.
    """
    return _follow_scan(_use(equation, program, axes, _size(program, axes)))


def _follow_scan(use: _Use) -> Scan:
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
        raise _mixes("a scan runs over them")
    inner = [*use.axes[:start], *(x if x is None else x - 1 for x in use.axes[start:])]
    carry = slice(start - carries, start)
    inputs, outputs = _follow_loop(body, inner, carry, use.size)
    stacks = [y if y is None else y + 1 for y in outputs[carries:]]
    return Scan(body, carry, inputs, [*outputs[:carries], *stacks], use.size)


def _scan(use: _Use) -> Sequence[Axis]:
    return _follow_scan(use).results


def _while(use: _Use) -> Sequence[Axis]:
    first, second = use.params["cond_nconsts"], use.params["body_nconsts"]
    carry = slice(second, len(use.axes) - first)
    body = flatten(use.params["body_jaxpr"])
    inputs, outputs = _follow_loop(body, use.axes[first:], carry, use.size)
    condition = flatten(use.params["cond_jaxpr"])
    given = [*use.axes[:first], *inputs[carry]]
    if _follow_inner(condition, given, use.size) != [None]:
        raise _mixes("a loop ends when one of them says so")
    return outputs


def _cond(use: _Use) -> Sequence[Axis]:
    branches = [
        _follow_inner(flatten(branch), use.axes[1:], use.size)
        for branch in use.params["branches"]
    ]
    if use.axes[0] is not None:
        raise _mixes("one of them chooses a branch")
    return [
        None if set(found) == {None} else _common(found)
        for found in zip(*branches, strict=True)
    ]


ELEMENTWISE = frozenset(
    """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e
    cbrt ceil clamp clz convert_element_type copy copy_p cos cosh digamma div eq erf
    erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le lgamma log
    log1p log2 logistic lt max min mul name ne neg nextafter not one_minus_square or
    pow reduce_precision rem round rsqrt select_n shift_left shift_right_arithmetic
    shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh xor
    """.split()  # noqa: SIM905
)
"""Primitives whose operands have the shape of the result, ones, or no axes."""

_REARRANGING = ELEMENTWISE | {
    "broadcast_in_dim",
    "concatenate",
    "pad",
    "reshape",
    "slice",
    "squeeze",
    "transpose",
}
"""Primitives whose result still has all examples in it, if an operand has."""

_RULES: dict[str, Rule] = {
    **dict.fromkeys([*ELEMENTWISE, "polynomial"], _elementwise),
    **dict.fromkeys(
        ["cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "split", "top_k"],
        _along("axis"),
    ),
    "sort": _along("dimension"),
    "concatenate": _along("dimension"),
    "rev": _along("dimensions"),
    **dict.fromkeys(
        ["layout_constraint", "optimization_barrier", "reshard", "sharding_constraint"],
        _each_by_itself,
    ),
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "stack": _stack,
    "unstack": _unstack,
    "tile": _tile,
    "transpose": _transpose,
    "pad": _pad,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "gather": _gather,
    "dot_general": _dot_general,
    "conv_general_dilated": _conv,
    "custom_jvp_call": _custom_derivative,
    "custom_vjp_call": _custom_derivative,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}
"""How each primitive moves the axis, by the name that it has in a jaxpr."""
