"""PCN by the true norms of class gradients, found by splitting classes in halves."""

from typing import Any

import jax.numpy as jnp
import optax

from pcn_jax.checks import check_positive_integer
from pcn_jax.geometry import class_norms, scale_rows
from pcn_jax.halves import half_products, of_halves
from pcn_jax.transforms.per_class import check_class_axis, check_counts
from pcn_jax.weights import (
    Average,
    ClassStatistics,
    SmoothedNormState,
    inverse_smoothed_norm,
)


def scale_by_smoothed_class_norm(
    num_classes: int,
    min_norm: float,
    *,
    decay: float = 0.99,
    min_alignment: float = 0.5,
    average: Average = "norm",
) -> optax.GradientTransformationExtraArgs:
    """Divides each class-mean gradient by its norm without the noise of the batch.

        G_l / max(‖G_l‖_smoothed, min_norm),    G_l = (B / B_l) g_l
        ‖G_l‖_smoothed = √max(EMA⟨G_a, G_b⟩, min_alignment² EMA‖G_l‖²)

    where `a` and `b` are halves of the examples of class `l`; see
    `pcn_jax.weights.inverse_smoothed_norm`, which explains why, and lists the special
    cases. The rows are those of the halves, `[2C, *param.shape]`, two by two, and stay
    so: `sum_over_classes` adds them all. `pcn_jax.split_halves` makes the labels.

    Args:
      num_classes: `C`; behind `optax.inject_hyperparams` one of its `static_args`.
      min_norm: Norm of a class-mean gradient below which it is left in proportion; a
        positive number in the units of the loss over those of the parameters.
      decay: Of the moving averages, in [0, 1).
      min_alignment: How much shorter than the noisy norm the smoothed one may be, in
        [0, 1].
      average: What is averaged over steps: `"norm"`, the squared norm; or
        `"alignment"`, only its ratio to the noisy one, by which the norm of the present
        batch is then shortened.

    Returns:
      A transformation of the gradients of half classes with a `SmoothedNormState`. Its
      `update` needs the extra argument `class_counts`, one of each half, `[2C]`.

    Raises:
      ValueError: If `num_classes` is not a positive integer, `min_norm` not positive,
        `decay` not in [0, 1), `min_alignment` not in [0, 1] or there is no such
        average; in `update`, if `class_counts` is missing or there are not two rows a
        class.

    Example:
      >>> import jax.numpy as jnp
      >>> import pcn_jax
      >>> def squared_error(w, x, halves):
      ...     return 0.5 * (x @ w - halves // 2) ** 2  # the label is halves // 2
      >>> x, labels = jnp.eye(2).repeat(2, axis=0), jnp.array([0, 0, 1, 1])
      >>> w = jnp.full(2, 2.0)
      >>> halves = pcn_jax.split_halves(labels)
      >>> gradients = pcn_jax.per_class_value_and_grad(squared_error, 4)
      >>> value, grads = gradients(w, x, halves)
      >>> tx = scale_by_smoothed_class_norm(2, min_norm=0.5)
      >>> state = tx.init(w)
      >>> updates, _ = tx.update(grads, state, w, class_counts=value.counts)
      >>> print(updates.sum(axis=0))
      [1. 1.]
    """
    rule = inverse_smoothed_norm(
        min_norm, decay=decay, min_alignment=min_alignment, average=average
    )
    check_positive_integer("num_classes", num_classes)
    name = "scale_by_smoothed_class_norm"

    def init(params: optax.Params) -> SmoothedNormState:
        del params
        state: SmoothedNormState = rule.init(num_classes)
        return state

    def update(
        updates: optax.Updates,
        state: SmoothedNormState,
        params: optax.Params | None = None,
        *,
        class_counts: Any = None,
        **extra: Any,
    ) -> tuple[optax.Updates, SmoothedNormState]:
        del extra
        check_class_axis(name, updates, params)
        norms = class_norms(updates)
        if len(norms) != 2 * num_classes:
            raise ValueError(
                f"{name} needs the gradients of the two halves of each of {num_classes}"
                f" classes, {2 * num_classes} rows, got {len(norms)}: see "
                "pcn_jax.split_halves."
            )
        counts = check_counts(name, class_counts, len(norms))
        halves = ClassStatistics(norms, counts)
        statistics = of_halves(halves, half_products(updates, norms))
        weights, new_state = rule.update(statistics, state)
        scaled = scale_rows(updates, jnp.repeat(weights, 2))
        return optax.tree_utils.tree_cast_like(scaled, updates), new_state

    return optax.GradientTransformationExtraArgs(init, update)
