"""C5: normalising alone does not balance learning under mini-batches; +O and +R do."""

import functools

import numpy as np
from matplotlib.figure import Figure
from tabulate import tabulate

from experiments.claims.drawing import draw_panels, minority_loss
from experiments.claims.finding import Effect, Finding, Size
from experiments.claims.measures import (
    at_step,
    class_gap,
    over_log_steps,
    rare_loss,
    rare_recall,
    step_with_as_many_examples,
)
from experiments.figures import Panel
from experiments.intervals import difference, spread
from experiments.study import BINARY, Study, collect, with_enough_seeds
from pcn_jax.training import ALGORITHMS, AlgorithmName

TITLE = "PCNSGD alone does not balance learning; PCNSGD+O and PCNSGD+R balance it more"
COMPARED: tuple[AlgorithmName, ...] = (
    "sgd",
    "pcnsgd",
    "pcnsgd+o",
    "pcnsgd+r",
    "sgd+rw",
)
_OLDER, _OLD = "PCNSGD+R, older", 10
"""PCNSGD+R with gradients of all data that are up to so many steps old."""
_BALANCED: tuple[AlgorithmName, ...] = ("pcnsgd+o", "pcnsgd+r")


def find(size: Size) -> Finding:
    """Compares the gap between the classes, over training and at its end.

    Args:
      size: Of the study.

    Returns:
      The finding.
    """
    setup = with_enough_seeds(BINARY[size], size)
    study = collect(setup, size, algorithms=COMPARED)
    runs = {ALGORITHMS[name].label: curves for name, curves in study.items()}
    older = setup.variant("older", reference_every=_OLD)
    runs[_OLDER] = collect(older, size, algorithms=["pcnsgd+r"])["pcnsgd+r"]
    gaps = {label: over_log_steps(np.abs(class_gap(c))) for label, c in runs.items()}
    last_gaps = {label: np.abs(class_gap(c))[:, -1] for label, c in runs.items()}
    losses = {label: over_log_steps(rare_loss(c)) for label, c in runs.items()}
    effects = []
    for label in (ALGORITHMS[name].label for name in _BALANCED):
        less = difference(gaps[label], gaps["PCNSGD"])
        lower = difference(losses[label], losses["PCNSGD"])
        at_last = difference(last_gaps[label], last_gaps["PCNSGD"])
        effects += [
            Effect.of(
                f"{label}: gap in recall over training minus PCNSGD's {less}",
                less.is_below(0),
            ),
            Effect.of(
                f"{label}: minority's training loss over training minus PCNSGD's "
                f"{lower}",
                lower.is_below(0),
            ),
            Effect.of(
                f"{label}: gap in recall at the end minus PCNSGD's {at_last}",
                at_last.is_below(0),
                asserted=False,
            ),
        ]
    over, alone = study["pcnsgd+o"], study["pcnsgd"]
    earlier = step_with_as_many_examples(alone)
    at_equal_examples = difference(
        at_step(over, rare_loss(over), earlier), rare_loss(alone)[:, -1]
    )
    price = difference(last_gaps[_OLDER], last_gaps["PCNSGD+R"])
    than_rw, than_rw_at_last = (
        " and ".join(
            str(difference(of[ALGORITHMS[name].label], of["SGD+RW"]))
            for name in _BALANCED
        )
        for of in (gaps, last_gaps)
    )
    rows = [
        [
            label,
            f"{curves.learning_rate:g}",
            spread(gaps[label]),
            spread(losses[label]),
            spread(last_gaps[label]),
            spread(rare_recall(curves)[:, -1]),
        ]
        for label, curves in runs.items()
    ]
    head = [
        "",
        "learning rate",
        "gap in recall",
        "minority's training loss",
        "gap at the end",
        "minority recall at the end",
    ]
    return Finding(
        title=TITLE,
        effects=effects,
        table=tabulate(rows, head, tablefmt="github"),
        draw=functools.partial(_draw, study),
        notes="Gap: test recall of the majority minus that of the minority, without "
        "sign; it and the loss are means over the log-spaced measurements. After "
        f"{earlier} steps PCNSGD+O has seen as many examples of the minority as PCNSGD "
        "at the end; their training loss is then, minus PCNSGD's at the end, "
        f"{at_equal_examples}. The paper does not compare plain re-weighting: the gaps "
        f"of PCNSGD+O and PCNSGD+R minus that of SGD+RW are {than_rw} over training, "
        f"and {than_rw_at_last} at the end. PCNSGD+R needs gradients of "
        f"all data at every step. *Older*: where they are refreshed every {_OLD} "
        f"steps, the gap at the end is, minus that of PCNSGD+R, {price}.",
    )


def _draw(study: Study) -> Figure:
    gap = Panel(
        "gap in test recall, with its sign",
        study["sgd"].steps,
        {name: class_gap(curves) for name, curves in study.items()},
        limits=(-1, 1),
    )
    return draw_panels([minority_loss(study, at_most=3.5), gap])
