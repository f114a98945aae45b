"""The state of a training run, and what of it the loss takes."""

from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from pcn_jax.training.problem import ModelState

Keep = Literal["last", "best"]
"""Which state of a run is kept: the last, or that of early stopping."""


class TrainState(NamedTuple):
    """Everything that changes in training, and the seed that decides how.

    Attributes:
      step: Steps taken, int32.
      seed: Seed of the run, uint32.
      learning_rate: What the optimizer's updates are multiplied by, a scalar.
      params: Parameters of the model.
      model_state: The model's other collections, such as `batch_stats`.
      opt_state: State of the chain of gradient transformations.
      reference: Class gradients of all the training data, for PCNSGD+R; else `None`.
      weights_state: State of class weights that have one; else `None`.
      shares: Of the classes, by which logits are adjusted, `[C]`; else `None`.
    """

    step: jax.Array
    seed: jax.Array
    learning_rate: jax.Array
    params: chex.ArrayTree
    model_state: ModelState
    opt_state: optax.OptState
    reference: chex.ArrayTree | None = None
    weights_state: Any = None
    shares: jax.Array | None = None

    @property
    def loss_args(self) -> tuple[ModelState, jax.Array]:
        """What `Problem.losses` takes after the batch: it, and a key for dropout."""
        _, dropout_key = run_keys(self.seed)
        return self.model_state, jax.random.fold_in(dropout_key, self.step)


@jax.jit
def copied(state: TrainState) -> TrainState:
    """The same in memory of its own: a step takes what it is given.

    Args:
      state: Any.
    """
    copy: TrainState = jax.tree.map(jnp.copy, state)
    return copy


def run_keys(seed: jax.typing.ArrayLike) -> jax.Array:
    """Keys of a run: for its initial parameters and for dropout.

    Args:
      seed: Of the run.
    """
    return jax.random.split(jax.random.key(seed))
