"""One training step as pure functions of one state: the same for every algorithm.

An algorithm is a sampler and a chain of gradient transformations.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from pcn_jax.balanced import GradientPath
from pcn_jax.samplers import Sampler
from pcn_jax.training.algorithms import Algorithm, Weights
from pcn_jax.training.config import TrainConfig
from pcn_jax.training.gradients import (
    StepGradients,
    balanced_gradients,
    class_gradients,
    half_class_gradients,
    joint_gradients,
)
from pcn_jax.training.problem import Examples, Problem, StepValue
from pcn_jax.training.state import TrainState, run_keys
from pcn_jax.transforms import sum_over_classes
from pcn_jax.weighing import PCNValue
from pcn_jax.weights import StatefulClassWeights

_DECAY_OF_SHARES = 0.9


class Steps(NamedTuple):
    """The functions that a training loop is made of, all of them pure.

    Attributes:
      init: From a seed, and a factor of the updates or 1, to the first `TrainState`.
      gradients: From a state and the training data to the value and the stacked
        gradients of the step's batch: one row a class, or a single one of all classes.
      class_gradients: The same, always with one row a class, and of the loss without
        logit adjustment; compiled.
      apply: From a state, the value and the gradients to the update of the
        parameters and the next state.
      step: From a state and the training data to the same; compiled, as one program
        where the gradients are not a Python loop over parts. The state is donated.
      reference_every: Steps after which `apply` needs a fresh `state.reference`; `None`
        if it needs none.
    """

    init: Callable[..., TrainState]
    gradients: StepGradients
    class_gradients: StepGradients
    apply: Callable[
        [TrainState, StepValue, chex.ArrayTree], tuple[chex.ArrayTree, TrainState]
    ]
    step: Callable[[TrainState, Examples], tuple[chex.ArrayTree, TrainState]]
    reference_every: int | None


def make_steps(
    problem: Problem,
    algorithm: Algorithm,
    config: TrainConfig,
    optimizer: optax.GradientTransformation,
    sampler: Sampler | None,
) -> Steps:
    """Builds the step of an algorithm with any optax optimizer behind it.

    Args:
      problem: The model, its loss and the data.
      algorithm: Which links stand before the sum over classes.
      config: What the links are told, and whether class gradients are made.
      optimizer: Follows the summed direction.
      sampler: Draws the batch; `None` takes all of the data, in micro-batches.

    Returns:
      The functions of a training loop.

    Raises:
      ValueError: If the algorithm halves the classes of batches and `sampler` is
        `None`, or if that was made for another number of examples; by `init`, if a
        gradient of all the data is needed and the examples interact in the model.
    """
    size = len(problem.train_labels)
    if sampler is not None and sampler.num_examples not in (None, size):
        raise ValueError(
            f"The sampler draws from {sampler.num_examples} examples, but the training "
            f"data have {size}: make it from problem.train_labels."
        )
    weights = _weights(problem, algorithm, config, sampler)
    links = []
    if algorithm.links and weights is None:
        links = algorithm.links(config, problem.class_shares)
    transformation = optax.chain(
        *links,
        sum_over_classes(),
        optax.with_extra_args_support(optimizer),
    )
    per_class = class_gradients(problem, sampler)
    gradients = _gradients(problem, algorithm, config, sampler, weights)

    def init(
        seed: jax.typing.ArrayLike, learning_rate: jax.typing.ArrayLike = 1.0
    ) -> TrainState:
        params, model_state = problem.init(run_keys(seed)[0])
        if model_state and (algorithm.needs_reference or sampler is None):
            raise ValueError(
                f"{algorithm.label} takes the gradient of all the data in "
                f"micro-batches, but in {type(problem.model).__name__} examples "
                f"interact (it keeps {', '.join(sorted(model_state))}). Choose a model "
                "with group normalisation, or another algorithm."
            )
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            seed=jnp.asarray(seed, jnp.uint32),
            learning_rate=jnp.asarray(learning_rate, float),
            params=params,
            model_state=model_state,
            opt_state=transformation.init(params),
            shares=_first_shares(problem, algorithm),
        )
        if algorithm.needs_reference:
            rows = jax.tree.map(
                lambda p: jnp.zeros((problem.num_classes, *p.shape), p.dtype), params
            )
            state = state._replace(reference=rows)
        if isinstance(weights, StatefulClassWeights):
            state = state._replace(weights_state=weights.init(problem.num_classes))
        return state

    def apply(
        state: TrainState, value: StepValue, grads: chex.ArrayTree
    ) -> tuple[chex.ArrayTree, TrainState]:
        updates, opt_state = transformation.update(
            grads,
            state.opt_state,
            state.params,
            class_counts=value.counts,
            reference=state.reference,
        )
        updates = jax.tree.map(
            lambda u: u * state.learning_rate.astype(u.dtype), updates
        )
        state = state._replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            model_state=value.aux if state.model_state else state.model_state,
            opt_state=opt_state,
        )
        if isinstance(value, PCNValue):
            state = state._replace(
                weights_state=value.state, shares=_averaged(state.shares, value)
            )
        return updates, state

    traceable = sampler is not None or problem.passes_are_traceable
    apply_to = apply if traceable else jax.jit(apply, donate_argnums=0)

    def step(state: TrainState, train: Examples) -> tuple[chex.ArrayTree, TrainState]:
        return apply_to(state, *gradients(state, train))

    return Steps(
        init=init,
        gradients=gradients,
        class_gradients=jax.jit(per_class) if traceable else per_class,
        apply=apply,
        step=jax.jit(step, donate_argnums=0) if traceable else step,
        reference_every=config.reference_every if algorithm.needs_reference else None,
    )


def _gradients(
    problem: Problem,
    algorithm: Algorithm,
    config: TrainConfig,
    sampler: Sampler | None,
    weights: Weights | None,
) -> StepGradients:
    """Those that the algorithm follows."""
    if sampler is not None and weights is not None:
        path = _path(problem, config)
        return balanced_gradients(problem, sampler, weights, path)
    if sampler is not None and algorithm.by_halves:
        return half_class_gradients(problem, sampler)
    make = class_gradients if algorithm.links else joint_gradients
    return make(problem, sampler)


def _weights(
    problem: Problem,
    algorithm: Algorithm,
    config: TrainConfig,
    sampler: Sampler | None,
) -> Weights | None:
    """Those of balanced gradients; `None` where there are links or nothing instead."""
    if algorithm.weights is None:
        return None
    if sampler is None and (algorithm.by_halves or not algorithm.links):
        raise ValueError(
            f"{algorithm.label} needs mini-batches: choose another sampler, or pcngd."
        )
    # All data are taken in micro-batches, which balanced gradients cannot be.
    explicit = sampler is None or _path(problem, config) == "masked"
    if explicit and algorithm.links:
        return None
    return algorithm.weights(config, problem.class_shares)


def _path(problem: Problem, config: TrainConfig) -> GradientPath | None:
    """How balanced gradients are had; `"masked"` makes all class gradients first."""
    if config.frozen_statistics:
        return "frozen"
    # A model has state where examples interact.
    explicit = config.explicit_class_gradients or problem.has_state
    return "masked" if explicit else None


def _first_shares(problem: Problem, algorithm: Algorithm) -> jax.Array | None:
    if not algorithm.adjusts_logits:
        return None
    if algorithm.weights is None:  # those of the data, for good
        return jnp.asarray(problem.class_shares, float)
    return jnp.full(problem.num_classes, 1 / problem.num_classes)


def _averaged(shares: jax.Array | None, value: PCNValue) -> jax.Array | None:
    """A moving average of the shares of the classes, as they come into the steps."""
    if shares is None:
        return None
    new = _DECAY_OF_SHARES * shares + (1 - _DECAY_OF_SHARES) * value.shares
    new = jnp.where(value.counts > 0, new, shares)
    averaged: jax.Array = (new / new.sum()).astype(shares.dtype)
    return averaged
