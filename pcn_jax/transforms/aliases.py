"""PCNGD and PCNSGD: nothing but chains of the links."""

from typing import Any

import optax

from pcn_jax.checks import check_number
from pcn_jax.transforms.norm import scale_by_class_norm
from pcn_jax.transforms.total import sum_over_classes


def pcngd(
    learning_rate: optax.ScalarOrSchedule,
) -> optax.GradientTransformationExtraArgs:
    """Per-class normalised gradient descent, for the class gradients of all the data.

        params ← params − η Σ_l g_l / ‖g_l‖

    The step has the length of up to `C` learning rates however small the gradients are,
    so at a constant learning rate it does not settle: decay it, or use
    `clip_by_class_norm`.

    Args:
      learning_rate: `η`, a number or a schedule.

    Returns:
      A transformation from class gradients to the update of the parameters.

    Raises:
      ValueError: If the learning rate is known to be negative, or is none at all.

    Example:
      >>> import jax.numpy as jnp
      >>> import pcn_jax
      >>> def squared_error(w, x, y):
      ...     return 0.5 * (x @ w - y) ** 2
      >>> x, y, w = jnp.eye(2), jnp.array([0, 1]), jnp.array([2.0, 4.0])
      >>> tx = pcngd(0.5)
      >>> _, grads = pcn_jax.per_class_value_and_grad(squared_error, 2)(w, x, y)
      >>> updates, state = tx.update(grads, tx.init(w), w)
      >>> optax.apply_updates(w, updates).tolist()
      [1.5, 3.5]

    References:
      Francazi et al., 2023, PCNGD.
    """
    _check_learning_rate(learning_rate)
    return optax.chain(
        scale_by_class_norm(),
        sum_over_classes(),
        optax.scale_by_learning_rate(learning_rate),
    )


def pcnsgd(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float | None = None,
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Per-class normalised SGD, for the class gradients of a mini-batch.

    As `pcngd`, with the optional momentum of `optax.sgd` behind the sum. Under mini-
    batches the direction of a small class is noisier, and its step along the true
    gradient shorter. Batches with equally many examples of each class (PCNSGD+O, see
    `pcn_jax.oversampled`) or `scale_by_class_alignment` (PCNSGD+R) balance it.

    Args:
      learning_rate: A number or a schedule.
      momentum: Decay of the momentum, or `None` for none.
      nesterov: Whether the momentum is Nesterov's.

    Returns:
      A transformation from class gradients to the update of the parameters.

    Raises:
      ValueError: If the learning rate is known to be negative, or is none at all.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = pcnsgd(0.1, momentum=0.9)
      >>> params, class_grads = jnp.zeros(2), jnp.array([[2.0, 0.0], [0.0, 7.0]])
      >>> print(tx.update(class_grads, tx.init(params), params)[0])
      [-0.1 -0.1]

    References:
      Francazi et al., 2023, PCNSGD.
    """
    _check_learning_rate(learning_rate)
    return optax.chain(
        scale_by_class_norm(),
        sum_over_classes(),
        optax.sgd(learning_rate, momentum=momentum, nesterov=nesterov),
    )


def _check_learning_rate(learning_rate: Any) -> None:
    """Zero is allowed, because schedules that `inject_hyperparams` hands on have it."""
    if not callable(learning_rate):
        allowed = "0 or more, or a schedule"
        check_number("learning_rate", learning_rate, lambda x: x >= 0, allowed)
