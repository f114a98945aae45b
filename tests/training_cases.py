"""What the tests of training have in common: small problems, trainers and runs."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn

from pcn_jax import per_class_value_and_grad
from pcn_jax.data import Dataset, Split
from pcn_jax.models import MLP
from pcn_jax.training import (
    ALGORITHMS,
    AlgorithmName,
    Problem,
    Record,
    Steps,
    TrainConfig,
    TrainState,
    make_steps,
    make_train,
)
from pcn_jax.training.algorithms import make_sampler

Loop = Literal["python", "scan"]

CLASS_COUNTS = (20, 9, 4)
NUM_CLASSES = len(CLASS_COUNTS)
FULL_BATCH: tuple[AlgorithmName, ...] = ("gd", "pcngd")

LOOPS: tuple[Loop, ...] = get_args(Loop)
# Some of optax mixes dtypes.
lenient = pytest.mark.usefixtures("standard_promotion")
LOG_SPACED: dict[str, Any] = {"steps": 23, "measurements_per_decade": 4}
every_loop = pytest.mark.parametrize("loop", LOOPS)


class DropoutNet(nn.Module):
    """One hidden layer, half of which is dropped in training."""

    rate: float = 0.5

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> Any:
        x = nn.tanh(nn.Dense(16)(x))
        x = nn.Dropout(self.rate, deterministic=not train)(x)
        return nn.Dense(NUM_CLASSES)(x)


class BatchNormNet(nn.Module):
    """One hidden layer with batch normalisation."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> Any:
        x = nn.Dense(6)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return nn.Dense(NUM_CLASSES)(nn.tanh(x))


def blobs(counts: tuple[int, ...] = CLASS_COUNTS) -> Dataset:
    """Overlapping classes in four dimensions, as bytes."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(len(counts), 4))

    def split(counts: tuple[int, ...]) -> Split:
        labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
        inputs = 128 + 25 * (centres[labels] + rng.normal(size=(len(labels), 4)))
        return Split(np.clip(inputs, 0, 255).astype(np.uint8), labels.astype(np.int32))

    return Dataset(
        name="blobs",
        train=split(counts),
        validation=split((3,) * len(counts)),
        test=split((3,) * len(counts)),
        class_names=tuple("abc"[: len(counts)]),
        mean=np.full(4, 128, np.float32),
        std=np.full(4, 32, np.float32),
    )


SMALL_MLP = MLP(NUM_CLASSES, features=(5,))


@functools.cache
def problem(loop: Loop = "python", model: nn.Module = SMALL_MLP) -> Problem:
    return Problem(blobs(), model, microbatch_size=12, loop=loop)


@functools.cache
def two_classes() -> Problem:
    return Problem(blobs((40, 2)), MLP(2, features=(5,)), microbatch_size=12)


def train_config(**options: Any) -> TrainConfig:
    return TrainConfig(**({"steps": 6, "batch_size": 12} | options))


def new_trainer(
    algorithm: AlgorithmName,
    on: Problem | None = None,
    learning_rate: float = 0.1,
    **options: Any,
) -> Callable[..., TrainState]:
    config = train_config(**options)
    return make_train(on or problem(), algorithm, learning_rate, config)


# Shared by all tests, because compiling is what takes their time.
trainer = functools.cache(new_trainer)


@functools.cache
def run(
    algorithm: AlgorithmName, on: Problem | None = None, seed: int = 0, **options: Any
) -> tuple[TrainState, list[Record]]:
    """Trains and measures; most tests only train, for measuring compiles slowly."""
    records: list[Record] = []
    state = trainer(algorithm, on, **options)(seed, on_record=records.append)
    return state, records


def steps_of(
    algorithm: AlgorithmName,
    on: Problem,
    optimizer: optax.GradientTransformation | None = None,
    **options: Any,
) -> Steps:
    """The functions that `make_train` would drive."""
    config, chosen = train_config(**options), ALGORITHMS[algorithm]
    sampler = make_sampler(
        config.sampler or chosen.sampler,
        on.train_labels,
        config.batch_size,
        config.steps,
    )
    return make_steps(on, chosen, config, optimizer or optax.sgd(0.1), sampler)


def full_class_gradients(on: Problem, params: Any) -> Any:
    """Class gradients of all the training data, in one piece and in evaluation mode."""
    per_class = per_class_value_and_grad(on.losses, on.num_classes, has_aux=True)
    return per_class(params, *on.splits["train"], {})[1]


def one_step(steps: Steps, on: Problem) -> Callable[[TrainState], TrainState]:
    train = on.splits["train"]

    def step(state: TrainState) -> TrainState:
        if steps.reference_every:
            reference = full_class_gradients(on, state.params)
            state = state._replace(reference=reference)
        return steps.apply(state, *steps.gradients(state, train))[1]

    return step


def evaluate(on: Problem, state: TrainState, split: str = "train") -> Record:
    return on.evaluate(state.params, state.model_state, on.splits[split])


def flat(tree: Any) -> np.ndarray:
    leaves = [np.ravel(leaf).astype(np.float64) for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves)


def difference(a: Any, b: Any) -> float:
    return float(np.abs(flat(a) - flat(b)).max())


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """Notes whatever XLA compiles."""
    names: list[str] = []

    def listen(event: str, duration_secs: float, **details: str | int) -> None:
        del duration_secs
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(str(details.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
