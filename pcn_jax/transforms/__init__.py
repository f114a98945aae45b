"""Gradient transformations that take class gradients and give an ordinary update.

Every method of the paper is a choice of weights for the rows of the stacked class
gradients. Scaling the rows and summing them are both transformations in optax's sense,
so a method is a chain, and what follows the sum is any optimizer of the user's:

    optax.chain(scale_by_class_norm(), sum_over_classes(), optax.sgd(0.1, momentum=0.9))

Before the sum, updates have leaves `[C, *param.shape]`; behind it, `param.shape`. Each
link checks this when it is traced, and therefore needs `params` in `update`.

Warning:
  Some wrappers and orders of links do not mean what they seem to:

  * `optax.MultiSteps` around a chain fails, because it keeps gradients in the shape of
    the parameters, and behind the sum it normalises each micro-batch by itself. Use
    `pcn_jax.accumulate`, which adds class sums and normalises once.
  * Momentum, weight decay or clipping from optax *before* the sum acts on the stack of
    class gradients. Put them behind it; `class_momentum` is the one that belongs there.
  * `optax.masked` and `optax.multi_transform`, too, belong behind the sum: before it,
    or around it, they are refused, for norms are those of all parameters together.
  * Without `sum_over_classes` a chain returns one update a class, and
    `optax.apply_updates` broadcasts them: parameters grow by an axis. No link can see
    that the sum is missing behind it; the next step is refused for the shapes.
"""

from pcn_jax.transforms.aliases import pcngd, pcnsgd
from pcn_jax.transforms.alignment import scale_by_class_alignment
from pcn_jax.transforms.angle import scale_by_class_angle
from pcn_jax.transforms.clipping import clip_by_class_norm
from pcn_jax.transforms.frequency import scale_by_class_frequency
from pcn_jax.transforms.momentum import class_momentum
from pcn_jax.transforms.norm import scale_by_class_norm
from pcn_jax.transforms.smoothed import scale_by_smoothed_class_norm
from pcn_jax.transforms.total import sum_over_classes
from pcn_jax.transforms.weighted import scale_by_class_weights

__all__ = [
    "class_momentum",
    "clip_by_class_norm",
    "pcngd",
    "pcnsgd",
    "scale_by_class_alignment",
    "scale_by_class_angle",
    "scale_by_class_frequency",
    "scale_by_class_norm",
    "scale_by_class_weights",
    "scale_by_smoothed_class_norm",
    "sum_over_classes",
]
