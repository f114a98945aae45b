"""Says which examples a run trains on, in one frozen record that checks itself.

The strings under the fields are the command line's help.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

from pcn_jax.checks import (
    check_choice,
    check_integer,
    check_number,
    check_positive_integer,
)

Profile = Literal["natural", "balanced", "geometric", "exponential", "step", "counts"]

# Of each profile: the field it needs, and whether `n_max` may go with it.
_NEEDED: dict[Profile, tuple[str | None, bool]] = {
    "natural": (None, False),
    "balanced": (None, True),
    "geometric": ("ratio", True),
    "exponential": ("imbalance_factor", True),
    "step": ("imbalance_factor", True),
    "counts": ("counts", False),
}


@dataclass(frozen=True)
class DataConfig:
    """Which data set, which classes, how imbalanced.

    Counts are per *original* label: a class merged from `k` labels gets `k` times as
    many examples. A profile whose count for a class falls below one gives it one.

    Raises:
      ValueError: At construction, for a value that is not allowed, a field the profile
        needs and lacks, or one that it would ignore.

    Example:
      >>> DataConfig(profile="geometric", ratio=0.6, n_max=100).ratio
      0.6
      >>> DataConfig(profile="step", ratio=0.6, imbalance_factor=10)
      Traceback (most recent call last):
          ...
      ValueError: ratio=0.6 does not belong to profile 'step', which would ignore it...
    """

    name: str = "digits"
    """Data set: digits (embedded, no download), a TFDS name such as cifar10,
    or a .npz file with x_train, y_train and perhaps x_test, y_test."""

    data_dir: Path | None = None
    """Folder of prepared TFDS data sets; the others do not use it.
    Without it: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""

    label_feature: str = "label"
    """TFDS feature of the label; coarse_label: CIFAR-100's superclasses."""

    groups: tuple[tuple[int, ...], ...] | None = None
    """Original labels of each class, in class order; others are dropped.
    Without it each label is its own class."""

    class_names: tuple[str, ...] | None = None
    """Names of the classes, in class order.
    Without it the names of their labels, joined by +."""

    profile: Profile = "natural"
    """Training examples of class l, for each of its original labels:
    natural: all there are;
    balanced: n_max;
    geometric: n_max * ratio^l, rounded;
    exponential: n_max * imbalance_factor^(-l/(C-1)), rounded down;
    step: n_max, n_max / imbalance_factor from class C//2 on, rounded down;
    counts: as listed."""

    ratio: float | None = None
    """Geometric: count of a class over that of the class before it."""

    imbalance_factor: float | None = None
    """Exponential and step: largest count over smallest count."""

    counts: tuple[int, ...] | None = None
    """Counts: the count of each class."""

    n_max: int | None = None
    """Count of class 0, the largest.
    Without it as many as the data allows for the whole profile."""

    seed: int = 0
    """Chooses the examples and their order; training has its own seed."""

    def __post_init__(self) -> None:
        """Checks every field that can be checked without the data."""
        self._check_name()
        self._check_classes()
        self._check_profile()
        check_integer("seed", self.seed, lambda x: x >= 0, "an integer of 0 or more")

    @property
    def is_npz(self) -> bool:
        """Whether `name` is a path of the user's own file."""
        return self.name.endswith(".npz")

    def _check_name(self) -> None:
        tfds_name = re.fullmatch(r"\w+(/[\w.-]+)?", self.name) is not None
        must = "be 'digits', a path ending in .npz, or a TFDS name such as 'cifar10'"
        _check("name", self.name, self.is_npz or tfds_name, must)
        if (self.name == "digits" or self.is_npz) and self.label_feature != "label":
            raise ValueError(
                f"label_feature={self.label_feature!r} does not belong to data set "
                f"{self.name!r}, which has one kind of label: remove it."
            )

    def _check_classes(self) -> None:
        if self.groups is not None:
            whole = len(self.groups) >= 2 and all(self.groups)
            _check("groups", self.groups, whole, "be two or more, none of them empty")
            for label, uses in Counter(chain(*self.groups)).items():
                _check("groups", self.groups, label >= 0, "hold labels of 0 or more")
                once = f"hold each label once (label {label} is there {uses} times)"
                _check("groups", self.groups, uses == 1, once)
        a_class = {
            "groups": self.groups,
            "class_names": self.class_names,
            "counts": self.counts,
        }
        sizes = {field: len(value) for field, value in a_class.items() if value}
        if len(set(sizes.values())) > 1:
            raise ValueError(
                f"Lengths {sizes} disagree: give one entry for each class."
            )

    def _check_profile(self) -> None:
        check_choice("profile", self.profile, Profile)
        needed, takes_n_max = _NEEDED[self.profile]
        belongs = {needed} | ({"n_max"} if takes_n_max else set())
        for field in ("ratio", "imbalance_factor", "counts", "n_max"):
            value = getattr(self, field)
            if value is None and field == needed:
                raise ValueError(f"profile {self.profile!r} needs {field}: give it.")
            if value is not None and field not in belongs:
                option = field.replace("_", "-")
                raise ValueError(
                    f"{field}={value!r} does not belong to profile {self.profile!r}, "
                    "which would ignore it: remove it (on the command line with "
                    f"--data.{option} None) or choose another profile."
                )
        check_profile(
            n_max=self.n_max, ratio=self.ratio, imbalance_factor=self.imbalance_factor
        )
        if self.counts is not None:
            _check("counts", self.counts, len(self.counts) >= 2, "be two or more")
            for index, count in enumerate(self.counts):
                check_positive_integer(f"counts[{index}]", count)


def check_profile(
    *,
    n_max: int | None = None,
    ratio: float | None = None,
    imbalance_factor: float | None = None,
) -> None:
    """Refuses numbers that make no profile, of those that there are."""
    if ratio is not None:
        check_number("ratio", ratio, lambda x: 0 < x <= 1, "above 0 and at most 1")
    if imbalance_factor is not None:
        allowed = "finite and 1 or more (largest count over smallest)"
        check_number(
            "imbalance_factor", imbalance_factor, lambda x: 1 <= x < math.inf, allowed
        )
    if n_max is not None:
        check_positive_integer("n_max", n_max)


def _check(field: str, value: object, ok: bool, must: str) -> None:
    if not ok:
        raise ValueError(f"{field} must {must}, got {value!r}.")
