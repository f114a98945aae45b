"""Holds class gradients, transformations and trajectories against the slow reference.

All in float64 to 1e-10 relative. The reference itself is held against finite
differences and against directions worked out by hand.
"""

from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from numpy.typing import NDArray
from reference import Array, Labels, Params

import pcn_jax

Data = tuple[Array, Labels]
Indices = NDArray[np.int64]

COUNTS = (25, 12, 7, 3)
NUM_CLASSES = len(COUNTS)
STEPS, LEARNING_RATE = 20, 0.1
TOLERANCE = 1e-10
# Chosen so that some classes fall on either side.
BOUNDS: dict[str, Any] = {"max_norm": 2.0, "min_alignment": 0.85}


def overlapping_classes(rng: np.random.Generator) -> Data:
    labels = rng.permutation(np.repeat(np.arange(NUM_CLASSES), COUNTS))
    centres = rng.normal(size=(NUM_CLASSES, 5))
    return centres[labels] + 2.0 * rng.normal(size=(len(labels), 5)), labels


def draw(labels: Labels, sizes: tuple[int, ...], rng: np.random.Generator) -> Indices:
    """Draws `sizes` of each class a step, reshuffling a class that runs out."""
    columns = []
    for c, size in enumerate(sizes):
        members = np.flatnonzero(labels == c)
        passes = -(-STEPS * size // len(members))
        stream = np.concatenate([rng.permutation(members) for _ in range(passes)])
        columns.append(stream[: STEPS * size].reshape(STEPS, size))
    return np.concatenate(columns, axis=1)


RNG = np.random.default_rng(0)
PARAMS = reference.initial_params(RNG, 5, 7, NUM_CLASSES)
DATA = INPUTS, LABELS = overlapping_classes(RNG)
BATCHES = {
    "all data": np.tile(np.arange(len(LABELS)), (STEPS, 1)),
    "stratified": draw(LABELS, (9, 4, 2, 1), RNG),
    "oversampled": draw(LABELS, (4, 4, 4, 4), RNG),
    "uniform": np.array(
        [RNG.choice(len(LABELS), 16, replace=False) for _ in range(STEPS)]
    ),
}
SIXTEEN = BATCHES["stratified"][0]
FIRST = INPUTS[SIXTEEN], LABELS[SIXTEEN]
# The same with padding in place of class 2 and of some of the others.
PADDED = FIRST[0], np.where((np.arange(16) % 4 == 0) | (FIRST[1] == 2), -1, FIRST[1])


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def loss_fn(params: Any, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    def example_loss(x: jax.Array, label: jax.Array) -> jax.Array:
        hidden = jnp.tanh(x @ params["w1"] + params["b1"])
        log_probabilities = jax.nn.log_softmax(hidden @ params["w2"] + params["b2"])
        return -log_probabilities[label]

    return jax.vmap(example_loss)(inputs, labels)


# Shared by all tests, because compiling is what takes their time.
per_class = jax.jit(pcn_jax.per_class_value_and_grad(loss_fn, NUM_CLASSES))
full_batch = jax.jit(pcn_jax.accumulate(per_class, 24))


def stack(rows: list[Params]) -> Params:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def times(weight: float, row: Params) -> Params:
    return {name: weight * value for name, value in row.items()}


def assert_close(actual: Any, expected: Params) -> None:
    """Relative to the global norm, so that what should be zero must be so exactly."""
    assert actual.keys() == expected.keys()
    assert {leaf.dtype for leaf in actual.values()} == {np.dtype("float64")}
    error = {name: np.asarray(actual[name]) - expected[name] for name in expected}
    assert reference.norm(error) <= TOLERANCE * reference.norm(expected)


def assert_rows_close(actual: Any, expected: list[Params]) -> None:
    for c, row in enumerate(expected):
        assert_close({name: leaf[c] for name, leaf in actual.items()}, row)


def class_gradients(batch: Data) -> list[Params]:
    return reference.class_gradients(PARAMS, *batch, NUM_CLASSES)


def assert_agrees(result: tuple[Any, Any], batch: Data) -> None:
    value, class_grads = result
    losses = reference.class_losses(PARAMS, *batch, NUM_CLASSES)
    np.testing.assert_allclose(value.losses, losses, rtol=TOLERANCE)
    counts = reference.class_counts(batch[1], NUM_CLASSES)
    np.testing.assert_array_equal(value.counts, counts)
    assert_rows_close(class_grads, class_gradients(batch))


class TestReference:
    """A reference that cannot fail proves nothing."""

    @pytest.mark.parametrize("name", PARAMS)
    def test_class_gradients_are_finite_differences(self, name: str) -> None:
        """Of the class shares `(count / B) * mean loss`, entry by entry."""
        counts = np.array(reference.class_counts(PADDED[1], NUM_CLASSES))
        rows = class_gradients(PADDED)
        for index in np.ndindex(PARAMS[name].shape):
            shares = []
            for step in (1e-5, -1e-5):
                moved = PARAMS | {name: PARAMS[name].copy()}
                moved[name][index] += step
                losses = reference.class_losses(moved, *PADDED, NUM_CLASSES)
                shares.append(counts / counts.sum() * losses)
            differences = (shares[0] - shares[1]) / 2e-5
            entries = [row[name][index] for row in rows]
            np.testing.assert_allclose(entries, differences, rtol=1e-6, atol=1e-10)

    def test_losses_are_minus_log_probabilities(self) -> None:
        losses = [reference.example_loss(PARAMS, np.ones(5), c) for c in range(4)]
        assert sum(np.exp(-np.array(losses))) == pytest.approx(1.0, rel=1e-12)

    @pytest.mark.parametrize(
        ("algorithm", "expected"),
        [
            ("SGD", [3.0, 2.0]),
            ("PCNSGD", [0.6, -0.2]),  # (3, 4) / 5 + (0, -2) / 2
            ("PCNSGD+R", [1.0, 1 / 3]),  # p = 0.6 and 1
            ("PCNSGD+R published", [0.6, 0.2]),  # p = 1 and 0.6: that of the other
            ("RW", [2.0, -4 / 3]),  # weights 4 / (2 * 3) and 4 / (2 * 1)
            ("CLIP", [4 / 7, -5 / 21]),  # class-mean norms 20 / 3 and 8
        ],
    )
    def test_directions_worked_out_by_hand(
        self, algorithm: str, expected: list[float]
    ) -> None:
        rows = [{"w": np.array(row)} for row in ([3.0, 4.0], [0.0, -2.0])]
        full_rows = [{"w": np.array(row)} for row in ([5.0, 0.0], [0.0, -7.0])]
        weights = reference.class_weights(
            algorithm, rows, counts=[3, 1], full_rows=full_rows, max_norm=7.0
        )
        d = reference.direction(weights, rows)["w"]
        np.testing.assert_allclose(d, expected, rtol=1e-12)

    @pytest.mark.parametrize(
        ("x", "weight"), [(0.75, 4 / 3), (0.28, 1.12), (-0.28, -1.12)]
    )
    def test_alignment_below_the_minimum(self, x: float, weight: float) -> None:
        """Weighs `p / 0.5**2`, where `p = x`, as the row has length 1."""
        rows = [{"w": np.array([x, np.sqrt(1 - x**2)])}]
        weights = reference.class_weights(
            "PCNSGD+R", rows, full_rows=[{"w": np.array([2.0, 0.0])}], min_alignment=0.5
        )
        assert weights == pytest.approx([weight], rel=1e-12)


class TestClassGradients:
    """Each way to compute them, with padding and an absent class."""

    def test_per_class(self) -> None:
        assert_agrees(per_class(PARAMS, *PADDED), PADDED)

    def test_per_group(self) -> None:
        inputs, labels = PADDED
        members = labels == np.arange(NUM_CLASSES)[:, None]
        own_first = np.argsort(~members, axis=1, kind="stable")
        own = np.take_along_axis(members, own_first, axis=1)
        groups = inputs[own_first], np.where(own, labels[own_first], -1)
        per_group = jax.jit(pcn_jax.per_group_value_and_grad(loss_fn))
        assert_agrees(per_group(PARAMS, *groups), PADDED)

    def test_auxiliary_output_changes_nothing(self) -> None:
        def loss_and_inputs(*args: Any) -> tuple[jax.Array, jax.Array]:
            return loss_fn(*args), args[1]

        with_aux = pcn_jax.per_class_value_and_grad(
            loss_and_inputs, NUM_CLASSES, has_aux=True
        )
        result = jax.jit(with_aux)(PARAMS, *PADDED)
        assert_agrees(result, PADDED)
        np.testing.assert_array_equal(result[0].aux, PADDED[0])

    @pytest.mark.parametrize("loop", ["python", "scan"])
    @pytest.mark.parametrize("microbatch_size", [6, 50])
    def test_accumulate(
        self, microbatch_size: int, loop: Literal["python", "scan"]
    ) -> None:
        in_parts = pcn_jax.accumulate(per_class, microbatch_size, loop=loop)
        assert_agrees(in_parts(PARAMS, *PADDED), PADDED)

    def test_accumulate_refuses_inputs_without_labels(self) -> None:
        in_parts = pcn_jax.accumulate(per_class, 6)
        for inputs, labels in (INPUTS[:4], LABELS[:5]), (INPUTS[:9], LABELS[:5]):
            with pytest.raises(ValueError, match=f"5 examples .*{len(inputs)}"):
                in_parts(PARAMS, inputs, labels)

    def test_combine_refuses_aux_of_other_shapes(self) -> None:
        def with_losses(*given: Any) -> Any:
            losses = loss_fn(*given)
            return losses, losses

        class_gradients = pcn_jax.per_class_value_and_grad(
            with_losses, NUM_CLASSES, has_aux=True
        )
        parts = (class_gradients(PARAMS, INPUTS[:n], LABELS[:n]) for n in (4, 3))
        with pytest.raises(ValueError, match="each batch must be as the first"):
            pcn_jax.combine(parts)

    def test_combine_refuses_other_numbers_of_classes(self) -> None:
        of_one_class = pcn_jax.per_class_value_and_grad(loss_fn, 1)
        labels = np.zeros_like(LABELS)
        parts = per_class(PARAMS, *DATA), of_one_class(PARAMS, INPUTS, labels)
        with pytest.raises(ValueError, match="each batch must be as the first"):
            pcn_jax.combine(parts)

    def test_combine(self) -> None:
        """Batches of unequal size, each with another mixture of classes."""
        parts = np.split(np.argsort(LABELS, kind="stable"), [11, 31])
        result = pcn_jax.combine(
            per_class(PARAMS, INPUTS[part], LABELS[part]) for part in parts
        )
        assert_agrees(result, DATA)


NORMALISED = (pcn_jax.scale_by_class_norm(),)
# What stands before `sum_over_classes` in the library.
LINKS: dict[str, tuple[optax.GradientTransformation, ...]] = {
    "GD": (),
    "PCNGD": NORMALISED,
    "SGD": (),
    "SGD+O": (),
    "PCNSGD": NORMALISED,
    "PCNSGD+O": NORMALISED,
    "PCNSGD+R": (
        *NORMALISED,
        pcn_jax.scale_by_class_alignment(min_alignment=BOUNDS["min_alignment"]),
    ),
    "PCNSGD+R published": (
        *NORMALISED,
        pcn_jax.scale_by_class_alignment(published_code=True),
    ),
    "RW": (pcn_jax.scale_by_class_frequency(),),
    "CLIP": (pcn_jax.clip_by_class_norm(BOUNDS["max_norm"]),),
}


class TestTransformations:
    """Each weighs the rows as the reference does."""

    @pytest.mark.parametrize(
        "algorithm", ["SGD", "PCNSGD", "PCNSGD+R", "PCNSGD+R published", "RW", "CLIP"]
    )
    @pytest.mark.parametrize(
        ("batch", "factor"),
        [(FIRST, 1.0), (FIRST, 0.0), (FIRST, -1.0), (PADDED, 1.0)],
        ids=["all present", "one zero", "one reversed", "one absent"],
    )
    def test_rows_and_their_sum(
        self, algorithm: str, batch: Data, factor: float
    ) -> None:
        rows, full_rows = class_gradients(batch), class_gradients(DATA)
        rows[1] = times(factor, rows[1])
        counts = reference.class_counts(batch[1], NUM_CLASSES)
        weights = reference.class_weights(
            algorithm, rows, counts=counts, full_rows=full_rows, **BOUNDS
        )
        weighted = [times(w, row) for w, row in zip(weights, rows, strict=True)]

        scale = optax.chain(optax.identity(), *LINKS[algorithm])
        scaled, _ = scale.update(
            stack(rows),
            scale.init(PARAMS),
            PARAMS,
            class_counts=np.array(counts),
            reference=stack(full_rows),
        )
        total = pcn_jax.sum_over_classes()
        summed, _ = total.update(scaled, total.init(PARAMS), PARAMS)
        assert_rows_close(scaled, weighted)
        assert_close(summed, reference.direction(weights, rows))

    def test_bounds_have_classes_on_either_side(self) -> None:
        """Otherwise half of clipping and of the alignment would go untested."""
        rows, full_rows = class_gradients(FIRST), class_gradients(DATA)
        counts = reference.class_counts(FIRST[1], NUM_CLASSES)
        norms = [
            sum(counts) / count * reference.norm(row)
            for count, row in zip(counts, rows, strict=True)
        ]
        alignments = list(map(reference.cosine, rows, full_rows))
        assert min(norms) < BOUNDS["max_norm"] < max(norms)
        assert min(alignments) < BOUNDS["min_alignment"] < max(alignments)

    @pytest.mark.parametrize("pair", [(0, 1), (1, 3)])
    def test_step_size_by_class_angle(self, pair: tuple[int, int]) -> None:
        rows = [class_gradients(DATA)[c] for c in pair]
        factor = 1.0 + reference.cosine(*rows)
        tx = pcn_jax.scale_by_class_angle()
        updates, _ = tx.update(stack(rows), tx.init(PARAMS), PARAMS)
        assert_rows_close(updates, [times(factor, row) for row in rows])


def assert_same_path(
    tx: optax.GradientTransformation, algorithm: str, sampling: str, **options: Any
) -> None:
    """Walks in the library as a user would, and compares the way from the start."""
    expected = reference.trajectory(
        algorithm,
        PARAMS,
        list(BATCHES[sampling]),
        DATA,
        learning_rate=LEARNING_RATE,
        steps=STEPS,
        **options,
    )
    update = jax.jit(optax.with_extra_args_support(tx).update)
    params, state = PARAMS, tx.init(PARAMS)
    for batch, goal in zip(BATCHES[sampling], expected[1:], strict=True):
        value, class_grads = per_class(params, INPUTS[batch], LABELS[batch])
        _, full_class_grads = full_batch(params, *DATA)
        updates, state = update(
            class_grads,
            state,
            params,
            class_counts=value.counts,
            reference=full_class_grads,
        )
        params = optax.apply_updates(params, updates)
        assert_close(
            {name: params[name] - PARAMS[name] for name in params},
            {name: goal[name] - PARAMS[name] for name in goal},
        )


class TestTrajectories:
    """Every step of every algorithm, from the same start on the same batches."""

    @pytest.mark.parametrize(
        ("algorithm", "sampling"),
        [
            ("GD", "all data"),
            ("PCNGD", "all data"),
            ("SGD", "stratified"),
            ("SGD+O", "oversampled"),
            ("PCNSGD", "stratified"),
            ("PCNSGD+O", "oversampled"),
            ("PCNSGD+R", "stratified"),
            ("PCNSGD+R published", "stratified"),
            ("RW", "stratified"),
            ("CLIP", "stratified"),
            ("SGD", "uniform"),
            ("PCNSGD", "uniform"),
            ("PCNSGD+R", "uniform"),
            ("RW", "uniform"),
            ("CLIP", "uniform"),
        ],
    )
    def test_chain(self, algorithm: str, sampling: str) -> None:
        tx = optax.chain(
            *LINKS[algorithm], pcn_jax.sum_over_classes(), optax.sgd(LEARNING_RATE)
        )
        assert_same_path(tx, algorithm, sampling, **BOUNDS)

    def test_pcngd(self) -> None:
        assert_same_path(pcn_jax.pcngd(LEARNING_RATE), "PCNGD", "all data")

    @pytest.mark.parametrize("sampling", ["oversampled", "uniform"])
    @pytest.mark.parametrize(
        "options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}]
    )
    def test_pcnsgd(self, sampling: str, options: dict[str, Any]) -> None:
        tx = pcn_jax.pcnsgd(LEARNING_RATE, **options)
        assert_same_path(tx, "PCNSGD", sampling, **options)

    def test_uniform_batches_miss_a_class(self) -> None:
        missed = [
            0 in reference.class_counts(LABELS[batch], NUM_CLASSES)
            for batch in BATCHES["uniform"]
        ]
        assert 0 < sum(missed) < STEPS
