"""Reads a user's own arrays from a .npz file."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcn_jax.data.arrays import to_source
from pcn_jax.data.dataset import Source

_KEYS = ("x_train", "y_train", "x_test", "y_test")


def read_npz(path: Path) -> Source:
    """Reads arrays under the keys that Keras uses: those that `to_source` takes.

    `x_test` and `y_test` may be missing, both together.

    Args:
      path: The file, as `np.savez` or `np.savez_compressed` write it.

    Returns:
      A `Source` with labels named "0", "1", ... up to the largest in `y_train`.

    Raises:
      FileNotFoundError: If there is no such file.
      ValueError: For keys, shapes, dtypes or values that cannot be used.
    """
    arrays = _read_arrays(path)
    try:
        return to_source(**arrays)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; write it with np.savez(path, x_train=..., "
            "y_train=...), and x_test=..., y_test=... where there is a test split."
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
            "of Python objects in it."
        ) from error
    needed = _KEYS if {"x_test", "y_test"} & set(found) else _KEYS[:2]
    if missing := [key for key in needed if key not in arrays]:
        raise ValueError(
            f"{path}: {' and '.join(missing)} missing; it has {found}, and must have "
            "x_train and y_train, and either both or neither of x_test and y_test."
        )
    return arrays
