"""Means over seeds, paired differences and parts of runs, and how sure they are."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Comparison(NamedTuple):
    """Whether a quantity lies on one side of a limit.

    Attributes:
      on_average: Whether its mean over seeds does.
      surely: Whether its whole interval does.
      refuted: Whether its whole interval is on the other side.
    """

    on_average: bool
    surely: bool
    refuted: bool


class Interval(NamedTuple):
    """A mean over seeds and its 95 % interval; by default of Student's t.

    A bootstrap interval of five seeds covers 84 % of normal data, and not 95 %.

    Attributes:
      mean: The mean.
      low: Lower end.
      high: Upper end.
    """

    mean: float
    low: float
    high: float

    def is_above(self, limit: float) -> Comparison:
        """Whether it lies above a limit.

        Args:
          limit: The limit.

        Example:
          >>> interval([0.1, 0.2, 0.6]).is_above(0.0)
          Comparison(on_average=True, surely=False, refuted=False)
        """
        return Comparison(
            bool(self.mean > limit), bool(self.low > limit), bool(self.high <= limit)
        )

    def is_below(self, limit: float) -> Comparison:
        """Whether it lies below a limit.

        Args:
          limit: The limit.
        """
        return Comparison(
            bool(self.mean < limit), bool(self.high < limit), bool(self.low >= limit)
        )

    def __str__(self) -> str:
        """Three numbers in as many digits as say something."""
        return f"{_short(self.mean)} [{_short(self.low)}, {_short(self.high)}]"


class Spread(NamedTuple):
    """A mean over seeds, and the least and the largest of them.

    Attributes:
      mean: The mean.
      least: The least.
      largest: The largest.
    """

    mean: float
    least: float
    largest: float

    def __str__(self) -> str:
        """Three numbers in as many digits as say something."""
        return f"{_short(self.mean)} ({_short(self.least)} to {_short(self.largest)})"


def spread(values: Sequence[float] | np.ndarray) -> Spread:
    """What runs differ by, as it is.

    Args:
      values: Of each seed, `[S]`.

    Returns:
      A `Spread`.

    Example:
      >>> print(spread([0.25, 0.5, 0.75]))
      0.5 (0.25 to 0.75)
    """
    values = np.asarray(values, np.float64)
    return Spread(float(values.mean()), float(values.min()), float(values.max()))


def interval(values: Sequence[float] | np.ndarray) -> Interval:
    """The mean of values, one a seed.

    Args:
      values: Of each seed, `[S]`; finite.

    Returns:
      An `Interval`.

    Example:
      >>> interval([0.25, 0.25, 0.25])
      Interval(mean=0.25, low=0.25, high=0.25)
    """
    values = np.asarray(values, np.float64)
    mean = float(values.mean())
    if len(values) < 2 or np.ptp(values) == 0:
        return Interval(mean, mean, mean)
    half = float(stats.sem(values) * stats.t.ppf(0.975, len(values) - 1))
    return Interval(mean, mean - half, mean + half)


def proportion(count: int, total: int) -> Interval:
    """A part of all runs and its exact 95 % interval, of Clopper and Pearson.

    Args:
      count: Of the runs in which something happened.
      total: Of all runs.

    Returns:
      An `Interval`.

    Example:
      >>> print(proportion(3, 40))
      0.075 [0.0157, 0.204]
    """
    found = stats.binomtest(count, total)
    low, high = found.proportion_ci(0.95)
    return Interval(float(found.statistic), float(low), float(high))


def difference(
    ours: Sequence[float] | np.ndarray, theirs: Sequence[float] | np.ndarray
) -> Interval:
    """The mean of paired differences: both of a pair start alike and see the same data.

    Args:
      ours: Of each seed, `[S]`.
      theirs: Of the same seeds, `[S]`.

    Returns:
      An `Interval` of `ours − theirs`.

    Example:
      >>> difference([2.0, 3.0], [1.0, 2.0]).mean
      1.0
    """
    return interval(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64))


def factor(
    ours: Sequence[float] | np.ndarray, theirs: Sequence[float] | np.ndarray
) -> Interval:
    """The geometric mean of paired ratios.

    Args:
      ours: Of each seed, `[S]`; positive.
      theirs: Of the same seeds, `[S]`; positive.

    Returns:
      An `Interval` of `ours / theirs`.

    Example:
      >>> round(factor([2.0, 8.0], [1.0, 1.0]).mean, 6)
      4.0
    """
    return Interval(*map(math.exp, difference(np.log(ours), np.log(theirs))))


def _short(value: float) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e3:
        return f"{value:.3g}"
    return f"{value:.0f}" if abs(value) < 1e5 and abs(value) >= 1e3 else f"{value:.1e}"
