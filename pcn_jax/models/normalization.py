"""Group and batch normalisation as plain functions, so that a block can take either.

Both must be called inside a module's `nn.compact` method, which then owns the scale
and the shift. GroupNorm normalises each example by itself. BatchNorm makes the examples
of a batch, and so its classes, depend on one another: a class gradient is then that of
one joint forward pass over the whole batch, never of a pass over the class alone.
"""

import jax
from flax import linen as nn
from jax.typing import DTypeLike

# PyTorch's default, with which the published networks were trained; flax's is 1e-6.
_EPSILON = 1e-5


def group_norm(
    x: jax.Array,
    *,
    group_size: int,
    dtype: DTypeLike | None,
    param_dtype: DTypeLike,
) -> jax.Array:
    """Normalises groups of channels of each example (Wu and He 2018, arXiv 1803.08494).

    Args:
      x: Activations `[B, H, W, channels]`.
      group_size: Channels per group; must divide `channels`.
      dtype: Dtype of the result; `None` for that of `x` and the parameters together.
      param_dtype: Dtype of the scale and the shift, each `[channels]`.

    Returns:
      `[B, H, W, channels]`. Moments are taken in float32 or wider.

    Raises:
      ValueError: If a group holds one number, whose normalised value is always zero.
    """
    height, width = x.shape[1:3]
    if group_size * height * width == 1:
        raise ValueError(
            "group_size=1 on 1 x 1 feature maps normalises single numbers, which makes "
            "the network's output constant: choose a larger group_size or image."
        )
    normalized: jax.Array = nn.GroupNorm(
        num_groups=None,
        group_size=group_size,
        epsilon=_EPSILON,
        dtype=dtype,
        param_dtype=param_dtype,
    )(x)
    return normalized


def batch_norm(
    x: jax.Array,
    *,
    train: bool,
    dtype: DTypeLike | None,
    param_dtype: DTypeLike,
) -> jax.Array:
    """Normalises channels over the batch (Ioffe and Szegedy 2015, arXiv 1502.03167).

    The running moments keep 0.9 of their value each step, which PyTorch spells
    `momentum=0.1`. Unlike PyTorch's, the running variance is the biased one.

    Args:
      x: Activations `[B, H, W, channels]`.
      train: Whether to use the batch's moments and update the running ones, in the
        collection `batch_stats`, which must be mutable; otherwise the running ones are
        used.
      dtype: Dtype of the result; `None` for that of `x` and the parameters together.
      param_dtype: Dtype of the scale and the shift, each `[channels]`.

    Returns:
      `[B, H, W, channels]`. Moments are taken in float32 or wider.
    """
    normalized: jax.Array = nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=_EPSILON,
        dtype=dtype,
        param_dtype=param_dtype,
    )(x)
    return normalized
