"""The ResNet-32 that the long-tail literature trains on CIFAR."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from pcn_jax.checks import check_choice
from pcn_jax.models.checks import (
    check_group_size,
    check_images,
    check_num_classes,
)
from pcn_jax.models.initializers import kaiming_normal
from pcn_jax.models.normalization import batch_norm, group_norm
from pcn_jax.models.residual import BasicBlock

Norm = Literal["batch", "group"]


class ResNet32(nn.Module):
    """ResNet-32 for CIFAR: three stages of five blocks, 16, 32 and 64 channels.

    Attributes:
      num_classes: Number of logits, `C`.
      norm: `"batch"`, as in the literature, or `"group"`, for which an example's
        logits do not depend on the rest of its batch.
      group_size: Channels per normalised group, with `norm="group"`; divides 16.
      dtype: Dtype of the computation; `None` for that of input and parameters together.
      param_dtype: Dtype of the parameters.

    Raises:
      ValueError: If an attribute is out of its range, or the input is not a batch of
        images, or so small that a normalised group would hold one number.

    Example:
      >>> model = ResNet32(num_classes=10)
      >>> images = jnp.zeros((1, 32, 32, 3))
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
      >>> sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
      464154
      >>> sorted(variables)
      ['batch_stats', 'params']

      In training, `model.apply(variables, x, train=True, mutable=["batch_stats"])`
      returns the logits and the new running moments.

    References:
      He et al., 2016, section 4.2 and option A, as in Cao et al., `Learning Imbalanced
      Datasets with Label-Distribution-Aware Margin Loss
      <https://arxiv.org/abs/1906.07413>`_, 2019, and its code: Kaiming-normal weights,
      the head included. Ours: a zero head bias, where that code keeps PyTorch's
      default.
    """

    num_classes: int
    norm: Norm = "batch"
    group_size: int = 4
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        check_num_classes(self.num_classes)
        check_choice("norm", self.norm, Norm)
        if self.norm == "group":
            check_group_size(self.group_size, channels=16)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps `[B, H, W, channels]` to logits `[B, C]`.

        Args:
          x: Images.
          train: Whether BatchNorm normalises by the batch's moments and updates the
            running ones; `batch_stats` must then be mutable.
        """
        check_images(x, model="ResNet32")
        conv = functools.partial(
            nn.Conv,
            use_bias=False,
            kernel_init=kaiming_normal,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        normalize = (
            functools.partial(batch_norm, train=train)
            if self.norm == "batch"
            else functools.partial(group_norm, group_size=self.group_size)
        )
        normalize = functools.partial(
            normalize, dtype=self.dtype, param_dtype=self.param_dtype
        )
        x = nn.relu(normalize(conv(16, (3, 3), padding=1)(x)))
        for width in (16, 32, 64):
            for block in range(5):
                stride = 2 if block == 0 and width > 16 else 1
                x = BasicBlock(width, stride, conv, normalize, project=False)(x)
        head = nn.Dense(
            self.num_classes,
            kernel_init=kaiming_normal,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        return head(x.mean(axis=(1, 2)))
