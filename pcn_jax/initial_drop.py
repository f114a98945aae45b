"""The minority initial drop as numbers, from measurements on the host (NumPy)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pcn_jax.checks import check_number


class InitialDrop(NamedTuple):
    """How far a class got worse before it was learned, and for how long.

    Attributes:
      depth: Largest deterioration against the start, in units of the measurement; 0 if
        the class never got worse.
      steps: Steps from the start until it was no longer worse; 0 if it never was,
        `inf` if it still was at the last measurement.

    Example:
      >>> InitialDrop(depth=1.2, steps=100.0).depth
      1.2
    """

    depth: float
    steps: float


def initial_drop(
    steps: Sequence[float] | np.ndarray,
    values: Sequence[float] | np.ndarray,
    *,
    best: float,
) -> InitialDrop:
    """Depth and length of the initial drop of one class.

    Only what happens before the class is learned counts, that is, before its measure
    has gone half of the way from its start to the best possible value. So instability
    at the end of training is not taken for an initial drop.

    Args:
      steps: Steps of the measurements, increasing, `[T]`; the first is the start.
      values: Loss or recall of the class at these steps, `[T]`.
      best: Best possible value: 0 for a loss, 1 for a recall. Values that lie further
        from it than the start are worse.

    Returns:
      An `InitialDrop`; one of NaN if a value at or before the point where the class is
      learned is not finite, since a run that broke has no drop to speak of.

    Raises:
      ValueError: If the two sequences are empty or differ in length, steps do not
        increase, or `best` is not a finite number.

    Example:
      >>> initial_drop([0, 1, 10, 100], [0.75, 2.0, 1.0, 0.25], best=0.0)
      InitialDrop(depth=1.25, steps=100.0)
      >>> initial_drop([0, 1, 10, 100], [0.25, 0.0, 0.0, 0.75], best=1.0)
      InitialDrop(depth=0.25, steps=100.0)

    References:
      Francazi et al., 2023, section 3: minority initial drop.
    """
    check_number("best", best, math.isfinite, "a finite number")
    steps, values = _check(steps, values)
    distance = np.abs(best - values)
    learned = np.flatnonzero(distance <= distance[0] / 2)
    end = int(learned[0]) if learned.size else len(distance)
    if not np.isfinite(distance[: end + 1]).all():
        return InitialDrop(np.nan, np.nan)
    worse = distance[:end] - distance[0]
    if not (worse > 0).any():
        return InitialDrop(0.0, 0.0)
    last = int(np.flatnonzero(worse > 0)[-1])
    back = float(steps[last + 1] - steps[0]) if last + 1 < len(steps) else np.inf
    return InitialDrop(float(worse.max()), back)


def steps_to_reach(
    steps: Sequence[float] | np.ndarray,
    values: Sequence[float] | np.ndarray,
    target: float,
) -> float:
    """First measured step at which a measure, such as a recall, reaches a target.

    Args:
      steps: Steps of the measurements, increasing, `[T]`.
      values: The measure at these steps, `[T]`.
      target: The value to be reached or exceeded.

    Returns:
      The step, or `inf` if the target is never reached.

    Raises:
      ValueError: If the two sequences are empty or differ in length, or steps do not
        increase.

    Example:
      >>> steps_to_reach([0, 1, 10, 100], [0.1, 0.0, 0.6, 0.8], target=0.5)
      10.0
    """
    steps, values = _check(steps, values)
    reached = np.flatnonzero(values >= target)
    return float(steps[reached[0]]) if reached.size else np.inf


def _check(
    steps: Sequence[float] | np.ndarray, values: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    given, steps = steps, np.asarray(steps, np.float64)
    values = np.asarray(values, np.float64)
    if steps.ndim != 1 or steps.shape != values.shape or not steps.size:
        raise ValueError(
            "steps and values must be sequences of the same length, at least one, got "
            f"shapes {list(steps.shape)} and {list(values.shape)}."
        )
    if (np.diff(steps) <= 0).any():
        raise ValueError(f"steps must increase, got {np.asarray(given).tolist()}.")
    return steps, values
