"""Reads a user's own data set from a .npz file, and says what is wrong with it."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcn_jax.data.dataset import Source, Split

_KEYS = ("x_train", "y_train", "x_test", "y_test")


def read_npz(path: Path) -> Source:
    """Reads arrays under the keys that Keras uses.

    `x_train` is `[n, ...]`: uint8 is kept, other real dtypes become float32. Three axes
    are taken as grey images and get a channel axis. `y_train` is `[n]` or `[n, 1]`,
    integers from 0. `x_test` and `y_test` may be missing, both together.

    Args:
      path: the file, as `np.savez` or `np.savez_compressed` write it.

    Returns:
      labels named "0", "1", ... up to the largest in `y_train`.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: for keys, shapes, dtypes or values that cannot be used.
    """
    arrays = _read_arrays(path)
    train = _split(arrays, "train", path)
    num_labels = int(train.labels.max()) + 1
    names = tuple(str(label) for label in range(num_labels))
    if "x_test" not in arrays:
        return Source(train, None, names)
    test = _split(arrays, "test", path)
    if test.inputs.shape[1:] != train.inputs.shape[1:]:
        raise ValueError(
            f"{path}: an example of x_train has shape {train.inputs.shape[1:]}, one of "
            f"x_test {test.inputs.shape[1:]}: give both the same shape"
        )
    if test.inputs.dtype != train.inputs.dtype:
        raise ValueError(
            f"{path}: x_train is {arrays['x_train'].dtype}, x_test is "
            f"{arrays['x_test'].dtype}: give both the same dtype"
        )
    if (largest := int(test.labels.max())) >= num_labels:
        raise ValueError(
            f"{path}: y_test has label {largest}, but the largest in y_train is "
            f"{num_labels - 1}: leave out examples of labels that training never shows"
        )
    return Source(train, test, names)


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; write it with np.savez(path, x_train=..., "
            "y_train=...), and x_test=..., y_test=... where there is a test split"
        )
    try:
        # np.load leaves a path open when it cannot read it, so it is opened here.
        with path.open("rb") as opened, zipfile.ZipFile(opened):
            file = np.load(opened, allow_pickle=False)
            arrays = {key: file[key] for key in _KEYS if key in file}
            found = list(file)
    except (zipfile.BadZipFile, ValueError) as error:
        raise ValueError(
            f"{path}: cannot be read ({error}); write it with np.savez, and no arrays "
            "of Python objects in it"
        ) from error
    needed = _KEYS if {"x_test", "y_test"} & set(found) else _KEYS[:2]
    if missing := [key for key in needed if key not in arrays]:
        raise ValueError(
            f"{path}: {' and '.join(missing)} missing; it has {found}, and must have "
            "x_train and y_train, and either both or neither of x_test and y_test"
        )
    return arrays


def _split(arrays: dict[str, NDArray[Any]], split: str, path: Path) -> Split:
    x, y = f"x_{split}", f"y_{split}"
    inputs, labels = arrays[x], arrays[y]
    if inputs.ndim < 2 or inputs.size == 0:
        raise ValueError(
            f"{path}: {x} has shape {inputs.shape}; it must be [n, ...], at least two "
            "axes and none of length 0"
        )
    if inputs.dtype.kind not in "buif":
        raise ValueError(f"{path}: {x} is {inputs.dtype}; convert it to real numbers")
    if inputs.ndim == 3:
        inputs = inputs[..., None]
    if inputs.dtype != np.uint8:
        with np.errstate(over="ignore"):  # infinity is reported below
            inputs = inputs.astype(np.float32)
        if bad := int(np.count_nonzero(~np.isfinite(inputs))):
            raise ValueError(
                f"{path}: {x} has {bad} values that are NaN or infinite in float32; "
                "replace them or leave their examples out"
            )
    if labels.shape not in {(len(inputs),), (len(inputs), 1)}:
        raise ValueError(
            f"{path}: {y} has shape {labels.shape}, {x} {len(inputs)} examples: "
            f"y must be [{len(inputs)}], class indices and not one-hot rows"
        )
    if labels.dtype.kind not in "iu":
        nan = labels.dtype.kind == "f" and bool(np.isnan(labels).any())
        raise ValueError(
            f"{path}: {y} is {labels.dtype}{' and holds NaN' if nan else ''}; it must "
            "be integers from 0: leave unlabelled examples out, then .astype(np.int32)"
        )
    if (smallest := int(labels.min())) < 0:
        raise ValueError(
            f"{path}: {y} has label {smallest}; labels must be integers from 0: leave "
            "unlabelled examples out, or renumber"
        )
    if (largest := int(labels.max())) >= len(arrays["x_train"]):
        raise ValueError(
            f"{path}: {y} has label {largest}, more than x_train has examples; "
            "renumber the labels from 0 without gaps"
        )
    return Split(inputs, labels.reshape(-1).astype(np.int32))
