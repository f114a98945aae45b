"""From measurements to numbers: one line an algorithm, each number with its spread."""

import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from tabulate import tabulate

from experiments.intervals import interval
from pcn_jax import initial_drop, steps_to_reach
from pcn_jax.training import ALGORITHMS, AlgorithmName, Record


class RunSummary(NamedTuple):
    """One run in numbers.

    Attributes:
      macro_recall: On the test split, at the last step.
      stopped_early: The same at the measurement after the start at which it is best on
        the validation split.
      minority_recall: The same of the minority.
      drop: Depth of the initial drop: rise of the minority's training loss.
      drop_steps: Its length, in steps.
      steps_to_target: Steps to the target recall of the minority on the test split.
      late_loss: Largest training loss of any class in the second half of the run.
      diverged: Whether a training loss at the last step is not finite.
    """

    macro_recall: float
    stopped_early: float
    minority_recall: float
    drop: float
    drop_steps: float
    steps_to_target: float
    late_loss: float
    diverged: bool


class Summary(NamedTuple):
    """One algorithm: its learning rate, and each of its runs in numbers."""

    learning_rate: float
    runs: list[RunSummary]

    @property
    def diverged(self) -> str:
        """How many of its runs diverged, in words; empty if none did."""
        number = sum(run.diverged for run in self.runs)
        return f"{number} of {len(self.runs)} diverged" if number else ""


def minority(class_counts: np.ndarray) -> np.ndarray:
    """The minority: the rarest third of the classes, at least one.

    Args:
      class_counts: Training examples of each class, `[C]`.

    Returns:
      Their indices.

    Example:
      >>> minority(np.array([120, 72, 43, 26, 16, 9, 6, 3, 2, 2]))
      array([7, 8, 9])
    """
    rarest = np.argsort(-class_counts, kind="stable")
    return np.sort(rarest[-max(len(class_counts) // 3, 1) :])


def summarise_run(
    records: Sequence[Record], class_counts: np.ndarray, target_recall: float
) -> RunSummary:
    """Reduces the measurements of a run to numbers.

    Args:
      records: Measurements, in order.
      class_counts: Training examples of each class, `[C]`.
      target_recall: Recall of the minority up to which steps are counted.

    Returns:
      A `RunSummary`.
    """
    steps = np.array([record["step"] for record in records])
    rare = minority(class_counts)
    loss = np.array([record["train"]["loss"] for record in records], np.float64)
    recall = np.array([record["test"]["recall"] for record in records], np.float64)
    drop = initial_drop(steps, loss[:, rare].mean(axis=1), best=0.0)
    rare_recall = recall[:, rare].mean(axis=1)
    validation = np.array([r["validation"]["macro_recall"] for r in records[1:]])
    best = 1 + validation.argmax() if validation.size else 0
    late = loss[steps >= steps[-1] / 2]
    return RunSummary(
        macro_recall=float(recall[-1].mean()),
        stopped_early=float(recall[best].mean()),
        minority_recall=float(rare_recall[-1]),
        drop=drop.depth,
        drop_steps=drop.steps,
        steps_to_target=steps_to_reach(steps, rare_recall, target_recall),
        late_loss=float(late.max()) if np.isfinite(late).all() else np.inf,
        diverged=not np.isfinite(loss[-1]).all(),
    )


def summarise(
    runs: Mapping[AlgorithmName, Sequence[Sequence[Record]]],
    class_counts: np.ndarray,
    learning_rates: Mapping[AlgorithmName, float],
    target_recall: float,
) -> dict[AlgorithmName, Summary]:
    """Reduces all runs to numbers.

    Args:
      runs: For each algorithm, the records of each seed.
      class_counts: Training examples of each class, `[C]`.
      learning_rates: Of each algorithm.
      target_recall: Recall of the minority up to which steps are counted.

    Returns:
      A `Summary` of each algorithm.
    """
    return {
        algorithm: Summary(
            learning_rates[algorithm],
            [summarise_run(records, class_counts, target_recall) for records in seeds],
        )
        for algorithm, seeds in runs.items()
    }


def table(summary: Mapping[AlgorithmName, Summary], target_recall: float) -> str:
    """A Markdown table, with what its columns mean.

    Args:
      summary: Of each algorithm.
      target_recall: As in `summarise`.

    Returns:
      Lines of text.
    """
    columns: dict[str, tuple[str, Callable[[Sequence[float]], str]]] = {
        "macro recall": ("macro_recall", _mean),
        "stopped early": ("stopped_early", _mean),
        "minority recall": ("minority_recall", _mean),
        "drop": ("drop", _mean),
        "drop, steps": ("drop_steps", _median),
        f"steps to {target_recall:g}": ("steps_to_target", _median),
        "late loss": ("late_loss", _median),
    }
    rows = [
        [
            ", ".join(filter(None, (ALGORITHMS[algorithm].label, line.diverged))),
            f"{line.learning_rate:g}",
            *(
                show([getattr(run, attribute) for run in line.runs])
                for attribute, show in columns.values()
            ),
        ]
        for algorithm, line in summary.items()
    ]
    number = len(next(iter(summary.values())).runs)
    text = textwrap.fill(
        f"Over {seeds(number)}. Recalls are of the balanced test split at the last "
        "step, or stopped early: where the macro recall is best on the validation "
        "split; the minority is the rarest third of the classes; the drop is the rise "
        "of its training loss before it is learned; steps to "
        f"{target_recall:g} are counted up to that recall of the minority; late loss "
        "is the largest training loss of any class in the second half of the run. Mean "
        "± half of the 95% confidence interval (t), or median [smallest, largest].",
        width=88,
    )
    head = ["", "learning rate", *columns]
    lines = tabulate(rows, head, tablefmt="github", disable_numparse=True)
    return f"{lines}\n\n{text}"


def seeds(number: int) -> str:
    """So many seeds, in words.

    Args:
      number: Of seeds.

    Example:
      >>> seeds(1)
      '1 seed'
    """
    return f"{number} seed" if number == 1 else f"{number} seeds"


def _mean(values: Sequence[float]) -> str:
    mean = statistics.fmean(values)
    if len(values) < 3 or not np.isfinite(values).all():
        return f"{mean:.2f}"
    return f"{mean:.2f} ± {interval(values).high - mean:.2f}"


def _median(values: Sequence[float]) -> str:
    # The lower median: the middle of two steps would be a step that was not measured.
    middle = statistics.median_low(values)
    if len(values) == 1:
        return _short(middle)
    spread = ", ".join(_short(value) for value in (min(values), max(values)))
    return f"{_short(middle)} [{spread}]"


def _short(value: float) -> str:
    return (
        "never"
        if np.isposinf(value)
        else f"{value:.3g}"
        if value < 1e3
        else f"{value:.0f}"
    )
