"""Figures: loss and recall of each class against steps, one panel an algorithm."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")  # figures are files; no display is needed

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.summary import minority
from pcn_jax.data import Dataset
from pcn_jax.training import ALGORITHMS, AlgorithmName, Record

Runs = Mapping[AlgorithmName, Sequence[Sequence[Record]]]

# Okabe and Ito's palette, which colour-blind readers can tell apart, and grey, olive,
# brown, dark green, indigo and wine.
COLOURS: dict[AlgorithmName, str] = {
    "gd": "#999999",
    "pcngd": "#000000",
    "sgd": "#D55E00",
    "sgd+o": "#E69F00",
    "sgd+rw": "#999933",
    "sgd+la": "#7F4A1E",
    "pcnsgd": "#0072B2",
    "pcnsgd+o": "#56B4E9",
    "pcnsgd+r": "#CC79A7",
    "pcnsgd+clip": "#009E73",
    "pcnsgd+o+clip": "#117733",
    "pcnsgd+o+la": "#332288",
    "pcnsgd+split": "#882255",
}
LINES: dict[AlgorithmName, str] = {
    "sgd+o": "-.",
    "sgd+rw": "--",
    "pcnsgd+clip": "--",
    "pcnsgd+o+clip": "-.",
}
"""Styles of lines that would hide others."""
FAMILIES: dict[str, tuple[AlgorithmName, ...]] = {
    "full batch": ("gd", "pcngd"),
    "SGD": ("sgd", "sgd+o", "sgd+rw", "sgd+la"),
    "PCNSGD": ("pcnsgd", "pcnsgd+o", "pcnsgd+r"),
    "PCNSGD, clipped or smoothed": (
        "pcnsgd+clip",
        "pcnsgd+o+clip",
        "pcnsgd+o+la",
        "pcnsgd+split",
    ),
}
"""Algorithms that are drawn together: so few that their lines can be told apart."""
STYLE: dict[str, Any] = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 150,
}
_WIDTH = 0.2
"""Of what is written into a panel, as a part of the panel's."""


class Panel(NamedTuple):
    """What is plotted over steps.

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


def draw(runs: Runs, dataset: Dataset, folder: Path) -> list[Path]:
    """Draws all figures of an experiment.

    Args:
      runs: For each algorithm, the records of each seed.
      dataset: Its classes are the colours.
      folder: Where to save.

    Returns:
      Paths of the figures.
    """
    figures = {
        "loss": (_panels, "train", "loss", "training loss of each class"),
        "recall": (_panels, "test", "recall", "test recall of each class"),
    }
    paths = []
    with plt.style.context(STYLE):
        for name, (plot, split, metric, label) in figures.items():
            paths.append(_save(plot(runs, dataset, split, metric, label), folder, name))
        paths.append(_save(_overview(runs, dataset), folder, "overview"))
    return paths


def band(
    axis: Axes,
    steps: np.ndarray,
    values: np.ndarray,
    algorithm: AlgorithmName,
    *,
    label: str | None = None,
    line: str | None = None,
    alpha: float = 0.15,
) -> None:
    """Draws the mean over seeds and the range of one algorithm.

    Args:
      axis: To draw on.
      steps: `[T]`.
      values: `[S, T]`.
      algorithm: Gives the colour, and what is not given of the next two.
      label: In the legend.
      line: Its style.
      alpha: How dark the range is.
    """
    _band(
        axis,
        steps,
        values,
        color=COLOURS[algorithm],
        label=label or ALGORITHMS[algorithm].label,
        line=line or LINES.get(algorithm, "-"),
        alpha=alpha,
    )


def log_steps(axis: Axes, steps: np.ndarray) -> None:
    """Makes the steps logarithmic, with room for step 0.

    Args:
      axis: Whose steps.
      steps: `[T]`, from 0 on.
    """
    axis.set_xscale("symlog", linthresh=1, linscale=0.3)
    axis.set_xlim(0, max(steps[-1], 1))
    decades = int(np.log10(max(steps[-1], 1)))
    ticks = [0, *(10**k for k in range(decades + 1))]
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])


def end_at(axis: Axes, low: float, high: float) -> None:
    """Ends the vertical axis, and says how high the lines go that are cut off.

    Of lines that are highest near each other, it says so of the highest.

    Args:
      axis: With its lines and its horizontal axis.
      low: Where it starts.
      high: Where it ends, be there lines above or not.
    """
    axis.set_ylim(low, high)
    peaks = []
    for line in axis.lines:
        x, y = np.asarray(line.get_xydata(), np.float64).T
        if y.max() > high:
            peaks.append((y.max(), x[y.argmax()], line.get_color()))
    labelled: list[float] = []
    for value, x, colour in sorted(peaks, key=lambda peak: -peak[0]):
        place, _ = axis.transAxes.inverted().transform(
            axis.transData.transform((x, high))
        )
        if any(abs(place - other) < _WIDTH for other in labelled):
            continue
        labelled.append(place)
        axis.annotate(
            f"to {value:.1f}",
            (x, high),
            (-3, 0) if place > _WIDTH else (3, 0),
            textcoords="offset points",
            color=colour,
            fontsize=7,
            ha="right" if place > _WIDTH else "left",
            va="top",
            bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.5},
        )


def by_family(drawn: Mapping[Any, AlgorithmName]) -> dict[str, list[Any]]:
    """What is drawn, by the families that have any of it.

    Args:
      drawn: The algorithm of each line.

    Returns:
      The lines, by the title of their family.

    Example:
      >>> by_family({"a": "sgd", "b": "pcnsgd", "c": "sgd+rw"})
      {'SGD': ['a', 'c'], 'PCNSGD': ['b']}
    """
    found = {
        title: [line for line, name in drawn.items() if name in names]
        for title, names in FAMILIES.items()
    }
    return {title: lines for title, lines in found.items() if lines}


def legend_above(axis: Axes, title: str) -> None:
    """Puts the legend where no data are, with the title of the panel over it."""
    legend = axis.legend(
        title=title, loc="lower left", bbox_to_anchor=(0, 1), alignment="left"
    )
    legend.get_title().set_fontweight("bold")


def draw_families(panels: Sequence[Panel]) -> Figure:
    """Plots, one below the other, with a column for each family of algorithms.

    SGD is dotted where it is not of the family, to compare with.

    Args:
      panels: What is plotted, of the same algorithms.

    Returns:
      The figure.
    """
    shown = panels[0].values
    columns = by_family({name: name for name in shown})
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(
            len(panels),
            len(columns),
            figsize=(2.2 * len(columns) + 0.4, 1.9 * len(panels) + 1.0),
            sharex=True,
            sharey="row",
            squeeze=False,
        )
        for row, panel in zip(axes, panels, strict=True):
            for axis, names in zip(row, columns.values(), strict=True):
                for name in names:
                    band(axis, panel.steps, panel.values[name], name)
                if "sgd" in shown and "sgd" not in names:
                    mean = panel.values["sgd"].mean(axis=0)
                    label = "SGD" if axis is row[0] else None
                    style = {"color": COLOURS["sgd"], "linewidth": 0.9, "label": label}
                    axis.plot(panel.steps, mean, ":", **style)
                log_steps(axis, panel.steps)
                if panel.limits:
                    end_at(axis, *panel.limits)
            row[0].set_ylabel(panel.title)
        for axis, title in zip(axes[0], columns, strict=True):
            legend_above(axis, title)
        figure.supxlabel("step", fontsize=8)
    return figure


def _panels(
    runs: Runs, dataset: Dataset, split: str, metric: str, label: str
) -> Figure:
    columns = {4: 2, 11: 4}.get(len(runs), min(3, len(runs)))
    rows = -(-len(runs) // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=((2.1 if columns > 3 else 2.6) * columns + 1.2, 1.9 * rows + 0.5),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    order = np.argsort(-dataset.class_counts, kind="stable")
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(order)))
    for axis, (algorithm, seeds) in zip(axes.flat, runs.items(), strict=False):
        steps, values = _series(seeds, split, metric)
        for rank, index in enumerate(order):
            count = dataset.class_counts[index]
            _band(
                axis,
                steps,
                values[:, :, index],
                color=colours[rank],
                label=f"{dataset.class_names[index]} ({count:,})",
                alpha=min(0.15, 0.6 / len(order)),
            )
        axis.set_title(ALGORITHMS[algorithm].label, loc="left", fontweight="bold")
        log_steps(axis, steps)
    for axis in axes.flat[len(runs) :]:
        axis.set_visible(False)
    for axis in axes.flat[max(len(runs) - columns, 0) : len(runs)]:
        axis.tick_params(labelbottom=True)  # also where no panel stands below
    if metric == "loss":
        starts = [_series(seeds, split, metric)[1][:, 0] for seeds in runs.values()]
        high = 2 * float(np.mean(starts))
    else:
        high = 1.02
    for axis in axes.flat[: len(runs)]:
        end_at(axis, 0, high)
    figure.supxlabel("step", fontsize=8)
    figure.supylabel(label, fontsize=8)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    if len(labels) <= 20:
        title = "class (training examples)"
        figure.legend(
            handles, labels, loc="outside right upper", title=title, title_fontsize=7
        )
    return figure


def _overview(runs: Runs, dataset: Dataset) -> Figure:
    rare = minority(dataset.class_counts)
    found = {name: _series(seeds, "test", "recall") for name, seeds in runs.items()}
    steps, _ = next(iter(found.values()))
    macro = {name: recall.mean(axis=2) for name, (_, recall) in found.items()}
    of_rare = {name: x[:, :, rare].mean(axis=2) for name, (_, x) in found.items()}
    return draw_families(
        [
            Panel("macro recall", steps, macro, limits=(0, 1.02)),
            Panel("recall of the minority", steps, of_rare, limits=(0, 1.02)),
        ]
    )


def _series(
    seeds: Sequence[Sequence[Record]], split: str, metric: str
) -> tuple[np.ndarray, np.ndarray]:
    """Steps `[T]` and a metric of each class, `[seeds, T, C]`."""
    steps = np.array([record["step"] for record in seeds[0]])
    values = [[record[split][metric] for record in records] for records in seeds]
    return steps, np.array(values, np.float64)


def _band(
    axis: Axes,
    steps: np.ndarray,
    values: np.ndarray,
    *,
    color: object,
    label: str,
    line: str = "-",
    alpha: float = 0.15,
) -> None:
    """Mean over seeds, and from the smallest to the largest of them."""
    axis.plot(steps, values.mean(axis=0), line, color=color, label=label, linewidth=1.3)
    axis.fill_between(
        steps,
        values.min(axis=0),
        values.max(axis=0),
        color=color,
        alpha=alpha,
        linewidth=0,
    )


def _save(figure: Figure, folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    figure.savefig(path)
    plt.close(figure)
    return path
