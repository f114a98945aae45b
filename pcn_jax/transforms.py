"""Gradient transformations that take class gradients and give an ordinary update.

Every method of the paper is a choice of weights for the rows of the stacked class
gradients. Scaling the rows and summing them are both transformations in optax's sense,
so a method is a chain, and what follows the sum is any optimizer of the user's:

    optax.chain(scale_by_class_norm(), sum_over_classes(), optax.sgd(0.1, momentum=0.9))

Before the sum, updates have leaves `[C, *param.shape]`; behind it, `param.shape`. Each
link checks this when it is traced, and therefore needs `params` in `update`.

Warning:
  Some wrappers and orders of links do not mean what they seem to:

  * `optax.MultiSteps` around a chain fails, because it keeps gradients in the shape of
    the parameters, and behind the sum it normalises each micro-batch by itself. Use
    `pcn_jax.accumulate`, which adds class sums and normalises once.
  * Momentum, weight decay or clipping from optax *before* the sum acts on the stack of
    class gradients. Put them behind it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pcn_jax.geometry import (
    class_alignment,
    class_cosines,
    scale_rows,
    unit_class_grads,
)
from pcn_jax.precision import at_least_float32


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

    return _per_class("scale_by_class_norm", scale)


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
      min_alignment: Where the inverse ends, in (0, 1].
      published_code: Multiply by `Π_{k≠l} p_k` instead, as the code published with the
        paper does: in its direction `(Π_k p_k) / p_l` differs from `1/p_l` by a common
        factor, which shrinks with the number of classes and can be negative. Classes
        with a zero row are left out of the product. `min_alignment` is not used.

    Returns:
      A stateless transformation of class gradients. Its `update` needs the extra
      argument `reference`: the class gradients of the whole training set (see
      `pcn_jax.accumulate`), fresh or a few steps old.

    Raises:
      ValueError: If `min_alignment` is not in (0, 1]; in `update`, if `reference` is
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
    if not 0 < min_alignment <= 1:
        raise ValueError(f"min_alignment must be in (0, 1], got {min_alignment!r}.")

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
        _check_same_shapes(class_grads, reference)
        alignment = class_alignment(class_grads, reference)
        if published_code:
            _, norms = unit_class_grads(class_grads)
            weights = _product_of_others(jnp.where(norms == 0, 1, alignment))
        else:
            weights = alignment / jnp.maximum(jnp.abs(alignment), min_alignment) ** 2
        return scale_rows(class_grads, weights)

    return _per_class("scale_by_class_alignment", scale)


def clip_by_class_norm(max_norm: float) -> optax.GradientTransformationExtraArgs:
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
      max_norm: Norm of a class-mean gradient up to which it is left in proportion; a
        non-negative number in the units of the loss over those of the parameters.

    Returns:
      A stateless transformation of class gradients. Its `update` needs the extra
      argument `class_counts`: the counts `[C]` of the batch that the gradients come
      from, `value.counts` of `pcn_jax.per_class_value_and_grad`.

    Raises:
      ValueError: If `max_norm` is negative; in `update`, if `class_counts` is missing
        or not one number a class.

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
    if isinstance(max_norm, int | float) and not max_norm >= 0:
        raise ValueError(f"max_norm must not be negative, got {max_norm!r}.")

    def scale(
        class_grads: optax.Updates, *, class_counts: Any = None, **extra: Any
    ) -> optax.Updates:
        del extra
        units, norms = unit_class_grads(class_grads)
        counts = _check_counts("clip_by_class_norm", class_counts, norms)
        mean_norms = norms * counts.sum() / jnp.where(counts == 0, 1, counts)
        limit = jnp.maximum(mean_norms, max_norm)
        return scale_rows(units, mean_norms / jnp.where(limit == 0, 1, limit))

    return _per_class("clip_by_class_norm", scale)


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

    def scale(
        class_grads: optax.Updates, *, class_counts: Any = None, **extra: Any
    ) -> optax.Updates:
        del extra
        _, norms = unit_class_grads(class_grads)
        counts = _check_counts("scale_by_class_frequency", class_counts, norms)
        weights = counts.sum() / (counts.size * jnp.where(counts == 0, 1, counts))
        return scale_rows(class_grads, weights)

    return _per_class("scale_by_class_frequency", scale)


def scale_by_class_angle() -> optax.GradientTransformationExtraArgs:
    """Multiplies by `1 + cos α`: the two-class step-size rule of the published code.

    `α` is the angle between the two class gradients, so the step shrinks where they
    oppose each other: PCNGD's direction has `‖d‖² = 2 (1 + cos α)`.

    Returns:
      A stateless transformation of class gradients.

    Raises:
      ValueError: In `update`, if there are not exactly two classes.

    Example:
      >>> import jax.numpy as jnp
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

    return _per_class("scale_by_class_angle", scale)


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
        return jax.tree.map(lambda g: at_least_float32(g).sum(axis=0), class_grads)

    return _per_class("sum_over_classes", total)


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

    Example:
      >>> import jax.numpy as jnp
      >>> tx = pcnsgd(0.1, momentum=0.9)
      >>> params, class_grads = jnp.zeros(2), jnp.array([[2.0, 0.0], [0.0, 7.0]])
      >>> print(tx.update(class_grads, tx.init(params), params)[0])
      [-0.1 -0.1]

    References:
      Francazi et al., 2023, PCNSGD.
    """
    return optax.chain(
        scale_by_class_norm(),
        sum_over_classes(),
        optax.sgd(learning_rate, momentum=momentum, nesterov=nesterov),
    )


def _per_class(
    name: str, transform: Callable[..., optax.Updates]
) -> optax.GradientTransformationExtraArgs:
    """A stateless transformation that sees checked class gradients and keeps dtypes."""

    def init(params: optax.Params) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        **extra: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        _check_class_axis(name, updates, params)
        result = transform(updates, **extra)
        return jax.tree.map(lambda x, g: x.astype(g.dtype), result, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _check_class_axis(
    name: str, updates: optax.Updates, params: optax.Params | None
) -> None:
    if params is None:
        raise ValueError(
            f"{name} needs the parameters, to check that updates carry the class axis: "
            "update(class_grads, state, params)."
        )
    leaves, structure = jax.tree_util.tree_flatten_with_path(updates)
    expected_structure: Any = jax.tree.structure(params)
    if structure != expected_structure:
        raise ValueError(
            f"{name} was given updates of the structure {structure}, but params have "
            f"{expected_structure}."
        )
    num_classes: int | None = None
    for (path, update), param in zip(leaves, jax.tree.leaves(params), strict=True):
        got, expected = jnp.shape(update), jnp.shape(param)
        where = f"updates{jax.tree_util.keystr(path)}"
        if got[1:] != expected or len(got) != len(expected) + 1:
            ordinary = (
                "This is an ordinary gradient, or one summed by a link before. "
                if got == expected
                else ""
            )
            raise ValueError(
                f"{name} works on class gradients, with leaves [C, *param.shape]: "
                f"{where} has shape {got}, the parameter {expected}. {ordinary}Compute "
                "class gradients with pcn_jax.per_class_value_and_grad, and keep what "
                "works on ordinary gradients behind sum_over_classes()."
            )
        num_classes = got[0] if num_classes is None else num_classes
        if got[0] != num_classes:
            raise ValueError(
                f"{name} needs the same number of classes in every leaf: {where} has "
                f"{got[0]}, the leaves before it {num_classes}."
            )


def _check_counts(name: str, class_counts: Any, norms: jax.Array) -> jax.Array:
    if class_counts is None:
        raise ValueError(
            f"{name} needs the class counts of the batch: update(class_grads, state, "
            "params, class_counts=value.counts), where value is what "
            "pcn_jax.per_class_value_and_grad returns before the gradients."
        )
    if np.shape(class_counts) != norms.shape:
        raise ValueError(
            f"{name} needs one class count a class, shape {norms.shape}, got "
            f"{np.shape(class_counts)}."
        )
    return jnp.asarray(class_counts).astype(norms.dtype)


def _check_same_shapes(class_grads: optax.Updates, reference: optax.Updates) -> None:
    expected = jax.tree.map(jnp.shape, class_grads)
    got = jax.tree.map(jnp.shape, reference)
    if got != expected:
        raise ValueError(
            "scale_by_class_alignment needs a reference shaped like the updates: the "
            f"updates have {expected}, the reference {got}."
        )


def _product_of_others(x: jax.Array) -> jax.Array:
    """`Π_{k≠l} x_k` for each `l`, without dividing."""
    others = jnp.where(jnp.eye(len(x), dtype=bool), 1, x[None, :])
    return jnp.prod(others, axis=1)
