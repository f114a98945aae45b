"""C4: the minority's mini-batch gradients are noisier in direction, as predicted."""

import functools
import itertools
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from tabulate import tabulate

from experiments.claims.finding import Effect, Finding, Size
from experiments.claims.measures import over_log_steps
from experiments.figures import STYLE
from experiments.intervals import Interval, difference, interval
from experiments.noise import Noise, measure_noise
from experiments.study import binary, collect

TITLE = "The minority's directional noise is larger, and p follows its prediction"
STEPS = (0, 10, 100)
_TOLERANCE = 0.05
_CLASSES = ("majority", "minority")


def find(size: Size) -> Finding:
    """Measures `p` of the batches that are trained on, and of batches of any size.

    Args:
      size: Of the study.

    Returns:
      The finding.
    """
    experiment = binary(size)
    sgd = collect(experiment, size, algorithms=["sgd"])["sgd"]
    of_steps = [over_log_steps(sgd.class_alignment[:, :, k]) for k in range(2)]
    less = difference(of_steps[1], of_steps[0])
    rows = measure_noise(experiment, size, STEPS)
    effects = [
        Effect.of(
            f"p of the minority minus that of the majority, in the batches of SGD "
            f"{less}, below 0",
            less.is_below(0),
        ),
    ]
    for step, (label, name) in itertools.product(STEPS, enumerate(_CLASSES)):
        of_class = [r for r in rows if (r.step, r.label) == (step, label)]
        error = _mean_error(of_class, experiment.seeds)
        effects.append(
            Effect.of(
                f"After {step} steps p of the {name} is off its prediction by {error} "
                f"on average over batch sizes, at most {_TOLERANCE}",
                error.is_below(_TOLERANCE),
                asserted=step != STEPS[-1],
            )
        )
    batches = sorted({row.batch for row in rows})
    lines = [
        [
            name,
            step,
            *(_cell(rows, label, step, batch) for batch in batches),
        ]
        for label, name in enumerate(_CLASSES)
        for step in STEPS
    ]
    head = ["", "step", *(f"b = {batch}" for batch in batches)]
    return Finding(
        title=TITLE,
        effects=effects,
        table=tabulate(lines, head, tablefmt="github"),
        draw=functools.partial(_draw, rows),
        notes="Mean p of 2,000 batches of b examples of the class, over seeds, and "
        "behind the stroke its prediction from the noise of single examples. The "
        "prediction takes the noise to be of one length in every batch; after the "
        "first steps few examples have most of it, and p is larger than predicted. "
        "At equal b the minority's p is the larger one; its batches are smaller. The "
        "theory's noisy limit, where p grows as the root of b, is not reached.",
    )


def _mean_error(rows: Sequence[Noise], seeds: Sequence[int]) -> Interval:
    errors = [
        [abs(r.alignment - r.predicted) for r in rows if r.seed == seed]
        for seed in seeds
    ]
    return interval(np.mean(errors, axis=1))


def _cell(rows: Sequence[Noise], label: int, step: int, batch: int) -> str:
    key = (label, step, batch)
    found = [r for r in rows if (r.label, r.step, r.batch) == key]
    if not found:
        return ""
    measured, predicted = (
        np.mean([getattr(r, name) for r in found])
        for name in ("alignment", "predicted")
    )
    return f"{measured:.2f} / {predicted:.2f}"


def _draw(rows: Sequence[Noise]) -> Figure:
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(
            1, len(STEPS), figsize=(2.6 * len(STEPS), 2.5), sharey=True
        )
        for axis, step in zip(axes, STEPS, strict=True):
            for label, colour in enumerate(("#0072B2", "#D55E00")):
                here = [r for r in rows if (r.label, r.step) == (label, step)]
                batches = sorted({r.batch for r in here})
                means = [
                    [
                        np.mean([getattr(r, name) for r in here if r.batch == batch])
                        for batch in batches
                    ]
                    for name in ("alignment", "predicted")
                ]
                axis.plot(
                    batches,
                    means[0],
                    "o",
                    color=colour,
                    ms=4,
                    label=f"{_CLASSES[label]}, measured",
                )
                axis.plot(
                    batches, means[1], "-", color=colour, linewidth=1, label="predicted"
                )
            axis.set_xscale("log", base=2)
            axis.set_title(f"after {step} steps", loc="left", fontweight="bold")
            axis.set_xlabel("examples of the class")
            axis.set_ylim(0, 1.02)
        axes[0].set_ylabel("p")
        axes[-1].legend(loc="lower right", fontsize=7)
    return figure
