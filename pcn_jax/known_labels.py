"""Class gradients at the price of a plain one, where labels are known beforehand.

The labels of a data set are known, and so are those of a batch whose sampler fixes the
counts of the classes. Then examples can be laid out class by class, and no example has
to be passed backwards for a class that is not its own.
"""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from pcn_jax.arguments import Fixed, of_arrays, take_out_arrays
from pcn_jax.checks import check_host_labels, check_inputs, check_positive_integer
from pcn_jax.class_gradients import ClassValue, LossFn, per_group_value_and_grad
from pcn_jax.class_sums import ClassSums, add, to_means, to_sums
from pcn_jax.loops import Loop, resolve_loop

_FEW_CLASSES = 4  # what is unrolled has to be compiled, class by class


def known_labels_value_and_grad(
    loss_fn: LossFn,
    num_classes: int,
    labels: np.ndarray,
    *,
    has_aux: bool = False,
    microbatch_size: int | None = None,
    loop: Loop | None = None,
) -> Callable[..., tuple[ClassValue, chex.ArrayTree]]:
    """Like `per_class_value_and_grad`, for labels that are known when it is built.

    Up to `microbatch_size` examples are taken at once: up to four classes one after the
    other, without padding; more in groups of one class and about `B / C` examples side
    by side, at most `2 C` groups and, with padding, twice the examples. Beyond, one
    micro-batch of one class follows the other, with the memory of a plain gradient.

    Args:
      loss_fn: As in `per_class_value_and_grad`; examples must not interact in it. It is
        called once a group with the same other arguments: a dropout key, too, is that
        of all.
      num_classes: `C`.
      labels: Class of each example, integers `[B]` below `C`, on the host.
      has_aux: Whether `loss_fn` returns `(losses, aux)`; `aux` is dropped.
      microbatch_size: Examples at a time; `None` for all.
      loop: Kind of loop over micro-batches (see `pcn_jax.loops`).

    Returns:
      A function of `(params, inputs, *args, **kwargs)`, returning what
      `per_class_value_and_grad` would with these labels, without `aux`.

    Raises:
      ValueError: If labels are not integers `[B]` from 0 to `C - 1`, `num_classes` or
        `microbatch_size` is not a positive integer, or, when called, if there are more
        or fewer inputs than labels.

    Example:
      >>> def squared_error(w, x, y):
      ...     return 0.5 * (x @ w - y) ** 2
      >>> class_gradients = known_labels_value_and_grad(
      ...     squared_error, num_classes=2, labels=np.array([0, 1, 0])
      ... )
      >>> value, grads = class_gradients(jnp.zeros(2), jnp.ones((3, 2)))
      >>> value.counts.tolist(), grads.shape
      ([2, 1], (2, 2))
    """
    check_positive_integer("num_classes", num_classes)
    if microbatch_size is not None:
        check_positive_integer("microbatch_size", microbatch_size)
    labels = check_host_labels(labels, "[B]")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"labels must be from 0 to {num_classes - 1}, got {labels.min()} to "
            f"{labels.max()}."
        )
    loop = resolve_loop(loop)
    size = len(labels) if microbatch_size is None else microbatch_size
    at_once = len(labels) <= size
    if at_once and num_classes <= _FEW_CLASSES:
        groups = [_groups(labels == label, label) for label in np.unique(labels)]
    elif at_once:
        groups = [_all_groups(labels, -(-len(labels) // num_classes))]
    else:
        rows, classes = _all_groups(labels, size)
        groups = list(zip(rows[:, None], classes[:, None], strict=True))
    group_value_and_grad = per_group_value_and_grad(loss_fn, has_aux=has_aux)

    def sums_of(
        fixed: Fixed,
        group: tuple[ArrayLike, ArrayLike],
        params: chex.ArrayTree,
        inputs: Any,
        *arrays: Any,
    ) -> ClassSums:
        rows, classes = map(jnp.asarray, group)
        real = rows >= 0
        grouped = jax.tree.map(lambda x: x[jnp.where(real, rows, 0)], inputs)
        group_labels = jnp.where(real, classes[:, None], -1)
        of_group = of_arrays(group_value_and_grad, fixed)
        sums = to_sums(*of_group(params, grouped, group_labels, *arrays))
        by_class: ClassSums = jax.tree.map(
            lambda x: jax.ops.segment_sum(x, classes, num_classes), sums
        )
        return by_class

    jit_sums_of = jax.jit(sums_of, static_argnums=0)

    def class_value_and_grad(
        params: chex.ArrayTree, inputs: Any, *args: Any, **kwargs: Any
    ) -> tuple[ClassValue, chex.ArrayTree]:
        check_inputs(inputs, len(labels), every=True)
        fixed, arrays = take_out_arrays(args, kwargs)
        given = params, inputs, *arrays
        if at_once or loop == "python":
            one = sums_of if at_once else jit_sums_of
            sums = functools.reduce(
                add, (one(fixed, group, *given) for group in groups)
            )
        else:
            of_one = functools.partial(sums_of, fixed)
            first = jax.eval_shape(of_one, groups[0], *given)
            sums, _ = jax.lax.scan(
                lambda sums, group: (add(sums, of_one(group, *given)), None),
                jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first),
                jax.tree.map(lambda *xs: np.stack(xs), *groups),
            )
        return to_means(sums, params)

    return class_value_and_grad


def _all_groups(labels: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Groups of `size` examples of one class: rows `[G, size]` and classes `[G]`."""
    groups = [_groups(labels == label, label, size) for label in np.unique(labels)]
    rows, classes = zip(*groups, strict=True)
    return np.concatenate(rows), np.concatenate(classes)


def _groups(
    members: np.ndarray, label: int, size: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Groups of the examples of one class, filled up with -1."""
    rows = np.flatnonzero(members).astype(np.int32)
    size = size or len(rows)
    number = -(-len(rows) // size)
    filled = np.pad(rows, (0, number * size - len(rows)), constant_values=-1)
    return filled.reshape(number, size), np.full(number, label, np.int32)
