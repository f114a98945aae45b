"""Measures the frozen path on a ResNet-32 with batch normalisation.

    python -m benchmarks.batch_norm                    # what is missing; an hour
    python -m benchmarks.batch_norm --fresh times      # and some of it again
    python -m benchmarks.batch_norm --draw             # the page, from what is kept

What it costs, how far its norms are from the true ones, and what becomes of that when a
net is trained: on scikit-learn's digits, with every path on the same batches. Times are
to be taken with the settings of malloc that docs/balanced_gradient.md names.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)

import datetime
import functools
import json
import platform
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
import optax
import tyro
from tqdm.auto import tqdm

import pcn_jax
from benchmarks.batch_norm_report import BATCH, NO_BALANCE, PATHS, RATES, page
from benchmarks.training import random_images
from experiments.kept import write_whole
from pcn_jax import balanced
from pcn_jax.data import SETUPS, load
from pcn_jax.models import ResNet32
from pcn_jax.training import Problem
from pcn_jax.training.runs import processor

Part = Literal["times", "norms", "recalls"]
_SEARCH_SEED = 100
_RULE = pcn_jax.weights.inverse_clipped_norm(0.1)


@dataclass(frozen=True)
class Config:
    """What is measured."""

    repeats: int = 7
    """Rounds, of which the median counts."""

    steps: int = 60
    """Steps of training."""

    seeds: int = 5
    """Runs of each path."""

    core: int = 0
    """Core on which everything runs."""

    folder: Path = Path("docs/benchmarks")
    """Where results and the page are written."""

    fresh: tuple[Part, ...] = ()
    """What is measured again."""

    draw: bool = False
    """Only write the page again."""


class Setting(NamedTuple):
    """Data, and how batches are drawn."""

    setup: str
    sampler: str
    batch_size: int

    @property
    def name(self) -> str:
        """What it is called in tables."""
        return f"{self.setup}, {self.sampler}, {self.batch_size}"


_SAMPLERS: dict[str, Callable[..., pcn_jax.Sampler]] = {
    "oversampled": pcn_jax.oversampled,
    "stratified": pcn_jax.stratified,
    "uniform": pcn_jax.uniform,
}
# By the masked path a training with ten classes takes minutes: not in every setting.
_TRAINED = (
    Setting("digits-halves", "stratified", 64),
    Setting("digits-lt", "oversampled", 100),
)
_FOLLOWED = (*_TRAINED, Setting("digits-lt", "uniform", 100))


def main() -> None:
    """Reads the command line, measures and writes."""
    config = tyro.cli(Config, description=__doc__)
    os.sched_setaffinity(0, {config.core})
    config.folder.mkdir(parents=True, exist_ok=True)
    path = config.folder / "batch_norm.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results: dict[str, dict[str, Any]] = {
        name: {} if name in config.fresh else kept.get(name, {})
        for name in get_args(Part)
    }
    if not config.draw:
        for name, key, measure in tqdm(
            list(_tasks(config)), disable=not sys.stderr.isatty()
        ):
            if key not in results[name]:
                results[name][key] = {
                    **measure(),
                    "steps": config.steps,
                    "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
                    "on": f"{processor()}, Python {platform.python_version()}, "
                    f"jax {jax.__version__}",
                }
                write_whole(path, json.dumps(results, indent=1) + "\n")
    write_whole(config.folder / "batch_norm.md", page(results))


Task = tuple[Part, str, Callable[[], dict[str, Any]]]
"""Where its results are kept, and what finds them."""


def _tasks(config: Config) -> Iterator[Task]:
    for side, number in ((8, 2), (8, 10), (32, 2), (32, 10), (32, 100)):
        name = f"{side} x {side}, {number} classes"
        yield "times", name, functools.partial(_times, side, number, config)
    trainer = functools.cache(Trainer)
    for setting in _FOLLOWED:
        of = trainer(setting.setup), setting, config
        yield "norms", setting.name, functools.partial(_norms, *of)
    for setting in _TRAINED:
        of = trainer(setting.setup), setting, config
        yield "recalls", setting.name, functools.partial(_recalls, *of)


def _times(side: int, num_classes: int, config: Config) -> dict[str, Any]:
    """How long each call and each compilation took, of each path."""
    counts = tuple(len(range(k, BATCH, num_classes)) for k in range(num_classes))
    problem = Problem(random_images(counts, side), ResNet32(num_classes, norm="batch"))
    params, state = problem.init(jax.random.key(0))
    given = params, *problem.splits["train"], state
    functions = {NO_BALANCE: jax.jit(_mean_gradient(problem))} | {
        path: jax.jit(_balanced(problem, path))
        for path in PATHS
        if path == "frozen" or num_classes <= 10
    }
    compiled: dict[str, Any] = {}
    taken: dict[str, dict[str, Any]] = {}
    for name, function in functions.items():
        start = time.perf_counter()
        compiled[name] = function.lower(*given).compile()
        taken[name] = {"compile": time.perf_counter() - start, "ms": []}
    for _ in range(config.repeats):
        for name, function in compiled.items():
            jax.block_until_ready(function(*given))
            start = time.perf_counter()
            jax.block_until_ready(function(*given))
            taken[name]["ms"].append(1000 * (time.perf_counter() - start))
    return taken


def _losses(problem: Problem) -> Callable[..., tuple[jax.Array, Any]]:
    """Those of training, with the key of a dropout that the net does not have."""

    def losses(
        params: Any, inputs: jax.Array, labels: jax.Array, state: Any
    ) -> tuple[jax.Array, Any]:
        return problem.losses(params, inputs, labels, state, jax.random.key(0))

    return losses


def _balanced(
    problem: Problem, path: balanced.GradientPath
) -> balanced.PCNValueAndGrad:
    return pcn_jax.pcn_value_and_grad(
        _losses(problem), problem.num_classes, weights=_RULE, has_aux=True, path=path
    )


def _mean_gradient(problem: Problem) -> Callable[..., tuple[Any, Any]]:
    """The plain gradient, and the state of the model."""

    def mean_loss(*given: Any) -> tuple[jax.Array, Any]:
        losses, state = _losses(problem)(*given)
        return losses.mean(), state

    def gradient(*given: Any) -> tuple[Any, Any]:
        grads, state = jax.grad(mean_loss, has_aux=True)(*given)
        return state, grads

    return gradient


class Trainer:
    """Trains on one data set, with any path and any sampler."""

    def __init__(self, setup: str) -> None:
        """Loads the data."""
        dataset = load(SETUPS[setup])
        self.problem = Problem(dataset, ResNet32(dataset.num_classes, norm="batch"))
        self.init = jax.jit(self.problem.init)
        self.samplers: dict[Setting, Callable[..., jax.Array]] = {}
        self.gradients: dict[str, Callable[..., Any]] = {
            path: jax.jit(_balanced(self.problem, path)) for path in PATHS
        }
        self.gradients[NO_BALANCE] = jax.jit(_mean_gradient(self.problem))

    def batch(self, setting: Setting, seed: int, number: int) -> tuple[Any, Any]:
        """Inputs and labels of a step."""
        if setting not in self.samplers:
            make = _SAMPLERS[setting.sampler]
            sampler = make(self.problem.train_labels, batch_size=setting.batch_size)
            self.samplers[setting] = jax.jit(sampler)
        train = self.problem.splits["train"]
        indices = self.samplers[setting](seed, number)
        return train.inputs[indices], train.labels[indices]

    def step(
        self, path: str, params: Any, state: Any, batch: Any, rate: float
    ) -> tuple[Any, Any]:
        """Parameters and the model's state after a step."""
        value, grads = self.gradients[path](params, *batch, state)
        state = value if path == NO_BALANCE else value.aux
        return _descend(params, grads, rate), state

    def train(
        self, setting: Setting, path: str, rate: float, seed: int, steps: int
    ) -> dict[str, float]:
        """Macro recall in the end, on validation and test data."""
        params, state = self.init(jax.random.key(seed))
        for number in range(steps):
            batch = self.batch(setting, seed, number)
            params, state = self.step(path, params, state, batch, rate)
        evaluate, splits = self.problem.evaluate, self.problem.splits
        return {
            name: float(evaluate(params, state, splits[name])["macro_recall"])
            for name in ("validation", "test")
        }


@jax.jit
def _descend(params: Any, grads: Any, rate: float) -> Any:
    return jax.tree.map(lambda p, g: p - rate * g, params, grads)


def _norms(trainer: Trainer, setting: Setting, config: Config) -> dict[str, Any]:
    """Frozen norms and directions against true ones, along a training."""
    params, state = trainer.init(jax.random.key(0))
    found: dict[str, list[float]] = {"too_long": [], "uneven": [], "cosine": []}
    for number in range(config.steps + 1):
        batch = trainer.batch(setting, 0, number)
        if number & (number - 1) == 0 or number == config.steps:
            (true, direction), (frozen, other) = (
                trainer.gradients[path](params, *batch, state) for path in PATHS
            )
            shown = np.asarray(true.counts) > 0
            ratios = np.asarray(frozen.norms)[shown] / np.asarray(true.norms)[shown]
            lengths = optax.tree.norm(direction) * optax.tree.norm(other)
            found["too_long"] += ratios.tolist()
            found["uneven"].append(float(ratios.max() / ratios.min()))
            found["cosine"].append(float(optax.tree.vdot(direction, other) / lengths))
        params, state = trainer.step("masked", params, state, batch, rate=0.1)
    return found


def _recalls(trainer: Trainer, setting: Setting, config: Config) -> dict[str, Any]:
    """What each path ends with, at the rate that was best for it."""
    runs: dict[str, Any] = {}
    for path in (*PATHS, NO_BALANCE):
        train = functools.partial(trainer.train, setting, path, steps=config.steps)
        found = [train(rate=x, seed=_SEARCH_SEED)["validation"] for x in RATES]
        rate = RATES[int(np.argmax(found))]
        each = [train(rate=rate, seed=seed)["test"] for seed in range(config.seeds)]
        runs[path] = {"rate": rate, "macro_recalls": each}
    return runs


if __name__ == "__main__":
    main()
