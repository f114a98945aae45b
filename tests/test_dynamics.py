"""What is measured during training: class means, predicted changes, initial drops."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import pcn_jax
from pcn_jax import class_means, initial_drop, macro_recall, steps_to_reach

many_examples = settings(max_examples=30, deadline=None, derandomize=True)
inf, nan = np.inf, np.nan
LABELS = np.array([0, 4, 4])


class TestClassMeans:
    """Losses and recalls are means over the members of a class."""

    def test_are_means_over_the_members(self) -> None:
        losses = jnp.array([1.0, 2.0, 6.0, 5.0])
        assert class_means(losses, jnp.array([1, 0, 0, 1]), 2).tolist() == [4.0, 3.0]

    def test_of_an_absent_class_is_nan(self) -> None:
        means = class_means(jnp.ones(2), jnp.array([0, 2]), 4)
        np.testing.assert_array_equal(means, [1, nan, 1, nan])

    def test_leave_padding_out(self) -> None:
        """Even where the value of a padded example is not finite."""
        values, labels = jnp.array([1.0, nan, 3.0]), jnp.array([0, -1, 0])
        assert class_means(values, labels, 1).tolist() == [2.0]

    @pytest.mark.parametrize("dtype", ["bool", "bfloat16"])
    def test_are_summed_in_float32(self, dtype: str) -> None:
        means = class_means(jnp.ones(1000, dtype), jnp.zeros(1000, jnp.int32), 1)
        assert means.dtype == jnp.float32
        assert means.tolist() == [1.0]

    def test_keep_float64(self) -> None:
        with jax.enable_x64(True):
            means = class_means(jnp.array([0.1]), jnp.array([0]), 1)
            assert (means.dtype, means.tolist()) == (jnp.float64, [0.1])

    def test_take_labels_as_image_data_has_them(self) -> None:
        with jax.numpy_dtype_promotion("standard"):
            labels = jnp.array([0, 1, 1], jnp.uint8)
            assert class_means(jnp.arange(3.0), labels, 2).tolist() == [0.0, 1.5]

    @pytest.mark.parametrize("kind", [list, np.array, np.float32])
    def test_take_lists_and_arrays_of_numpy(self, kind: Any) -> None:
        labels: Any = [0, 1, 1]
        means = class_means(kind([1.0, 2.0, 3.0]), labels, 2)
        assert (means.dtype, means.tolist()) == (jnp.float32, [1.0, 2.5])

    @pytest.mark.parametrize(
        ("values", "labels", "num_classes", "message"),
        [
            (jnp.ones(1), LABELS, 5, r"one number an example: .* \(3,\), got \(1,\)"),
            (jnp.ones((3, 1)), LABELS, 5, "values must be one number an example"),
            (LABELS, jnp.ones(3), 5, "labels must be integers"),
            (jnp.ones(3), LABELS, 4, "below num_classes=4, got a label 4"),
            (jnp.ones(3), LABELS, True, "num_classes must be a positive integer"),
        ],
    )
    def test_are_refused_of_other_shapes(
        self, values: Any, labels: Any, num_classes: int, message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            class_means(values, labels, num_classes)

    def test_are_nan_where_a_label_is_found_out_of_range_too_late(self) -> None:
        means = jax.jit(lambda labels: class_means(jnp.ones(3), labels, 2))
        assert jnp.all(jnp.isnan(means(jnp.array([0, 1, 7]))))
        assert means(jnp.array([0, 1, -1])).tolist() == [1, 1]


class TestMacroRecall:
    """The mean over classes of their recalls."""

    def test_counts_every_class_the_same(self) -> None:
        assert float(macro_recall(jnp.array([1.0, 0.5, 0.0]))) == 0.5

    def test_leaves_out_classes_without_examples(self) -> None:
        assert float(macro_recall(jnp.array([1.0, nan, 0.5]))) == 0.75

    def test_of_no_class_at_all_is_nan(self) -> None:
        assert np.isnan(macro_recall(jnp.array([nan, nan])))

    def test_takes_a_list(self) -> None:
        recalls: Any = [1.0, nan, 0.5]
        assert float(macro_recall(recalls)) == 0.75

    def test_keeps_leading_axes(self) -> None:
        recalls = jnp.array([[[1.0, 0.0]], [[nan, 1.0]]])
        assert macro_recall(recalls).tolist() == [[0.5], [1.0]]


def cross_entropy(params: Any, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    logits = jnp.tanh(inputs @ params["hidden"]) @ params["out"] + params["bias"][None]
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)[:, 0]


per_class = pcn_jax.per_class_value_and_grad(cross_entropy, 3)
LINKS: dict[str, tuple[optax.GradientTransformation, ...]] = {
    "SGD": (),
    "PCN": (pcn_jax.scale_by_class_norm(),),
    "clipped": (pcn_jax.clip_by_class_norm(1.0),),
}


class TestPredictedLossChanges:
    """To first order they are what happens."""

    @pytest.mark.parametrize("name", LINKS)
    def test_are_the_changes_of_a_tiny_step(self, name: str) -> None:
        with jax.enable_x64(True):
            rng = np.random.default_rng(0)
            shapes = {"hidden": (4, 5), "out": (5, 3), "bias": (3,)}
            params = {k: jnp.asarray(rng.normal(size=s)) for k, s in shapes.items()}
            inputs = jnp.asarray(rng.normal(size=(12, 4)))
            labels = np.array([0] * 7 + [1] * 4 + [2])
            step = jax.jit(per_class)
            value, grads = step(params, inputs, labels)

            tx = optax.chain(
                *LINKS[name], pcn_jax.sum_over_classes(), optax.scale(-1e-6)
            )
            updates, _ = jax.jit(tx.update)(
                grads, tx.init(params), params, class_counts=value.counts
            )
            moved, _ = step(optax.apply_updates(params, updates), inputs, labels)

            change = moved.losses - value.losses
            of_means = pcn_jax.predicted_loss_changes(grads, updates, value.counts)
            np.testing.assert_allclose(of_means, change, rtol=1e-4)
            of_shares = pcn_jax.predicted_loss_changes(grads, updates)
            np.testing.assert_allclose(
                of_shares, np.asarray(change) * np.array([7, 4, 1]) / 12, rtol=1e-4
            )

    def test_of_an_absent_class_is_zero(self) -> None:
        grads, counts = jnp.array([[1.0, 2.0], [0.0, 0.0]]), jnp.array([5, 0])
        changes = pcn_jax.predicted_loss_changes(grads, jnp.ones(2), counts)
        assert changes.tolist() == [3.0, 0.0]

    def test_are_refused_of_other_shapes(self) -> None:
        grads = {"w": jnp.ones((2, 3))}
        with pytest.raises(ValueError, match="updates must be shaped like the param"):
            pcn_jax.predicted_loss_changes(grads, grads)
        with pytest.raises(ValueError, match="class_counts must be one number a cl"):
            pcn_jax.predicted_loss_changes(grads, {"w": jnp.ones(3)}, jnp.ones(1))

    def test_take_arrays_of_numpy(self) -> None:
        changes = pcn_jax.predicted_loss_changes(np.eye(2), jnp.ones(2))
        assert (changes.dtype, changes.tolist()) == (jnp.float32, [1.0, 1.0])

    def test_are_summed_over_leaves_in_float32(self) -> None:
        tree = {"a": jnp.ones((2, 500), jnp.bfloat16), "b": jnp.ones(2, jnp.bfloat16)}
        updates = {"a": jnp.ones(500, jnp.bfloat16), "b": jnp.ones((), jnp.bfloat16)}
        changes = pcn_jax.predicted_loss_changes(tree, updates)
        assert (changes.dtype, changes.tolist()) == (jnp.float32, [501.0, 501.0])


def pcn_changes(grads: np.ndarray) -> np.ndarray:
    """Predicted changes under a step of length one along PCN's direction."""
    params = jnp.zeros(grads.shape[1])
    tx = pcn_jax.pcngd(1.0)
    updates, _ = tx.update(jnp.asarray(grads), tx.init(params), params)
    return np.asarray(pcn_jax.predicted_loss_changes(jnp.asarray(grads), updates))


class TestWhoGetsWorse:
    """What the paper derives of it, on random gradients."""

    two_classes = arrays(np.float32, (2, 3), elements=st.floats(-1, 1, width=16))

    @many_examples
    @given(two_classes)
    def test_neither_of_two_classes_under_pcn(self, grads: np.ndarray) -> None:
        assert (pcn_changes(grads) <= 1e-6).all()

    @many_examples
    @given(two_classes)
    def test_a_short_opposed_gradient_under_gradient_descent(
        self, grads: np.ndarray
    ) -> None:
        """Exactly when `cos α < −‖g_1‖/‖g_0‖`."""
        majority, minority = np.linalg.norm(grads.astype(np.float64), axis=1)
        assume(minority > 1e-3 and majority > 1e-3)
        cosine = grads[0].astype(np.float64) @ grads[1] / (majority * minority)
        assume(abs(cosine + minority / majority) > 1e-4)
        total = jnp.asarray(grads)
        changes = pcn_jax.predicted_loss_changes(total, -total.sum(axis=0))
        assert (changes[1] > 0) == (cosine < -minority / majority)

    def test_one_of_three_classes_can_under_pcn(self) -> None:
        """The guarantee is one for two classes."""
        changes = pcn_changes(np.array([[1, 0], [-0.8, 0.6], [-0.8, -0.6]], np.float32))
        np.testing.assert_allclose(changes[0], 0.6, rtol=1e-6)


class TestInitialDrop:
    """Its depth and length, and what is none."""

    @pytest.mark.parametrize(
        ("values", "depth", "steps"),
        [
            ([0.5, 0.25, 0.0, 0.75, 1.0], 0.5, 100),  # and recovers
            ([0.5, 0.25, 0.5, 0.75, 1.0], 0.25, 10),  # to just the start
            ([0.5, 0.625, 0.75, 0.875, 1.0], 0.0, 0),  # never drops
            ([0.5, 0.5, 0.5, 0.5, 0.5], 0.0, 0),  # never moves
            ([0.5, 0.25, 0.25, 0.125, 0.25], 0.375, inf),  # never recovers
            ([0.5, 0.625, 0.5, 0.375, 0.25], 0.25, inf),  # drops late, but unlearned
            ([0.5, 0.25, 0.625, 0.375, 1.0], 0.25, 1000),  # drops twice
            ([0.5, 1.0, 0.75, 0.25, 0.0], 0.0, 0),  # collapses once learned
            ([0.5, 0.25, 0.75, 0.0, 0.0], 0.25, 10),  # drops, learns, collapses
            ([1.0, 0.0, 0.0, 0.0, 0.0], 0.0, 0),  # starts at the best
        ],
    )
    def test_of_a_recall(self, values: list[float], depth: float, steps: float) -> None:
        measured = initial_drop([0, 1, 10, 100, 1000], values, best=1.0)
        assert measured == (depth, steps)
        # The same read as a loss, which falls to 0 as the recall rises to 1.
        losses = 1 - np.array(values)
        assert initial_drop([0, 1, 10, 100, 1000], losses, best=0.0) == measured

    @pytest.mark.parametrize("best", [nan, inf, None, "1"])
    def test_needs_a_best_value(self, best: Any) -> None:
        message = f"best must be a finite number, got {best!r}"
        with pytest.raises(ValueError, match=message):
            initial_drop([0, 1], [0.5, 1.0], best=best)

    def test_counts_steps_from_the_first(self) -> None:
        drop = initial_drop([100, 101, 110, 200], [0.75, 2.0, 1.0, 0.25], best=0.0)
        assert drop == (1.25, 100.0)

    def test_of_a_single_measurement_is_none(self) -> None:
        assert initial_drop([0], [0.3], best=1.0) == (0.0, 0.0)

    @pytest.mark.parametrize(
        "values",
        [
            [nan, 1.0, 0.1],
            [1.0, nan, 0.1],
            [1.0, inf, 0.1],
            [1.0, 1.0, nan],
            [inf, 1.0, 0.1],
            [inf, inf, inf],
        ],
    )
    def test_of_a_run_that_broke_is_nan(self, values: list[float]) -> None:
        assert np.isnan(initial_drop([0, 1, 2], values, best=0.0)).all()

    def test_of_a_run_that_broke_once_learned_is_its_own(self) -> None:
        drop = initial_drop([0, 1, 2, 3], [1.0, 1.5, 0.1, nan], best=0.0)
        assert drop == (0.5, 2.0)

    def test_names_its_fields(self) -> None:
        drop = initial_drop([0, 5, 9], [1.0, 1.25, 0.5], best=0.0)
        assert (drop.depth, drop.steps) == (0.25, 9.0)


class TestStepsToReach:
    """The first measurement at the target."""

    @pytest.mark.parametrize(
        ("values", "step"),
        [
            ([0.0, 0.5, 0.75], 1),  # reached means no less
            ([0.5, 0.0, 0.0], 0),  # at the start
            ([0.0, 0.75, 0.0], 1),  # and lost again
            ([nan, 0.25, 0.75], 10),
            ([0.0, 0.25, 0.25], inf),
            ([nan, nan, nan], inf),
        ],
    )
    def test_is_the_first(self, values: list[float], step: float) -> None:
        assert steps_to_reach([0, 1, 10], values, target=0.5) == step


class TestMeasurementsAreChecked:
    """Both read two sequences of one length."""

    @pytest.mark.parametrize(
        ("steps", "values", "message"),
        [
            ([], [], r"at least one, got shapes \[0\] and \[0\]"),
            ([0, 1], [1.0], r"got shapes \[2\] and \[1\]"),
            ([[0, 1]], [[1.0, 2.0]], r"got shapes \[1, 2\] and \[1, 2\]"),
            ([0, 2, 1], [1.0, 1.0, 1.0], r"must increase, got \[0, 2, 1\]"),
            ([0, 1, 1], [1.0, 1.0, 1.0], r"must increase, got \[0, 1, 1\]"),
            (np.array([2, 1], np.uint32), [1.0, 1.0], r"must increase, got \[2, 1\]"),
        ],
    )
    def test_by_both(
        self, steps: Sequence[float], values: Sequence[float], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            initial_drop(steps, values, best=0.0)
        with pytest.raises(ValueError, match=message):
            steps_to_reach(steps, values, target=0.5)
