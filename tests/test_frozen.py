"""The frozen path: norms with batch statistics held fixed, and an exact direction."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from fused_losses import (
    CASES,
    LABELS,
    MIXTURES,
    NUM_CLASSES,
    STATISTICS,
    Case,
    cross_entropy,
    dense,
    in_float64,
    mixed_hidden,
    relative_loss,
)

import pcn_jax
from pcn_jax import pcn_value_and_grad, weights

PADDED = np.array([0, 2, 0, -1, 1, 0, 2], np.int32)
SHARED = {
    **{name: mixed_hidden(layer) for name, layer in STATISTICS.items()},
    "relative loss": relative_loss,
}


def case_of(loss: Callable[..., Any]) -> Case:
    return CASES["mlp"]._replace(loss=loss)


def frozen(case: Case, labels: Any = LABELS, **options: Any) -> Any:
    given = {k: options.pop(k) for k in ("state", "reference") if k in options}
    function = pcn_value_and_grad(case.loss, NUM_CLASSES, path="frozen", **options)
    return jax.jit(function)(case.params, case.inputs, labels, *case.args, **given)


def class_gradients(case: Case, labels: Any) -> Any:
    function = pcn_jax.per_class_value_and_grad(case.loss, NUM_CLASSES)
    return jax.jit(function)(case.params, case.inputs, jnp.asarray(labels))


def assert_close(actual: Any, expected: Any, rtol: float = 1e-12) -> None:
    """Relative to the largest entry of all: a bias before a mean has no gradient."""
    pairs = list(zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True))
    largest = max(np.abs(y).max() for _, y in pairs)
    for x, y in pairs:
        assert x.dtype == y.dtype
        np.testing.assert_allclose(x, y, rtol=0, atol=rtol * largest)


@pytest.mark.parametrize(
    ("name", "labels"),
    [*((name, LABELS) for name in SHARED), ("mean and variance", PADDED)],
    ids=[*SHARED, "padded"],
)
def test_the_direction_is_a_sum_of_the_true_class_gradients(
    name: str, labels: Any
) -> None:
    with jax.enable_x64(True):
        case = Case(SHARED[name], *in_float64(tuple(CASES["mlp"][1:])))
        value, direction = frozen(case, labels)
        truth, grads = class_gradients(case, labels)
        assert_close(value.losses, truth.losses)
        np.testing.assert_array_equal(value.counts, truth.counts)
        np.testing.assert_allclose(value.weights * value.norms, 1, rtol=1e-12)
        expected = jax.tree.map(lambda g: jnp.tensordot(value.weights, g, 1), grads)
        assert_close(direction, expected)


@pytest.mark.parametrize("name", STATISTICS)
def test_norms_are_those_with_the_statistics_as_constants(name: str) -> None:
    """Values of the layer at fixed parameters take the place of its statistics."""
    with jax.enable_x64(True):
        given = in_float64(tuple(CASES["mlp"][1:]))
        case = Case(mixed_hidden(STATISTICS[name]), *given)
        value, _ = frozen(case, with_gramian=True)
        at = dense(case.inputs, case.params["one"])

        def layer(x: jax.Array) -> jax.Array:
            """The same affine function of each example, as the statistics of `at`."""
            return {
                "mean": lambda: x - at.mean(axis=0, keepdims=True),
                "mean and variance": lambda: (
                    (x - at.mean(0, keepdims=True)) / (0.1 + at.std(0, keepdims=True))
                ),
                "largest": lambda: x / (1 + jnp.abs(at).max()),
                "covariance": lambda: x @ (at.T @ at),
                "weighted mean": lambda: x - jnp.linspace(0, 1, len(at))[None] @ at,
            }[name]()

        fixed = case._replace(loss=mixed_hidden(layer))
        _, grads = class_gradients(fixed, LABELS)
        assert_close(value.norms, pcn_jax.class_norms(grads))
        assert_close(value.statistics.cosines, pcn_jax.class_cosines(grads), 1e-10)


def test_statistics_over_the_frames_of_all_films() -> None:
    """Each example has two places on the axis over which they are taken."""

    def of_films(layer: Callable[[jax.Array], jax.Array]) -> Callable[..., jax.Array]:
        def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
            hidden = dense(x.reshape(-1, x.shape[1] // 2), params["one"])
            hidden = jnp.tanh(layer(hidden)).reshape(len(x), 2, -1).sum(axis=1)
            return cross_entropy(dense(hidden, params["two"]), y)

        return loss

    layer = STATISTICS["mean and variance"]
    with jax.enable_x64(True):
        params, x = in_float64((CASES["mlp"].params, CASES["mlp"].inputs))
        films = jnp.concatenate([x, jnp.sin(x)], axis=1)
        at = dense(films.reshape(-1, x.shape[1]), params["one"])
        mean, scale = at.mean(0, keepdims=True), 0.1 + at.std(0, keepdims=True)
        value, direction = frozen(Case(of_films(layer), params, films))
        fixed = Case(of_films(lambda h: (h - mean) / scale), params, films)
        assert_close(
            value.norms, pcn_jax.class_norms(class_gradients(fixed, LABELS)[1])
        )
        _, grads = class_gradients(Case(of_films(layer), params, films), LABELS)
        expected = jax.tree.map(lambda g: jnp.tensordot(value.weights, g, 1), grads)
        assert_close(direction, expected)


@pytest.mark.parametrize("name", ["mlp", "conv", "attention"])
def test_is_the_fused_path_where_examples_do_not_meet(name: str) -> None:
    case = CASES[name]
    fused = pcn_value_and_grad(case.loss, NUM_CLASSES, path="fused")
    expected = jax.jit(fused)(case.params, case.inputs, LABELS, *case.args)
    assert_close(frozen(case), expected, rtol=0)


@pytest.mark.parametrize("name", MIXTURES)
def test_what_is_no_statistic_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="The frozen path is not proven to be right"):
        frozen(case_of(mixed_hidden(MIXTURES[name])))


def test_the_warning_tells_of_it() -> None:
    case = case_of(SHARED["mean"])
    function = pcn_value_and_grad(case.loss, NUM_CLASSES)
    with pytest.warns(UserWarning, match="path='frozen' holds that fixed"):
        jax.eval_shape(function, case.params, case.inputs, LABELS)


def test_the_plan_tells_of_it() -> None:
    case = case_of(SHARED["mean and variance"])
    plan = pcn_jax.pcn_plan(case.loss, NUM_CLASSES, path="frozen")
    chosen = plan(case.params, case.inputs, LABELS)
    assert chosen.path == "frozen"
    assert len(chosen.ways) == 4


def test_labels_out_of_range() -> None:
    _, direction = frozen(case_of(SHARED["mean"]), LABELS + 1)
    assert all(np.isnan(x).all() for x in jax.tree.leaves(direction))


@pytest.mark.parametrize("name", ["smoothed norm", "alignment"])
def test_rules_with_a_state_and_with_a_reference(name: str) -> None:
    case, rule = case_of(SHARED["mean"]), weights.inverse_smoothed_norm(0.3)
    _, grads = class_gradients(case, LABELS)
    if name == "alignment":
        options: Any = {"weights": weights.inverse_aligned_norm(), "reference": grads}
    else:
        options = {"weights": rule, "state": rule.init(NUM_CLASSES)}
    value, direction = frozen(case, **options)
    expected = jax.tree.map(lambda g: jnp.tensordot(value.weights, g, 1), grads)
    assert_close(direction, expected, rtol=1e-5)
    assert np.all(value.weights > 0)
    assert (value.state is None) == (name == "alignment")


class Net(nn.Module):
    """A convolution and a dense layer, with flax's batch normalisation behind both."""

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        norm = nn.BatchNorm(use_running_average=False, momentum=0.9)
        x = nn.relu(norm(nn.Conv(4, (3, 3))(x))).reshape(len(x), -1)
        x = nn.BatchNorm(use_running_average=False, momentum=0.9)(nn.Dense(5)(x))
        return nn.Dense(NUM_CLASSES)(jnp.tanh(x))


def test_batch_normalisation_of_flax_trains_like_with_true_norms() -> None:
    """The images of a class share a brightness; after a while all are told apart."""
    shift = jnp.asarray(LABELS, jnp.float32).reshape(-1, 1, 1, 1)
    images = CASES["conv"].inputs + shift
    variables: Any = Net().init(jax.random.key(0), images)

    def loss(params: Any, x: Any, y: jax.Array, stats: Any) -> tuple[jax.Array, Any]:
        given = {"params": params, "batch_stats": stats}
        logits, new = Net().apply(given, x, mutable=["batch_stats"])
        return cross_entropy(logits, y), new["batch_stats"]

    def train(path: Any) -> tuple[Any, Any]:
        rule = weights.inverse_clipped_norm(0.1)
        balanced = jax.jit(
            pcn_value_and_grad(loss, NUM_CLASSES, weights=rule, has_aux=True, path=path)
        )
        params, stats = variables["params"], variables["batch_stats"]
        first, values = None, []
        for _ in range(20):
            value, direction = balanced(params, images, LABELS, stats)
            params = optax.apply_updates(
                params, jax.tree.map(lambda g: -0.3 * g, direction)
            )
            first, stats = first or value, value.aux
            values.append(value.losses)
        return first, values[-1]

    (of_frozen, frozen_end), (of_masked, masked_end) = map(train, ["frozen", "masked"])
    assert_close(of_frozen.aux, of_masked.aux, rtol=1e-6)
    ratio = of_frozen.norms / of_masked.norms
    assert np.all((ratio > 1) & (ratio < 4))
    for losses in (frozen_end, masked_end):
        assert np.all(losses < 0.3 * of_masked.losses)
