"""Any rule of weights as a link of a chain."""

from typing import Any

import optax

from pcn_jax.geometry import class_norms, scale_rows
from pcn_jax.transforms.per_class import check_counts, per_class
from pcn_jax.weighing import check_weights, checked_weights, class_statistics
from pcn_jax.weights import ClassWeights


def scale_by_class_weights(
    weights: ClassWeights,
    *,
    with_gramian: bool = False,
    name: str = "scale_by_class_weights",
) -> optax.GradientTransformationExtraArgs:
    """Multiplies each class gradient by a weight, as `pcn_value_and_grad` does.

        w_l g_l,    w = weights(statistics)

    So a rule of your own, or one of `pcn_jax.weights`, serves in a chain, too.

    Args:
      weights: From `ClassStatistics` to one weight a class, `[C]`; without a state.
      with_gramian: Whether they need the inner products of all class gradients, too.
      name: What the link is called in errors.

    Returns:
      A stateless transformation of class gradients. Its `update` needs the extra
      argument `class_counts` `[C]`, and takes `reference`, class gradients to which
      the `alignment` is measured.

    Raises:
      ValueError: In `update`, if `class_counts` is missing or not one number a class,
        or if there is not one weight a class.

    Example:
      >>> import jax.numpy as jnp
      >>> def at_most_one(statistics):
      ...     return 1 / jnp.maximum(statistics.norms, 1)
      >>> tx = scale_by_class_weights(at_most_one)
      >>> params, class_grads = jnp.zeros(1), jnp.array([[3.0], [0.5]])
      >>> state, counts = tx.init(params), jnp.array([3, 1])
      >>> updates, _ = tx.update(class_grads, state, params, class_counts=counts)
      >>> updates.tolist()
      [[1.0], [0.5]]
    """
    check_weights(weights)

    def scale(
        class_grads: optax.Updates,
        *,
        class_counts: Any = None,
        reference: optax.Updates | None = None,
        **extra: Any,
    ) -> optax.Updates:
        del extra
        norms = class_norms(class_grads)
        counts = check_counts(name, class_counts, len(norms))
        statistics = class_statistics(
            class_grads, norms, counts, with_gramian=with_gramian, reference=reference
        )
        return scale_rows(class_grads, checked_weights(weights(statistics), norms))

    return per_class(name, scale)
