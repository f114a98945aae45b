"""Class losses whose constants are known, and descent on them, in NumPy float64."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Direction = Callable[[np.ndarray], np.ndarray]
"""Takes the class gradients `[C, D]`, returns the descent direction `d`, `[D]`."""

Rate = Callable[[np.ndarray], float]
"""Takes the class gradients `[C, D]`, returns the step size `η`."""


class Quadratics(NamedTuple):
    """One quadratic a class, `f_l(x) = ½ (x − c_l)ᵀ A_l (x − c_l)`, whose least is 0.

    Attributes:
      hessians: `A_l`, positive semi-definite, `[C, D, D]`.
      centres: `c_l`, `[C, D]`.
      smooth: Largest eigenvalue of each `A_l`: its `L`, `[C]`.
      dominance: Smallest positive eigenvalue of each: its Polyak-Łojasiewicz
        constant `μ`, `[C]`.
      start: Where descent starts, `[D]`.
    """

    hessians: np.ndarray
    centres: np.ndarray
    smooth: np.ndarray
    dominance: np.ndarray
    start: np.ndarray

    def grads(self, points: np.ndarray) -> np.ndarray:
        """Class gradients `[..., C, D]` at points `[..., D]`."""
        offsets = points[..., None, :] - self.centres
        return np.asarray((self.hessians @ offsets[..., None])[..., 0])

    def losses(self, points: np.ndarray) -> np.ndarray:
        """Class losses `[..., C]` at points `[..., D]`."""
        offsets = points[..., None, :] - self.centres
        return np.asarray(0.5 * (offsets * self.grads(points)).sum(axis=-1))

    def scaled(self, weights: np.ndarray) -> "Quadratics":
        """The same problem with each class loss times its weight, `[C]`."""
        return self._replace(
            hessians=weights[:, None, None] * self.hessians,
            smooth=weights * self.smooth,
            dominance=weights * self.dominance,
        )

    def with_common_constants(self) -> "Quadratics":
        """The same problem with the largest `L` and smallest `μ` for all classes."""
        return self._replace(
            smooth=np.full_like(self.smooth, self.smooth.max()),
            dominance=np.full_like(self.dominance, self.dominance.min()),
        )

    @property
    def isotropic(self) -> bool:
        """Whether every `A_l` is `L_l I`, so that smoothness bounds are equalities."""
        identity = np.eye(self.start.size)
        return np.allclose(self.hessians, self.smooth[:, None, None] * identity)


def random_quadratics(
    rng: np.random.Generator, classes: int, size: int, rank: int, condition: float
) -> Quadratics:
    """Draws a problem.

    Args:
      rng: Where the draws come from.
      classes: `C`.
      size: Number of parameters, `D`.
      rank: Positive eigenvalues of each class. If those of all classes together are
        at most `D`, all class losses can vanish at once.
      condition: `L_l / μ_l`; 1 with full rank makes `A_l = L_l I`.

    Returns:
      A problem whose `L_l` are drawn between 0.3 and 3.
    """
    smooth = 10 ** rng.uniform(-0.5, 0.5, classes)
    spectrum = smooth[:, None] * condition ** -np.linspace(0, 1, rank)
    bases = np.linalg.qr(rng.normal(size=(classes, size, size)))[0][:, :, :rank]
    return Quadratics(
        hessians=(bases * spectrum[:, None, :]) @ bases.swapaxes(1, 2),
        centres=rng.normal(size=(classes, size)),
        smooth=smooth,
        dominance=spectrum.min(axis=1),
        start=rng.normal(size=size),
    )


def random_problems(
    rng: np.random.Generator, classes: int, number: int
) -> list[Quadratics]:
    """So many of each of three kinds: isotropic, anisotropic, and of low rank.

    Those of low rank have a common minimum. The isotropic ones have equal `L_l`.
    """
    problems = []
    for _ in range(number):
        size = int(rng.integers(classes, 9))
        condition = 10 ** rng.uniform(0, 2)
        round_bowls = random_quadratics(rng, classes, size, size, 1)
        problems += [
            round_bowls.scaled(1 / round_bowls.smooth),
            random_quadratics(rng, classes, size, size, condition),
            random_quadratics(rng, classes, size, size // classes, condition),
        ]
    return problems


def one_example_each(cosines: np.ndarray) -> Quadratics:
    """Least squares, one example a class: `f_l(x) = ½ (⟨a_l, x⟩ − 1)²` from `x = 0`.

    All class losses can vanish at once, yet their gradients may oppose each other.

    Args:
      cosines: `⟨a_k, a_l⟩`, at first also the cosines of the class gradients; a
        positive definite matrix `[C, C]` with ones on the diagonal.

    Returns:
      A problem with `D = C` and all `L_l = μ_l = 1`.
    """
    examples = np.linalg.cholesky(cosines)
    classes = len(examples)
    return Quadratics(
        hessians=examples[:, :, None] * examples[:, None, :],
        centres=examples,
        smooth=np.ones(classes),
        dominance=np.ones(classes),
        start=np.zeros(classes),
    )


def shares(ratio: float) -> np.ndarray:
    """Shares of two classes in the data, the minority last, at imbalance `ratio`."""
    return np.array([1, ratio]) / (1 + ratio)


def plain(grads: np.ndarray) -> np.ndarray:
    """GD: the sum of the class gradients, each scaled by its class's share."""
    return np.asarray(grads.sum(axis=0))


def normalised(grads: np.ndarray) -> np.ndarray:
    """PCNGD: the sum of the class gradients' directions."""
    return np.asarray(units(grads).sum(axis=0))


def units(grads: np.ndarray) -> np.ndarray:
    """Class gradients `[..., C, D]` over their lengths; a zero gradient stays zero."""
    norms = _norms(grads)[..., None]
    return np.asarray(grads / np.where(norms == 0, 1, norms))


def shortest(problem: Quadratics, part: float) -> Rate:
    """`part · min_l ‖g_l‖ / L_l`; up to 1 it raises neither of two class losses."""
    return lambda grads: part * float((_norms(grads) / problem.smooth).min())


def sparing(problem: Quadratics) -> Rate:
    """The longest PCNGD step that the smoothness bound allows with many classes.

    It raises no class whose margin `1 + Σ_{k≠l} cos α_lk` is positive: the smallest
    `2 ‖g_l‖ margin_l / (L_l ‖d‖²)` over those classes.
    """

    def rate(grads: np.ndarray) -> float:
        direction = normalised(grads)
        margins = units(grads) @ direction
        steps = 2 * _norms(grads) * margins / problem.smooth / (direction @ direction)
        return float(steps[margins > 0].min())

    return rate


class Path(NamedTuple):
    """`T` steps of descent.

    Attributes:
      problem: The class losses.
      losses: Of each class before every step and after the last, `[T + 1, C]`.
      grads: Before every step, `[T, C, D]`.
      points: Before every step, `[T, D]`.
      directions: `[T, D]`.
      rates: Step sizes `η_t`, `[T]`.
    """

    problem: Quadratics
    losses: np.ndarray
    grads: np.ndarray
    points: np.ndarray
    directions: np.ndarray
    rates: np.ndarray

    @property
    def norms(self) -> np.ndarray:
        """Lengths of the class gradients, `[T, C]`."""
        return _norms(self.grads)

    @property
    def margins(self) -> np.ndarray:
        """`1 + Σ_{k≠l} cos α_lk`, `[T, C]`; with two classes `1 + cos α` twice."""
        rows = units(self.grads)
        return np.asarray((rows @ rows.swapaxes(1, 2)).sum(axis=-1))

    @property
    def relative_losses(self) -> np.ndarray:
        """Class losses over those at the start, `[T + 1, C]`."""
        return np.asarray(self.losses / self.losses[0])

    def beyond(self, bound: np.ndarray | float) -> np.ndarray:
        """How far each change of a class loss lies above a bound, `[T, C]`.

        In units of the class loss before the step.
        """
        return np.asarray((np.diff(self.losses, axis=0) - bound) / self.losses[:-1])


def descend(
    problem: Quadratics,
    direction: Direction,
    rate: Rate,
    steps: int,
    *,
    floor: float = 1e-3,
) -> Path:
    """Takes steps `x − η d`.

    Args:
      problem: The class losses and the start.
      direction: `d` from the class gradients.
      rate: `η` from the class gradients.
      steps: At most so many.
      floor: Stops where a class gradient or the direction is shorter than this part
        of its length at the start: there, rounding hides how losses change.

    Returns:
      The path.
    """
    grads = problem.grads(problem.start)
    least = floor * _norms(grads), floor * _norms(direction(grads))
    points, directions, rates = [problem.start], [], []
    for _ in range(steps):
        grads = problem.grads(points[-1])
        toward = direction(grads)
        if np.any(_norms(grads) < least[0]) or _norms(toward) < least[1]:
            break
        directions.append(toward)
        rates.append(rate(grads))
        points.append(points[-1] - rates[-1] * toward)
    visited = np.array(points)
    return Path(
        problem=problem,
        losses=problem.losses(visited),
        grads=problem.grads(visited[:-1]),
        points=visited[:-1],
        directions=np.array(directions),
        rates=np.array(rates),
    )


def slopes(path: Path, rate: float) -> np.ndarray:
    """Change of each class loss over `η` in the limit of small steps, from losses only.

    Two steps, of `rate` and of half of it, cancel the second order; a quadratic has no
    third.

    Args:
      path: At each of its points, along its direction there.
      rate: A step size at which changes are far above rounding.

    Returns:
      Slopes `[T, C]`; above zero where a class gets worse.
    """
    before = path.losses[:-1]
    half = path.problem.losses(path.points - rate / 2 * path.directions) - before
    whole = path.problem.losses(path.points - rate * path.directions) - before
    return np.asarray((4 * half - whole) / rate)


def _norms(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.norm(vectors, axis=-1))
