"""C6: oversampling helps plain SGD, too."""

import functools

import numpy as np
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
from experiments.study import BINARY, Curves, Study, collect, with_enough_seeds
from experiments.summary import minority
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
    alignment = {name: _alignment(curves) for name, curves in study.items()}
    less_noise = difference(alignment["sgd+o"], alignment["sgd"])
    than_weights = difference(recalls["sgd+o"], recalls["sgd+rw"])
    in_all = difference(
        *(over_log_steps(macro_recall(study[name])) for name in ("sgd+o", "sgd+rw"))
    )
    effects = [
        Effect.of(
            f"Rise of the minority's loss minus SGD's: {shallower}",
            shallower.is_below(0),
        ),
        Effect.of(
            f"Minority recall over training minus SGD's: {more}", more.is_above(0)
        ),
        Effect.of(
            "The reason, less directional noise: the minority's p over training minus "
            f"SGD's: {less_noise}",
            less_noise.is_above(0),
        ),
        Effect.of(
            "And not the weights of the classes, which re-weighting balances, too, "
            "with the noise of SGD: minority recall over training minus SGD+RW's: "
            f"{than_weights}",
            than_weights.is_above(0),
            asserted=False,
        ),
        Effect.of(
            f"The same of macro recall: {in_all}", in_all.is_above(0), asserted=False
        ),
    ]
    rows = [
        [
            ALGORITHMS[name].label,
            f"{curves.learning_rate:g}",
            spread(drop_depth(curves)),
            spread(alignment[name]),
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
        "p of the minority",
        "minority recall over training",
        "at the end",
        "macro recall at the end",
    ]
    return Finding(
        title=TITLE,
        effects=effects,
        table=tabulate(rows, head, tablefmt="github"),
        draw=functools.partial(_draw, study),
        notes="p is the cosine between the gradients of a class on a batch and on all "
        "data, at the measurements of a run. SGD+O has seen as many examples of the "
        f"minority after {earlier} steps as SGD at the end; its macro recall is then "
        f"{at_equal_examples} above SGD's at the end.",
    )


def _alignment(curves: Curves) -> np.ndarray:
    """The minority's `p` over training, `[S]`; the last step has no next batch."""
    rare = curves.class_alignment[:, :, minority(curves.class_counts)]
    return np.asarray(np.nanmean(rare, axis=(1, 2)))


def _draw(study: Study) -> Figure:
    return draw_panels([minority_loss(study), minority_recall(study)])
