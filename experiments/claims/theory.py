"""The analysis of PCNGD, checked step by step where every constant in it is known.

Takes seconds. Expected: no bound is broken by more than rounding, each is met with
equality where it should be, the delay of GD's minority grows as `1/ρ`, and with three
classes PCNGD raises the loss of one.
"""
# ruff: noqa: RUF001 (the formulae in the statements are in Greek)

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tabulate import tabulate

from experiments.claims.finding import Effect, Finding, Size
from experiments.claims.quadratics import (
    Path,
    descend,
    normalised,
    plain,
    random_problems,
    shares,
    shortest,
    slopes,
    sparing,
)
from experiments.claims.theory_examples import (
    RATE,
    RATIOS,
    THREE,
    TWO,
    Delays,
    draw,
    measure_delays,
    three_losses,
)

TITLE = "The theory holds exactly on quadratics"
ROUNDING = 1e-10  # of a class loss: far below a step's change, far above float64's


class Check(NamedTuple):
    """One item of the analysis: what was seen, and its line of the table."""

    effects: Sequence[Effect]
    what: str
    cases: int
    violation: float
    tightness: str


def find(size: Size) -> Finding:
    """Checks the five items.

    Args:
      size: `"full"` draws five times as many random problems.

    Returns:
      The finding.
    """
    rng = np.random.default_rng(0)
    number = 20 if size == "fast" else 100
    pairs, triples = random_problems(rng, 2, number), random_problems(rng, 3, number)
    uneven = [pair.scaled(shares(10 ** rng.uniform(-2, 0))) for pair in pairs]
    parts = rng.choice([0.1, 0.5, 1], len(pairs))
    common = [pair.with_common_constants() for pair in pairs]
    gd = [descend(p, plain, lambda _: 0.5, 60) for p in uneven]
    pcngd = [
        descend(p, normalised, shortest(p, part), 60)
        for p, part in zip(uneven, parts, strict=True)
    ]
    delays = measure_delays()
    checks = [
        one_step([*gd, *pcngd]),
        minority_drop(gd, delays),
        two_classes(pcngd),
        three_classes([descend(p, normalised, sparing(p), 60) for p in triples]),
        linear_rate([descend(p, normalised, shortest(p, 0.5), 60) for p in common]),
    ]
    return Finding(
        title=TITLE,
        effects=[effect for check in checks for effect in check.effects],
        table=tabulate(
            [(item, *check[1:]) for item, check in enumerate(checks, start=1)],
            ["item", "what was checked", "cases", "largest violation", "tightness"],
            tablefmt="github",
            floatfmt=".0e",
        ),
        draw=functools.partial(draw, delays),
        notes=(
            "Class l has the loss ½ (x − c_l)ᵀ A_l (x − c_l), its gradient g_l, and "
            "the largest and least eigenvalues L and μ of A_l; η is the learning rate, "
            "d the direction followed, α the angle of two class gradients, ρ the "
            "minority's examples over the majority's. "
            "The bounds are derived from the definitions; the analysis is that of "
            "Francazi et al. (2023). A case is one class at one step. A violation is "
            "in units of the class loss before the step; in item 2, where two signs "
            "are compared, it is the cosine of minority gradient and direction where "
            "they differ. L is the class's own, in item 5 that of all classes. In the "
            "examples each class has one training example of a least-squares problem, "
            "and all can be fitted at once."
        ),
    )


def one_step(paths: Sequence[Path]) -> Check:
    """Item 1: a step adds at most `−η ⟨g_l, d⟩ + (L/2) η² ‖d‖²` to a class loss."""
    beyond = []
    for path in paths:
        rates = path.rates[:, None]
        products = (path.grads @ path.directions[:, :, None])[..., 0]
        squares = (path.directions**2).sum(axis=1, keepdims=True)
        bound = -rates * products + path.problem.smooth / 2 * rates**2 * squares
        beyond.append(path.beyond(bound))
    cases, worst, gap = _summary(paths, beyond)
    return Check(
        [
            _within(
                f"In {cases:,} cases a step of GD or PCNGD changes the class loss by "
                "at most −η⟨g_l, d⟩ + (L/2)η²‖d‖²",
                worst,
            ),
            _within("Where A_l = L I that is an equality", gap),
        ],
        "GD and PCNGD: smoothness bound on a step",
        cases,
        worst,
        f"equality to {gap:.0e}",
    )


def minority_drop(paths: Sequence[Path], delays: Delays) -> Check:
    """Item 2: GD's minority gets worse exactly when `cos α < −‖g_1‖ / ‖g_0‖`."""
    slope = np.concatenate([slopes(path, RATE)[:, 1] for path in paths])
    lengths = np.concatenate(
        [path.norms[:, 1] * np.linalg.norm(path.directions, axis=1) for path in paths]
    )
    distance = np.concatenate(
        [path.margins[:, 1] - 1 + path.norms[:, 1] / path.norms[:, 0] for path in paths]
    )
    agree = (slope > 0) == (distance < 0)
    violation = float(np.where(agree, 0, np.abs(slope) / lengths).max())
    worse, peak = float(np.mean(slope > 0)), delays.peak
    power, power_pcngd = delays.powers
    mild, strong = f"{1 / RATIOS[2]:.0f} : 1", f"{1 / RATIOS[-1]:.0f} : 1"
    cosine = TWO.centres[0] @ TWO.centres[1]
    derived = np.log(1 - cosine) / (RATE * shares(RATIOS[-1])[1] * (1 - cosine**2))
    return Check(
        [
            Effect(
                "GD with small steps makes the minority worse exactly when cos α < "
                f"−‖g_1‖/‖g_0‖: the two agree at {np.mean(agree):.2%} of "
                f"{slope.size:,} steps, {worse:.0%} of which make it worse",
                violation <= ROUNDING and 0 < worse < 1,
            ),
            Effect(
                f"From {mild} to {strong} the steps until GD's minority is below its "
                f"start grow from {delays.gd[2]:,} to {delays.gd[-1]:,} (derived: "
                f"{derived:,.0f}), as ρ to the power {power:.2f}; PCNGD needs "
                f"at most {delays.pcngd.max()}, a power of {power_pcngd:.2f}",
                abs(power + 1) < 0.1 and delays.pcngd.max() == 1,
            ),
            Effect(
                "GD's drop deepens with the imbalance: at worst the minority's loss is "
                f"{peak[0]:.2f} times its start at 1 : 1, {peak[2]:.2f} at {mild}, "
                f"{peak[-1]:.2f} at {strong}",
                bool(np.all(np.diff(peak) > 0)),
            ),
        ],
        "GD: minority worse iff cos α < −‖g_1‖/‖g_0‖",
        slope.size,
        violation,
        f"tested to {np.abs(distance).min():.0e} from the threshold",
    )


def two_classes(paths: Sequence[Path]) -> Check:
    """Item 3: PCNGD adds at most `−η (1 + cos α) (‖g_l‖ − L η)`, never above 0."""
    beyond = []
    for path in paths:
        rates = path.rates[:, None]
        bound = -rates * path.margins * (path.norms - path.problem.smooth * rates)
        beyond.append(path.beyond(bound))
    cases, worst, gap = _summary(paths, beyond)
    rise = max(float(path.beyond(0).max()) for path in paths)
    return Check(
        [
            _within(
                "PCNGD, two classes, η ≤ min ‖g_l‖/L: no class loss rises in any of "
                f"{cases:,} cases",
                rise,
            ),
            _within("It changes by at most −η(1 + cos α)(‖g_l‖ − Lη)", worst),
            _within("Where A_l = L I that is an equality for both classes", gap),
        ],
        "PCNGD, two classes: no class loss rises",
        cases,
        max(rise, worst),
        f"equality to {gap:.0e}",
    )


def three_classes(paths: Sequence[Path]) -> Check:
    """Item 4: with short steps a class loss rises where its margin is below zero."""
    rates = 10.0 ** -np.arange(1, 9)
    first = descend(THREE, normalised, lambda _: 1, 1)
    moved = first.points - rates[:, None] * first.directions
    rises = (THREE.losses(moved) - first.losses[0])[:, 0] / rates
    margin = first.margins[0, 0]
    peak = three_losses()[:, 0].max()
    margins = np.concatenate([path.margins.ravel() for path in paths])
    growth = np.concatenate([path.beyond(0).ravel() for path in paths])
    decided = np.abs(margins) > ROUNDING  # else rounding decides the sign
    cases, below = int(decided.sum()), float(np.mean(margins[decided] < 0))
    worst = float((growth * np.sign(margins))[decided].max())
    gap = max(
        float(np.abs(path.beyond(0)).min(axis=1).max())
        for path in paths
        if path.problem.isotropic
    )
    return Check(
        [
            Effect(
                f"PCNGD, three classes, one with 1 + Σ cos α = {margin:.2f}: its loss "
                f"rises by {rises.min():.2f} η or more for every η from {rates[0]:.0e} "
                f"to {rates[-1]:.0e}, and later is {peak:.2f} times its start",
                bool(margin < 0 and rises.min() > 0),
            ),
            Effect(
                "With short steps a class loss rises where 1 + Σ cos α < 0 "
                f"({below:.0%} of {cases:,} cases) and nowhere else (within "
                f"{worst:.0e} of the loss)",
                worst <= ROUNDING and 0 < below < 1,
            ),
        ],
        "PCNGD, three classes: rises iff 1 + Σ cos α < 0",
        cases,
        worst,
        f"longest step leaves a class as it is to {gap:.0e}",
    )


def linear_rate(paths: Sequence[Path]) -> Check:
    """Item 5: with `η = min ‖g_k‖ / (2 L)` class losses fall at a linear rate."""
    falls, shrinks, deltas = [], [], []
    for path in paths:
        smooth, dominance = path.problem.smooth[0], path.problem.dominance[0]
        delta, least = path.margins.min(), path.norms.min(axis=1, keepdims=True)
        last = path.norms == least
        factor = delta * dominance / (2 * smooth)
        falls.append(path.beyond(-delta * least**2 / (4 * smooth)))
        shrinks.append(path.beyond(-factor * path.losses[:-1])[last])
        deltas.append(delta)
    cases, fall, _ = _summary(paths, falls)
    shrink = max(float(values.max()) for values in shrinks)
    slack = max(
        float(np.abs(values.max()))
        for path, values in zip(paths, shrinks, strict=True)
        if path.problem.isotropic
    )
    return Check(
        [
            _within(
                "PCNGD, two classes, η = min ‖g_k‖/(2L), 1 + cos α ≥ δ: each class "
                f"loss falls by δ min ‖g_k‖²/(4L) or more in {cases:,} cases, δ from "
                f"{min(deltas):.0e} to {max(deltas):.1f}",
                fall,
            ),
            _within(
                "The excess loss of the class with the shortest gradient shrinks by "
                "the factor 1 − δμ/(2L) or more",
                shrink,
            ),
            _within("On every path with A_l = L I a step does no better", slack),
        ],
        "PCNGD, two classes: linear rate",
        cases,
        max(fall, shrink),
        f"equality met to {slack:.0e}",
    )


def _within(statement: str, value: float) -> Effect:
    within = f"(within {max(value, 0):.0e} of the loss)"
    return Effect(f"{statement} {within}", value <= ROUNDING)


def _summary(
    paths: Sequence[Path], beyond: Sequence[np.ndarray]
) -> tuple[int, float, float]:
    """Cases, how far any lies above its bound, and any isotropic one away from it."""
    cases = sum(values.size for values in beyond)
    worst = max(float(values.max()) for values in beyond)
    tight = [v for path, v in zip(paths, beyond, strict=True) if path.problem.isotropic]
    return cases, worst, max(float(np.abs(values).max()) for values in tight)
