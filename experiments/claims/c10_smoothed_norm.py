"""C10: the smoothed split-half norm does what +R does, without full-batch passes."""

import functools
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tabulate import tabulate

from experiments.claims import advised
from experiments.claims.finding import Effect, Finding, Size
from experiments.claims.measures import (
    drop_depth,
    macro_recall,
    over_log_steps,
    rare_loss,
)
from experiments.figures import STYLE, band, log_steps
from experiments.intervals import difference, interval, spread
from experiments.noise import Noise, measure_noise
from experiments.study import (
    BINARY,
    MANY,
    Curves,
    Study,
    binary,
    collect,
    with_enough_seeds,
)
from experiments.summary import minority
from pcn_jax.training import ALGORITHMS, AlgorithmName

TITLE = (
    "The smoothed split-half norm does what PCNSGD+R does, without passes over all data"
)
STEPS = (0, 10, 100)
COMPARED: tuple[AlgorithmName, ...] = (
    "sgd",
    "sgd+rw",
    "pcnsgd",
    "pcnsgd+o",
    "pcnsgd+r",
    "pcnsgd+clip",
    "pcnsgd+split",
)
_NOTES = """\
The halves share no example, so that in a small class of n examples their product is
short of the squared norm of its mean gradient by σ²/(n - 1): that much of the norm is
the noise of the sample, and what the rule takes p to be is short likewise: of 15
digits by 0.1. Settings: `min_norm` 0.3, `min_alignment` 0.5 and decay 0.99 of
the split-half norm, `max_norm` 0.1 of clipping; C11 has others, of which 1 is better
for PCNSGD+clip. Losses and recalls over training are means over the log-spaced
measurements."""
_SETTLED, _ERROR = 100, 0.1
"""The step from which on p is looked at, and how wrong an estimate of it may be."""
_NOISY = 1.1
"""How many times the true one the squared norm of small batches is at least."""
_BIAS = 0.05
"""How far the mean of the estimates may be from what they are to estimate, over it."""
_MUCH = 0.05
"""Loss by which the rule may be worse than another."""


def find(size: Size) -> Finding:
    """Looks at the estimate itself, and at training with it.

    Args:
      size: Of the study.

    Returns:
      The finding.
    """
    setups = [BINARY[size], MANY[size]]
    studies = {
        name: collect(with_enough_seeds(name, size), size, algorithms=COMPARED)
        for name in setups
    }
    noise = measure_noise(binary(size), size, STEPS)
    effects = [
        *_of_batches(noise, binary(size).seeds),
        *_of_the_estimate({n: study["pcnsgd+split"] for n, study in studies.items()}),
    ]
    two = studies[BINARY[size]]
    losses = {name: over_log_steps(rare_loss(curves)) for name, curves in two.items()}
    others: tuple[AlgorithmName, ...] = ("pcnsgd", "pcnsgd+r")
    for name in others:
        less = difference(losses["pcnsgd+split"], losses[name])
        scale = _MUCH if name == "pcnsgd+r" else 0
        effects.append(
            Effect.of(
                f"Minority's training loss minus {ALGORITHMS[name].label}'s, two "
                f"classes: {less}, {f'at most {scale} above' if scale else 'below 0'}",
                less.is_below(scale),
            )
        )
    for setup, study in studies.items():
        recalls = {n: macro_recall(c)[:, -1] for n, c in study.items()}
        effects.append(
            advised.near_the_best(
                f"{setup}: macro recall at the end",
                recalls,
                "pcnsgd+split",
                advised.label_of,
            )
        )
    rows = [
        [
            setup,
            ALGORITHMS[name].label,
            f"{curves.learning_rate:g}",
            spread(drop_depth(curves)),
            spread(over_log_steps(rare_loss(curves))),
            spread(over_log_steps(macro_recall(curves))),
            spread(macro_recall(curves)[:, -1]),
        ]
        for setup, study in studies.items()
        for name, curves in study.items()
    ]
    head = [
        "set-up",
        "",
        "learning rate",
        "rise of the loss",
        "minority's training loss",
        "macro recall over training",
        "at the end",
    ]
    return Finding(
        title=TITLE,
        effects=effects,
        table=tabulate(rows, head, tablefmt="github"),
        draw=functools.partial(_draw, studies, noise),
        notes=_NOTES,
    )


def _of_batches(rows: Sequence[Noise], seeds: Sequence[int]) -> list[Effect]:
    """Why the norm of a batch will not do, and what two halves of it give instead."""
    small = [row for row in rows if 2 <= row.batch <= 10 and row.label == 1]
    split, expected, noisy = (
        interval(
            [
                np.mean([getattr(r, name) for r in small if r.seed == seed])
                for seed in seeds
            ]
        )
        for name in ("split", "expected", "noisy")
    )
    return [
        Effect.of(
            "Squared norm of the gradient of 2 to 10 examples of the minority, over "
            f"the true one: {noisy}, above {_NOISY}",
            noisy.is_above(_NOISY),
        ),
        Effect.of(
            f"Product of two halves of them over the same: {split}, within {_BIAS} of "
            f"1; over all pairs of the class it is {expected.mean:.3g}",
            split.is_above(1 - _BIAS),
            split.is_below(1 + _BIAS),
            asserted=False,  # a class of few examples falls short of it
        ),
    ]


def _of_the_estimate(runs: Mapping[str, Curves]) -> list[Effect]:
    """What the rule has learned from batches, against passes over all data.

    Of classes of which a batch has two examples.
    """
    effects = []
    for setup, curves in runs.items():
        late = curves.steps >= _SETTLED
        known = np.asarray((curves.estimated_alignment > 0).any(axis=(0, 1)))
        rare = [label for label in minority(curves.class_counts) if known[label]]
        if not rare:
            continue
        estimated, true = (
            of_runs[:, late][:, :, rare].mean(axis=(1, 2))
            for of_runs in (curves.estimated_alignment, curves.class_alignment)
        )
        error = difference(estimated, true)
        better = difference(np.abs(estimated - true), 1 - true)
        effects += [
            Effect.of(
                f"{setup}: distance from p of what the rule takes it to be minus that "
                f"of 1, as which the norm of the batch takes it: {better}, below 0",
                better.is_below(0),
            ),
            Effect.of(
                f"{setup}, from step {_SETTLED} on: p of the minority is "
                f"{true.mean():.2f}; what the rule takes it to be minus that: {error}, "
                f"within {_ERROR}",
                error.is_above(-_ERROR),
                error.is_below(_ERROR),
                asserted=False,
            ),
        ]
    return effects


def _draw(studies: Mapping[str, Study], rows: Sequence[Noise]) -> Figure:
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(10.4, 2.7))
        for axis, (setup, study) in zip(axes, studies.items(), strict=False):
            for name, curves in study.items():
                band(axis, curves.steps, macro_recall(curves), name)
            log_steps(axis, study["sgd"].steps)
            axis.set_title(f"{setup}: macro recall", loc="left", fontweight="bold")
            axis.set_xlabel("step")
        _draw_estimate(axes[2], rows)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
    return figure


def _draw_estimate(axis: Axes, rows: Sequence[Noise]) -> None:
    of_minority = [row for row in rows if row.label == 1 and row.batch > 1]
    batches = sorted({row.batch for row in of_minority})
    lines = {
        "batch's own norm²: mean": ("noisy", "-", "#0072B2"),
        "two halves: mean": ("split", "-", "#882255"),
        "two halves: std. dev.": ("split_spread", "--", "#882255"),
        "all pairs: std. dev.": ("pairs_spread", ":", "#882255"),
    }
    for label, (name, style, colour) in lines.items():
        values = [
            np.mean([getattr(r, name) for r in of_minority if r.batch == batch])
            for batch in batches
        ]
        axis.plot(batches, values, style, color=colour, label=label)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_title("estimate / true norm²", loc="left", fontweight="bold")
    axis.set_xlabel("examples of the minority in the batch")
    axis.legend(fontsize=6.5)
