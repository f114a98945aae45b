"""C7: on long-tailed data the PCN variants learn the rare classes sooner and better."""

import functools

import numpy as np
from matplotlib.figure import Figure
from tabulate import tabulate

from experiments.claims.finding import Effect, Finding, Size
from experiments.claims.measures import (
    at_step,
    macro_recall,
    over_log_steps,
    rare_recall,
    step_with_as_many_examples,
    steps_to_beat_chance,
)
from experiments.figures import Panel, draw_families
from experiments.intervals import difference, factor, spread
from experiments.study import MANY, Study, collect, with_enough_seeds
from pcn_jax.training import ALGORITHMS, AlgorithmName

TITLE = (
    "On long-tailed data of ten classes the PCN variants learn the rare classes sooner "
    "and end with better macro recall"
)
COMPARED: tuple[AlgorithmName, ...] = (
    "gd",
    "pcngd",
    "sgd",
    "sgd+o",
    "sgd+rw",
    "sgd+la",
    "pcnsgd",
    "pcnsgd+o",
    "pcnsgd+r",
    "pcnsgd+clip",
    "pcnsgd+o+clip",
    "pcnsgd+o+la",
    "pcnsgd+split",
)
_BASELINES: dict[AlgorithmName, AlgorithmName] = {
    "pcngd": "gd",
    "pcnsgd": "sgd",
    "pcnsgd+o": "sgd",
    "pcnsgd+r": "sgd",
    "pcnsgd+clip": "sgd",
    "pcnsgd+o+clip": "sgd",
    "pcnsgd+o+la": "sgd",
    "pcnsgd+split": "sgd",
}
"""What each variant is compared with: what it would be without balancing."""
_LOSING: tuple[AlgorithmName, ...] = ("pcngd", "pcnsgd", "pcnsgd+r")
"""Those that may lose the minority again (C9), and then have not learned it."""
_SETTLING: tuple[AlgorithmName, ...] = ("pcnsgd+clip", "pcnsgd+o+clip", "pcnsgd+split")


def find(size: Size) -> Finding:
    """Compares all with GD or SGD, and with re-weighting, which has no norms.

    Args:
      size: Of the study.

    Returns:
      The finding.
    """
    experiment = with_enough_seeds(MANY[size], size)
    study = collect(experiment, size, algorithms=COMPARED)
    steps = {
        name: np.maximum(steps_to_beat_chance(curves), 1)  # for ratios
        for name, curves in study.items()
    }
    macro = {name: macro_recall(curves)[:, -1] for name, curves in study.items()}
    effects = []
    for name, baseline in _BASELINES.items():
        label, its = ALGORITHMS[name].label, f"{ALGORITHMS[baseline].label}'s"
        sooner = factor(steps[name], steps[baseline])
        better = difference(macro[name], macro[baseline])
        effects += [
            Effect.of(
                f"{label}: steps until the minority is learned better than by chance, "
                f"times {its}: {sooner}",
                sooner.is_below(1),
                asserted=name not in _LOSING,
            ),
            Effect.of(
                f"{label}: macro recall at the end minus {its}: {better}",
                better.is_above(0),
                asserted=name in _SETTLING,
            ),
        ]
    for name in _BASELINES:
        if name != "pcngd":
            better = difference(macro[name], macro["sgd+rw"])
            what = f"{ALGORITHMS[name].label}: macro recall at the end minus SGD+RW's"
            more = Effect.of(f"{what}: {better}", better.is_above(0), asserted=False)
            effects.append(more)
    over = study["pcnsgd+o"]
    earlier = step_with_as_many_examples(study["sgd"])
    at_equal_examples = difference(
        at_step(over, macro_recall(over), earlier), macro["sgd"]
    )
    rows = [
        [
            ALGORITHMS[name].label,
            f"{curves.learning_rate:g}",
            spread(steps[name]),
            spread(over_log_steps(macro_recall(curves))),
            spread(macro[name]),
            spread(rare_recall(curves)[:, -1]),
            difference(macro[name], macro["sgd+rw"]),
        ]
        for name, curves in study.items()
    ]
    head = [
        "",
        "learning rate",
        "steps until learned",
        "macro recall over training",
        "macro recall at the end",
        "minority recall at the end",
        "macro recall minus SGD+RW's, 95 %",
    ]
    return Finding(
        title=TITLE,
        effects=effects,
        table=tabulate(rows, head, tablefmt="github"),
        draw=functools.partial(_draw, study),
        notes="The minority is the rarest third of the classes. It is learned better "
        "than by chance from the measurement on from which its training loss stays "
        "below that of guessing, the log of the number of classes; where it does not, "
        "one more than all steps are counted. After "
        f"{earlier} steps PCNSGD+O has seen as many examples of it as SGD at the end; "
        f"its macro recall is then, minus SGD's at the end, {at_equal_examples}.",
    )


def _draw(study: Study) -> Figure:
    steps = study["sgd"].steps
    return draw_families(
        [
            Panel(
                "macro recall, test",
                steps,
                {name: macro_recall(curves) for name, curves in study.items()},
            ),
            Panel(
                "recall of the minority, test",
                steps,
                {name: rare_recall(curves) for name, curves in study.items()},
            ),
        ]
    )
