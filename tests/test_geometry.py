"""Lengths and angles of class gradients: their limits, and the range of float32."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pcn_jax import class_alignment, class_cosines, class_norms, unit_class_grads
from pcn_jax.geometry import scale_rows
from pcn_jax.precision import at_least_float32

many_examples = settings(max_examples=30, deadline=None, derandomize=True)
# Zeros, and else entries of comparable size, so that no row lives on rounding.
entries = (
    st.just(0.0) | st.floats(2**-10, 1, width=32) | st.floats(-1, -(2**-10), width=32)
)
rows = arrays(np.float32, (3, 5), elements=entries)

norms_of = jax.jit(class_norms)
units_of = jax.jit(unit_class_grads)
cosines_of = jax.jit(class_cosines)
alignment_of = jax.jit(class_alignment)


def tree_of(matrix: Any) -> dict[str, Any]:
    """The same rows, spread over leaves of several ranks."""
    matrix = np.asarray(matrix)
    return {
        "scalar": matrix[:, 0],
        "nested": [matrix[:, 1:3].reshape(-1, 2, 1), {"rest": matrix[:, 3:]}],
    }


def matrix_of(tree: Any) -> np.ndarray:
    leaves = [np.asarray(leaf).reshape(len(leaf), -1) for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves, axis=1)


class TestNorms:
    """Global over all leaves, at any length."""

    @many_examples
    @given(rows)
    def test_are_global_over_all_leaves(self, matrix: np.ndarray) -> None:
        expected = np.linalg.norm(matrix.astype(np.float64), axis=1)
        np.testing.assert_allclose(norms_of(tree_of(matrix)), expected, rtol=1e-6)

    def test_are_those_of_optax_row_by_row(self) -> None:
        tree = tree_of(np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32))
        expected = jax.vmap(optax.tree.norm)(tree)
        np.testing.assert_allclose(class_norms(tree), expected, rtol=1e-6)

    @pytest.mark.parametrize("exponent", [-37, -20, 0, 20, 37])
    def test_neither_underflow_nor_overflow(self, exponent: int) -> None:
        norms = class_norms(jnp.array([[3.0, 4.0]]) * np.float32(10.0**exponent))
        np.testing.assert_allclose(norms, [5 * 10.0**exponent], rtol=1e-6)

    def test_see_entries_of_the_smaller_leaf(self) -> None:
        tree = {"large": jnp.array([[3e20]]), "small": jnp.array([[4e-20]])}
        np.testing.assert_allclose(class_norms(tree), [3e20], rtol=1e-6)

    def test_sum_16_bit_entries_in_float32(self) -> None:
        ones = jnp.ones((1, 10_000), jnp.bfloat16)  # whose sum in bfloat16 is 256
        norms = class_norms(ones)
        assert norms.dtype == jnp.float32
        np.testing.assert_allclose(norms, [100], rtol=1e-6)

    def test_take_leaves_of_different_precision(self) -> None:
        tree = {"a": jnp.full((1, 1), 3.0), "b": jnp.full((1, 1), 4.0, jnp.bfloat16)}
        assert class_norms(tree).tolist() == [5.0]

    def test_keep_float64(self) -> None:
        with jax.enable_x64(True):
            norms = class_norms(jnp.array([[1.0, 1e-6]]))
            assert norms.dtype == jnp.float64
            np.testing.assert_allclose(norms, [np.hypot(1, 1e-6)], rtol=1e-15)

    def test_of_a_leaf_without_entries_are_zero(self) -> None:
        tree = {"none": jnp.zeros((2, 0)), "some": jnp.array([[2.0], [0.0]])}
        assert class_norms(tree).tolist() == [2.0, 0.0]


class TestUnits:
    """Directions: of length one, or zero."""

    @many_examples
    @given(rows)
    def test_have_length_one_or_zero(self, matrix: np.ndarray) -> None:
        units, norms = units_of(tree_of(matrix))
        lengths = np.linalg.norm(matrix_of(units), axis=1)
        np.testing.assert_allclose(lengths, matrix.any(axis=1), rtol=1e-6)
        np.testing.assert_array_equal(norms == 0, ~matrix.any(axis=1))

    @many_examples
    @given(rows)
    def test_times_norms_are_the_gradients(self, matrix: np.ndarray) -> None:
        units, norms = units_of(tree_of(matrix))
        again = matrix_of(scale_rows(units, norms))
        np.testing.assert_allclose(again, matrix_of(tree_of(matrix)), rtol=1e-5)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_of_a_row_that_is_not_finite_are_nan(self, bad: float) -> None:
        """In all of its leaves, and in no other row."""
        grads = {"a": jnp.array([[bad], [3.0]]), "b": jnp.array([[0.0], [4.0]])}
        units, norms = unit_class_grads(grads)
        np.testing.assert_allclose(units["a"], [[np.nan], [0.6]], rtol=1e-6)
        np.testing.assert_allclose(units["b"], [[np.nan], [0.8]], rtol=1e-6)
        assert np.isfinite(norms).tolist() == [False, True]


class TestCosines:
    """Of every two classes."""

    @many_examples
    @given(rows)
    def test_are_symmetric_with_ones_on_the_diagonal(self, matrix: np.ndarray) -> None:
        cosines = cosines_of(tree_of(matrix))
        np.testing.assert_array_equal(cosines, cosines.T)
        np.testing.assert_allclose(np.diag(cosines), matrix.any(axis=1), rtol=1e-6)
        assert np.abs(cosines).max() <= 1

    @many_examples
    @given(rows, st.floats(-20, 20), st.integers(0, 2))
    def test_do_not_depend_on_lengths(
        self, matrix: np.ndarray, exponent: float, row: int
    ) -> None:
        scaled = matrix.copy()
        scaled[row] *= np.float32(10.0**exponent)
        np.testing.assert_allclose(
            cosines_of(tree_of(scaled)), cosines_of(tree_of(matrix)), atol=1e-5
        )

    def test_of_known_angles(self) -> None:
        grads = jnp.array([[1.0, 0.0], [1.0, np.sqrt(3)], [0.0, 0.0], [-9.0, 0.0]])
        expected = np.array(
            [[1, 0.5, 0, -1], [0.5, 1, 0, -0.5], [0, 0, 0, 0], [-1, -0.5, 0, 1]]
        )
        np.testing.assert_allclose(class_cosines(grads), expected, atol=1e-6)


class TestAlignment:
    """Of each class with its own reference."""

    @many_examples
    @given(rows, rows)
    def test_is_the_cosine_with_the_same_row(
        self, noisy: np.ndarray, true: np.ndarray
    ) -> None:
        both = cosines_of(tree_of(np.concatenate([noisy, true])))
        alignment = alignment_of(tree_of(noisy), tree_of(true))
        np.testing.assert_allclose(alignment, np.diag(both[:3, 3:]), atol=1e-6)

    def test_is_refused_of_other_shapes(self) -> None:
        for other in {"w": jnp.ones((1, 3))}, {"v": jnp.ones((2, 3))}:
            with pytest.raises(ValueError, match="reference must be shaped like"):
                class_alignment({"w": jnp.ones((2, 3))}, other)

    @many_examples
    @given(rows)
    def test_with_itself_is_one_and_with_its_reverse_minus_one(
        self, matrix: np.ndarray
    ) -> None:
        tree, present = tree_of(matrix), matrix.any(axis=1).astype(np.float32)
        np.testing.assert_allclose(alignment_of(tree, tree), present, rtol=1e-6)
        reverse = jax.tree.map(jnp.negative, tree)
        np.testing.assert_allclose(alignment_of(tree, reverse), -present, rtol=1e-6)

    def test_is_zero_where_either_gradient_is(self) -> None:
        zero, one = jnp.zeros((1, 2)), jnp.ones((1, 2))
        assert class_alignment(zero, one).tolist() == [0.0]
        assert class_alignment(one, zero).tolist() == [0.0]


class TestWhatIsGiven:
    """Class gradients alone, as arrays of JAX or NumPy."""

    FUNCTIONS = (class_norms, class_cosines, unit_class_grads)

    @pytest.mark.parametrize(
        ("given", "got"),
        [
            ({}, "{}"),
            ({"w": np.ones((2, 3)), "b": np.ones(3)}, r"\{'b': 'float64\[3\]'"),
            ({"w": jnp.ones((2, 3)), "b": jnp.ones(())}, r"\{'b': 'float32\[\]'"),
            ([[1.0, 2.0], [3.0, 4.0]], r"\[\['a float', 'a float'\], "),
        ],
    )
    def test_all_else_is_refused(self, given: Any, got: str) -> None:
        for function in self.FUNCTIONS:
            with pytest.raises(
                ValueError, match=f"same number of classes C, got {got}"
            ):
                function(given)

    def test_arrays_of_numpy_are_those_of_jax_in_their_default_dtype(self) -> None:
        given = np.random.default_rng(0).normal(size=(3, 5))
        for function in (*self.FUNCTIONS, lambda x: scale_rows(x, jnp.ones(3))):
            expected = function(jnp.asarray(given))
            for tree in (given, given.astype(np.float32)):
                jax.tree.map(np.testing.assert_array_equal, function(tree), expected)


class TestPrecision:
    """Float32 at least."""

    @pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "float16", "bfloat16"])
    def test_narrow_numbers_are_widened(self, dtype: str) -> None:
        widened = at_least_float32(jnp.ones(2, dtype))
        assert widened.dtype == jnp.float32
        assert widened.tolist() == [1.0, 1.0]

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_wide_ones_are_left_alone(self, dtype: str) -> None:
        with jax.enable_x64(True):
            assert at_least_float32(jnp.ones(2, dtype)).dtype == dtype

    def test_rows_are_scaled_in_float32(self) -> None:
        scaled = scale_rows(jnp.ones((2, 1), jnp.bfloat16), jnp.array([1.001, 0.0]))
        assert scaled.dtype == jnp.float32
        np.testing.assert_allclose(scaled, [[1.001], [0.0]])
