"""Data sets with a chosen class imbalance, as NumPy arrays on the host.

`load` reads what a `DataConfig` describes; `from_arrays` does the same with arrays of
your own.

Example:
  >>> from pcn_jax.data import SETUPS, load
  >>> load(SETUPS["digits-lt"]).class_counts
  array([120,  72,  43,  26,  16,   9,   6,   3,   2,   2])
"""

from pcn_jax.data.config import DataConfig
from pcn_jax.data.dataset import Dataset, Split, input_statistics
from pcn_jax.data.imbalance import exponential_counts, geometric_counts, step_counts
from pcn_jax.data.loading import from_arrays, load
from pcn_jax.data.setups import SETUPS

__all__ = [
    "SETUPS",
    "DataConfig",
    "Dataset",
    "Split",
    "exponential_counts",
    "from_arrays",
    "geometric_counts",
    "input_statistics",
    "load",
    "step_counts",
]
