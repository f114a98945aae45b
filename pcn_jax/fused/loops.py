"""Opens loops of fixed length, so that parameters are seen to meet examples in them.

In `jax.lax.scan` they meet once a step. Seen from outside, a weight that all steps use,
as in a loop over time, is that of one product, with the steps as tokens; and weights of
which each step has its slice, as in a loop over layers, those of one product of as many
matrices. So

1. what depends on parameters alone is computed before the loop;
2. the loop also returns what each site in it was given, stacked over the steps, and to
   the site's results it adds probes, stacked in the same way;
3. each site becomes one equation over these stacks. The program never evaluates it, but
   it says what the weight gradients are.
"""

import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pcn_jax.fused.axis_rules import Axis
from pcn_jax.fused.example_axis import Scan, follow_examples, follow_scan
from pcn_jax.fused.program import (
    Equation,
    Program,
    Slot,
    dependent_on,
    evaluate,
    needed_for,
)
from pcn_jax.fused.sites import Site, find_sites

_PARTS = {"convert_element_type", "reshape", "slice", "split", "squeeze", "transpose"}
"""Primitives whose result is part of their operand, or all of it."""
_ALIKE = {"add_any", "clamp", "select_n"}
"""Elementwise ones whose operands have to have the shape of the result."""


class Opened(NamedTuple):
    """A program whose loops are open.

    Attributes:
      program: The program. Its open loops take the results of `inside` for probes.
      axes: The axis that counts the examples, of every slot, new ones included.
      depends: The slots that depend on parameters.
      loops: The outputs of each open loop.
      inside: What parameters do in them: an equation over all steps for each site.
    """

    program: Program
    axes: dict[Slot, Axis]
    depends: set[Slot]
    loops: set[tuple[Slot, ...]]
    inside: list[Equation]


def open_loops(program: Program, axes: dict[Slot, Axis], depends: set[Slot]) -> Opened:
    """Opens the loops in which parameters meet examples, where that is possible.

    A loop stays as it is if it carries, or returns, what depends on parameters but not
    on examples, or if it has no steps.

    Args:
      program: The program. Loops whose results have no `axes` are left alone.
      axes: The axis that counts the examples.
      depends: The slots that depend on parameters.

    Returns:
      A program with the same results where all probes are zero.
    """
    own = program._replace(
        equations=[], constants={**program.constants}, types=[*program.types]
    )
    opened = Opened(own, {**axes}, {*depends}, loops=set(), inside=[])
    for equation in program.equations:
        loop = None
        is_known = axes.keys() >= {*equation.outputs}
        matters = is_known and not depends.isdisjoint(equation.outputs)
        if equation.primitive == "scan" and matters and equation.params["length"]:
            loop = _look_into(equation, program, axes, depends)
        if loop is None:
            opened.program.equations.append(equation)
        else:
            _Opening(opened, loop).open()
    return opened


class _Loop(NamedTuple):
    """A loop, taken apart. All but `equation` is in slots of its body.

    Attributes:
      equation: The loop as it is.
      scan: What it says.
      axes: The axis that counts the examples, of every slot.
      alone: Slots that depend on parameters alone.
      sliced: Slots that differ from step to step, but depend neither on what the loop
        carries nor on examples.
      before: Equations from which those of `alone` follow that are used in the loop.
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


def _look_into(
    equation: Equation, program: Program, axes: dict[Slot, Axis], depends: set[Slot]
) -> _Loop | None:
    """Takes a loop apart, or finds that it has to stay whole."""
    scan = follow_scan(equation, program, axes)
    body = needed_for(scan.body, scan.body.outputs)
    known = follow_examples(body, scan.axes, size=scan.size).axes
    inside = _dependent_in_any_step(
        {
            inner
            for inner, slot in zip(body.inputs, equation.operands, strict=True)
            if slot in depends
        },
        scan,
    )
    steady, sliced = _without_carry(body, known, scan)
    alone = inside & (steady | sliced)
    without_examples = {slot for slot, axis in known.items() if axis is None}
    if not alone or inside & without_examples != alone or alone & {*body.outputs}:
        return None
    before = [
        step for step in body.equations if (steady | sliced).issuperset(step.outputs)
    ]
    during = [step for step in body.equations if not alone.issuperset(step.outputs)]
    used = alone.intersection(itertools.chain(*(step.inputs for step in during)))
    return _Loop(
        equation=equation,
        scan=scan,
        axes=known,
        alone=alone,
        sliced=sliced,
        before=needed_for(body._replace(equations=before), used).equations,
        during=during,
        sites=find_sites(body._replace(equations=during), known, inside),
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


class _Probe(NamedTuple):
    """What is added to a result of a site in every step.

    Attributes:
      result: The slot in the body.
      slot: The slot of all steps together.
      steps: Which axis counts them.
    """

    result: Slot
    slot: Slot
    steps: int


class _Opening:
    """One loop on its way into a program that is open."""

    def __init__(self, opened: Opened, loop: _Loop) -> None:
        self.opened, self.loop = opened, loop
        self.body, self.length = loop.scan.body, int(loop.equation.params["length"])
        self.outer: dict[Slot, Slot] = {}
        """Slots of the body to slots of the program, of what the loop is given."""
        self.stacks: dict[Slot, Slot] = {}
        """The same of what it returns of all steps."""
        self.probes: list[_Probe] = []
        self.gradients: dict[Slot, int] = {}
        self.numbers: dict[Any, int] = {}

    def open(self) -> None:
        """Puts what comes before, the loop, and its sites into the program."""
        constants, types = self.opened.program.constants, self.body.types
        for inner, value in self.body.constants.items():
            self.outer[inner] = self._new(types[inner])
            constants[self.outer[inner]] = value
        equation = self.loop.equation
        for inner, slot, literal in zip(
            self.body.inputs, equation.operands, equation.literals, strict=True
        ):
            if slot is None:
                self.outer[inner] = self._new(types[inner])
                constants[self.outer[inner]] = jnp.asarray(literal, types[inner].dtype)
            else:
                self.outer[inner] = self._given_to_examples(slot, self.loop.axes[inner])
        for step in self.loop.before:
            along = [0 if slot in self.loop.sliced else None for slot in step.inputs]
            apply = jax.vmap(step.apply, along) if 0 in along else step.apply
            self._append_before(step._replace(apply=apply))
        broadcast = self._with_an_axis_for_steps()
        for site in self.loop.sites:
            self._take_out(site, broadcast)
        self._put_back(broadcast)

    def _new(self, like: Any, axis: Axis = None) -> Slot:
        slot = len(self.opened.program.types)
        self.opened.program.types.append(_array(like.shape, like.dtype))
        self.opened.axes[slot] = axis
        return slot

    def _types(self, slots: Iterable[Slot]) -> tuple[Any, ...]:
        return tuple(self.opened.program.types[slot] for slot in slots)

    def _append_before(self, step: Equation) -> None:
        """Adds an equation, in slots of the body, whose results have no examples."""
        moved = _renamed(step, self.outer)
        types = self._types(moved.inputs)
        outputs = tuple(map(self._new, jax.eval_shape(step.apply, *types)))
        self.outer.update(zip(step.outputs, outputs, strict=True))
        self.opened.program.equations.append(
            moved._replace(outputs=outputs, types=types)
        )
        if self.opened.depends.intersection(moved.inputs):
            self.opened.depends.update(outputs)

    def _given_to_examples(self, slot: Slot, axis: Axis) -> Slot:
        """What the loop carries from its start on, if that is of parameters alone.

        Each example has its own of it, as of a learned state, so they meet here: in an
        equation that does nothing else.
        """
        is_learned = slot in self.opened.depends and self.opened.axes[slot] is None
        if axis is None or not is_learned:
            return slot
        copy = Equation(
            primitive="given to examples",
            params={},
            operands=(slot,),
            literals=(None,),
            inputs=(slot,),
            outputs=(self._new(self.opened.program.types[slot], axis),),
            types=self._types([slot]),
            apply=lambda x: [x],
        )
        self.opened.program.equations.append(copy)
        self.opened.depends.update(copy.outputs)
        return copy.outputs[0]

    def _with_an_axis_for_steps(self) -> set[Slot]:
        """Gives it to biases and scales that all steps use: it has the length 1."""
        uses = [slot for step in self.loop.during for slot in step.inputs]
        elementwise = [x.params[0] for x in self.loop.sites if _broadcasts(x)]
        found = {
            slot
            for slot in {*elementwise} - self.loop.sliced
            if self.body.shape(slot) and uses.count(slot) == elementwise.count(slot)
        }
        for slot in sorted(found):
            unsqueeze = Equation(
                primitive="reshape",
                params={},
                operands=(slot,),
                literals=(None,),
                inputs=(slot,),
                outputs=(slot,),
                types=(self.body.types[slot],),
                apply=lambda x: [x[None]],
            )
            self._append_before(unsqueeze)
        return found

    def _stack(self, slot: Slot) -> Slot:
        """The slot that has a value of the body of all steps."""
        if slot in self.body.inputs[self.loop.scan.carry.stop :]:
            return self.outer[slot]  # it has been given so
        if slot not in self.stacks:
            one, axis = self.body.types[slot], self.loop.axes[slot]
            of_all = _array((self.length, *one.shape), one.dtype)
            moved = None if axis is None else axis + 1
            self.stacks[slot] = self._new(of_all, moved)
        return self.stacks[slot]

    def _take_out(self, site: Site, broadcast: set[Slot]) -> None:
        """Adds the equation of a site over all steps, and its probes."""
        step, param = site.equation, site.params[0]
        lifted, steps = _over_all_steps(
            site,
            alone=self.loop.alone,
            sliced=self.loop.sliced,
            broadcasts=param in broadcast or not site.param_shape,
        )
        outer = {
            slot: self.outer[slot] if slot in self.loop.alone else self._stack(slot)
            for slot in step.inputs
        }
        moved = _renamed(lifted, outer)
        types = self._types(moved.inputs)
        results = jax.eval_shape(lifted.apply, *types)
        outputs = []
        for result, like, differentiable in zip(
            step.outputs, results, site.differentiable, strict=True
        ):
            axis = self.loop.axes[result]
            shifted = None if axis is None else axis + (axis >= steps)
            if differentiable:
                outputs.append(self._probe(result, like, steps, shifted))
            else:
                outputs.append(self._new(like, shifted))
        self.opened.inside.append(moved._replace(outputs=tuple(outputs), types=types))

    def _probe(self, result: Slot, like: Any, steps: int, axis: Axis) -> Slot:
        """A probe of a result in all steps; one for all that have the same gradient."""
        for probe in self.probes:
            if probe.steps == steps and self._have_same_gradient(probe.result, result):
                return probe.slot
        self.probes.append(_Probe(result, self._new(like, axis), steps))
        return self.probes[-1].slot

    def _have_same_gradient(self, one: Slot, other: Slot) -> bool:
        types = self.body.types[one], self.body.types[other]
        shapes = {(each.shape, str(each.dtype)) for each in types}
        return len(shapes) == 1 and self._gradient(one) == self._gradient(other)

    def _gradient(self, slot: Slot) -> int:
        """A number that stands for what decides the gradient by a value in one step.

        Where two values are only added up, or the same parts of them are, as of the
        joined gates of an LSTM, both have the same.
        """
        if slot in self.gradients:
            return self.gradients[slot]
        outputs = enumerate(self.body.outputs)
        decides: list[Any] = [("returned", k) for k, out in outputs if out == slot]
        for k, step in enumerate(self.loop.during):
            for place, operand in enumerate(step.operands):
                if operand != slot:
                    continue
                if self._only_adds(step, slot):
                    decides.append(("added", self._gradient(step.outputs[0])))
                elif step.primitive in _PARTS:
                    parts = tuple(map(self._gradient, step.outputs))
                    decides.append((step.primitive, str(step.params), parts))
                else:
                    decides.append(("used", k, place))
        if len(decides) == 1 and decides[0][0] == "added":
            self.gradients[slot] = decides[0][1]  # that of the sum
        else:
            key = tuple(sorted(decides, key=str))
            self.gradients[slot] = self.numbers.setdefault(key, len(self.numbers))
        return self.gradients[slot]

    def _only_adds(self, step: Equation, slot: Slot) -> bool:
        """Whether the gradient by its result is that by the operand."""
        if step.primitive not in ("add", "add_any"):
            return False
        one, total = (self.body.types[x] for x in (slot, step.outputs[0]))
        return (one.shape, one.dtype) == (total.shape, total.dtype)

    def _put_back(self, broadcast: set[Slot]) -> None:
        """Adds the loop itself, which takes probes and returns stacks."""
        loop, body, carry = self.loop, self.body, self.loop.scan.carry
        kept = [slot for slot in body.inputs if slot not in loop.alone]
        # As often as they are used, as in a program without loops.
        uses = [x for step in loop.during for x in step.operands if x in loop.alone]
        given = [*kept, *(slot for slot in uses if slot is not None)]
        operands = [self.outer[slot] for slot in given]
        operands += [probe.slot for probe in self.probes]
        inputs = tuple(dict.fromkeys(operands))
        of_steps = {*body.inputs[carry.stop :], *loop.sliced}
        during = body._replace(equations=loop.during, inputs=[])
        stacked, probes = list(self.stacks), self.probes
        options = {x: loop.equation.params[x] for x in ("length", "reverse", "unroll")}

        def apply(*values: Any) -> list[Any]:
            of = dict(zip(inputs, values, strict=True))
            known = {slot: of[self.outer[slot]] for slot in given}
            fixed = {
                slot: x[0] if slot in broadcast else x
                for slot, x in known.items()
                if slot not in of_steps
            }
            scanned = {slot: x for slot, x in known.items() if slot in of_steps}
            added = [jnp.moveaxis(of[x.slot], x.steps, 0) for x in probes]

            def step(carried: list[Any], given: Any) -> tuple[list[Any], Any]:
                of_step, added = given
                carries = dict(zip(body.inputs[carry], carried, strict=True))
                constants = {**body.constants, **fixed, **of_step, **carries}

                def add_probes(outputs: tuple[Slot, ...], results: Any) -> list[Any]:
                    values = dict(zip(outputs, results, strict=True))
                    for probe, x in zip(probes, added, strict=True):
                        if probe.result in values:
                            found = values[probe.result]
                            values[probe.result] = _with_probe(found, x)
                    return list(values.values())

                found = evaluate(during._replace(constants=constants), [], add_probes)
                results = [found[slot] for slot in body.outputs]
                stacks = [found[slot] for slot in stacked]
                return results[: len(carried)], results[len(carried) :] + stacks

            again = jax.checkpoint(step) if body.has_checkpoints else step
            start = [known[slot] for slot in body.inputs[carry]]
            last, rest = lax.scan(again, start, (scanned, added), **options)
            return [*last, *rest]

        outputs = (*loop.equation.outputs, *self.stacks.values())
        opened = loop.equation._replace(
            operands=tuple(operands),
            literals=(None,) * len(operands),
            inputs=inputs,
            outputs=outputs,
            types=self._types(inputs),
            apply=apply,
        )
        self.opened.loops.add(outputs)
        self.opened.program.equations.append(opened)


def _renamed(equation: Equation, slots: dict[Slot, Slot]) -> Equation:
    """The same of what is in other slots."""
    return equation._replace(
        operands=tuple(None if x is None else slots[x] for x in equation.operands),
        inputs=tuple(slots[x] for x in equation.inputs),
    )


def _array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


@jax.custom_vjp
def _with_probe(x: jax.Array, probe: jax.Array) -> jax.Array:
    """`x + probe` for a probe of zeros, which a loop has no need to read."""
    del probe
    return x


_with_probe.defvjp(lambda x, _: (x, None), lambda _, cotangent: (cotangent, cotangent))


def _over_all_steps(
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
    if _broadcasts(site) and param not in sliced and broadcasts:
        return step, 0
    along = [None if x in alone and x not in sliced else 0 for x in step.inputs]
    lifted = step._replace(apply=jax.vmap(step.apply, along))
    if _broadcasts(site) and param in sliced and site.param_shape:
        return lifted, 0
    return lifted._replace(primitive=f"{step.primitive} of all steps"), 0


def _broadcasts(site: Site) -> bool:
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
