"""What the functions of the library refuse, and what they say instead."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from pcn_jax.weights import RULES, ClassWeights, StatefulClassWeights


def check_labels(labels: Any, ndim: int) -> jax.Array:
    """Labels as an array, refused unless they are integers `[B]`, or `[C, m]`."""
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


def check_num_classes(num_classes: Any) -> None:
    """Refuses what is not a positive integer."""
    if not isinstance(num_classes, int | np.integer) or num_classes < 1:
        raise ValueError(
            f"num_classes must be a positive integer, got {num_classes!r}."
        )


def check_below(labels: Any, num_classes: int) -> None:
    """Refuses labels that are out of range, if their values are known."""
    # NumPy looks at them: under jit, JAX would trace even values that are known.
    if isinstance(labels, jax.core.Tracer) or not np.size(labels):
        return
    largest = np.asarray(labels).max()
    if largest >= num_classes:
        raise ValueError(
            f"labels must be below num_classes={num_classes}, got a label {largest}. "
            "Number the classes from 0; labels below zero mark padding."
        )


def describe(x: Any) -> str:
    """Dtype and shape of an array, or the type of anything else."""
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return f"{x.dtype}{list(x.shape)}"
    return f"a {type(x).__name__}"


def check_rule(weights: Any) -> None:
    """Refuses what is no function, or one that makes weights."""
    if weights is None or isinstance(weights, StatefulClassWeights):
        return
    if not callable(weights):
        raise ValueError(
            "weights must be a function from ClassStatistics to weights [C], such as "
            f"pcn_jax.weights.inverse_norm(), got {type(weights).__name__}. For fixed "
            "ones: lambda statistics: fixed."
        )
    if weights in RULES:
        name = weights.__name__
        raise ValueError(
            f"{name} makes weights and is none: pass weights={name}(...), called."
        )


def check_state(
    state: Any, num_classes: int, weights: ClassWeights | StatefulClassWeights
) -> None:
    """Refuses a state that is not built as the first one, or has no use."""
    if not isinstance(weights, StatefulClassWeights):
        if state is not None:
            raise ValueError(
                "state is for weights that have one; these do not. If loss_fn takes "
                "it, pass it by position."
            )
        return
    if state is None:
        raise ValueError(
            "These weights have a state: pass state=weights.init(num_classes) to "
            "the first step, and value.state of each step to the next."
        )
    first = jax.eval_shape(lambda: weights.init(num_classes))
    got, expected = (
        (jax.tree.structure(tree), [jnp.shape(x) for x in jax.tree.leaves(tree)])
        for tree in (state, first)
    )
    if got != expected:
        raise ValueError(
            f"state must be as weights.init(num_classes) makes it, {expected[0]} with "
            f"leaves {expected[1]}, got {got[0]} with {got[1]}."
        )


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


def check_reference(
    reference: chex.ArrayTree | None,
    params: chex.ArrayTree,
    num_classes: int,
    weights: ClassWeights | StatefulClassWeights,
) -> None:
    """Refuses what has not the shape of class gradients, or has no use."""
    if reference is None:
        return
    if isinstance(weights, StatefulClassWeights):
        raise ValueError("reference is for weights without a state: remove it.")
    expected = jax.tree.map(lambda x: (num_classes, *jnp.shape(x)), params)
    got = jax.tree.map(jnp.shape, reference)
    if got != expected:
        raise ValueError(
            "reference must be class gradients, with leaves [C, *param.shape]: "
            f"expected {expected}, got {got}."
        )
