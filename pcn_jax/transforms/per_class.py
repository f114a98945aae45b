"""What every link has in common: checked class gradients, and nothing to remember."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pcn_jax.checks import check_numbers


def per_class(
    name: str, transform: Callable[..., optax.Updates]
) -> optax.GradientTransformationExtraArgs:
    """A stateless transformation that sees checked class gradients and keeps dtypes."""

    def init(params: optax.Params) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        check_class_axis(name, updates, params)
        result = transform(updates, **extra)
        return optax.tree_utils.tree_cast_like(result, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def check_counts(name: str, class_counts: Any, num_classes: int) -> jax.Array:
    """Class counts as an array `[C]`, refused unless each class has one, 0 or more."""
    if class_counts is None:
        raise ValueError(
            f"{name} needs the class counts of the batch: update(class_grads, state, "
            "params, class_counts=value.counts), where value is what "
            "pcn_jax.per_class_value_and_grad returns before the gradients."
        )
    if np.shape(class_counts) != (num_classes,):
        raise ValueError(
            f"{name} needs one class count a class, shape {(num_classes,)}, got "
            f"{np.shape(class_counts)}."
        )
    check_numbers(
        f"class_counts of {name}", class_counts, lambda x: x >= 0, "0 or more"
    )
    return jnp.asarray(class_counts)


def check_class_axis(
    name: str, updates: optax.Updates, params: optax.Params | None
) -> None:
    """Refuses updates that are not class gradients of `params`."""
    if params is None:
        raise ValueError(
            f"{name} needs the parameters, to check that updates carry the class axis: "
            "update(class_grads, state, params)."
        )
    if any(map(_is_masked, jax.tree.leaves(updates, is_leaf=_is_masked))):
        raise ValueError(
            f"{name} needs the class gradients of all parameters, and optax.masked or "
            "optax.multi_transform hides some of them. Put these behind "
            "sum_over_classes()."
        )
    leaves, structure = jax.tree_util.tree_flatten_with_path(updates)
    expected_structure: Any = jax.tree.structure(params)
    if structure != expected_structure:
        raise ValueError(
            f"{name} was given updates of the structure {structure}, but params have "
            f"{expected_structure}."
        )
    num_classes: int | None = None
    for (path, update), param in zip(leaves, jax.tree.leaves(params), strict=True):
        got, expected = jnp.shape(update), jnp.shape(param)
        where = f"updates{jax.tree_util.keystr(path)}"
        if got[1:] != expected or len(got) != len(expected) + 1:
            ordinary = (
                "This is an ordinary gradient, or one summed by a link before. "
                if got == expected
                else ""
            )
            raise ValueError(
                f"{name} works on class gradients, with leaves [C, *param.shape]: "
                f"{where} has shape {got}, the parameter {expected}. {ordinary}Compute "
                "class gradients with pcn_jax.per_class_value_and_grad, and keep what "
                "works on ordinary gradients behind sum_over_classes()."
            )
        num_classes = got[0] if num_classes is None else num_classes
        if got[0] != num_classes:
            raise ValueError(
                f"{name} needs the same number of classes in every leaf: {where} has "
                f"{got[0]}, the leaves before it {num_classes}."
            )


def _is_masked(leaf: Any) -> bool:
    return isinstance(leaf, optax.MaskedNode)
