"""Lengths and angles of class gradients, safe from 1e-20 to 1e20 in float32.

Everything takes a stacked pytree, the class axis first, and treats each row as one
vector over all parameters. A row is divided by its largest entry before it is squared,
so nothing under- or overflows, and sums are kept in float32 or wider.
"""

import functools
import operator
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from pcn_jax.checks import check_shapes, describe
from pcn_jax.precision import at_least_float32, wide_dot


def unit_class_grads(
    class_grads: chex.ArrayTree,
) -> tuple[chex.ArrayTree, jax.Array]:
    """Splits class gradients into directions and lengths.

    Args:
      class_grads: Pytree with leaves `[C, *param.shape]`.

    Returns:
      The rows divided by their global L2 norm, in float32 or wider, and the norms
      `[C]`. A row that is exactly zero stays zero; a row that is not finite becomes
      NaN.

    Raises:
      ValueError: If there are no leaves, or if they are not arrays with the same number
        of classes on the first axis.

    Example:
      >>> import jax.numpy as jnp
      >>> units, norms = unit_class_grads({"w": jnp.array([[0.0, 4e20], [0.0, 0.0]])})
      >>> units["w"].tolist()
      [[0.0, 1.0], [0.0, 0.0]]
    """
    class_grads = _with_class_axis(class_grads)
    largest = functools.reduce(
        jnp.maximum,
        [jnp.max(jnp.abs(x), axis=1, initial=0) for x in _matrices(class_grads)],
    )
    scale = jnp.where(largest == 0, 1, largest)
    scaled = jax.tree.map(
        lambda g: _rowwise(jnp.divide, at_least_float32(g), scale), class_grads
    )
    square = sum(jnp.sum(x * x, axis=1) for x in _matrices(scaled))
    length = jnp.sqrt(jnp.where(square == 0, 1, square))
    units = jax.tree.map(lambda g: _rowwise(jnp.divide, g, length), scaled)
    return units, largest * length


def class_norms(class_grads: chex.ArrayTree) -> jax.Array:
    """Global L2 norm of each class gradient.

    Args:
      class_grads: Pytree with leaves `[C, *param.shape]`.

    Returns:
      Norms `[C]`, float32 or wider.

    Raises:
      ValueError: As `unit_class_grads`.

    Example:
      >>> import jax.numpy as jnp
      >>> class_norms({"w": jnp.array([[3.0], [0.0]]), "b": jnp.array([4.0, 0.0])})
      Array([5., 0.], dtype=float32)
    """
    return unit_class_grads(class_grads)[1]


def class_cosines(class_grads: chex.ArrayTree) -> jax.Array:
    """Cosine of the angle between every two class gradients.

    Args:
      class_grads: Pytree with leaves `[C, *param.shape]`.

    Returns:
      Symmetric matrix `[C, C]`; rows and columns of a zero gradient are zero.

    Raises:
      ValueError: As `unit_class_grads`.

    Example:
      >>> import jax.numpy as jnp
      >>> class_cosines(jnp.array([[2.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])).tolist()
      [[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    units, _ = unit_class_grads(class_grads)
    products = [wide_dot(x, x, (1, 1)) for x in _matrices(units)]
    return jnp.clip(functools.reduce(operator.add, products), -1, 1)


def class_alignment(
    class_grads: chex.ArrayTree, reference: chex.ArrayTree
) -> jax.Array:
    """How much of each class gradient points along a reference: `p_l` of the paper.

        p_l = ⟨ĝ_l, g_l⟩ / (‖ĝ_l‖ ‖g_l‖)

    With mini-batch gradients against those of all data, `1 − p_l` is the directional
    noise of class `l`.

    Args:
      class_grads: Pytree with leaves `[C, *param.shape]`, usually of a mini-batch.
      reference: Pytree of the same shapes, usually of the whole training set.

    Returns:
      Cosines `[C]`; 0 where either gradient is zero.

    Raises:
      ValueError: If the shapes are not the same.

    Example:
      >>> import jax.numpy as jnp
      >>> class_alignment(jnp.array([[1.0, 1.0]]), jnp.array([[5.0, 0.0]])).round(3)
      Array([0.707], dtype=float32)
    """
    expected = jax.tree.map(jnp.shape, class_grads)
    check_shapes("reference", reference, expected, "shaped like the class gradients")
    units, _ = unit_class_grads(class_grads)
    reference_units, _ = unit_class_grads(reference)
    products = [
        jnp.sum(x * y, axis=1)
        for x, y in zip(_matrices(units), _matrices(reference_units), strict=True)
    ]
    return jnp.clip(functools.reduce(operator.add, products), -1, 1)


def scale_rows(class_grads: chex.ArrayTree, weights: jax.Array) -> chex.ArrayTree:
    """Multiplies row `l` by `weights[l]`, in float32 or wider.

    Args:
      class_grads: Pytree with leaves `[C, *param.shape]`.
      weights: One number a class, `[C]`.

    Returns:
      Pytree of the same shapes.

    Example:
      >>> import jax.numpy as jnp
      >>> scale_rows(jnp.ones((2, 3)), jnp.array([1.0, 0.0])).tolist()
      [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    """
    return jax.tree.map(
        lambda g: _rowwise(jnp.multiply, at_least_float32(jnp.asarray(g)), weights),
        class_grads,
    )


def sum_rows(class_grads: chex.ArrayTree) -> chex.ArrayTree:
    """Adds the rows up, in float32 or wider.

    As a product with ones: sums over the first axis of products take XLA a thousand
    times as long on CPU (seen with jax 0.10.2).

    Args:
      class_grads: Pytree with leaves `[C, *param.shape]`.

    Returns:
      Pytree with leaves `param.shape`.

    Example:
      >>> import jax.numpy as jnp
      >>> sum_rows(jnp.array([[1.0, 2.0], [0.0, 3.0]])).tolist()
      [1.0, 5.0]
    """

    def total(grad: jax.Array) -> jax.Array:
        grad = at_least_float32(grad)
        return wide_dot(jnp.ones(len(grad), grad.dtype), grad, (0, 0))

    return jax.tree.map(total, class_grads)


def _with_class_axis(class_grads: chex.ArrayTree) -> chex.ArrayTree:
    """The same as arrays of JAX, refused unless all leaves have the same classes."""
    numbers = {getattr(x, "shape", ())[:1] for x in jax.tree.leaves(class_grads)}
    if len(numbers) != 1 or numbers == {()}:
        raise ValueError(
            "class_grads must be arrays [C, *param.shape] with the same number of "
            f"classes C, got {jax.tree.map(describe, class_grads)}."
        )
    return jax.tree.map(jnp.asarray, class_grads)


def _matrices(class_grads: chex.ArrayTree) -> list[jax.Array]:
    """The leaves as float matrices `[C, size]`."""
    leaves = jax.tree.leaves(class_grads)
    return [at_least_float32(x).reshape(x.shape[0], -1) for x in leaves]


def _rowwise(
    op: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, by: jax.Array
) -> jax.Array:
    return op(x, by.astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1)))
