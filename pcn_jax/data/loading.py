"""Puts a data set together: read, merge, hold out, make imbalanced, summarise."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcn_jax.data.arrays import to_source
from pcn_jax.data.config import DataConfig
from pcn_jax.data.dataset import Dataset, Source, Split, input_statistics
from pcn_jax.data.digits import read_digits
from pcn_jax.data.imbalance import choose, label_counts
from pcn_jax.data.npz import read_npz
from pcn_jax.data.tfds import read_tfds


def load(config: DataConfig) -> Dataset:
    """Loads the data set that a configuration describes.

    Validation and test are the official test split, with the same number of examples
    of every original label, half for each. Where there is no official test split they
    are held out first: 25 and 25 of each digit of `digits`, else together a fifth of
    the smallest label, of each label. Training gets what the profile asks for of the
    rest. All choices depend on `config.seed` only.

    Args:
      config: Which data set, which classes, how imbalanced.

    Returns:
      The data set, in host memory.

    Raises:
      FileNotFoundError: If the data is not there; it says how to get it.
      ModuleNotFoundError: If the `data` extra is not installed.
      ValueError: If it is no `DataConfig`, or the data cannot be used as it asks.

    Example:
      >>> data = load(DataConfig("digits", profile="geometric", ratio=0.5, n_max=64))
      >>> data.class_counts
      array([64, 32, 16,  8,  4,  2,  1,  1,  1,  1])
      >>> data.train.inputs.shape, data.test.inputs.shape
      ((130, 8, 8, 1), (250, 8, 8, 1))
    """
    _check_config(config)
    return _assemble(_read(config), config, config.name)


def from_arrays(
    x_train: Any,
    y_train: Any,
    *,
    x_test: Any = None,
    y_test: Any = None,
    config: DataConfig | None = None,
    name: str = "own data",
) -> Dataset:
    """Makes a data set of your own arrays, as `load` does of a .npz file.

    Validation and test are of equally many examples of each label: of `x_test` half
    each where there is one, and otherwise held out of `x_train`, together a fifth of
    the smallest label, of each label. Training gets what the profile asks for of the
    rest. With splits of your own call `Dataset`, and `input_statistics` for the mean
    and the standard deviation.

    Args:
      x_train: Inputs `[n, ...]`: uint8 is kept, other real dtypes become float32. Three
        axes are taken as grey images and get a channel axis.
      y_train: Their labels, integers from 0, `[n]` or `[n, 1]`.
      x_test: Inputs of a test split, or `None`.
      y_test: Their labels, or `None`.
      config: How imbalanced, which classes, and the seed; `None` takes all that is
        not held out. Which data to read (`name`, `data_dir`, `label_feature`) is not
        used.
      name: What the data set is called.

    Returns:
      The data set, in host memory.

    Raises:
      ValueError: If the arrays cannot be used as the configuration asks.

    Example:
      >>> x, y = np.arange(120.0).reshape(60, 2), np.repeat([0, 1, 2], 20)
      >>> config = DataConfig(profile="geometric", ratio=0.5)
      >>> data = from_arrays(x, y, config=config)
      >>> data.class_counts, data.test.inputs.shape
      (array([16,  8,  4]), (6, 2))
    """
    config = DataConfig() if config is None else config
    _check_config(config)
    return _assemble(to_source(x_train, y_train, x_test, y_test), config, name)


def _check_config(config: Any) -> None:
    if not isinstance(config, DataConfig):
        raise ValueError(
            "config must be a DataConfig, such as SETUPS['digits-lt'] or "
            f"DataConfig('cifar10'), got {config!r}."
        )


def _assemble(source: Source, config: DataConfig, name: str) -> Dataset:
    """Merges classes, holds examples out and chooses those to train on."""
    groups = _groups(config, source, name)
    names = tuple("+".join(source.label_names[k] for k in group) for group in groups)
    class_of = np.full(len(source.label_names), -1, np.int32)
    for index, group in enumerate(groups):
        class_of[list(group)] = index

    used = class_of >= 0
    train, test = source.train, source.test or source.train
    validation_size, test_size = _held_out(source, used)
    skip = 0 if source.test else validation_size + test_size
    counts = label_counts(
        config,
        _label_totals(train, source) - skip,
        groups=groups,
        label_names=source.label_names,
    )
    rows = choose(train.labels, counts, seed=config.seed, skip=skip)
    rows = np.random.default_rng(config.seed).permutation(rows)
    test_rows = choose(test.labels, used * test_size, seed=config.seed)
    validation_rows = choose(
        test.labels, used * validation_size, seed=config.seed, skip=test_size
    )

    inputs = train.inputs[rows]
    mean, std = input_statistics(inputs)
    return Dataset(
        name=name,
        train=Split(inputs, class_of[train.labels[rows]]),
        validation=_take(test, validation_rows, class_of),
        test=_take(test, test_rows, class_of),
        class_names=config.class_names or names,
        mean=mean,
        std=std,
    )


def _read(config: DataConfig) -> Source:
    if config.name == "digits":
        return read_digits()
    if config.is_npz:
        return read_npz(Path(config.name).expanduser())
    return read_tfds(config.name, config.data_dir, config.label_feature)


def _groups(
    config: DataConfig, source: Source, name: str
) -> tuple[tuple[int, ...], ...]:
    num_labels = len(source.label_names)
    groups = config.groups or tuple((label,) for label in range(num_labels))
    if (largest := max(max(group) for group in groups)) >= num_labels:
        raise ValueError(
            f"groups={groups!r} names label {largest}, but {name} has labels 0 "
            f"to {num_labels - 1}."
        )
    if len(groups) < 2:
        raise ValueError(f"{name} has {len(groups)} class; two or more are needed.")
    for field, value in (
        ("counts", config.counts),
        ("class_names", config.class_names),
    ):
        if value is not None and len(value) != len(groups):
            raise ValueError(
                f"{field} has {len(value)} entries, but {name} has "
                f"{len(groups)} classes: give one for each."
            )
    return groups


def _held_out(source: Source, used: NDArray[np.bool_]) -> tuple[int, int]:
    """Examples of each label for validation and for test."""
    totals = _label_totals(source.test or source.train, source)
    label = min(np.flatnonzero(used), key=lambda label: totals[label])
    smallest = int(totals[label])
    if source.test:
        size, where, least = smallest, "in the test split", "2 are needed"
    else:
        size, where = source.held_out or smallest // 5, "in all"
        least = (
            "10 are needed, or with a test split (x_test, y_test) 2 in it and 1 for "
            "training"
        )
    if size < 2:
        absent = "" if smallest else ", or number the labels from 0 without gaps"
        raise ValueError(
            f"Label {label} ({source.label_names[label]!r}) has {smallest} examples "
            f"{where}, too few for validation and test: add some, at least {least}, or "
            f"leave the label out with groups{absent}."
        )
    return size // 2, size - size // 2


def _label_totals(split: Split, source: Source) -> NDArray[np.int64]:
    known = split.labels[split.labels >= 0]  # TFDS marks an unlabelled example by -1
    return np.bincount(known, minlength=len(source.label_names))


def _take(split: Split, rows: NDArray[np.int64], class_of: NDArray[np.int32]) -> Split:
    return Split(split.inputs[rows], class_of[split.labels[rows]])
