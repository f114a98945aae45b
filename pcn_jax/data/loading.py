"""Puts a data set together: read, merge, hold out, make imbalanced, summarise."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

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
      config: which data set, which classes, how imbalanced.

    Returns:
      The data set, in host memory.

    Raises:
      FileNotFoundError: if the data is not there; it says how to get it.
      ModuleNotFoundError: if the `data` extra is not installed.
      ValueError: if it is no `DataConfig`, or the data cannot be used as it asks.

    >>> data = load(DataConfig("digits", profile="geometric", ratio=0.5, n_max=64))
    >>> data.class_counts
    array([64, 32, 16,  8,  4,  2,  1,  1,  1,  1])
    >>> data.train.inputs.shape, data.test.inputs.shape
    ((130, 8, 8, 1), (250, 8, 8, 1))
    """
    if not isinstance(config, DataConfig):
        raise ValueError(
            "load takes a DataConfig, such as SETUPS['digits-lt'] or "
            f"DataConfig('cifar10'), got {config!r}"
        )
    source = _read(config)
    groups = _groups(config, source)
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
        name=config.name,
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


def _groups(config: DataConfig, source: Source) -> tuple[tuple[int, ...], ...]:
    num_labels = len(source.label_names)
    groups = config.groups or tuple((label,) for label in range(num_labels))
    if (largest := max(max(group) for group in groups)) >= num_labels:
        raise ValueError(
            f"groups={groups!r} names label {largest}, but {config.name} has labels 0 "
            f"to {num_labels - 1}"
        )
    if len(groups) < 2:
        raise ValueError(
            f"{config.name} has {len(groups)} class; two or more are needed"
        )
    for field, value in (
        ("counts", config.counts),
        ("class_names", config.class_names),
    ):
        if value is not None and len(value) != len(groups):
            raise ValueError(
                f"{field} has {len(value)} entries, but {config.name} has "
                f"{len(groups)} classes: give one for each"
            )
    return groups


def _held_out(source: Source, used: NDArray[np.bool_]) -> tuple[int, int]:
    """Examples of each label for validation and for test."""
    totals = _label_totals(source.test or source.train, source)
    label = min(np.flatnonzero(used), key=lambda label: totals[label])
    smallest = int(totals[label])
    if source.test:
        size, least, where = smallest, 2, "in the test split"
    else:
        size, least, where = source.held_out or smallest // 5, 10, "in all"
    if size < 2:
        absent = "" if smallest else ", or number the labels from 0 without gaps"
        raise ValueError(
            f"label {label} ({source.label_names[label]!r}) has {smallest} examples "
            f"{where}, too few for validation and test: add some, at least {least} are "
            f"needed, or leave the label out with groups{absent}"
        )
    return size // 2, size - size // 2


def _label_totals(split: Split, source: Source) -> NDArray[np.int64]:
    known = split.labels[split.labels >= 0]  # TFDS marks an unlabelled example by -1
    return np.bincount(known, minlength=len(source.label_names))


def _take(split: Split, rows: NDArray[np.int64], class_of: NDArray[np.int32]) -> Split:
    return Split(split.inputs[rows], class_of[split.labels[rows]])
