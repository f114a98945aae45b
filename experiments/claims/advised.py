"""Whether the rules that we advise are never much worse than the best of all."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from matplotlib.figure import Figure
from tabulate import tabulate

from experiments.claims.drawing import Dot, draw_dots
from experiments.claims.finding import Effect
from experiments.intervals import Interval, difference, interval
from pcn_jax.training import ALGORITHMS, AlgorithmName

SETUPS_OF_ALL = (
    "automobile-truck-mlp",
    "horse-deer-mlp",
    "animals-vehicles-mlp",
    "cifar10-five-mlp",
    "cifar10-multi-mlp",
    "digits-halves",
    "digits-lt",
    "automobile-truck-cnn",
    "digits-halves-resnet32",
)
"""Set-ups on which all rules are compared."""
_MLPS_ON_CIFAR = SETUPS_OF_ALL[:5]
COMPARED: tuple[AlgorithmName, ...] = (
    "sgd",
    "sgd+o",
    "sgd+rw",
    "sgd+la",
    "pcnsgd",
    "pcnsgd+o",
    "pcnsgd+o+clip",
    "pcnsgd+o+la",
    "pcnsgd+split",
)
_CLIPPED: AlgorithmName = "pcnsgd+o+clip"
_ADVISED: dict[AlgorithmName, tuple[AlgorithmName, ...]] = {
    _CLIPPED: COMPARED,
    "pcnsgd+o": COMPARED,
    "sgd+la": ("sgd", "sgd+rw", "sgd+la", "pcnsgd", "pcnsgd+split"),
}
"""What we advise, and with what each is compared: the last if one cannot oversample."""
_PAIRS: tuple[tuple[AlgorithmName, AlgorithmName], ...] = (
    (_CLIPPED, "sgd+rw"),
    (_CLIPPED, "sgd+la"),
    (_CLIPPED, "pcnsgd+o"),
    ("pcnsgd+o", "sgd+rw"),
    ("pcnsgd+o", "sgd+la"),
    ("pcnsgd+o", "sgd+o"),
    ("sgd+la", "sgd+rw"),
)
"""Compared on average: with baselines, with less of the same, and baselines."""
MUCH = 0.05
"""Macro recall by which a rule that we advise may be below the best."""

Recalls = Mapping[AlgorithmName, np.ndarray]
"""The macro recall of each rule, `[S]`."""

Rule = TypeVar("Rule")


class Below(NamedTuple):
    """How far a rule is below the best of each set-up, in macro recall.

    Attributes:
      mean: Over set-ups.
      most: Where it is the most.
      on: The set-up where that is.
    """

    mean: Interval
    most: Interval
    on: str


def compared(
    recalls: Mapping[str, Recalls],
    asserted: Sequence[AlgorithmName] = tuple(_ADVISED),
) -> list[Effect]:
    """Each rule that we advise with the best of the others, and some with SGD.

    Args:
      recalls: Of each set-up.
      asserted: Rules without whose effects a check fails.

    Returns:
      What has to be so on each set-up.
    """
    return [
        effect
        for name, found in recalls.items()
        for one, rules in _ADVISED.items()
        if one in found
        for effect in _on(name, found, one, rules, one in asserted)
    ]


def below_the_best(
    recalls: Mapping[str, Mapping[Rule, np.ndarray]],
    among: Callable[[Rule], bool] = lambda _: True,
) -> dict[Rule, Below]:
    """How far each rule is below the best of each set-up.

    Args:
      recalls: Of each set-up.
      among: Whether a rule may be the best.

    Returns:
      Of each rule that was run on all set-ups, the least on average first.
    """
    seeds = _seeds(recalls)
    below = {}
    for rule, less in _shortfalls(recalls, among).items():
        on = max(less, key=lambda name: float(less[name].mean()))
        mean = interval(np.mean([x[:seeds] for x in less.values()], axis=0))
        below[rule] = Below(mean, interval(less[on]), on)
    return dict(sorted(below.items(), key=lambda item: item[1].mean.mean))


def most_below(
    recalls: Mapping[str, Mapping[Rule, np.ndarray]],
    among: Callable[[Rule], bool] = lambda _: True,
) -> dict[Rule, np.ndarray]:
    """How far each rule is below the best where it is most so for a seed.

    Args:
      recalls: Of each set-up.
      among: Whether a rule may be the best.

    Returns:
      Of each rule that was run on all set-ups, one number a seed that all have, `[S]`.
    """
    seeds = _seeds(recalls)
    return {
        rule: np.max([x[:seeds] for x in less.values()], axis=0)
        for rule, less in _shortfalls(recalls, among).items()
    }


def _shortfalls(
    recalls: Mapping[str, Mapping[Rule, np.ndarray]], among: Callable[[Rule], bool]
) -> dict[Rule, dict[str, np.ndarray]]:
    """How far each rule is below the best, on each set-up and of each seed, `[S]`."""
    best = {
        name: max(
            (recall for rule, recall in found.items() if among(rule)),
            key=lambda recall: float(recall.mean()),
        )
        for name, found in recalls.items()
    }
    one, *others = recalls.values()
    return {
        rule: {name: best[name] - found[rule] for name, found in recalls.items()}
        for rule in one
        if all(rule in found for found in others)
    }


def tables(recalls: Mapping[str, Recalls], when: str, of_all: str) -> str:
    """How rules compare over several set-ups, before a table of all that was found.

    Args:
      recalls: Of each set-up.
      when: What the recalls are of.
      of_all: The table, which stands alone if there is one set-up.
    """
    if len(recalls) == 1:
        return of_all
    parts = [_table_below(recalls, when), averages(recalls, when), "All of them:"]
    return "\n\n".join([*parts, of_all])


def draw(
    recalls: Mapping[str, Recalls],
    what: str,
    rings: Mapping[str, Recalls] | None = None,
) -> Figure:
    """A dot with its interval for each rule, and a ring for what else was measured.

    Args:
      recalls: Of each set-up.
      what: What dots and rings are.
      rings: Recalls at another time of the runs.
    """
    panels = {
        setup: [
            Dot(
                ALGORITHMS[name].label,
                name,
                interval(recall),
                ring=float(rings[setup][name].mean()) if rings else None,
            )
            for name, recall in found.items()
        ]
        for setup, found in recalls.items()
    }
    return draw_dots(panels, what)


def near_the_best(
    what: str,
    found: Mapping[Rule, np.ndarray],
    one: Rule,
    label: Callable[[Rule], str],
    *,
    asserted: bool = True,
) -> Effect:
    """Whether a rule is not much worse than the best of the others.

    Args:
      what: What is compared.
      found: That of each rule, `[S]`.
      one: The rule.
      label: What a rule is called.
      asserted: Whether a check fails without it.
    """
    others = [rule for rule in found if rule != one]
    best = max(others, key=lambda rule: float(found[rule].mean()))
    less = difference(found[one], found[best])
    return Effect.of(
        f"{what} of {label(one)} minus that of the best of {len(others)} others, "
        f"{label(best)}: {less}, at most {MUCH} below",
        less.is_above(-MUCH),
        asserted=asserted,
    )


def label_of(name: AlgorithmName) -> str:
    """What a rule is called."""
    return ALGORITHMS[name].label


def _table_below(recalls: Mapping[str, Recalls], when: str) -> str:
    rules = set().union(*recalls.values())
    complete = {setup: found for setup, found in recalls.items() if rules <= {*found}}
    rows = [
        [ALGORITHMS[rule].label, *below]
        for rule, below in below_the_best(complete).items()
    ]
    table = tabulate(rows, ["", "on average", "at most", "on"], tablefmt="github")
    where = f"one of the {len(complete)} set-ups on which all rules were run"
    return f"Macro recall {when} below the best of {where}:\n\n{table}"


def averages(recalls: Mapping[str, Recalls], when: str) -> str:
    """How what we advise compares with what it has to beat, on average.

    Args:
      recalls: Of each set-up.
      when: What the recalls are of.

    Returns:
      A heading and a table.
    """
    seeds = _seeds(recalls)
    mlps = [name for name in recalls if name in _MLPS_ON_CIFAR]
    is_part = 1 < len(mlps) < len(recalls)
    rows = []
    for one, other in _PAIRS:
        more = {
            name: (found[one] - found[other])[:seeds] for name, found in recalls.items()
        }
        of_setups = [float(of_seeds.mean()) for of_seeds in more.values()]
        rows.append(
            [
                f"{label_of(one)} minus {label_of(other)}",
                interval(np.mean(list(more.values()), axis=0)),
                interval(of_setups),
                f"{sum(mean > 0 for mean in of_setups)} of {len(of_setups)}",
                *(
                    [interval(np.mean([more[name] for name in mlps], axis=0))]
                    if is_part
                    else []
                ),
            ]
        )
    head = [
        "",
        "mean, with its interval over seeds",
        "over set-ups",
        "above 0 on",
        *([f"mean of the {len(mlps)} MLPs on CIFAR-10"] if is_part else []),
    ]
    table = tabulate(rows, head, tablefmt="github")
    return f"Macro recall {when}, mean of {len(recalls)} set-ups:\n\n{table}"


def _seeds(recalls: Mapping[str, Mapping[Any, np.ndarray]]) -> int:
    """The seeds that all runs have: one set-up may have more."""
    return min(len(one) for found in recalls.values() for one in found.values())


def _on(
    setup: str,
    found: Recalls,
    one: AlgorithmName,
    rules: Sequence[AlgorithmName],
    asserted: bool,
) -> list[Effect]:
    compared = {name: recall for name, recall in found.items() if name in rules}
    effects = [
        near_the_best(
            f"{setup}: macro recall", compared, one, label_of, asserted=asserted
        )
    ]
    if rules is COMPARED and "sgd" in found:
        more = difference(found[one], found["sgd"])
        effects.append(
            Effect.of(
                f"{setup}: macro recall of {label_of(one)} minus that of SGD: {more}, "
                "above",
                more.is_above(0),
                asserted=asserted,
            )
        )
    return effects
