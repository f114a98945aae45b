"""The paper's VGG16: tanh, GroupNorm after the activation, dropout between."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from pcn_jax.models.checks import check_group_size, check_images, check_num_classes
from pcn_jax.models.initializers import xavier_normal
from pcn_jax.models.normalization import group_norm
from pcn_jax.models.pooling import avg_pool, max_pool

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(nn.Module):
    """Thirteen `conv3 - tanh - GroupNorm` layers in five stages and one dense layer.

    Dropout follows every layer but the last of each stage, where a pooling stands
    instead, and once more precedes the dense layer. The first four poolings take the
    maximum, the fifth the average.

    Attributes:
      num_classes: Number of logits, `C`.
      group_size: Channels per normalised group; a divisor of 64.
      dropout_rate: Probability of zeroing an activation in training, in [0, 1).
      dtype: Dtype of the computation; `None` for that of input and parameters together.
      param_dtype: Dtype of the parameters.

    Raises:
      ValueError: If an attribute is out of its range, or the input is not a batch of
        images of at least 32 x 32 pixels, which five poolings need.

    Warning:
      Dropout draws a mask per example and step, so that no step descends the loss that
      is measured: the per-step monotonicity of PCNGD is claimed for `dropout_rate=0`.

    Example:
      >>> model = VGG16(num_classes=10, group_size=16)
      >>> images = jnp.zeros((1, 32, 32, 3))
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
      >>> sum(leaf.size for leaf in jax.tree.leaves(variables))
      14728266

      In training the masks come from `rngs={"dropout": key}` in `model.apply`.

    References:
      Simonyan and Zisserman, `Very Deep Convolutional Networks for Large-Scale Image
      Recognition <https://arxiv.org/abs/1409.1556>`_, 2015, configuration D, as changed
      in the published code of Francazi et al., 2023: everything above, and
      Xavier-normal weights with zero biases in all layers. Its scripts list group sizes
      1, 4, 16 and 64 and rates 0.2 and 0.4; that 4 and 0.2 are the defaults is our
      choice.
    """

    num_classes: int
    group_size: int = 4
    dropout_rate: float = 0.2
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        check_num_classes(self.num_classes)
        check_group_size(self.group_size, channels=_STAGES[0][0])
        if not 0.0 <= self.dropout_rate < 1.0:
            raise ValueError(
                f"dropout_rate must be at least 0 and below 1, got {self.dropout_rate}."
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps `[B, H, W, channels]` to logits `[B, C]`.

        Args:
          x: Images of at least 32 x 32 pixels.
          train: Whether to apply dropout; needs the random key `dropout` unless its
            rate is 0.
        """
        check_images(x, model="VGG16", min_side=2 ** len(_STAGES))
        for stage, widths in enumerate(_STAGES, start=1):
            for layer, width in enumerate(widths, start=1):
                x = nn.tanh(self._conv(width)(x))
                x = group_norm(
                    x,
                    group_size=self.group_size,
                    dtype=self.dtype,
                    param_dtype=self.param_dtype,
                )
                if layer < len(widths):
                    x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
            pool = max_pool if stage < len(_STAGES) else avg_pool
            x = pool(x, (2, 2), (2, 2))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        head = nn.Dense(
            self.num_classes,
            kernel_init=xavier_normal,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        return head(x.reshape(x.shape[0], -1))

    def _conv(self, width: int) -> nn.Conv:
        return nn.Conv(
            width,
            (3, 3),
            kernel_init=xavier_normal,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
