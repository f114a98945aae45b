"""One training step as pure functions of one state: the same for every algorithm.

An algorithm is a sampler and a chain of gradient transformations. Where no class
gradients are made (GD, SGD, and the balanced ones on the fused path) it is given a
stack of a single row, so nothing else has to know the difference.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from pcn_jax.balanced import Path, PCNValueAndGrad, pcn_value_and_grad
from pcn_jax.class_gradients import (
    ClassValue,
    ClassValueAndGrad,
    LossFn,
    per_class_value_and_grad,
)
from pcn_jax.counts import at_least_one
from pcn_jax.dynamics import class_means
from pcn_jax.halves import split_halves
from pcn_jax.known_labels import known_labels_value_and_grad
from pcn_jax.samplers import Sampler
from pcn_jax.training.algorithms import Algorithm, Weights
from pcn_jax.training.config import TrainConfig
from pcn_jax.training.problem import (
    Examples,
    Gradients,
    ModelState,
    Problem,
    StepValue,
)
from pcn_jax.transforms import sum_over_classes
from pcn_jax.weighing import PCNValue
from pcn_jax.weights import StatefulClassWeights

_DECAY_OF_SHARES = 0.9


class TrainState(NamedTuple):
    """Everything that changes in training, and the seed that decides how.

    Attributes:
      step: Steps taken, int32.
      seed: Seed of the run, uint32.
      learning_rate: What the optimizer's updates are multiplied by, a scalar.
      params: Parameters of the model.
      model_state: The model's other collections, such as `batch_stats`.
      opt_state: State of the chain of gradient transformations.
      reference: Class gradients of all the training data, for PCNSGD+R; else `()`.
      weights_state: State of class weights that have one; else `()`.
      shares: Of the classes, by which logits are adjusted, `[C]`; else `()`.
    """

    step: jax.Array
    seed: jax.Array
    learning_rate: jax.Array
    params: chex.ArrayTree
    model_state: ModelState
    opt_state: optax.OptState
    reference: chex.ArrayTree
    weights_state: Any = ()
    shares: jax.Array | tuple[()] = ()


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
    gradients: Callable[[TrainState, Examples], tuple[StepValue, chex.ArrayTree]]
    class_gradients: Callable[[TrainState, Examples], Gradients]
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
    weights, balanced = _balanced(problem, algorithm, config, sampler)
    links = []
    if algorithm.links and not balanced:
        links = algorithm.links(config, problem.num_classes)
    stateful = None
    if balanced is not None and isinstance(weights, StatefulClassWeights):
        stateful = weights
    per_class = per_class_value_and_grad(
        problem.losses, problem.num_classes, has_aux=True
    )
    per_half_class = per_class_value_and_grad(
        _of_halves(problem.losses), 2 * problem.num_classes, has_aux=True
    )
    known_labels = None
    if sampler is not None and sampler.class_counts is not None:
        known_labels = known_labels_value_and_grad(
            problem.losses,
            problem.num_classes,
            np.repeat(np.arange(problem.num_classes), sampler.class_counts),
            has_aux=True,
        )
    joint = _joint_value_and_grad(problem.losses, problem.num_classes)
    joint_of_all = problem.over_all_data(joint)
    transformation = optax.chain(
        *links,
        sum_over_classes(),
        optax.with_extra_args_support(optimizer),
    )

    def init(
        seed: jax.typing.ArrayLike, learning_rate: jax.typing.ArrayLike = 1.0
    ) -> TrainState:
        params, model_state = problem.init(_keys(seed)[0])
        if model_state and (algorithm.needs_reference or sampler is None):
            raise ValueError(
                f"{algorithm.label} takes the gradient of all the data in "
                f"micro-batches, but in {type(problem.model).__name__} examples "
                f"interact (it keeps {', '.join(sorted(model_state))}). Choose a model "
                "with group normalisation, or another algorithm."
            )
        rows = jax.tree.map(
            lambda p: jnp.zeros((problem.num_classes, *p.shape), p.dtype), params
        )
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            seed=jnp.asarray(seed, jnp.uint32),
            learning_rate=jnp.asarray(learning_rate, float),
            params=params,
            model_state=model_state,
            opt_state=transformation.init(params),
            reference=rows if algorithm.needs_reference else (),
            weights_state=stateful.init(problem.num_classes) if stateful else (),
            shares=_first_shares(problem, algorithm),
        )

    def batch(
        sampler: Sampler, state: TrainState, train: Examples
    ) -> tuple[jax.Array, jax.Array]:
        indices = sampler(state.seed, state.step)
        return train.inputs[indices], train.labels[indices]

    def joint_gradients(state: TrainState, train: Examples) -> Gradients:
        if sampler is None:
            return joint_of_all(
                state.params, *train, *_given(state), **_adjustment(state)
            )
        examples = batch(sampler, state, train)
        return joint(state.params, *examples, *_given(state), **_adjustment(state))

    def class_gradients(state: TrainState, train: Examples) -> Gradients:
        if sampler is None:
            return problem.train_class_gradients(
                state.params, train.inputs, *_given(state)
            )
        inputs, labels = batch(sampler, state, train)
        if known_labels is None or state.model_state:  # the way that is always right
            return per_class(state.params, inputs, labels, *_given(state))
        return known_labels(state.params, inputs, *_given(state))

    def half_class_gradients(state: TrainState, train: Examples) -> Gradients:
        assert sampler is not None
        inputs, labels = batch(sampler, state, train)
        return per_half_class(
            state.params, inputs, split_halves(labels), *_given(state)
        )

    def balanced_gradient(
        state: TrainState, train: Examples
    ) -> tuple[PCNValue, chex.ArrayTree]:
        assert sampler is not None
        assert balanced is not None
        value, direction = balanced(
            state.params,
            *batch(sampler, state, train),
            *_given(state),
            **_adjustment(state),
            reference=state.reference if algorithm.needs_reference else None,
            state=state.weights_state if stateful else None,
        )
        return value, jax.tree.map(lambda g: g[None], direction)

    def apply(
        state: TrainState, value: StepValue, grads: chex.ArrayTree
    ) -> tuple[chex.ArrayTree, TrainState]:
        updates, opt_state = transformation.update(
            grads,
            state.opt_state,
            state.params,
            class_counts=value.counts,
            reference=state.reference if algorithm.needs_reference else None,
        )
        updates = jax.tree.map(
            lambda u: u * state.learning_rate.astype(u.dtype), updates
        )
        return updates, state._replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            model_state=value.aux if state.model_state else state.model_state,
            opt_state=opt_state,
            weights_state=(
                value.state if stateful and isinstance(value, PCNValue) else ()
            ),
            shares=(
                _averaged(state.shares, value)
                if algorithm.adjusts_logits and isinstance(value, PCNValue)
                else state.shares
            ),
        )

    gradients: Callable[[TrainState, Examples], tuple[StepValue, chex.ArrayTree]] = (
        balanced_gradient
        if balanced is not None
        else half_class_gradients
        if algorithm.by_halves
        else class_gradients
        if algorithm.links
        else joint_gradients
    )
    traceable = sampler is not None or problem.passes_are_traceable
    apply_to = apply if traceable else jax.jit(apply, donate_argnums=0)

    def step(state: TrainState, train: Examples) -> tuple[chex.ArrayTree, TrainState]:
        return apply_to(state, *gradients(state, train))

    return Steps(
        init=init,
        gradients=gradients,
        class_gradients=jax.jit(class_gradients) if traceable else class_gradients,
        apply=apply,
        step=jax.jit(step, donate_argnums=0) if traceable else step,
        reference_every=config.reference_every if algorithm.needs_reference else None,
    )


def _balanced(
    problem: Problem,
    algorithm: Algorithm,
    config: TrainConfig,
    sampler: Sampler | None,
) -> tuple[Weights | None, PCNValueAndGrad | None]:
    """The balanced gradient and its weights, unless class gradients are made first."""
    if algorithm.weights is None:
        return None, None
    weights = algorithm.weights(config, problem.class_shares)
    if sampler is None and (algorithm.by_halves or not algorithm.links):
        raise ValueError(
            f"{algorithm.label} needs mini-batches: choose another sampler, or pcngd."
        )
    # All data are taken in micro-batches, and state comes from interacting examples.
    interact = problem.has_state and not config.frozen_statistics
    explicit = config.explicit_class_gradients or sampler is None or interact
    if weights is None or (explicit and algorithm.links):
        return None, None
    path: Path | None = "masked" if explicit else None
    return weights, pcn_value_and_grad(
        problem.losses,
        problem.num_classes,
        weights=weights,
        has_aux=True,
        path="frozen" if config.frozen_statistics else path,
    )


def _of_halves(loss_fn: LossFn) -> LossFn:
    """The same loss, given the halves of classes instead of their labels."""

    def of_halves(
        params: chex.ArrayTree, inputs: Any, halves: jax.Array, *args: Any
    ) -> Any:
        return loss_fn(params, inputs, halves // 2, *args)

    return of_halves


def _joint_value_and_grad(loss_fn: LossFn, num_classes: int) -> ClassValueAndGrad:
    """The ordinary gradient, as a stack of one row."""

    def joint_value_and_grad(
        params: chex.ArrayTree,
        inputs: Any,
        labels: jax.Array,
        *args: Any,
        **kwargs: Any,
    ) -> Gradients:
        real = labels >= 0

        def mean_loss(params: chex.ArrayTree) -> tuple[jax.Array, Any]:
            losses, aux = loss_fn(params, inputs, labels, *args, **kwargs)
            total = at_least_one(real.sum(dtype=losses.dtype))
            return jnp.where(real, losses, 0).sum() / total, (losses, aux)

        grad, (losses, aux) = jax.grad(mean_loss, has_aux=True)(params)
        counts = (
            jnp.arange(num_classes, dtype=labels.dtype)[:, None] == labels[None, :]
        ).sum(axis=1, dtype=jnp.int32)
        means = class_means(losses, labels, num_classes)
        value = ClassValue(jnp.where(counts == 0, 0, means), counts, aux)
        return value, jax.tree.map(lambda g: g[None], grad)

    return joint_value_and_grad


def _first_shares(problem: Problem, algorithm: Algorithm) -> jax.Array | tuple[()]:
    if not algorithm.adjusts_logits:
        return ()
    if algorithm.weights is None:  # those of the data, for good
        return jnp.asarray(problem.class_shares, float)
    return jnp.full(problem.num_classes, 1 / problem.num_classes)


def _adjustment(state: TrainState) -> dict[str, jax.Array]:
    """The keyword of the loss that says by which shares logits are adjusted, if so."""
    return {} if isinstance(state.shares, tuple) else {"shares": state.shares}


def _averaged(shares: Any, value: PCNValue) -> jax.Array:
    """A moving average of the shares of the classes, as they come into the steps."""
    new = _DECAY_OF_SHARES * shares + (1 - _DECAY_OF_SHARES) * value.shares
    new = jnp.where(value.counts > 0, new, shares)
    return (new / new.sum()).astype(shares.dtype)


def _given(state: TrainState) -> tuple[ModelState, jax.Array]:
    """What the loss takes besides the batch: the model's state and a dropout key."""
    _, dropout_key = _keys(state.seed)
    return state.model_state, jax.random.fold_in(dropout_key, state.step)


def _keys(seed: jax.typing.ArrayLike) -> jax.Array:
    """Keys of a run: for its initial parameters and for dropout."""
    return jax.random.split(jax.random.key(seed))
