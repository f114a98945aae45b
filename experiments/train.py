"""Trains algorithms on a set-up over several seeds, prints a table, draws figures.

    python -m experiments.train digits-lt
    python -m experiments.train automobile-truck --data.data-dir DIR --learning-rate 0.1
    python -m experiments.train custom --data.name FILE.npz --learning-rate 0.1
    python -m experiments.train SETUP --help

Runs that are already there are not run again, so a broken-off command can be repeated.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.experiment import SETUPS, Experiment, parse, problem
from experiments.figures import draw
from experiments.summary import summarise, table
from pcn_jax.data import Dataset
from pcn_jax.training import (
    ALGORITHMS,
    AlgorithmName,
    Problem,
    Record,
    TrainState,
    finished_description,
    make_train,
    plain,
    read_run,
    write_run,
)

Runs = dict[AlgorithmName, list[list[Record]]]
"""For each algorithm, the records of each seed."""


def run(experiment: Experiment) -> tuple[Dataset, Runs]:
    """Trains what is missing and reads the rest.

    Args:
      experiment: What to train.

    Returns:
      The data set and the records of all runs.

    Raises:
      ValueError: If a finished run in the folder was made with other options, or an
        algorithm cannot be run like this.
    """
    dataset, of_problem = problem(experiment)
    runs: Runs = {}
    for algorithm, train in _prepared(experiment, dataset, of_problem).items():
        for seed in experiment.seeds:
            folder = _folder(experiment, algorithm, seed)
            description = _description(experiment, algorithm, seed, dataset)
            if finished_description(folder) != description:
                with write_run(
                    folder, description, tensorboard=experiment.tensorboard
                ) as write:
                    train(seed, on_record=write)
            runs.setdefault(algorithm, []).append(read_run(folder))
        print(f"{ALGORITHMS[algorithm].label}: {len(experiment.seeds)} seeds done")
    return dataset, runs


def _prepared(
    experiment: Experiment, dataset: Dataset, of_problem: Problem
) -> dict[AlgorithmName, Callable[..., TrainState]]:
    """The runs of all algorithms, refused before the first if one cannot be made."""
    for algorithm in experiment.algorithms:
        for seed in experiment.seeds:
            folder = _folder(experiment, algorithm, seed)
            found = finished_description(folder)
            asked = _description(experiment, algorithm, seed, dataset)
            if found not in (None, asked) and not experiment.overwrite:
                differing = [key for key in asked if found.get(key) != asked[key]]
                raise ValueError(
                    f"{folder} holds a finished run that differs in "
                    f"{', '.join(differing)}. Choose another --out, or --overwrite it."
                )
    return {
        algorithm: make_train(
            of_problem,
            algorithm,
            experiment.learning_rate_of(algorithm),
            experiment.train,
        )
        for algorithm in experiment.algorithms
    }


def _description(
    experiment: Experiment, algorithm: AlgorithmName, seed: int, dataset: Dataset
) -> dict[str, Any]:
    """All that decides the result of a run, as plain data."""
    description: dict[str, Any] = plain(
        {
            "setup": experiment.name,
            "algorithm": algorithm,
            "learning_rate": experiment.learning_rate_of(algorithm),
            "seed": seed,
            "data": experiment.data,
            "class_names": dataset.class_names,
            "class_counts": dataset.class_counts,
            "model": experiment.model,
            "train": experiment.train.heeded_by(algorithm),
        }
    )
    return description


def _folder(experiment: Experiment, algorithm: AlgorithmName, seed: int) -> Path:
    return experiment.folder / algorithm / f"seed-{seed}"


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line.

    Args:
      arguments: Instead of those of the process.
    """
    try:
        experiment = parse("experiments.train", arguments, SETUPS, __doc__ or "")
        dataset, runs = run(experiment)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    rates = {name: experiment.learning_rate_of(name) for name in runs}
    summary = summarise(runs, dataset.class_counts, rates, experiment.target_recall)
    printed = table(summary, experiment.target_recall)
    (experiment.folder / "table.md").write_text(printed + "\n")
    print(f"\n{printed}\n")
    for algorithm, line in summary.items():
        if line.diverged:
            print(
                f"warning: {ALGORITHMS[algorithm].label}: {line.diverged}, their last "
                "training loss is not finite: choose a smaller --learning-rate.",
                file=sys.stderr,
            )
    for path in draw(runs, dataset, experiment.folder):
        print(path)


if __name__ == "__main__":
    main()
