"""How a run trains, as plain data: for the command line, Python and the record."""

from dataclasses import dataclass, field
from typing import Literal

import optax

from pcn_jax.training.algorithms import AlgorithmName, SamplerName


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer that follows the direction of the algorithm."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    """Optimizer: sgd (with or without momentum), adam or adamw."""

    learning_rate: float = 0.1
    """Learning rate; for the PCN algorithms the length of a class's step."""

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
        _check("learning_rate", self.learning_rate, self.learning_rate > 0, "positive")
        _check("momentum", self.momentum, 0 <= self.momentum < 1, "in [0, 1)")
        _check("weight_decay", self.weight_decay, self.weight_decay >= 0, "0 or more")
        if self.name != "sgd" and (self.momentum or self.nesterov):
            raise ValueError(
                f"momentum and nesterov belong to sgd, not to {self.name}: remove them."
            )

    def build(self, total_steps: int) -> optax.GradientTransformation:
        """The optax optimizer for a run of that many steps.

        Args:
          total_steps: Length of the run, which a schedule refers to.

        Returns:
          A gradient transformation of ordinary gradients.

        Example:
          >>> tx = OptimizerConfig(learning_rate=0.5).build(total_steps=10)
          >>> print(tx.update(optax.tree.ones_like(1.0), tx.init(1.0), 1.0)[0])
          -0.5
        """
        rate: optax.ScalarOrSchedule = self.learning_rate
        if self.schedule == "cosine":
            rate = optax.cosine_decay_schedule(self.learning_rate, total_steps)
        if self.name == "adamw":
            return optax.adamw(rate, weight_decay=self.weight_decay)
        base = (
            optax.sgd(rate, self.momentum or None, self.nesterov)
            if self.name == "sgd"
            else optax.adam(rate)
        )
        if not self.weight_decay:
            return base
        return optax.chain(optax.add_decayed_weights(self.weight_decay), base)


@dataclass(frozen=True)
class TrainConfig:
    """One algorithm's run: everything but the data, the model and the seed."""

    algorithm: AlgorithmName = "pcnsgd"
    """The algorithm."""

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimizer behind it."""

    steps: int = 1000
    """Steps to train."""

    batch_size: int = 128
    """Examples in a mini-batch; gd and pcngd take all the data."""

    sampler: SamplerName | None = None
    """How batches are drawn, if not as the algorithm does."""

    max_norm: float = 1.0
    """pcnsgd+clip: norm of a class-mean gradient from which on it is clipped."""

    min_alignment: float = 0.1
    """pcnsgd+r: alignment p below which its inverse is not followed further."""

    published_alignment: bool = False
    """pcnsgd+r: weigh by the product of the other classes' p: the published code."""

    reference_every: int = 1
    """pcnsgd+r: steps after which the gradients of all the data are refreshed."""

    angle_step_size: bool = False
    """pcngd with two classes: multiply the step by 1 + cos of the gradients' angle."""

    measurements_per_decade: int = 10
    """Measurements between one power of ten of steps and the next."""

    def __post_init__(self) -> None:
        """Refuses values that no run can take."""
        for name in (
            "batch_size",
            "reference_every",
            "measurements_per_decade",
        ):
            value = getattr(self, name)
            _check(name, value, value >= 1, "1 or more")
        _check("steps", self.steps, self.steps >= 0, "0 or more")


def _check(name: str, value: object, ok: bool, allowed: str) -> None:
    if not ok:
        raise ValueError(f"{name} must be {allowed}, got {value!r}.")
