"""Logit adjustment by what class weights make of the classes' shares."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pcn_jax
from pcn_jax import weights

NUM_PLACES, NUM_CLASSES = 4, 3
# Examples of each class at each place: the data, exactly.
COUNTS = np.array([[18, 6, 1], [9, 6, 2], [6, 2, 3], [3, 1, 2]])
PLACES, LABELS = (
    np.repeat(index.ravel(), COUNTS.ravel()).astype(np.int32)
    for index in np.indices(COUNTS.shape)
)
WEIGHTS = {
    "none": lambda statistics: jnp.ones_like(statistics.norms),
    "frequency": weights.inverse_frequency(),
    "some": lambda statistics: jnp.array([0.2, 3.0, 1.0], statistics.norms.dtype),
}


def loss_fn(
    logits: jax.Array, places: jax.Array, labels: jax.Array, shares: jax.Array
) -> jax.Array:
    """A net with a logit for each place and class, and no bias among them."""
    losses: jax.Array = optax.softmax_cross_entropy_with_integer_labels(
        logits[places] + jnp.log(shares)[None, :], labels
    )
    return losses


def of_balanced_data() -> np.ndarray:
    """Logits of `P(class | place)` where every class is as frequent, `[places, C]`."""
    logits: np.ndarray = np.log(COUNTS / COUNTS.sum(axis=0))
    return logits


@pytest.mark.parametrize("name", WEIGHTS)
def test_any_weights_lead_to_the_logits_of_balanced_data(name: str) -> None:
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        function = pcn_jax.pcn_value_and_grad(
            loss_fn, NUM_CLASSES, weights=WEIGHTS[name]
        )
        given = jnp.asarray(of_balanced_data()), PLACES, LABELS
        value, direction = function(*given, jnp.full(NUM_CLASSES, 1 / NUM_CLASSES))
        if name != "frequency":  # there the classes have equal shares already
            assert np.abs(direction).max() > 1e-3
        _, direction = function(*given, value.shares)
        np.testing.assert_allclose(direction, 0, atol=1e-14)


def test_shares_are_those_of_the_batch_where_all_weigh_the_same() -> None:
    function = pcn_jax.pcn_value_and_grad(loss_fn, NUM_CLASSES, weights=WEIGHTS["none"])
    logits = jnp.zeros((NUM_PLACES, NUM_CLASSES))
    value, _ = function(logits, PLACES, LABELS, jnp.ones(NUM_CLASSES))
    np.testing.assert_allclose(value.shares, COUNTS.sum(axis=0) / COUNTS.sum(), 1e-6)


def test_an_absent_class_has_no_share() -> None:
    function = pcn_jax.pcn_value_and_grad(loss_fn, NUM_CLASSES)
    logits = jnp.zeros((NUM_PLACES, NUM_CLASSES))
    is_there = LABELS != 1
    value, _ = function(
        logits, PLACES[is_there], LABELS[is_there], jnp.ones(NUM_CLASSES)
    )
    assert value.shares[1] == 0
    assert float(value.shares.sum()) == pytest.approx(1)
    value, _ = function(logits, PLACES, np.full_like(LABELS, -1), jnp.ones(NUM_CLASSES))
    assert value.shares.tolist() == [0.0] * NUM_CLASSES


def test_clipping_ends_at_the_shares_of_the_data() -> None:
    """With largest norms of 1 / (C π_l), in batches of equal counts."""
    frequencies = COUNTS.sum(axis=0) / COUNTS.sum()
    rule = weights.inverse_clipped_norm(1 / (NUM_CLASSES * frequencies))
    for length, expected in ((1e-3, frequencies), (1e3, [1 / NUM_CLASSES] * 3)):
        equal: Any = jnp.full(NUM_CLASSES, length)
        statistics = weights.ClassStatistics(equal, jnp.full(NUM_CLASSES, 5))
        value = pcn_jax.PCNValue(equal, statistics, rule(statistics))
        np.testing.assert_allclose(value.shares, expected, rtol=1e-6)
