"""C1: the minority gets worse first under GD and SGD, and not under PCNGD."""

import functools

from matplotlib.figure import Figure
from tabulate import tabulate

from experiments.claims.drawing import draw_panels, minority_loss, minority_recall
from experiments.claims.finding import Effect, Finding, Size
from experiments.claims.measures import (
    drop_depth,
    drop_length,
    recall_lost,
)
from experiments.intervals import difference, interval
from experiments.study import BINARY, Study, collect, with_enough_seeds
from pcn_jax.training import ALGORITHMS, AlgorithmName

TITLE = (
    "Under GD and SGD the minority's loss rises and its recall falls first; "
    "under PCNGD they do not"
)
_TENTH = 0.1


def find(size: Size) -> Finding:
    """Measures the initial drop of every algorithm on the set-up with two classes.

    Args:
      size: Of the study.

    Returns:
      The finding.
    """
    study = collect(with_enough_seeds(BINARY[size], size), size)
    depths = {name: drop_depth(curves) for name, curves in study.items()}
    effects = []
    names: tuple[AlgorithmName, ...] = ("gd", "sgd")
    for name in names:
        rise = interval(depths[name])
        lost = interval(recall_lost(study[name]))
        label = ALGORITHMS[name].label
        effects += [
            Effect(f"{label}: the minority's loss rises by {rise}", rise.low > 0),
            Effect(f"{label}: its test recall falls by up to {lost}", lost.low > 0),
        ]
    rise = interval(depths["pcngd"])
    less = difference(depths["pcngd"], depths["gd"])
    effects += [
        Effect(
            f"PCNGD: it rises by {rise}, not a tenth of what it does under GD",
            rise.high < _TENTH * depths["gd"].mean(),
        ),
        Effect(f"PCNGD's rise less GD's: {less}", less.high < 0),
    ]
    rows = [
        [
            ALGORITHMS[name].label,
            f"{curves.learning_rate:g}",
            interval(depths[name]),
            interval(drop_length(curves)),
            interval(recall_lost(curves)),
        ]
        for name, curves in study.items()
    ]
    head = ["", "learning rate", "rise of the loss", "steps", "recall lost"]
    return Finding(
        title=TITLE,
        effects=effects,
        table=tabulate(rows, head, tablefmt="github"),
        draw=functools.partial(_draw, study),
        notes="Steps: until the minority's loss is back where it started, one more "
        "than were run where it is not. Recall lost is that of the whole run; under "
        "PCNGD it is a late and slow loss, of nets that guess the minority nearly "
        "always before they are trained. The figure is cut off at 3.5 times the loss "
        "at the start.",
    )


def _draw(study: Study) -> Figure:
    return draw_panels([minority_loss(study, at_most=3.5), minority_recall(study)])
