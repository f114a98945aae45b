"""Strictness lives in the tests, not in the library."""

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib.metadata import version

# JAX reads them once, when it is imported.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Thousands of small programs, each run a few times: most of the time goes to compiling.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 13):
    # The older way to make kernels takes half the time. Later versions may not know the
    # flag, and XLA ends a process whose flags it does not know. Training with XLA as it
    # comes is what `make effects` tests.
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Tests compile the same programs again and again: once a run will do. Workers and
    # commands that tests start inherit the folder.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="pcn_jax-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    atexit.register(
        shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True
    )

import jax
import pytest

# Tracing makes many objects that stay, so looking for others is mostly in vain.
gc.set_threshold(100_000, 20, 100)


@pytest.fixture(autouse=True, scope="module")
def no_implicit_promotion() -> Iterator[None]:
    """Of ranks or dtypes: what the library does, it means."""
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def standard_promotion() -> Iterator[None]:
    with jax.numpy_dtype_promotion("standard"):
        yield
