"""The runs behind the claims: trained once, kept in small files, read from then on.

A file holds all the seeds of one algorithm on one set-up, with what it ran on. Those of
the full study are part of the repository (`results/`), so tables and figures are drawn
again without training; those of the fast one are in `runs/reproduce`.
"""

import dataclasses
import datetime
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.claims.finding import Size
from experiments.experiment import SETUPS, Experiment, problem
from experiments.kept import commit, write_whole
from experiments.tune import search
from pcn_jax.training import (
    ALGORITHMS,
    AlgorithmName,
    Record,
    environment,
    make_train,
    plain,
)

FOLDERS: dict[Size, Path] = {"fast": Path("runs/reproduce"), "full": Path("results")}
BINARY: dict[Size, str] = {"fast": "digits-halves", "full": "automobile-truck-mlp"}
MANY: dict[Size, str] = {"fast": "digits-lt", "full": "cifar10-multi-mlp"}
SLOW: dict[Size, float | None] = {"fast": None, "full": 0.03}
"""A learning rate at which GD and SGD follow the flow of the gradient, as in theory.

The search takes larger ones, since neither learns the minority soon at any.
"""
_DIGITS = 5
_COMMAND = "python -m experiments.reproduce"


class Curves(NamedTuple):
    """The measurements of one algorithm over seeds.

    Attributes:
      learning_rate: Its learning rate.
      class_counts: Training examples of each class, `[C]`.
      steps: When was measured, `[T]`.
      train_loss: Mean loss of each class on the training data, `[S, T, C]`.
      test_recall: On the test split, `[S, T, C]`.
      class_norms: Norms of the class gradients of all training data, `[S, T, C]`.
      margins: `1 + Σ_{k≠l} cos α_lk` of the same, `[S, T, C]`.
      class_alignment: `p_l` of the next step's batch, `[S, T, C]`.
      predicted_loss_changes: By the next step, to first order, `[S, T, C]`.
      validation_recall: On the validation split, `[S, T, C]`; NaN where a run was kept
        before this was.
      estimated_alignment: What the smoothed norm takes `p_l` to be, `[S, T, C]`; NaN
        in other runs, and likewise.
    """

    learning_rate: float
    class_counts: np.ndarray
    steps: np.ndarray
    train_loss: np.ndarray
    test_recall: np.ndarray
    class_norms: np.ndarray
    margins: np.ndarray
    class_alignment: np.ndarray
    predicted_loss_changes: np.ndarray
    validation_recall: np.ndarray
    estimated_alignment: np.ndarray


Study = dict[AlgorithmName, Curves]


def collect(
    experiment: Experiment,
    size: Size,
    *,
    algorithms: Iterable[AlgorithmName] | None = None,
    rates_of: Experiment | None = None,
) -> Study:
    """Reads the runs of an experiment, after training those that are missing.

    A learning rate that is not known yet is searched first.

    Args:
      experiment: The set-up and the seeds.
      size: Decides where runs are kept.
      algorithms: Instead of the experiment's.
      rates_of: Whose learning rates are taken, where the set-up has none of its own.

    Returns:
      The curves of each algorithm.

    Raises:
      FileNotFoundError: If something is missing and the data set is not there.
    """
    study: Study = {}
    for algorithm in algorithms or experiment.algorithms:
        tuned = experiment if experiment.learning_rate else rates_of or experiment
        if tuned.learning_rate is None:
            search(tuned, algorithm, _COMMAND)
        rate = tuned.learning_rate_of(algorithm)
        path = FOLDERS[size] / experiment.name / f"{algorithm}.json"
        description = _description(experiment, algorithm, rate)
        kept = _read(path, description)
        missing = [s for s in experiment.seeds if str(s) not in kept["seeds"]]
        if missing:
            kept = _train(experiment, algorithm, missing, description, path)
        study[algorithm] = _curves(kept, experiment.seeds)
    return study


def binary(size: Size) -> Experiment:
    """The set-up with two classes."""
    return SETUPS[BINARY[size]]


def with_enough_seeds(name: str, size: Size) -> Experiment:
    """A set-up, with ten seeds if it is the one with two classes.

    Over five an interval is often as wide as the margins of the claims.

    Args:
      name: One of `SETUPS`.
      size: Of the study.

    Returns:
      The set-up.
    """
    setup = SETUPS[name]
    if name == BINARY[size]:
        return dataclasses.replace(setup, seeds=tuple(range(10)))
    return setup


def slowly(experiment: Experiment, rate: float) -> Experiment:
    """The set-up at a learning rate that was not searched, under a name of its own."""
    name = f"{experiment.name}/slow"
    return dataclasses.replace(experiment, name=name, learning_rate=rate)


def _train(
    experiment: Experiment,
    algorithm: AlgorithmName,
    seeds: list[int],
    description: dict[str, Any],
    path: Path,
) -> dict[str, Any]:
    dataset, of_problem = problem(experiment)
    rate = description["learning_rate"]
    train = make_train(of_problem, algorithm, rate, experiment.train)
    for seed in seeds:
        records: list[Record] = []
        train(seed, on_record=records.append)
        kept = _read(path, description)  # again: another process may train other seeds
        kept["seeds"][str(seed)] = _columns(records)
        kept |= {
            "class_counts": dataset.class_counts.tolist(),
            "ran_on": environment(),
            "commit": commit(),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        }
        write_whole(path, _text(kept))
        label = ALGORITHMS[algorithm].label
        print(f"  {experiment.name}, {label}, seed {seed}", flush=True)
    return _read(path, description)


def _description(
    experiment: Experiment, algorithm: AlgorithmName, rate: float
) -> dict[str, Any]:
    """All that decides the result of a run but the seed."""
    described: dict[str, Any] = plain(
        {
            "algorithm": algorithm,
            "learning_rate": rate,
            "data": dataclasses.replace(experiment.data, data_dir=None),
            "model": experiment.model,
            "train": ALGORITHMS[algorithm].heeded(experiment.train),
        }
    )
    return described


def _read(path: Path, description: dict[str, Any]) -> dict[str, Any]:
    """What is kept of runs that were made as described; runs made otherwise are not."""
    if path.exists():
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if kept["description"] == description:
            return kept
    return {"description": description, "seeds": {}}


def _columns(records: list[Record]) -> dict[str, Any]:
    cosines = np.array([record["class_cosines"] for record in records], np.float64)
    diagonal = np.diagonal(cosines, axis1=1, axis2=2)
    columns: dict[str, Any] = {
        "train_loss": [record["train"]["loss"] for record in records],
        "validation_recall": [record["validation"]["recall"] for record in records],
        "test_recall": [record["test"]["recall"] for record in records],
        "margins": 1 + cosines.sum(axis=2) - diagonal,
        **{
            name: [record[name] for record in records]
            for name in (
                "class_norms",
                "class_alignment",
                "predicted_loss_changes",
                "estimated_alignment",
            )
            if name in records[0]
        },
    }
    steps = [record["step"] for record in records]
    return {"steps": steps} | {k: _rounded(v) for k, v in columns.items()}


def _rounded(values: Any) -> Any:
    """Numbers of five digits, and `None` for those that are not finite."""
    array = np.asarray(values, np.float64)
    return [
        [float(f"{x:.{_DIGITS}g}") if np.isfinite(x) else None for x in row]
        for row in array
    ]


def _curves(kept: dict[str, Any], seeds: Iterable[int]) -> Curves:
    runs = [kept["seeds"][str(seed)] for seed in seeds]
    unknown = np.full_like(runs[0]["test_recall"], np.nan)
    absent = {"validation_recall": unknown, "estimated_alignment": unknown}
    stacked = {
        name: np.array([(absent | run)[name] for run in runs], np.float64)
        for name in Curves._fields[3:]  # None becomes NaN
    }
    return Curves(
        learning_rate=kept["description"]["learning_rate"],
        class_counts=np.array(kept["class_counts"]),
        steps=np.array(runs[0]["steps"]),
        **stacked,
    )


def _text(kept: dict[str, Any]) -> str:
    """JSON with one quantity of one seed a line."""
    head = {name: value for name, value in kept.items() if name != "seeds"}
    seeds = []
    for seed, columns in kept["seeds"].items():
        lines = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in columns.items()]
        seeds.append(f"{json.dumps(seed)}: {{\n" + ",\n".join(lines) + "}")
    return json.dumps({**head, "seeds": {}})[:-2] + "\n" + ",\n".join(seeds) + "\n}}\n"
