"""The paper's two-layer convolutional network."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from pcn_jax.models.checks import check_images, check_num_classes
from pcn_jax.models.initializers import kaiming_normal, xavier_normal
from pcn_jax.models.pooling import avg_pool, max_pool


class CNN(nn.Module):
    """`conv 16 - ReLU - max-pool - conv 32 - tanh - average-pool - dense C`.

    Convolutions are 5 x 5 with stride 1 and keep the image's size, each pooling halves
    it. The second layer's tanh and average keep an untrained network from favouring one
    class, as a ReLU and a maximum would make it do.

    Attributes:
      num_classes: Number of logits, `C`.
      dtype: Dtype of the computation; `None` for that of input and parameters together.
      param_dtype: Dtype of the parameters.

    Raises:
      ValueError: If `num_classes` is below two, or the input is not a batch of images
        of at least 4 x 4 pixels.

    Example:
      >>> model = CNN(num_classes=2)
      >>> images = jnp.zeros((5, 32, 32, 3))
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
      >>> sum(leaf.size for leaf in jax.tree.leaves(variables))
      18146
      >>> jax.eval_shape(model.apply, variables, images).shape
      (5, 2)

    References:
      Francazi et al., 2023, and its published code, which this follows throughout:
      Kaiming-normal convolutions, Xavier-normal head, zero biases.
    """

    num_classes: int
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        check_num_classes(self.num_classes)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps `[B, H, W, channels]` to logits `[B, C]`; `train` is unused."""
        check_images(x, model="CNN", min_side=4)
        conv = functools.partial(
            nn.Conv,
            kernel_size=(5, 5),
            kernel_init=kaiming_normal,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        x = max_pool(nn.relu(conv(16)(x)), (2, 2), (2, 2))
        x = avg_pool(nn.tanh(conv(32)(x)), (2, 2), (2, 2))
        head = nn.Dense(
            self.num_classes,
            kernel_init=xavier_normal,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        return head(x.reshape(x.shape[0], -1))
