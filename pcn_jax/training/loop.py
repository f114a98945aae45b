"""The training loop: one for every algorithm, with the data resident on the device."""

import math
import sys
from collections.abc import Callable
from typing import Any

import jax
from tqdm.auto import tqdm

from pcn_jax.checks import check_choice
from pcn_jax.training.algorithms import ALGORITHMS, AlgorithmName, make_sampler
from pcn_jax.training.config import TrainConfig, check_learning_rate
from pcn_jax.training.measure import Record, make_measure, measured_steps
from pcn_jax.training.problem import Examples, Problem
from pcn_jax.training.state import Keep, TrainState, copied
from pcn_jax.training.step import Steps, make_steps

Advance = Callable[[TrainState, Examples, int], TrainState]
"""From a state, the training data and a number of steps to the state behind them."""

_Run = tuple[Steps, Callable[[TrainState], Record], Advance]
_AS_THE_DATA_COME = ("full", "uniform", "stratified")  # samplers that keep the shares


def make_train(
    problem: Problem,
    algorithm: AlgorithmName,
    learning_rate: float,
    config: TrainConfig,
    *,
    measure: Callable[[TrainState], Record] | None = None,
    keep: Keep = "last",
) -> Callable[..., TrainState]:
    """Builds a training run; what it compiles serves all seeds and rates.

    Args:
      problem: The model, its loss and the data.
      algorithm: The name of one of `ALGORITHMS`.
      learning_rate: Of the optimizer; for the PCN algorithms the length of a class's
        step.
      config: The budget, the optimizer and the rest.
      measure: From a state to what is recorded of it; `None` for all of `make_measure`,
        which takes passes over all the data. `keep="best"` needs its
        `record["validation"]["macro_recall"]`.
      keep: Which state is returned: `"last"`, or for early stopping `"best"`, the one
        that was measured after the start with the best macro recall on validation data.
        The run goes on to the end: after a slump a later state may be the best.

    Returns:
      `train(seed, on_record=None)`, which trains from scratch and returns a
      `TrainState`. `on_record` is called with each measurement, at step 0, at
      log-spaced steps and at the last. The same seed gives the same result,
      bit for bit on one machine.

    Raises:
      ValueError: If there is no such algorithm or `keep`, the learning rate is not
        positive and finite, the batch size does not suit the sampler and the class
        counts, or the sampler does not suit the algorithm; when called, if a gradient
        of all the data is asked of a model whose examples interact, or if the seed is
        not from 0 to 2**32 - 1.

    Example:
      >>> from pcn_jax.data import SETUPS, load
      >>> from pcn_jax.models import MLP
      >>> problem = Problem(load(SETUPS["digits-lt"]), MLP(num_classes=10))
      >>> config = TrainConfig(steps=2, batch_size=100)
      >>> train = make_train(problem, "pcnsgd", learning_rate=0.1, config=config)
      >>> records = []
      >>> state = train(seed=0, on_record=records.append)
      >>> [record["step"] for record in records]
      [0, 1, 2]
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(
            f"There is no algorithm {algorithm!r}: choose from {', '.join(ALGORITHMS)}."
        )
    check_learning_rate(learning_rate)
    check_choice("keep", keep, Keep)
    label = ALGORITHMS[algorithm].label
    # Kept with the data that it belongs to, and let go with them.
    if (algorithm, config) not in problem.compiled:
        problem.compiled[algorithm, config] = _build(problem, algorithm, config)
    run: _Run = problem.compiled[algorithm, config]
    steps, measure_all, advance = run
    measured = measure or measure_all
    stops = measured_steps(config.steps, per_decade=config.measurements_per_decade)

    def train(
        seed: int, on_record: Callable[[Record], Any] | None = None
    ) -> TrainState:
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed must be from 0 to 2**32 - 1, got {seed!r}.")
        state = steps.init(seed, learning_rate)
        best, best_recall = None, -math.inf
        with tqdm(
            total=config.steps,
            desc=f"{label}, seed {seed}",
            unit="step",
            leave=False,
            disable=not _is_watched(),
        ) as progress:
            for start, stop in zip([0, *stops], stops, strict=False):
                state = advance(state, problem.splits["train"], stop - start)
                progress.update(stop - start)
                if on_record is None and keep == "last":
                    continue
                record = measured(state)
                if on_record is not None:
                    on_record(record)
                if keep == "best" and stop:
                    recall = _to_stop_by(record)
                    if recall > best_recall:
                        best, best_recall = copied(state), recall
        return state if best is None else best

    return train


def _build(problem: Problem, algorithm: AlgorithmName, config: TrainConfig) -> _Run:
    """What a run is made of, compiled when first called: the same for all rates.

    Every optimizer's updates are proportional to its learning rate, so it is built with
    a rate of 1 and the state has the rest.
    """
    chosen = ALGORITHMS[algorithm]
    name = config.sampler or chosen.sampler
    if chosen.adjusts_logits and not chosen.weights and name not in _AS_THE_DATA_COME:
        raise ValueError(
            f"{chosen.label} adjusts logits by the shares of the classes in the data, "
            f"and {name} batches have others: choose one of "
            f"{', '.join(_AS_THE_DATA_COME)}, or sgd."
        )
    sampler = make_sampler(
        name,
        problem.train_labels,
        config.batch_size,
        config.steps,
    )
    optimizer = config.optimizer.build(1.0, config.steps)
    steps = make_steps(problem, chosen, config, optimizer, sampler)
    measure = make_measure(problem, steps)
    make_advance = _scan if problem.loop == "scan" else _python_loop
    return steps, measure, make_advance(problem, steps)


def _to_stop_by(record: Record) -> float:
    try:
        return float(record["validation"]["macro_recall"])
    except (KeyError, TypeError) as error:
        raise ValueError(
            "keep='best' goes by record['validation']['macro_recall'], which measure "
            f"does not return: it has {', '.join(record)}."
        ) from error


def _is_watched() -> bool:
    """Whether a person sees a progress bar: in a terminal or in a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def _python_loop(problem: Problem, steps: Steps) -> Advance:
    """Steps from Python: the fast way on CPU."""

    def advance(state: TrainState, train: Examples, number: int) -> TrainState:
        first = int(state.step)
        for now in range(first, first + number):
            if steps.reference_every and now % steps.reference_every == 0:
                _, reference = problem.train_class_gradients(
                    state.params, train.inputs, state.model_state, None
                )
                state = state._replace(reference=reference)
            _, state = steps.step(state, train)
        return state

    return advance


def _scan(problem: Problem, steps: Steps) -> Advance:
    """All steps in one compiled loop: the fast way on accelerators."""

    def next_state(state: TrainState, train: Examples) -> TrainState:
        if steps.reference_every:
            given = state.params, train.inputs, state.model_state, None
            reference = jax.lax.cond(
                state.step % steps.reference_every == 0,
                lambda: problem.train_class_gradients(*given)[1],
                lambda: state.reference,
            )
            state = state._replace(reference=reference)
        return steps.apply(state, *steps.gradients(state, train))[1]

    def advance(state: TrainState, train: Examples, number: int) -> TrainState:
        last: TrainState = jax.lax.fori_loop(
            0, number, lambda _, state: next_state(state, train), state
        )
        return last

    jitted: Advance = jax.jit(advance, donate_argnums=0)
    return jitted
