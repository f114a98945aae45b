"""Class re-weighting: the baseline to beat."""

from typing import Any

import jax
import optax

from pcn_jax.counts import inverse_shares
from pcn_jax.geometry import scale_rows
from pcn_jax.transforms.per_class import check_counts, per_class


def scale_by_class_frequency() -> optax.GradientTransformationExtraArgs:
    """Weights each class by the inverse of its frequency: plain class re-weighting.

        n / (C n_l) · g_l

    No norms are involved: it is the gradient of the class-balanced mean loss, the
    baseline that a balancing method has to beat.

    Returns:
      A stateless transformation of class gradients. Its `update` needs the extra
      argument `class_counts` `[C]`. The counts of the batch (`value.counts`) weigh the
      classes present in it equally, however it was sampled. With uniformly sampled
      batches the counts of the training set are the usual importance weights.

    Raises:
      ValueError: In `update`, if `class_counts` is missing or not one number a class.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = scale_by_class_frequency()
      >>> params, class_grads = jnp.zeros(1), jnp.array([[3.0], [1.0]])
      >>> counts = jnp.array([3, 1])
      >>> state = tx.init(params)
      >>> updates, _ = tx.update(class_grads, state, params, class_counts=counts)
      >>> updates.tolist()
      [[2.0], [2.0]]
    """
    name = "scale_by_class_frequency"

    def scale(
        class_grads: optax.Updates, *, class_counts: Any = None, **extra: Any
    ) -> optax.Updates:
        del extra
        num_classes = len(jax.tree.leaves(class_grads)[0])
        counts = check_counts(name, class_counts, num_classes)
        return scale_rows(class_grads, inverse_shares(counts, float) / num_classes)

    return per_class(name, scale)
