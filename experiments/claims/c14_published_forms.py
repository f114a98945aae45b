"""C14: what the published code computes otherwise, against what the paper says."""

import functools
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from tabulate import tabulate

from experiments.claims.c13_decaying_rate import decaying
from experiments.claims.drawing import legend_beside
from experiments.claims.finding import Effect, Finding, Size
from experiments.claims.measures import (
    MACRO_RECALLS,
    best_rate,
    macro_recall,
    over_log_steps,
    rare_loss,
)
from experiments.experiment import Experiment
from experiments.figures import STYLE, band, log_steps
from experiments.intervals import difference, spread
from experiments.study import Curves, collect, with_enough_seeds
from pcn_jax.training import ALGORITHMS, AlgorithmName

TITLE = (
    "The published code's forms of PCNSGD+R and of PCNGD's step size are no better "
    "than the paper's"
)


class Form(NamedTuple):
    """One algorithm as the published code has it.

    Attributes:
      label: In tables, and of the folder with its runs.
      algorithm: Its name.
      changes: Fields of `TrainConfig`.
      setups: On which it is compared with the algorithm as it stands, by name.
      asserted: Whether a check fails where it is better over training after all.
    """

    label: str
    algorithm: AlgorithmName
    changes: dict[str, Any]
    setups: dict[Size, tuple[str, ...]]
    asserted: bool

    def of(self, setup: Experiment) -> Experiment:
        """The set-up with the published form, under a name of its own."""
        return setup.variant(self.label, **self.changes)


FORMS = [
    Form(
        "product",
        "pcnsgd+r",
        {"published_alignment": True},
        {
            "fast": ("digits-halves",),
            "full": (
                "digits-halves",
                "digits-halves/decaying",
                "automobile-truck-mlp",
                "digits-lt",
                "digits-lt/decaying",
                "cifar10-multi-mlp",
            ),
        },
        asserted=False,
    ),
    Form(
        "angle",
        "pcngd",
        {"angle_step_size": True},
        {
            "fast": ("digits-halves",),
            "full": ("digits-halves", "automobile-truck-mlp"),
        },
        asserted=True,
    ),
]
_MUCH = 0.02
"""Macro recall by which a form may be above the other."""
_NOTES = """\
Product: the normalised gradient of a class is multiplied by the product of the other
classes' p, and not divided by its own; for two classes the direction is the same, and
the step shorter by both p. Angle: the step of PCNGD is multiplied by 1 + cos of the
angle between the gradients of the two classes. So both shorten the step where it is
least sure: where batches are noisy, and where the classes are opposed. Each form has
its own learning rate, from the same search; *decaying*: with the momentum and the decay
of C13, at the end only. In the figure the published forms are dashed."""


class Pair(NamedTuple):
    """An algorithm on one set-up, as in the paper and as published."""

    papers: Curves
    published: Curves


_Pairs = dict[tuple[str, str], Pair]
"""By the name of the set-up and the label of the form."""


def find(size: Size) -> Finding:
    """Compares the published forms with those that are the default here.

    Args:
      size: Of the study.

    Returns:
      The finding.
    """
    effects, rows, pairs = [], [], _Pairs()
    for form in FORMS:
        for name in form.setups[size]:
            setup = setup_of(name, size)
            pair = Pair(*(_curves(one, form, size) for one in (setup, form.of(setup))))
            pairs[name, form.label] = pair
            effects += _effects(form, setup, pair)
            rows += _rows(form, setup, pair)
    head = [
        "set-up",
        "",
        "learning rate",
        *(f"macro recall {what}" for what in MACRO_RECALLS),
        "minority's training loss over training",
    ]
    return Finding(
        title=TITLE,
        effects=effects,
        table=tabulate(rows, head, tablefmt="github"),
        draw=functools.partial(_draw, pairs),
        notes=_NOTES,
        of_all=True,
    )


def setup_of(name: str, size: Size) -> Experiment:
    """One of `SETUPS`; with the decaying rate of C13, where that is said behind it.

    Args:
      name: Such as `"digits-lt"` or `"digits-lt/decaying"`.
      size: Of the study.
    """
    setup = with_enough_seeds(name.removesuffix("/decaying"), size)
    return setup if name == setup.name else decaying(setup)


def _effects(form: Form, setup: Experiment, pair: Pair) -> list[Effect]:
    effects = []
    for what, measure in MACRO_RECALLS.items():
        if setup.searched_for not in ("over training", what):
            continue  # the rate is good for something else
        more = difference(measure(pair.published), measure(pair.papers))
        effects.append(
            Effect.of(
                f"{setup.name}, {ALGORITHMS[form.algorithm].label}: macro recall "
                f"{what} with the {form.label} minus that without: {more}, at most "
                f"{_MUCH} above",
                more.is_below(_MUCH),
                asserted=form.asserted and what == "over training",
            )
        )
    return effects


def _rows(form: Form, setup: Experiment, pair: Pair) -> list[list[object]]:
    name = ALGORITHMS[form.algorithm].label
    return [
        [
            setup.name,
            label,
            best_rate(experiment.name, form.algorithm),
            *(spread(of(curves)) for of in MACRO_RECALLS.values()),
            spread(over_log_steps(rare_loss(curves))),
        ]
        for label, experiment, curves in (
            (name, setup, pair.papers),
            (f"{name}, {form.label}", form.of(setup), pair.published),
        )
    ]


def _curves(experiment: Experiment, form: Form, size: Size) -> Curves:
    return collect(experiment, size, algorithms=[form.algorithm])[form.algorithm]


def _draw(pairs: _Pairs) -> Figure:
    algorithms = {form.label: form.algorithm for form in FORMS}
    columns = min(len(pairs), 4)
    rows = -(-len(pairs) // columns)
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(
            rows, columns, figsize=(2.5 * columns, 2.4 * rows), squeeze=False
        )
        for axis in axes.flat[len(pairs) :]:
            axis.remove()
        for axis, ((setup, label), pair) in zip(axes.flat, pairs.items(), strict=False):
            algorithm = algorithms[label]
            name = ALGORITHMS[algorithm].label
            for curves, called, line in (
                (pair.papers, name, "-"),
                (pair.published, f"{name}, {label}", "--"),
            ):
                recall = macro_recall(curves)
                band(axis, curves.steps, recall, algorithm, label=called, line=line)
            log_steps(axis, pair.papers.steps)
            axis.set_title(f"{name}\n{setup}", loc="left", fontweight="bold")
            axis.set_xlabel("step")
        legend_beside(figure)
        figure.supylabel("macro recall", fontsize=8)
    return figure
