"""The algorithms as values: how the batch is drawn, and how class gradients combine."""

import functools
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Literal, NamedTuple

import numpy as np
import optax

from pcn_jax import samplers, transforms, weights
from pcn_jax.training.config import SamplerName, TrainConfig
from pcn_jax.weights import ClassWeights, StatefulClassWeights

AlgorithmName = Literal[
    "gd",
    "pcngd",
    "sgd",
    "sgd+o",
    "sgd+rw",
    "sgd+la",
    "pcnsgd",
    "pcnsgd+o",
    "pcnsgd+r",
    "pcnsgd+clip",
    "pcnsgd+o+clip",
    "pcnsgd+o+la",
    "pcnsgd+split",
]
Links = list[optax.GradientTransformation]
Weights = ClassWeights | StatefulClassWeights


class Algorithm(NamedTuple):
    """One row of the table of algorithms.

    Attributes:
      label: Name in tables and figures.
      sampler: How the batch is drawn; `"full"` is all of the training set.
      links: From a `TrainConfig` and the classes' shares of the training data `[C]` to
        the transformations between class gradients and their sum; or `None` where there
        are none: the ordinary gradient, or weights alone.
      weights: From the same to class weights, for `pcn_jax.pcn_value_and_grad`; returns
        `None` if what was chosen can be had with the links only.
      needs_reference: Whether they need the class gradients of all the data.
      by_halves: Whether the links take the gradients of two halves of each class.
      adjusts_logits: Whether the loss is adjusted by the shares of the classes: in the
        data where there are no weights, else in the steps (`PCNValue.shares`).
      options: Names of the fields of `TrainConfig` that other algorithms do not heed.
    """

    label: str
    sampler: SamplerName
    links: Callable[[TrainConfig, np.ndarray], Links] | None
    weights: Callable[[TrainConfig, np.ndarray], Weights | None] | None = None
    needs_reference: bool = False
    by_halves: bool = False
    adjusts_logits: bool = False
    options: tuple[str, ...] = ()

    def heeded(self, chosen: TrainConfig) -> dict[str, Any]:
        """What decides a run of the algorithm: all but the options of others.

        Newer options are there only if they are on, so that older runs stay the same.

        Args:
          chosen: How it is trained.

        Returns:
          Names of fields to values.

        Example:
          >>> "max_norm" in ALGORITHMS["sgd"].heeded(TrainConfig())
          False
        """
        of_some = {name for other in ALGORITHMS.values() for name in other.options}
        ignored = of_some.difference(self.options)
        ignored |= {name for name in _NEWER if not getattr(chosen, name)}
        names = (field.name for field in fields(chosen))
        return {name: getattr(chosen, name) for name in names if name not in ignored}


def _pcngd(chosen: TrainConfig, _shares: np.ndarray) -> Links:
    angle = [transforms.scale_by_class_angle()] if chosen.angle_step_size else []
    return [transforms.scale_by_class_norm(), *angle]


def _normalised(chosen: TrainConfig, shares: np.ndarray) -> Links:
    if not chosen.class_momentum:
        return [transforms.scale_by_class_norm()]
    momentum = transforms.class_momentum(len(shares), chosen.class_momentum)
    return [momentum, transforms.scale_by_class_norm()]


def _normalised_weights(
    chosen: TrainConfig, _shares: np.ndarray
) -> ClassWeights | None:
    return None if chosen.class_momentum else weights.inverse_norm()


def _rescaled(chosen: TrainConfig, _shares: np.ndarray) -> Links:
    align = transforms.scale_by_class_alignment(
        min_alignment=chosen.min_alignment, published_code=chosen.published_alignment
    )
    return [transforms.scale_by_class_norm(), align]


def _rescaled_weights(chosen: TrainConfig, _shares: np.ndarray) -> ClassWeights | None:
    if chosen.published_alignment:
        return None
    return weights.inverse_aligned_norm(min_alignment=chosen.min_alignment)


_NORMALISED = (_normalised, _normalised_weights)
_REWEIGHTED = (
    lambda *_: [transforms.scale_by_class_frequency()],
    lambda *_: weights.inverse_frequency(),
)
_CLIPPED = (
    lambda chosen, _: [transforms.clip_by_class_norm(chosen.max_norm)],
    lambda chosen, _: weights.inverse_clipped_norm(chosen.max_norm),
)
_RESCALED = (_rescaled, _rescaled_weights)
_SMOOTHED = (
    lambda chosen, shares: [
        transforms.scale_by_smoothed_class_norm(
            len(shares),
            chosen.min_norm,
            decay=chosen.decay,
            min_alignment=chosen.min_split_alignment,
            average=chosen.split_average,
        )
    ],
    lambda chosen, _: weights.inverse_smoothed_norm(
        chosen.min_norm,
        decay=chosen.decay,
        min_alignment=chosen.min_split_alignment,
        average=chosen.split_average,
    ),
)
_ADJUSTED = (
    None,
    lambda chosen, shares: weights.inverse_clipped_norm(
        chosen.max_adjusted_norm / (len(shares) * shares)
    ),
)
_FROZEN = "frozen_statistics"
_NEWER = (_FROZEN,)

ALGORITHMS: dict[AlgorithmName, Algorithm] = {
    "gd": Algorithm("GD", "full", None),
    "pcngd": Algorithm("PCNGD", "full", _pcngd, options=("angle_step_size",)),
    "sgd": Algorithm("SGD", "stratified", None),
    "sgd+o": Algorithm("SGD+O", "oversampled", None),
    "sgd+rw": Algorithm("SGD+RW", "stratified", *_REWEIGHTED, options=(_FROZEN,)),
    "sgd+la": Algorithm("SGD+LA", "stratified", None, adjusts_logits=True),
    "pcnsgd": Algorithm(
        "PCNSGD", "stratified", *_NORMALISED, options=(_FROZEN, "class_momentum")
    ),
    "pcnsgd+o": Algorithm(
        "PCNSGD+O", "oversampled", *_NORMALISED, options=(_FROZEN, "class_momentum")
    ),
    "pcnsgd+r": Algorithm(
        "PCNSGD+R",
        "stratified",
        *_RESCALED,
        needs_reference=True,
        options=("min_alignment", "published_alignment", "reference_every"),
    ),
    "pcnsgd+clip": Algorithm(
        "PCNSGD+clip", "stratified", *_CLIPPED, options=(_FROZEN, "max_norm")
    ),
    "pcnsgd+o+clip": Algorithm(
        "PCNSGD+O+clip", "oversampled", *_CLIPPED, options=(_FROZEN, "max_norm")
    ),
    "pcnsgd+o+la": Algorithm(
        "PCNSGD+O+LA",
        "oversampled",
        *_ADJUSTED,
        adjusts_logits=True,
        options=(_FROZEN, "max_adjusted_norm"),
    ),
    "pcnsgd+split": Algorithm(
        "PCNSGD+split",
        "stratified",
        *_SMOOTHED,
        by_halves=True,
        options=(_FROZEN, "min_norm", "decay", "min_split_alignment", "split_average"),
    ),
}
"""The algorithms of the paper; class re-weighting (RW) and logit adjustment (LA);
per-class clipping (clip), also of oversampled batches (+O), and with logits adjusted by
what becomes of the classes' shares (+O+LA); the smoothed norm of two halves of a class
(split)."""


def make_sampler(
    name: SamplerName, labels: np.ndarray, batch_size: int, total_steps: int
) -> samplers.Sampler | None:
    """The sampler of that name, or `None` for `"full"`, which draws nothing.

    Args:
      name: One of `SamplerName`.
      labels: Class of each training example, integers `[n]`.
      batch_size: Examples in a batch.
      total_steps: Steps of the whole run, for progressive balancing.

    Returns:
      A `pcn_jax.Sampler` or `None`.

    Raises:
      ValueError: If the batch size does not suit the sampler.

    Example:
      >>> make_sampler("uniform", np.array([0, 0, 1]), 2, total_steps=10).batch_size
      2
    """
    makers: dict[str, Callable[..., samplers.Sampler]] = {
        "uniform": samplers.uniform,
        "stratified": samplers.stratified,
        "oversampled": samplers.oversampled,
        "square-root": samplers.square_root,
        "progressively-balanced": functools.partial(
            samplers.progressively_balanced, total_steps=total_steps
        ),
    }
    return None if name == "full" else makers[name](labels, batch_size)
