"""Holds whole training runs, records included, against the slow reference.

Everything between a `TrainConfig` and the trained parameters takes part: the sampler,
class gradients in micro-batches or by groups, links, the optimizer and either kind of
loop. All in float64 to 1e-10 relative.
"""

import functools
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import linen as nn
from numpy.typing import NDArray
from reference import Params

from pcn_jax.data import Dataset, Split
from pcn_jax.models import MLP
from pcn_jax.training import (
    ALGORITHMS,
    AlgorithmName,
    OptimizerConfig,
    Problem,
    SamplerName,
    TrainConfig,
    make_train,
)
from pcn_jax.training.algorithms import make_sampler

Loop = Literal["python", "scan"]

NUM_CLASSES, STEPS, SEED, LEARNING_RATE = 4, 10, 3, 0.1
TOLERANCE = 1e-10
# Chosen so that some classes fall on either side.
BOUNDS: dict[str, Any] = {
    "max_norm": 2.0,
    "max_adjusted_norm": 1.0,
    "min_alignment": 0.85,
    "min_norm": 1.0,
    "decay": 0.8,
}
NAMES_IN_REFERENCE: dict[AlgorithmName, str] = {
    "gd": "GD",
    "pcngd": "PCNGD",
    "sgd": "SGD",
    "sgd+o": "SGD+O",
    "sgd+rw": "RW",
    "sgd+la": "LA",
    "pcnsgd": "PCNSGD",
    "pcnsgd+o": "PCNSGD+O",
    "pcnsgd+r": "PCNSGD+R",
    "pcnsgd+clip": "CLIP",
    "pcnsgd+o+clip": "CLIP",
    "pcnsgd+o+la": "CLIP+LA",
    "pcnsgd+split": "SPLIT",
}


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def overlapping_classes() -> Dataset:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(NUM_CLASSES, 5))

    def split(counts: tuple[int, ...]) -> Split:
        labels = rng.permutation(np.repeat(np.arange(NUM_CLASSES), counts))
        inputs = centres[labels] + 2.0 * rng.normal(size=(len(labels), 5))
        return Split(3.0 + 2.0 * inputs, labels.astype(np.int32))

    return Dataset(
        name="overlapping classes",
        train=split((25, 12, 7, 3)),
        validation=split((2, 2, 2, 2)),
        test=split((3, 3, 3, 3)),
        class_names=("a", "b", "c", "d"),
        # Exact in float32, the dtype of the statistics.
        mean=np.full(5, 3.0, np.float32),
        std=np.full(5, 2.0, np.float32),
    )


DATASET = overlapping_classes()


@functools.cache
def problem(loop: Loop) -> Problem:
    """Micro-batches of 10 of the 47 training examples: the last one is smaller."""
    model = MLP(
        NUM_CLASSES, features=(7,), last_activation=nn.tanh, param_dtype=jnp.float64
    )
    return Problem(DATASET, model, microbatch_size=10, loop=loop)


class Run(NamedTuple):
    """A run of the library and what the reference makes of the same batches."""

    params: Params
    records: list[dict[str, Any]]
    path: list[Params]
    batches: list[NDArray[np.int64]]


@functools.cache
def both(
    algorithm: AlgorithmName,
    loop: Loop = "python",
    name: str | None = None,
    *,
    measured: bool = False,
    **options: Any,
) -> Run:
    """Trains, stopping to measure at every step or not; `name` is the reference's."""
    config = TrainConfig(
        **{
            "steps": STEPS,
            "batch_size": 16,
            "measurements_per_decade": 100 if measured else 1,
            **BOUNDS,
            **options,
        }
    )
    train = make_train(problem(loop), algorithm, LEARNING_RATE, config)
    records: list[dict[str, Any]] = []
    state = train(SEED, on_record=records.append if measured else None)
    batches = drawn(config.sampler or ALGORITHMS[algorithm].sampler, config.batch_size)
    path = reference.trajectory(
        name or NAMES_IN_REFERENCE[algorithm],
        initial_params(),
        batches,
        normalised(DATASET.train),
        learning_rate=LEARNING_RATE,
        steps=STEPS,
        momentum=config.optimizer.momentum,
        nesterov=config.optimizer.nesterov,
        **BOUNDS,
    )
    return Run(plain(state.params), records, path, batches)


@functools.cache
def initial_params() -> Params:
    config = TrainConfig(steps=0, batch_size=16)
    return plain(make_train(problem("python"), "sgd", 1.0, config)(SEED).params)


def drawn(name: SamplerName, batch_size: int) -> list[NDArray[np.int64]]:
    """What the sampler of the run draws, one step after another."""
    labels = DATASET.train.labels
    sampler = make_sampler(name, labels, batch_size, STEPS)
    if sampler is None:
        return [np.arange(len(labels))] * (STEPS + 1)
    draw = jax.jit(sampler)
    return [np.asarray(draw(SEED, step), np.int64) for step in range(STEPS + 1)]


def normalised(split: Split) -> tuple[reference.Array, reference.Labels]:
    return (split.inputs - 3.0) / 2.0, split.labels.astype(np.int64)


def plain(params: Any) -> Params:
    """The parameters of the model under the names of the reference."""
    hidden, head = params["Dense_0"], params["Dense_1"]
    leaves = {
        "w1": hidden["kernel"],
        "b1": hidden["bias"],
        "w2": head["kernel"],
        "b2": head["bias"],
    }
    return {name: np.asarray(leaf) for name, leaf in leaves.items()}


def way(start: Params, end: Params) -> Params:
    return {name: end[name] - start[name] for name in start}


def assert_same_way(run: Run) -> None:
    """Compares the way from the start to the end."""
    start, goal = run.path[0], run.path[-1]
    assert {leaf.dtype for leaf in run.params.values()} == {np.dtype("float64")}
    missed = reference.norm(way(run.params, goal))
    assert missed <= TOLERANCE * reference.norm(way(start, goal))


every_loop = pytest.mark.parametrize("loop", get_args(Loop))


@every_loop
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm(algorithm: AlgorithmName, loop: Loop) -> None:
    assert_same_way(both(algorithm, loop))


@pytest.mark.parametrize(
    "algorithm", [name for name, chosen in ALGORITHMS.items() if chosen.weights]
)
def test_explicit_class_gradients(algorithm: AlgorithmName) -> None:
    """All of them made, and in a chain where there is one: the same run."""
    assert_same_way(both(algorithm, explicit_class_gradients=True))


def test_published_alignment() -> None:
    run = both("pcnsgd+r", "python", "PCNSGD+R published", published_alignment=True)
    assert_same_way(run)


@pytest.mark.parametrize(("nesterov", "loop"), [(False, "python"), (True, "scan")])
def test_momentum(nesterov: bool, loop: Loop) -> None:
    optimizer = OptimizerConfig(momentum=0.9, nesterov=nesterov)
    assert_same_way(both("pcnsgd", loop, optimizer=optimizer))


@pytest.mark.parametrize(
    "algorithm",
    [
        "sgd",
        "sgd+rw",
        "sgd+la",
        "pcnsgd",
        "pcnsgd+r",
        "pcnsgd+clip",
        "pcnsgd+o+la",
        "pcnsgd+split",
    ],
)
def test_uniform_batches_that_miss_a_class(algorithm: AlgorithmName) -> None:
    run = both(algorithm, sampler="uniform", batch_size=8)
    counts = [
        reference.class_counts(normalised(DATASET.train)[1][batch], NUM_CLASSES)
        for batch in run.batches
    ]
    assert 0 in np.ravel(counts)
    assert_same_way(run)


@pytest.mark.parametrize("sampler", ["square-root", "progressively-balanced"])
def test_other_samplers(sampler: SamplerName) -> None:
    assert_same_way(both("pcnsgd", sampler=sampler))


MEASURED: tuple[tuple[AlgorithmName, Loop], ...] = (
    ("gd", "scan"),
    ("sgd", "python"),
    ("pcnsgd+o", "python"),
    ("pcnsgd+r", "python"),
    ("pcnsgd+r", "scan"),
)
every_measured_run = pytest.mark.parametrize(("algorithm", "loop"), MEASURED)


@every_measured_run
def test_measuring_at_every_step(algorithm: AlgorithmName, loop: Loop) -> None:
    run = both(algorithm, loop, measured=True)
    assert_same_way(run)
    assert [record["step"] for record in run.records] == [*range(STEPS + 1)]


@every_measured_run
def test_geometry_in_the_records(algorithm: AlgorithmName, loop: Loop) -> None:
    """Lengths, angles, alignment and predicted changes, at each step."""
    run = both(algorithm, loop, measured=True)
    inputs, labels = normalised(DATASET.train)
    counts = np.array(reference.class_counts(labels, NUM_CLASSES))
    for record, params, batch in zip(run.records, run.path, run.batches, strict=True):
        full = reference.class_gradients(params, inputs, labels, NUM_CLASSES)
        rows = reference.class_gradients(
            params, inputs[batch], labels[batch], NUM_CLASSES
        )
        weights = reference.class_weights(
            NAMES_IN_REFERENCE[algorithm],
            rows,
            full_rows=full,
            min_alignment=BOUNDS["min_alignment"],
        )
        d = reference.direction(weights, rows)
        products = np.array([reference.dot(row, d) for row in full])
        expected = {
            "class_norms": list(map(reference.norm, full)),
            "class_cosines": [[reference.cosine(a, b) for b in full] for a in full],
            "class_alignment": list(map(reference.cosine, rows, full)),
            "predicted_loss_changes": -LEARNING_RATE * counts.sum() / counts * products,
        }
        for name, value in expected.items():
            np.testing.assert_allclose(
                record[name], value, rtol=1e-9, atol=1e-11, err_msg=name
            )


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_losses_and_recalls_in_the_records(split: str) -> None:
    run = both("sgd", "python", measured=True)
    inputs, labels = normalised(getattr(DATASET, split))
    for record, params in zip(run.records, run.path, strict=True):
        losses = reference.class_losses(params, inputs, labels, NUM_CLASSES)
        predictions = np.array([predicted(params, x) for x in inputs])
        recalls = [np.mean(predictions[labels == c] == c) for c in range(NUM_CLASSES)]
        measured = record[split]
        np.testing.assert_allclose(measured["loss"], losses, rtol=TOLERANCE)
        np.testing.assert_allclose(measured["recall"], recalls, rtol=1e-6)
        assert measured["macro_recall"] == pytest.approx(np.mean(recalls), rel=1e-6)


def predicted(params: Params, x: reference.Array) -> int:
    """The class with the smallest loss has the largest logit."""
    losses = [reference.example_loss(params, x, c) for c in range(NUM_CLASSES)]
    return int(np.argmin(losses))


def test_bounds_have_classes_on_either_side() -> None:
    """Otherwise half of clipping and of the alignment would go untested."""
    inputs, labels = normalised(DATASET.train)
    run = both("pcnsgd+clip", "python")
    norms, alignments = [], []
    for params, batch in zip(run.path, run.batches, strict=True):
        full = reference.class_gradients(params, inputs, labels, NUM_CLASSES)
        rows = reference.class_gradients(
            params, inputs[batch], labels[batch], NUM_CLASSES
        )
        counts = reference.class_counts(labels[batch], NUM_CLASSES)
        norms += [
            len(batch) / count * reference.norm(row)
            for count, row in zip(counts, rows, strict=True)
        ]
        alignments += list(map(reference.cosine, rows, full))
    assert min(norms) < BOUNDS["max_norm"] < max(norms)
    assert min(alignments) < BOUNDS["min_alignment"] < max(alignments)
