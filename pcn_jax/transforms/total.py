"""The sum over classes: from class gradients to an ordinary update."""

from typing import Any

import optax

from pcn_jax.geometry import sum_rows
from pcn_jax.transforms.per_class import per_class


def sum_over_classes() -> optax.GradientTransformationExtraArgs:
    """Sums the class gradients: the link between the per-class ones and an optimizer.

    Without a link before it this is the gradient of the mean loss.

    Returns:
      A stateless transformation from leaves `[C, *param.shape]` to leaves `param.shape`
      of the same dtype; sums are kept in float32 or wider.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = optax.chain(sum_over_classes(), optax.sgd(1.0))
      >>> params, class_grads = jnp.zeros(2), jnp.array([[1.0, 2.0], [0.0, 3.0]])
      >>> tx.update(class_grads, tx.init(params), params)[0].tolist()
      [-1.0, -5.0]
    """

    def total(class_grads: optax.Updates, **extra: Any) -> optax.Updates:
        del extra
        return sum_rows(class_grads)

    return per_class("sum_over_classes", total)
