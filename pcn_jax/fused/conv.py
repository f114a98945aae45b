"""A convolution as products of matrices, for a few examples.

Inside a loop this is many times faster on CPU than the convolution that JAX's own
derivative takes, and while examples are few their patches stay in the cache.
"""

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pcn_jax.precision import at_least_float32, sum_dtype, wide_dot


def kernel_gradient(
    x: jax.Array,
    cotangent: jax.Array,
    kernel: Sequence[int],
    params: dict[str, Any],
) -> jax.Array:
    """Derivative of a convolution by its kernel, applied to a cotangent.

    Args:
      x: What is convolved, in the layout that `params` says.
      cotangent: Of the result, in its layout.
      kernel: Shape of the kernel.
      params: Of `lax.conv_general_dilated`, with one group of features and of examples.

    Returns:
      The gradient, shaped like the kernel, in float32 or wider.
    """
    numbers, spatial = params["dimension_numbers"], len(kernel) - 2
    window = [kernel[d] for d in numbers.rhs_spec[2:]]
    spec = numbers.out_spec
    cotangent = cotangent.transpose(spec[0], *spec[2:], spec[1]).astype(x.dtype)
    x = _positions_last(x, numbers.lhs_spec)
    product = lax.dot_general(
        _patches(x, window, cotangent.shape[1:-1], params),
        cotangent.reshape(-1, cotangent.shape[-1]),
        (((1,), (0,)), ((), ())),
        precision=params["precision"],
        preferred_element_type=sum_dtype(x.dtype),
    )
    product = product.reshape(*window, -1, cotangent.shape[-1])
    place = dict(
        zip(numbers.rhs_spec, [spatial + 1, spatial, *range(spatial)], strict=True)
    )
    return at_least_float32(product.transpose([place[d] for d in range(spatial + 2)]))


def depthwise_gradients(
    x: jax.Array,
    cotangent: jax.Array,
    kernel: Sequence[int],
    params: dict[str, Any],
) -> jax.Array:
    """The same of each example by itself, where each channel has kernels of its own.

    Args:
      x: As in `kernel_gradient`.
      cotangent: As there.
      kernel: As there, with one channel that is convolved.
      params: As there, with as many groups of features as channels.

    Returns:
      The gradients `[B, *kernel]`, in float32 or wider.
    """
    numbers, spatial = params["dimension_numbers"], len(kernel) - 2
    window = [kernel[d] for d in numbers.rhs_spec[2:]]
    lhs, spec = numbers.lhs_spec, numbers.out_spec
    x = at_least_float32(x.transpose(lhs[0], *lhs[2:], lhs[1]))
    cotangent = at_least_float32(cotangent.transpose(spec[0], *spec[2:], spec[1]))
    out, none = cotangent.shape[1:-1], (0, 0, 0)
    cotangent = cotangent.reshape(*cotangent.shape[:-1], x.shape[-1], -1)
    x = lax.pad(x, jnp.zeros((), x.dtype), [none, *_padding(params), none])
    positions, steps = tuple(range(1, spatial + 1)), params["window_strides"]
    places = jnp.indices(window, jnp.int32).reshape(spatial, -1)
    places *= jnp.array(params["rhs_dilation"], jnp.int32)[:, None]

    def at_place(place: jax.Array) -> jax.Array:
        seen = x
        for axis, (length, step) in enumerate(zip(out, steps, strict=True)):
            size = (length - 1) * step + 1
            seen = lax.dynamic_slice_in_dim(seen, place[axis], size, axis + 1)
            seen = lax.slice_in_dim(seen, 0, size, step, axis + 1)
        return jnp.sum(seen[..., None] * cotangent, axis=positions)

    # One place after the other: side by side, XLA would keep what each of them sees.
    grads = lax.map(at_place, places.T).reshape(*window, len(x), 1, -1)
    spec = [spatial + 2, spatial + 1, *range(spatial)]  # features come last, then
    place = dict(zip(numbers.rhs_spec, spec, strict=True))
    order = [place[d] for d in range(spatial + 2)]
    of_examples: jax.Array = grads.transpose(spatial, *order)
    return of_examples


def patch_products(
    x: jax.Array,
    y: jax.Array,
    kernel: Sequence[int],
    out: Sequence[int],
    params: dict[str, Any],
    *,
    precision: lax.Precision,
) -> jax.Array:
    """Inner products of what the positions of two results see.

    Where patches overlap, the products of single positions are fewer: those are taken,
    and added up over the window.

    Args:
      x: What is convolved, `m` examples in the layout that `params` says.
      y: The same of `n` others.
      kernel: As in `kernel_gradient`.
      out: Positions of the result, along each axis.
      params: As in `kernel_gradient`.
      precision: Of the products.

    Returns:
      `[m * positions, n * positions]`, in float32 or wider.
    """
    numbers = params["dimension_numbers"]
    window = [kernel[d] for d in numbers.rhs_spec[2:]]
    x, y = (_positions_last(z, numbers.lhs_spec) for z in (x, y))
    positions = math.prod(out)
    if of_patches_is_less(x.shape[2:], window, out):
        x, y = (_patches(z, window, out, params) for z in (x, y))
        return wide_dot(x, y, (0, 0), precision)
    flat_x, flat_y = (z.reshape(z.shape[0], -1) for z in (x, y))
    products = wide_dot(flat_x, flat_y, (0, 0), precision)
    products = products.reshape(*x.shape[1:], *y.shape[1:])
    none, inner = (0, 0, 0), _padding(params)
    zero = jnp.zeros((), products.dtype)
    products = lax.pad(products, zero, [none, *inner, none, *inner])
    for axis in range(len(out)):
        of_x, of_y = 1 + axis, 2 + len(out) + axis
        seen = [
            part.of(part.of(products, of_x), of_y)
            for part in _window(axis, window, out, params)
        ]
        products = functools.reduce(operator.add, seen)
    return products.reshape(x.shape[1] * positions, -1)


def of_patches_is_less(
    positions: Sequence[int], window: Sequence[int], out: Sequence[int]
) -> bool:
    """Whether `patch_products` takes products of patches, not of positions."""
    return math.prod(window) * math.prod(out) ** 2 <= math.prod(positions) ** 2


def _positions_last(x: jax.Array, spec: Sequence[int]) -> jax.Array:
    """`[channels, N, *positions]`: what is copied are runs, however few channels."""
    return x.transpose(spec[1], spec[0], *spec[2:])


def _patches(
    x: jax.Array, window: Sequence[int], out: Sequence[int], params: dict[str, Any]
) -> jax.Array:
    """From `[channels, N, *positions]` to `[window * channels, N * out]`."""
    none, rows = (0, 0, 0), math.prod(window) * x.shape[0]
    x = lax.pad(x, jnp.zeros((), x.dtype), [none, none, *_padding(params)])
    for axis in reversed(range(len(out))):  # one axis at a time: fewer, longer copies
        parts = _window(axis, window, out, params)
        x = jnp.stack([part.of(x, axis - len(out)) for part in parts])
    return x.reshape(rows, -1)


def _padding(params: dict[str, Any]) -> list[tuple[int, int, int]]:
    """At both ends of each axis, and between its positions."""
    return [
        (low, high, by - 1)
        for (low, high), by in zip(
            params["padding"], params["lhs_dilation"], strict=True
        )
    ]


class _Part(NamedTuple):
    """The padded positions along an axis that one place of the window passes."""

    start: int
    stop: int
    stride: int

    def of(self, x: jax.Array, axis: int) -> jax.Array:
        return lax.slice_in_dim(x, self.start, self.stop, self.stride, axis)


def _window(
    axis: int, window: Sequence[int], out: Sequence[int], params: dict[str, Any]
) -> list[_Part]:
    """One part for each place of the window along an axis of the positions."""
    stride, by = params["window_strides"][axis], params["rhs_dilation"][axis]
    length = (out[axis] - 1) * stride + 1
    return [_Part(k * by, k * by + length, stride) for k in range(window[axis])]
