"""Where examples interact, nothing else is computed in silence."""

import warnings
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from balanced_by_chain import LINKS, assert_close, explicit, fused
from fused_losses import (
    CASES,
    INTERACTING,
    LABELS,
    MIXTURES,
    MLP,
    NUM_CLASSES,
    STATISTICS,
    Case,
    cross_entropy,
    dense,
    in_float64,
    mixed_inputs,
    mlp,
    normal,
)

import pcn_jax
from pcn_jax import pcn_value_and_grad


@pytest.mark.parametrize("name", INTERACTING)
def test_are_refused_where_the_fused_path_is_asked_for(name: str) -> None:
    case = CASES["mlp"]
    with pytest.raises(ValueError, match="path='masked'"):
        pcn_value_and_grad(INTERACTING[name], NUM_CLASSES, path="fused")(
            case.params, case.inputs, LABELS
        )


@pytest.mark.parametrize("name", INTERACTING)
def test_take_the_masked_path_and_say_so(name: str) -> None:
    loss = INTERACTING[name]
    case = CASES["mlp"]._replace(loss=loss)
    function = pcn_value_and_grad(loss, NUM_CLASSES)
    with pytest.warns(UserWarning, match="all class gradients") as warned:
        _, direction = function(case.params, case.inputs, LABELS)
    assert warned[0].filename == __file__
    assert "fused_losses.py:" in str(warned[0].message)  # and where they do
    _, _, expected = explicit(case, LINKS["norm"][0])
    assert_close(direction, expected, atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        function = pcn_value_and_grad(loss, NUM_CLASSES, path="masked")
        _, again = function(case.params, case.inputs, LABELS)
    assert_close(again, direction, atol=0)


@pytest.mark.parametrize("name", STATISTICS | MIXTURES)
def test_inputs_may_interact_before_all_parameters(name: str) -> None:
    if name == "tiled" and not hasattr(jax.lax, "tile_p"):
        pytest.skip("jnp.tile is a reshape here, which ends the proof")
    case, loss = CASES["mlp"], mixed_inputs((STATISTICS | MIXTURES)[name])
    plan = pcn_jax.pcn_plan(loss, NUM_CLASSES)
    assert plan(case.params, case.inputs, LABELS).path == "fused"


def test_a_net_behind_batches_that_are_joined_is_refused() -> None:
    """It would be one parameter that is as large as they are."""

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        both = jnp.tanh(dense(jnp.concatenate([x, -x]), params["one"]))
        logits = dense(both, params["two"])
        one, other = jnp.split(logits, 2)
        return cross_entropy(one, y) + cross_entropy(other, y)

    case = CASES["mlp"]
    with pytest.raises(ValueError, match="'concatenate' runs along the batch axis"):
        fused(case._replace(loss=loss))


def test_a_mean_of_inputs_may_be_as_long_as_the_batch() -> None:
    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return mlp(params, x - jnp.tanh(x.mean(axis=0) @ x)[None], y)

    inputs = normal(0, 6, 6)
    case = Case(loss, MLP, inputs)
    labels = LABELS[:6]
    _, direction = fused(case, labels)
    expected = explicit(case, LINKS["norm"][0], labels)[2]
    assert_close(direction, expected, atol=1e-5)


def test_inputs_that_interact_in_every_way_one_after_the_other() -> None:
    def mixture(x: jax.Array) -> jax.Array:
        for layer in (STATISTICS | MIXTURES).values():
            x = jnp.tanh(layer(x))
        return x

    labels = np.array([0, 2, 0, -1, 1, 0, 2], np.int32)
    with jax.enable_x64(True):
        given = in_float64(tuple(CASES["mlp"][1:]))
        case = Case(mixed_inputs(mixture), *given)
        assert jnp.std(mixture(case.inputs), axis=0).min() > 1e-3
        _, direction = fused(case, labels)
        assert_close(direction, explicit(case, LINKS["norm"][0], labels)[2])


def test_losses_may_be_weighted_by_the_counts_of_the_batch() -> None:
    def loss(params: Any, x: Any, y: jax.Array) -> jax.Array:
        counts = jnp.bincount(y, length=NUM_CLASSES).astype(x.dtype)
        return mlp(params, x, y) / counts[y]

    case = CASES["mlp"]._replace(loss=loss)
    expected = explicit(case, LINKS["clipping"][0])[2]
    direction = fused(case, weights=LINKS["clipping"][1])[1]
    assert_close(direction, expected, atol=1e-6)


def test_a_batch_that_is_one_index() -> None:
    numbers = jax.lax.GatherDimensionNumbers((), (0, 1), (0, 1))

    def loss(table: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        found: jax.Array = jax.lax.gather(table, x, numbers, (1, 1))
        return found * y.astype(table.dtype)

    both = jnp.array([0, 1])
    with pytest.raises(ValueError, match="several of them make one index"):
        pcn_value_and_grad(loss, 2, path="fused")(jnp.eye(2), both, both)


def test_padding_that_is_learned() -> None:
    """JAX takes its derivative beside that of what is padded, and not alone."""

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        del y
        beside = (0, 0), (1, 1)
        padded = jnp.pad(x * params["a"], beside, constant_values=params["b"])
        return jnp.square(padded).sum(axis=1)

    case = Case(loss, {"a": jnp.ones(()), "b": jnp.ones(())}, CASES["mlp"].inputs)
    with pytest.warns(UserWarning, match="a parameter pads what depends on"):
        direction = fused(case, path=None)[1]
    assert_close(direction, explicit(case, LINKS["norm"][0])[2], atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_independent_examples_are_recognised(name: str) -> None:
    case = CASES[name]
    chosen = pcn_jax.pcn_plan(case.loss, NUM_CLASSES)(
        case.params, case.inputs, LABELS, *case.args
    )
    assert chosen.path == "fused", chosen.reason


STOPPED: dict[str, Any] = {
    "weights": lambda losses: losses * jax.lax.stop_gradient(losses / losses.sum()),
    "the hardest": lambda losses: (
        losses * jax.lax.stop_gradient((losses >= losses.mean()).astype(losses.dtype))
    ),
}


@pytest.mark.parametrize("name", STOPPED)
def test_examples_may_meet_where_no_derivative_goes(name: str) -> None:
    case = CASES["mlp"]

    def loss(params: Any, inputs: Any, labels: jax.Array) -> Any:
        return STOPPED[name](case.loss(params, inputs, labels))

    given = case.params, case.inputs, LABELS
    chex.assert_trees_all_close(
        *(
            jax.jit(pcn_value_and_grad(loss, NUM_CLASSES, path=path))(*given)
            for path in ("fused", "masked")
        ),
        rtol=1e-4,
        atol=1e-6,
    )


def test_a_parameter_behind_no_derivative_does_not_move() -> None:
    def loss(params: Any, inputs: jax.Array, labels: jax.Array) -> jax.Array:
        gate = jax.lax.stop_gradient(jax.nn.sigmoid(inputs @ params["gate"]))
        return cross_entropy(gate * (inputs @ params["kernel"]), labels)

    params = {"gate": normal(0, 6, NUM_CLASSES), "kernel": normal(1, 6, NUM_CLASSES)}
    given = params, normal(2, len(LABELS), 6), LABELS
    (_, fused_direction), (_, expected) = (
        pcn_value_and_grad(loss, NUM_CLASSES, path=path)(*given)
        for path in ("fused", "masked")
    )
    chex.assert_trees_all_close(fused_direction, expected, rtol=1e-4, atol=1e-6)
    assert not fused_direction["gate"].any()


def with_derivative(derivative: Any) -> Any:
    """A loss by `w`, whose gradient at `w` is what the derivative makes of it."""

    @jax.custom_vjp
    def same(w: jax.Array) -> jax.Array:
        return w

    same.defvjp(lambda w: (w, w), lambda w, g: (derivative(w, g),))
    return lambda w, x, y: cross_entropy(x @ same(w), y)


@jax.custom_vjp
def clipped_product(w: jax.Array, x: jax.Array) -> jax.Array:
    return x @ w


clipped_product.defvjp(
    lambda w, x: (x @ w, (w, x)),
    lambda given, g: (jnp.clip(given[1].T @ g, -0.1, 0.1), g @ given[0].T),
)


@pytest.mark.parametrize(
    ("loss", "path"),
    [
        (with_derivative(lambda w, g: jnp.where(jnp.abs(w) < 1, 2 * g, 0)), "fused"),
        (
            with_derivative(
                lambda w, g: jax.lax.while_loop(
                    lambda carry: carry[1] < 3,
                    lambda carry: (g + carry[0] @ (0.1 * w.T @ w), carry[1] + 1),
                    (g, 0),
                )[0]
            ),
            "fused",
        ),
        (with_derivative(lambda _, g: jnp.clip(g, -0.01, 0.01)), "masked"),
        (with_derivative(lambda _, g: g / jnp.linalg.norm(g)), "masked"),
        (with_derivative(lambda _, g: jnp.sign(g)), "masked"),
        (lambda w, x, y: cross_entropy(clipped_product(w, x), y), "masked"),
    ],
    ids=["linear", "by a loop", "clipped", "normalised", "signs", "of a product"],
)
def test_derivatives_that_are_not_linear_take_the_masked_path(
    loss: Any, path: str
) -> None:
    given = normal(1, 6, NUM_CLASSES), normal(2, len(LABELS), 6), jnp.asarray(LABELS)
    plan = pcn_jax.pcn_plan(loss, NUM_CLASSES)(*given)
    assert plan.path == path
    if path == "masked":
        assert "custom_vjp by parameters may not be linear" in plan.reason
        return
    directions = [
        pcn_value_and_grad(loss, NUM_CLASSES, path=path)(*given)[1]
        for path in ("fused", "masked")
    ]
    chex.assert_trees_all_close(*directions, atol=1e-6)
