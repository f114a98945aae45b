"""A loop of fixed length, taken apart: what comes before it, and its sites."""

from typing import NamedTuple

from pcn_jax.fused.axis_rules import Axis
from pcn_jax.fused.example_axis import Scan, follow_examples, follow_scan
from pcn_jax.fused.program import (
    Equation,
    Program,
    Slot,
    dependent_on,
    needed_for,
    used_in,
)
from pcn_jax.fused.sites import Site, find_sites


class Loop(NamedTuple):
    """A loop, taken apart. All but `equation` is in slots of its body.

    Attributes:
      equation: The loop as it is.
      scan: What it says.
      axes: The batch axis, of every slot that the losses need.
      alone: Slots that depend on parameters alone.
      sliced: Slots that differ from step to step, but depend neither on what the loop
        carries nor on examples.
      before: Equations from which those of `alone` follow that are used in the loop or
        returned.
      during: The equations of the loop without them.
      sites: Where parameters meet examples.
    """

    equation: Equation
    scan: Scan
    axes: dict[Slot, Axis]
    alone: set[Slot]
    sliced: set[Slot]
    before: list[Equation]
    during: list[Equation]
    sites: list[Site]


def look_into(
    equation: Equation,
    program: Program,
    axes: dict[Slot, Axis],
    depends: set[Slot],
    used: set[Slot],
) -> Loop | None:
    """Takes a loop apart, or finds that it has to stay whole.

    Args:
      equation: The loop.
      program: Where it is.
      axes: The batch axis.
      depends: The slots that depend on parameters.
      used: The slots that the losses need.
    """
    scan = follow_scan(equation, program, axes, used)
    body = needed_for(scan.body, scan.live)._replace(outputs=scan.live)
    known = follow_examples(body, scan.axes, size=scan.size).axes
    inside = _dependent_in_any_step(
        {
            inner
            for inner, slot in zip(body.inputs, equation.operands, strict=True)
            if slot in depends
        },
        scan,
    ).intersection(used_in(body))
    steady, sliced = _without_carry(body, known, scan)
    alone = inside & (steady | sliced)
    without_examples = {slot for slot, axis in known.items() if axis is None}
    carried = scan.body.outputs[: len(body.inputs[scan.carry])]
    if not alone or inside & without_examples != alone or alone & {*carried}:
        return None
    before = [
        step for step in body.equations if (steady | sliced).issuperset(step.outputs)
    ]
    # Those that the losses do not need, too: of an auxiliary output, or that print.
    during = [
        step
        for step in scan.body.equations
        if not step.outputs or not alone.issuperset(step.outputs)
    ]
    needed = {step.outputs for step in body.equations}
    of_losses = [step for step in during if step.outputs in needed]
    returned = used_in(scan.body._replace(equations=during)).intersection(alone)
    return Loop(
        equation=equation,
        scan=scan,
        axes=known,
        alone=alone,
        sliced=sliced,
        before=needed_for(body._replace(equations=before), returned).equations,
        during=during,
        sites=find_sites(body._replace(equations=of_losses), known, inside),
    )


def _dependent_in_any_step(given: set[Slot], scan: Scan) -> set[Slot]:
    """All slots of a body that depend on some, also through what the loop carries."""
    carried = list(zip(scan.body.inputs[scan.carry], scan.body.outputs, strict=False))
    while True:
        found = dependent_on(scan.body, given)
        more = {before for before, after in carried if after in found}
        if more <= given:
            return found
        given = given | more


def _without_carry(
    body: Program, axes: dict[Slot, Axis], scan: Scan
) -> tuple[set[Slot], set[Slot]]:
    """Slots without examples that are the same in all steps, and that each step has."""
    fixed, slices = body.inputs[: scan.carry.start], body.inputs[scan.carry.stop :]
    steady = {*body.constants, *(slot for slot in fixed if axes[slot] is None)}
    sliced = {slot for slot in slices if axes[slot] is None}
    for step in body.equations:
        if (steady | sliced).issuperset(step.inputs):
            here = sliced if sliced.intersection(step.inputs) else steady
            here.update(step.outputs)
    return steady, sliced
