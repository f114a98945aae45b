"""The networks of the paper and of the long-tail literature, in flax.

Each is a `flax.linen.Module`, called as `module(x, train=...)` on floats
`[B, ...]` and returning logits `[B, C]` in the dtype of the computation; with
bfloat16, cast them to float32 before the loss. Parameters stay float32 unless
`param_dtype` says otherwise.
"""

from pcn_jax.models.cnn import CNN
from pcn_jax.models.config import ModelConfig, build
from pcn_jax.models.mlp import MLP
from pcn_jax.models.resnet18 import ResNet18
from pcn_jax.models.resnet32 import ResNet32
from pcn_jax.models.vgg import VGG16

__all__ = ["CNN", "MLP", "VGG16", "ModelConfig", "ResNet18", "ResNet32", "build"]
