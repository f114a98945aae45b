"""PCNSGD+R: makes up for the directional noise of small classes."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from pcn_jax.geometry import class_alignment, class_norms, scale_rows
from pcn_jax.transforms.per_class import per_class
from pcn_jax.weights import bounded_inverse


def scale_by_class_alignment(
    *, min_alignment: float = 0.1, published_code: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Divides each class gradient by how well it points along the true one: +R.

    With `p_l = ⟨ĝ_l, g_l⟩ / (‖ĝ_l‖ ‖g_l‖)`, row `l` is multiplied by `1/p_l`, so that
    the directional noise of a small class does not shorten its step. PCNSGD+R is
    `chain(scale_by_class_norm(), scale_by_class_alignment(), sum_over_classes(), ...)`.
    A small `p_l` is mostly chance, and its inverse unbounded, so the weight is

        p_l / max(|p_l|, min_alignment)²

    which is `1/p_l` from `min_alignment` on, goes linearly through zero below it, and
    never exceeds `1/min_alignment`. The step along the true gradient is therefore never
    negative: a class whose mini-batch points backwards is turned round.

    | case                        | weight                                         |
    | --------------------------- | ---------------------------------------------- |
    | `abs(p_l) ≥ min_alignment`  | `1/p_l`                                        |
    | `p_l = 0`                   | 0: nothing is known of the class               |
    | `p_l = −1`                  | −1                                             |
    | absent, or a zero gradient  | irrelevant: the row is zero and stays zero     |

    Args:
      min_alignment: Smallest `|p_l|` that is inverted, in [1e-6, 1]; below it the
        weight falls linearly to 0.
      published_code: Multiply by `Π_{k≠l} p_k` instead, as the code published with the
        paper does: in its direction `(Π_k p_k) / p_l` differs from `1/p_l` by a common
        factor, which shrinks with the number of classes and can be negative. Classes
        with a zero row are left out of the product. `min_alignment` is not used. At a
        constant rate it was better on ten classes, of digits and of CIFAR-10 (there at
        3 instead of 0.1), and worse on automobiles and trucks (`RESULTS.md`, C14).

    Returns:
      A stateless transformation of class gradients. Its `update` needs the extra
      argument `reference`: the class gradients of the whole training set (see
      `pcn_jax.accumulate`). Fresh ones: with ones up to ten steps old it lost the
      minority late in training (`RESULTS.md`, C5).

    Raises:
      ValueError: If `min_alignment` is not in [1e-6, 1]; in `update`, if `reference` is
        missing or shaped unlike the updates.

    Example:
      >>> import jax.numpy as jnp
      >>> tx = scale_by_class_alignment()
      >>> params, noisy = jnp.zeros(2), jnp.array([[3.0, 4.0]])
      >>> true = jnp.array([[1.0, 0.0]])
      >>> updates, _ = tx.update(noisy, tx.init(params), params, reference=true)
      >>> print(updates.round(2))
      [[5.   6.67]]

    References:
      Francazi et al., 2023, PCNSGD+R.
    """
    inverse = bounded_inverse(min_alignment)

    def scale(
        class_grads: optax.Updates,
        *,
        reference: optax.Updates | None = None,
        **extra: Any,
    ) -> optax.Updates:
        del extra
        if reference is None:
            raise ValueError(
                "scale_by_class_alignment needs the class gradients of the whole "
                "training set: update(class_grads, state, params, reference=...). "
                "pcn_jax.accumulate computes them."
            )
        alignment = class_alignment(class_grads, reference)
        if published_code:
            norms = class_norms(class_grads)
            weights = _product_of_others(jnp.where(norms == 0, 1, alignment))
        else:
            weights = inverse(alignment)
        return scale_rows(class_grads, weights)

    return per_class("scale_by_class_alignment", scale)


def _product_of_others(x: jax.Array) -> jax.Array:
    """`Π_{k≠l} x_k` for each `l`, without dividing."""
    others = jnp.where(jnp.eye(len(x), dtype=bool), 1, x[None, :])
    return jnp.prod(others, axis=1)
