"""C1: the minority gets worse first under GD and SGD, and not under PCNGD."""

import functools

from matplotlib.figure import Figure
from tabulate import tabulate

from experiments.claims.drawing import minority_loss, minority_recall
from experiments.claims.finding import Effect, Finding, Size
from experiments.claims.measures import (
    drop_depth,
    drop_length,
    recall_lost,
)
from experiments.experiment import Experiment
from experiments.figures import draw_families
from experiments.intervals import difference, interval, spread
from experiments.study import (
    BINARY,
    SLOW,
    Curves,
    Study,
    collect,
    slowly,
    with_enough_seeds,
)
from pcn_jax.training import ALGORITHMS, AlgorithmName

TITLE = (
    "Under GD and SGD the minority's loss rises and its recall falls first; "
    "under PCNGD they do not"
)
_TENTH = 0.1
_UNBALANCED: tuple[AlgorithmName, ...] = ("gd", "sgd")


def find(size: Size) -> Finding:
    """Measures the initial drop of every algorithm on the set-up with two classes.

    Args:
      size: Of the study.

    Returns:
      The finding.
    """
    setup = with_enough_seeds(BINARY[size], size)
    study, slow = collect(setup, size), _at_the_slow_rate(setup, size)
    at = f" at {SLOW[size]:g}" if slow else ""
    effects = [
        *_of_unbalanced(slow, at),
        *_of_unbalanced({name: study[name] for name in _UNBALANCED}),
    ]
    for where, found in ((at, slow), ("", study)):
        if "gd" in found:
            effects += _of_pcngd(study["pcngd"], found["gd"], f"GD{where}")
    rows = [
        [
            ALGORITHMS[name].label + where,
            f"{curves.learning_rate:g}",
            spread(drop_depth(curves)),
            spread(drop_length(curves)),
            spread(recall_lost(curves, at_first=True)),
            spread(recall_lost(curves)),
        ]
        for where, found in ((at, slow), ("", study))
        for name, curves in found.items()
    ]
    head = [
        "",
        "learning rate",
        "rise of the loss",
        "steps",
        "fall of recall at first",
        "in all",
    ]
    slowly = f"; GD and SGD are those{at}, as the gradient flows" if at else ""
    return Finding(
        title=TITLE,
        effects=effects,
        table=tabulate(rows, head, tablefmt="github"),
        draw=functools.partial(_draw, study | slow),
        notes="Steps: until the minority's loss is back where it started, one more "
        "than were run where it is not. At first: in the first tenth of the run. In "
        "all, recall falls under PCNGD, too: late and slowly, of nets that guess the "
        "minority nearly always before they are trained. The figure is cut off at 3.5 "
        f"times the loss at the start{slowly}.",
    )


def _at_the_slow_rate(setup: Experiment, size: Size) -> Study:
    rate = SLOW[size]
    return collect(slowly(setup, rate), size, algorithms=_UNBALANCED) if rate else {}


def _of_unbalanced(study: Study, at: str = "") -> list[Effect]:
    effects = []
    for name, curves in study.items():
        rise = interval(drop_depth(curves))
        fall = interval(recall_lost(curves, at_first=True))
        label = ALGORITHMS[name].label + at
        effects += [
            Effect.of(
                f"{label}: the minority's loss rises by {rise}", rise.is_above(0)
            ),
            Effect.of(
                f"{label}: its test recall falls by {fall} at first", fall.is_above(0)
            ),
        ]
    return effects


def _of_pcngd(pcngd: Curves, gd: Curves, label: str) -> list[Effect]:
    depths = [drop_depth(curves) for curves in (pcngd, gd)]
    falls = [recall_lost(curves, at_first=True) for curves in (pcngd, gd)]
    rise, fall = interval(depths[0]), interval(falls[0])
    less, fewer = difference(*depths), difference(*falls)
    more_than_a_tenth = [
        difference(ours, _TENTH * theirs) for ours, theirs in (depths, falls)
    ]
    return [
        Effect.of(
            f"PCNGD: it rises by {rise}; minus a tenth of that under {label} "
            f"{more_than_a_tenth[0]}, below 0",
            more_than_a_tenth[0].is_below(0),
        ),
        Effect.of(f"PCNGD's rise minus that of {label}: {less}", less.is_below(0)),
        Effect.of(
            f"PCNGD: recall falls by {fall} at first; minus a tenth of that under "
            f"{label} {more_than_a_tenth[1]}, below 0",
            more_than_a_tenth[1].is_below(0),
            asserted=False,
        ),
        Effect.of(f"PCNGD's fall minus that of {label}: {fewer}", fewer.is_below(0)),
    ]


def _draw(study: Study) -> Figure:
    return draw_families([minority_loss(study, at_most=3.5), minority_recall(study)])
