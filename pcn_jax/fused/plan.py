"""Which way is taken to the norms of each weight, chosen when a step is traced."""

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import jax

from pcn_jax.fused.program import Program, Slot, is_complex
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
_RAM_COST, _CACHE_COST = 60, 10
"""Of reading and writing an element in RAM or in a cache, in multiplications."""
_SPILL_COST = 25
"""Of an element that a smaller group would have kept near."""
_CACHE_SIZE, _NEAR_CACHE_SIZE = 2**22, 2**16
"""Elements that stay in a cache for long, and from one step of a loop to the next."""
_CPU_STEP_COST = 100_000
"""Of a step of a loop, besides what it does. This and the costs of caches are fitted to
the times of 42 dense layers and batches, each in every way, on a core of AMD EPYC."""
_NARROW = 64
"""Columns below which a product of matrices takes no less time."""
_GPU_MEMORY_COST, _GPU_PATCH_COST = 300, 5
"""Of an element in the memory of an accelerator, and of multiplying two patches there.
Measured on an H100, at 1e14 multiplications a second."""
_GPU_STEP_COST, _GPU_CONVOLUTION_COST = 3_000_000_000, 1_500_000_000
"""Of a step of a loop there, besides what it does, and of a convolution at least."""
_TAIL = 2
"""On a long tail, most examples are of a class so many times the average one."""
_TOKENS_AT_ONCE = 256
_FEW_EXAMPLES = 128
"""Up to so many, all pairs at once take half as long to compile."""
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
    by_halves: bool,
    keep_rows: bool,
    with_gramian: bool,
) -> Choice:
    """Chooses by operations and memory.

    Args:
      site: The site.
      num_rows: `R`, the most classes that the batch can show.
      by_halves: Whether inner products of rows that are halves of a class are needed.
      keep_rows: Whether the class gradients themselves are.
      with_gramian: Whether all their inner products are, and not only their norms.

    Returns:
      The choice.
    """
    stacked = keep_rows or with_gramian
    if site.kind == "elementwise" or (site.is_depthwise and is_cpu() and not keep_rows):
        return Choice("rows" if keep_rows else "examples")
    if site.kind == "other" or (site.kind == "lookup" and stacked):
        return Choice("masked")
    if site.kind == "lookup":
        return Choice("lookup")
    if not is_cpu():
        return _choose_on_accelerator(
            site, num_rows, keep_rows=keep_rows, stacked=stacked
        )
    classes = -(-num_rows // 2) if by_halves else num_rows
    size, weights = site.size, math.prod(site.param_shape)
    all_rows = num_rows * weights
    at_once = _group_size(site, num_rows)
    cost = _cost_of_groups(site, num_rows, at_once)
    if stacked or classes * weights <= max(size * _operands(site), _CACHE_SIZE):
        explicit = Choice("rows", at_once)
        if site.kind == "dense" and site.tokens == 1:
            masked = _cost_of_masks(site, num_rows)
            if masked < cost:
                explicit, cost = Choice("masked"), masked
        cost += all_rows * _of(all_rows)  # they are measured and added up
    else:
        explicit = Choice("stream", at_once)
        cost += size * site.tokens * weights  # the weight gradient, once more
    if site.kind == "product" or keep_rows:
        return explicit
    pairs = _cost_of_pairs(site, classes, of_all_rows=with_gramian)
    return Choice("pairs") if pairs <= cost else explicit


def _choose_on_accelerator(
    site: Site, num_rows: int, *, keep_rows: bool, stacked: bool
) -> Choice:
    """A few large steps: memory and loops cost more than multiplications do."""
    size, weights = site.size, math.prod(site.param_shape)
    gradient, features = size * site.tokens * weights, weights // site.contracted
    all_rows = 2 * num_rows * weights  # made, and added up
    one_masked = max(gradient, _GPU_CONVOLUTION_COST if site.kind == "conv" else 0)
    one_masked += size * site.tokens * features * _GPU_MEMORY_COST
    costs = {Choice("masked"): num_rows * one_masked + all_rows * _GPU_MEMORY_COST}
    if size * weights <= _MOST_COPIES * size * _operands(site):
        patches = size * site.tokens * site.contracted if site.kind == "conv" else 0
        costs[Choice("rows", size)] = (
            gradient + (patches + size * weights + all_rows) * _GPU_MEMORY_COST
        )
    at_once = _group_size(site, num_rows)
    loop = (size // at_once + num_rows) * _GPU_STEP_COST
    if stacked or num_rows * weights <= size * _operands(site):
        costs[Choice("rows", at_once)] = gradient + all_rows * _GPU_MEMORY_COST + loop
    else:
        costs[Choice("stream", at_once)] = 2 * gradient + loop
    if site.kind != "product" and not keep_rows:
        products = (size * site.tokens) ** 2 * _GPU_MEMORY_COST
        pairs = size**2 * _products_of_a_pair(site)
        if site.kind == "conv":
            pairs *= _GPU_PATCH_COST
        costs[Choice("pairs")] = gradient + products + pairs
    return min(costs, key=costs.__getitem__)


def _group_size(site: Site, num_rows: int) -> int:
    """Examples of a class whose gradients are taken at once."""
    of_a_class = max(1, site.size // (2 * num_rows))
    if not is_cpu():
        return of_a_class
    most = max(1, min(_TOKENS_AT_ONCE // site.tokens, site.size // 2))
    if site.kind == "conv" and site.tokens > 1:
        return min(most, of_a_class)
    sizes = [1 << k for k in range(most.bit_length())]  # odd ones are slow
    return min(sizes, key=lambda size: _cost_of_groups(site, num_rows, size))


def _cost_of_groups(site: Site, num_rows: int, at_once: int) -> int:
    """What it costs, in multiplications, beside the weight gradient itself.

    The row is read and written once a group, the last group of a row is filled up, and
    a large group does not stay where a single example would.
    """
    weights, operands = math.prod(site.param_shape), _operands(site)
    passes = site.size // at_once + num_rows
    filled = site.contracted * max(weights // site.contracted, _NARROW)
    filling = num_rows * (at_once - 1) * site.tokens // 2 * filled
    spills = at_once * operands > _NEAR_CACHE_SIZE >= operands
    more = site.size * operands * _SPILL_COST if spills else 0
    return passes * (weights * _of(weights) + _CPU_STEP_COST) + filling + more


def _cost_of_masks(site: Site, num_rows: int) -> int:
    """The same where all rows are made at once, as columns of one product."""
    features = math.prod(site.param_shape) // site.contracted
    columns = num_rows * features
    more = max(columns, _NARROW) - max(features, _NARROW)
    return site.size * (more * site.contracted + columns * _CACHE_COST)


def _cost_of_pairs(site: Site, num_classes: int, *, of_all_rows: bool) -> int:
    """The same of the inner products of examples of one class, or of any two.

    By symmetry an example meets half of its class, and the rest of its block.
    """
    size, of_a_pair = site.size, _products_of_a_pair(site)
    block = block_size(size, num_classes, site.tokens, [site])
    if of_all_rows or block == size:
        return size**2 * of_a_pair
    partners = min(_TAIL * size // num_classes, size) // 2 + block
    return size * partners * (of_a_pair + _CPU_STEP_COST // block**2)


def _operands(site: Site) -> int:
    """Numbers of one example from which a weight gradient is made."""
    features = math.prod(site.param_shape) // site.contracted
    return site.tokens * (site.contracted + features)


def _of(numbers: int) -> int:
    """What each of so many numbers costs that are used again and again."""
    return _CACHE_COST if numbers <= _CACHE_SIZE else _RAM_COST


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


def block_size(size: int, num_classes: int, tokens: int, sites: Sequence[Site]) -> int:
    """Examples whose pairs are taken at once: half of a class, more or less."""
    if not is_cpu():
        return max(min(size, 4096 // tokens), 1)  # few large products of matrices
    weights = sum(math.prod(site.param_shape) for site in sites)
    takes_less = size * sum(map(_operands, sites)) <= weights  # than a weight gradient
    if tokens == 1 and size <= _FEW_EXAMPLES and takes_less:
        return size
    half = max(size // (2 * num_classes), 1)
    block = 1 << (half.bit_length() - 1)  # odd sizes are slow
    least, largest = (16, 128) if tokens == 1 else (64 // tokens, 256 // tokens)
    return min(max(min(block, largest), least, 1), size)


def measured_in_place(
    program: Program, params: Iterable[Slot], slots: Iterable[Slot]
) -> set[Slot]:
    """Those of `slots` that are parameters as they are, reshaped, cast or joined.

    Their gradient has the norm of the parameters', if nothing else uses those.

    Args:
      program: The program of the losses.
      params: The parameters.
      slots: Values that depend on parameters alone.

    Returns:
      The slots for which this holds.
    """
    leaves = set(params)
    made_by = {
        slot: equation for equation in program.equations for slot in equation.outputs
    }
    uses: dict[Slot | None, int] = {slot: 1 for slot in program.outputs}
    for equation in program.equations:
        for slot in equation.operands:
            uses[slot] = uses.get(slot, 0) + 1

    def is_view(slot: Slot) -> bool:
        if uses.get(slot) != 1 or is_complex(program.types[slot]):
            return False  # a complex gradient has a part that the parameter's lacks
        if slot in leaves:
            return True
        equation = made_by.get(slot)
        if equation is not None and equation.primitive == "concatenate":
            return all(map(is_view, equation.inputs))
        if equation is None or equation.primitive not in _VIEWS:
            return False
        (operand,) = equation.inputs
        grows = math.prod(program.shape(slot)) != math.prod(program.shape(operand))
        return not grows and is_view(operand)

    return {slot for slot in slots if is_view(slot)}


def is_cpu() -> bool:
    """Whether loops cost little; elsewhere a few large steps are better."""
    return jax.default_backend() == "cpu"
