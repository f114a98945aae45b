"""C2: the more imbalanced the classes, the later the minority is learned."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tabulate import tabulate

from experiments.claims.finding import Effect, Finding, Size
from experiments.claims.measures import (
    drop_depth,
    drop_length,
    steps_to_beat_chance,
)
from experiments.experiment import Experiment
from experiments.figures import COLOURS, STYLE, by_family, legend_above
from experiments.intervals import Interval, difference, interval, spread
from experiments.study import SLOW, Curves, binary, collect, slowly
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
_UNBALANCED: tuple[AlgorithmName, ...] = ("gd", "sgd")


class Line(NamedTuple):
    """An algorithm at the learning rate that was found for it, or at a given one."""

    algorithm: AlgorithmName
    rate: float | None = None

    @property
    def label(self) -> str:
        """In tables and figures."""
        at = f" at {self.rate:g}" if self.rate else ""
        return ALGORITHMS[self.algorithm].label + at


class Delays(NamedTuple):
    """Steps of each run, `[S, ratios]`, and fitted powers `[S]`: all, from 3 : 1.

    Balanced classes are learned so soon that they decide the former. A run that has not
    learned the minority at its end, as `learned` says, has one more step than were run.
    """

    steps: np.ndarray
    learned: np.ndarray
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
    studies = {
        line: {ratio: _curves(line, ratio, size) for ratio in ratios}
        for line in _lines(size)
    }
    delays = {line: _delays(of_ratios) for line, of_ratios in studies.items()}
    rows = [
        [
            line.label,
            *(spread(of_ratio) for of_ratio in found.steps.T),
            spread(found.powers),
            spread(found.powers_of_imbalance),
        ]
        for line, found in delays.items()
    ]
    ratio_names = [f"{ratio} : 1" for ratio in ratios]
    drops = [
        [f"{line.label}, {what}"]
        + [spread(measure(curves)) for curves in of_ratios.values()]
        for line, of_ratios in studies.items()
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
        effects=_effects(delays),
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
        "ln C; one more than were run where it was not at the end, which makes "
        "powers too small where that is at the larger ratios, and too large where at "
        "the smaller. Most of the power is from balanced classes to 3 : 1; that from "
        "there on is beside it. All ratios have the learning rates found at 7 : 1, or "
        "that given. Lines of the figure are geometric means over seeds, dots are "
        "seeds, and rings those that have not learned it. Not recall, because an "
        "untrained net may have it by chance, and because of few examples that are "
        "fitted it does not last on test data. PCNGD learns the minority within steps "
        "at every ratio, and loses it again late where it is small, as it does not "
        "settle (C9): these are its steps at 20 : 1 and 50 : 1."
    )


def _lines(size: Size) -> list[Line]:
    slow = SLOW[size]
    given = [Line(name, slow) for name in _UNBALANCED] if slow else []
    return [*given, *map(Line, COMPARED[size])]


def _curves(line: Line, ratio: int, size: Size) -> Curves:
    base = binary(size)
    experiment = _at(base, ratio, RATES[size])
    steps, first = _LONGER[size].get(line.algorithm, (0, np.inf))
    if ratio >= first:
        experiment = dataclasses.replace(
            experiment,
            name=f"{experiment.name}/longer",
            train=dataclasses.replace(experiment.train, steps=steps),
        )
    if line.rate:
        experiment = slowly(experiment, line.rate)
    found = collect(experiment, size, algorithms=[line.algorithm], rates_of=base)
    return found[line.algorithm]


def _effects(delays: Mapping[Line, Delays]) -> list[Effect]:
    effects = []
    for line, found in delays.items():
        if line.algorithm in _UNBALANCED:
            power = interval(found.powers)
            later = interval(found.powers_of_imbalance)
            statement = (
                f"{line.label}: steps until the minority is learned grow as the "
                f"imbalance to the power {power}, and from 3 : 1 on {later}"
            )
            effects.append(Effect.of(statement, power.is_above(0), later.is_above(0)))
        elif line.algorithm not in _AS_NOISY:
            baseline = "gd" if line.algorithm == "pcngd" else "sgd"
            for other in (x for x in delays if x.algorithm == baseline):
                less = difference(found.powers, delays[other].powers)
                statement = f"{line.label}: power minus that of {other.label} {less}"
                effects.append(Effect.of(statement, less.is_below(0)))
    return effects


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


def _delays(of_ratios: Mapping[int, Curves]) -> Delays:
    steps = np.stack([steps_to_beat_chance(x) for x in of_ratios.values()], axis=1)
    learned = steps <= [curves.steps[-1] for curves in of_ratios.values()]
    ratios, logs = np.log(list(of_ratios)), np.log(np.maximum(steps, 1)).T
    fits = (np.polyfit(ratios[first:], logs[first:], 1)[0] for first in (0, 1))
    return Delays(steps, learned, *fits)


def _draw(delays: Mapping[Line, Delays], ratios: tuple[int, ...]) -> Figure:
    families = by_family({line: line.algorithm for line in delays})
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(
            1,
            len(families),
            figsize=(2.2 * len(families) + 0.4, 3.1),
            sharey=True,
            squeeze=False,
        )
        for axis, (title, lines) in zip(axes[0], families.items(), strict=True):
            for line in lines:
                _draw_line(axis, line, delays[line], ratios)
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.set_xticks(ratios, [f"{ratio}" for ratio in ratios], minor=False)
            axis.minorticks_off()
            legend_above(axis, title)
        axes[0][0].set_ylabel("steps until learned")
        figure.supxlabel("imbalance, majority : minority", fontsize=8)
    return figure


def _draw_line(axis: Axes, line: Line, found: Delays, ratios: tuple[int, ...]) -> None:
    power: Interval = interval(found.powers)
    steps = np.maximum(found.steps, 1)
    style: dict[str, Any] = {"color": COLOURS[line.algorithm], "markersize": 3}
    axis.plot(
        ratios,
        np.exp(np.log(steps).mean(axis=0)),
        ":" if line.rate else "-",
        label=f"{line.label}: power {power.mean:.2f}",
        **style,
    )
    at = np.broadcast_to(ratios, steps.shape)
    for which, fill in ((found.learned, "full"), (~found.learned, "none")):
        axis.plot(at[which], steps[which], "o", alpha=0.5, fillstyle=fill, **style)
