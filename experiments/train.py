"""Trains algorithms on a set-up over several seeds, prints a table, draws figures.

    python -m experiments.train digits-lt
    python -m experiments.train automobile-truck --data.data-dir DIR --learning-rate 0.1
    python -m experiments.train custom --data.name FILE.npz --learning-rate 0.1
    python -m experiments.train SETUP --help

Runs that are already there are not run again, so a broken-off command can be repeated.
"""

import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiments.experiment import (
    SETUPS,
    Experiment,
    fewest_held_out,
    make_folder,
    parse,
    problem,
    without_traceback,
)
from experiments.figures import draw
from experiments.summary import seeds, summarise, table
from pcn_jax.data import Dataset
from pcn_jax.training import (
    ALGORITHMS,
    AlgorithmName,
    Problem,
    Record,
    TrainState,
    finished_description,
    make_train,
    params_path,
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
      ValueError: If a finished run in the folder was made with other options or cannot
        be read, or an algorithm cannot be run like this.
    """
    dataset, of_problem = problem(experiment)
    of_data = _of_data(experiment, dataset)
    runs: Runs = {}
    prepared = _prepared(experiment, of_data, of_problem)
    make_folder(experiment)
    for algorithm, train in prepared.items():
        for seed in experiment.seeds:
            folder = _folder(experiment, algorithm, seed)
            description = _description(experiment, algorithm, seed, of_data)
            if _is_missing(experiment, folder, description):
                with write_run(
                    folder, description, tensorboard=experiment.tensorboard
                ) as write:
                    state = train(seed, on_record=write)
                    if experiment.save_params:
                        write.save_params(state, experiment.save_params)
            runs.setdefault(algorithm, []).append(read_run(folder))
        print(f"{ALGORITHMS[algorithm].label}: {seeds(len(experiment.seeds))} done")
    return dataset, runs


def _prepared(
    experiment: Experiment, of_data: dict[str, Any], of_problem: Problem
) -> dict[AlgorithmName, Callable[..., TrainState]]:
    """The runs of all algorithms, refused before the first if one cannot be made."""
    prepared = {
        algorithm: make_train(
            of_problem,
            algorithm,
            experiment.learning_rate_of(algorithm),
            experiment.train,
            keep=experiment.save_params or "last",
        )
        for algorithm in experiment.algorithms
    }
    for algorithm in experiment.algorithms:
        for seed in experiment.seeds:
            description = _description(experiment, algorithm, seed, of_data)
            _is_missing(experiment, _folder(experiment, algorithm, seed), description)
    return prepared


def _is_missing(
    experiment: Experiment, folder: Path, description: dict[str, Any]
) -> bool:
    """Whether a run is to be trained; refused if another one would be lost by it."""
    try:
        found = finished_description(folder)
    except ValueError as error:
        reason = str(error)
    else:
        if found is None:
            return True
        if found == description:
            keep = experiment.save_params
            return keep is not None and not params_path(folder, keep).exists()
        reason = (
            f"{folder} holds a finished run that differs in "
            f"{_differences(found, description)}."
        )
    if not experiment.overwrite:
        raise ValueError(f"{reason} Choose another --out, or --overwrite it.")
    return True


def _differences(found: Any, asked: Any) -> str:
    """The first fields in which two descriptions differ, with both values."""
    there, wanted = dict(_fields(found)), dict(_fields(asked))
    both = {
        name: (there.get(name, "nothing"), wanted.get(name, "nothing"))
        for name in wanted | there
    }
    differing = [
        f"{name} ({_short(old)} there, {_short(new)} asked for)"
        for name, (old, new) in both.items()
        if old != new
    ]
    more = len(differing) - 4
    return ", ".join(differing[:4]) + (f" and {more} more" if more > 0 else "")


def _fields(x: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested data under a name such as `train.steps`."""
    if not isinstance(x, dict):
        yield name, x
        return
    for key, value in x.items():
        yield from _fields(value, f"{name}.{key}" if name else key)


def _short(x: Any) -> str:
    return text if len(text := str(x)) <= 40 else f"{text[:37]}..."


def _of_data(experiment: Experiment, dataset: Dataset) -> dict[str, Any]:
    """What the data are; a file of one's own may change under the same name."""
    of_data = {
        "data": experiment.data,
        "class_names": dataset.class_names,
        "class_counts": dataset.class_counts,
    }
    if experiment.data.is_npz:
        digest = hashlib.sha256()
        for split in (dataset.train, dataset.validation, dataset.test):
            for array in split:
                digest.update(array.tobytes())
        of_data["data_sha256"] = digest.hexdigest()
    return of_data


def _description(
    experiment: Experiment,
    algorithm: AlgorithmName,
    seed: int,
    of_data: dict[str, Any],
) -> dict[str, Any]:
    """All that decides the result of a run, as plain data."""
    description: dict[str, Any] = plain(
        {
            "setup": experiment.name,
            "algorithm": algorithm,
            "learning_rate": experiment.learning_rate_of(algorithm),
            "seed": seed,
            **of_data,
            "model": experiment.model,
            "train": ALGORITHMS[algorithm].heeded(experiment.train),
        }
    )
    return description


def _folder(experiment: Experiment, algorithm: AlgorithmName, seed: int) -> Path:
    return experiment.folder / algorithm / f"seed-{seed}"


def _show(experiment: Experiment, dataset: Dataset, runs: Runs) -> None:
    """Prints and writes the table, and draws."""
    rates = {name: experiment.learning_rate_of(name) for name in runs}
    summary = summarise(runs, dataset.class_counts, rates, experiment.target_recall)
    test, validation = fewest_held_out(dataset)
    printed = (
        f"{table(summary, experiment.target_recall)}\n\n"
        f"Each class has at least {test} test and {validation} validation examples."
    )
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


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line.

    Args:
      arguments: Instead of those of the process.
    """
    with without_traceback(
        "finished runs are kept, and the same command goes on with the next one; an "
        "unfinished one starts anew."
    ):
        experiment = parse("experiments.train", arguments, SETUPS, __doc__ or "")
        dataset, runs = run(experiment)
        _show(experiment, dataset, runs)


if __name__ == "__main__":
    main()
