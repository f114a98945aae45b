"""Takes a user's own arrays, and says what is wrong with them."""

from typing import Any

import numpy as np

from pcn_jax.data.checks import check_alike, check_examples
from pcn_jax.data.dataset import Source, Split


def to_source(
    x_train: Any, y_train: Any, x_test: Any = None, y_test: Any = None
) -> Source:
    """All that there is to choose from, with labels named "0", "1", ...

    Args:
      x_train: Inputs `[n, ...]`: uint8 is kept, other real dtypes become float32.
        Three axes are taken as grey images and get a channel axis.
      y_train: Their labels, integers from 0, `[n]` or `[n, 1]`.
      x_test: The same of the test split, or `None`.
      y_test: The same, or `None`.

    Returns:
      The arrays as a `Source`, with or without a test split.

    Raises:
      ValueError: For shapes, dtypes or values that cannot be used.
    """
    train = _split("train", x_train, y_train)
    num_labels = int(train.labels.max()) + 1
    if num_labels > len(train.labels):
        raise ValueError(
            f"y_train has label {num_labels - 1}, more than x_train has examples; "
            "renumber the labels from 0 without gaps."
        )
    names = tuple(str(label) for label in range(num_labels))
    if x_test is None and y_test is None:
        return Source(train, None, names)
    if x_test is None or y_test is None:
        missing = "x_test" if x_test is None else "y_test"
        raise ValueError(f"{missing} missing: give both of x_test and y_test, or none.")
    test = _split("test", x_test, y_test)
    check_alike("x_train", train.inputs, "x_test", test.inputs)
    if (largest := int(test.labels.max())) >= num_labels:
        raise ValueError(
            f"y_test has label {largest}, but the largest in y_train is "
            f"{num_labels - 1}: leave out examples of labels that training never shows."
        )
    return Source(train, test, names)


def _split(split: str, x: Any, y: Any) -> Split:
    inputs, labels = np.asarray(x), np.asarray(y)
    if inputs.ndim == 3:
        inputs = inputs[..., None]
    if inputs.dtype.kind in "buif" and inputs.dtype != np.uint8:
        with np.errstate(over="ignore"):  # infinity is reported by the check
            inputs = inputs.astype(np.float32)
    if labels.shape[1:] == (1,):
        labels = labels[:, 0]
    check_examples(f"x_{split}", inputs, f"y_{split}", labels)
    return Split(inputs, labels.astype(np.int32))
