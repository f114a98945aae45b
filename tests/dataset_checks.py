"""What the tests of data sets have in common."""

import numpy as np

from pcn_jax.data import Dataset, Split


def splits(data: Dataset) -> tuple[Split, Split, Split]:
    return data.train, data.validation, data.test


def class_totals(split: Split, num_classes: int) -> list[int]:
    """Examples of each class."""
    return list(np.bincount(split.labels, minlength=num_classes))


def assert_disjoint(data: Dataset) -> None:
    """Assumes that every example of the data set has inputs of its own."""
    rows = [row.tobytes() for split in splits(data) for row in split.inputs]
    assert len(set(rows)) == len(rows)
