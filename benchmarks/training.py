"""Measures whole training steps of the loop, beside those of SGD.

    python -m benchmarks.training     # twenty minutes

A step draws its batch, gathers and normalises it, takes the gradient and updates the
parameters. Pixels are random, class counts those of the set-ups: neither the time nor
the memory of a step depends on what the images show.
"""

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)

import datetime
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro
from flax import linen as nn
from tabulate import tabulate
from tqdm.auto import tqdm

from pcn_jax.data import Dataset, Split
from pcn_jax.models import CNN, MLP
from pcn_jax.training import (
    ALGORITHMS,
    AlgorithmName,
    Problem,
    TrainConfig,
    TrainState,
    make_train,
)
from pcn_jax.training.runs import processor

_NAMES: tuple[AlgorithmName, ...] = (
    "sgd",
    "sgd+rw",
    "pcnsgd",
    "pcnsgd+clip",
    "pcnsgd+split",
    "sgd+o",
    "pcnsgd+o",
    "pcnsgd+o+clip",
)


class Case(NamedTuple):
    """A set-up, its model and its batch size."""

    setup: str
    model: nn.Module
    counts: tuple[int, ...]
    batch_size: int
    steps: int


_LONG_TAIL = (4944, 2964, 1776, 1068, 636, 384, 228, 144, 84, 48)
_CASES = (
    Case("automobile-truck, CNN", CNN(2), (4900, 700), 128, 20),
    Case("cifar10-multi, CNN", CNN(10), _LONG_TAIL, 1020, 3),
    Case("cifar10-multi, MLP", MLP(10), _LONG_TAIL, 1020, 20),
)


@dataclass(frozen=True)
class Config:
    """What is measured."""

    repeats: int = 15
    """Rounds, of which the median counts."""

    core: int = 0
    """Core on which everything runs."""

    folder: Path = Path("docs/benchmarks")
    """Where the table is written."""


def main() -> None:
    """Reads the command line, measures and writes."""
    config = tyro.cli(Config, description=__doc__)
    os.sched_setaffinity(0, {config.core})
    rows = [
        row
        for case in tqdm(_CASES, unit="case", disable=not sys.stderr.isatty())
        for row in _measure(case, config.repeats)
    ]
    table = tabulate(
        rows,
        headers=["set-up", "batch", "algorithm", "ms a step", "over SGD", "10 to 90 %"],
        tablefmt="github",
        disable_numparse=True,
        colalign=("left", "right", "left", "right", "right", "right"),
    )
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    text = "\n".join(
        [
            "# What a training step costs",
            "",
            f"`python -m benchmarks.training --repeats {config.repeats}`, {today}, one "
            f"core of {processor()}, Python {platform.python_version()}, "
            f"jax {jax.__version__}.",
            "",
            "Whole steps of the training loop: drawing, gathering and normalising the",
            "batch, the gradient, the update. *Over SGD*: the median over "
            f"{config.repeats} rounds",
            "of the ratio to SGD in the same round, with quantiles.",
            "",
            table,
        ]
    )
    config.folder.mkdir(parents=True, exist_ok=True)
    (config.folder / "training.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def _measure(case: Case, repeats: int) -> list[list[Any]]:
    problem = Problem(random_images(case.counts), case.model)
    config = TrainConfig(steps=case.steps, batch_size=case.batch_size)
    runs: dict[str, Callable[..., TrainState]] = {
        ALGORITHMS[name].label: make_train(
            problem, name, learning_rate=1e-3, config=config
        )
        for name in _NAMES
    }
    times: dict[str, list[float]] = {label: [] for label in runs}
    for _ in range(1 + repeats):  # the first compiles
        for label, train in runs.items():
            jax.block_until_ready(train(seed=0).params)
            start = time.perf_counter()
            jax.block_until_ready(train(seed=0).params)
            elapsed = time.perf_counter() - start
            times[label].append(1000 * elapsed / case.steps)
    plain = np.array(times["SGD"][1:])
    rows = []
    for label, measured in times.items():
        taken = np.array(measured[1:])
        low, middle, high = np.quantile(taken / plain, [0.1, 0.5, 0.9])
        rows.append(
            [
                case.setup,
                str(case.batch_size),
                label,
                f"{np.median(taken):.2f}",
                f"{middle:.2f}",
                f"{low:.2f} to {high:.2f}",
            ]
        )
    return rows


def random_images(counts: tuple[int, ...], side: int = 32) -> Dataset:
    """Training data of so many examples a class, and ten of them for everything else.

    Args:
      counts: Examples of each class, `[C]`.
      side: Height and width of the images.

    Returns:
      A data set whose pixels are noise.
    """
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    images = random.integers(0, 256, (len(labels), side, side, 3), dtype=np.uint8)
    train, few = Split(images, labels), Split(images[:10], labels[:10])
    names = tuple(map(str, range(len(counts))))
    mean, std = np.full(3, 128, np.float32), np.full(3, 74, np.float32)
    return Dataset("random images", train, few, few, names, mean, std)


if __name__ == "__main__":
    main()
