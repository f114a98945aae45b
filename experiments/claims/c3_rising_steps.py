"""C3: with two classes and small steps PCNGD lowers both losses at every step."""

import dataclasses
import functools

import numpy as np
from matplotlib.figure import Figure
from tabulate import tabulate

from experiments.claims.drawing import draw_panels, minority_loss
from experiments.claims.finding import Effect, Finding, Size
from experiments.experiment import Experiment
from experiments.figures import Panel
from experiments.intervals import interval, spread
from experiments.study import Curves, Study, binary, collect
from pcn_jax.training import ALGORITHMS, AlgorithmName

TITLE = (
    "With two classes and small steps PCNGD lowers every class loss at every step; "
    "GD does not"
)
RATE = 0.01
_ROUNDING = 1e-5
"""Of a loss: what is kept has five digits."""
COMPARED: tuple[AlgorithmName, ...] = ("gd", "pcngd")


def find(size: Size) -> Finding:
    """Takes small steps along the gradients of all the data, and measures after each.

    Args:
      size: Of the study.

    Returns:
      The finding.
    """
    study = collect(_small_steps(binary(size)), size, algorithms=COMPARED)
    fractions = {name: _rising(curves) for name, curves in study.items()}
    of_gd, of_pcngd = (interval(fractions[name].max(axis=1)) for name in COMPARED)
    effects = [
        Effect(
            f"PCNGD: share of steps that raise a class loss {of_pcngd}",
            of_pcngd.high == 0,
        ),
        Effect.of(f"GD: {of_gd}", of_gd.is_above(0)),
    ]
    rows = [
        [
            ALGORITHMS[name].label,
            *(spread(of_class) for of_class in fractions[name].T),
            spread(curves.train_loss[:, -1].mean(axis=1)),
        ]
        for name, curves in study.items()
    ]
    head = ["", "majority", "minority", "mean class loss at the end"]
    return Finding(
        title=TITLE,
        effects=effects,
        table=tabulate(rows, head, tablefmt="github"),
        draw=functools.partial(_draw, study),
        notes=f"Share of steps after which the training loss of the class is higher "
        f"than before; learning rate {RATE:g} for both, {study['gd'].steps[-1]} steps.",
    )


def _small_steps(base: Experiment) -> Experiment:
    return dataclasses.replace(
        base,
        name=f"{base.name}-small-steps",
        learning_rate=RATE,
        train=dataclasses.replace(base.train, steps=200, measurements_per_decade=1000),
    )


def _rising(curves: Curves) -> np.ndarray:
    """Share of steps that raise the loss of a class, `[S, C]`."""
    before, after = curves.train_loss[:, :-1], curves.train_loss[:, 1:]
    share: np.ndarray = (after > before * (1 + _ROUNDING)).mean(axis=1)
    return share


def _draw(study: Study) -> Figure:
    majority = Panel(
        "training loss of the majority",
        study["gd"].steps,
        {name: curves.train_loss[:, :, 0] for name, curves in study.items()},
    )
    return draw_panels([majority, minority_loss(study)])
