"""The two-class step-size rule of the published code."""

from typing import Any

import jax.numpy as jnp
import optax

from pcn_jax.geometry import class_cosines, scale_rows
from pcn_jax.transforms.per_class import per_class


def scale_by_class_angle() -> optax.GradientTransformationExtraArgs:
    """Multiplies by `1 + cos α`: the two-class step-size rule of the published code.

    `α` is the angle between the two class gradients, so the step shrinks where they
    oppose each other: PCNGD's direction has `‖d‖² = 2 (1 + cos α)`. On automobiles and
    trucks PCNGD ended 0.07 higher in macro recall with it, and on digits as high
    (`RESULTS.md`, C14).

    Returns:
      A stateless transformation of class gradients.

    Raises:
      ValueError: In `update`, if there are not exactly two classes.

    Example:
      >>> import jax.numpy as jnp
      >>> from pcn_jax import scale_by_class_norm
      >>> tx = optax.chain(scale_by_class_norm(), scale_by_class_angle())
      >>> params, class_grads = jnp.zeros(2), jnp.array([[1.0, 0.0], [0.0, 5.0]])
      >>> tx.update(class_grads, tx.init(params), params)[0].tolist()
      [[1.0, 0.0], [0.0, 1.0]]
    """

    def scale(class_grads: optax.Updates, **extra: Any) -> optax.Updates:
        del extra
        cosines = class_cosines(class_grads)
        if cosines.shape != (2, 2):
            raise ValueError(
                "scale_by_class_angle is a rule for exactly two classes, got "
                f"{len(cosines)}. Leave it out of the chain."
            )
        return scale_rows(class_grads, jnp.repeat(1 + cosines[0, 1], 2))

    return per_class("scale_by_class_angle", scale)
