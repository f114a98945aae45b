"""Which way is taken to the norms of each weight, chosen when a step is traced."""

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple

import jax

from pcn_jax.fused.program import Program, Slot
from pcn_jax.fused.sites import Site

Way = Literal["pairs", "rows", "stream", "examples", "lookup", "masked"]

_VIEWS = {
    "broadcast_in_dim",
    "convert_element_type",
    "copy",
    "copy_p",
    "reshape",
    "rev",
    "squeeze",
    "transpose",
}
_WEIGHT_OF_MEMORY = 60
"""Multiplications in the time in which one number of a gradient is read and written."""
_TOKENS_AT_ONCE = 256
_LEAST_BLOCK, _LARGEST_BLOCK = 16, 128


class Choice(NamedTuple):
    """How the class gradients at one site are measured.

    Attributes:
      way: `"pairs"`: inner products of pairs of examples of one class. `"rows"`: the
        gradients of all classes, a few examples after the other. `"stream"`: the same,
        of which only norms are kept. `"examples"`: the gradients of all examples.
        `"lookup"`: sorted by what was looked up. `"masked"`: one pass a class.
      at_once: Examples taken at once.
    """

    way: Way
    at_once: int = 0

    def __str__(self) -> str:
        """The way, and how many examples it takes at once."""
        return self.way + (f", {self.at_once} at once" if self.at_once else "")


def choose(
    site: Site,
    num_rows: int,
    *,
    keep_rows: bool,
    with_gramian: bool,
) -> Choice:
    """Chooses by operations and memory.

    Args:
      site: The site.
      num_rows: `R`, the most classes that the batch can show.
      keep_rows: Whether the class gradients themselves are needed.
      with_gramian: Whether their inner products are needed, and not only their norms.

    Returns:
      The choice.
    """
    stacked = keep_rows or with_gramian
    if site.kind == "elementwise":
        return Choice("rows" if keep_rows else "examples")
    if site.kind == "other" or (site.kind == "lookup" and stacked):
        return Choice("masked")
    if site.kind == "lookup":
        return Choice("lookup")
    size, tokens, inner = site.size, site.tokens, site.contracted
    weights = math.prod(site.param_shape)
    chunk = max(1, min(_TOKENS_AT_ONCE // tokens, size // (2 * num_rows)))
    activations = size * tokens * (inner + weights // inner)
    if site.kind == "dense" and not keep_rows:
        one_by_one = weights * (size // chunk + num_rows) * _WEIGHT_OF_MEMORY
        if size * tokens * activations <= 2 * one_by_one:
            return Choice("pairs")
    fits = num_rows * weights <= activations
    return Choice("rows" if stacked or fits else "stream", chunk)


def block_size(size: int, num_rows: int, tokens: int) -> int:
    """Examples whose pairs are taken at once: the size of a class, more or less."""
    if jax.default_backend() != "cpu":
        return size  # one large product of matrices
    block = min(max(size // (2 * num_rows), _LEAST_BLOCK), _LARGEST_BLOCK)
    return min(max(block // tokens, 1), size)


def measured_in_place(program: Program, slots: Iterable[Slot]) -> set[Slot]:
    """Those of `slots` that are a parameter as it is, reshaped, transposed or cast.

    Their gradient has the norm of the parameter's, if nothing else uses the parameter.

    Args:
      program: The program of the losses.
      slots: Values that depend on parameters alone.

    Returns:
      The slots for which this holds.
    """
    made_by = {
        slot: equation for equation in program.equations for slot in equation.outputs
    }
    uses: dict[Slot | None, int] = {slot: 1 for slot in program.outputs}
    for equation in program.equations:
        for slot in equation.operands:
            uses[slot] = uses.get(slot, 0) + 1

    def is_view(slot: Slot) -> bool:
        if uses.get(slot) != 1:
            return False
        if slot in program.inputs:
            return True
        equation = made_by.get(slot)
        if equation is None or equation.primitive not in _VIEWS:
            return False
        (operand,) = equation.inputs
        grows = math.prod(program.shape(slot)) != math.prod(program.shape(operand))
        return not grows and is_view(operand)

    return {slot for slot in slots if is_view(slot)}
