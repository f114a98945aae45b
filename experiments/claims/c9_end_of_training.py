"""C9: at a constant rate PCN does not settle; clipping keeps its start and settles."""

import functools
import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tabulate import tabulate

from experiments.claims.finding import Effect, Finding, Size
from experiments.claims.measures import drop_depth, macro_recall, rates_that_work
from experiments.endings import (
    CONSTANT,
    DECAYED,
    LONGER,
    PLANS,
    Ending,
    measure_endings,
)
from experiments.experiment import SETUPS
from experiments.figures import COLOURS, LINES, STYLE, band, log_steps
from experiments.intervals import (
    Interval,
    difference,
    factor,
    interval,
    proportion,
    spread,
)
from experiments.study import BINARY, Curves, Study, collect, with_enough_seeds
from pcn_jax.training import ALGORITHMS, AlgorithmName

TITLE = (
    "At a constant learning rate PCN does not settle; per-class clipping keeps its "
    "start and settles"
)
COMPARED: tuple[AlgorithmName, ...] = (
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
NORMALISED: tuple[AlgorithmName, ...] = ("pcnsgd", "pcnsgd+o")
SETTLING: tuple[AlgorithmName, ...] = ("pcnsgd+clip", "pcnsgd+o+clip", "pcnsgd+split")
RATES = (0.03, 0.1, 0.3, 1.0)
ENDINGS_OF: dict[Size, tuple[str, ...]] = {
    "fast": (),
    "full": ("digits-lt", "digits-halves"),
}
"""Set-ups on which training ends at several rates, lengths and schedules."""
_TENTH = 0.1
_HALF, _FEW = 0.5, 0.05
_NO_LOSS = 1e-8
"""Where lower losses are drawn."""
_HEADING = f"""\
How many runs lose a class again (of these, at learning rates of \
{", ".join(f"{rate:g}" for rate in RATES)}), and macro recall at the end, mean over \
rates (least of them):"""
_NOTES = f"""\
Late loss is the largest training loss of any class in the second half of training. A
run loses a class again if the largest was below {_TENTH} once in the first half, and is
more than {_TENTH} above its least in the second. Parts of runs have the exact interval
of Clopper and Pearson, as though the rates of one seed were independent, and are of
these rates: at others more or fewer runs would lose a class. A run at a constant rate
is the first tenth of the one that is ten times as long, so only the latter counts. A
run that learns no class has none to lose, such as, at a rate of 1, one of SGD+RW on
digits-halves and those of PCNSGD+R on digits-lt. PCNSGD and PCNSGD+O settle on
digits-halves because the two classes can be told apart: the loss becomes exactly 0 in
float32, where a class has no gradient to normalise. Rates that work: those of the
search's grid within 5 % of the best score (macro recall on validation data, over
training), and many may mean that none works well. A run that does not settle ends by
chance: under another version of the code it has another loss and recall at the end. On
automobile-truck-mlp nothing has been fitted at the end. Figure: on the left the largest
training loss of any class over steps, each rule at the rate of its search; then late
loss against the learning rate, each seed a dot and their medians a line, below
{_NO_LOSS:g} drawn there. Ten times as long: 20,000 steps on digits-lt and 10,000 on
digits-halves."""


def find(size: Size) -> Finding:
    """Compares the losses in the second half of training, long after the data are fit.

    Args:
      size: Of the study.

    Returns:
      The finding.
    """
    names = ["digits-lt", *(["digits-halves", BINARY[size]] if size == "full" else [])]
    studies = {
        name: collect(with_enough_seeds(name, size), size, algorithms=COMPARED)
        for name in names
    }
    digits = studies["digits-lt"]
    late = {name: _late_loss(curves) for name, curves in digits.items()}
    worse = _worse(digits["pcnsgd"])
    effects = [
        Effect.of(
            "PCNSGD on digits-lt: largest class loss in the second half of training "
            f"minus its least in the first {worse}, more than {_TENTH}",
            worse.is_above(_TENTH),
            asserted=False,  # of the short runs of the fast study
        )
    ]
    for name in SETTLING:
        times = factor(late[name], late["pcnsgd"])
        rise = interval(drop_depth(digits[name]))
        label = ALGORITHMS[name].label
        effects += [
            Effect.of(
                f"{label}: the same largest loss over PCNSGD's {times}, below 1",
                times.is_below(1),
            ),
            Effect.of(
                f"{label}: the minority's loss rises by {rise} first, less than "
                f"{_TENTH}",
                rise.is_below(_TENTH),
            ),
        ]
    rows = [
        [
            setup,
            ALGORITHMS[name].label,
            f"{curves.learning_rate:g}",
            spread(_late_loss(curves)),
            spread(macro_recall(curves)[:, -1]),
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
    tables = [tabulate(rows, head, tablefmt="github")]
    endings = {
        name: measure_endings(SETUPS[name], size, COMPARED, RATES)
        for name in ENDINGS_OF[size]
    }
    if endings:
        effects += _effects_of_endings(endings)
        tables += [_HEADING, _table_of_endings(endings)]
    return Finding(
        title=TITLE,
        effects=effects,
        table="\n\n".join(tables),
        draw=functools.partial(_draw, studies, endings),
        notes=_NOTES,
    )


def _late_loss(curves: Curves) -> np.ndarray:
    """`[S]`."""
    late = curves.train_loss[:, curves.steps >= curves.steps[-1] / 2]
    largest: np.ndarray = late.max(axis=(1, 2))
    return largest


def _worse(curves: Curves) -> Interval:
    early = curves.train_loss[:, curves.steps < curves.steps[-1] / 2]
    return difference(_late_loss(curves), early.max(axis=2).min(axis=1))


def loses_again(ending: Ending) -> bool:
    """Whether classes were learned, and one is lost late or its loss is not finite.

    Args:
      ending: Of a run.

    Example:
      >>> loses_again(Ending("constant rate", 0.1, "sgd", 0, 0.05, 1.5, 0.9))
      True
      >>> loses_again(Ending("constant rate", 0.1, "sgd", 0, 0.5, 1.5, 0.9))  # no class
      False
    """
    if not math.isfinite(ending.late_loss):
        return True
    is_learned = ending.least_loss < _TENTH
    return is_learned and ending.late_loss - ending.least_loss > _TENTH


def _part(endings: Sequence[Ending]) -> Interval:
    return proportion(sum(map(loses_again, endings)), len(endings))


def _count(endings: Sequence[Ending]) -> str:
    return f"{sum(map(loses_again, endings))} of {len(endings)}"


def _counts(endings: Sequence[Ending]) -> str:
    of_rates = [[e for e in endings if e.learning_rate == rate] for rate in RATES]
    each = (str(sum(map(loses_again, found))) for found in of_rates)
    return f"{_count(endings)} ({', '.join(each)})"


def _effects_of_endings(endings: Mapping[str, Sequence[Ending]]) -> list[Effect]:
    """How many runs lose a class again, at all rates."""
    effects = []
    everywhere = [ending for found in endings.values() for ending in found]
    for name in NORMALISED:
        label = ALGORITHMS[name].label
        for setup, found in endings.items():
            of = [e for e in found if (e.algorithm, e.plan) == (name, LONGER)]
            effects.append(
                Effect.of(
                    f"{label} at constant rates loses a class again in {_count(of)} "
                    f"long runs on {setup}: {_part(of)}, more than {_HALF}",
                    _part(of).is_above(_HALF),
                )
            )
        of = [e for e in everywhere if (e.algorithm, e.plan) == (name, DECAYED)]
        effects.append(
            Effect.of(
                f"{label} with cosine decay loses a class again in {_count(of)} runs: "
                f"{_part(of)}, less than {_FEW}",
                _part(of).is_below(_FEW),
            )
        )
    for name in SETTLING:
        of = [e for e in everywhere if e.algorithm == name and e.plan != CONSTANT]
        effects.append(
            Effect.of(
                f"{ALGORITHMS[name].label} loses a class again in {_count(of)} long "
                f"runs and runs with cosine decay: {_part(of)}, less than {_FEW}",
                _part(of).is_below(_FEW),
            )
        )
    return effects


def _table_of_endings(endings: Mapping[str, Sequence[Ending]]) -> str:
    rows = []
    for setup, found in endings.items():
        for name in COMPARED:
            of_plans = [
                [e for e in found if (e.plan, e.algorithm) == (plan, name)]
                for plan in PLANS
            ]
            rows.append(
                [
                    setup,
                    ALGORITHMS[name].label,
                    *map(_counts, of_plans),
                    *map(_recall, of_plans),
                ]
            )
    head = ["set-up", "", *PLANS, *(f"recall: {plan}" for plan in PLANS)]
    return tabulate(rows, head, tablefmt="github")


def _recall(endings: Sequence[Ending]) -> str:
    of_rates = [
        np.mean([e.macro_recall for e in endings if e.learning_rate == rate])
        for rate in RATES
    ]
    return f"{np.mean(of_rates):.3f} ({min(of_rates):.3f})"


def _draw(
    studies: Mapping[str, Study], endings: Mapping[str, Sequence[Ending]]
) -> Figure:
    drawn = list(endings) or list(studies)[:1]
    columns = 1 + len(PLANS) * bool(endings)
    with plt.style.context(STYLE):
        figure, axes = plt.subplots(
            len(drawn),
            columns,
            figsize=(2.4 * columns + 1.4, 2.3 * len(drawn)),
            sharey="row",
            squeeze=False,
        )
        for row, setup in zip(axes, drawn, strict=True):
            _draw_curves(row[0], studies[setup], setup)
            row[0].set_ylabel("training loss of the worst class")
            for axis, plan in zip(row[1:], PLANS, strict=False):
                _draw_endings(axis, [e for e in endings[setup] if e.plan == plan])
                axis.set_title(plan, loc="left", fontweight="bold")
                axis.set_ylabel("late loss" if plan == CONSTANT else "")
        lines = axes[0][0].get_legend_handles_labels()
        figure.legend(*lines, loc="outside right upper")
    return figure


def _draw_curves(axis: Axes, study: Study, title: str) -> None:
    for name, curves in study.items():
        worst = curves.train_loss.max(axis=2)
        band(axis, curves.steps, np.maximum(worst, _NO_LOSS), name)
    log_steps(axis, study["sgd"].steps)
    axis.set_yscale("log")
    axis.set_ylim(bottom=_NO_LOSS / 2)
    axis.set_title(title, loc="left", fontweight="bold")
    axis.set_xlabel("step")


def _draw_endings(axis: Axes, endings: Sequence[Ending]) -> None:
    for name in COMPARED:
        of = [e for e in endings if e.algorithm == name]
        late = np.array(
            [[e.late_loss for e in of if e.learning_rate == rate] for rate in RATES]
        )
        late = np.maximum(late, _NO_LOSS)
        colour = COLOURS[name]
        middle = np.median(late, axis=1)
        axis.plot(RATES, middle, LINES.get(name, "-"), color=colour, linewidth=1.4)
        axis.plot(RATES, late, ".", color=colour, markersize=3, alpha=0.5)
    axis.set_xscale("log")
    axis.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
    axis.minorticks_off()
    axis.set_yscale("log")
    axis.set_ylim(bottom=_NO_LOSS / 2)
    axis.set_xlabel("learning rate")
