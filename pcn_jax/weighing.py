"""From the statistics of the classes to their weights: what was asked for, checked."""

from typing import Any, NamedTuple, Self

import chex
import jax
import jax.numpy as jnp

from pcn_jax.checks import check_positive_integer, check_shapes
from pcn_jax.counts import at_least_one, mean_loss
from pcn_jax.geometry import class_alignment, class_cosines
from pcn_jax.halves import of_halves
from pcn_jax.weights import (
    RULES,
    ClassStatistics,
    ClassWeights,
    StatefulClassWeights,
    inverse_norm,
)


class PCNValue(NamedTuple):
    """What a batch says about each class besides the direction.

    Attributes:
      losses: Mean loss of each class, float `[C]`; 0 for a class that is absent.
      statistics: Norms and counts of each class, and what else was asked for.
      weights: What each class gradient was multiplied by, `[C]`.
      aux: The auxiliary output of the loss function, or `None`.
      state: Of weights that have one, for the next step, or `None`.

    Example:
      >>> statistics = ClassStatistics(jnp.array([1.0, 0.5]), jnp.array([3, 1]))
      >>> value = PCNValue(jnp.array([2.0, 6.0]), statistics, jnp.array([1.0, 2.0]))
      >>> float(value.loss), value.counts.tolist()
      (3.0, [3, 1])
    """

    losses: jax.Array
    statistics: ClassStatistics
    weights: jax.Array
    aux: Any = None
    state: Any = None

    @property
    def counts(self) -> jax.Array:
        """Examples of each class, int32 `[C]`."""
        return self.statistics.counts

    @property
    def norms(self) -> jax.Array:
        """Norms of the class gradients, `[C]`."""
        return self.statistics.norms

    @property
    def shares(self) -> jax.Array:
        """The part of each class in the direction: `w_l B_l / Σ_k w_k B_k`, `[C]`.

        For data in which the classes have these shares the direction is an ordinary
        gradient, up to its length. So it is by them that logits are adjusted, if they
        are (docs/logit_adjustment.md).
        """
        parts = self.weights * self.counts.astype(self.weights.dtype)
        total = parts.sum()
        return parts / jnp.where(total == 0, 1, total)

    @property
    def loss(self) -> jax.Array:
        """Mean loss of the batch, a scalar."""
        return mean_loss(self.losses, self.counts)


class Weighing(NamedTuple):
    """What was chosen, and how the statistics of the groups become weights.

    The groups are the classes; or, where the weights ask for it, their halves, which
    tell the norm without the noise.

    Attributes:
      num_classes: `C`.
      weights: From statistics to weights.
      with_gramian: Whether inner products of all groups are needed.
    """

    num_classes: int
    weights: ClassWeights | StatefulClassWeights
    with_gramian: bool

    @classmethod
    def of(cls, num_classes: int, weights: Any, with_gramian: bool) -> Self:
        """Checks the options of `pcn_value_and_grad` and fills in the default weights.

        Args:
          num_classes: `C`.
          weights: As `pcn_value_and_grad` takes them.
          with_gramian: As above.
        """
        check_positive_integer("num_classes", num_classes)
        if weights is None:
            weights = inverse_norm()
        elif not isinstance(weights, StatefulClassWeights):
            check_weights(weights)
        return cls(num_classes, weights, with_gramian)

    @property
    def by_halves(self) -> bool:
        """Whether the groups are the halves of the classes."""
        weights = self.weights
        return isinstance(weights, StatefulClassWeights) and weights.by_halves

    @property
    def num_groups(self) -> int:
        """`G`, which is `C` or `2C`."""
        return 2 * self.num_classes if self.by_halves else self.num_classes

    def check_reference(
        self, reference: chex.ArrayTree | None, params: chex.ArrayTree
    ) -> None:
        """Refuses what has not the shape of class gradients, or has no use."""
        if reference is None:
            return
        if self.by_halves:
            raise ValueError(
                "reference is not for weights that look at halves: remove it. If "
                "loss_fn takes it, pass it by position."
            )
        expected = jax.tree.map(lambda x: (self.num_classes, *jnp.shape(x)), params)
        what = (
            "class gradients, with leaves [C, *param.shape] (if loss_fn takes it, pass "
            "it by position)"
        )
        check_shapes("reference", reference, expected, what)

    def check_state(self, state: Any) -> None:
        """Refuses a state that is not built as the first one, or has no use."""
        weights = self.weights
        if not isinstance(weights, StatefulClassWeights):
            if state is not None:
                raise ValueError(
                    "state is for weights that have one; these do not. If loss_fn "
                    "takes it, pass it by position."
                )
            return
        if state is None:
            raise ValueError(
                "These weights have a state: pass state=weights.init(num_classes) to "
                "the first step, and value.state of each step to the next."
            )
        first = jax.eval_shape(lambda: weights.init(self.num_classes))
        got, expected = (
            (jax.tree.structure(tree), [jnp.shape(x) for x in jax.tree.leaves(tree)])
            for tree in (state, first)
        )
        if got != expected:
            raise ValueError(
                "state must be as weights.init(num_classes) makes it, "
                f"{expected[0]} with leaves {expected[1]}, got {got[0]} with {got[1]}."
            )

    def weigh(
        self,
        losses: jax.Array,
        statistics: ClassStatistics,
        halves: jax.Array | None,
        aux: Any,
        state: Any,
    ) -> tuple[PCNValue, jax.Array]:
        """Weighs the groups.

        Args:
          losses: Mean loss of each group, `[G]`.
          statistics: Of the groups, `[G]`.
          halves: Inner products of the two halves of each class, `[C]`, or `None` if
            the groups are the classes.
          aux: The auxiliary output.
          state: Of the weights, or `None`.

        Returns:
          What is said of the classes, and the weights of the groups, `[G]`.
        """
        if halves is not None:
            counts = statistics.counts.astype(losses.dtype)
            total = (losses * counts).reshape(-1, 2).sum(axis=1)
            losses = total / at_least_one(counts.reshape(-1, 2).sum(axis=1))
            statistics = of_halves(statistics, halves)
        if isinstance(self.weights, StatefulClassWeights):
            weights, state = self.weights.update(statistics, state)
        else:
            weights = self.weights(statistics)
        weights = checked_weights(weights, statistics.norms)
        value = PCNValue(losses, statistics, weights, aux, state)
        return value, weights if halves is None else jnp.repeat(weights, 2)


def class_statistics(
    class_grads: chex.ArrayTree,
    norms: jax.Array,
    counts: jax.Array,
    *,
    with_gramian: bool,
    reference: chex.ArrayTree | None,
) -> ClassStatistics:
    """What is known of class gradients that have been made.

    Args:
      class_grads: Leaves `[G, *param.shape]`.
      norms: Their norms, `[G]`.
      counts: Examples behind each, `[G]`.
      with_gramian: Whether to take their inner products.
      reference: What alignments are measured to, or `None`.
    """
    gramian = alignment = None
    if with_gramian:
        gramian = class_cosines(class_grads) * norms[:, None] * norms[None, :]
    if reference is not None:
        alignment = class_alignment(class_grads, reference)
    return ClassStatistics(norms, counts, gramian, alignment)


def check_weights(weights: Any) -> None:
    """Refuses what is no function, has a state, or is one that makes weights."""
    if isinstance(weights, StatefulClassWeights):
        raise ValueError(
            "These weights have a state, which has no place here: use "
            "pcn_jax.pcn_value_and_grad, or scale_by_smoothed_class_norm for those of "
            "inverse_smoothed_norm."
        )
    if not callable(weights):
        raise ValueError(
            "weights must be a function from ClassStatistics to weights [C], such as "
            f"pcn_jax.weights.inverse_norm(), got {type(weights).__name__}. For fixed "
            "ones: lambda statistics: fixed."
        )
    if weights in RULES:
        name = weights.__name__
        raise ValueError(
            f"{name} is a function that makes weights: call it, weights={name}(...)."
        )


def checked_weights(weights: Any, norms: jax.Array) -> jax.Array:
    """Refuses another shape; nothing is done to a gradient that is exactly zero."""
    weights = jnp.asarray(weights)
    if weights.shape != norms.shape:
        raise ValueError(
            f"weights must return one weight a class, shape {norms.shape}, got "
            f"{weights.shape}."
        )
    return jnp.where(norms == 0, 0, weights)
