"""The nets, the batches and the loss that are measured."""

import functools
import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from pcn_jax.models import CNN, ResNet18, ResNet32
from pcn_jax.models.pooling import max_pool

Net = Literal["mlp", "narrow", "cnn", "wide", "resnet18", "transformer", "lstm"]
AnyNet = Literal[Net, "resnet32"]
"""Also one with batch normalisation, whose examples interact."""
Labels = Literal["balanced", "long-tailed"]
TOO_LONG = "minutes a call, or out of memory"
"""Why a method that makes all class gradients at once is not run."""


class Case(NamedTuple):
    """One batch on one net.

    Attributes:
      net: The net.
      num_classes: `C`.
      batch_size: `B`.
      labels: How the classes are distributed.
    """

    net: AnyNet
    num_classes: int
    batch_size: int
    labels: Labels

    @property
    def name(self) -> str:
        """What the case is called in files and messages."""
        return f"{self.net} C={self.num_classes} B={self.batch_size} {self.labels}"

    @property
    def allows_stacks(self) -> bool:
        """Whether making all class gradients at once takes less than minutes a call."""
        most = {
            "mlp": 12_800,
            "narrow": 12_800,
            "cnn": 1_280,
            "wide": 1_280,
            "resnet18": 128,
            "resnet32": 256,
            "transformer": 640,
            "lstm": 1_280,
        }
        return self.num_classes * self.batch_size <= most[self.net]

    @property
    def examples_interact(self) -> bool:
        """Whether the loss of an example depends on the others."""
        return self.net == "resnet32"

    @property
    def has_peers(self) -> bool:
        """Whether PyTorch has the same net: its LSTM has a second bias."""
        return self.net not in ("lstm", "resnet32")

    @property
    def classes(self) -> np.ndarray:
        """The label of each example, int32 `[B]`: the same in every library."""
        random = np.random.RandomState(0)
        number = self.num_classes
        if self.labels == "balanced":
            labels = np.arange(self.batch_size) % number
        else:
            share = 0.01 ** (np.arange(number) / (number - 1))
            labels = random.choice(number, self.batch_size, p=share / share.sum())
        return random.permutation(labels).astype(np.int32)


def cases(nets: tuple[Net, ...], classes: tuple[int, ...]) -> Iterator[Case]:
    """The cases of some nets and numbers of classes.

    A thousand classes are for the MLP alone; MLPs also come with a large batch, where
    inner products between examples cost most.
    """
    sizes = {
        "mlp": [128, 1024],
        "narrow": [128, 1024],
        "resnet18": [64],
        "transformer": [64],
    }
    for net in nets:
        for size in sizes.get(net, [128]):
            for number in classes:
                if number > 100 and net != "mlp":
                    continue
                for labels in ("balanced", "long-tailed"):
                    yield Case(net, number, size, labels)


class MLP(nn.Module):
    """3072-512-256-C with ReLU, or of other widths."""

    num_classes: int
    widths: tuple[int, ...] = (512, 256)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps images to logits."""
        x = x.reshape(x.shape[0], -1)
        for width in self.widths:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.num_classes)(x)


class WideCNN(nn.Module):
    """Three blocks of a 3 x 3 convolution, ReLU and max-pooling: 32, 64, 128."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps images to logits."""
        for width in (32, 64, 128):
            x = nn.relu(nn.Conv(width, (3, 3))(x))
            x = max_pool(x, (2, 2), (2, 2))
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))


class Block(nn.Module):
    """Attention and an MLP, each behind a LayerNorm and beside a shortcut."""

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        """Maps tokens to tokens, as a step of a scan."""
        width = x.shape[-1]
        inner = nn.LayerNorm(epsilon=1e-5)(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=4)(inner, inner)
        inner = nn.Dense(4 * width)(nn.LayerNorm(epsilon=1e-5)(x))
        return x + nn.Dense(width)(nn.gelu(inner, approximate=False)), None


class Transformer(nn.Module):
    """Four blocks, as one scanned layer, on 64 patches of 4 x 4; width 64."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps images to logits."""
        x = nn.Conv(64, (4, 4), (4, 4))(x).reshape(len(x), 64, 64)
        x = x + self.param("position", nn.initializers.normal(0.02), (64, 64))
        blocks = nn.scan(
            Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=4
        )
        x, _ = blocks()(x, None)
        return nn.Dense(self.num_classes)(x.mean(axis=1))


class LSTM(nn.Module):
    """A layer of 128, on the 32 rows of an image."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps images to logits."""
        cell = nn.OptimizedLSTMCell(128, param_dtype=x.dtype)  # that of its state
        states: Any = nn.RNN(cell)(x.reshape(len(x), 32, 96))
        return nn.Dense(self.num_classes)(states.mean(axis=1))


def build(net: AnyNet, num_classes: int) -> nn.Module:
    """The net of a case."""
    makers: dict[str, Any] = {
        "mlp": MLP,
        "narrow": functools.partial(MLP, widths=(32, 32)),
        "cnn": CNN,
        "wide": WideCNN,
        "resnet18": ResNet18,
        "resnet32": ResNet32,
        "transformer": Transformer,
        "lstm": LSTM,
    }
    model: nn.Module = makers[net](num_classes=num_classes)
    return model


def least(case: Case) -> dict[str, float]:
    """What a plain gradient needs at least.

    Args:
      case: The case.

    Returns:
      `flops`, its multiplications and additions, NaN where JAX cannot tell, and
      `bytes` of images, labels and parameters on their way in and of the gradient on
      its way out.
    """
    model, cpu = build(case.net, case.num_classes), jax.devices("cpu")[0]
    images, labels = jax.eval_shape(
        lambda: (jnp.zeros((case.batch_size, 32, 32, 3)), jnp.asarray(case.classes))
    )
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]

    def mean_loss(*given: Any) -> jax.Array:
        return losses(model, *given).mean()

    with jax.default_device(cpu):  # not every backend can tell
        gradient = jax.jit(jax.grad(mean_loss))
        cost: Any = gradient.lower(params, images, labels).cost_analysis()
    arrays = jax.tree.leaves((params, params, images, labels))
    return {
        "flops": float(cost["flops"]) if cost else math.nan,
        "bytes": float(sum(x.size * x.dtype.itemsize for x in arrays)),
    }


def losses(model: nn.Module, params: Any, images: Any, labels: Any) -> jax.Array:
    """Cross-entropy of each example in training, `[B]`."""
    if isinstance(model, ResNet32):
        state = ["batch_stats"]
        logits, _ = model.apply({"params": params}, images, train=True, mutable=state)
    else:
        logits = model.apply({"params": params}, images)
    each: jax.Array = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return each
