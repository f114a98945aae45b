"""Numbers of a run, one a seed, that several claims look at."""

import itertools
import json
from collections.abc import Callable, Mapping

import numpy as np

from experiments.experiment import learning_rates_path
from experiments.study import Curves
from experiments.summary import minority
from pcn_jax import initial_drop
from pcn_jax.training import AlgorithmName

_NEARLY = 0.95
"""Part of the best score from which on a learning rate works."""


def rare_loss(curves: Curves) -> np.ndarray:
    """Training loss of the minority, `[S, T]`."""
    rare: np.ndarray = curves.train_loss[:, :, minority(curves.class_counts)]
    mean: np.ndarray = rare.mean(axis=2)
    return mean


def rare_recall(curves: Curves) -> np.ndarray:
    """Test recall of the minority, `[S, T]`."""
    rare: np.ndarray = curves.test_recall[:, :, minority(curves.class_counts)]
    mean: np.ndarray = rare.mean(axis=2)
    return mean


def macro_recall(curves: Curves) -> np.ndarray:
    """Test recall, each class counting the same, `[S, T]`."""
    mean: np.ndarray = curves.test_recall.mean(axis=2)
    return mean


def drop_depth(curves: Curves) -> np.ndarray:
    """How far the minority's training loss rises before it is learned, `[S]`."""
    return _drops(curves)[:, 0]


def drop_length(curves: Curves) -> np.ndarray:
    """Steps until it is back; at least one more than were run if it is not, `[S]`."""
    lengths = _drops(curves)[:, 1]
    return np.where(np.isfinite(lengths), lengths, curves.steps[-1] + 1)


def _drops(curves: Curves) -> np.ndarray:
    drops = [initial_drop(curves.steps, loss, best=0.0) for loss in rare_loss(curves)]
    return np.array(drops)


def recall_lost(curves: Curves, *, at_first: bool = False) -> np.ndarray:
    """How far the minority's test recall falls below its start at most, `[S]`.

    Over the whole run, or in its first tenth.
    """
    recall = rare_recall(curves)
    last = curves.steps[-1] / 10 if at_first else curves.steps[-1]
    lost: np.ndarray = recall[:, 0] - recall[:, curves.steps <= last].min(axis=1)
    return lost


def steps_to_beat_chance(curves: Curves) -> np.ndarray:
    """Steps from which on the minority's training loss is below `ln C`, of guessing.

    One more than were run where it is above it at the end: `[S]`.
    """
    above = rare_loss(curves) > np.log(len(curves.class_counts))
    last = above.shape[1] - 1 - np.argmax(above[:, ::-1], axis=1)
    after = np.append(curves.steps, curves.steps[-1] + 1)[last + 1]
    return np.where(above.any(axis=1), after, 0)


def over_log_steps(values: np.ndarray) -> np.ndarray:
    """Mean over the log-spaced measurements after the start, `[S, T]` to `[S]`."""
    mean: np.ndarray = values[:, 1:].mean(axis=1)
    return mean


MACRO_RECALLS: dict[str, Callable[[Curves], np.ndarray]] = {
    "at the end": lambda curves: macro_recall(curves)[:, -1],
    "over training": lambda curves: over_log_steps(macro_recall(curves)),
}
"""The macro recall of runs as one number each, `[S]`, by when it is taken."""


def class_gap(curves: Curves) -> np.ndarray:
    """Test recall of the most frequent class less that of the minority, `[S, T]`."""
    largest = int(np.argmax(curves.class_counts))
    gap: np.ndarray = curves.test_recall[:, :, largest] - rare_recall(curves)
    return gap


def step_with_as_many_examples(curves: Curves) -> int:
    """When an oversampled run has seen the minority as often as this one in all."""
    counts = curves.class_counts
    rare = minority(counts)
    as_it_comes = counts[rare].sum() / counts.sum()
    oversampled = len(rare) / len(counts)
    return int(curves.steps[-1] * as_it_comes / oversampled)


def at_step(curves: Curves, values: np.ndarray, step: int) -> np.ndarray:
    """The last measurement up to a step, `[S, T]` to `[S]`."""
    last = int(np.searchsorted(curves.steps, step, side="right")) - 1
    found: np.ndarray = values[:, last]
    return found


def stopped_at(curves: Curves) -> np.ndarray:
    """The step after the start with the best macro recall on validation data, `[S]`."""
    steps: np.ndarray = curves.steps[_best(curves)]
    return steps


def at_the_best(curves: Curves, values: np.ndarray) -> np.ndarray:
    """The measurement at which early stopping ends a run, `[S, T]` to `[S]`."""
    best = _best(curves)[:, np.newaxis]
    found: np.ndarray = np.take_along_axis(values, best, axis=1)[:, 0]
    return found


def _best(curves: Curves) -> np.ndarray:
    if np.isnan(curves.validation_recall).any():
        raise ValueError("These runs were kept without recalls on validation data.")
    after_the_start = curves.validation_recall.mean(axis=2)[:, 1:]
    best: np.ndarray = 1 + after_the_start.argmax(axis=1)
    return best


def best_rate(setup: str, algorithm: AlgorithmName) -> str:
    """The learning rate with the best score, and whether the search ended there."""
    of_rates = _scores(setup, algorithm)
    lowest, *_, highest = sorted(map(float, of_rates))
    best = float(max(of_rates, key=of_rates.__getitem__))
    ends = {lowest: ", lowest", highest: ", highest"}
    return f"{best:g}{ends.get(best, '')}"


def rates_that_work(setup: str, algorithm: AlgorithmName) -> str:
    """The rates of the search with nearly the best score, neighbours as a range."""
    of_rates = _scores(setup, algorithm)
    least = _NEARLY * max(of_rates.values())
    rates = sorted(of_rates, key=float)
    work = itertools.groupby(rates, key=lambda rate: of_rates[rate] >= least)
    ranges = [list(of) for works, of in work if works]
    return ", ".join(" to ".join(dict.fromkeys((r[0], r[-1]))) for r in ranges)


def _scores(setup: str, algorithm: AlgorithmName) -> Mapping[str, float]:
    found = json.loads(learning_rates_path(setup).read_text(encoding="utf-8"))
    scores: Mapping[str, float] = found["scores"][algorithm]
    return scores
