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
from experiments.intervals import difference, interval, spread
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
    falls = {n: recall_lost(curves, at_first=True) for n, curves in study.items()}
    effects = []
    names: tuple[AlgorithmName, ...] = ("gd", "sgd")
    for name in names:
        rise, fall = interval(depths[name]), interval(falls[name])
        label = ALGORITHMS[name].label
        effects += [
            Effect.of(
                f"{label}: the minority's loss rises by {rise}", rise.is_above(0)
            ),
            Effect.of(
                f"{label}: its test recall falls by {fall} at first", fall.is_above(0)
            ),
        ]
    rise, fall = interval(depths["pcngd"]), interval(falls["pcngd"])
    less = difference(depths["pcngd"], depths["gd"])
    fewer = difference(falls["pcngd"], falls["gd"])
    effects += [
        Effect.of(
            f"PCNGD: it rises by {rise}, not a tenth of what it does under GD",
            rise.is_below(_TENTH * depths["gd"].mean()),
        ),
        Effect.of(f"PCNGD's rise minus GD's: {less}", less.is_below(0)),
        Effect.of(
            f"PCNGD: recall falls by {fall} at first, not a tenth of what it does "
            "under GD",
            fall.is_below(_TENTH * falls["gd"].mean()),
            asserted=False,
        ),
        Effect.of(f"PCNGD's fall minus GD's: {fewer}", fewer.is_below(0)),
    ]
    rows = [
        [
            ALGORITHMS[name].label,
            f"{curves.learning_rate:g}",
            spread(depths[name]),
            spread(drop_length(curves)),
            spread(falls[name]),
            spread(recall_lost(curves)),
        ]
        for name, curves in study.items()
    ]
    head = [
        "",
        "learning rate",
        "rise of the loss",
        "steps",
        "fall of recall at first",
        "in all",
    ]
    return Finding(
        title=TITLE,
        effects=effects,
        table=tabulate(rows, head, tablefmt="github"),
        draw=functools.partial(_draw, study),
        notes="Steps: until the minority's loss is back where it started, one more "
        "than were run where it is not. At first: in the first tenth of the run. In "
        "all, recall falls under PCNGD, too: late and slowly, of nets that guess the "
        "minority nearly always before they are trained. The figure is cut off at 3.5 "
        "times the loss at the start.",
    )


def _draw(study: Study) -> Figure:
    return draw_panels([minority_loss(study, at_most=3.5), minority_recall(study)])
