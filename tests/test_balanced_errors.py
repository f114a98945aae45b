"""What the balanced gradient refuses: as early as possible, with what to do."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from balanced_by_chain import fused
from fused_losses import CASES, LABELS, MLP, NUM_CLASSES, mlp

import pcn_jax
from pcn_jax import pcn_value_and_grad, weights


@pytest.mark.parametrize("number", [0, -1, 2.0, None])
def test_num_classes(number: Any) -> None:
    with pytest.raises(ValueError, match="positive integer"):
        pcn_value_and_grad(mlp, number)


def test_path() -> None:
    with pytest.raises(ValueError, match="'frozen', 'masked', got 'fast'"):
        pcn_value_and_grad(mlp, 2, path="fast")  # type: ignore[arg-type]


def test_losses_that_were_averaged() -> None:
    def loss(*given: Any) -> jax.Array:
        return mlp(*given).mean()

    with pytest.raises(ValueError, match="one loss an example"):
        fused(CASES["mlp"]._replace(loss=loss))


@pytest.mark.parametrize("path", ["fused", "masked"])
def test_weights_of_another_shape(path: str) -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\), got \(\)"):
        fused(CASES["mlp"], weights=lambda s: s.norms.sum(), path=path)


def test_weights_may_be_a_list() -> None:
    value, _ = fused(CASES["mlp"], weights=lambda s: [1.0, 2.0, 3.0])
    assert value.weights.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("path", ["fused", "masked"])
def test_no_examples(path: str) -> None:
    case = CASES["mlp"]._replace(inputs=CASES["mlp"].inputs[:0])
    with pytest.raises(ValueError, match="no examples"):
        fused(case, LABELS[:0], path=path)


@pytest.mark.parametrize("path", ["fused", "masked"])
def test_inputs_and_labels_of_different_lengths(path: str) -> None:
    with pytest.raises(ValueError, match=r"the 5 examples .*, got \(7, 6\)"):
        fused(CASES["mlp"], LABELS[:5], path=path)


@pytest.mark.parametrize("path", ["fused", "masked"])
def test_labels_of_pixels(path: Any) -> None:
    def loss(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        return (x @ w).reshape(-1) - y.astype(x.dtype)

    given = jnp.ones(8), jnp.ones((2, 3, 3, 8)), jnp.zeros(18, int)
    pcn_jax.per_class_value_and_grad(loss, 2)(*given)
    with pytest.raises(ValueError, match=r"use per_class_value_and.*tokens'"):
        pcn_value_and_grad(loss, 2, path=path)(*given)


@pytest.mark.parametrize("path", ["fused", "masked"])
def test_parameters_that_cannot_be_trained(path: str) -> None:
    for value, message in {3: "a counter", 1j: "the imaginary part"}.items():
        params = {**MLP, "more": jnp.asarray(value)}
        with pytest.raises(TypeError, match=rf"at params\['more'\].*{message}"):
            fused(CASES["mlp"]._replace(params=params), path=path)


def test_no_parameters() -> None:
    with pytest.raises(ValueError, match=r"arrays to train, got \{\}"):
        pcn_value_and_grad(mlp, 2)({}, CASES["mlp"].inputs, LABELS)


@pytest.mark.parametrize("path", ["fused", "masked"])
def test_names_for_labels(path: Any) -> None:
    with pytest.raises(ValueError, match=r"integers of shape \[B\], got <U1\[2\]"):
        pcn_value_and_grad(mlp, 2, path=path)(
            MLP, CASES["mlp"].inputs[:2], np.array(["a", "b"])
        )


def test_groups_are_called_groups() -> None:
    with pytest.raises(ValueError, match="groups must be integers"):
        fused(CASES["mlp"], groups=LABELS[:, None])
    with pytest.raises(ValueError, match="the 5 examples of the groups"):
        fused(CASES["mlp"], groups=LABELS[:5])


@pytest.mark.parametrize("path", ["fused", "masked"])
def test_aux_that_is_not_there(path: str) -> None:
    with pytest.raises(ValueError, match=r"must return \(losses, aux\), got"):
        fused(CASES["mlp"], has_aux=True, path=path)


def test_aux_that_is_no_array() -> None:
    case = CASES["mlp"]

    def loss(*given: Any) -> tuple[jax.Array, Any]:
        return case.loss(*given), {"kept": jnp.ones(2), "name": "mlp"}

    given = case.params, case.inputs, LABELS
    with pytest.raises(ValueError, match=r"got a str at aux\['name'\]: leave it"):
        pcn_value_and_grad(loss, NUM_CLASSES, has_aux=True)(*given)
    masked = pcn_value_and_grad(loss, NUM_CLASSES, has_aux=True, path="masked")
    assert masked(*given)[0].aux["name"] == "mlp"


def test_inputs_that_are_of_all_examples_are_named() -> None:
    def loss(params: Any, x: Any, y: jax.Array) -> jax.Array:
        return mlp(params, x["x"] * x["scale"], y)

    inputs = {"x": CASES["mlp"].inputs, "scale": jnp.float32(2)}
    plan = pcn_jax.pcn_plan(loss, NUM_CLASSES)(MLP, inputs, LABELS)
    assert "inputs['scale'] has shape (" in plan.reason


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (np.ones(3), "lambda statistics: fixed"),
        ("inverse_norm", "got str"),
        (weights.inverse_norm, r"call it, weights=inverse_norm\(\.\.\.\)"),
        (weights.inverse_smoothed_norm, "smoothed_norm is a function that makes"),
    ],
)
def test_what_is_no_rule(rule: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pcn_value_and_grad(mlp, 3, weights=rule)


@pytest.mark.parametrize("path", ["fused", "masked"])
def test_alignment_without_a_reference(path: str) -> None:
    with pytest.raises(ValueError, match="reference="):
        fused(CASES["mlp"], weights=weights.inverse_aligned_norm(), path=path)


def test_a_reference_without_the_class_axis() -> None:
    with pytest.raises(ValueError, match=r"leaves \[C, \*param.shape\]"):
        fused(CASES["mlp"], reference=MLP)


def test_cosines_without_a_gramian() -> None:
    value, _ = fused(CASES["mlp"])
    with pytest.raises(ValueError, match="with_gramian=True"):
        _ = value.statistics.cosines


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(weights.inverse_clipped_norm, -1.0),
        functools.partial(weights.inverse_clipped_norm, np.array([0.5, -1.0])),
        functools.partial(weights.inverse_clipped_norm, jnp.array(-1.0)),
        functools.partial(weights.inverse_aligned_norm, min_alignment=0.0),
    ],
)
def test_hyperparameters_of_weights(make: Any) -> None:
    with pytest.raises(ValueError, match="must"):
        make()


def test_largest_norms_of_other_classes() -> None:
    rule = weights.inverse_clipped_norm(np.array([0.1, 0.2]))
    with pytest.raises(ValueError, match=r"one a class, shape \(3,\), got shape"):
        fused(CASES["mlp"], weights=rule)
