"""What the functions of the library refuse, and what they say instead."""

import numbers
from collections.abc import Callable
from typing import Any, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np


def check_number(
    name: str, value: Any, is_allowed: Callable[[Any], bool], allowed: str
) -> None:
    """Refuses a number out of its range, if it is known; in a schedule it is not."""
    if isinstance(value, jax.core.Tracer):
        return
    number = value.item() if np.ndim(value) == 0 and hasattr(value, "item") else value
    if not isinstance(number, numbers.Real) or not is_allowed(number):
        raise ValueError(f"{name} must be {allowed}, got {value!r}.")


def check_numbers(
    name: str, values: Any, is_allowed: Callable[[Any], bool], allowed: str
) -> None:
    """Refuses an array with a number out of its range, if they are known."""
    if not isinstance(values, jax.core.Tracer):
        for value in np.ravel(values).tolist():
            check_number(name, value, is_allowed, allowed)


def check_choice(name: str, value: Any, literal: Any) -> None:
    """Refuses what is none of the words of a `Literal`."""
    choices = get_args(literal)
    if value not in choices:
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}."
        )


def check_positive_integer(name: str, value: Any) -> None:
    """Refuses what is not a positive integer."""
    check_integer(name, value, lambda x: x >= 1, "a positive integer")


def check_integer(
    name: str, value: Any, is_allowed: Callable[[int], bool], allowed: str
) -> None:
    """Refuses what is not an integer, or one out of its range."""
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_integer or not is_allowed(value):
        hint = ""
        if isinstance(value, jax.Array):
            hint = f" Behind optax.inject_hyperparams pass static_args={name!r}."
        raise ValueError(f"{name} must be {allowed}, got {value!r}.{hint}")


def check_labels(
    labels: Any, ndim: int, *, num_classes: int | None = None, name: str = "labels"
) -> jax.Array:
    """Labels as an array, refused unless they are integers `[B]`, or `[C, m]`.

    Args:
      labels: What was given.
      ndim: 1 or 2.
      num_classes: Number they have to be below, if their values are known.
      name: What the argument is called.
    """
    shape = "[B]" if ndim == 1 else "[C, m]"
    if not hasattr(labels, "dtype"):
        labels = np.asarray(labels)
    if labels.ndim != ndim or not jnp.issubdtype(labels.dtype, jnp.integer):
        hint = ""
        if labels.ndim == ndim and labels.dtype == jnp.bool_:
            hint = f" Use {name}.astype(int)."
        elif labels.ndim == ndim + 1 and labels.shape[-1] == 1:
            hint = f" Use {name}[..., 0]."
        elif labels.ndim == ndim + 1:
            hint = f" Of one-hot rows use {name}.argmax(-1)."
        raise ValueError(
            f"{name} must be integers of shape {shape}, got {describe(labels)}.{hint}"
        )
    if num_classes is not None:
        _check_below(labels, num_classes, name)
    # What int32 cannot hold stays what it is: padding, or more than any class.
    given, held = jnp.iinfo(labels.dtype), np.iinfo(np.int32)
    if given.min < held.min or given.max > held.max:
        labels = labels.clip(max(given.min, held.min), min(given.max, held.max))
    return jnp.asarray(labels).astype(jnp.int32)


def check_host_labels(labels: np.ndarray, shape: str) -> np.ndarray:
    """Labels as an array of NumPy, refused unless they are integers on one axis.

    Args:
      labels: What was given.
      shape: How their shape is called, such as `"[n]"`.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not labels.size:
        raise ValueError(
            f"labels must be integers of shape {shape}, at least one, got "
            f"{describe(labels)}."
        )
    return labels


def check_params(params: chex.ArrayTree) -> None:
    """Refuses what cannot be differentiated by, as `jax.grad` does, and nothing."""
    if not jax.tree.leaves(params):
        raise ValueError(f"params must have arrays to train, got {params!r}.")
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


def check_inputs(
    inputs: Any, number: int, *, every: bool = False, name: str = "labels"
) -> None:
    """Refuses an empty batch, and inputs that are not as many as the labels.

    Args:
      inputs: A pytree of arrays.
      number: Of the labels.
      every: Whether all arrays must have the examples on the first axis, as where they
        are cut up, and not only one.
      name: What the labels are called.
    """
    if not number:
        raise ValueError(f"There are no examples: {name} are empty.")
    shapes = [jnp.shape(x) for x in jax.tree.leaves(inputs)]
    fits = [shape[:1] == (number,) for shape in shapes]
    if shapes and not (all(fits) if every else any(fits)):
        hint, sizes = "", [shape[0] if shape else 0 for shape in shapes]
        if not every and all(size and number % size == 0 for size in sizes):
            hint = (
                " If these are labels of pixels or tokens, use "
                "per_class_value_and_grad and a chain: see docs/balanced_gradient.md, "
                "'Labels of pixels or tokens'."
            )
        raise ValueError(
            f"inputs must have the {number} examples of the {name} on their first "
            f"axis, got {', '.join(map(str, shapes))}.{hint}"
        )


def check_shapes(name: str, given: Any, expected: Any, what: str) -> None:
    """Refuses a tree of arrays of other shapes.

    Args:
      name: What the argument is called.
      given: The tree.
      expected: The same tree, with shapes in the place of its arrays.
      what: What it has to be.
    """
    shapes = jax.tree.map(jnp.shape, given)
    if shapes != expected:
        raise ValueError(
            f"{name} must be {what}: expected shapes {expected}, got {shapes}."
        )


def _check_below(labels: Any, num_classes: int, name: str) -> None:
    # NumPy looks at them: under jit, JAX would trace even values that are known.
    if isinstance(labels, jax.core.Tracer) or not np.size(labels):
        return
    largest = np.asarray(labels).max()
    if largest >= num_classes:
        raise ValueError(
            f"{name} must be below num_classes={num_classes}, got a label {largest}. "
            "Number the classes from 0; those below zero mark padding."
        )
