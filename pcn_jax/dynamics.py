"""What happens to each class during training, computed on the device.

The lengths and angles of class gradients, and the directional noise, are in
`pcn_jax.geometry`.
"""

import chex
import jax
import jax.numpy as jnp

from pcn_jax.checks import check_labels, check_positive_integer, check_shapes
from pcn_jax.counts import inverse_shares, members
from pcn_jax.precision import at_least_float32


def class_means(values: jax.Array, labels: jax.Array, num_classes: int) -> jax.Array:
    """Mean of a per-example quantity over the examples of each class.

    Of losses it is the loss of each class; of `predictions == labels`, its recall.

    Args:
      values: One number an example, `[n]`; booleans count as 0 and 1.
      labels: Class of each example, integers `[n]`; below zero for padding.
      num_classes: `C`.

    Returns:
      Means `[C]`, float32 or wider; NaN for a class that has no examples, and for all
      if a label is `C` or more and its value is not known, as under `jit`.

    Raises:
      ValueError: If labels are not integers `[n]`, if one is known to be `C` or more,
        if there is not one number an example, or if `num_classes` is not a positive
        integer.

    Example:
      >>> correct = jnp.array([True, True, False, True])
      >>> class_means(correct, jnp.array([0, 0, 1, 0]), 2).tolist()
      [1.0, 0.0]
    """
    check_positive_integer("num_classes", num_classes)
    labels = check_labels(labels, ndim=1, num_classes=num_classes)
    values = at_least_float32(jnp.asarray(values))
    check_shapes("values", values, labels.shape, "one number an example")
    of_class = members(labels, num_classes)
    sums = jnp.where(of_class, values[None, :], 0).sum(axis=1)
    means = sums / of_class.sum(axis=1, dtype=values.dtype)
    return jnp.where(jnp.any(labels >= num_classes), jnp.nan, means)


def macro_recall(recalls: jax.Array) -> jax.Array:
    """Mean of the recalls of the classes, each counting the same.

    Args:
      recalls: Recall of each class, `[..., C]`; NaN where it has no examples.

    Returns:
      Mean over the classes that have examples, `[...]`.

    Example:
      >>> float(macro_recall(jnp.array([1.0, 0.5, jnp.nan])))
      0.75
    """
    return jnp.nanmean(jnp.asarray(recalls), axis=-1)


def predicted_loss_changes(
    class_grads: chex.ArrayTree,
    updates: chex.ArrayTree,
    class_counts: jax.Array | None = None,
) -> jax.Array:
    """First-order change of each class loss when `updates` are applied: `−η⟨g_l, d⟩`.

    A class whose change is positive is about to get worse. `updates` are what
    `optax.apply_updates` adds to the parameters, `−η d`, of any optimizer.

    Args:
      class_grads: Pytree with leaves `[C, *param.shape]`.
      updates: Pytree with leaves `param.shape`.
      class_counts: Counts `[C]` behind the class gradients. With them the change is
        that of the class's mean loss; without, of its share of the mean loss of all.

    Returns:
      Changes `[C]`, in units of the loss; 0 for an absent class.

    Raises:
      ValueError: If `updates` are not shaped like the parameters, or there is not one
        count a class.

    Example:
      >>> class_grads = jnp.array([[3.0, 0.0], [-1.0, 0.5]])
      >>> gradient_step = -0.1 * class_grads.sum(axis=0)
      >>> print(predicted_loss_changes(class_grads, gradient_step))
      [-0.6    0.175]

    References:
      Francazi et al., 2023, section 3.
    """
    of_one = jax.tree.map(lambda x: jnp.shape(x)[1:], class_grads)
    check_shapes("updates", updates, of_one, "shaped like the parameters")
    products = jax.tree.map(_row_products, class_grads, updates)
    changes = jax.tree.reduce(jnp.add, products)
    if class_counts is None:
        return changes
    counts = jnp.asarray(class_counts)
    check_shapes("class_counts", counts, changes.shape, "one number a class")
    return changes * inverse_shares(counts, changes.dtype)


def _row_products(class_grad: jax.Array, update: jax.Array) -> jax.Array:
    class_grad = at_least_float32(jnp.asarray(class_grad))
    product = class_grad * update.astype(class_grad.dtype)[None]
    return product.reshape(len(class_grad), -1).sum(axis=1)
