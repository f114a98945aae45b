"""Where the gradients of a step come from: a batch or all data, one row or several.

Each maker takes a problem and a sampler, or `None` for all of the data, and returns a
pure function from a state and the training data to the value and the stacked gradients.
Where there are no class gradients the stack has a single row, so that nothing else has
to know the difference.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from pcn_jax.balanced import GradientPath, pcn_value_and_grad
from pcn_jax.class_gradients import (
    ClassValue,
    ClassValueAndGrad,
    LossFn,
    per_class_value_and_grad,
)
from pcn_jax.counts import at_least_one, members
from pcn_jax.dynamics import class_means
from pcn_jax.halves import split_halves
from pcn_jax.known_labels import known_labels_value_and_grad
from pcn_jax.samplers import Sampler
from pcn_jax.training.algorithms import Weights
from pcn_jax.training.problem import Examples, Problem, StepValue
from pcn_jax.training.state import TrainState

StepGradients = Callable[[TrainState, Examples], tuple[StepValue, chex.ArrayTree]]


def joint_gradients(problem: Problem, sampler: Sampler | None) -> StepGradients:
    """The ordinary gradient, as a single row; logits adjusted if the state says so.

    Args:
      problem: The model, its loss and the data.
      sampler: Draws the batch; `None` takes all of the data, in micro-batches.
    """
    joint = _joint_value_and_grad(problem.losses, problem.num_classes)
    value_and_grad = joint if sampler else problem.over_all_data(joint)

    def gradients(
        state: TrainState, train: Examples
    ) -> tuple[StepValue, chex.ArrayTree]:
        examples = _batch(sampler, state, train) if sampler else train
        return value_and_grad(
            state.params, *examples, *state.loss_args, **_adjustment(state)
        )

    return gradients


def class_gradients(problem: Problem, sampler: Sampler | None) -> StepGradients:
    """One row a class, of the loss without logit adjustment.

    Args:
      problem: The model, its loss and the data.
      sampler: Draws the batch; `None` takes all of the data, in micro-batches.
    """
    per_class = per_class_value_and_grad(
        problem.losses, problem.num_classes, has_aux=True
    )
    known_labels = None
    if sampler and sampler.class_counts is not None and not problem.has_state:
        known_labels = known_labels_value_and_grad(
            problem.losses,
            problem.num_classes,
            np.repeat(np.arange(problem.num_classes), sampler.class_counts),
            has_aux=True,
        )

    def gradients(
        state: TrainState, train: Examples
    ) -> tuple[StepValue, chex.ArrayTree]:
        if sampler is None:
            return problem.train_class_gradients(
                state.params, train.inputs, *state.loss_args
            )
        inputs, labels = _batch(sampler, state, train)
        if known_labels:
            return known_labels(state.params, inputs, *state.loss_args)
        return per_class(state.params, inputs, labels, *state.loss_args)

    return gradients


def half_class_gradients(problem: Problem, sampler: Sampler) -> StepGradients:
    """A row for each half of each class of a batch, in the order of `split_halves`.

    Args:
      problem: The model, its loss and the data.
      sampler: Draws the batch.
    """

    def losses(
        params: chex.ArrayTree, inputs: Any, halves: jax.Array, *args: Any
    ) -> Any:
        return problem.losses(params, inputs, halves // 2, *args)

    per_half = per_class_value_and_grad(losses, 2 * problem.num_classes, has_aux=True)

    def gradients(
        state: TrainState, train: Examples
    ) -> tuple[StepValue, chex.ArrayTree]:
        inputs, labels = _batch(sampler, state, train)
        return per_half(state.params, inputs, split_halves(labels), *state.loss_args)

    return gradients


def balanced_gradients(
    problem: Problem, sampler: Sampler, weights: Weights, path: GradientPath | None
) -> StepGradients:
    """The balanced direction, as a single row; logits adjusted if the state says so.

    Args:
      problem: The model, its loss and the data.
      sampler: Draws the batch.
      weights: Of the classes; their state and references are in the `TrainState`.
      path: As `pcn_value_and_grad` takes it.
    """
    balanced = pcn_value_and_grad(
        problem.losses, problem.num_classes, weights=weights, has_aux=True, path=path
    )

    def gradients(
        state: TrainState, train: Examples
    ) -> tuple[StepValue, chex.ArrayTree]:
        value, direction = balanced(
            state.params,
            *_batch(sampler, state, train),
            *state.loss_args,
            **_adjustment(state),
            reference=state.reference,
            state=state.weights_state,
        )
        return value, jax.tree.map(lambda g: g[None], direction)

    return gradients


def _batch(
    sampler: Sampler, state: TrainState, train: Examples
) -> tuple[jax.Array, jax.Array]:
    indices = sampler(seed=state.seed, step=state.step)
    return train.inputs[indices], train.labels[indices]


def _adjustment(state: TrainState) -> dict[str, jax.Array]:
    """The keyword of the loss that says by which shares logits are adjusted, if so."""
    return {} if state.shares is None else {"shares": state.shares}


def _joint_value_and_grad(loss_fn: LossFn, num_classes: int) -> ClassValueAndGrad:
    """The ordinary gradient and the losses of the classes."""

    def joint_value_and_grad(
        params: chex.ArrayTree,
        inputs: Any,
        labels: jax.Array,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[ClassValue, chex.ArrayTree]:
        real = labels >= 0

        def mean_loss(params: chex.ArrayTree) -> tuple[jax.Array, Any]:
            losses, aux = loss_fn(params, inputs, labels, *args, **kwargs)
            total = at_least_one(real.sum(dtype=losses.dtype))
            return jnp.where(real, losses, 0).sum() / total, (losses, aux)

        grad, (losses, aux) = jax.grad(mean_loss, has_aux=True)(params)
        counts = members(labels, num_classes).sum(axis=1, dtype=jnp.int32)
        means = class_means(losses, labels, num_classes)
        value = ClassValue(jnp.where(counts == 0, 0, means), counts, aux)
        return value, jax.tree.map(lambda g: g[None], grad)

    return joint_value_and_grad
