"""Whether the rules that we advise are never much worse than the best of others."""

from collections.abc import Mapping, Sequence

import numpy as np

from experiments.claims.finding import Effect
from experiments.intervals import difference
from pcn_jax.training import ALGORITHMS, AlgorithmName

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
_ONE: AlgorithmName = "pcnsgd+o+clip"
_ADVISED: dict[AlgorithmName, tuple[AlgorithmName, ...]] = {
    _ONE: COMPARED,
    "pcnsgd+split": ("sgd", "sgd+rw", "sgd+la", "pcnsgd", "pcnsgd+split"),
}
"""What we advise, and with what each is compared: one oversamples, one does not."""
_TO_BEAT: tuple[AlgorithmName, ...] = ("sgd+rw", "sgd+la")
_MUCH = 0.05
"""Macro recall by which the one rule may be below the best of all."""

Recalls = Mapping[AlgorithmName, np.ndarray]
"""The macro recall of each rule, `[S]`."""


def compared(recalls: Mapping[str, Recalls]) -> list[Effect]:
    """Each rule with the best of the others and with SGD, and with baselines in all.

    Args:
      recalls: Of each set-up, with the same number of seeds in all.

    Returns:
      What has to be so on each set-up, and on average if there are several.
    """
    effects = [one for name, found in recalls.items() for one in _on(name, found)]
    if len(recalls) > 1:
        effects += [_on_average(list(recalls.values()), name) for name in _TO_BEAT]
    return effects


def _on(setup: str, found: Recalls) -> list[Effect]:
    effects = []
    for one, rules in _ADVISED.items():
        others = [name for name in rules if name != one and name in found]
        best = max(others, key=lambda name: float(found[name].mean()))
        less = difference(found[one], found[best])
        effects.append(
            Effect.of(
                f"{setup}: macro recall of {ALGORITHMS[one].label} minus that of the "
                f"best of {len(others)} others, {ALGORITHMS[best].label}: {less}, at "
                f"most {_MUCH} below",
                less.is_above(-_MUCH),
            )
        )
    more = difference(found[_ONE], found["sgd"])
    effects.append(
        Effect.of(
            f"{setup}: macro recall of {ALGORITHMS[_ONE].label} minus that of SGD: "
            f"{more}, above",
            more.is_above(0),
        )
    )
    return effects


def _on_average(setups: Sequence[Recalls], baseline: AlgorithmName) -> Effect:
    """Whether what we advise is better than a baseline to beat."""
    one, other = (
        np.mean([found[name] for found in setups], axis=0) for name in (_ONE, baseline)
    )
    more = difference(one, other)
    return Effect.of(
        f"macro recall of {ALGORITHMS[_ONE].label} minus that of "
        f"{ALGORITHMS[baseline].label}, mean of {len(setups)} set-ups: {more}, above",
        more.is_above(0),
    )
