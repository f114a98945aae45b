"""Known labels change the price of class gradients, not the gradients."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcn_jax import known_labels_value_and_grad, per_class_value_and_grad

PARAMS = {"w": jnp.array([[0.3, -0.2], [0.1, 0.5], [-0.4, 0.2]]), "b": jnp.zeros(2)}


def loss_fn(params: chex.ArrayTree, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    hidden = jnp.tanh(inputs @ params["w"] + params["b"][None])
    return (hidden.sum(axis=1) - labels.astype(inputs.dtype)) ** 2


def batch(labels: np.ndarray) -> jax.Array:
    return jax.random.normal(jax.random.key(len(labels)), (len(labels), 3))


@pytest.mark.parametrize("microbatch_size", [None, 1, 3, 100])
@pytest.mark.parametrize("loop", ["python", "scan"])
@pytest.mark.parametrize("num_classes", [2, 4, 7])
def test_known_labels_give_the_masked_class_gradients(
    microbatch_size: int | None, loop: Any, num_classes: int
) -> None:
    labels = np.array([0, 1, 0, 0, num_classes - 1, 0, 1, 0, 0, 0, 1])
    inputs = batch(labels)
    known = known_labels_value_and_grad(
        loss_fn, num_classes, labels, microbatch_size=microbatch_size, loop=loop
    )
    masked = jax.jit(per_class_value_and_grad(loss_fn, num_classes))
    expected = masked(PARAMS, inputs, labels)
    chex.assert_trees_all_close(known(PARAMS, inputs), expected, rtol=1e-5, atol=1e-6)
    jitted = jax.jit(known)(PARAMS, inputs)
    chex.assert_trees_all_close(jitted, expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=5, deadline=None)
@given(labels=st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_any_class_counts_will_do(labels: Any) -> None:
    labels = np.array(labels)
    known = known_labels_value_and_grad(loss_fn, 6, labels)
    masked = jax.jit(per_class_value_and_grad(loss_fn, 6))
    expected = masked(PARAMS, batch(labels), labels)
    got = jax.jit(known)(PARAMS, batch(labels))
    chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)


def test_no_example_goes_backwards_for_another_class() -> None:
    labels = np.repeat([0, 1], [9, 3])
    seen = []

    def counting_loss(params: Any, inputs: Any, labels: Any) -> Any:
        seen.append(len(inputs))
        return loss_fn(params, inputs, labels)

    known_labels_value_and_grad(counting_loss, 2, labels)(PARAMS, batch(labels))
    assert sorted(seen) == [3, 9]


def test_extra_arguments_reach_the_loss_and_aux_is_dropped() -> None:
    def scaled(params: Any, inputs: Any, labels: Any, scale: Any) -> Any:
        return scale * loss_fn(params, inputs, labels), inputs

    labels = np.array([0, 1, 1])
    known = known_labels_value_and_grad(scaled, 2, labels, has_aux=True)
    plain = known_labels_value_and_grad(loss_fn, 2, labels)
    value, grads = known(PARAMS, batch(labels), 3.0)
    tripled = jax.tree.map(lambda g: 3 * g, plain(PARAMS, batch(labels))[1])
    chex.assert_trees_all_close(grads, tripled, rtol=1e-5)
    assert value.aux is None


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0.0, 1.0]), r"integers of shape \[B\].*float64\[2\]"),
        (np.array([[0, 1]]), r"integers of shape \[B\].*int64\[1, 2\]"),
        (np.array([], np.int64), "at least one"),
        (np.array([0, 2]), "from 0 to 1, got 0 to 2"),
        (np.array([-1, 1]), "from 0 to 1, got -1 to 1"),
    ],
)
def test_labels_that_cannot_be_are_refused_when_built(
    labels: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        known_labels_value_and_grad(loss_fn, 2, labels)


@pytest.mark.parametrize("size", [0, -5, 1.5])
def test_micro_batches_have_a_positive_size(size: Any) -> None:
    with pytest.raises(ValueError, match="microbatch_size must be a positive integer"):
        known_labels_value_and_grad(loss_fn, 2, np.array([0, 1]), microbatch_size=size)


def test_inputs_must_be_as_many_as_labels() -> None:
    known = known_labels_value_and_grad(loss_fn, 2, np.array([0, 1]))
    with pytest.raises(ValueError, match=r"the 2 examples .*, got \(3, 3\)"):
        known(PARAMS, jnp.ones((3, 3)))
