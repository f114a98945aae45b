"""The embedded data set: real handwritten digits that need no download."""

import numpy as np

from pcn_jax.data.dataset import Source, Split
from pcn_jax.data.optional import import_data_extra


def read_digits() -> Source:
    """The 1,797 digits of the UCI *Optical Recognition of Handwritten Digits* test set.

    scikit-learn ships them. There is no official split of these, so 50 of each digit
    (a digit has 174 to 183) are to be held out.

    Returns:
      A `Source` with inputs `[1797, 8, 8, 1]`, float32, from 0 (paper) to 16 (ink).

    Example:
      >>> read_digits().train.inputs.shape
      (1797, 8, 8, 1)
    """
    bunch = import_data_extra("sklearn.datasets").load_digits()
    train = Split(
        bunch.images[..., None].astype(np.float32), bunch.target.astype(np.int32)
    )
    return Source(train, None, tuple(str(d) for d in range(10)), held_out=50)
