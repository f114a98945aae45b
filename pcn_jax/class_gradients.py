"""Class gradients: the rows that every per-class method scales and sums.

Row `l` is the gradient of class `l`'s share of the mean loss,

    f_l = (1/B) Σ_{i in class l} loss_i,

so the rows sum to the ordinary gradient, and each method is a choice of weights for
them. Labels below zero mark padding: such an example belongs to no class and is not
counted in `B`. Pad with inputs at which the loss is finite, such as a repeated example,
for zero times an infinite derivative is NaN.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from pcn_jax.checks import (
    check_labels,
    check_params,
    check_positive_integer,
    describe,
)
from pcn_jax.counts import at_least_one, mean_loss, members
from pcn_jax.precision import at_least_float32

LossFn = Callable[..., Any]
"""Takes `(params, inputs, labels, *args, **kwargs)` and gives losses `[B]`, or
`(losses, aux)`."""


class ClassValue(NamedTuple):
    """What a batch says about each class besides the gradients.

    Attributes:
      losses: Mean loss of each class, float `[C]`; 0 for a class that is absent.
      counts: Examples of each class, int32 `[C]`.
      aux: The auxiliary output of the loss function, or `None`.

    Example:
      >>> value = ClassValue(jnp.array([2.0, 5.0]), jnp.array([3, 1]))
      >>> float(value.loss)
      2.75
    """

    losses: jax.Array
    counts: jax.Array
    aux: Any = None

    @property
    def loss(self) -> jax.Array:
        """Mean loss of the batch, a scalar."""
        return mean_loss(self.losses, self.counts)


ClassValueAndGrad = Callable[..., tuple[ClassValue, chex.ArrayTree]]


def per_class_value_and_grad(
    loss_fn: LossFn, num_classes: int, *, has_aux: bool = False
) -> ClassValueAndGrad:
    """Turns a per-example loss into a function for class losses and class gradients.

    Imitates `jax.value_and_grad`. There is one forward pass over the whole batch, and
    one backward pass a class, vectorised with `jax.vmap` over class-masked losses. So
    nets whose examples interact (batch normalisation) are differentiated correctly.

    Args:
      loss_fn: `loss_fn(params, inputs, labels, *args, **kwargs)` returning losses
        `[B]`, or `(losses, aux)` if `has_aux`.
      num_classes: `C`.
      has_aux: Whether `loss_fn` returns `(losses, aux)`.

    Returns:
      A function of `(params, inputs, labels, *args, **kwargs)`, where `labels` are
      integers `[B]` below `C`, those below zero being padding. It returns a
      `ClassValue` and the class gradients: a pytree like `params` whose leaves have
      shape `[C, *param.shape]` and the dtype of the parameter. The row of an absent
      class is zero.

    Raises:
      ValueError: At construction if `num_classes` is not a positive integer; when
        called, if labels are not integers `[B]`, if one is `C` or more (under `jit`,
        where values are unknown, all gradients become NaN instead), or if losses do not
        have the shape of labels.
      TypeError: When called, if a parameter is not of real floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> def squared_error(w, x, y):
      ...     return 0.5 * (x @ w - y) ** 2
      >>> x, y = jnp.array([[1.0], [2.0], [4.0]]), jnp.array([0, 1, 1])
      >>> value, grads = per_class_value_and_grad(squared_error, 2)(jnp.ones(1), x, y)
      >>> grads.shape
      (2, 1)
      >>> value.counts.tolist()
      [1, 2]
    """
    check_positive_integer("num_classes", num_classes)

    def class_value_and_grad(
        params: chex.ArrayTree,
        inputs: Any,
        labels: jax.Array,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[ClassValue, chex.ArrayTree]:
        check_params(params)
        labels = check_labels(labels, ndim=1, num_classes=num_classes)
        of_class = members(labels, num_classes)
        counts = of_class.sum(axis=1, dtype=jnp.int32)
        total = at_least_one(counts.sum())

        def class_shares(params: chex.ArrayTree) -> tuple[jax.Array, Any]:
            output = loss_fn(params, inputs, labels, *args, **kwargs)
            losses, aux = losses_and_aux(output, labels.shape, has_aux=has_aux)
            sums = jnp.where(of_class, losses[None, :], 0).sum(axis=1)
            shares = sums / total.astype(sums.dtype)
            # Labels that could not be checked above must not pass silently: NaN.
            out_of_range = jnp.any(labels >= num_classes)
            poison = jnp.where(out_of_range, jnp.nan, jnp.zeros((), shares.dtype))
            return shares + poison * jnp.where(out_of_range, losses, 0).sum(), aux

        shares, pullback, aux = jax.vjp(class_shares, params, has_aux=True)
        (class_grads,) = jax.vmap(pullback)(jnp.eye(num_classes, dtype=shares.dtype))
        return ClassValue(_class_means(shares, counts), counts, aux), class_grads

    return class_value_and_grad


def per_group_value_and_grad(
    loss_fn: LossFn, *, has_aux: bool = False
) -> ClassValueAndGrad:
    """Like `per_class_value_and_grad`, for a batch already laid out class by class.

    Each group is passed through the net on its own, which costs about as much as a
    plain gradient of the same examples instead of one backward pass of all of them a
    class. The price: examples of different classes must not interact in `loss_fn`. With
    batch normalisation this computes something else; use `per_class_value_and_grad`.

    Args:
      loss_fn: As in `per_class_value_and_grad`; called once under `jax.vmap` with
        `inputs` `[m, ...]` and `labels` `[m]` of one group. All else is shared.
      has_aux: Whether `loss_fn` returns `(losses, aux)`.

    Returns:
      A function of `(params, inputs, labels, *args, **kwargs)`, with `inputs`
      `[C, m, ...]` and integer `labels` `[C, m]`, where row `l` holds the examples of
      class `l`, filled up with padding (labels below zero) if there are fewer than
      `m`. It returns what `per_class_value_and_grad` would; leaves of `aux` have the
      group axis first.

    Raises:
      ValueError: When called, if labels are not integers `[C, m]` or losses not `[m]`.

    Example:
      >>> import jax.numpy as jnp
      >>> def squared_error(w, x, y):
      ...     return 0.5 * (x @ w - y) ** 2
      >>> x, y = jnp.ones((3, 4, 2)), jnp.array([[0] * 4, [1] * 4, [2] * 3 + [-1]])
      >>> value, grads = per_group_value_and_grad(squared_error)(jnp.zeros(2), x, y)
      >>> value.counts.tolist(), grads.shape
      ([4, 4, 3], (3, 2))
    """

    def group_value_and_grad(
        params: chex.ArrayTree,
        inputs: Any,
        labels: jax.Array,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[ClassValue, chex.ArrayTree]:
        labels = check_labels(labels, ndim=2)
        counts = (labels >= 0).sum(axis=1, dtype=jnp.int32)
        total = at_least_one(counts.sum())

        def share(
            params: chex.ArrayTree, inputs: Any, labels: jax.Array
        ) -> tuple[jax.Array, Any]:
            output = loss_fn(params, inputs, labels, *args, **kwargs)
            losses, aux = losses_and_aux(output, labels.shape, has_aux=has_aux)
            loss_sum = jnp.where(labels >= 0, losses, 0).sum()
            return loss_sum / total.astype(loss_sum.dtype), aux

        value_and_grad = jax.value_and_grad(share, has_aux=True)
        (shares, aux), class_grads = jax.vmap(value_and_grad, in_axes=(None, 0, 0))(
            params, inputs, labels
        )
        return ClassValue(_class_means(shares, counts), counts, aux), class_grads

    return group_value_and_grad


def losses_and_aux(
    output: Any, shape: tuple[int, ...], *, has_aux: bool
) -> tuple[jax.Array, Any]:
    """Per-example losses in float32 or wider, checked for their shape, and `aux`."""
    if has_aux and not (isinstance(output, tuple) and len(output) == 2):
        raise ValueError(
            f"With has_aux=True loss_fn must return (losses, aux), got "
            f"{describe(output)}."
        )
    losses, aux = output if has_aux else (output, None)
    if getattr(losses, "shape", None) != shape:
        raise ValueError(
            f"loss_fn must return one loss an example, shape {shape} like the "
            f"labels, got {describe(losses)}. Do not average over the batch; for "
            "(losses, aux) pass has_aux=True."
        )
    return at_least_float32(losses), aux


def _class_means(shares: jax.Array, counts: jax.Array) -> jax.Array:
    """Mean loss of each class from its share of the mean loss of the batch."""
    total = at_least_one(counts.sum()).astype(shares.dtype)
    return shares * total / at_least_one(counts).astype(shares.dtype)
