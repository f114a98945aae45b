"""Per-class clipping: PCN that settles."""

import jax
import optax

from pcn_jax.transforms.weighted import scale_by_class_weights
from pcn_jax.weights import inverse_clipped_norm


def clip_by_class_norm(
    max_norm: jax.typing.ArrayLike,
) -> optax.GradientTransformationExtraArgs:
    """Clips each class-mean gradient: PCN far from the end of training, settling there.

        G_l / max(‖G_l‖, max_norm),    G_l = (B / B_l) g_l

    where `G_l` is the gradient of the mean loss *of class `l`*. A class whose gradient
    is long contributes a unit vector, as under `scale_by_class_norm`; one whose
    gradient has become short contributes in proportion, so that the step shrinks as the
    class is learned. `max_norm = 0` is `scale_by_class_norm`; a large one is class
    re-weighting with the learning rate multiplied by `C / max_norm`.

    This is `optax.clip_by_global_norm(max_norm)` for each class, divided by `max_norm`:
    the learning rate then has the meaning that it has for PCN.

    Args:
      max_norm: A class-mean gradient longer than this is cut to length 1; a shorter one
        is only divided by it. A non-negative number in the units of the loss over those
        of the parameters, or one for each class `[C]`. Of 0.1, 1 and 10 the first did
        best in our runs (RESULTS.md, C11).

    Returns:
      A stateless transformation of class gradients. Its `update` needs the extra
      argument `class_counts`: the counts `[C]` of the batch that the gradients come
      from, `value.counts` of `pcn_jax.per_class_value_and_grad`.

    Raises:
      ValueError: If `max_norm` is negative; in `update`, if it is neither a scalar nor
        `[C]`, or if `class_counts` is missing or not one number a class.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = clip_by_class_norm(1.0)
      >>> params, class_grads = jnp.zeros(1), jnp.array([[3.0], [0.125]])
      >>> counts = jnp.array([3, 1])
      >>> state = tx.init(params)
      >>> updates, _ = tx.update(class_grads, state, params, class_counts=counts)
      >>> updates.tolist()
      [[1.0], [0.5]]
    """
    return scale_by_class_weights(
        inverse_clipped_norm(max_norm), name="clip_by_class_norm"
    )
