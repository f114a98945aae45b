"""Quadratics to look at: GD's initial drop, and a class that PCNGD makes worse."""
# ruff: noqa: RUF001 (the formulae in the labels are in Greek)

from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.claims.quadratics import (
    Direction,
    descend,
    normalised,
    one_example_each,
    plain,
    shares,
    shortest,
)
from experiments.figures import COLOURS, STYLE, log_steps

RATIOS = 2.0 ** -np.arange(11)
RATE = 0.2  # of GD in the example with two classes
TWO = one_example_each(np.array([[1, -0.8], [-0.8, 1]]))
THREE = one_example_each(np.array([[1, -0.8, -0.6], [-0.8, 1, 0.4], [-0.6, 0.4, 1]]))


class Delays(NamedTuple):
    """The example with two classes at each of `RATIOS`.

    Attributes:
      gd: Steps of GD until the minority's loss is below its start, `[R]`.
      pcngd: The same of PCNGD.
      peak: The minority's largest loss under GD over that at the start, `[R]`.
    """

    gd: np.ndarray
    pcngd: np.ndarray
    peak: np.ndarray

    @property
    def powers(self) -> tuple[float, float]:
        """Of `ρ`, that the delays of GD and PCNGD follow from 1 : 4 on."""
        logs = np.log(np.stack([self.gd[2:], self.pcngd[2:]], axis=1))
        gd, pcngd = np.polyfit(np.log(RATIOS[2:]), logs, 1)[0]
        return float(gd), float(pcngd)


def measure_delays() -> Delays:
    """Runs GD and PCNGD at each imbalance ratio until the initial drop is over."""
    gd = [example(plain, ratio, int(20 / ratio))[:, 1] for ratio in RATIOS]
    pcngd = [example(normalised, ratio, 20)[:, 1] for ratio in RATIOS]
    return Delays(
        gd=np.array([1 + np.argmax(losses[1:] < 1) for losses in gd]),
        pcngd=np.array([1 + np.argmax(losses[1:] < 1) for losses in pcngd]),
        peak=np.array([losses.max() for losses in gd]),
    )


def example(direction: Direction, ratio: float, steps: int) -> np.ndarray:
    """Losses of two classes over those at the start, the minority last, `[T, 2]`."""
    problem = TWO.scaled(shares(ratio))
    rate = shortest(problem, 0.5) if direction is normalised else lambda _: RATE
    return descend(problem, direction, rate, steps, floor=0).relative_losses


def draw(delays: Delays) -> Figure:
    """The initial drop, its length against the imbalance, and three classes."""
    grey, black = COLOURS["gd"], COLOURS["pcngd"]
    with plt.style.context(STYLE):
        figure, (left, middle, right) = plt.subplots(1, 3, figsize=(7.5, 2.6))
        gd, pcngd = example(plain, 1 / 16, 1000), example(normalised, 1 / 16, 1000)
        left.plot(gd[:, 1], color=grey, label="GD, minority")
        left.plot(gd[:, 0], color=grey, ls="--", label="GD, majority")
        left.plot(pcngd[:, 1], color=black, label="PCNGD, both")
        log_steps(left, np.arange(len(gd)))
        left.set_ylim(0, 4.2)
        _finish(left, "two classes, 16 : 1", "step", "loss / loss at start")
        power, _ = delays.powers
        label = f"GD: power {power:.2f} of ρ".replace("-", "−")
        middle.loglog(1 / RATIOS, delays.gd, "o-", color=grey, ms=3, label=label)
        middle.loglog(1 / RATIOS, delays.pcngd, "o-", color=black, ms=3, label="PCNGD")
        _finish(middle, "length of the drop", "imbalance 1/ρ", "steps to below start")
        losses, margins = (
            three_losses(),
            descend(THREE, normalised, lambda _: 1, 1).margins,
        )
        lines = ["-", "--", "-."]
        colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, 3))
        for index, (colour, line) in enumerate(zip(colours, lines, strict=True)):
            label = f"1 + Σ cos α = {margins[0, index]:.1f}".replace("-", "−")
            right.plot(losses[:, index], color=colour, ls=line, label=label)
        right.set(xlim=(0, 1000), ylim=(0, None))
        _finish(right, "PCNGD, three classes", "step", "loss / loss at start")
    return figure


def three_losses() -> np.ndarray:
    """Losses of three classes under PCNGD over those at the start, `[T, 3]`."""
    return descend(THREE, normalised, lambda _: 0.01, 1000, floor=0).relative_losses


def _finish(axis: Axes, title: str, xlabel: str, ylabel: str) -> None:
    axis.set_title(title, loc="left", fontweight="bold")
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.legend(fontsize=7, borderaxespad=0.2)
