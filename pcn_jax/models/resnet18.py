"""The paper's ResNet-18, with GroupNorm."""

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
from pcn_jax.models.initializers import kaiming_normal, xavier_normal
from pcn_jax.models.normalization import group_norm
from pcn_jax.models.pooling import max_pool
from pcn_jax.models.residual import BasicBlock

Stem = Literal["cifar", "imagenet"]


class ResNet18(nn.Module):
    """ResNet-18 with GroupNorm: four stages of two blocks, 64 to 512 channels.

    Attributes:
      num_classes: Number of logits, `C`.
      group_size: Channels per normalised group; a divisor of 64.
      stem: `"cifar"`, a 3 x 3 convolution at full resolution, or `"imagenet"`, a
        7 x 7 convolution and a max-pooling, which quarter the resolution: about a
        fifteenth of the work, on 32 x 32 images.
      dtype: Dtype of the computation; `None` for that of input and parameters together.
      param_dtype: Dtype of the parameters.

    Raises:
      ValueError: If an attribute is out of its range, or the input is not a batch of
        images, or so small that a normalised group would hold one number.

    Example:
      >>> model = ResNet18(num_classes=10, group_size=16)
      >>> images = jnp.zeros((1, 32, 32, 3))
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
      >>> sum(leaf.size for leaf in jax.tree.leaves(variables))
      11173962

    References:
      He et al., `Deep Residual Learning for Image Recognition
      <https://arxiv.org/abs/1512.03385>`_, 2016, table 1, with GroupNorm for BatchNorm
      as in the published code of Francazi et al., 2023, whose scripts list group sizes
      4 and 16. That code has the `"imagenet"` stem, pooling before normalisation. Ours:
      the `"cifar"` default, customary for small images; blocks as He et al. have them
      (the code applies a further ReLU before the addition); convolutions without bias;
      and the initialisers of the paper's CNN, Kaiming-normal convolutions and a
      Xavier-normal head (the code keeps PyTorch's).
    """

    num_classes: int
    group_size: int = 4
    stem: Stem = "cifar"
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        check_num_classes(self.num_classes)
        check_group_size(self.group_size, channels=64)
        check_choice("stem", self.stem, Stem)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps `[B, H, W, channels]` to logits `[B, C]`; `train` is unused."""
        check_images(x, model="ResNet18")
        conv = functools.partial(
            nn.Conv,
            use_bias=False,
            kernel_init=kaiming_normal,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        normalize = functools.partial(
            group_norm,
            group_size=self.group_size,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        if self.stem == "imagenet":
            x = conv(64, (7, 7), 2, padding=3)(x)
            x = max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        else:
            x = conv(64, (3, 3), padding=1)(x)
        x = nn.relu(normalize(x))
        for width in (64, 128, 256, 512):
            stride = 1 if width == 64 else 2
            x = BasicBlock(width, stride, conv, normalize, project=True)(x)
            x = BasicBlock(width, 1, conv, normalize, project=True)(x)
        head = nn.Dense(
            self.num_classes,
            kernel_init=xavier_normal,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        return head(x.mean(axis=(1, 2)))
