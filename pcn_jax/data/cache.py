"""Keeps decoded arrays on disk, because decoding CIFAR-10's images takes 20 seconds."""

import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def cache_dir() -> Path:
    """`$PCN_JAX_CACHE`, else `~/.cache/pcn_jax`."""
    chosen = os.environ.get("PCN_JAX_CACHE")
    return Path(chosen or "~/.cache/pcn_jax").expanduser()


def read_cached(key: str) -> dict[str, NDArray[Any]] | None:
    """The arrays stored under a key; `None` if there are none that can be read."""
    try:
        with (cache_dir() / f"{key}.npz").open("rb") as opened:
            return dict(np.load(opened, allow_pickle=False))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def write_cached(key: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Stores arrays under a key, whole or not at all.

    Another process never sees half a file: it is written beside its place and moved
    there. A cache that cannot be written (read-only, full) is left alone without an
    error, since all that is lost is time.
    """
    try:
        cache_dir().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_dir()) as folder:
            unfinished = Path(folder, "arrays.npz")
            np.savez(unfinished, allow_pickle=False, **arrays)
            os.replace(unfinished, cache_dir() / f"{key}.npz")
    except OSError:
        return
