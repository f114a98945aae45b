"""The gradient of a convolution's kernel as one product of matrices.

Inside a loop this is many times faster on CPU than the convolution that JAX's own
derivative takes, and while examples are few their patches stay in the cache.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pcn_jax.precision import at_least_float32


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
    x = x.transpose(_channels_last(numbers.lhs_spec))
    cotangent = cotangent.transpose(_channels_last(numbers.out_spec))
    window = [kernel[d] for d in numbers.rhs_spec[2:]]
    patches = _patches(x, window, cotangent.shape[1:-1], params)
    product = lax.dot_general(
        patches.reshape(-1, patches.shape[-1]),
        cotangent.astype(x.dtype).reshape(-1, cotangent.shape[-1]),
        (((0,), (0,)), ((), ())),
        precision=params["precision"],
        preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
    )
    product = product.reshape(*window, x.shape[-1], cotangent.shape[-1])
    place = dict(
        zip(numbers.rhs_spec, [spatial + 1, spatial, *range(spatial)], strict=True)
    )
    return at_least_float32(product.transpose([place[d] for d in range(spatial + 2)]))


def _patches(
    x: jax.Array, window: Sequence[int], out: Sequence[int], params: dict[str, Any]
) -> jax.Array:
    """What each position of the result sees: `[N, *out, window * channels]`."""
    inner = [
        (low, high, by - 1)
        for (low, high), by in zip(
            params["padding"], params["lhs_dilation"], strict=True
        )
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *inner, (0, 0, 0)])
    seen = []
    for offset in itertools.product(*map(range, window)):
        starts = [k * by for k, by in zip(offset, params["rhs_dilation"], strict=True)]
        ends = [
            start + (size - 1) * stride + 1
            for start, size, stride in zip(
                starts, out, params["window_strides"], strict=True
            )
        ]
        seen.append(
            lax.slice(
                x,
                (0, *starts, 0),
                (x.shape[0], *ends, x.shape[-1]),
                (1, *params["window_strides"], 1),
            )
        )
    return jnp.concatenate(seen, axis=-1)


def _channels_last(spec: Sequence[int]) -> tuple[int, ...]:
    """The axes of examples, positions and channels, in this order."""
    return spec[0], *spec[2:], spec[1]
