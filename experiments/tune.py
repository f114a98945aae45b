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

from experiments.experiment import SETUPS, Experiment, learning_rates_path, parse
from pcn_jax.data import load
from pcn_jax.models import build
from pcn_jax.training import ALGORITHMS, Problem, Record, make_train

GRID = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
SEEDS = (100, 101, 102)


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


def tune(experiment: Experiment, command: str) -> None:
    """Searches what is not yet in the file, and writes it after each algorithm.

    Args:
      experiment: Algorithms, seeds and all but the learning rates.
      command: What was typed, for the file.
    """
    dataset = load(experiment.data)
    model = build(experiment.model, dataset.num_classes)
    problem = Problem(dataset, model, microbatch_size=experiment.microbatch_size)
    path = learning_rates_path(experiment.name)
    scores: dict[str, dict[str, float]] = {}
    if path.exists():
        scores = json.loads(path.read_text())["scores"]
    for algorithm in experiment.algorithms:
        of_rates = scores.setdefault(algorithm, {})
        for rate in GRID:
            if f"{rate:g}" in of_rates and not experiment.overwrite:
                continue
            train = make_train(problem, algorithm, rate, experiment.train)
            of_seeds = []
            for seed in experiment.seeds:
                records: list[Record] = []
                train(seed, on_record=records.append)
                of_seeds.append(score(records))
            of_rates[f"{rate:g}"] = round(statistics.fmean(of_seeds), 4)
        best = {name: float(max(s, key=s.__getitem__)) for name, s in scores.items()}
        found = {"command": command, "best": best, "scores": scores}
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{ALGORITHMS[algorithm].label}: {best[algorithm]:g} of {of_rates}")


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line.

    Args:
      arguments: Instead of those of the process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    setups = {
        name: dataclasses.replace(setup, seeds=SEEDS) for name, setup in SETUPS.items()
    }
    try:
        experiment = parse("experiments.tune", arguments, setups, __doc__ or "")
        tune(experiment, shlex.join(["python", "-m", "experiments.tune", *arguments]))
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
