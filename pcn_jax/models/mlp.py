"""The paper's multi-layer perceptron, of any depth and width."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from pcn_jax.models.checks import check_num_classes
from pcn_jax.models.initializers import kaiming_normal, xavier_normal


class MLP(nn.Module):
    """Dense layers on the flattened input; the defaults are the paper's network.

    Every hidden layer but the last applies `activation` and the last one
    `last_activation`: the paper ends on tanh, whose odd symmetry keeps an untrained
    network from favouring one class.

    Attributes:
      num_classes: Number of logits, `C`.
      features: Hidden widths; `()` gives softmax regression.
      activation: After each hidden layer but the last. With tanh throughout the loss is
        smooth, as the descent guarantees of the paper assume.
      last_activation: After the last hidden layer.
      dtype: Dtype of the computation; `None` for that of input and parameters together.
      param_dtype: Dtype of the parameters.

    Raises:
      ValueError: If `num_classes` or a width is too small, or an activation is no
        function.

    Example:
      >>> model = MLP(num_classes=2)
      >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
      >>> sum(leaf.size for leaf in jax.tree.leaves(variables))
      99458
      >>> model.apply(variables, jnp.zeros((5, 32, 32, 3))).shape
      (5, 2)

      Three hidden layers, all ReLU:

      >>> deep = MLP(num_classes=10, features=(64, 64, 64), last_activation=nn.relu)

    References:
      Francazi et al., 2023, and its published code: widths, activations, and
      Kaiming-normal hidden weights with a Xavier-normal head. Ours: zero biases in the
      hidden layers too, where the code keeps PyTorch's default.
    """

    num_classes: int
    features: tuple[int, ...] = (32, 32)
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    last_activation: Callable[[jax.Array], jax.Array] = nn.tanh
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        check_num_classes(self.num_classes)
        if any(width < 1 for width in self.features):
            raise ValueError(f"features must be positive widths, got {self.features}.")
        for name in ("activation", "last_activation"):
            if not callable(function := getattr(self, name)):
                raise ValueError(
                    f"{name} must be a function, such as flax.linen.relu, got "
                    f"{function!r}."
                )
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps `[B, ...]` to logits `[B, C]`; `train` changes nothing here."""
        x = x.reshape(x.shape[0], -1)
        for layer, width in enumerate(self.features, start=1):
            dense = nn.Dense(
                width,
                kernel_init=kaiming_normal,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
            )
            is_last = layer == len(self.features)
            x = (self.last_activation if is_last else self.activation)(dense(x))
        head = nn.Dense(
            self.num_classes,
            kernel_init=xavier_normal,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        return head(x)
