"""Whether a derivative of one's own is one: linear in the cotangent.

Class gradients are summed with weights *before* they are pulled back through what is of
parameters alone, and cotangents are scaled where parameters meet examples. A function
of `jax.custom_vjp` may do anything instead, such as clip the gradient.
"""

import itertools
from typing import Any

import jax

from pcn_jax.fused.axis_rules import NotProvenError
from pcn_jax.fused.program import Equation, Program, Slot, flatten, has_gradient


def check_linear(program: Program, params: set[Slot]) -> None:
    """Refuses derivatives by parameters that are not proven to be linear.

    Args:
      program: The program of the losses; loops are not looked into.
      params: The slots that depend on parameters alone.

    Raises:
      NotProvenError: At the first `jax.custom_vjp` whose derivative by them is not.
    """
    for equation in program.equations:
        if equation.primitive != "custom_vjp_call":
            continue
        chosen = [k for k, slot in enumerate(equation.inputs) if slot in params]
        if chosen and not _is_linear(equation, chosen):
            error = NotProvenError(
                "a derivative of jax.custom_vjp by parameters may not be linear"
            )
            error.source = equation.source
            raise error


def _is_linear(equation: Equation, chosen: list[int]) -> bool:
    """Whether the derivative by some operands can be transposed, as linear maps can."""
    results = jax.eval_shape(equation.apply, *equation.types)
    differentiable = [has_gradient(x) for x in results]
    cotangents = list(itertools.compress(results, differentiable))

    def pull_back(cotangents: list[Any], values: list[Any]) -> list[Any]:
        def function(*some: Any) -> list[Any]:
            given = list(values)
            for k, value in zip(chosen, some, strict=True):
                given[k] = value
            return list(itertools.compress(equation.apply(*given), differentiable))

        return list(jax.vjp(function, *(values[k] for k in chosen))[1](cotangents))

    def transpose(gradients: list[Any], values: list[Any]) -> Any:
        pulled = jax.linear_transpose(lambda x: pull_back(x, values), cotangents)
        return pulled(gradients)

    values = list(equation.types)
    pulled = jax.make_jaxpr(pull_back)(cotangents, values)
    if any(x.primitive == "while" for x in flatten(pulled).equations):
        return True  # as of an implicit layer: none of these can be transposed
    try:
        jax.eval_shape(transpose, [values[k] for k in chosen], values)
    except Exception:  # JAX says so in several ways
        return False
    return True
