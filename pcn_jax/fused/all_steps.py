"""What a site in a loop does in all steps together: one equation over stacks."""

import jax
from jax import lax

from pcn_jax.fused.program import Equation, Slot
from pcn_jax.fused.sites import Site

_ALIKE = {"add_any", "clamp", "select_n"}
"""Elementwise ones whose operands have to have the shape of the result."""


def over_all_steps(
    site: Site, *, alone: set[Slot], sliced: set[Slot], broadcasts: bool
) -> tuple[Equation, int]:
    """What a site does in all steps together, of stacks of what it is given.

    Args:
      site: A site in a loop.
      alone: Slots that depend on parameters alone: no stacks, but slices or steady.
      sliced: Those that are slices.
      broadcasts: Whether its parameter needs no axis for the steps, or has one.

    Returns:
      An equation with slots of the body, and which axis of its results counts the
      steps.
    """
    step, param = site.equation, site.params[0]
    if step.primitive == "dot_general" and site.kind in ("dense", "product"):
        return _product_over_all_steps(site, is_sliced=param in sliced)
    if broadcasts_over(site) and param not in sliced and broadcasts:
        return step, 0
    along = [None if x in alone and x not in sliced else 0 for x in step.inputs]
    lifted = step._replace(apply=jax.vmap(step.apply, along))
    if broadcasts_over(site) and param in sliced and site.param_shape:
        return lifted, 0
    return lifted._replace(primitive=f"{step.primitive} of all steps"), 0


def broadcasts_over(site: Site) -> bool:
    """Whether an axis of length 1 will do for the steps, and for the examples."""
    return site.kind == "elementwise" and site.equation.primitive not in _ALIKE


def _product_over_all_steps(site: Site, *, is_sliced: bool) -> tuple[Equation, int]:
    step, param = site.equation, site.params[0]
    of_param = step.operands.index(param)
    shifts = [int(is_sliced or side != of_param) for side in (0, 1)]
    (of_x, of_y), (with_x, with_y) = (
        [
            [d + shift for d in dimensions]
            for shift, dimensions in zip(shifts, sides, strict=True)
        ]
        for sides in step.params["dimension_numbers"]
    )
    if is_sliced:
        with_x, with_y, steps = [0, *with_x], [0, *with_y], 0
    else:  # the first free axis of the other operand
        free = len(site.param_shape) - len(of_x) - len(with_x)
        steps = len(with_x) + (free if of_param == 0 else 0)
    numbers = (of_x, of_y), (with_x, with_y)

    def apply(x: jax.Array, y: jax.Array) -> list[jax.Array]:
        result = lax.dot_general(
            x,
            y,
            numbers,
            precision=step.params["precision"],
            preferred_element_type=step.params["preferred_element_type"],
        )
        return [result]

    params = {**step.params, "dimension_numbers": numbers}
    return step._replace(params=params, apply=apply), steps
