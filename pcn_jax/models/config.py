"""A model as plain data, so that a command line or a saved run can name one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from pcn_jax.checks import check_choice
from pcn_jax.models.cnn import CNN
from pcn_jax.models.mlp import MLP
from pcn_jax.models.resnet18 import ResNet18, Stem
from pcn_jax.models.resnet32 import Norm, ResNet32
from pcn_jax.models.vgg import VGG16

Name = Literal["mlp", "cnn", "vgg16", "resnet18", "resnet32"]
Activation = Literal["relu", "tanh"]

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "tanh": nn.tanh,
}


@dataclass(frozen=True)
class ModelConfig:
    """Which network to train. A field that its network does not have is ignored."""

    name: Name = "mlp"
    """The network. All but mlp need images: cnn from 4 x 4, vgg16 from 32 x 32."""

    features: tuple[int, ...] = (32, 32)
    """Widths of the hidden layers (mlp)."""

    activation: Activation = "relu"
    """After each hidden layer but the last (mlp)."""

    last_activation: Activation = "tanh"
    """After the last hidden layer (mlp)."""

    group_size: int = 4
    """Channels per group: a divisor of 64, or 16 for resnet32 (group normalisation)."""

    dropout_rate: float = 0.2
    """Probability of zeroing an activation in training, below 1 (vgg16)."""

    stem: Stem = "cifar"
    """First layers: keep the resolution, or quarter it as in the paper (resnet18)."""

    norm: Norm = "batch"
    """Normalisation: batch, as in the long-tail literature, or group (resnet32)."""


def build(
    config: ModelConfig,
    num_classes: int,
    *,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
) -> nn.Module:
    """Makes the network that `config` describes.

    Args:
      config: The network.
      num_classes: Number of logits, `C`.
      dtype: Dtype of the computation; `None` for that of input and parameters together.
      param_dtype: Dtype of the parameters.

    Returns:
      A flax module, called as `module(x, train=...)`, with float `x` of shape
      `[B, ...]`, and returning logits `[B, C]`.

    Raises:
      ValueError: If a field has a value its network cannot take.

    Example:
      >>> build(ModelConfig(name="mlp", features=(64, 64)), num_classes=10).features
      (64, 64)
    """
    check_choice("name", config.name, Name)
    match config.name:
        case "mlp":
            for name in ("activation", "last_activation"):
                check_choice(name, getattr(config, name), Activation)
            return MLP(
                num_classes,
                config.features,
                _ACTIVATIONS[config.activation],
                _ACTIVATIONS[config.last_activation],
                dtype=dtype,
                param_dtype=param_dtype,
            )
        case "cnn":
            return CNN(num_classes, dtype=dtype, param_dtype=param_dtype)
        case "vgg16":
            return VGG16(
                num_classes,
                config.group_size,
                config.dropout_rate,
                dtype=dtype,
                param_dtype=param_dtype,
            )
        case "resnet18":
            return ResNet18(
                num_classes,
                config.group_size,
                config.stem,
                dtype=dtype,
                param_dtype=param_dtype,
            )
        case "resnet32":
            return ResNet32(
                num_classes,
                config.norm,
                config.group_size,
                dtype=dtype,
                param_dtype=param_dtype,
            )
