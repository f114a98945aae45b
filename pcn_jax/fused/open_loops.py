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

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pcn_jax.fused.all_steps import broadcasts_over, over_all_steps
from pcn_jax.fused.axis_rules import Axis
from pcn_jax.fused.copies import GIVEN
from pcn_jax.fused.loop_bodies import Loop, look_into
from pcn_jax.fused.program import Equation, Program, Slot, evaluate
from pcn_jax.fused.sites import Site

_PARTS = {"convert_element_type", "reshape", "slice", "split", "squeeze", "transpose"}
"""Primitives whose result is part of their operand, or all of it."""


class Opened(NamedTuple):
    """A program whose loops are open.

    Attributes:
      program: The program. Its open loops take the results of `inside` for probes.
      axes: The batch axis, of every slot, new ones included.
      depends: The slots that depend on parameters.
      loops: The outputs of each open loop.
      inside: What parameters do in them: an equation over all steps for each site.
    """

    program: Program
    axes: dict[Slot, Axis]
    depends: set[Slot]
    loops: set[tuple[Slot, ...]]
    inside: list[Equation]


def open_loops(
    program: Program, axes: dict[Slot, Axis], depends: set[Slot], used: set[Slot]
) -> Opened:
    """Opens the loops in which parameters meet examples, where that is possible.

    A loop stays as it is if it carries what depends on parameters but not on examples,
    or if it has no steps.

    Args:
      program: The program. Loops whose results have no `axes` are left alone.
      axes: The batch axis.
      depends: The slots that depend on parameters.
      used: The slots that the losses need.

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
            loop = look_into(equation, program, axes, depends, used)
        if loop is None:
            opened.program.equations.append(equation)
        else:
            _Opening(opened, loop).open()
    return opened


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

    def __init__(self, opened: Opened, loop: Loop) -> None:
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
        self._return_what_has_no_examples()
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

    def _return_what_has_no_examples(self) -> None:
        """Adds what the loop returns of parameters alone: of all steps it is known."""
        for inner, slot in self._returned():
            if inner not in self.loop.alone:
                continue
            outer, is_stack = self.outer[inner], inner in self.loop.sliced
            like = self.opened.program.types[slot]
            stacked = functools.partial(_stacked, like.shape, is_stack=is_stack)
            given = self.opened.program.types[outer]
            name = "copy" if is_stack else "broadcast_in_dim"
            self.opened.program.equations.append(
                _of_one(name, outer, slot, given, stacked)
            )

    def _returned(self) -> list[tuple[Slot, Slot]]:
        """What the loop stacks up: slots of the body, and of the program."""
        first = len(self.body.inputs[self.loop.scan.carry])
        outputs = self.loop.equation.outputs
        return list(zip(self.body.outputs[first:], outputs[first:], strict=True))

    def _given_to_examples(self, slot: Slot, axis: Axis) -> Slot:
        """What the loop carries from its start on, if that is of parameters alone.

        Each example has its own of it, as of a learned state, so they meet here: in an
        equation that does nothing else.
        """
        is_learned = slot in self.opened.depends and self.opened.axes[slot] is None
        if axis is None or not is_learned:
            return slot
        like = self.opened.program.types[slot]
        own = self._new(like, axis)
        copy = _of_one(GIVEN, slot, own, like, lambda x: x)
        self.opened.program.equations.append(copy)
        self.opened.depends.add(own)
        return own

    def _with_an_axis_for_steps(self) -> set[Slot]:
        """Gives it to biases and scales that all steps use: it has the length 1."""
        uses = [slot for step in self.loop.during for slot in step.inputs]
        elementwise = [x.params[0] for x in self.loop.sites if broadcasts_over(x)]
        found = {
            slot
            for slot in {*elementwise} - self.loop.sliced
            if self.body.shape(slot) and uses.count(slot) == elementwise.count(slot)
        }
        for slot in sorted(found):
            like = self.body.types[slot]
            self._append_before(_of_one("reshape", slot, slot, like, lambda x: x[None]))
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
        lifted, steps = over_all_steps(
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
        returned = [x for x in self._returned() if x[0] not in loop.alone]
        stacked, probes = [x for x, _ in returned] + list(self.stacks), self.probes
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
                after = [found[slot] for slot in body.outputs[: len(carried)]]
                return after, [found[slot] for slot in stacked]

            again = jax.checkpoint(step) if body.has_checkpoints else step
            start = [known[slot] for slot in body.inputs[carry]]
            last, rest = lax.scan(again, start, (scanned, added), **options)
            return [*last, *rest]

        outputs = (
            *loop.equation.outputs[: len(body.inputs[carry])],
            *(slot for _, slot in returned),
            *self.stacks.values(),
        )
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


def _stacked(shape: tuple[int, ...], x: jax.Array, *, is_stack: bool) -> jax.Array:
    """What all steps return together, where each returns the same or its slice."""
    return x if is_stack else jnp.broadcast_to(x[None], shape)


def _of_one(
    primitive: str,
    slot: Slot,
    output: Slot,
    like: Any,
    function: Callable[[jax.Array], jax.Array],
) -> Equation:
    """An equation with one operand and one result."""
    return Equation(
        primitive=primitive,
        params={},
        operands=(slot,),
        literals=(None,),
        inputs=(slot,),
        outputs=(output,),
        types=(like,),
        source="",
        apply=lambda x: [function(x)],
    )


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
