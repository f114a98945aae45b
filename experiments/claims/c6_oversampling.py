"""C6: oversampling helps plain SGD, too."""

import functools

from matplotlib.figure import Figure
from tabulate import tabulate

from experiments.claims.drawing import draw_panels, minority_loss, minority_recall
from experiments.claims.finding import Effect, Finding, Size
from experiments.claims.measures import (
    at_step,
    drop_depth,
    macro_recall,
    over_log_steps,
    rare_recall,
    step_with_as_many_examples,
)
from experiments.intervals import difference, spread
from experiments.study import BINARY, Study, collect, with_enough_seeds
from pcn_jax.training import ALGORITHMS, AlgorithmName

TITLE = "Oversampling helps SGD for the same reason"
COMPARED: tuple[AlgorithmName, ...] = ("sgd", "sgd+o", "sgd+rw")


def find(size: Size) -> Finding:
    """Compares SGD with and without oversampling.

    At equally many steps, and at equally many examples of the minority: there the
    oversampled run is stopped earlier, as it sees that many times more of them a step.

    Args:
      size: Of the study.

    Returns:
      The finding.
    """
    study = collect(with_enough_seeds(BINARY[size], size), size, algorithms=COMPARED)
    sgd, over = study["sgd"], study["sgd+o"]
    shallower = difference(drop_depth(over), drop_depth(sgd))
    recalls = {name: over_log_steps(rare_recall(c)) for name, c in study.items()}
    more = difference(recalls["sgd+o"], recalls["sgd"])
    earlier = step_with_as_many_examples(sgd)
    at_equal_examples = difference(
        at_step(over, macro_recall(over), earlier), macro_recall(sgd)[:, -1]
    )
    effects = [
        Effect.of(
            f"Rise of the minority's loss minus SGD's: {shallower}",
            shallower.is_below(0),
        ),
        Effect.of(
            f"Minority recall over training minus SGD's: {more}", more.is_above(0)
        ),
    ]
    rows = [
        [
            ALGORITHMS[name].label,
            f"{curves.learning_rate:g}",
            spread(drop_depth(curves)),
            spread(recalls[name]),
            spread(rare_recall(curves)[:, -1]),
            spread(macro_recall(curves)[:, -1]),
        ]
        for name, curves in study.items()
    ]
    head = [
        "",
        "learning rate",
        "rise of the loss",
        "minority recall over training",
        "at the end",
        "macro recall at the end",
    ]
    return Finding(
        title=TITLE,
        effects=effects,
        table=tabulate(rows, head, tablefmt="github"),
        draw=functools.partial(_draw, study),
        notes=f"SGD+O has seen as many examples of the minority after {earlier} steps "
        f"as SGD at the end; its macro recall is then {at_equal_examples} above SGD's "
        "at the end.",
    )


def _draw(study: Study) -> Figure:
    return draw_panels([minority_loss(study), minority_recall(study)])
