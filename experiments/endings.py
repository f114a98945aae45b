"""How runs end, over learning rates, lengths and schedules: three numbers a run.

The curves of so many runs would be megabytes, so only their ends are kept.
"""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.claims.finding import Size
from experiments.experiment import Experiment, problem
from experiments.kept import commit, write_rows
from experiments.study import FOLDERS
from pcn_jax.training import (
    ALGORITHMS,
    AlgorithmName,
    Record,
    TrainConfig,
    environment,
    make_train,
    plain,
)

PLANS = CONSTANT, LONGER, DECAYED = "constant rate", "ten times as long", "cosine decay"
"""What becomes of the steps and of the schedule of a set-up."""


class Ending(NamedTuple):
    """The end of one run.

    Attributes:
      plan: One of `PLANS`.
      learning_rate: At the start of the run.
      algorithm: Its name.
      seed: Of the run.
      least_loss: Least training loss of the worst class, in the first half of the run.
      late_loss: Largest training loss of any class in the second half.
      macro_recall: On the test split, at the last step.
    """

    plan: str
    learning_rate: float
    algorithm: AlgorithmName
    seed: int
    least_loss: float
    late_loss: float
    macro_recall: float


def measure_endings(
    experiment: Experiment,
    size: Size,
    algorithms: Sequence[AlgorithmName],
    learning_rates: Sequence[float],
) -> list[Ending]:
    """Trains each algorithm at each rate under each plan, or reads what was trained.

    Every run is written when it is there; after an interruption, the others follow.

    Args:
      experiment: Set-up and seeds.
      size: Of the study.
      algorithms: To train.
      learning_rates: To train them at.

    Returns:
      One entry a plan, rate, algorithm and seed, in this order.

    Raises:
      FileNotFoundError: If a run is missing and the data set is not there.
    """
    path = FOLDERS[size] / experiment.name / "endings.json"
    kept = _read(path, experiment)
    wanted = [
        (plan, rate, algorithm)
        for plan in PLANS
        for rate in learning_rates
        for algorithm in algorithms
    ]
    for plan, rate, algorithm in wanted:
        missing = [
            seed
            for seed in experiment.seeds
            if (plan, rate, algorithm, seed) not in kept
        ]
        if not missing:
            continue
        _, of_problem = problem(experiment)
        train = make_train(of_problem, algorithm, rate, _planned(experiment, plan))
        for seed in missing:
            records: list[Record] = []
            train(seed, on_record=records.append)
            kept[plan, rate, algorithm, seed] = _end(records)
            _write(path, experiment, kept)
    return [
        Ending(*key, seed, *kept[*key, seed])
        for key in wanted
        for seed in experiment.seeds
    ]


_Key = tuple[str, float, AlgorithmName, int]
_Kept = dict[_Key, tuple[float, float, float]]


def _planned(experiment: Experiment, plan: str) -> TrainConfig:
    config = experiment.train
    if plan == LONGER:
        return dataclasses.replace(config, steps=10 * config.steps)
    if plan == DECAYED:
        optimizer = dataclasses.replace(config.optimizer, schedule="cosine")
        return dataclasses.replace(config, optimizer=optimizer)
    return config


def _end(records: Sequence[Record]) -> tuple[float, float, float]:
    steps = np.array([record["step"] for record in records])
    worst = np.array([np.max(record["train"]["loss"]) for record in records])
    late = steps >= steps[-1] / 2
    recall = np.mean(records[-1]["test"]["recall"])
    least, largest, last = (
        float(f"{x:.5g}") for x in (worst[~late].min(), worst[late].max(), recall)
    )
    return least, largest, last


def _description(
    experiment: Experiment, algorithms: Iterable[AlgorithmName]
) -> dict[str, Any]:
    """All that decides runs of some algorithms but what is different among them."""
    described: dict[str, Any] = plain(
        {
            "data": dataclasses.replace(experiment.data, data_dir=None),
            "model": experiment.model,
            "train": {a: ALGORITHMS[a].heeded(experiment.train) for a in algorithms},
        }
    )
    return described


def _read(path: Path, experiment: Experiment) -> _Kept:
    """What is kept of runs that were made as this experiment makes them."""
    if not path.exists():
        return {}
    kept = json.loads(path.read_text(encoding="utf-8"))
    made = kept["description"]
    wanted = _description(experiment, made["train"])
    if (made["data"], made["model"]) != (wanted["data"], wanted["model"]):
        return {}
    rows = [
        [np.nan if x is None else x for x in row]
        for row in kept["rows"]
        if made["train"][row[2]] == wanted["train"][row[2]]
    ]
    return {tuple(row[:4]): tuple(row[4:]) for row in rows}  # type: ignore[misc]


def _write(path: Path, experiment: Experiment, kept: _Kept) -> None:
    algorithms = dict.fromkeys(algorithm for _, _, algorithm, _ in kept)
    head = {
        "description": _description(experiment, algorithms),
        "ran_on": environment(),
        "commit": commit(),
        "columns": Ending._fields,
    }
    rows = [
        [*key, *(x if np.isfinite(x) else None for x in end)]
        for key, end in kept.items()
    ]
    write_rows(path, head, rows)
