"""PCN itself: each class gradient at unit length."""

from typing import Any

import optax

from pcn_jax.geometry import unit_class_grads
from pcn_jax.transforms.per_class import per_class


def scale_by_class_norm() -> optax.GradientTransformationExtraArgs:
    """Divides each class gradient by its norm: the link that makes PCNGD and PCNSGD.

        g_l / ‖g_l‖

    The norm is the global L2 norm over all parameters. Nothing is added to it: a class
    that is absent or has an exactly zero gradient contributes exactly zero, and the
    scale of a class's loss does not matter, from 1e-20 to 1e20 in float32.

    Returns:
      A stateless transformation of class gradients.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = scale_by_class_norm()
      >>> params, class_grads = jnp.zeros(2), jnp.array([[-7.0, 0.0], [0.0, 1e-20]])
      >>> updates, _ = tx.update(class_grads, tx.init(params), params)
      >>> updates.tolist()
      [[-1.0, 0.0], [0.0, 1.0]]

    References:
      Francazi, Baity-Jesi, Lucchi, `A Theoretical Analysis of the Learning Dynamics
      under Class Imbalance <https://arxiv.org/abs/2207.00391>`_, ICML 2023.
    """

    def scale(class_grads: optax.Updates, **extra: Any) -> optax.Updates:
        del extra
        return unit_class_grads(class_grads)[0]

    return per_class("scale_by_class_norm", scale)
