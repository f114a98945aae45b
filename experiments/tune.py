"""Searches each algorithm's learning rate on the same grid, chosen on validation data.

    python -m experiments.tune digits-lt
    python -m experiments.tune custom --data.name FILE.npz

The score of a learning rate is the macro recall on the validation split, averaged over
the log-spaced measurements of the run: it rewards learning soon and staying there. (Or
the best of them, where runs are stopped early: C12; or the last: C13.) The seeds are
not those of the experiments. What is found for a set-up as it stands is in
experiments/learning_rates; for other data, models or training it is in
OUT/SETUP/ALGORITHM, and experiments.train takes it for the same. What is there is not
searched again, unless with --overwrite. After an interruption the same command goes on
where it was.
"""

import dataclasses
import functools
import json
import shlex
import statistics
from pathlib import Path
from typing import Any

from experiments.experiment import (
    SETUPS,
    Experiment,
    Goal,
    make_folder,
    parse,
    problem,
    without_traceback,
)
from experiments.kept import write_whole
from pcn_jax.training import (
    ALGORITHMS,
    AlgorithmName,
    OptimizerConfig,
    Problem,
    Record,
    TrainState,
    make_train,
)

_SMALL = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
_LARGE = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_HIGHEST = 10.0
"""From here only rates are searched that decay."""


def grid(optimizer: OptimizerConfig) -> tuple[float, ...]:
    """Learning rates that are searched.

    Args:
      optimizer: What they are for. Those of Adam are smaller, and so are those with
        momentum, by which a gradient counts `1 / (1 - momentum)` times. Rates that
        decay may start higher.

    Example:
      >>> grid(OptimizerConfig(momentum=0.9))[:3]
      (0.0001, 0.0003, 0.001)
    """
    if optimizer.name != "sgd":
        return _SMALL
    rates = _LARGE if optimizer.schedule == "constant" else (*_LARGE, _HIGHEST)
    return tuple(float(f"{rate * (1 - optimizer.momentum):g}") for rate in rates)


def score(records: list[Record], goal: Goal = "over training") -> float:
    """Macro recall on the validation split over the measurements after the start.

    Args:
      records: Measurements of a run, the initial state first.
      goal: Which of them count.

    Returns:
      A number from 0 to 1.

    Example:
      >>> score([{"validation": {"macro_recall": r}} for r in (0.1, 0.5, 0.75)])
      0.625
    """
    recalls: list[float] = [r["validation"]["macro_recall"] for r in records[1:]]
    if goal == "early stopping":
        return max(recalls)
    return recalls[-1] if goal == "at the end" else statistics.fmean(recalls)


def search(experiment: Experiment, algorithm: AlgorithmName, command: str) -> bool:
    """Searches the rate of an algorithm, if it was not found before.

    Each score is written as soon as it is there; the best, when all are. If the grid
    has grown since, only what is new is searched.

    Args:
      experiment: All but the algorithm and the learning rate; `search_seeds` count.
      algorithm: Whose learning rate is wanted.
      command: What was typed, for the file.

    Returns:
      Whether there was anything to search.

    Raises:
      FileNotFoundError: If the data set is not there.
      ValueError: If `out` cannot be written.
    """
    path = experiment.rates_path(algorithm)
    if path.is_relative_to(experiment.out):
        make_folder(experiment)
    found, seeds = _read(path), list(experiment.search_seeds)
    searched = {"command": command, "seeds": seeds}
    rates = [f"{rate:g}" for rate in grid(experiment.train.optimizer)]
    is_done = algorithm in found["best"] and all(
        rate in found["scores"][algorithm] for rate in rates
    )
    if is_done and not experiment.overwrite:
        return False
    if is_done or found["searched"].get(algorithm) != searched:
        found["best"].pop(algorithm, None)
        found["searched"][algorithm] = searched
        found["scores"][algorithm] = {}
        _write(path, found)
    _, of_problem = problem(experiment)
    for rate in rates:
        if rate in found["scores"][algorithm]:
            continue  # an interrupted search goes on
        train = make_train(
            of_problem,
            algorithm,
            float(rate),
            experiment.train,
            measure=functools.partial(_on_validation_data, of_problem),
        )
        of_seeds = []
        for seed in seeds:
            records: list[Record] = []
            train(seed, on_record=records.append)
            of_seeds.append(score(records, experiment.searched_for))
        found = _read(path)  # again: other algorithms may be searched at the same time
        found["scores"][algorithm][rate] = round(statistics.fmean(of_seeds), 4)
        _write(path, found)
    scores = found["scores"][algorithm]
    best = max(rates, key=scores.__getitem__)
    found["best"][algorithm] = float(best)
    _write(path, found)
    label = ALGORITHMS[algorithm].label
    print(f"{experiment.name}, {label}: {best} of {scores}, in {path}", flush=True)
    return True


def _on_validation_data(of_problem: Problem, state: TrainState) -> Record:
    """All of a measurement that a search needs."""
    split = of_problem.splits["validation"]
    found = of_problem.evaluate(state.params, state.model_state, split)
    return {"validation": {"macro_recall": float(found["macro_recall"])}}


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"best": {}, "searched": {}, "scores": {}}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _write(path: Path, found: dict[str, Any]) -> None:
    write_whole(path, json.dumps(found, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line.

    Args:
      arguments: Instead of those of the process.
    """
    setups = {
        name: dataclasses.replace(setup, seeds=setup.search_seeds)
        for name, setup in SETUPS.items()
    }
    with without_traceback(
        "what was found is kept, and the same command without --overwrite goes on."
    ):
        experiment = parse("experiments.tune", arguments, setups, __doc__ or "")
        experiment = dataclasses.replace(experiment, search_seeds=experiment.seeds)
        command = shlex.join(["python", "-m", "experiments.tune", *experiment.typed])
        for algorithm in experiment.algorithms:
            if not search(experiment, algorithm, command):
                path = experiment.rates_path(algorithm)
                label = ALGORITHMS[algorithm].label
                print(f"{label}: found before, in {path}; --overwrite searches again")


if __name__ == "__main__":
    main()
