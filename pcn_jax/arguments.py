"""What a loss takes besides parameters, inputs and labels, passed on as it is.

`jax.value_and_grad` hands a flag, a name or a function to the loss as they are, and so
does everything here. Where something is traced or compiled, only arrays can go in as
arguments, so the others are taken out before and put back inside.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax


class Fixed(NamedTuple):
    """All but the arrays of some arguments; hashable, if what is in it is.

    Attributes:
      structure: That of the arguments.
      values: What is no array, `None` where there is one.
      is_array: Where there is one.
    """

    structure: Any
    values: tuple[Any, ...]
    is_array: tuple[bool, ...]

    def with_arrays(
        self, arrays: Sequence[Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, with arrays again."""
        rest = iter(arrays)
        leaves = (
            next(rest) if is_array else value
            for value, is_array in zip(self.values, self.is_array, strict=True)
        )
        args, kwargs = self.structure.unflatten(leaves)
        return args, kwargs


def take_out_arrays(
    args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Fixed, list[Any]]:
    """Takes arguments apart into arrays, or shapes of arrays, and all else.

    Example:
      >>> fixed, arrays = take_out_arrays((jax.numpy.ones(2), "mean"), {"train": True})
      >>> len(arrays), fixed.values
      (1, (None, 'mean', True))
      >>> fixed.with_arrays(["here"])
      (('here', 'mean'), {'train': True})
    """
    leaves, structure = jax.tree.flatten((tuple(args), dict(kwargs)))
    is_array = tuple(map(_is_array, leaves))
    arrays = list(itertools.compress(leaves, is_array))
    values = tuple(None if _is_array(leaf) else leaf for leaf in leaves)
    return Fixed(structure, values, is_array), arrays


def of_arrays(function: Callable[..., Any], fixed: Fixed) -> Callable[..., Any]:
    """The same function, of parameters, inputs, labels and arrays alone."""

    def with_the_rest(params: Any, inputs: Any, labels: Any, *arrays: Any) -> Any:
        args, kwargs = fixed.with_arrays(arrays)
        return function(params, inputs, labels, *args, **kwargs)

    return with_the_rest


def _is_array(leaf: Any) -> bool:
    # A flax module has a dtype, and float32 itself has both.
    has_both = hasattr(leaf, "shape") and hasattr(leaf, "dtype")
    return has_both and not isinstance(leaf, type)
