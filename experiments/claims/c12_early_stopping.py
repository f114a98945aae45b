"""C12: with early stopping what we advise is never much worse than the best."""

import functools

import numpy as np
from tabulate import tabulate

from experiments.claims import advised
from experiments.claims.finding import Effect, Finding, Size
from experiments.claims.measures import (
    at_the_best,
    best_rate,
    macro_recall,
    rare_loss,
    rare_recall,
    stopped_at,
)
from experiments.experiment import SETUPS, Experiment
from experiments.intervals import difference, spread
from experiments.study import Study, collect
from pcn_jax.training import ALGORITHMS, AlgorithmName

TITLE = (
    "With early stopping the rules that we advise are never much worse than the best "
    "of all"
)
SETUPS_OF: dict[Size, tuple[str, ...]] = {
    "fast": ("digits-halves",),
    "full": advised.SETUPS_OF_ALL,
}
_FORGETFUL = "animals-vehicles-mlp"
COMPARED: dict[Size, tuple[AlgorithmName, ...]] = {
    "fast": ("sgd", "sgd+rw", "sgd+la", "pcnsgd+o+clip"),
    "full": advised.COMPARED,
}
_BALANCING: tuple[AlgorithmName, ...] = (
    "sgd+o",
    "sgd+rw",
    "sgd+la",
    "pcnsgd+o",
    "pcnsgd+o+clip",
    "pcnsgd+o+la",
    "pcnsgd+split",
)
_LOST = 0.1
"""Training loss by which a class that is lost again, as in C9, is above its least."""
_NOTES = """\
Early stopping: the parameters are those of the log-spaced measurement with the best
macro recall on validation data, and the learning rate is that for which it is best, on
the same grid as elsewhere; so these are not the runs of the other claims. Validation
data are balanced, with 500 examples of each label of CIFAR-10 and 25 of each digit, and
so more than the rarest classes have for training; fewer of them were not tried. *At the
end*: of the same runs. What the minority loses from the stop to the end is not lost
as in C9: its few examples stay learned, by heart, and so does the majority, while other
examples of the minority are taken for the majority. In the figure a dot has its
interval and is of early stopping, a ring of the end. Not run: PCNSGD+R and PCNSGD+clip;
VGG16 and ResNet18."""


def find(size: Size) -> Finding:
    """Compares rules where each run is stopped, and asks why it has to be.

    Args:
      size: Of the study.

    Returns:
      The finding.
    """
    studies = {
        name: collect(stopping_early(SETUPS[name]), size, algorithms=COMPARED[size])
        for name in SETUPS_OF[size]
    }
    effects = []
    if _FORGETFUL in studies:
        effects += _forgotten(studies[_FORGETFUL])
    recalls = {
        setup: {n: at_the_best(c, macro_recall(c)) for n, c in study.items()}
        for setup, study in studies.items()
    }
    rings = {
        setup: {n: macro_recall(c)[:, -1] for n, c in study.items()}
        for setup, study in studies.items()
    }
    effects += advised.compared(recalls)
    rows = [
        [
            setup,
            ALGORITHMS[name].label,
            best_rate(stopping_early(SETUPS[setup]).name, name),
            f"{np.median(stopped_at(curves)):g}",
            spread(at_the_best(curves, macro_recall(curves))),
            spread(macro_recall(curves)[:, -1]),
            spread(at_the_best(curves, rare_recall(curves))),
            spread(rare_recall(curves)[:, -1]),
        ]
        for setup, study in studies.items()
        for name, curves in study.items()
    ]
    head = [
        "set-up",
        "",
        "learning rate",
        "stopped at step (median)",
        "macro recall",
        "at the end",
        "recall of the minority",
        "at the end",
    ]
    return Finding(
        title=TITLE,
        effects=effects,
        table=advised.tables(
            recalls, "with early stopping", tabulate(rows, head, tablefmt="github")
        ),
        draw=functools.partial(
            advised.draw,
            recalls,
            "macro recall: with early stopping ●, at the end ○",
            rings,
        ),
        notes=_NOTES,
        of_all=True,
    )


def stopping_early(setup: Experiment) -> Experiment:
    """The set-up with rates that suit early stopping, under a name of its own.

    Args:
      setup: One of `SETUPS`.

    Example:
      >>> stopping_early(SETUPS["digits-lt"]).name
      'digits-lt/early-stopping'
    """
    return setup.variant("early-stopping", searched_for="early stopping")


def _forgotten(study: Study) -> list[Effect]:
    """Whether the minority is recognised less after the stop, but stays learned."""
    effects = []
    for name in _BALANCING:
        curves = study[name]
        loss, recall = (
            difference(values[:, -1], at_the_best(curves, values))
            for values in (rare_loss(curves), rare_recall(curves))
        )
        effects.append(
            Effect.of(
                f"{_FORGETFUL}, {ALGORITHMS[name].label}: from the stop to the end the "
                f"minority's test recall changes by {recall}, and so falls, and its "
                f"training loss by {loss}, at most {_LOST} up",
                recall.is_below(0),
                loss.is_below(_LOST),
            )
        )
    return effects
