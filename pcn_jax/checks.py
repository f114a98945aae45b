"""What the functions of the library refuse, and what they say instead."""

import numbers
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np


def check_number(
    name: str, value: Any, is_allowed: Callable[[Any], bool], allowed: str
) -> None:
    """Refuses a number out of its range; those of a schedule are arrays."""
    if isinstance(value, jax.Array):
        return
    if not isinstance(value, numbers.Real) or not is_allowed(value):
        raise ValueError(f"{name} must be {allowed}, got {value!r}.")


def check_positive_integer(name: str, value: Any) -> None:
    """Refuses what is not a positive integer."""
    if not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}.")


def check_labels(
    labels: Any, ndim: int, *, num_classes: int | None = None
) -> jax.Array:
    """Labels as an array, refused unless they are integers `[B]`, or `[C, m]`.

    Args:
      labels: What was given.
      ndim: 1 or 2.
      num_classes: Number they have to be below, if their values are known.
    """
    shape = "[B]" if ndim == 1 else "[C, m]"
    if not hasattr(labels, "dtype"):
        labels = np.asarray(labels)
    if labels.ndim != ndim or not jnp.issubdtype(labels.dtype, jnp.integer):
        hint = ""
        if labels.ndim == ndim and labels.dtype == jnp.bool_:
            hint = " Use labels.astype(int)."
        elif labels.ndim == ndim + 1 and labels.shape[-1] == 1:
            hint = " Use labels[..., 0]."
        elif labels.ndim == ndim + 1:
            hint = " Of one-hot rows use labels.argmax(-1)."
        raise ValueError(
            f"labels must be integers of shape {shape}, got {describe(labels)}.{hint}"
        )
    if num_classes is not None:
        _check_below(labels, num_classes)
    return jnp.asarray(labels).astype(jnp.int32)


def check_params(params: chex.ArrayTree) -> None:
    """Refuses what cannot be differentiated by, as `jax.grad` does."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        dtype = jax.typeof(leaf).dtype
        if not jnp.issubdtype(dtype, jnp.floating):
            hint = (
                "Train the real and the imaginary part of a complex one."
                if jnp.issubdtype(dtype, jnp.complexfloating)
                else "What is not trained, such as a counter or a random key, belongs "
                "in *args or in a closure."
            )
            raise TypeError(
                f"params must be of real floating point, got {dtype} at "
                f"params{jax.tree_util.keystr(path)}. {hint}"
            )


def describe(x: Any) -> str:
    """Dtype and shape of an array, or the type of anything else."""
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return f"{x.dtype}{list(x.shape)}"
    return f"a {type(x).__name__}"


def check_inputs(inputs: Any, number: int) -> None:
    """Refuses an empty batch, and inputs that are not as many as the labels."""
    if not number:
        raise ValueError("There are no examples: labels are empty.")
    shapes = [jnp.shape(x) for x in jax.tree.leaves(inputs)]
    if shapes and all(shape[:1] != (number,) for shape in shapes):
        raise ValueError(
            f"inputs must have the {number} examples of the labels on their first "
            f"axis, got {', '.join(map(str, shapes))}."
        )


def _check_below(labels: Any, num_classes: int) -> None:
    # NumPy looks at them: under jit, JAX would trace even values that are known.
    if isinstance(labels, jax.core.Tracer) or not np.size(labels):
        return
    largest = np.asarray(labels).max()
    if largest >= num_classes:
        raise ValueError(
            f"labels must be below num_classes={num_classes}, got a label {largest}. "
            "Number the classes from 0; labels below zero mark padding."
        )
