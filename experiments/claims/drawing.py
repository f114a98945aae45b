"""Curves over steps, and numbers of many rules: one colour an algorithm."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from experiments.claims.measures import rare_loss, rare_recall
from experiments.figures import COLOURS, STYLE, Panel, band, end_at, log_steps
from experiments.intervals import Interval
from experiments.study import Study
from pcn_jax.training import AlgorithmName

_IN_A_ROW = 3


class Dot(NamedTuple):
    """A number of one rule.

    Attributes:
      label: What the row is called.
      algorithm: Gives the colour.
      found: The number.
      ring: Another one beside it.
    """

    label: str
    algorithm: AlgorithmName
    found: Interval
    ring: float | None = None


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


def draw_panels(panels: Sequence[Panel], what: str = "") -> Figure:
    """Plots, three in a row: the mean over seeds, and from least to largest.

    Args:
      panels: The plots, from left to right and from top to bottom.
      what: What all of them show, if their titles do not say so.

    Returns:
      The figure.
    """
    with plt.style.context(STYLE):
        in_a_row = min(len(panels), _IN_A_ROW)
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
                alpha = min(0.15, 0.4 / len(panel.values))
                band(axis, panel.steps, values, algorithm, alpha=alpha)
            log_steps(axis, panel.steps)
            axis.set_title(panel.title, loc="left", fontweight="bold")
            axis.set_xlabel("step")
            if panel.limits:
                end_at(axis, *panel.limits)
        legend_beside(figure)
        figure.supylabel(what, fontsize=8)
    return figure


def legend_beside(figure: Figure) -> None:
    """One legend of all the panels, each label once, to their right.

    Args:
      figure: With its lines drawn.
    """
    handles = {
        label: handle
        for axis in figure.axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside right upper")


def draw_dots(
    panels: Mapping[str, Sequence[Dot]],
    what: str,
    *,
    lines: Mapping[str, float] | None = None,
) -> Figure:
    """Numbers with their intervals: one row a rule, one panel a set-up, three in a row.

    Args:
      panels: By title. Where a panel lacks a label that others have, its row is empty.
      what: What the numbers are.
      lines: Where a panel has a grey line, by title.

    Returns:
      The figure.
    """
    labels = list(dict.fromkeys(dot.label for dots in panels.values() for dot in dots))
    columns = min(len(panels), _IN_A_ROW)
    rows = -(-len(panels) // columns)
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(
            rows,
            columns,
            figsize=(2.2 * columns + 1.6, rows * (0.18 * len(labels) + 0.6) + 0.3),
            sharey=True,
            squeeze=False,
        )
        for axis in axes.flat[len(panels) :]:
            axis.remove()
        for axis, (title, dots) in zip(axes.flat, panels.items(), strict=False):
            for dot in dots:
                y, colour = labels.index(dot.label), COLOURS[dot.algorithm]
                span = [dot.found.low, dot.found.high]
                axis.plot(span, [y, y], color=colour, linewidth=1.4)
                axis.plot(dot.found.mean, y, "o", color=colour, markersize=4)
                if dot.ring is not None:
                    ring = {"markersize": 4, "fillstyle": "none"}
                    axis.plot(dot.ring, y, "o", color=colour, **ring)
            if lines:
                axis.axvline(lines[title], color="#999999", linewidth=0.8)
            axis.set_title(title, loc="left", fontweight="bold", fontsize=8)
            axis.set_yticks(range(len(labels)), labels)
        axes[0][0].invert_yaxis()
        figure.supxlabel(what, fontsize=8)
    return figure
