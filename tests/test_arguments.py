"""What a loss takes besides parameters, inputs and labels reaches it as it is."""

import functools
import types
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pcn_jax
from pcn_jax.arguments import take_out_arrays

C, B = 3, 12
X = np.random.RandomState(0).normal(size=(B, 4)).astype(np.float32)
Y = np.arange(B, dtype=np.int32) % C
PARAMS = {"w": np.random.RandomState(1).normal(size=(4, C)).astype(np.float32)}
SHIFT = np.arange(C, dtype=np.float32)[None]
SMOOTHED = pcn_jax.weights.inverse_smoothed_norm(0.3)


def loss(
    params: Any,
    x: Any,
    y: Any,
    activation: Callable[[Any], Any],
    shift: Any,
    *,
    train: bool,
    kind: str = "cross-entropy",
) -> Any:
    """Branches on flags and names, and calls a function that it is given."""
    logits = activation(x @ params["w"]) + shift
    if train:
        logits = 2 * logits
    log_p = jax.nn.log_softmax(logits)
    if kind == "squares":
        return jnp.sum((log_p - jax.nn.one_hot(y, C)) ** 2, axis=1)
    return -jnp.take_along_axis(log_p, y[:, None], axis=1)[:, 0]


def closed(params: Any, x: Any, y: Any) -> Any:
    """The same with all of it in a closure."""
    return loss(params, x, y, jnp.tanh, SHIFT, train=True, kind="squares")


Transformation = Callable[[Any], Callable[..., Any]]
OF_LABELS: dict[str, Transformation] = {
    "fused": functools.partial(pcn_jax.pcn_value_and_grad, num_classes=C, path="fused"),
    "masked": functools.partial(
        pcn_jax.pcn_value_and_grad, num_classes=C, path="masked"
    ),
    "with a state": lambda loss_fn: functools.partial(
        pcn_jax.pcn_value_and_grad(loss_fn, C, weights=SMOOTHED),
        state=SMOOTHED.init(C),
    ),
    "per class": functools.partial(pcn_jax.per_class_value_and_grad, num_classes=C),
    "accumulated": lambda loss_fn: pcn_jax.accumulate(
        pcn_jax.per_class_value_and_grad(loss_fn, C), 5, loop="python"
    ),
    "accumulated in a scan": lambda loss_fn: pcn_jax.accumulate(
        pcn_jax.per_class_value_and_grad(loss_fn, C), 5, loop="scan"
    ),
}
MORE: tuple[Any, ...] = (jnp.tanh, SHIFT)
KEYWORDS: dict[str, Any] = {"train": True, "kind": "squares"}


@pytest.mark.parametrize("name", OF_LABELS)
def test_flags_names_functions_and_arrays(name: str) -> None:
    function = OF_LABELS[name](loss)

    @jax.jit
    def call(params: Any, x: Any, y: Any) -> Any:
        return function(params, x, y, *MORE, **KEYWORDS)

    expected = jax.jit(OF_LABELS[name](closed))(PARAMS, X, Y)
    chex.assert_trees_all_close(call(PARAMS, X, Y), expected, rtol=1e-5, atol=1e-6)


def test_without_jit_and_in_a_plan() -> None:
    given = PARAMS, X, Y
    _, found = OF_LABELS["fused"](loss)(*given, *MORE, **KEYWORDS)
    _, expected = jax.jit(OF_LABELS["fused"](closed))(*given)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)
    plan = pcn_jax.pcn_plan(loss, C)(*given, *MORE, **KEYWORDS)
    assert plan == pcn_jax.pcn_plan(closed, C)(*given)


@pytest.mark.parametrize("microbatch_size", [None, 5])
def test_of_known_labels(microbatch_size: int | None) -> None:
    build = functools.partial(
        pcn_jax.known_labels_value_and_grad,
        labels=Y,
        num_classes=C,
        microbatch_size=microbatch_size,
        loop="python",
    )
    found = jax.jit(lambda *given: build(loss)(*given, *MORE, **KEYWORDS))(PARAMS, X)
    expected = jax.jit(build(closed))(PARAMS, X)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)


def test_of_groups() -> None:
    order = np.argsort(Y, kind="stable").reshape(C, -1)
    given = PARAMS, X[order], Y[order]
    function = pcn_jax.per_group_value_and_grad(loss)
    found = jax.jit(lambda *given: function(*given, *MORE, **KEYWORDS))(*given)
    expected = jax.jit(pcn_jax.per_group_value_and_grad(closed))(*given)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)


def test_arrays_by_keyword_are_traced_and_not_baked_in() -> None:
    """Else every new value, such as a random key, would compile anew."""
    traces = []

    def counting(params: Any, x: Any, y: Any, *, shift: Any) -> Any:
        traces.append(shift)
        return closed(params, x + shift.mean(), y)

    accumulated = pcn_jax.accumulate(
        pcn_jax.per_class_value_and_grad(counting, C), 6, loop="python"
    )
    first = accumulated(PARAMS, X, Y, shift=SHIFT)[1]["w"]
    number = len(traces)
    second = accumulated(PARAMS, X, Y, shift=2 * SHIFT)[1]["w"]
    assert len(traces) == number
    assert np.abs(first - second).max() > 1e-3


def test_what_has_a_dtype_and_no_shape_is_no_array() -> None:
    """Such as a module of flax."""
    module = types.SimpleNamespace(dtype=jnp.float32)
    fixed, arrays = take_out_arrays((module,), {})
    assert arrays == []
    assert fixed.values == (module,)


def test_shapes_stand_for_arrays_and_types_do_not() -> None:
    shape = jax.eval_shape(lambda: jnp.ones(2))
    fixed, arrays = take_out_arrays((shape, 0.5), {"dtype": jnp.float32})
    assert arrays == [shape]
    assert fixed.values == (None, 0.5, jnp.float32)
    assert {fixed: "hashable"}


def test_an_unknown_keyword_is_the_losss_own_error() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'trian'"):
        pcn_jax.pcn_value_and_grad(closed, C)(PARAMS, X, Y, trian=True)
