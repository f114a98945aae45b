"""Searches each algorithm's learning rate on the same grid, chosen on validation data.

    python -m experiments.tune digits-lt

The score of a learning rate is the macro recall on the validation split, averaged over
the log-spaced measurements of the run: it rewards learning soon and staying there. The
seeds are not those of the experiments. What is found is in experiments/learning_rates;
what is there is not searched again, unless with --overwrite.
"""

import dataclasses
import json
import shlex
import statistics
import sys
from typing import Any

from experiments.experiment import (
    SETUPS,
    Experiment,
    learning_rates_path,
    parse,
    problem,
)
from pcn_jax.training import ALGORITHMS, AlgorithmName, Record, make_train

_SMALL = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
GRIDS = {
    "sgd": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
    "adam": _SMALL,
    "adamw": _SMALL,
}
"""Learning rates that are searched, by the optimizer."""


def score(records: list[Record]) -> float:
    """Mean macro recall on the validation split over the measurements after the start.

    Args:
      records: Measurements of a run, the initial state first.

    Returns:
      A number from 0 to 1.

    Example:
      >>> score([{"validation": {"macro_recall": r}} for r in (0.1, 0.5, 0.75)])
      0.625
    """
    return statistics.fmean(r["validation"]["macro_recall"] for r in records[1:])


def search(experiment: Experiment, algorithm: AlgorithmName, command: str) -> None:
    """Searches the rates that are not yet in the file of a set-up, and writes them.

    Args:
      experiment: All but the algorithm and the learning rate; `search_seeds` count.
      algorithm: Whose learning rate is wanted.
      command: What was typed, for the file.

    Raises:
      FileNotFoundError: If the data set is not there.
    """
    path = learning_rates_path(experiment.name)
    found: dict[str, Any] = {"searched": {}, "scores": {}}
    if path.exists():
        found = json.loads(path.read_text())
    scores: dict[str, dict[str, float]] = found["scores"]
    of_rates = scores.setdefault(algorithm, {})
    grid = GRIDS[experiment.train.optimizer.name]
    missing = [
        rate for rate in grid if experiment.overwrite or f"{rate:g}" not in of_rates
    ]
    if not missing:
        return
    _, of_problem = problem(experiment)
    for rate in missing:
        train = make_train(of_problem, algorithm, rate, experiment.train)
        of_seeds = []
        for seed in experiment.search_seeds:
            records: list[Record] = []
            train(seed, on_record=records.append)
            of_seeds.append(score(records))
        of_rates[f"{rate:g}"] = round(statistics.fmean(of_seeds), 4)
    best = {name: float(max(s, key=s.__getitem__)) for name, s in scores.items()}
    searched = {"command": command, "seeds": list(experiment.search_seeds)}
    found = {
        "best": best,
        "searched": {**found["searched"], algorithm: searched},
        "scores": scores,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(
        f"{experiment.name}, {ALGORITHMS[algorithm].label}: {best[algorithm]:g} of "
        f"{of_rates}",
        flush=True,
    )


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line.

    Args:
      arguments: Instead of those of the process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "experiments.tune", *arguments])
    setups = {
        name: dataclasses.replace(setup, seeds=setup.search_seeds)
        for name, setup in SETUPS.items()
    }
    try:
        experiment = parse("experiments.tune", arguments, setups, __doc__ or "")
        experiment = dataclasses.replace(experiment, search_seeds=experiment.seeds)
        for algorithm in experiment.algorithms:
            search(experiment, algorithm, command)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
