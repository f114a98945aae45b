"""Curves over steps, one colour an algorithm, as most claims draw them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.claims.measures import rare_loss, rare_recall
from experiments.figures import STYLE, band, log_steps
from experiments.study import Study
from pcn_jax.training import AlgorithmName


class Panel(NamedTuple):
    """One plot over steps.

    Attributes:
      title: What it shows.
      steps: `[T]`.
      values: Of each algorithm, `[S, T]`.
      limits: Of the values.
    """

    title: str
    steps: np.ndarray
    values: Mapping[AlgorithmName, np.ndarray]
    limits: tuple[float, float] | None = None


def minority_loss(study: Study, *, at_most: float | None = None) -> Panel:
    """Training loss of the minority, up to so many times that at the start."""
    curves = next(iter(study.values()))
    start = float(rare_loss(curves)[:, 0].mean())
    return Panel(
        "training loss of the minority",
        curves.steps,
        {name: rare_loss(one) for name, one in study.items()},
        limits=(0, at_most * start) if at_most else None,
    )


def minority_recall(study: Study, title: str = "test recall of the minority") -> Panel:
    """Test recall of the minority."""
    return Panel(
        title,
        next(iter(study.values())).steps,
        {name: rare_recall(one) for name, one in study.items()},
        limits=(0, 1.02),
    )


def draw_panels(panels: Sequence[Panel]) -> Figure:
    """Plots, three in a row: the mean over seeds, and from least to largest.

    Args:
      panels: The plots, from left to right and from top to bottom.

    Returns:
      The figure.
    """
    with plt.style.context(STYLE):
        in_a_row = min(len(panels), 3)
        rows = -(-len(panels) // in_a_row)
        figure, axes = plt.subplots(
            rows,
            in_a_row,
            figsize=(3.1 * in_a_row + 1.2, 2.6 * rows),
            squeeze=False,
        )
        for axis in axes.flat[len(panels) :]:
            axis.axis("off")
        for axis, panel in zip(axes.flat, panels, strict=False):
            for algorithm, values in panel.values.items():
                band(axis, panel.steps, values, algorithm)
            log_steps(axis, panel.steps)
            axis.set_title(panel.title, loc="left", fontweight="bold")
            axis.set_xlabel("step")
            if panel.limits:
                axis.set_ylim(*panel.limits)
        handles = {
            label: handle
            for axis in axes.flat
            for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside right upper")
    return figure
