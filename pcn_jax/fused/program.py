"""A traced function as a flat list of equations that can be looked at one by one."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core, source_info_util

_CHECKPOINTS = ("checkpoint", "remat", "remat2")
_CALLS = dict.fromkeys(
    ["jit", "pjit", "closed_call", "core_call", *_CHECKPOINTS], "jaxpr"
)
_WITH_DERIVATIVES = dict.fromkeys(["custom_jvp_call", "custom_vjp_call"], "call_jaxpr")
"""Primitives that call a function, and the parameter that has it."""

Slot = int
"""Where a value is kept: slots are numbered in the order in which they are filled."""


class Equation(NamedTuple):
    """One application of a primitive.

    Attributes:
      primitive: Its name in the jaxpr.
      params: Its parameters, such as dimension numbers.
      operands: Slot of each operand; `None` for a literal.
      literals: Value of each operand that is a literal; `None` for the others.
      inputs: The same slots, each once: what `apply` is given.
      outputs: Slot of each result.
      types: Shapes and dtypes of `inputs`.
      source: The line of code that it comes from, as JAX says it.
      apply: Computes the list of results from the values of `inputs`, whose axis of
        examples may be shorter or longer than it was when traced.
    """

    primitive: str
    params: dict[str, Any]
    operands: tuple[Slot | None, ...]
    literals: tuple[Any, ...]
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    types: tuple[Any, ...]
    source: str
    apply: Callable[..., list[Any]]


class Program(NamedTuple):
    """Equations in an order in which they can be evaluated.

    Attributes:
      equations: All equations, those of inner calls included.
      inputs: Slots of the arguments.
      outputs: Slots of the results.
      constants: What fills the slots that neither arguments nor equations fill.
      types: Shape and dtype of each slot.
      has_checkpoints: Whether a part of it was under `jax.checkpoint`.
    """

    equations: list[Equation]
    inputs: list[Slot]
    outputs: list[Slot]
    constants: dict[Slot, Any]
    types: list[Any]
    has_checkpoints: bool = False

    def shape(self, slot: Slot) -> tuple[int, ...]:
        """Shape of the value in a slot."""
        return tuple(self.types[slot].shape)


def flatten(closed: core.ClosedJaxpr, *, differentiable: bool = True) -> Program:
    """Lists the equations of a jaxpr, with calls to jitted functions inlined.

    Args:
      closed: What `jax.make_jaxpr` returns.
      differentiable: Whether the program has to have the same derivative. If not,
        functions with derivatives of their own are opened, too.

    Returns:
      An equivalent `Program`. Calls and `jax.checkpoint` are opened; loops, branches
      and functions with derivatives of their own stay as they are.
    """
    calls = _CALLS if differentiable else _CALLS | _WITH_DERIVATIVES
    types: list[Any] = []
    constants: dict[Slot, Any] = {}
    equations: list[Equation] = []
    checkpoints: list[str] = []

    def new_slot(atom: Any) -> Slot:
        types.append(atom.aval)
        return len(types) - 1

    def constant(atom: Any, value: Any) -> Slot:
        slot = new_slot(atom)
        constants[slot] = value
        return slot

    def visit(
        jaxpr: core.Jaxpr, consts: Iterable[Any], args: Iterable[Slot], source: str = ""
    ) -> list[Slot]:
        slots = dict(zip(jaxpr.invars, args, strict=True))
        for variable, value in zip(jaxpr.constvars, consts, strict=True):
            slots[variable] = constant(variable, value)

        def read(atom: Any) -> Slot:
            if isinstance(atom, core.Literal):
                return constant(atom, atom.val)
            return slots[atom]

        for eqn in jaxpr.eqns:
            if eqn.primitive.name in _CHECKPOINTS:
                checkpoints.append(eqn.primitive.name)
            if eqn.primitive.name in calls:
                inner, inner_consts = _opened(eqn.params[calls[eqn.primitive.name]])
                caller = source or (_source(eqn) if _is_of_jax(inner) else "")
                outputs = visit(inner, inner_consts, map(read, eqn.invars), caller)
            else:
                outputs = [new_slot(variable) for variable in eqn.outvars]
                equation = _equation(jaxpr, eqn, slots, outputs, source or _source(eqn))
                equations.append(equation)
            slots.update(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    inputs = [new_slot(variable) for variable in closed.jaxpr.invars]
    outputs = visit(closed.jaxpr, closed.consts, inputs)
    return Program(equations, inputs, outputs, constants, types, bool(checkpoints))


def needed_for(program: Program, results: Iterable[Slot]) -> Program:
    """The same program without equations that do not contribute to some results."""
    needed, kept = set(results), []
    for equation in reversed(program.equations):
        if needed.intersection(equation.outputs):
            needed.update(equation.inputs)
            kept.append(equation)
    return program._replace(equations=kept[::-1])


def used_in(program: Program) -> set[Slot]:
    """The slots that its equations use, and its results."""
    return set(program.outputs).union(*(x.inputs for x in program.equations))


def dependent_on(program: Program, slots: Iterable[Slot]) -> set[Slot]:
    """The slots whose derivative by some slots is not zero, and those themselves."""
    found = set(slots)
    for equation in program.equations:
        if found.intersection(equation.inputs) and _has_derivative(equation):
            found.update(_with_gradient(program, equation.outputs))
    return found


def leading_to(program: Program, results: Iterable[Slot]) -> set[Slot]:
    """The slots by which the derivative of some results is not zero, and those."""
    found = set(results)
    for equation in reversed(program.equations):
        if found.intersection(equation.outputs) and _has_derivative(equation):
            found.update(_with_gradient(program, equation.inputs))
    return found


def _has_derivative(equation: Equation) -> bool:
    return equation.primitive != "stop_gradient"


def _with_gradient(program: Program, slots: Iterable[Slot]) -> list[Slot]:
    return [slot for slot in slots if has_gradient(program.types[slot])]


def evaluate(
    program: Program,
    args: Iterable[Any],
    after: Callable[[tuple[Slot, ...], list[Any]], list[Any]] = lambda _, results: (
        results
    ),
) -> dict[Slot, Any]:
    """Runs a program.

    Args:
      program: The program.
      args: Values of its inputs.
      after: Called with the slots and the values of the results of each equation;
        returns what to fill the slots with.

    Returns:
      The value of every slot.
    """
    values = dict(program.constants)
    values.update(zip(program.inputs, args, strict=True))
    for equation in program.equations:
        results = equation.apply(*(values[slot] for slot in equation.inputs))
        values.update(
            zip(equation.outputs, after(equation.outputs, results), strict=True)
        )
    return values


def _equation(
    jaxpr: core.Jaxpr,
    eqn: core.JaxprEqn,
    slots: dict[core.Var, Slot],
    outputs: list[Slot],
    source: str,
) -> Equation:
    atoms = [None if isinstance(x, core.Literal) else x for x in eqn.invars]
    variables = [x for x in dict.fromkeys(atoms) if x is not None]
    alone: core.Jaxpr = jaxpr.replace(
        constvars=[],
        invars=variables,
        outvars=eqn.outvars,
        eqns=[eqn],
        effects=eqn.effects,
    )
    results_of = core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))

    def apply(*values: Any) -> list[Any]:
        with jax.enable_checks(False):  # of the shapes that were traced
            results: list[Any] = results_of(*values)
        return results

    return Equation(
        primitive=eqn.primitive.name,
        params=eqn.params,
        operands=tuple(None if x is None else slots[x] for x in atoms),
        literals=tuple(getattr(x, "val", None) for x in eqn.invars),
        inputs=tuple(slots[variable] for variable in variables),
        outputs=tuple(outputs),
        types=tuple(variable.aval for variable in variables),
        source=source,
        apply=apply,
    )


def _source(eqn: core.JaxprEqn) -> str:
    """The line of code, as `file.py:7:12 (function)`."""
    line: str = source_info_util.summarize(eqn.source_info)
    return line


def _is_of_jax(jaxpr: core.Jaxpr) -> bool:
    """Whether a function is of JAX: it may have been traced for another caller."""
    where = getattr(jaxpr.debug_info, "func_src_info", None) or ""
    return "/jax/_src/" in where.replace("\\", "/")


def _opened(jaxpr: Any) -> tuple[core.Jaxpr, Iterable[Any]]:
    if isinstance(jaxpr, core.ClosedJaxpr):
        return jaxpr.jaxpr, jaxpr.consts
    return jaxpr, ()


def has_gradient(x: Any) -> bool:
    """Whether gradients flow to a value of this type."""
    return bool(jnp.issubdtype(x.dtype, jnp.inexact))


def is_complex(x: Any) -> bool:
    """Whether a value of this type is of complex numbers."""
    return bool(jnp.issubdtype(x.dtype, jnp.complexfloating))
