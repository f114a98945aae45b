"""C2: the more imbalanced the classes, the later the minority is learned."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from tabulate import tabulate

from experiments.claims.finding import Effect, Finding, Size
from experiments.claims.measures import (
    drop_depth,
    drop_length,
    steps_to_beat_chance,
)
from experiments.experiment import Experiment
from experiments.figures import COLOURS, LINES, STYLE
from experiments.intervals import Interval, difference, interval, spread
from experiments.study import Study, binary, collect
from pcn_jax.training import ALGORITHMS, AlgorithmName

TITLE = "Learning of the minority is delayed, and the delay grows with the imbalance"
RATES: dict[Size, float | None] = {"fast": 0.1, "full": None}
"""One for all, or those that were found for each at the ratio of the set-up."""
RATIOS: dict[Size, tuple[int, ...]] = {
    "fast": (1, 3, 10, 20),
    "full": (1, 3, 7, 20, 50),
}
_BATCH = 128
_LONGER: dict[Size, dict[AlgorithmName, tuple[int, int]]] = {
    "fast": {},
    "full": {
        "gd": (1500, 50),
        "sgd": (5000, 1),
        "pcnsgd": (5000, 1),
        "pcnsgd+clip": (5000, 1),
    },
}
"""Steps of those that need more to learn the minority, and from which ratio on."""
COMPARED: dict[Size, tuple[AlgorithmName, ...]] = {
    "fast": ("sgd", "sgd+o", "sgd+rw", "pcnsgd+split"),
    "full": tuple(ALGORITHMS),
}
_AS_NOISY: tuple[AlgorithmName, ...] = ("pcnsgd", "pcnsgd+clip")
"""PCN that does not counter the noise of the minority's batches: see C5."""


class Delays(NamedTuple):
    """Steps of each run, `[S, ratios]`, and fitted powers `[S]`: all, from 3 : 1.

    Balanced classes are learned so soon that they decide the former.
    """

    steps: np.ndarray
    powers: np.ndarray
    powers_of_imbalance: np.ndarray


def find(size: Size) -> Finding:
    """Trains at several imbalance ratios, all with the learning rates of one of them.

    Args:
      size: Of the study.

    Returns:
      The finding.
    """
    ratios = RATIOS[size]
    studies = {ratio: _study(ratio, size) for ratio in ratios}
    delays = {name: _delays(studies, name) for name in COMPARED[size]}
    effects = [_effect(name, delays) for name in delays if name not in _AS_NOISY]
    rows = [
        [
            ALGORITHMS[name].label,
            *(spread(of_ratio) for of_ratio in found.steps.T),
            spread(found.powers),
            spread(found.powers_of_imbalance),
        ]
        for name, found in delays.items()
    ]
    ratio_names = [f"{ratio} : 1" for ratio in ratios]
    drops = [
        [f"{ALGORITHMS[name].label}, {what}"]
        + [spread(measure(study[name])) for study in studies.values()]
        for name in delays
        for what, measure in (("rise", drop_depth), ("steps", drop_length))
    ]
    tables = (
        tabulate(
            rows,
            ["", *ratio_names, "power", f"from {ratio_names[1]} on"],
            tablefmt="github",
        ),
        "Rise of the minority's training loss at first, and steps until it is back:",
        tabulate(drops, ["", *ratio_names], tablefmt="github"),
    )
    return Finding(
        title=TITLE,
        effects=effects,
        table="\n\n".join(tables),
        draw=functools.partial(_draw, delays, ratios),
        notes=_notes(size),
    )


def _notes(size: Size) -> str:
    longer = "".join(
        f", of {ALGORITHMS[name].label} {steps:,}"
        + (f" at {first} : 1" if first > 1 else "")
        for name, (steps, first) in _LONGER[size].items()
    )
    return (
        f"{binary(size).train.steps:,} steps were run{longer}. In the first table: "
        "steps from which on the minority's training loss is below that of guessing, "
        "ln C; one more than were run where it was not at the end, which makes powers "
        "too small. Most of the power is from balanced classes "
        "to 3 : 1; that from there on is beside it. All ratios have the learning rates "
        "found at 7 : 1. Lines of the figure are geometric means over seeds, dots are "
        "seeds. Not recall, because an untrained net may have it by chance, and "
        "because of few examples that are fitted it does not last on test data. PCNGD "
        "learns the minority within steps at every ratio, and loses it again late "
        "where it is small, as it does not settle (C9): these are its steps at 20 : 1 "
        "and 50 : 1."
    )


def _study(ratio: int, size: Size) -> Study:
    base = binary(size)
    experiment = _at(base, ratio, RATES[size])
    study: Study = {}
    for name in COMPARED[size]:
        chosen, (steps, first) = experiment, _LONGER[size].get(name, (0, np.inf))
        if ratio >= first:
            chosen = dataclasses.replace(
                experiment,
                name=f"{experiment.name}/longer",
                train=dataclasses.replace(experiment.train, steps=steps),
            )
        study |= collect(chosen, size, algorithms=[name], rates_of=base)
    return study


def _effect(name: AlgorithmName, delays: Mapping[AlgorithmName, Delays]) -> Effect:
    label = ALGORITHMS[name].label
    if name in ("gd", "sgd"):
        power, later = map(interval, delays[name][1:])
        return Effect.of(
            f"{label}: steps until the minority is learned grow as the imbalance to "
            f"the power {power}, and from 3 : 1 on {later}",
            power.is_above(0),
            later.is_above(0),
        )
    other: AlgorithmName = "gd" if name == "pcngd" else "sgd"
    less = difference(delays[name].powers, delays[other].powers)
    return Effect.of(
        f"{label}: power minus {ALGORITHMS[other].label}'s {less}", less.is_below(0)
    )


def _at(base: Experiment, ratio: int, rate: float | None) -> Experiment:
    """The set-up with an imbalance, the majority being as large as before."""
    experiment = dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, ratio=1 / ratio),
        learning_rate=rate,
        train=dataclasses.replace(base.train, batch_size=_BATCH),
    )
    if experiment == base:
        return base
    return dataclasses.replace(experiment, name=f"{base.name}-{ratio}-to-1")


def _delays(studies: Mapping[int, Study], name: AlgorithmName) -> Delays:
    steps = np.stack(
        [steps_to_beat_chance(study[name]) for study in studies.values()], axis=1
    )
    ratios, logs = np.log(list(studies)), np.log(np.maximum(steps, 1)).T
    fits = (np.polyfit(ratios[first:], logs[first:], 1)[0] for first in (0, 1))
    return Delays(steps, *fits)


def _draw(delays: Mapping[AlgorithmName, Delays], ratios: tuple[int, ...]) -> Figure:
    with plt.style.context(STYLE):
        figure, axis = plt.subplots(figsize=(4.6, 2.8))
        for name, found in delays.items():
            power: Interval = interval(found.powers)
            label = f"{ALGORITHMS[name].label}: power {power.mean:.2f}"
            mean = np.exp(np.log(np.maximum(found.steps, 1)).mean(axis=0))
            line = f"o{LINES.get(name, '-')}"
            axis.plot(ratios, mean, line, color=COLOURS[name], label=label, ms=3)
            for row in found.steps:
                axis.plot(ratios, row, ".", color=COLOURS[name], ms=3, alpha=0.5)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xticks(ratios, [f"{ratio}" for ratio in ratios], minor=False)
        axis.minorticks_off()
        axis.set_xlabel("imbalance, majority : minority")
        axis.set_ylabel("steps until learned")
        figure.legend(loc="outside right upper")
    return figure
