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
_LAUNCH = 250_000_000
"""Multiplications in the time in which an accelerator is told what to do next."""
_TOKENS_AT_ONCE = 256
_FEW_EXAMPLES = 128
"""Up to so many, all pairs at once cost little more time and far less to compile."""
_MOST_COPIES = 8
"""On an accelerator: gradients of all examples, over what a layer reads and writes."""


class Choice(NamedTuple):
    """How the class gradients at one site are measured.

    Attributes:
      way: `"pairs"`: inner products of pairs of examples of one class. `"rows"`: the
        gradients of all classes, a few examples after the other, or of all examples
        side by side. `"stream"`: the former, of which only norms are kept.
        `"examples"`: the gradients of all examples. `"lookup"`: sorted by what was
        looked up. `"masked"`: one pass a class.
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
    size, tokens, weights = site.size, site.tokens, math.prod(site.param_shape)
    activations = size * tokens * (site.contracted + weights // site.contracted)
    at_once = max(1, min(_TOKENS_AT_ONCE // tokens, size // (2 * num_rows)))
    passes = size // at_once + num_rows
    cost = passes * weights * _WEIGHT_OF_MEMORY
    if stacked or num_rows * weights <= activations:
        explicit = Choice("rows", at_once)
    else:
        explicit = Choice("stream", at_once)
        cost += size * tokens * weights  # the weight gradient, once more
    if not _is_cpu():
        if explicit.way == "rows" and size * weights <= _MOST_COPIES * activations:
            explicit = Choice("rows", size)
            cost = (size + num_rows) * weights * _WEIGHT_OF_MEMORY
        else:
            cost += passes * _LAUNCH
    if site.kind == "product" or keep_rows:
        return explicit
    in_full = with_gramian or not _is_cpu()
    partners = size if in_full else min(-(-size // num_rows), size // 2)
    pairs = size * partners * _products_of_a_pair(site)
    return Choice("pairs") if pairs <= cost else explicit


def _products_of_a_pair(site: Site) -> int:
    """Multiplications in the inner product of the gradients of two examples."""
    pairs, inner = site.tokens**2, site.contracted
    features = math.prod(site.param_shape) // inner
    if site.kind == "dense":
        return pairs * (inner + features)
    numbers = site.equation.params["dimension_numbers"]
    window = math.prod(int(site.param_shape[d]) for d in numbers.rhs_spec[2:])
    seen = site.equation.types[site.equation.inputs.index(site.operand)].shape
    positions = math.prod(int(seen[d]) for d in numbers.lhs_spec[2:])
    of_positions = positions**2 * inner // window + 4 * window * pairs
    return pairs * features + min(pairs * inner, of_positions)


def block_size(size: int, num_rows: int, tokens: int) -> int:
    """Examples whose pairs are taken at once: half of a class, more or less."""
    if not _is_cpu():
        return max(min(size, 4096 // tokens), 1)  # few large products of matrices
    if tokens == 1 and size <= _FEW_EXAMPLES:
        return size
    half = max(size // (2 * num_rows), 1)
    block = 1 << (half.bit_length() - 1)  # odd sizes are slow
    least, largest = (16, 128) if tokens == 1 else (64 // tokens, 256 // tokens)
    return min(max(min(block, largest), least, 1), size)


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


def _is_cpu() -> bool:
    """Where a loop costs nothing; elsewhere a few large steps are better."""
    return jax.default_backend() == "cpu"
