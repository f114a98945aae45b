"""Class weights: what each method multiplies the class gradients by, before the sum.

Every method here is `Σ_l w_l g_l`, and differs in its weights alone. As links of an
optax chain they scale stacked class gradients; as functions of a few statistics of each
class they serve `pcn_jax.pcn_value_and_grad`, which never makes the stack. Any function
of the statistics will do. An absent class has norm and count 0; whatever its weight, 0
is used.

Example:
  >>> def to_the_smallest_norm(statistics):
  ...     smallest = statistics.norms.min(where=statistics.counts > 0, initial=jnp.inf)
  ...     return smallest / statistics.norms
  >>> statistics = ClassStatistics(jnp.array([2.0, 1.0, 0.0]), jnp.array([3, 1, 0]))
  >>> to_the_smallest_norm(statistics).tolist()
  [0.5, 1.0, inf]
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from pcn_jax.checks import check_choice, check_number, check_numbers
from pcn_jax.counts import inverse_shares

Average = Literal["norm", "alignment"]
"""What `inverse_smoothed_norm` averages over steps."""


class ClassStatistics(NamedTuple):
    """What the weight of a class can depend on.

    Attributes:
      norms: Norm of each class gradient `g_l`, the share of the class in the gradient
        of the mean loss; `[C]`, zero for a class that is absent.
      counts: Examples of each class in the batch, int32 `[C]`.
      gramian: Inner products `⟨g_k, g_l⟩`, `[C, C]`, or `None` if not asked for. In
        float32 they, and the cosines, are of use for norms from 1e-18 to 1e19.
      alignment: `p_l` of the paper, the cosine of each class gradient and its
        reference, `[C]`, or `None` if there is no reference.
      squared_mean_norms: Estimates of the squared norm of the gradient of each class's
        mean loss that the noise of the batch does not lengthen (see
        `inverse_smoothed_norm`), `[C]`, zero below two examples; or `None`.

    Example:
      >>> statistics = ClassStatistics(jnp.array([0.75, 0.25]), jnp.array([3, 1]))
      >>> statistics.mean_norms.tolist()
      [1.0, 1.0]
    """

    norms: jax.Array
    counts: jax.Array
    gramian: jax.Array | None = None
    alignment: jax.Array | None = None
    squared_mean_norms: jax.Array | None = None

    @property
    def mean_norms(self) -> jax.Array:
        """Norms of the gradients of the mean loss *of each class*, `[C]`."""
        return self.norms * self.inverse_shares

    @property
    def inverse_shares(self) -> jax.Array:
        """`B / B_l`, `[C]`; for an absent class `B`, where it multiplies nothing."""
        return inverse_shares(self.counts, self.norms.dtype)

    @property
    def cosines(self) -> jax.Array:
        """Cosines of the angles between class gradients `[C, C]`; zero rows give zero.

        Raises:
          ValueError: If there is no Gramian.
        """
        if self.gramian is None:
            raise ValueError("The cosines need the Gramian: pass with_gramian=True.")
        inverse = _inverse(self.norms)
        return jnp.clip(self.gramian * inverse[:, None] * inverse[None, :], -1, 1)


ClassWeights = Callable[[ClassStatistics], jax.Array]
"""From the statistics to one weight a class, `[C]`."""


class StatefulClassWeights(NamedTuple):
    """Class weights that remember something from step to step, as optax does.

    Attributes:
      init: From the number of classes to the first state.
      update: From the statistics and a state to the weights `[C]` and the next state.
      by_halves: Whether they need `squared_mean_norms`, which come from the halves of
        each class: twice as many rows are measured.

    Example:
      >>> def update(statistics, mean):  # divides by an average of the norms
      ...     mean = 0.75 * mean + 0.25 * statistics.norms
      ...     return 1 / mean, mean
      >>> weights = StatefulClassWeights(init=jnp.ones, update=update)
      >>> statistics = ClassStatistics(jnp.array([1.0, 3.0]), jnp.array([5, 5]))
      >>> weights.update(statistics, weights.init(2))[1].tolist()
      [1.0, 1.5]
    """

    init: Callable[[int], Any]
    update: Callable[[ClassStatistics, Any], tuple[jax.Array, Any]]
    by_halves: bool = False


def inverse_norm() -> ClassWeights:
    """PCN: `1 / ‖g_l‖`, and zero where the norm is zero.

    What `pcn_jax.scale_by_class_norm` does in a chain.

    Returns:
      A function of `ClassStatistics`.

    Example:
      >>> inverse_norm()(ClassStatistics(jnp.array([4.0, 0.0]), jnp.array([3, 0])))
      Array([0.25, 0.  ], dtype=float32)

    References:
      Francazi et al., 2023, PCNGD and PCNSGD.
    """
    return lambda statistics: _inverse(statistics.norms)


def inverse_clipped_norm(max_norm: jax.typing.ArrayLike) -> ClassWeights:
    """Per-class clipping: `(B / B_l) / max(‖G_l‖, max_norm)`, `G_l` the class mean.

    What `pcn_jax.clip_by_class_norm` does in a chain, which explains it.

    Args:
      max_norm: A class-mean gradient longer than this is cut to length 1; a shorter one
        is only divided by it. 0 or more, or one for each class `[C]`; of 0.1, 1 and 10
        the first did best in our runs (RESULTS.md, C11).

    Returns:
      A function of `ClassStatistics`.

    Raises:
      ValueError: If `max_norm` is negative; when called, if neither a scalar nor `[C]`.

    Example:
      >>> weights = inverse_clipped_norm(1.0)
      >>> weights(ClassStatistics(jnp.array([3.0, 0.125]), jnp.array([3, 1]))).round(3)
      Array([0.333, 4.   ], dtype=float32)
    """
    check_numbers(
        "max_norm", max_norm, lambda x: 0 <= x < math.inf, "0 or more and finite"
    )

    def weights(statistics: ClassStatistics) -> jax.Array:
        norms = statistics.mean_norms
        least = jnp.asarray(max_norm, norms.dtype)
        if least.shape not in ((), norms.shape):
            raise ValueError(
                f"max_norm must be a number or one a class, shape {norms.shape}, got "
                f"shape {least.shape}."
            )
        limits = jnp.maximum(norms, least)
        return statistics.inverse_shares * _inverse(limits)

    return weights


def inverse_frequency() -> ClassWeights:
    """Class re-weighting, the baseline: `B / (C B_l)`.

    What `pcn_jax.scale_by_class_frequency` does in a chain.

    Returns:
      A function of `ClassStatistics`.

    Example:
      >>> inverse_frequency()(ClassStatistics(jnp.ones(2), jnp.array([4, 1]))).tolist()
      [0.625, 2.5]
    """
    return lambda statistics: statistics.inverse_shares / len(statistics.counts)


def inverse_aligned_norm(*, min_alignment: float = 0.1) -> ClassWeights:
    """PCNSGD+R: `1 / (p_l ‖g_l‖)`, bounded where `p_l` is small.

    What `pcn_jax.scale_by_class_norm` and `pcn_jax.scale_by_class_alignment` do in a
    chain; the latter explains `min_alignment`.

    Args:
      min_alignment: Smallest `|p_l|` that is inverted, in [1e-6, 1]; below it the
        weight falls linearly to 0.

    Returns:
      A function of `ClassStatistics` with an `alignment`.

    Raises:
      ValueError: If `min_alignment` is not in [1e-6, 1]; when called, if there is no
        reference.

    Example:
      >>> alignment = jnp.array([0.5, 0.0])
      >>> statistics = ClassStatistics(jnp.ones(2), jnp.ones(2), None, alignment)
      >>> inverse_aligned_norm()(statistics).tolist()
      [2.0, 0.0]

    References:
      Francazi et al., 2023, PCNSGD+R.
    """
    inverse = bounded_inverse(min_alignment)

    def weights(statistics: ClassStatistics) -> jax.Array:
        alignment = statistics.alignment
        if alignment is None:
            raise ValueError(
                "inverse_aligned_norm needs a reference: pass reference=<class "
                "gradients of all the training data> to the function that "
                "pcn_value_and_grad returned, or to update() of the chain."
            )
        return inverse(alignment) * _inverse(statistics.norms)

    return weights


def bounded_inverse(min_alignment: float) -> Callable[[jax.Array], jax.Array]:
    """`1 / p`, and `p / min_alignment²` where `|p|` is below `min_alignment`.

    Args:
      min_alignment: Smallest `|p|` that is inverted, in [1e-6, 1], as its square must
        not underflow; below it the weight falls linearly to 0.

    Raises:
      ValueError: If `min_alignment` is not in [1e-6, 1].

    Example:
      >>> bounded_inverse(0.5)(jnp.array([1.0, -0.5, 0.25, 0.0])).tolist()
      [1.0, -2.0, 1.0, 0.0]
    """
    check_number(
        "min_alignment", min_alignment, lambda x: 1e-6 <= x <= 1, "in [1e-6, 1]"
    )
    return lambda p: p / jnp.maximum(jnp.abs(p), min_alignment) ** 2


class SmoothedNormState(NamedTuple):
    """What is remembered of each class.

    Attributes:
      products: Moving average of `⟨G_a, G_b⟩` from zero on, `[C]`.
      squares: The same of `‖G‖²`, the noise of the batch included, `[C]`.
      seen: What the weights of both add up to, below 1 at first, `[C]`.
    """

    products: jax.Array
    squares: jax.Array
    seen: jax.Array

    @property
    def alignment(self) -> jax.Array:
        """An estimate of the paper's `p_l` without a pass over all data, `[C]`.

        Zero where nothing was seen yet, or less than the noise.
        """
        squares = jnp.where(self.squares > 0, self.squares, 1)
        return jnp.sqrt(jnp.clip(self.products / squares, 0, 1))


def inverse_smoothed_norm(
    min_norm: float,
    *,
    decay: float = 0.99,
    min_alignment: float = 0.5,
    average: Average = "norm",
) -> StatefulClassWeights:
    """PCN by the true norm instead of the noisy one, with a floor.

        w_l = (B / B_l) / max(‖G‖_smoothed, min_norm)
        ‖G‖_smoothed = √max(EMA⟨G_a, G_b⟩, min_alignment² EMA‖G‖²)

    Under mini-batches PCN divides by the norm of a noisy class gradient, `‖Ĝ‖² ≈ ‖G‖² +
    σ²/b`: the noisier a class, the shorter its step. The examples of a class in the
    batch, split in two halves, tell how long the true gradient is: their noise is
    independent, so `⟨G_a, G_b⟩` is on average `‖G‖²`, `G` being the gradient of the
    class's mean loss. Smoothed over steps, three numbers a class, it takes the place of
    the noisy norm.

    The ratio of both averages is an estimate of `p²`, how much of a mini-batch gradient
    points along the true one. As in `inverse_aligned_norm`, its inverse is not followed
    below `min_alignment`: from few examples, and above all in the first steps, the
    estimate is near zero by chance. The floor lets the step shrink as a class is
    learned, as in clipping.

    An average over steps lags behind a norm that changes quickly, as where the classes
    pull to and fro along one direction. With `average="alignment"` only the ratio is
    averaged, and the norm is that of the batch:

        ‖G‖_smoothed = max(p, min_alignment) ‖G‖,    p = √(EMA⟨G_a, G_b⟩ / EMA‖G‖²)

    which is PCNSGD+R with `p` from the batches alone, and a floor. In our runs it is
    as near the best on average (RESULTS.md, C11).

    What `pcn_jax.scale_by_smoothed_class_norm` does in a chain.

    | case                                  | the norm of the class is              |
    | ------------------------------------- | ------------------------------------- |
    | two examples or more in some batch    | as above                              |
    | the average of products is negative   | `min_alignment` times the noisy one   |
    | never more than one example so far    | that of its gradient, noise included  |
    | absent, or a single example           | as before: its state does not change  |
    | a gradient that is not finite         | its state does not change, either     |

    Args:
      min_norm: Norm of a class-mean gradient below which it is left in proportion; a
        positive number in the units of the loss over those of the parameters.
      decay: Of the moving averages, which are corrected for their start, in [0, 1).
      min_alignment: How much shorter than the noisy norm the smoothed one may be, in
        [0, 1]; 1 is the noisy norm, smoothed.
      average: What is averaged over steps: the norm, or only its alignment.

    Returns:
      Weights with a state, for `pcn_jax.pcn_value_and_grad`.

    Raises:
      ValueError: If `min_norm` is not positive, `decay` not in [0, 1),
        `min_alignment` not in [0, 1] or there is no such average.

    Example:
      >>> rule = inverse_smoothed_norm(0.5, decay=0.9)
      >>> statistics = ClassStatistics(
      ...     norms=jnp.array([3.0, 0.1]),
      ...     counts=jnp.array([6, 2]),
      ...     squared_mean_norms=jnp.array([4.0, -0.01]),
      ... )
      >>> weights, state = rule.update(statistics, rule.init(2))
      >>> (weights * jnp.array([3.0, 0.5])).round(3).tolist()
      [2.0, 4.0]
      >>> state.alignment.tolist()
      [0.5, 0.0]
    """
    check_number(
        "min_norm", min_norm, lambda x: 0 < x < math.inf, "positive and finite"
    )
    check_number("decay", decay, lambda x: 0 <= x < 1, "in [0, 1)")
    check_number("min_alignment", min_alignment, lambda x: 0 <= x <= 1, "in [0, 1]")
    check_choice("average", average, Average)

    def init(num_classes: int) -> SmoothedNormState:
        # Three arrays: the same one twice could not be donated.
        return SmoothedNormState(*(jnp.zeros(num_classes) for _ in range(3)))

    def update(
        statistics: ClassStatistics, state: SmoothedNormState
    ) -> tuple[jax.Array, SmoothedNormState]:
        if statistics.squared_mean_norms is None:
            raise ValueError(
                "inverse_smoothed_norm needs the halves of each class: it is for "
                "pcn_jax.pcn_value_and_grad, which makes them."
            )
        noisy = statistics.mean_norms
        now = SmoothedNormState(
            statistics.squared_mean_norms, jnp.square(noisy), jnp.ones_like(noisy)
        )
        is_finite = jnp.isfinite(now.products) & jnp.isfinite(now.squares)
        known = (statistics.counts >= 2) & is_finite
        old = SmoothedNormState(*(x.astype(noisy.dtype) for x in state))
        new = SmoothedNormState(
            *(
                jnp.where(known, decay * before + (1 - decay) * x, before)
                for before, x in zip(old, now, strict=True)
            )
        )
        if average == "norm":
            square = jnp.maximum(new.products, new.squares * min_alignment**2)
            seen = jnp.where(new.seen > 0, new.seen, 1)
            smoothed = jnp.sqrt(jnp.maximum(square, 0) / seen)
        else:
            smoothed = jnp.maximum(new.alignment, min_alignment) * noisy
        norms = jnp.where(new.seen > 0, smoothed, noisy)
        floor = jnp.asarray(min_norm, norms.dtype)
        weights = statistics.inverse_shares / jnp.maximum(norms, floor)
        kept = SmoothedNormState(
            *(x.astype(before.dtype) for x, before in zip(new, state, strict=True))
        )
        return jnp.where(statistics.counts > 0, weights, 0), kept

    return StatefulClassWeights(init, update, by_halves=True)


RULES = (
    inverse_norm,
    inverse_clipped_norm,
    inverse_frequency,
    inverse_aligned_norm,
    inverse_smoothed_norm,
)
"""Functions that make weights."""


def _inverse(x: jax.Array) -> jax.Array:
    return jnp.where(x == 0, 0, 1 / jnp.where(x == 0, 1, x))
