"""What is said of the way that is taken."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fused_losses import (
    CASES,
    INTERACTING,
    LABELS,
    NUM_CLASSES,
    cross_entropy,
    normal,
)

import pcn_jax
from pcn_jax.fused import plan


def test_names_each_use_of_a_parameter() -> None:
    case = CASES["attention"]
    chosen = pcn_jax.pcn_plan(case.loss, NUM_CLASSES)(case.params, case.inputs, LABELS)
    ways = dict(chosen.ways)
    assert ways["['table']"] == "lookup"
    assert ways["['scale']"] == "examples"
    assert ways["['head']['kernel']"] == "pairs"
    assert "['table']" in str(chosen)


def test_takes_labels_as_a_list_and_a_parameter_by_itself() -> None:
    def loss(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        return (x @ w - y.astype(x.dtype)) ** 2

    plan = pcn_jax.pcn_plan(loss, 2)(jnp.ones(3), jnp.ones((4, 3)), [0, 1, 1, 0])
    assert [name for name, _ in plan.ways] == ["params"]


def test_of_a_long_function_of_parameters_alone() -> None:
    """Newton-Schulz, in which each value is used three times."""

    def loss(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        for _ in range(30):
            w = 1.5 * w - 0.5 * w @ w.T @ w
        return (x @ w).sum(axis=1) * y.astype(x.dtype)

    plan = pcn_jax.pcn_plan(loss, 2)(jnp.eye(3), jnp.ones((4, 3)), [0, 1, 1, 0])
    assert [name for name, _ in plan.ways] == ["params"]


@pytest.mark.parametrize(
    ("name", "ways"),
    [
        ("conv", {"rows", "pairs", "examples"}),
        ("more weights than positions", {"pairs", "examples"}),
        ("one matrix each", {"rows"}),
        ("recurrent", {"pairs", "examples"}),
        ("shared", {"masked", "pairs", "examples"}),
        ("learned token", {"pairs", "examples"}),
        ("latents", {"pairs", "examples"}),
    ],
)
def test_every_way_is_taken_somewhere(name: str, ways: set[str]) -> None:
    case = CASES[name]
    chosen = pcn_jax.pcn_plan(case.loss, NUM_CLASSES)(case.params, case.inputs, LABELS)
    assert {way.split(",")[0] for _, way in chosen.ways} == ways


@pytest.mark.parametrize(
    ("size", "width", "num_classes", "way"),
    [
        (1024, 32, 2, "masked"),  # two narrow products are no slower than one
        (1024, 32, 10, "rows, 16 at once"),  # in all 1.03 plain gradients; 64: 1.5
        (1024, 512, 10, "pairs"),
        (2, 32, 10, "pairs"),
    ],
)
def test_of_a_dense_layer(size: int, width: int, num_classes: int, way: str) -> None:
    def loss(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.where(y == 0, jnp.square(x @ w).sum(axis=1), 0)

    w, x = jnp.zeros((3072, width)), jnp.zeros((size, 3072))
    chosen = pcn_jax.pcn_plan(loss, num_classes)(w, x, np.zeros(size, np.int32))
    assert chosen.ways == (("params", way),)


@pytest.mark.parametrize(
    ("num_classes", "way"),
    [
        (2, "rows, 2 at once"),
        (10, "rows, 2 at once"),  # 1.20 plain gradients of an LSTM; 6: 1.28
        (100, "pairs"),
    ],
)
def test_of_a_layer_on_a_sequence(num_classes: int, way: str) -> None:
    def loss(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.where(y == 0, jnp.square(x @ w).sum(axis=(1, 2)), 0)

    w, x = jnp.zeros((96, 512)), jnp.zeros((128, 32, 96))
    chosen = pcn_jax.pcn_plan(loss, num_classes)(w, x, np.zeros(128, np.int32))
    assert chosen.ways == (("params", way),)


@pytest.mark.parametrize(
    ("channels", "side", "num_classes", "way"),
    [
        ((64, 64), 32, 2, "masked"),  # as on an H100: 1.15 against 1.53
        ((64, 64), 32, 10, "rows, 64 at once"),
        ((3, 32), 32, 2, "rows, 64 at once"),  # of few weights, all are cheap
        ((64, 128), 8, 4, "rows, 64 at once"),  # small: a CNN, 1.9 against 1.2
        ((512, 512), 4, 10, "pairs"),
    ],
)
def test_of_a_convolution_on_an_accelerator(
    channels: tuple[int, int],
    side: int,
    num_classes: int,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan, "is_cpu", lambda: False)

    def loss(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        order = ("NHWC", "HWIO", "NHWC")
        z = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=order)
        return jnp.where(y == 0, jnp.square(z).sum(axis=(1, 2, 3)), 0)

    w, x = jnp.zeros((3, 3, *channels)), jnp.zeros((64, side, side, channels[0]))
    chosen = pcn_jax.pcn_plan(loss, num_classes)(w, x, np.zeros(64, np.int32))
    assert chosen.ways == (("params", way),)


def test_says_why_it_is_the_masked_path() -> None:
    case = CASES["mlp"]
    chosen = pcn_jax.pcn_plan(INTERACTING["mean"], NUM_CLASSES)(
        case.params, case.inputs, LABELS
    )
    assert chosen.path == "masked"
    assert "mean" in str(chosen)


def test_says_that_norms_are_not_quite_those_of_class_gradients() -> None:
    case = CASES["mlp"]
    of_mean = pcn_jax.pcn_plan(INTERACTING["mean"], NUM_CLASSES, path="frozen")
    chosen = of_mean(case.params, case.inputs, LABELS)
    assert chosen.path == "frozen"
    first, *ways = str(chosen).splitlines()
    assert first == "frozen: norms with statistics of the batch held fixed"
    assert len(ways) == len(chosen.ways)


@pytest.mark.parametrize(
    ("path", "taken"), [(None, "fused"), ("frozen", "fused"), ("masked", "masked")]
)
def test_says_what_was_asked_for(path: Any, taken: str) -> None:
    case = CASES["mlp"]
    chosen = pcn_jax.pcn_plan(case.loss, NUM_CLASSES, path=path)(
        case.params, case.inputs, LABELS
    )
    assert chosen.path == taken


def test_takes_the_keywords_of_the_balanced_gradient() -> None:
    def loss(params: Any, x: jax.Array, soft: jax.Array) -> jax.Array:
        log_p = jax.nn.log_softmax(x @ params["w"] + params["b"][None])
        return -(soft * log_p).sum(axis=1)

    params = {"w": normal(0, 6, 3), "b": normal(1, 3)}
    given = params, normal(2, 64, 6), jax.nn.softmax(normal(3, 64, 3))
    rows = np.zeros(64, np.int32)
    plain = pcn_jax.pcn_plan(loss, 4)(*given, groups=rows)
    assert plain.path == "fused"
    reference = jax.tree.map(lambda p: jnp.ones((4, *p.shape)), params)
    kept = pcn_jax.pcn_plan(loss, 4)(*given, groups=rows, reference=reference)
    assert dict(kept.ways)["['b']"] != dict(plain.ways)["['b']"] == "examples"
    smoothed = pcn_jax.weights.inverse_smoothed_norm(0.3)
    halves = pcn_jax.pcn_plan(loss, 4, weights=smoothed)
    assert halves(*given, groups=rows) == halves(
        *given, groups=rows, state=smoothed.init(4)
    )
    with pytest.raises(ValueError, match="reference must be class gradients"):
        pcn_jax.pcn_plan(loss, 4)(*given, groups=rows, reference=params)


def test_a_path_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="'masked', got 'fast'"):
        pcn_jax.pcn_plan(CASES["mlp"].loss, 2, path="fast")  # type: ignore[arg-type]


FLAT: dict[str, Any] = {
    "flat": lambda p, x: (x.reshape(-1, 6) @ p).reshape(4, -1, 3).mean(axis=0),
    "flat and scaled": lambda p, x: (((2 * x.reshape(-1, 6).T) ** 2).T @ p).reshape(
        4, -1, 3
    )[0],
}


@pytest.mark.parametrize("name", FLAT)
def test_inputs_that_lose_the_axis_of_the_examples_are_not_taken_for_parameters(
    name: str,
) -> None:
    """It would be right, and as slow as the masked path without saying so."""

    def loss(kernel: jax.Array, x: jax.Array, labels: jax.Array) -> jax.Array:
        return cross_entropy(FLAT[name](kernel, x.transpose(1, 0, 2)), labels)

    given = normal(0, 6, NUM_CLASSES), normal(1, len(LABELS), 4, 6), LABELS
    chosen = pcn_jax.pcn_plan(loss, NUM_CLASSES)(*given)
    assert chosen.path == "masked"
    assert "reshape of (4, 7, 6) to (28, 6)" in chosen.reason


def test_statistics_of_inputs_may_be_taken_of_a_flat_array() -> None:
    def loss(kernel: jax.Array, x: jax.Array, labels: jax.Array) -> jax.Array:
        flat = x.reshape(-1, 6)
        largest = jnp.abs(x).ravel().max()
        return cross_entropy(
            ((x - flat.mean(axis=0)[None, None]) / largest)[:, 0] @ kernel, labels
        )

    given = normal(0, 6, NUM_CLASSES), normal(1, len(LABELS), 4, 6), LABELS
    assert pcn_jax.pcn_plan(loss, NUM_CLASSES)(*given).path == "fused"
