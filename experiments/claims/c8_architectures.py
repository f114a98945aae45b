"""C8: the effects depend neither on the architecture nor on the data."""

import functools
from collections.abc import Callable, Mapping

import numpy as np
from matplotlib.figure import Figure
from tabulate import tabulate

from experiments.claims.drawing import draw_panels, minority_recall
from experiments.claims.finding import Effect, Finding, Size
from experiments.claims.measures import (
    best_rate,
    class_gap,
    drop_depth,
    macro_recall,
    over_log_steps,
    rare_loss,
    rare_recall,
)
from experiments.experiment import SETUPS
from experiments.intervals import Interval, difference, interval, spread
from experiments.study import Curves, Study, collect
from pcn_jax.training import ALGORITHMS, AlgorithmName

TITLE = (
    "On an MLP, a CNN, VGG16 and two ResNets, and on other data, the drop under SGD "
    "and the repairs of PCNSGD are the same"
)
NETS: dict[Size, dict[str, str]] = {
    "fast": {"MLP": "digits-halves", "CNN": "digits-halves-cnn"},
    "full": {
        "MLP": "automobile-truck-mlp",
        "CNN": "automobile-truck-cnn",
        "VGG16": "automobile-truck-vgg16",
        "ResNet18": "automobile-truck-resnet18",
        "ResNet-32": "digits-halves-resnet32",
        "MLP, horses": "horse-deer-mlp",
        "MLP, animals": "animals-vehicles-mlp",
        "MLP, five classes": "cifar10-five-mlp",
    },
}
_PAPERS: tuple[AlgorithmName, ...] = ("sgd", "sgd+o", "pcnsgd", "pcnsgd+o")
_ON_LARGE_NETS: tuple[AlgorithmName, ...] = (
    *_PAPERS,
    "sgd+rw",
    "pcnsgd+o+clip",
    "pcnsgd+split",
)
_ALL: tuple[AlgorithmName, ...] = (
    "gd",
    "pcngd",
    *_ON_LARGE_NETS,
    "sgd+la",
    "pcnsgd+o+la",
    "pcnsgd+r",
)
COMPARED: dict[str, tuple[AlgorithmName, ...]] = {
    "digits-halves": _PAPERS,
    "digits-halves-cnn": _PAPERS,
    "automobile-truck-mlp": _ALL,
    "automobile-truck-cnn": _ALL,
    "automobile-truck-vgg16": _ON_LARGE_NETS,
    "automobile-truck-resnet18": _ON_LARGE_NETS,
    "digits-halves-resnet32": _ALL,
    "horse-deer-mlp": _ALL,
    "animals-vehicles-mlp": _ALL,
    "cifar10-five-mlp": _ALL,
}
"""What was run on each set-up: passes over all data take long on large nets."""
_DRAWN: tuple[AlgorithmName, ...] = (
    "gd",
    "sgd",
    "sgd+rw",
    "pcnsgd",
    "pcnsgd+o",
    "pcnsgd+o+clip",
)
"""In the figure: with all methods no curve could be told from another."""


def find(size: Size) -> Finding:
    """Looks at the drop under SGD and at what balances, on each net.

    Args:
      size: Of the study.

    Returns:
      The finding.
    """
    studies = {
        net: collect(SETUPS[name], size, algorithms=COMPARED[name])
        for net, name in NETS[size].items()
    }
    effects, rows = [], []
    for net, study in studies.items():
        effects += _effects(net, study)
        rows += [
            [
                net,
                ALGORITHMS[name].label,
                best_rate(NETS[size][net], name),
                spread(drop_depth(curves)),
                spread(over_log_steps(np.abs(class_gap(curves)))),
                spread(macro_recall(curves)[:, -1]),
            ]
            for name, curves in study.items()
        ]
    head = [
        "",
        "",
        "learning rate",
        "rise of the loss",
        "gap in recall",
        "macro recall at the end",
    ]
    return Finding(
        title=TITLE,
        effects=effects,
        table=tabulate(rows, head, tablefmt="github"),
        draw=functools.partial(_draw, studies),
        notes="Unless a row says otherwise, the data are automobiles and trucks. The "
        "CNN, VGG16 (tanh, GroupNorm, dropout) and ResNet18 (GroupNorm, the stem for "
        "ImageNet), all as in the paper, were trained for 300 steps, ResNet-32 (with "
        "GroupNorm, on handwritten digits of 8 x 8, 300 : 15 in batches of 64) for "
        "100; the MLP on horses and deer for 1,000, on animals and vehicles (29,880 : "
        "332, in batches of 1,000) and on five classes (each 0.6 times the one "
        "before, 5,000 to 648, in batches of 500; the minority is the rarest) for "
        "500. Where the best learning rate is the lowest or the highest of the grid, "
        "a better one may lie beyond; or the method learns nothing at any, and the "
        "lowest does the least. How far the minority's loss rises depends on the "
        "learning rate, too: under PCNSGD, minus SGD, it is "
        f"{_normalising_alone(studies)}. "
        "VGG16, ResNet18, GD and PCNGD on the CNN and on five classes, GD on "
        "animals, and PCNSGD+R on the CNN were trained on an H100, VGG16 and ResNet18 "
        "with products rounded to TF32, as JAX does there, but for two of the five "
        "seeds of ResNet18's PCNSGD and PCNSGD+O, on a CPU. Rules that are not "
        "in the table were not run; the figure has some of the table's.",
    )


def _effects(net: str, study: Study) -> list[Effect]:
    effects = []
    for descent in ("gd", "sgd"):
        if descent in study:
            rise = interval(drop_depth(study[descent]))
            label = ALGORITHMS[descent].label
            what = f"{net}: under {label} the minority's loss rises by {rise}"
            effects.append(Effect.of(what, rise.is_above(0)))
    if "pcngd" in study:
        shallower = difference(drop_depth(study["pcngd"]), drop_depth(study["gd"]))
        what = f"{net}: rise of the minority's loss, PCNGD minus GD {shallower}"
        effects.append(Effect.of(what, shallower.is_below(0)))
    for name in (
        "pcnsgd+o",
        "pcnsgd+r",
        "pcnsgd+o+clip",
        "pcnsgd+o+la",
        "pcnsgd+split",
    ):
        if name in study and "pcnsgd" in study:
            less, names = _less(study, name, "pcnsgd", rare_loss)
            what = f"{net}: minority's training loss over training, {names} {less}"
            effects.append(Effect.of(what, less.is_below(0)))
            shallower = difference(drop_depth(study[name]), drop_depth(study["pcnsgd"]))
            what = f"{net}: rise of the minority's loss, {names} {shallower}"
            effects.append(Effect.of(what, shallower.is_below(0), asserted=False))
    for name in ("sgd+o", "sgd+rw", "sgd+la"):
        if name in study:
            more, names = _less(study, name, "sgd", rare_recall)
            what = f"{net}: minority recall over training, {names} {more}"
            effects.append(Effect.of(what, more.is_above(0)))
    return effects


def _normalising_alone(studies: Mapping[str, Study]) -> str:
    """What becomes of the drop if nothing is done about the noise."""
    return ", ".join(
        f"{net} {difference(drop_depth(study['pcnsgd']), drop_depth(study['sgd']))}"
        for net, study in studies.items()
    )


def _less(
    study: Study,
    one: AlgorithmName,
    other: AlgorithmName,
    measure: Callable[[Curves], np.ndarray],
) -> tuple[Interval, str]:
    """The difference of two algorithms over training, and what it is called."""
    of_one, of_other = (over_log_steps(measure(study[name])) for name in (one, other))
    names = f"{ALGORITHMS[one].label} minus {ALGORITHMS[other].label}"
    return difference(of_one, of_other), names


def _draw(studies: Mapping[str, Study]) -> Figure:
    return draw_panels(
        [
            minority_recall(
                {name: study[name] for name in _DRAWN if name in study},
                net,
            )
            for net, study in studies.items()
        ],
        "test recall of the minority",
    )
