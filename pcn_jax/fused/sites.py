"""Where parameters meet examples: the equations whose weight gradients are wanted."""

import itertools
import math
from typing import Literal, NamedTuple

from pcn_jax.fused.axis_rules import ELEMENTWISE, Axis, NotProvenError
from pcn_jax.fused.copies import GIVEN
from pcn_jax.fused.program import Equation, Program, Slot, has_gradient, is_complex

Kind = Literal["dense", "product", "conv", "lookup", "elementwise", "other"]


class Site(NamedTuple):
    """An equation that has both parameters and examples among its operands.

    Attributes:
      equation: The equation.
      kind: How its weight gradients can be taken apart: `"dense"`, a product of
        examples with a matrix; `"product"`, any other one with a parameter; `"conv"`;
        `"lookup"` of rows of a table; `"elementwise"`; or `"other"`.
      params: Slots of the operands that depend on parameters alone.
      param_shape: Shape of the first of them.
      axes: The batch axis, of each of `equation.inputs`.
      out_axes: The same, of each differentiable result.
      differentiable: Which results those are.
      size: `B`, the examples; or `B * k`, if each has `k` places on that axis; 0 if
        some results have no derivative.
      contracted: `K`, the products summed in one number of the result; 1 if there are
        none.
      tokens: `T`, how often an example uses each number of a kernel: the positions of
        an image, or the tokens of a sequence.
    """

    equation: Equation
    kind: Kind
    params: tuple[Slot, ...]
    param_shape: tuple[int, ...]
    axes: dict[Slot, Axis]
    out_axes: tuple[int, ...]
    differentiable: tuple[bool, ...]
    size: int
    contracted: int
    tokens: int

    @property
    def is_depthwise(self) -> bool:
        """Whether it is a convolution in which each channel has its own kernels."""
        if self.equation.primitive != "conv_general_dilated" or self.kind != "product":
            return False
        numbers = self.equation.params["dimension_numbers"]
        return bool(self.param_shape[numbers.rhs_spec[1]] == 1)

    @property
    def operand(self) -> Slot:
        """The one operand besides the one parameter, of a product or convolution."""
        (slot,) = (x for x in self.equation.inputs if x not in self.params)
        return slot


class DenseNumbers(NamedTuple):
    """Where things are at a dense site.

    Attributes:
      side: Which operand of the product has the examples.
      free: Its axes that are not summed: the examples and their tokens.
      of_operand: Where these are in the result, in the same order.
      of_param: The other axes of the result.
    """

    side: int
    free: list[int]
    of_operand: list[int]
    of_param: list[int]

    @classmethod
    def of(cls, site: Site) -> "DenseNumbers":
        """Those of a site whose kind is dense."""
        equation = site.equation
        side = equation.operands.index(site.operand)
        contracted = equation.params["dimension_numbers"][0]
        ranks = [
            len(equation.types[equation.inputs.index(x)].shape)
            for x in equation.operands
        ]
        free = [d for d in range(ranks[side]) if d not in contracted[side]]
        others = ranks[1 - side] - len(contracted[1 - side])
        # Results have the free axes of the left operand first, then those of the right.
        first = 0 if side == 0 else others
        of_operand = list(range(first, first + len(free)))
        rank = len(free) + others
        return cls(
            side, free, of_operand, [d for d in range(rank) if d not in of_operand]
        )


def find_sites(
    program: Program, axes: dict[Slot, Axis], depends: set[Slot]
) -> list[Site]:
    """Lists the sites of a program.

    Args:
      program: The program of the losses.
      axes: The batch axis, of every slot.
      depends: The slots that depend on parameters.

    Returns:
      The sites, in the order of the program.

    Raises:
      NotProvenError: If an equation has results with examples and differentiable ones
        without.
    """
    sites = []
    for equation in program.equations:
        params = tuple(
            slot
            for slot in dict.fromkeys(equation.inputs)
            if slot in depends
            and axes[slot] is None
            and has_gradient(program.types[slot])
        )
        if any(
            all(0 in program.shape(slot) for slot in slots)
            for slots in (params, equation.outputs)
        ):
            continue  # no parameter, or none with numbers, or nothing comes of it
        differentiable = tuple(has_gradient(program.types[x]) for x in equation.outputs)
        found = list(
            itertools.compress((axes[x] for x in equation.outputs), differentiable)
        )
        out_axes = tuple(axis for axis in found if axis is not None)
        if not out_axes:
            continue
        if len(out_axes) != len(found):
            raise NotProvenError(f"{equation.primitive!r} has results of both kinds")
        if equation.primitive == "pad" and equation.operands[0] not in params:
            raise NotProvenError("a parameter pads what depends on examples")
        kind = _kind(equation, program, params, axes)
        shape, out = program.shape(params[0]), program.shape(equation.outputs[0])
        contracted = _contracted(equation, params[0], shape)
        size = out[out_axes[0]] if all(differentiable) else 0
        uses = math.prod(out) * contracted // max(size, 1)
        sites.append(
            Site(
                equation=equation,
                kind=kind,
                params=params,
                param_shape=shape,
                axes={slot: axes[slot] for slot in equation.inputs},
                out_axes=out_axes,
                differentiable=differentiable,
                size=size,
                contracted=contracted,
                tokens=max(uses // math.prod(shape), 1),
            )
        )
    return sites


def _kind(  # noqa: PLR0911
    equation: Equation,
    program: Program,
    params: tuple[Slot, ...],
    axes: dict[Slot, Axis],
) -> Kind:
    name, operands, param = equation.primitive, equation.operands, params[0]
    if len(params) > 1 or len(equation.outputs) > 1 or operands.count(param) > 1:
        return "other"
    if is_complex(program.types[equation.outputs[0]]):
        return "other"
    if name in ELEMENTWISE or name == GIVEN:
        axis, shape = axes[equation.outputs[0]], program.shape(param)
        return "elementwise" if not shape or shape[axis or 0] == 1 else "other"
    if name == "conv_general_dilated":
        return "conv" if equation.params["feature_group_count"] == 1 else "product"
    if name == "dot_general":
        side = 1 - operands.index(param)
        batched = equation.params["dimension_numbers"][1]
        if axes[operands[side]] in batched[side]:  # type: ignore[index]
            return "other"
        return "product" if batched[0] else "dense"
    if name == "gather" and operands[0] == param:
        return "lookup" if _looks_up_rows(equation, program) else "other"
    return "other"


def _looks_up_rows(equation: Equation, program: Program) -> bool:
    numbers, (table, indices) = equation.params["dimension_numbers"], equation.operands
    assert table is not None
    assert indices is not None
    looked_up = len(program.shape(indices)) - 1
    return (
        tuple(numbers.collapsed_slice_dims) == tuple(numbers.start_index_map) == (0,)
        and not numbers.operand_batching_dims
        and tuple(equation.params["slice_sizes"][1:]) == program.shape(table)[1:]
        # The numbers of a row come last, as the examples and tokens come first.
        and all(d >= looked_up for d in numbers.offset_dims)
    )


def _contracted(equation: Equation, param: Slot, shape: tuple[int, ...]) -> int:
    if equation.primitive == "dot_general":
        contracted, _ = equation.params["dimension_numbers"]
        side = equation.operands.index(param)
        return math.prod([shape[d] for d in contracted[side]])
    if equation.primitive == "conv_general_dilated":
        numbers = equation.params["dimension_numbers"]
        return math.prod(shape) // int(shape[numbers.rhs_spec[0]])
    return 1
