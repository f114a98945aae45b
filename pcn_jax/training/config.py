"""How runs train, as plain data: what algorithms that are compared have in common."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import optax

from pcn_jax.checks import (
    check_choice,
    check_integer,
    check_number,
    check_positive_integer,
    describe,
)
from pcn_jax.weights import Average

SamplerName = Literal[
    "full",
    "uniform",
    "stratified",
    "oversampled",
    "square-root",
    "progressively-balanced",
]


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer that follows the direction of the algorithm."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    """Optimizer: sgd (with or without momentum), adam or adamw."""

    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate over the run: constant, or cosine decay to zero."""

    momentum: float = 0.0
    """Momentum of sgd, from 0 to below 1; 0 is none."""

    nesterov: bool = False
    """Whether the momentum is Nesterov's."""

    weight_decay: float = 0.0
    """Weight decay: of the gradient for sgd and adam, decoupled for adamw."""

    def __post_init__(self) -> None:
        """Refuses values that no optimizer can take."""
        for name in ("name", "schedule"):
            check_choice(name, getattr(self, name), type(self).__annotations__[name])
        check_number("momentum", self.momentum, *_BELOW_ONE)
        check_number("weight_decay", self.weight_decay, *_NOT_NEGATIVE)
        if self.name != "sgd" and (self.momentum or self.nesterov):
            raise ValueError(
                f"momentum and nesterov belong to sgd, not to {self.name}: remove them."
            )
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum: give one, such as 0.9.")

    def build(
        self, learning_rate: float, total_steps: int
    ) -> optax.GradientTransformation:
        """The optax optimizer for a run.

        Args:
          learning_rate: Its learning rate, or where the schedule starts.
          total_steps: Length of the run, which a schedule refers to.

        Returns:
          A gradient transformation of ordinary gradients.

        Raises:
          ValueError: If the learning rate is not positive and finite.

        Example:
          >>> tx = OptimizerConfig().build(0.5, total_steps=10)
          >>> print(tx.update(2.0, tx.init(1.0))[0])
          -1.0
        """
        check_learning_rate(learning_rate)
        rate: optax.ScalarOrSchedule = learning_rate
        if self.schedule == "cosine":
            rate = optax.cosine_decay_schedule(learning_rate, max(total_steps, 1))
        if self.name == "adamw":
            return optax.adamw(rate, weight_decay=self.weight_decay)
        if self.name == "adam":
            optimizer = optax.adam(rate)
        else:
            optimizer = optax.sgd(rate, self.momentum or None, self.nesterov)
        if not self.weight_decay:
            return optimizer
        return optax.chain(optax.add_decayed_weights(self.weight_decay), optimizer)


def check_learning_rate(learning_rate: float) -> None:
    """Refuses what no optimizer takes."""
    check_number("learning_rate", learning_rate, *_POSITIVE)


@dataclass(frozen=True)
class TrainConfig:
    """A budget and what goes with it; the algorithm and learning rate come apart."""

    steps: int = 1000
    """Steps to train."""

    batch_size: int = 128
    """Examples in a mini-batch; gd and pcngd take all the data."""

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    sampler: SamplerName | None = None
    """How batches are drawn, if not as the algorithm does."""

    max_norm: float = 0.1
    """pcnsgd+clip, pcnsgd+o+clip: norm above which a class-mean gradient is clipped; 1
    is better for pcnsgd+clip."""

    max_adjusted_norm: float = 1.0
    """pcnsgd+o+la: the same of a class that has 1 / C of the data; of others, this over
    C times their share."""

    min_norm: float = 0.3
    """pcnsgd+split: norm of a class-mean gradient below which its step shrinks."""

    decay: float = 0.99
    """pcnsgd+split: of the moving averages of squared norms."""

    min_split_alignment: float = 0.5
    """pcnsgd+split: how much shorter than the noisy norm the smoothed one may be."""

    split_average: Average = "norm"
    """pcnsgd+split: what is averaged: the norm, or only how true the batch is."""

    class_momentum: float = 0.0
    """pcnsgd, pcnsgd+o: moving average of each class gradient before its norm is taken;
    0 is none. Makes all class gradients."""

    min_alignment: float = 0.1
    """pcnsgd+r: alignment p below which its inverse is not followed further."""

    published_alignment: bool = False
    """pcnsgd+r: weigh by the product of the other classes' p: the published code."""

    reference_every: int = 1
    """pcnsgd+r: steps after which the gradients of all the data are refreshed. Older
    ones are cheaper, and may lose the minority late in training (RESULTS.md, C5)."""

    angle_step_size: bool = False
    """pcngd with two classes: multiply the step by 1 + cos of the gradients' angle."""

    explicit_class_gradients: bool = False
    """Make all class gradients and combine them in a chain: slower, the reference."""

    frozen_statistics: bool = False
    """With batch normalisation: hold its statistics fixed while norms are taken, which
    is faster with many classes, and makes norms too long. sgd+rw has no norms: there it
    is exact."""

    measurements_per_decade: int = 10
    """Measurements between one power of ten of steps and the next."""

    def __post_init__(self) -> None:
        """Refuses values that no run can take."""
        if not isinstance(self.optimizer, OptimizerConfig):
            raise ValueError(
                "optimizer must be an OptimizerConfig, such as "
                f"OptimizerConfig('adam'), got {describe(self.optimizer)}: give optax "
                "optimizers to make_steps, as docs/command_line.md shows."
            )
        if self.sampler is not None:
            check_choice("sampler", self.sampler, SamplerName)
        check_integer("steps", self.steps, lambda x: x >= 0, "an integer of 0 or more")
        for name in ("batch_size", "reference_every", "measurements_per_decade"):
            check_positive_integer(name, getattr(self, name))
        # The links refuse the rest, but only when an algorithm uses them.
        for name, (is_allowed, allowed) in _RANGES.items():
            check_number(name, getattr(self, name), is_allowed, allowed)
        check_choice("split_average", self.split_average, Average)
        for name in _NEEDS_CLASS_GRADIENTS if self.frozen_statistics else ():
            if getattr(self, name):
                raise ValueError(
                    f"{name} takes class gradients, and frozen_statistics makes none: "
                    "remove one of them."
                )


_NEEDS_CLASS_GRADIENTS = (
    "class_momentum",
    "published_alignment",
    "explicit_class_gradients",
)

_POSITIVE = (lambda x: 0 < x < math.inf, "positive and finite")
_NOT_NEGATIVE = (lambda x: 0 <= x < math.inf, "0 or more and finite")
_BELOW_ONE = (lambda x: 0 <= x < 1, "in [0, 1)")
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "max_norm": _NOT_NEGATIVE,
    "max_adjusted_norm": _POSITIVE,
    "min_norm": _POSITIVE,
    "decay": _BELOW_ONE,
    "min_split_alignment": (lambda x: 0 <= x <= 1, "in [0, 1]"),
    "class_momentum": _BELOW_ONE,
    "min_alignment": (lambda x: 1e-6 <= x <= 1, "in [1e-6, 1]"),
}
