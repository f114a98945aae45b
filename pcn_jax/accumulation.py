"""Exact class gradients of more examples than fit at once: added up, divided once."""

import functools
from collections.abc import Iterable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from pcn_jax.arguments import Fixed, of_arrays, take_out_arrays
from pcn_jax.checks import (
    check_inputs,
    check_labels,
    check_positive_integer,
    check_shapes,
    describe,
)
from pcn_jax.class_gradients import ClassValue, ClassValueAndGrad
from pcn_jax.class_sums import ClassSums, add, to_means, to_sums
from pcn_jax.loops import Loop, resolve_loop
from pcn_jax.weighing import PCNValue


def accumulate(
    class_value_and_grad: ClassValueAndGrad,
    microbatch_size: int,
    *,
    loop: Loop | None = None,
) -> ClassValueAndGrad:
    """Computes the same class gradients in micro-batches, with the memory of one.

    Class sums and counts are added up and divided once, so the result is that of the
    whole batch, or of the whole data set: so come the full-batch gradients of GD, PCNGD
    and PCNSGD+R. The last micro-batch may be smaller. Sums are kept in float32 or
    wider.

    Args:
      class_value_and_grad: What `per_class_value_and_grad` returned, for a loss in
        which examples do not interact.
      microbatch_size: Examples in a micro-batch.
      loop: `"python"`, `"scan"`, or `None` to choose by backend (see `pcn_jax.loops`).

    Returns:
      A function like `class_value_and_grad`, whose further arguments all micro-batches
      share: a dropout key, too, and none may have one entry an example. Numbers that
      change are to be arrays: Python's are compiled in. Leaves of `aux` get a leading
      axis that counts the micro-batches.

    Raises:
      ValueError: If `class_value_and_grad` is not a function or `microbatch_size` not a
        positive integer; when called, if there are no labels or no examples, if an
        array of the inputs has more or fewer than the labels, or if what would be added
        up is no class gradients, as a balanced direction.

    Example:
      >>> import jax.numpy as jnp
      >>> from pcn_jax import per_class_value_and_grad
      >>> def squared_error(w, x, y):
      ...     return 0.5 * (x @ w - y) ** 2
      >>> x, y = jnp.arange(10.0).reshape(5, 2), jnp.array([0, 1, 0, 0, 1])
      >>> whole = per_class_value_and_grad(squared_error, 2)
      >>> in_parts = accumulate(whole, microbatch_size=2)
      >>> w = jnp.ones(2)
      >>> bool(jnp.allclose(whole(w, x, y)[1], in_parts(w, x, y)[1]))
      True
    """
    if not callable(class_value_and_grad):
        raise ValueError(
            "class_value_and_grad must be a function, such as per_class_value_and_grad "
            f"returns, got {class_value_and_grad!r}."
        )
    check_positive_integer("microbatch_size", microbatch_size)
    loop = resolve_loop(loop)

    @functools.partial(jax.jit, static_argnums=0)
    def part(
        fixed: Fixed,
        k: jax.Array,
        params: chex.ArrayTree,
        inputs: Any,
        labels: jax.Array,
        *arrays: Any,
    ) -> tuple[ClassValue, chex.ArrayTree]:
        # The last slice starts early enough to be full; what it repeats is padding.
        size = min(microbatch_size, labels.shape[0])
        start = jnp.minimum(k * size, labels.shape[0] - size)
        take = functools.partial(
            jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=size
        )
        fresh = start + jnp.arange(size) >= k * size
        labels = jnp.where(fresh, take(labels), -1)
        inputs = jax.tree.map(take, inputs)
        of_part = of_arrays(class_value_and_grad, fixed)
        return _checked(
            of_part(params, inputs, labels, *arrays),
            "class_value_and_grad must return",
            "Of a loss function take per_class_value_and_grad(loss_fn, num_classes).",
        )

    def accumulated(
        params: chex.ArrayTree,
        inputs: Any,
        labels: jax.Array | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[ClassValue, chex.ArrayTree]:
        if labels is None:
            raise ValueError(
                "There are no labels: call it with (params, inputs, labels). Labels "
                "that are known beforehand need no accumulate: pass microbatch_size to "
                "known_labels_value_and_grad."
            )
        labels = check_labels(labels, ndim=1)
        check_inputs(inputs, len(labels), every=True)
        num_parts = -(-labels.shape[0] // microbatch_size)
        fixed, arrays = take_out_arrays(args, kwargs)
        given = params, inputs, labels, *arrays
        if loop == "python":
            return combine(
                part(fixed, jnp.asarray(k), *given) for k in range(num_parts)
            )

        def step(sums: ClassSums, k: jax.Array) -> tuple[ClassSums, Any]:
            value, grads = part(fixed, k, *given)
            return add(sums, to_sums(value, grads)), value.aux

        like = jax.eval_shape(functools.partial(part, fixed), jnp.asarray(0), *given)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
        sums, aux = jax.lax.scan(step, to_sums(*zeros), jnp.arange(num_parts))
        return to_means(sums, params, aux)

    return accumulated


def combine(
    parts: Iterable[tuple[ClassValue, chex.ArrayTree]],
) -> tuple[ClassValue, chex.ArrayTree]:
    """Joins the class gradients of several batches into those of their union.

    Takes batches as they come, so it also serves data that are read from disk:
    `combine(class_value_and_grad(params, x, y) for x, y in loader)`.

    Args:
      parts: Pairs of a `ClassValue` and class gradients, at the same parameters.

    Returns:
      Their union in the same form, where `aux` leaves are stacked along a new first
      axis, and so must have the same shapes in all parts.

    Raises:
      ValueError: If there are no parts, if one is no such pair, as with balanced
        directions, or if one has other shapes than the first, as with another number of
        classes.

    Example:
      >>> import jax.numpy as jnp
      >>> one = ClassValue(jnp.array([2.0]), jnp.array([1])), jnp.array([[2.0]])
      >>> three = ClassValue(jnp.array([6.0]), jnp.array([3])), jnp.array([[6.0]])
      >>> value, grads = combine([one, three])
      >>> value.losses.tolist(), grads.tolist()
      ([5.0], [[5.0]])
    """
    sums, auxs, first = None, [], None
    for given in parts:
        part = _checked(
            given, "Each batch must be", "Of one batch: combine([(value, grads)])."
        )
        first = part if first is None else first
        check_shapes("each batch", part, jax.tree.map(jnp.shape, first), "as the first")
        sums = _to_sums(*part) if sums is None else add(sums, _to_sums(*part))
        auxs.append(part[0].aux)
    if first is None:
        raise ValueError("combine was given no batches: there is nothing to join.")
    aux = jax.tree.map(lambda *leaves: jnp.stack(leaves), *auxs)
    joined: tuple[ClassValue, chex.ArrayTree] = _to_means(sums, first[1], aux)
    return joined


def _checked(part: Any, what: str, advice: str) -> tuple[ClassValue, chex.ArrayTree]:
    """Refuses what is no pair of a `ClassValue` and class gradients."""
    is_pair = isinstance(part, tuple | list) and len(part) == 2
    if is_pair and isinstance(part[0], ClassValue):
        return part[0], part[1]
    if isinstance(part[0] if is_pair else part, PCNValue):
        raise ValueError(
            "Class gradients can be added up, and directions of pcn_value_and_grad "
            "cannot: the norm of a class is that of its sum. Use "
            "per_class_value_and_grad, and balance the result in a chain. Got a "
            "PCNValue."
        )
    got = " and ".join(map(describe, part)) if is_pair else describe(part)
    raise ValueError(f"{what} a ClassValue and class gradients, got {got}. {advice}")


_to_sums, _to_means = jax.jit(to_sums), jax.jit(to_means)
