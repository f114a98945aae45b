"""Momentum of each class, before its gradient is normalised."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from pcn_jax.checks import check_number, check_positive_integer
from pcn_jax.counts import inverse_shares
from pcn_jax.geometry import scale_rows
from pcn_jax.precision import at_least_float32
from pcn_jax.transforms.per_class import check_class_axis, check_counts


class ClassMomentumState(NamedTuple):
    """What is remembered of each class.

    Attributes:
      averages: Moving average of the gradients of its mean loss from zero on,
        `[C, *param.shape]`, in float32 or wider.
      seen: What the average's weights add up to, below 1 at first, `[C]`.
    """

    averages: chex.ArrayTree
    seen: jax.Array


def class_momentum(
    num_classes: int, decay: float
) -> optax.GradientTransformationExtraArgs:
    """Puts the moving average of each class gradient in its place.

        g_l ← (B_l / B) EMA(G_l),    G_l = (B / B_l) g_l

    What is averaged is the gradient of the mean loss of the class, so it does not
    matter how many examples the batches before had of it.

    Directional noise is highest where a class has few examples in the batch. An average
    over steps lowers it *before* the length is taken, so that less of the length that
    is divided by is noise. In front of `scale_by_class_norm` or `clip_by_class_norm`;
    momentum behind the sum cannot undo what normalising did. Averages are corrected for
    their start from zero.

    It remembers `C` times the parameters, and class gradients have to be made.
    `scale_by_smoothed_class_norm`, which has the same purpose, remembers three numbers
    a class, and came out ahead wherever the two were compared (`RESULTS.md`, C11).

    Args:
      num_classes: `C`; behind `optax.inject_hyperparams` one of its `static_args`.
      decay: Of the moving average, in [0, 1); 0 changes nothing.

    Returns:
      A transformation of class gradients with a `ClassMomentumState`. Its `update`
      needs the extra argument `class_counts`, those of the batch `[C]`: a class that is
      absent keeps its average, and contributes nothing to this step.

    Raises:
      ValueError: If `num_classes` is not a positive integer or `decay` not in [0, 1);
        in `update`, if `class_counts` is missing or there is not one row a class.

    Example:
      >>> import pcn_jax
      >>> tx = optax.chain(class_momentum(2, 0.5), pcn_jax.scale_by_class_norm())
      >>> params, counts = jnp.zeros(2), jnp.array([3, 1])
      >>> state = tx.init(params)
      >>> for grads in ([[3.0, 0.0], [0.0, 1.0]], [[0.0, 2.0], [0.0, 1.0]]):
      ...     updates, state = tx.update(
      ...         jnp.array(grads), state, params, class_counts=counts
      ...     )
      >>> print((10 * updates).round())
      [[ 6.  8.]
       [ 0. 10.]]
    """
    check_positive_integer("num_classes", num_classes)
    check_number("decay", decay, lambda x: 0 <= x < 1, "in [0, 1)")
    name = "class_momentum"

    def init(params: optax.Params) -> ClassMomentumState:
        rows = jax.tree.map(
            lambda p: at_least_float32(
                jnp.zeros((num_classes, *jnp.shape(p)), jnp.result_type(p))
            ),
            params,
        )
        return ClassMomentumState(rows, jnp.zeros(num_classes))

    def update(
        updates: optax.Updates,
        state: ClassMomentumState,
        params: optax.Params | None = None,
        *,
        class_counts: Any = None,
        **extra: Any,
    ) -> tuple[optax.Updates, ClassMomentumState]:
        del extra
        check_class_axis(name, updates, params)
        num_rows = len(jax.tree.leaves(updates)[0])
        if num_rows != num_classes:
            raise ValueError(
                f"{name} was made for {num_classes} classes, got {num_rows} rows."
            )
        counts = check_counts(name, class_counts, num_classes)
        here, to_mean = counts > 0, inverse_shares(counts, state.seen.dtype)
        kept, new = jnp.where(here, decay, 1), jnp.where(here, 1 - decay, 0)
        averages = jax.tree.map(
            lambda old, g: (
                scale_rows(old, kept) + scale_rows(g, new * to_mean)
            ).astype(old.dtype),
            state.averages,
            updates,
        )
        seen = kept * state.seen + new
        corrected = scale_rows(
            averages, jnp.where(here, 1 / jnp.where(here, to_mean * seen, 1), 0)
        )
        return (
            optax.tree_utils.tree_cast_like(corrected, updates),
            ClassMomentumState(averages, seen.astype(state.seen.dtype)),
        )

    return optax.GradientTransformationExtraArgs(init, update)
