"""How each primitive moves the batch axis, which counts the examples.

What is here says so of one primitive by its parameters; example_axis.py goes through a
program with it, and into the programs that are in primitives.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from pcn_jax.fused.program import Equation, Program, Slot, evaluate, needed_for

Axis = int | None
"""Position of the batch axis; `None` for a value without one."""


class NotProvenError(Exception):
    """It could not be shown that the examples of the batch do not interact.

    Attributes:
      source: The line of code where the proof ends, if that is known.
    """

    source: str = ""

    def __str__(self) -> str:
        """What ends the proof, and where."""
        what = super().__str__()
        return f"{what} (at {self.source})" if self.source else what


class StatisticError(NotProvenError):
    """They interact in a value that all of them share, such as a mean."""


class Use(NamedTuple):
    """A primitive in use: what a rule looks at.

    Attributes:
      equation: The primitive.
      axes: Of its operands.
      shapes: Of its operands.
      results: Shapes of its results.
      size: How many examples there are.
      live: Which results are used.
      whole: The program that it is in, if that always runs on the whole batch: a part,
        such as the body of a loop, may run on some examples.
    """

    equation: Equation
    axes: list[Axis]
    shapes: list[tuple[int, ...]]
    results: list[tuple[int, ...]]
    size: int
    live: list[bool]
    whole: Program | None

    @property
    def params(self) -> dict[str, Any]:
        """Of the primitive."""
        return self.equation.params

    @property
    def axis(self) -> int:
        """The one axis of all operands that have one."""
        return common_axis(self.axes)


Rule = Callable[[Use], Sequence[Axis]]
"""From a primitive in use to the axis of each of its results."""


def rule_of(primitive: str) -> Rule:
    """How a primitive moves the axis.

    Args:
      primitive: Its name in a jaxpr; not one that has programs inside.

    Raises:
      NotProvenError: If it is not known.
    """
    if primitive in _RULES:
        return _RULES[primitive]
    if primitive.startswith("reduce_window"):
        return _reduce_window
    if primitive.startswith(("reduce_", "argm")):
        return _reduce
    raise NotProvenError(
        f"the primitive {primitive!r} is not known to keep examples apart"
    )


def common_axis(axes: Iterable[Axis]) -> int:
    """The one axis of values that meet.

    Args:
      axes: Of each of them.

    Raises:
      NotProvenError: If they have several, or none.
    """
    found = {axis for axis in axes if axis is not None}
    if len(found) != 1:
        raise mixes("values of different examples are combined")
    return found.pop()


_INTERACT = "examples of the batch may interact: "


def mixes(what: str) -> NotProvenError:
    """The error where examples meet.

    Args:
      what: How they do.
    """
    return NotProvenError(_INTERACT + what)


def _statistic(what: str) -> StatisticError:
    return StatisticError(_INTERACT + what)


def _elementwise(use: Use) -> Sequence[Axis]:
    return [use.axis] * len(use.results)


def _each_by_itself(use: Use) -> Sequence[Axis]:
    return use.axes


def _bitcast(use: Use) -> Sequence[Axis]:
    # Where the width changes, an axis comes or goes at the end.
    if use.axis >= len(use.results[0]):
        raise mixes("their bits are joined")
    return [use.axis]


def _along(name: str) -> Rule:
    """For primitives that work along one axis or several, and keep the others."""

    def rule(use: Use) -> Sequence[Axis]:
        rank = len(use.shapes[0])
        along = use.params.get(name, rank - 1)
        several = along if isinstance(along, Sequence) else [along]
        if use.axis in (d % rank for d in several):
            raise mixes(f"{use.equation.primitive!r} runs along the batch axis")
        return [use.axis] * len(use.results)

    return rule


def _before_last(number: int) -> Rule:
    """For primitives that work along the last axes, as of matrices: each alone."""

    def rule(use: Use) -> Sequence[Axis]:
        operand = use.axes.index(use.axis)
        if use.axis >= len(use.shapes[operand]) - number:
            raise mixes(f"{use.equation.primitive!r} runs along the batch axis")
        return [use.axis] * len(use.results)

    return rule


def _triangular_solve(use: Use) -> Sequence[Axis]:
    """With one matrix for all, each column of the other side is solved by itself."""
    of_matrix, axis = use.axes
    last = len(use.shapes[1]) - 1
    if of_matrix is None and axis == (last if use.params["left_side"] else last - 1):
        return [axis]
    return _before_last(2)(use)


def _fft(use: Use) -> Sequence[Axis]:
    return _before_last(len(use.params["fft_lengths"]))(use)


def _reduce(use: Use) -> Sequence[Axis]:
    axes = use.params["axes"]
    if use.axis in axes:
        raise _statistic("something is taken over all of them, such as a mean")
    return [use.axis - sum(gone < use.axis for gone in axes)] * len(use.results)


def _reduce_window(use: Use) -> Sequence[Axis]:
    steps = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
    given = (use.params[name] for name in steps if name in use.params)
    apart = all(lengths[use.axis] == 1 for lengths in given)
    if not apart or tuple(use.params["padding"][use.axis]) != (0, 0):
        raise mixes("a window spans several of them")
    return [use.axis] * len(use.results)


def _broadcast(use: Use) -> Sequence[Axis]:
    new = use.params["broadcast_dimensions"][use.axis]
    if use.results[0][new] != use.shapes[0][use.axis]:
        raise NotProvenError("a batch of one example is repeated")
    return [new]


def _reshape(use: Use) -> Sequence[Axis]:
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


def _squeeze(use: Use) -> Sequence[Axis]:
    gone = use.params["dimensions"]
    if use.axis in gone:
        raise NotProvenError("a squeeze removes the batch axis")
    return [use.axis - sum(dimension < use.axis for dimension in gone)]


def _stack(use: Use) -> Sequence[Axis]:
    return [use.axis + (use.params["axis"] <= use.axis)]


def _unstack(use: Use) -> Sequence[Axis]:
    gone = use.params["axis"]
    if use.axis == gone:
        raise mixes("the batch axis is unstacked")
    return [use.axis - (gone < use.axis)] * len(use.results)


def _tile(use: Use) -> Sequence[Axis]:
    if use.params["reps"][use.axis] != 1:
        raise mixes("the batch is repeated")
    return [use.axis]


def _transpose(use: Use) -> Sequence[Axis]:
    return [list(use.params["permutation"]).index(use.axis)]


def _pad(use: Use) -> Sequence[Axis]:
    padding = tuple(use.params["padding_config"][use.axis])
    if padding != (0, 0, 0) or use.axes[1] is not None:
        raise mixes("the batch is padded")
    return [use.axis]


def _slice(use: Use) -> Sequence[Axis]:
    strides = use.params.get("strides")
    whole = use.results[0][use.axis] == use.shapes[0][use.axis]
    if not whole or (strides is not None and strides[use.axis] != 1):
        raise mixes("some of them are sliced out")
    return [use.axis]


def _dynamic_slice(use: Use) -> Sequence[Axis]:
    if any(axis is not None for axis in use.axes[1:]):
        raise NotProvenError("where a slice starts depends on the example")
    return _slice(use)


def _dynamic_update_slice(use: Use) -> Sequence[Axis]:
    if any(axis is not None for axis in use.axes[2:]):
        raise NotProvenError("where an update starts depends on the example")
    axis = common_axis(use.axes[:2])
    if use.shapes[1][axis] != use.shapes[0][axis]:
        raise mixes("some of them are overwritten")
    return [axis]


def _gather(use: Use) -> Sequence[Axis]:
    numbers, sizes = use.params["dimension_numbers"], use.params["slice_sizes"]
    operand, indices = use.axes
    rank = len(use.results[0])
    batch = [d for d in range(rank) if d not in numbers.offset_dims]
    if operand is None:
        axis = common_axis([indices])
        if axis == len(batch):  # where the numbers of one index lie
            raise mixes("several of them make one index")
        return [batch[axis]]
    if operand in numbers.operand_batching_dims:
        place = list(numbers.operand_batching_dims).index(operand)
        paired = numbers.start_indices_batching_dims[place]
        if indices in (None, paired):
            return [batch[paired]]
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    looked_up = operand in gone or operand in numbers.start_index_map
    crossed = indices is not None and use.shapes[0][operand] > 1
    if operand in numbers.start_index_map and operand in gone:
        column = list(numbers.start_index_map).index(operand)
        found = _counting_axis(use, [indices], column, use.shapes[0][operand])
        if found is not None:
            return [batch[found]]
    if crossed or looked_up or sizes[operand] != use.shapes[0][operand]:
        raise mixes("an index picks some of them")
    kept = [d for d in range(len(use.shapes[0])) if d not in gone]
    return [numbers.offset_dims[kept.index(operand)]]


def _scatter(use: Use) -> Sequence[Axis]:
    numbers, (old, _, new) = use.params["dimension_numbers"], use.shapes
    _, indices, updates = use.axes
    window, inserted = numbers.update_window_dims, numbers.inserted_window_dims
    batched = numbers.operand_batching_dims
    # An axis of the indices is one of the updates, unless it has the window.
    scattered = [d for d in range(len(new)) if d not in window]
    gone = {*inserted, *batched}
    kept = [d for d in range(len(old)) if d not in gone]
    pairs: list[tuple[int, Axis, int]] = [
        (d, i, scattered[i])
        for d, i in zip(batched, numbers.scatter_indices_batching_dims, strict=True)
    ]
    pairs += [
        (d, None, u)
        for d, u in zip(kept, window, strict=True)
        if old[d] == new[u] and d not in numbers.scatter_dims_to_operand_dims
    ]
    for column, d in enumerate(numbers.scatter_dims_to_operand_dims):
        given = [indices, None if updates is None else _place(scattered, updates)]
        found = _counting_axis(use, given, column, old[d]) if d in inserted else None
        if found is not None:
            pairs.append((d, found, scattered[found]))
    for together in pairs:
        if all(a in (None, b) for a, b in zip(use.axes, together, strict=True)):
            return [together[0]]
    raise mixes("an index says where they are written")


def _place(axes: Sequence[int], axis: int) -> Axis:
    return axes.index(axis) if axis in axes else None


def _counting_axis(use: Use, given: Iterable[Axis], column: int, size: int) -> Axis:
    """The axis of an index along which a column of it counts all examples.

    As in `log_probs[jnp.arange(len(labels)), labels]`: an index has a column for each
    axis that is looked up.

    Args:
      use: The primitive, whose second operand is the index.
      given: Where that axis is, as far as is known.
      column: The one of the examples' axis.
      size: How long that is.
    """
    slot, (*shape, _) = use.equation.operands[1], use.shapes[1]
    known = {axis for axis in given if axis is not None}
    if use.whole is None or slot is None or len(known) > 1:
        return None
    found = _constant_column(use.whole, slot, column)
    for axis in known or range(len(shape)):
        number = np.arange(size).reshape(-1, *[1] * (len(shape) - 1 - axis))
        is_long = axis < len(shape) and shape[axis] == size
        if is_long and found is not None and (found == number).all():
            return axis
    return None


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


def _dot_general(use: Use) -> Sequence[Axis]:
    contracted, batched = use.params["dimension_numbers"]
    lhs, rhs = use.axes
    if lhs is not None and rhs is not None:
        pairs = list(zip(*batched, strict=True))
        if (lhs, rhs) in zip(*contracted, strict=True):
            raise _statistic("a sum of products is taken over them")
        if (lhs, rhs) not in pairs:
            raise mixes("products are taken between them")
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


def _conv(use: Use) -> Sequence[Axis]:
    numbers = use.params["dimension_numbers"]
    if use.axes[1] is not None or use.params["batch_group_count"] != 1:
        raise NotProvenError("a convolution has kernels that depend on examples")
    if use.axis != numbers.lhs_spec[0]:
        raise mixes("a convolution runs over them")
    return [numbers.out_spec[0]]


ELEMENTWISE = frozenset(
    """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e
    cbrt ceil clamp clz complex conj convert_element_type copy copy_p cos cosh digamma
    div eq erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igamma_grad_a igammac
    imag integer_pow is_finite le le_to lgamma log log1p log2 logistic lt lt_to max
    min mul name ne neg nextafter not one_minus_square or polygamma pow
    random_gamma_grad real reduce_precision regularized_incomplete_beta rem round
    rsqrt select_n shift_left shift_right_arithmetic shift_right_logical sign sin sinh
    sqrt square stop_gradient sub tan tanh xor zeta
    """.split()  # noqa: SIM905
)
"""Primitives whose operands have the shape of the result, ones, or no axes."""

REARRANGING = ELEMENTWISE | {
    "broadcast_in_dim",
    "concatenate",
    "gather",
    "pad",
    "reshape",
    "slice",
    "squeeze",
    "tile",
    "transpose",
}
"""Primitives whose result still has all examples in it, if an operand has."""

_RULES: dict[str, Rule] = {
    **dict.fromkeys([*ELEMENTWISE, "polynomial", "random_fold_in"], _elementwise),
    **dict.fromkeys(
        ["cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "split", "top_k"],
        _along("axis"),
    ),
    **dict.fromkeys(
        [
            "cholesky",
            "eigh",
            "householder_product",
            "lu",
            "qr",
            "svd",
        ],
        _before_last(2),
    ),
    "select_and_gather_add": _reduce_window,  # what pooling is differentiated to
    "select_and_scatter_add": _reduce_window,
    "triangular_solve": _triangular_solve,
    "fft": _fft,
    "lu_pivots_to_permutation": _before_last(1),
    "sort": _along("dimension"),
    "approx_top_k": _along("reduction_dimension"),
    "concatenate": _along("dimension"),
    "rev": _along("dimensions"),
    **dict.fromkeys(
        """
        device_put layout_constraint optimization_barrier random_bits random_seed
        random_split random_unwrap reshard sharding_constraint
        """.split(),  # noqa: SIM905
        _each_by_itself,
    ),
    "random_wrap": _before_last(1),
    "bitcast_convert_type": _bitcast,
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
    **dict.fromkeys(
        ["scatter", *(f"scatter-{x}" for x in ("add", "sub", "mul", "min", "max"))],
        _scatter,
    ),
    "dot_general": _dot_general,
    "conv_general_dilated": _conv,
}
"""How each primitive moves the axis, by the name that it has in a jaxpr."""
