"""What data have to be, whether read from a file or given as arrays."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcn_jax.checks import describe


def check_examples(x: str, inputs: Any, y: str, labels: Any) -> None:
    """Refuses examples that cannot be learned from.

    Args:
      x: What the inputs are called.
      inputs: The inputs, `[n, ...]`, real and finite.
      y: What the labels are called.
      labels: The labels, integers `[n]` from 0.
    """
    for name, array in ((x, inputs), (y, labels)):
        if not (hasattr(array, "shape") and hasattr(array, "dtype")):
            raise ValueError(f"{name} must be an array, got {describe(array)}.")
    if len(inputs.shape) < 2 or inputs.size == 0:
        raise ValueError(
            f"{x} has shape {inputs.shape}; it must be [n, ...], at least two axes and "
            "none of length 0."
        )
    if not np.can_cast(inputs.dtype, np.float32, "same_kind"):
        raise ValueError(f"{x} is {inputs.dtype}; convert it to real numbers.")
    if inputs.dtype.kind not in "bui" and not (finite := np.isfinite(inputs)).all():
        raise ValueError(
            f"{x} has {np.count_nonzero(~finite)} values that are NaN or infinite in "
            f"{inputs.dtype}; replace them or leave their examples out."
        )
    if labels.shape != (len(inputs),):
        raise ValueError(
            f"{y} has shape {labels.shape}, {x} {len(inputs)} examples: {y} must be "
            f"[{len(inputs)}], class indices and not one-hot rows."
        )
    if labels.dtype.kind not in "iu":
        nan = labels.dtype.kind == "f" and bool(np.isnan(labels).any())
        raise ValueError(
            f"{y} is {labels.dtype}{' and holds NaN' if nan else ''}; it must be "
            "integers from 0: leave unlabelled examples out, then .astype(np.int32)."
        )
    if (smallest := int(labels.min())) < 0:
        raise ValueError(
            f"{y} has label {smallest}; labels must be integers from 0: leave "
            "unlabelled examples out, or renumber."
        )


def check_alike(
    x: str, inputs: NDArray[Any], other_x: str, others: NDArray[Any]
) -> None:
    """Refuses inputs of two splits that a model could not take alike."""
    if others.shape[1:] != inputs.shape[1:]:
        raise ValueError(
            f"An example of {x} has shape {inputs.shape[1:]}, one of {other_x} "
            f"{others.shape[1:]}: give both the same shape."
        )
    if others.dtype != inputs.dtype:
        raise ValueError(
            f"{x} is taken as {inputs.dtype}, {other_x} as {others.dtype}: give both "
            "the same dtype."
        )
