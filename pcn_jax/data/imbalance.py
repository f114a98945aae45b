"""Turns an imbalance profile into class counts, and counts into a seeded subset.

`C` is the number of classes, `L` the number of original labels, class 0 the largest.
"""

import bisect
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pcn_jax.checks import check_positive_integer
from pcn_jax.data.config import DataConfig, check_profile

Counts = NDArray[np.int64]


def geometric_counts(num_classes: int, n_max: int, *, ratio: float) -> Counts:
    """`n_l = n_max · ratio^l`, rounded to the nearest, at least 1.

    Returns:
      Counts `[C]`, int64.

    Raises:
      ValueError: If `num_classes` or `n_max` is not a positive integer, or `ratio` not
        above 0 and at most 1.

    Example:
      >>> geometric_counts(4, 5000, ratio=0.6)
      array([5000, 3000, 1800, 1080])

    References:
      Francazi et al., 2023; their code rounds to multiples of the batch's class sizes
      as well, which is not done here.
    """
    check_positive_integer("num_classes", num_classes)
    check_profile(n_max=n_max, ratio=ratio)
    counts: Counts = np.rint(n_max * ratio ** np.arange(num_classes)).astype(np.int64)
    return np.maximum(counts, 1)


def exponential_counts(
    num_classes: int, n_max: int, *, imbalance_factor: float
) -> Counts:
    """`n_l = n_max · IF^(-l/(C-1))`, rounded down, at least 1.

    The long-tailed profile of the literature.

    Returns:
      Counts `[C]`, int64.

    Raises:
      ValueError: If `num_classes` or `n_max` is not a positive integer, or
        `imbalance_factor` not finite and 1 or more.

    Example:
      >>> exponential_counts(10, 5000, imbalance_factor=100)
      array([5000, 2997, 1796, 1077,  645,  387,  232,  139,   83,   50])

    References:
      Cui et al., `Class-Balanced Loss Based on Effective Number of Samples
      <https://arxiv.org/abs/1901.05555>`_, CVPR 2019; Cao et al., `Learning Imbalanced
      Datasets with Label-Distribution-Aware Margin Loss
      <https://arxiv.org/abs/1906.07413>`_, NeurIPS 2019.
    """
    check_positive_integer("num_classes", num_classes)
    check_profile(n_max=n_max, imbalance_factor=imbalance_factor)
    exponents = np.arange(num_classes) / max(num_classes - 1, 1)
    return _floor(n_max / imbalance_factor**exponents)


def step_counts(num_classes: int, n_max: int, *, imbalance_factor: float) -> Counts:
    """`n_max` for the first `C // 2` classes, `n_max / IF`, rounded down, for the rest.

    The step profile; at least 1.

    Returns:
      Counts `[C]`, int64.

    Raises:
      ValueError: If `num_classes` or `n_max` is not a positive integer, or
        `imbalance_factor` not finite and 1 or more.

    Example:
      >>> step_counts(4, 5000, imbalance_factor=100)
      array([5000, 5000,   50,   50])

    References:
      Buda et al., 2018; Cao et al., 2019.
    """
    check_positive_integer("num_classes", num_classes)
    check_profile(n_max=n_max, imbalance_factor=imbalance_factor)
    minority = np.arange(num_classes) >= num_classes // 2
    return _floor(np.where(minority, n_max / imbalance_factor, n_max))


def label_counts(
    config: DataConfig,
    available: NDArray[np.integer],
    *,
    groups: Sequence[Sequence[int]],
    label_names: Sequence[str],
) -> Counts:
    """How many training examples each original label gives.

    Args:
      config: The profile; its counts are per original label.
      available: Examples there are of each label, `[L]`.
      groups: The labels of each class, in class order.
      label_names: Name of each label, `[L]`, for the error.

    Returns:
      Counts `[L]`, int64, zero for a label that belongs to no class.

    Raises:
      ValueError: If a label has fewer examples than it is asked for, or none.
    """
    labels = np.concatenate([np.asarray(group) for group in groups])
    class_of = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    have = available[labels]
    if config.profile == "natural":
        asked = np.maximum(have, 1)
    elif config.counts is not None:
        asked = np.asarray(config.counts, np.int64)[class_of]
    else:
        profile = _profile(config, len(groups))
        n_max = config.n_max or _largest_n_max(lambda n: profile(n)[class_of], have)
        asked = profile(n_max)[class_of]
    if np.any(short := asked > have):
        first = int(np.argmax(short))
        raise ValueError(
            f"Class {class_of[first]} asks for {asked[first]} training examples of "
            f"label {labels[first]} ({label_names[labels[first]]!r}), but only "
            f"{have[first]} are available: ask for fewer with n_max or counts, or "
            "leave the label out with groups."
        )
    counts = np.zeros(len(available), np.int64)
    counts[labels] = asked
    return counts


def choose(
    labels: NDArray[np.integer], counts: Counts, *, seed: int, skip: int = 0
) -> NDArray[np.int64]:
    """Indices of a seeded subset with the given number of examples of each label.

    Every label has its own random order, which depends on the seed and the label only:
    a smaller subset is part of a larger one, and subsets with and without the first
    `skip` examples do not overlap.

    Args:
      labels: Original labels, `[n]`.
      counts: How many to take of each, `[L]`; not more than there are after `skip`.
      seed: 0 or more.
      skip: How many examples of each label to leave out first.

    Returns:
      Indices into `labels`, int64, label after label.

    Example:
      >>> chosen = choose(np.array([0, 1, 0, 1, 0]), np.array([2, 1]), seed=0)
      >>> np.array([0, 1, 0, 1, 0])[chosen]
      array([0, 0, 1])
    """
    chosen = [
        np.random.default_rng((seed, label)).permutation(
            np.flatnonzero(labels == label)
        )[skip : skip + count]
        for label, count in enumerate(counts)
    ]
    return np.concatenate(chosen).astype(np.int64)


def _floor(counts: NDArray[np.floating]) -> Counts:
    # 100 / (1 / 0.29) is 28.999999999999996 in floating point, and must give 29.
    whole: Counts = np.floor(counts * (1 + 1e-12)).astype(np.int64)
    return np.maximum(whole, 1)


def _profile(config: DataConfig, num_classes: int) -> Callable[[int], Counts]:
    if config.ratio is not None:
        ratio = config.ratio
        return lambda n_max: geometric_counts(num_classes, n_max, ratio=ratio)
    if config.imbalance_factor is not None:
        factor = config.imbalance_factor
        shape = exponential_counts if config.profile == "exponential" else step_counts
        return lambda n_max: shape(num_classes, n_max, imbalance_factor=factor)
    return lambda n_max: np.full(num_classes, n_max, np.int64)


def _largest_n_max(
    asked: Callable[[int], Counts], available: NDArray[np.integer]
) -> int:
    """The largest `n` for which `asked(n)`, which grows with `n`, can be given."""
    candidates = range(1, int(available.max()) + 1)
    fitting = bisect.bisect_left(
        candidates, True, key=lambda n: bool(np.any(asked(n) > available))
    )
    return max(fitting, 1)
