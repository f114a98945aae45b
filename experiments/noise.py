"""Directional noise, and estimates of gradient norms, from the gradients of examples.

All that is asked of the mini-batch gradients of a class follows from the inner products
of the gradients of its examples: their Gramian is computed once, and thousands of
batches are drawn from it.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from experiments.claims.finding import Size
from experiments.experiment import Experiment, problem
from experiments.kept import commit, write_rows
from experiments.study import FOLDERS
from pcn_jax.training import Problem, environment, make_train, plain

BATCH_SIZES = (1, 2, 3, 4, 6, 8, 10, 16, 32, 64)
_MOST_EXAMPLES = 1000
_DRAWS = 2000


class Noise(NamedTuple):
    """What batches of one size of one class do, at one point of training.

    Attributes:
      seed: Of the run.
      step: Of the run.
      label: The class.
      batch: Examples of the class in the batch.
      alignment: Mean of `p_l` over batches.
      predicted: What follows from the noise of single examples (see `measure_noise`).
      noisy: Mean of the squared norm of the batch's gradient over the true one.
      split: Mean of the product of two halves over the same; NaN for one example.
      expected: Mean over all pairs of different examples of the class, over the same.
      split_spread: Standard deviation of that over batches.
      pairs_spread: The same of the mean over *all* pairs of examples.
    """

    seed: int
    step: int
    label: int
    batch: int
    alignment: float
    predicted: float
    noisy: float
    split: float
    expected: float
    split_spread: float
    pairs_spread: float


def measure_noise(
    experiment: Experiment, size: Size, steps: Sequence[int]
) -> list[Noise]:
    """Measures along runs of SGD, or reads what was measured.

    Of a class at most 1,000 examples are taken, and their mean gradient is the true
    one, `g`. With `σ²` the mean of `‖g_i − g‖²` over its `n` examples, the gradient of
    `b` of them, drawn without replacement, has `E‖ĝ − g‖² = σ²/b (n − b)/(n − 1)`, and
    so `p ≈ 1 / √(1 + E‖ĝ − g‖² / ‖g‖²)`.

    Args:
      experiment: Set-up, seeds and learning rate of SGD.
      size: Of the study.
      steps: Of SGD after which to measure.

    Returns:
      One entry a seed, step, class and batch size.
    """
    path = FOLDERS[size] / experiment.name / "noise.json"
    rate = experiment.learning_rate_of("sgd")
    described = plain(
        {
            "learning_rate": rate,
            "data": dataclasses.replace(experiment.data, data_dir=None),
            "model": experiment.model,
            "batch_size": experiment.train.batch_size,
            "seeds": experiment.seeds,
            "steps": list(steps),
        }
    )
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["description"] == described:
            return [_noise(row) for row in kept["rows"]]
    _, of_problem = problem(experiment)
    rows = []
    for step in steps:
        config = dataclasses.replace(experiment.train, steps=step)
        train = make_train(of_problem, "sgd", rate, config)
        for seed in experiment.seeds:
            params = train(seed).params
            for label in range(of_problem.num_classes):
                gramian = class_gramian(of_problem, params, label)
                rng = np.random.default_rng((seed, step, label))
                rows += [
                    Noise(seed, step, label, batch, *of_batches(gramian, batch, rng))
                    for batch in BATCH_SIZES
                    if batch <= len(gramian) // 2
                ]
    head = {
        "description": described,
        "ran_on": environment(),
        "commit": commit(),
        "columns": Noise._fields,
    }
    write_rows(path, head, map(_rounded, rows))
    return rows


def class_gramian(problem: Problem, params: chex.ArrayTree, label: int) -> np.ndarray:
    """Inner products of the gradients of a class's examples, float64 `[n, n]`."""
    positions = np.flatnonzero(problem.train_labels == label)[:_MOST_EXAMPLES]
    inputs = problem.splits["train"].inputs[positions]
    labels = problem.splits["train"].labels[positions]

    @jax.jit
    def gradients(params: chex.ArrayTree, x: jax.Array, y: jax.Array) -> jax.Array:
        def loss(params: chex.ArrayTree, x: jax.Array, y: jax.Array) -> jax.Array:
            return problem.losses(params, x[None], y[None], {})[0][0]

        grads = jax.vmap(jax.grad(loss), (None, 0, 0))(params, x, y)
        flat = [g.reshape(len(x), -1) for g in jax.tree.leaves(grads)]
        return jnp.concatenate(flat, axis=1)

    rows = np.asarray(gradients(params, inputs, labels), np.float32)
    return np.asarray(rows @ rows.T, np.float64)


def of_batches(
    gramian: np.ndarray, batch: int, rng: np.random.Generator
) -> tuple[float, ...]:
    """Draws batches of a class from its Gramian; the last seven fields of `Noise`.

    Args:
      gramian: Inner products of the gradients of its `n` examples, `[n, n]`.
      batch: Examples in a batch, at most `n / 2`.
      rng: Draws them.

    Returns:
      `alignment` to `pairs_spread`.

    Example:
      >>> of_batches(np.ones((4, 4)), 2, np.random.default_rng(0))
      (1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0)
    """
    n = len(gramian)
    along, true = gramian.mean(axis=1), gramian.mean()
    drawn = np.argsort(rng.random((_DRAWS, n)), axis=1)[:, :batch]
    blocks = gramian[drawn[:, :, None], drawn[:, None, :]]
    squares = blocks.mean(axis=(1, 2))
    alignment = along[drawn].mean(axis=1) / np.sqrt(squares * true)
    single = np.diagonal(gramian).mean()
    noise = (single - true) / batch * (n - batch) / (n - 1)
    split = pairs = np.full(1, np.nan)
    if batch > 1:
        split = blocks[:, 0::2, 1::2].mean(axis=(1, 2))
        own = np.trace(blocks, axis1=1, axis2=2)
        pairs = (squares * batch**2 - own) / (batch * (batch - 1))
    return tuple(
        float(x)
        for x in (
            alignment.mean(),
            1 / np.sqrt(1 + noise / true),
            squares.mean() / true,
            split.mean() / true,
            (n * true - single) / (n - 1) / true,
            split.std() / true,
            pairs.std() / true,
        )
    )


def _noise(row: list[Any]) -> Noise:
    numbers: list[Any] = [np.nan if x is None else x for x in row]
    return Noise(*numbers)


def _rounded(row: Noise) -> list[Any]:
    return [
        x if isinstance(x, int) else None if np.isnan(x) else round(x, 4) for x in row
    ]
