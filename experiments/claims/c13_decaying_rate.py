"""C13: with momentum and a learning rate that decays, as people train."""

import functools

from tabulate import tabulate

from experiments.claims import advised
from experiments.claims.finding import Finding, Size
from experiments.claims.measures import (
    best_rate,
    macro_recall,
    over_log_steps,
    rare_recall,
)
from experiments.experiment import SETUPS, Experiment
from experiments.intervals import spread
from experiments.study import collect
from pcn_jax.training import ALGORITHMS, AlgorithmName, OptimizerConfig

TITLE = (
    "With momentum and a learning rate that decays to zero the rules that we advise "
    "end never much below the best of all"
)
SETUPS_OF: dict[Size, tuple[str, ...]] = {
    "fast": ("digits-halves",),
    "full": advised.SETUPS_OF_ALL,
}
COMPARED: dict[Size, tuple[AlgorithmName, ...]] = {
    "fast": ("sgd", "sgd+la", "pcnsgd+o", "pcnsgd+o+clip"),
    "full": advised.COMPARED,
}
_LATER = ("animals-vehicles-mlp", "automobile-truck-cnn", "digits-halves-resnet32")
"""Set-ups that were run with a decaying rate only after PCNSGD+O was advised; their
runs at a constant rate, of C11 and C12, were known."""
_OPTIMIZER = OptimizerConfig(momentum=0.9, schedule="cosine")
_NOTES = """\
The optimizer is SGD with a momentum of 0.9 behind the sum over classes, and the
learning rate decays to zero by a cosine over the steps of the set-up. The rate from
which it decays is that with the best macro recall on validation data at the last step,
on the same grid as elsewhere, and from 1 as well. PCNSGD+O is advised since a look at
the runs of C12 and at these of six MLPs; those on animals and vehicles, of the CNN and
of the ResNet-32 were made after that, though the runs of C11 and C12 on the same data
were known."""


def find(size: Size) -> Finding:
    """Compares rules at the end of training as people train.

    Args:
      size: Of the study.

    Returns:
      The finding.
    """
    studies = {
        name: collect(decaying(SETUPS[name]), size, algorithms=COMPARED[size])
        for name in SETUPS_OF[size]
    }
    recalls = {
        setup: {n: macro_recall(c)[:, -1] for n, c in study.items()}
        for setup, study in studies.items()
    }
    rows = [
        [
            setup,
            ALGORITHMS[name].label,
            best_rate(decaying(SETUPS[setup]).name, name),
            spread(macro_recall(curves)[:, -1]),
            spread(rare_recall(curves)[:, -1]),
            spread(over_log_steps(macro_recall(curves))),
        ]
        for setup, study in studies.items()
        for name, curves in study.items()
    ]
    head = [
        "set-up",
        "",
        "learning rate",
        "macro recall at the end",
        "recall of the minority",
        "macro recall over training",
    ]
    table = advised.tables(
        recalls, "at the end", tabulate(rows, head, tablefmt="github")
    )
    if later := {name: recalls[name] for name in _LATER if name in recalls}:
        when = "at the end, of what was so run only after PCNSGD+O was advised"
        table = f"{table}\n\n{advised.averages(later, when)}"
    return Finding(
        title=TITLE,
        effects=advised.compared(recalls, asserted=["pcnsgd+o"]),
        table=table,
        draw=functools.partial(advised.draw, recalls, "macro recall at the end"),
        notes=_NOTES,
        of_all=True,
    )


def decaying(setup: Experiment) -> Experiment:
    """The set-up with momentum and a learning rate that decays, under its own name.

    Args:
      setup: One of `SETUPS`.

    Example:
      >>> decaying(SETUPS["digits-lt"]).name
      'digits-lt/decaying'
    """
    return setup.variant("decaying", searched_for="at the end", optimizer=_OPTIMIZER)
