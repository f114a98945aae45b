"""C9: at a constant rate PCN does not settle; clipping keeps its start and settles."""

import functools
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from tabulate import tabulate

from experiments.claims.drawing import Panel, draw_panels
from experiments.claims.finding import Effect, Finding, Size
from experiments.claims.measures import drop_depth, macro_recall, rates_that_work
from experiments.experiment import SETUPS
from experiments.intervals import Interval, difference, factor, interval
from experiments.study import BINARY, Curves, Study, collect
from pcn_jax.training import ALGORITHMS, AlgorithmName

TITLE = (
    "At a constant learning rate PCN does not settle; per-class clipping keeps its "
    "start and settles"
)
COMPARED: tuple[AlgorithmName, ...] = (
    "sgd",
    "sgd+rw",
    "pcnsgd",
    "pcnsgd+o",
    "pcnsgd+clip",
    "pcnsgd+o+clip",
    "pcnsgd+split",
)
_TENTH = 0.1


def find(size: Size) -> Finding:
    """Compares the losses in the second half of training, long after the data are fit.

    Args:
      size: Of the study.

    Returns:
      The finding.
    """
    names = ["digits-lt", *([BINARY[size]] if size == "full" else [])]
    studies = {name: collect(SETUPS[name], size, algorithms=COMPARED) for name in names}
    digits = studies["digits-lt"]
    late = {name: _late_loss(curves) for name, curves in digits.items()}
    worse = _worse(digits["pcnsgd"])
    effects = [
        Effect(
            "PCNSGD on digits-lt: largest class loss in the second half of training "
            f"less the least before {worse}",
            worse.low > 0,
        )
    ]
    settling: tuple[AlgorithmName, ...] = (
        "pcnsgd+clip",
        "pcnsgd+o+clip",
        "pcnsgd+split",
    )
    for name in settling:
        times = factor(late[name], late["pcnsgd"])
        rise = interval(drop_depth(digits[name]))
        label = ALGORITHMS[name].label
        effects += [
            Effect(
                f"{label}: the same largest loss, times PCNSGD's {times}",
                times.high < 1,
            ),
            Effect(
                f"{label}: the minority's loss rises by {rise} first",
                rise.high < _TENTH,
            ),
        ]
    rows = [
        [
            setup,
            ALGORITHMS[name].label,
            f"{curves.learning_rate:g}",
            interval(_late_loss(curves)),
            interval(macro_recall(curves)[:, -1]),
            rates_that_work(setup, name),
        ]
        for setup, study in studies.items()
        for name, curves in study.items()
    ]
    head = [
        "set-up",
        "",
        "learning rate",
        "late loss",
        "macro recall at the end",
        "rates that work",
    ]
    return Finding(
        title=TITLE,
        effects=effects,
        table=tabulate(rows, head, tablefmt="github"),
        draw=functools.partial(_draw, studies),
        notes="The figure has the largest training loss of any class; late loss is the "
        "largest of it in the second half of training. Rates that work: those of the "
        "search's grid within 5 % of the best score (macro recall on validation data, "
        "over training), and many may mean that none works well. A run that does not "
        "settle ends by chance: under another version of the code it has another loss "
        "and recall at the end. All that is seen above is of digits-lt; on "
        "automobile-truck-mlp nothing has been fitted at the end.",
    )


def _late_loss(curves: Curves) -> np.ndarray:
    """`[S]`."""
    late = curves.train_loss[:, curves.steps >= curves.steps[-1] / 2]
    largest: np.ndarray = late.max(axis=(1, 2))
    return largest


def _worse(curves: Curves) -> Interval:
    worst = curves.train_loss.max(axis=2)
    return difference(_late_loss(curves), worst.min(axis=1))


def _draw(studies: Mapping[str, Study]) -> Figure:
    return draw_panels(
        [
            Panel(
                f"{setup}: worst class",
                study["sgd"].steps,
                {n: c.train_loss.max(axis=2) for n, c in study.items()},
                log=True,
            )
            for setup, study in studies.items()
        ]
    )
