"""Parameters that are repeated for the examples, which get a copy each."""

import functools
from typing import Any

import jax
from jax import lax

from pcn_jax.fused.program import Equation, Program, Slot

GIVEN = "given to examples"
"""The primitive of an equation in which they do, and nothing else happens."""


def give_copies(program: Program, depends: set[Slot], size: int) -> Program:
    """Repeats parameters for the examples in equations of their own.

    As of a token that is learned for what is masked, or of a learned state:
    `jnp.where(mask, token, x)` repeats the token for all examples. By itself that would
    be a parameter as large as the batch. Where it is a copy for each, what follows is
    done to examples, and the gradient by the token is the sum of those by the copies.

    Args:
      program: The program.
      depends: The slots that depend on parameters.
      size: `B`, the examples.

    Returns:
      The same program, where such a value has an axis of length 1 before an equation
      gives it to the examples; or `program` itself, if it has none.
    """
    if size == 1:
        return program
    types, equations = list(program.types), []
    for equation in program.equations:
        shape = _shape_of_one(equation, program)
        of_all = program.types[equation.outputs[0]] if shape else None
        pairs = zip(shape, of_all.shape if of_all else (), strict=True)
        new = [d for d, pair in enumerate(pairs) if pair == (1, size)]
        if of_all is None or not new or depends.isdisjoint(equation.inputs):
            equations.append(equation)
            continue
        of_one = jax.ShapeDtypeStruct(shape, of_all.dtype)
        slot = len(types)
        types.append(of_one)
        one = equation._replace(
            primitive="reshape",
            params={},
            outputs=(slot,),
            apply=functools.partial(_reshaped, of_one),
        )
        copies = equation._replace(
            primitive=GIVEN,
            params={"axis": new[0]},
            operands=(slot,),
            inputs=(slot,),
            types=(of_one,),
            apply=functools.partial(_repeated, of_all),
        )
        equations += [one, copies]
    if len(types) == len(program.types):
        return program
    return program._replace(equations=equations, types=types)


def _shape_of_one(equation: Equation, program: Program) -> tuple[int, ...]:
    """Shape of what is only repeated, with ones where that is; or empty."""
    if len(equation.inputs) != 1:
        return ()
    operand = tuple(equation.types[0].shape)
    if equation.primitive == "broadcast_in_dim":
        shape = [1] * len(program.shape(equation.outputs[0]))
        for d, length in zip(
            equation.params["broadcast_dimensions"], operand, strict=True
        ):
            shape[d] = length
        return tuple(shape)
    if equation.primitive == "tile":
        times = zip(equation.params["reps"], operand, strict=True)
        return operand if all(1 in pair for pair in times) else ()
    return ()


def _reshaped(like: Any, x: jax.Array) -> list[jax.Array]:
    return [x.reshape(like.shape)]


def _repeated(like: Any, x: jax.Array) -> list[jax.Array]:
    return [lax.broadcast_in_dim(x, like.shape, range(x.ndim))]
