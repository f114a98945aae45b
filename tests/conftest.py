"""Strictness lives in the tests, not in the library."""

import os
from collections.abc import Iterator

# JAX reads it once, when it is imported.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def no_implicit_promotion() -> Iterator[None]:
    """Of ranks or dtypes: what the library does, it means."""
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield
