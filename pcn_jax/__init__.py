"""Per-class normalised gradient descent in JAX: training on imbalanced data."""

from pcn_jax import weights
from pcn_jax.accumulation import accumulate, combine
from pcn_jax.balanced import Plan, pcn_plan, pcn_value_and_grad
from pcn_jax.class_gradients import (
    ClassValue,
    per_class_value_and_grad,
    per_group_value_and_grad,
)
from pcn_jax.dynamics import (
    class_means,
    macro_recall,
    predicted_loss_changes,
)
from pcn_jax.geometry import (
    class_alignment,
    class_cosines,
    class_norms,
    unit_class_grads,
)
from pcn_jax.halves import split_halves
from pcn_jax.initial_drop import InitialDrop, initial_drop, steps_to_reach
from pcn_jax.known_labels import known_labels_value_and_grad
from pcn_jax.samplers import (
    Sampler,
    oversampled,
    progressively_balanced,
    square_root,
    stratified,
    uniform,
)
from pcn_jax.transforms import (
    class_momentum,
    clip_by_class_norm,
    pcngd,
    pcnsgd,
    scale_by_class_alignment,
    scale_by_class_angle,
    scale_by_class_frequency,
    scale_by_class_norm,
    scale_by_class_weights,
    scale_by_smoothed_class_norm,
    sum_over_classes,
)
from pcn_jax.weighing import PCNValue
from pcn_jax.weights import ClassStatistics, StatefulClassWeights

__all__ = [
    "ClassStatistics",
    "ClassValue",
    "InitialDrop",
    "PCNValue",
    "Plan",
    "Sampler",
    "StatefulClassWeights",
    "accumulate",
    "class_alignment",
    "class_cosines",
    "class_means",
    "class_momentum",
    "class_norms",
    "clip_by_class_norm",
    "combine",
    "initial_drop",
    "known_labels_value_and_grad",
    "macro_recall",
    "oversampled",
    "pcn_plan",
    "pcn_value_and_grad",
    "pcngd",
    "pcnsgd",
    "per_class_value_and_grad",
    "per_group_value_and_grad",
    "predicted_loss_changes",
    "progressively_balanced",
    "scale_by_class_alignment",
    "scale_by_class_angle",
    "scale_by_class_frequency",
    "scale_by_class_norm",
    "scale_by_class_weights",
    "scale_by_smoothed_class_norm",
    "split_halves",
    "square_root",
    "steps_to_reach",
    "stratified",
    "sum_over_classes",
    "uniform",
    "unit_class_grads",
    "weights",
]
__version__ = "0.1.0"
