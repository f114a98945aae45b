"""One direction by two ways: explicit class gradients in a chain, and fused."""

from typing import Any

import chex
import jax
import numpy as np
import optax
from fused_losses import (
    CASES,
    LABELS,
    NUM_CLASSES,
    Case,
    in_float64,
)
from loop_losses import OPENED

import pcn_jax
from pcn_jax import pcn_value_and_grad, weights

EVERY = CASES | OPENED
LINKS = {
    "norm": ([pcn_jax.scale_by_class_norm()], weights.inverse_norm()),
    "clipping": (
        [pcn_jax.clip_by_class_norm(0.5)],
        weights.inverse_clipped_norm(0.5),
    ),
    "clipping of each class": (
        [pcn_jax.clip_by_class_norm(np.geomspace(0.05, 5, NUM_CLASSES))],
        weights.inverse_clipped_norm(np.geomspace(0.05, 5, NUM_CLASSES)),
    ),
    "frequency": (
        [pcn_jax.scale_by_class_frequency()],
        weights.inverse_frequency(),
    ),
    "alignment": (
        [
            pcn_jax.scale_by_class_norm(),
            pcn_jax.scale_by_class_alignment(min_alignment=0.2),
        ],
        weights.inverse_aligned_norm(min_alignment=0.2),
    ),
    "any weights": (
        [pcn_jax.scale_by_class_weights(weights.inverse_aligned_norm())],
        weights.inverse_aligned_norm(),
    ),
}


def explicit(
    case: Case, links: Any, labels: Any = LABELS, num_classes: int = NUM_CLASSES
) -> tuple[pcn_jax.ClassValue, Any, Any]:
    """The class losses, class gradients and direction by way of a chain."""
    class_gradients = pcn_jax.per_class_value_and_grad(case.loss, num_classes)
    chain = optax.chain(*links, pcn_jax.sum_over_classes())

    @jax.jit
    def by_chain(params: Any, *batch: Any) -> tuple[pcn_jax.ClassValue, Any, Any]:
        value, grads = class_gradients(params, *batch)
        direction, _ = chain.update(
            grads,
            chain.init(params),
            params,
            class_counts=value.counts,
            reference=reference_of(grads),
        )
        return value, grads, direction

    made: tuple[pcn_jax.ClassValue, Any, Any] = by_chain(
        case.params, case.inputs, labels, *case.args
    )
    return made


def reference_of(grads: Any) -> Any:
    """Something correlated with class gradients."""
    return jax.tree.map(lambda g: g + 0.3 * g[::-1], grads)


def fused(case: Case, labels: Any = LABELS, **options: Any) -> Any:
    arguments = {"num_classes": NUM_CLASSES, "path": "fused", **options}
    given = {
        k: arguments.pop(k) for k in ("groups", "reference", "state") if k in arguments
    }
    function = jax.jit(pcn_value_and_grad(case.loss, **arguments))
    return function(case.params, case.inputs, labels, *case.args, **given)


def assert_close(actual: Any, expected: Any, atol: float = 1e-13) -> None:
    chex.assert_trees_all_equal_structs(actual, expected)
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_allclose(x, y, rtol=0, atol=atol)


def assert_as_by_a_chain(name: str) -> None:
    """The fused direction of a case, in float64."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        case = Case(EVERY[name].loss, *in_float64(tuple(EVERY[name][1:])))
        _, _, direction = explicit(case, LINKS["norm"][0])
        assert_close(fused(case)[1], direction)
