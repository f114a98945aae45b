"""The residual block that both residual networks repeat."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn


class BasicBlock(nn.Module):
    """`relu(x + norm(conv(relu(norm(conv(x))))))` with 3 x 3 convolutions.

    Attributes:
      width: Output channels.
      stride: Of the first convolution.
      conv: `nn.Conv` with all but features, kernel size, strides and padding given.
      normalize: The normalisation, a function of activations.
      project: Whether to match a changed shape by a normalised 1 x 1 convolution
        (option B of He et al. 2016) instead of subsampling and zero channels (their
        option A).
    """

    width: int
    stride: int
    conv: Callable[..., nn.Conv]
    normalize: Callable[[jax.Array], jax.Array]
    project: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[B, H, W, channels]` to `[B, ceil(H/s), ceil(W/s), width]`."""
        # Padding by 1 on both sides, as PyTorch does: "SAME" pads one side at stride 2.
        y = self.conv(self.width, (3, 3), self.stride, padding=1)(x)
        y = nn.relu(self.normalize(y))
        y = self.normalize(self.conv(self.width, (3, 3), padding=1)(y))
        if x.shape == y.shape:
            shortcut = x
        elif self.project:
            shortcut = self.conv(self.width, (1, 1), self.stride, padding=0)(x)
            shortcut = self.normalize(shortcut)
        else:
            before = (self.width - x.shape[-1]) // 2
            after = self.width - x.shape[-1] - before
            shortcut = x[:, :: self.stride, :: self.stride]
            shortcut = jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), (before, after)))
        return nn.relu(shortcut + y)
