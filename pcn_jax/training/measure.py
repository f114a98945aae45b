"""What is recorded of a run: each class's loss and recall, and the class gradients."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import numpy as np

from pcn_jax.dynamics import predicted_loss_changes
from pcn_jax.geometry import class_alignment, class_cosines, class_norms
from pcn_jax.training.problem import Problem, StepValue
from pcn_jax.training.state import TrainState, copied
from pcn_jax.training.step import Steps
from pcn_jax.weights import SmoothedNormState

Record = dict[str, Any]
"""One measurement: names to numbers or nested lists of numbers, ready for JSON."""


def measured_steps(total_steps: int, *, per_decade: int) -> list[int]:
    """Log-spaced steps at which to measure, with the initial state and the last step.

    Args:
      total_steps: Steps of the run.
      per_decade: Measurements from one power of ten to the next; at small steps there
        are fewer, since steps are whole.

    Returns:
      Increasing steps from 0 to `total_steps`.

    Example:
      >>> measured_steps(1000, per_decade=3)
      [0, 1, 2, 5, 10, 22, 46, 100, 215, 464, 1000]
    """
    if not total_steps:
        return [0]
    number = 1 + int(np.ceil(np.log10(total_steps) * per_decade))
    spaced = np.rint(np.geomspace(1, total_steps, number))
    return sorted({0, *spaced.astype(int).tolist()})


def make_measure(problem: Problem, steps: Steps) -> Callable[[TrainState], Record]:
    """Builds the function that measures a state; it changes nothing.

    Args:
      problem: The model, its loss and the data.
      steps: The step of the algorithm.

    Returns:
      A function from a state to a record with `step`; for each of `train`, `validation`
      and `test`: `loss` `[C]`, `recall` `[C]` and `macro_recall`; and

      * `class_norms` `[C]` and `class_cosines` `[C, C]`: of the class gradients of all
        the training data (as shares of its mean loss);
      * `class_alignment` `[C]`: `p_l` of the batch that the next step would use;
      * `predicted_loss_changes` `[C]`: of each class's mean training loss by that step,
        to first order;
      * under the smoothed norm, `estimated_alignment` `[C]`: what it takes `p_l` to be,
        from the batches so far.
    """
    train = problem.splits["train"]

    def measure(state: TrainState) -> Record:
        variables = state.params, state.model_state
        all_data = problem.train_class_gradients(
            state.params, train.inputs, state.model_state, None
        )
        if steps.reference_every and int(state.step) % steps.reference_every == 0:
            state = state._replace(reference=all_data[1])
        _, batch = steps.class_gradients(state, train)
        updates, _ = steps.step(copied(state), train)
        record = {
            "step": state.step,
            **{
                name: problem.evaluate(*variables, split)
                for name, split in problem.splits.items()
            },
            **_geometry(*all_data, batch, updates),
        }
        if isinstance(state.weights_state, SmoothedNormState):
            record["estimated_alignment"] = state.weights_state.alignment
        plain: Record = jax.tree.map(_plain, jax.device_get(record))
        return plain

    return measure


@jax.jit
def _geometry(
    value: StepValue,
    class_grads: chex.ArrayTree,
    batch: chex.ArrayTree,
    updates: chex.ArrayTree,
) -> dict[str, jax.Array]:
    """Of all data's class gradients, with a batch's and the step that it leads to."""
    return {
        "class_norms": class_norms(class_grads),
        "class_cosines": class_cosines(class_grads),
        "class_alignment": class_alignment(batch, class_grads),
        "predicted_loss_changes": predicted_loss_changes(
            class_grads, updates, value.counts
        ),
    }


def _plain(x: np.ndarray) -> Any:
    """Numbers and nested lists of them."""
    return np.asarray(x).tolist()
