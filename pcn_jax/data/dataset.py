"""What training is given: labelled examples in three splits, and their class counts.

Everything here is NumPy on the host. Class counts are a property of the training split
and of nothing else, so they live on `Dataset`, where no batch size can change them.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pcn_jax.checks import check_numbers, check_shapes, describe
from pcn_jax.data.checks import check_alike, check_examples

_BLOCK = 4096  # rows whose squares are held as float64 at once


class Split(NamedTuple):
    """Labelled examples.

    Attributes:
      inputs: Inputs `[n, ...]`, uint8 where the data set stores bytes, else float32.
      labels: Labels `[n]`, int32.
    """

    inputs: NDArray[Any]
    labels: NDArray[np.int32]


class Source(NamedTuple):
    """All that a data set offers, before classes are merged and made imbalanced.

    Attributes:
      train: Every example outside the official test split, with original labels.
      test: The official test split, or `None` where there is none.
      label_names: One name for each original label.
      held_out: How many examples of each label to hold out for validation and test
        where `test` is `None`; `None` stands for a fifth of the smallest label.
    """

    train: Split
    test: Split | None
    label_names: tuple[str, ...]
    held_out: int | None = None


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set, ready to train on.

    Labels are class indices in all three splits. Validation and test hold the same
    number of examples of every original label, however imbalanced training is.

    Attributes:
      name: The name it was loaded under.
      train: Training examples, in a seeded order.
      validation: For choices such as the learning rate.
      test: For the numbers that are reported.
      class_names: One name for each class.
      mean: Mean of the training inputs over all axes but the last, float32, in their
        own units (bytes 0 to 255 for images).
      std: The standard deviation beside it, float32; 1 where it would be 0, so that
        `(inputs - mean) / std` is always finite.

    Raises:
      ValueError: At construction, if a split is empty, or its inputs are not real,
        finite and like those of the others; if labels are not integers from 0 to the
        last class, or a class has no training examples; or if the mean or the standard
        deviation is not one finite number for each entry of the last axis, the latter
        positive.

    Example:
      >>> x, y = np.array([[1.0], [3.0], [5.0]], np.float32), np.array([0, 1, 0])
      >>> two = Split(x, y)
      >>> data = Dataset("two", two, two, two, ("a", "b"), *input_statistics(x))
      >>> data.num_classes, data.class_counts
      (2, array([2, 1]))
    """

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]

    def __post_init__(self) -> None:
        """Checks what training relies on."""
        for name in ("train", "validation", "test"):
            split = getattr(self, name)
            if not isinstance(split, Split):
                raise ValueError(
                    f"{name} must be a Split(inputs, labels), got {describe(split)}."
                )
            check_examples(
                f"{name}.inputs", split.inputs, f"{name}.labels", split.labels
            )
            check_alike(
                "train.inputs", self.train.inputs, f"{name}.inputs", split.inputs
            )
            if (largest := int(split.labels.max())) >= self.num_classes:
                raise ValueError(
                    f"{name}.labels has label {largest}, but there are "
                    f"{self.num_classes} class_names: number the classes from 0, and "
                    "name each."
                )
        if not self.class_counts.all():
            absent = int(np.argmin(self.class_counts))
            raise ValueError(
                f"Class {absent} ({self.class_names[absent]!r}) has no training "
                "examples: leave its name out, and renumber the labels without gaps."
            )
        channels = self.train.inputs.shape[-1:]
        for name, values in (("mean", self.mean), ("std", self.std)):
            check_shapes(name, values, channels, "as input_statistics gives it")
        check_numbers("mean", self.mean, math.isfinite, "finite")
        check_numbers(
            "std", self.std, lambda x: 0 < x < math.inf, "positive and finite"
        )

    @property
    def num_classes(self) -> int:
        """How many classes there are, `C`."""
        return len(self.class_names)

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """Training examples of each class, int64 `[C]`."""
        counts = np.bincount(self.train.labels, minlength=self.num_classes)
        return counts.astype(np.int64)


def input_statistics(
    inputs: NDArray[Any],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation over all axes but the last.

    Args:
      inputs: Inputs `[n, ..., c]` of any real dtype; sums are taken in float64.

    Returns:
      Two float32 arrays `[c]`, in the units of the inputs. A standard deviation of
      zero is given as 1.

    Example:
      >>> images = np.array([[[0, 7]], [[4, 7]]], dtype=np.uint8)
      >>> input_statistics(images)
      (array([2., 7.], dtype=float32), array([2., 1.], dtype=float32))
    """
    rows = inputs.reshape(-1, inputs.shape[-1])
    mean = rows.mean(axis=0, dtype=np.float64)
    squares = np.zeros_like(mean)
    for start in range(0, len(rows), _BLOCK):
        squares += np.square(rows[start : start + _BLOCK] - mean).sum(axis=0)
    std = np.sqrt(squares / len(rows))
    return mean.astype(np.float32), np.where(std > 0, std, 1).astype(np.float32)
