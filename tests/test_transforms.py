"""The gradient transformations: optax's contract, the invariants, limits and errors."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import pcn_jax
from pcn_jax.geometry import scale_rows

LINKS: dict[str, Callable[[], optax.GradientTransformationExtraArgs]] = {
    "scale_by_class_norm": pcn_jax.scale_by_class_norm,
    "scale_by_class_alignment": pcn_jax.scale_by_class_alignment,
    "scale_by_class_alignment, published": functools.partial(
        pcn_jax.scale_by_class_alignment, published_code=True
    ),
    "class_momentum": functools.partial(pcn_jax.class_momentum, 2, 0.9),
    "clip_by_class_norm": functools.partial(pcn_jax.clip_by_class_norm, 1.0),
    "scale_by_class_frequency": pcn_jax.scale_by_class_frequency,
    "scale_by_class_weights": functools.partial(
        pcn_jax.scale_by_class_weights, pcn_jax.weights.inverse_norm()
    ),
    "scale_by_class_angle": pcn_jax.scale_by_class_angle,
    "scale_by_smoothed_class_norm": functools.partial(
        pcn_jax.scale_by_smoothed_class_norm, 1, 0.5
    ),
    "sum_over_classes": pcn_jax.sum_over_classes,
}
ALIASES: dict[str, Callable[[], optax.GradientTransformationExtraArgs]] = {
    "pcngd": functools.partial(pcn_jax.pcngd, 0.1),
    "pcnsgd": functools.partial(pcn_jax.pcnsgd, 0.1),
    "pcnsgd, momentum": functools.partial(pcn_jax.pcnsgd, 0.1, momentum=0.9),
    "pcnsgd, Nesterov": functools.partial(pcn_jax.pcnsgd, 0.1, 0.9, nesterov=True),
}
TRANSFORMATIONS = LINKS | ALIASES
OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adam": optax.adam(0.1),
}
update_of = {name: jax.jit(tx.update) for name, tx in OPTIMIZERS.items()}
# Those that scale rows, for any number of classes; halves of classes are not classes.
OTHERS = (
    "class_momentum",
    "scale_by_class_angle",
    "scale_by_smoothed_class_norm",
    "sum_over_classes",
)
SCALINGS = [name for name in LINKS if name not in OTHERS]

every_transformation = pytest.mark.parametrize("name", TRANSFORMATIONS)
every_scaling = pytest.mark.parametrize("name", SCALINGS)
many_examples = settings(max_examples=30, deadline=None, derandomize=True)

# Zeros, and else entries of comparable size, so that no row lives on rounding.
entries = (
    st.just(0.0) | st.floats(2**-10, 1, width=32) | st.floats(-1, -(2**-10), width=32)
)
rows = arrays(np.float32, (4, 5), elements=entries)
nonzero_rows = rows.filter(lambda matrix: bool(matrix.any(axis=1).all()))


@pytest.fixture
def mixed_dtypes() -> Iterator[None]:
    """Adam, schedules and MultiSteps of optax mix integers with floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def tree_of(matrix: Any) -> dict[str, Any]:
    """The rows of a matrix, or one vector, spread over leaves of several ranks."""
    matrix = np.asarray(matrix)
    lead = matrix.shape[:-1]
    return {
        "scalar": matrix[..., 0],
        "nested": [matrix[..., 1:3].reshape(*lead, 2, 1), {"rest": matrix[..., 3:]}],
    }


def matrix_of(tree: Any) -> np.ndarray:
    leaves = [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([x.reshape(len(x), -1) for x in leaves], axis=1)


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(x).astype(float) for x in jax.tree.leaves(tree)])


def problem(seed: int, dtype: Any = jnp.float32) -> tuple[Any, Any, dict[str, Any]]:
    """Parameters, class gradients of two classes and what the links ask for besides."""
    normal = np.random.default_rng(seed).normal(size=(5, 5))
    params, grads, reference = (
        tree_of(x.astype(dtype)) for x in (normal[0], normal[1:3], normal[3:])
    )
    return params, grads, {"reference": reference, "class_counts": np.array([5, 2])}


def apply(
    tx: optax.GradientTransformation,
    grads: Any,
    *,
    counts: Any = None,
    reference: Any = None,
) -> Any:
    """The updates that a transformation makes of class gradients in its first step."""
    params = jax.tree.map(lambda g: np.zeros(g.shape[1:], g.dtype), grads)
    counts = jnp.ones(len(jax.tree.leaves(grads)[0])) if counts is None else counts
    updates, _ = optax.with_extra_args_support(tx).update(
        grads,
        tx.init(params),
        params,
        class_counts=counts,
        reference=grads if reference is None else reference,
    )
    return updates


# Compiled once a transformation and shape, as hypothesis asks for many examples.
apply_named = {
    name: jax.jit(functools.partial(apply, make()))
    for name, make in TRANSFORMATIONS.items()
}


def apply_to(name: str, grads: Any, extra: dict[str, Any]) -> Any:
    """`apply_named`, for what `problem` gives."""
    return apply_named[name](
        grads, counts=extra["class_counts"], reference=extra["reference"]
    )


pcn = optax.chain(pcn_jax.scale_by_class_norm(), pcn_jax.sum_over_classes())
direction = jax.jit(functools.partial(apply, pcn))


def cosines_of(matrix: np.ndarray) -> np.ndarray:
    """In float64 NumPy; zero rows have zero cosines."""
    wide = matrix.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    units = wide / np.where(norms == 0, 1, norms)
    return np.asarray(units @ units.T)


def example_loss(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    return jax.nn.softplus(x @ w) * (1 + y.astype(x.dtype))


@jax.jit
@jax.grad
def mean_gradient(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    return example_loss(w, x, y).mean()


CLASSES = slice(0, 1), slice(1, 4)  # of the labels 0, 1, 1, 1
class_grads = jax.jit(pcn_jax.per_class_value_and_grad(example_loss, 2))


class TestContract:
    """What optax, jit and vmap expect of every transformation."""

    def test_covers_everything_public(self) -> None:
        public = {
            name
            for name in pcn_jax.__all__
            if getattr(getattr(pcn_jax, name), "__module__", "").startswith(
                "pcn_jax.transforms"
            )
        }
        assert {name.split(",")[0] for name in TRANSFORMATIONS} == public

    @every_transformation
    def test_ignores_unknown_extra_arguments(self, name: str) -> None:
        tx, (params, grads, extra) = TRANSFORMATIONS[name](), problem(0)
        state = tx.init(params)
        without, _ = tx.update(grads, state, params, **extra)
        with_more, _ = tx.update(grads, state, params, **extra, loss=1.0, other=None)
        chex.assert_trees_all_equal(without, with_more)

    @every_transformation
    def test_jit_changes_nothing(self, name: str) -> None:
        tx, (params, grads, extra) = TRANSFORMATIONS[name](), problem(1)
        eager = tx.update(grads, tx.init(params), params, **extra)
        jitted = jax.jit(tx.update)(grads, tx.init(params), params, **extra)
        chex.assert_trees_all_close(eager, jitted, rtol=1e-4, atol=1e-6)

    @every_transformation
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
    def test_second_step_neither_recompiles_nor_changes_dtypes(
        self, name: str, dtype: str
    ) -> None:
        with jax.enable_x64(dtype == "float64"):
            tx, (params, _, _) = TRANSFORMATIONS[name](), problem(0, dtype)
            chex.clear_trace_counter()
            step = jax.jit(chex.assert_max_traces(tx.update, n=1))
            state = start = tx.init(params)
            for seed in (1, 2):
                _, grads, extra = problem(seed, dtype)
                updates, state = step(grads, state, params, **extra)
                chex.assert_trees_all_equal_shapes_and_dtypes(state, start)
                summed = name == "sum_over_classes" or name in ALIASES
                like = params if summed else grads
                chex.assert_trees_all_equal_shapes_and_dtypes(updates, like)

    @pytest.mark.parametrize("name", LINKS)
    def test_bfloat16_loses_no_more_than_its_own_digits(self, name: str) -> None:
        _, halves, extra = problem(3, jnp.bfloat16)
        exact, exact_extra = jax.tree.map(
            lambda x: x.astype(np.float32), (halves, extra)
        )
        rough = jax.tree.map(
            lambda x: np.asarray(x, np.float32), apply_to(name, halves, extra)
        )
        fine = apply_to(name, exact, exact_extra)
        chex.assert_trees_all_close(rough, fine, rtol=0.01, atol=0.02)

    @every_transformation
    def test_vmap_over_seeds_is_a_loop(self, name: str) -> None:
        tx, problems = TRANSFORMATIONS[name](), [problem(seed) for seed in range(3)]
        params, grads, extra = jax.tree.map(lambda *xs: np.stack(xs), *problems)

        def first_update(params: Any, grads: Any, extra: dict[str, Any]) -> Any:
            return tx.update(grads, tx.init(params), params, **extra)[0]

        together = jax.jit(jax.vmap(first_update))(params, grads, extra)
        for seed, (_, grads, extra) in enumerate(problems):
            chex.assert_trees_all_close(
                jax.tree.map(lambda x, seed=seed: x[seed], together),
                apply_to(name, grads, extra),
                rtol=1e-4,
                atol=1e-6,
            )

    @pytest.mark.usefixtures("mixed_dtypes")
    @pytest.mark.parametrize("name", LINKS)
    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    def test_composes_with_optimizers(self, name: str, optimizer: str) -> None:
        """The chain is the optimizer on the sum of what the link makes."""
        last = OPTIMIZERS[optimizer]
        total = () if name == "sum_over_classes" else (pcn_jax.sum_over_classes(),)
        link = optax.with_extra_args_support(LINKS[name]())
        tx = optax.chain(link, *total, last)
        params = problem(0)[0]
        state, expected_state = tx.init(params), last.init(params)
        link_state = link.init(params)
        step = jax.jit(tx.update)
        for seed in (1, 2):
            _, grads, extra = problem(seed)
            updates, state = step(grads, state, params, **extra)
            scaled, link_state = link.update(grads, link_state, params, **extra)
            if total:
                scaled = jax.tree.map(lambda g: np.asarray(g).sum(axis=0), scaled)
            expected, expected_state = update_of[optimizer](
                scaled, expected_state, params
            )
            chex.assert_trees_all_close(updates, expected, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize(
        ("factory", "options"),
        [
            (pcn_jax.class_momentum, {"decay": 0.5}),
            (pcn_jax.scale_by_smoothed_class_norm, {"min_norm": 0.5}),
        ],
    )
    def test_the_number_of_classes_is_static_where_others_are_injected(
        self, factory: Callable[..., Any], options: dict[str, float]
    ) -> None:
        params, _, _ = problem(0)
        given = {"num_classes": 2, **options}
        with pytest.raises(ValueError, match="static_args='num_classes'"):
            optax.inject_hyperparams(factory)(**given).init(params)
        static = optax.inject_hyperparams(factory, static_args="num_classes")
        state = static(**given).init(params)
        assert set(options) <= set(state.hyperparams)

    def test_weights_with_a_state_are_shown_where_they_belong(self) -> None:
        weights: Any = pcn_jax.weights.inverse_smoothed_norm(0.3)
        with pytest.raises(ValueError, match=r"have a state.*scale_by_smoothed"):
            pcn_jax.scale_by_class_weights(weights)

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize(
        ("factory", "options", "changed"),
        [
            (pcn_jax.pcngd, {"learning_rate": 0.1}, {"learning_rate": 0.5}),
            (pcn_jax.pcnsgd, {"learning_rate": 0.1}, {"learning_rate": 0.5}),
            (
                pcn_jax.pcnsgd,
                {"learning_rate": 0.1, "momentum": 0.9},
                {"learning_rate": 0.1, "momentum": 0.5},
            ),
            (pcn_jax.clip_by_class_norm, {"max_norm": 0.5}, {"max_norm": 8.0}),
        ],
    )
    def test_hyper_parameters_can_be_injected_and_changed(
        self,
        factory: Callable[..., optax.GradientTransformationExtraArgs],
        options: dict[str, float],
        changed: dict[str, float],
        dtype: str,
    ) -> None:
        params, grads, extra = problem(0, dtype)
        tx = optax.inject_hyperparams(factory)(**options)
        step = jax.jit(tx.update)
        updates, state = step(grads, tx.init(params), params, **extra)
        plain = factory(**options)
        expected, _ = plain.update(grads, plain.init(params), params, **extra)
        chex.assert_trees_all_close(updates, expected, rtol=0.01)

        unchanged, _ = step(grads, state, params, **extra)
        for key, value in changed.items():
            state.hyperparams[key] = jnp.asarray(value, state.hyperparams[key].dtype)
        again, _ = step(grads, state, params, **extra)
        assert np.abs(flat(again) - flat(unchanged)).max() > 0.01

    @pytest.mark.usefixtures("mixed_dtypes")
    def test_learning_rate_may_be_a_schedule(self) -> None:
        tx = pcn_jax.pcngd(optax.piecewise_constant_schedule(1.0, {1: 0.25}))
        params, grads = jnp.zeros(1), jnp.array([[3.0], [4.0]])
        first, state = tx.update(grads, tx.init(params), params)
        second, _ = tx.update(grads, state, params)
        assert (first.tolist(), second.tolist()) == ([-2.0], [-0.5])

    def test_nesterov_and_momentum_are_those_of_optax(self) -> None:
        params, grads = jnp.zeros(1), jnp.array([[3.0], [4.0]])
        tx = pcn_jax.pcnsgd(1.0, momentum=0.5, nesterov=True)
        first, state = tx.update(grads, tx.init(params), params)
        second, _ = tx.update(grads, state, params)
        assert (first.tolist(), second.tolist()) == ([-3.0], [-3.5])


class TestErrors:
    """Each says what was given and what to do."""

    @every_transformation
    def test_without_params(self, name: str) -> None:
        tx, (params, grads, extra) = TRANSFORMATIONS[name](), problem(0)
        with pytest.raises(ValueError, match=r"needs the parameters.*update\(class_g"):
            tx.update(grads, tx.init(params), **extra)

    @every_transformation
    @pytest.mark.parametrize("shape", [(2,), (2, 3), ()])
    def test_ordinary_gradient(self, name: str, shape: tuple[int, ...]) -> None:
        """On a model of one array it would be broadcast silently."""
        tx, params = TRANSFORMATIONS[name](), jnp.zeros(shape)
        with pytest.raises(ValueError, match="This is an ordinary gradient") as error:
            tx.update(jnp.ones(shape), tx.init(params), params)
        assert f"updates has shape {shape}" in str(error.value)
        assert "pcn_jax.per_class_value_and_grad" in str(error.value)

    @every_transformation
    def test_class_axis_in_the_wrong_place(self, name: str) -> None:
        tx, params = TRANSFORMATIONS[name](), {"w": jnp.zeros((3, 4))}
        grads = {"w": jnp.ones((3, 4, 2))}
        with pytest.raises(ValueError, match=r"updates\['w'\] has shape \(3, 4, 2\)"):
            tx.update(grads, tx.init(params), params)

    @every_transformation
    def test_differing_class_axes(self, name: str) -> None:
        tx, params = TRANSFORMATIONS[name](), {"a": jnp.zeros(3), "b": jnp.zeros(3)}
        grads = {"a": jnp.ones((2, 3)), "b": jnp.ones((4, 3))}
        with pytest.raises(ValueError, match=r"updates\['b'\] has 4, the .* it 2"):
            tx.update(grads, tx.init(params), params)

    @every_transformation
    def test_tree_unlike_the_parameters(self, name: str) -> None:
        tx, params = TRANSFORMATIONS[name](), {"a": jnp.zeros(3)}
        with pytest.raises(
            ValueError, match=r"updates of the structure .*'b'.* params"
        ):
            tx.update({"b": jnp.ones((2, 3))}, tx.init(params), params)

    @every_transformation
    def test_a_part_that_is_masked(self, name: str) -> None:
        """The norm would be that of the rest, and the rest alone be scaled."""
        tx = TRANSFORMATIONS[name]()
        params, grads, extra = problem(0)
        mask = dict.fromkeys(params, True) | {next(iter(params)): False}
        labels = {key: "some" if kept else "others" for key, kept in mask.items()}
        others = {"some": tx, "others": optax.set_to_zero()}
        for wrapped in optax.masked(tx, mask), optax.multi_transform(others, labels):
            with pytest.raises(ValueError, match=r"masked .* behind sum_over_classes"):
                wrapped.update(grads, wrapped.init(params), params, **extra)

    def test_are_raised_while_tracing(self) -> None:
        tx, params = pcn_jax.pcngd(0.1), jnp.zeros(3)
        with pytest.raises(ValueError, match="scale_by_class_norm works on class grad"):
            jax.jit(tx.update)(params, tx.init(params), params)

    def test_a_link_behind_the_sum(self) -> None:
        tx = optax.chain(pcn_jax.sum_over_classes(), pcn_jax.scale_by_class_norm())
        with pytest.raises(ValueError, match="or one summed by a link before"):
            apply(tx, jnp.ones((2, 3)))

    @pytest.mark.parametrize("name", ["clip_by_class_norm", "scale_by_class_frequency"])
    def test_class_counts(self, name: str) -> None:
        tx, params, grads = LINKS[name](), jnp.zeros(3), jnp.ones((2, 3))
        state = tx.init(params)
        with pytest.raises(ValueError, match=f"{name} needs the class counts.*value.c"):
            tx.update(grads, state, params)
        for counts, shape in [(5, r"\(\)"), ([1, 2, 3], r"\(3,\)")]:
            with pytest.raises(ValueError, match=rf"shape \(2,\), got {shape}"):
                tx.update(grads, state, params, class_counts=counts)
        message = f"class_counts of {name} must be 0 or more, got -1"
        for array in (list, np.array, jnp.array):
            with pytest.raises(ValueError, match=message):
                tx.update(grads, state, params, class_counts=array([3, -1]))

    @pytest.mark.parametrize("published_code", [False, True])
    def test_reference(self, published_code: bool) -> None:
        tx = pcn_jax.scale_by_class_alignment(published_code=published_code)
        params, grads = {"w": jnp.zeros(3)}, {"w": jnp.ones((2, 3))}
        state = tx.init(params)
        with pytest.raises(ValueError, match=r"whole training set.*pcn_jax.accumulate"):
            tx.update(grads, state, params)
        for other in ({"w": jnp.ones(3)}, {"w": jnp.ones((4, 3))}, {"v": grads["w"]}):
            with pytest.raises(ValueError, match="reference must be shaped like"):
                tx.update(grads, state, params, reference=other)

    @pytest.mark.parametrize("min_alignment", [0, -0.1, 1e-30, 1.01, np.nan, np.inf])
    def test_min_alignment(self, min_alignment: float) -> None:
        with pytest.raises(ValueError, match=r"in \[1e-6, 1\], got .*(0|1|nan|inf)"):
            pcn_jax.scale_by_class_alignment(min_alignment=min_alignment)

    @pytest.mark.parametrize("alias", [pcn_jax.pcngd, pcn_jax.pcnsgd])
    @pytest.mark.parametrize("rate", [None, -0.1, np.float32(-1), jnp.nan, "0.1"])
    def test_learning_rate(self, alias: Any, rate: Any) -> None:
        with pytest.raises(ValueError, match=r"learning_rate must be 0 or .* schedule"):
            alias(rate)

    @pytest.mark.parametrize("max_norm", [-1, -1e-9, np.nan, np.inf, np.float32(-1)])
    def test_max_norm(self, max_norm: float) -> None:
        with pytest.raises(ValueError, match="must be 0 or more and finite, got"):
            pcn_jax.clip_by_class_norm(max_norm)

    @pytest.mark.parametrize("num_classes", [1, 3])
    def test_the_angle_needs_two_classes(self, num_classes: int) -> None:
        with pytest.raises(ValueError, match=f"two classes, got {num_classes}. Leave"):
            apply(pcn_jax.scale_by_class_angle(), jnp.ones((num_classes, 3)))


class TestInvariants:
    """What a correct implementation of PCN has, over random class gradients."""

    @many_examples
    @given(rows, st.floats(-20, 20), st.integers(0, 3))
    def test_scale_of_one_class_loss(
        self, matrix: np.ndarray, exponent: float, row: int
    ) -> None:
        scaled = matrix.copy()
        scaled[row] *= np.float32(10.0**exponent)
        chex.assert_trees_all_close(
            direction(tree_of(scaled)), direction(tree_of(matrix)), atol=1e-5
        )

    @pytest.mark.parametrize("factor", [1e-20, 1e20])
    def test_scale_of_one_class_loss_through_the_gradient(self, factor: float) -> None:
        x = jnp.array([[1.0, 2.0], [3.0, -1.0], [0.5, 1.0]])
        labels = jnp.array([0, 1, 1])

        def path(factor: float) -> Any:
            scale = jnp.array([1.0, factor])

            def loss_fn(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
                return scale[y] * jax.nn.softplus(x @ w)

            grads = pcn_jax.per_class_value_and_grad(loss_fn, 2)(jnp.ones(2), x, labels)
            return direction(grads[1])

        np.testing.assert_allclose(path(factor), path(1.0), rtol=1e-5)

    @many_examples
    @given(rows)
    def test_no_longer_than_the_number_of_classes(self, matrix: np.ndarray) -> None:
        length = np.linalg.norm(flat(direction(tree_of(matrix))))
        assert length <= matrix.any(axis=1).sum() * (1 + 1e-6)

    @many_examples
    @given(nonzero_rows, st.integers(0, 3))
    def test_one_class_is_the_normalised_gradient(
        self, matrix: np.ndarray, row: int
    ) -> None:
        alone = np.zeros_like(matrix)
        alone[row] = matrix[row]
        unit = matrix[row] / np.linalg.norm(matrix[row].astype(np.float64))
        chex.assert_trees_all_close(
            direction(tree_of(alone)), tree_of(unit.astype(np.float32)), atol=1e-6
        )

    @many_examples
    @given(nonzero_rows)
    def test_progress_of_a_class_is_its_sum_of_cosines(
        self, matrix: np.ndarray
    ) -> None:
        """`⟨d, g_l/‖g_l‖⟩ = 1 + Σ_{k≠l} cos α_lk`."""
        spread = matrix_of(tree_of(matrix))
        d = flat(direction(tree_of(matrix)))
        progress = spread @ d / np.linalg.norm(spread, axis=1)
        np.testing.assert_allclose(progress, cosines_of(matrix).sum(axis=1), atol=1e-5)

    @pytest.mark.parametrize(
        "name", ["clip_by_class_norm", "scale_by_class_frequency", "class_momentum"]
    )
    def test_only_the_shares_of_the_counts_matter(self, name: str) -> None:
        """So they may be fractions, even below 1."""
        _, grads, extra = problem(0)
        counts = extra["class_counts"].astype(np.float32)
        whole, fractions = (
            matrix_of(apply_named[name](grads, counts=c, reference=grads))
            for c in (counts, counts / 100)
        )
        np.testing.assert_allclose(fractions, whole, rtol=1e-6)

    @every_scaling
    @many_examples
    @given(matrix=rows, reference=rows, order=st.permutations(range(4)))
    def test_names_of_the_classes_do_not_matter(
        self, name: str, matrix: np.ndarray, reference: np.ndarray, order: list[int]
    ) -> None:
        counts = np.array([7, 5, 2, 1])
        before = apply_named[name](
            tree_of(matrix), counts=counts, reference=tree_of(reference)
        )
        after = apply_named[name](
            tree_of(matrix[order]),
            counts=counts[order],
            reference=tree_of(reference[order]),
        )
        chex.assert_trees_all_close(
            jax.tree.map(lambda x: x[np.array(order)], before), after, rtol=1e-5
        )

    @pytest.mark.parametrize("name", LINKS)
    def test_order_of_the_batch_does_not_matter(self, name: str) -> None:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(12, 5)).astype(np.float32)
        y, order = np.array([0] * 8 + [1] * 4), rng.permutation(12)
        in_order, shuffled = (
            class_grads(np.ones(5, np.float32), x[k], y[k]) for k in (slice(12), order)
        )
        reference = rng.normal(size=(2, 5)).astype(np.float32)
        before, after = (
            apply_named[name](grads, counts=value.counts, reference=reference)
            for value, grads in (in_order, shuffled)
        )
        np.testing.assert_allclose(before, after, rtol=1e-4, atol=1e-6)

    @every_scaling
    @many_examples
    @given(matrix=rows, absent=st.sets(st.integers(0, 3)))
    def test_an_absent_class_contributes_exactly_zero(
        self, name: str, matrix: np.ndarray, absent: set[int]
    ) -> None:
        counts = np.array([7, 5, 2, 1])
        matrix = matrix.copy()
        for row in absent:
            matrix[row], counts[row] = 0, 0
        reference = tree_of(np.ones_like(matrix))
        scaled = matrix_of(
            apply_named[name](tree_of(matrix), counts=counts, reference=reference)
        )
        assert np.isfinite(scaled).all()
        assert not scaled[~matrix.any(axis=1)].any()

    @pytest.mark.parametrize(
        "name", [n for n in SCALINGS if n != "scale_by_class_frequency"]
    )
    def test_an_absent_class_changes_nothing_for_the_others(self, name: str) -> None:
        present = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
        with_absent = np.insert(present, 1, 0, axis=0)
        reference = np.roll(present, 1, axis=1)
        expected = apply_named[name](
            tree_of(present), counts=np.array([6, 3, 1]), reference=tree_of(reference)
        )
        got = apply_named[name](
            tree_of(with_absent),
            counts=np.array([6, 0, 3, 1]),
            reference=tree_of(np.insert(reference, 1, 9, axis=0)),
        )
        others = jax.tree.map(lambda x: x[np.array([0, 2, 3])], got)
        chex.assert_trees_all_close(others, expected, rtol=1e-6)

    @pytest.mark.parametrize("name", ALIASES)
    def test_absent_classes_leave_no_nan_in_any_state(self, name: str) -> None:
        tx, (params, grads, extra) = ALIASES[name](), problem(0)
        state = tx.init(params)
        update = jax.jit(tx.update)
        for present in ([1.0, 0.0], [0.0, 0.0], [1.0, 1.0]):
            some = scale_rows(grads, jnp.array(present))
            updates, state = update(some, state, params, **extra)
            chex.assert_tree_all_finite((updates, state))

    @every_transformation
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_a_gradient_that_is_not_finite_is_not_hidden(
        self, name: str, bad: float
    ) -> None:
        grads = jnp.array([[bad, 1.0], [3.0, 4.0]])
        assert not np.isfinite(apply_named[name](grads)).all()

    @pytest.mark.parametrize("name", ["scale_by_class_norm", "clip_by_class_norm"])
    def test_a_gradient_that_is_not_finite_spoils_its_own_class_only(
        self, name: str
    ) -> None:
        scaled = apply_named[name](jnp.array([[np.nan, 1.0], [3.0, 4.0]]))
        np.testing.assert_allclose(scaled, [[np.nan] * 2, [0.6, 0.8]], rtol=1e-6)

    @many_examples
    @given(rows)
    def test_class_means_by_their_share_are_the_plain_gradient(
        self, inputs: np.ndarray
    ) -> None:
        """Rows carry `b_l/b`, so their sum is the gradient of the mean loss."""
        w, labels = np.ones(5, np.float32), np.array([0, 1, 1, 1])
        _, grads = class_grads(w, inputs, labels)
        plain = apply_named["sum_over_classes"](grads)
        whole = mean_gradient(w, inputs, labels)
        np.testing.assert_allclose(plain, whole, atol=1e-5)
        of_classes = [mean_gradient(w, inputs[k], labels[k]) for k in CLASSES]
        shares = 0.25 * of_classes[0] + 0.75 * of_classes[1]
        np.testing.assert_allclose(plain, shares, atol=1e-5)

    def test_sum_of_16_bit_rows_is_kept_in_float32(self) -> None:
        ones = jnp.ones((1001, 2), jnp.bfloat16)  # in bfloat16 it stops at 256
        assert apply_named["sum_over_classes"](ones).tolist() == [1000.0, 1000.0]


@functools.partial(jax.jit, static_argnums=0)
def clip(max_norm: float, grads: Any, counts: Any) -> Any:
    return apply(pcn_jax.clip_by_class_norm(max_norm), grads, counts=counts)


class TestClipping:
    """Per-class clipping is normalising at one end and re-weighting at the other."""

    counts = st.lists(st.integers(1, 1000), min_size=4, max_size=4).map(np.array)

    @many_examples
    @given(rows, counts)
    def test_at_zero_is_normalising(
        self, matrix: np.ndarray, counts: np.ndarray
    ) -> None:
        clipped = clip(0.0, tree_of(matrix), counts)
        normalised = apply_named["scale_by_class_norm"](tree_of(matrix))
        chex.assert_trees_all_close(clipped, normalised, rtol=1e-6)

    @many_examples
    @given(rows, counts)
    def test_at_a_large_norm_is_reweighting(
        self, matrix: np.ndarray, counts: np.ndarray
    ) -> None:
        """With the learning rate multiplied by `C / max_norm`."""
        clipped = clip(1e6, tree_of(matrix), counts)
        weighted = apply_named["scale_by_class_frequency"](
            tree_of(matrix), counts=counts
        )
        expected = jax.tree.map(lambda g: g * (4 / 1e6), weighted)
        chex.assert_trees_all_close(clipped, expected, rtol=1e-5)

    @many_examples
    @given(rows, counts)
    def test_rows_are_no_longer_than_one(
        self, matrix: np.ndarray, counts: np.ndarray
    ) -> None:
        clipped = matrix_of(clip(2.0, tree_of(matrix), counts))
        assert np.linalg.norm(clipped, axis=1).max() <= 1 + 1e-6

    def test_is_that_of_optax_on_class_means_over_the_norm(self) -> None:
        matrix = np.diag([0.25, 1.0, 4.0, 0.0]).astype(np.float32)
        counts = np.array([4, 2, 1, 1])
        means = matrix * (counts.sum() / counts)[:, None].astype(np.float32)
        optax_clip = optax.clip_by_global_norm(2.0)
        for row, mean in zip(clip(2.0, matrix, counts), means, strict=True):
            clipped, _ = optax_clip.update(jnp.asarray(mean), optax_clip.init(mean))
            np.testing.assert_allclose(row, clipped / 2, rtol=1e-6)

    def test_takes_gradients_of_any_length(self) -> None:
        clipped = clip(
            1e-21, jnp.array([[1e20], [1e-20], [1e-22]]), np.array([1, 1, 1])
        )
        np.testing.assert_allclose(clipped, [[1.0], [1.0], [0.3]], rtol=1e-5)


class TestFrequency:
    """Re-weighting is the gradient of the class-balanced loss."""

    def test_takes_no_norms(self) -> None:
        matrix = np.full((2, 1000), 3e37, np.float32)  # whose norm is infinite
        matrix[0, 0] = np.inf
        same = apply_named["scale_by_class_frequency"](matrix, counts=np.full(2, 7))
        np.testing.assert_array_equal(same, matrix)

    def test_changes_nothing_where_classes_are_balanced(self) -> None:
        matrix = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
        same = apply_named["scale_by_class_frequency"](matrix, counts=np.full(4, 25))
        np.testing.assert_allclose(same, matrix, rtol=1e-6)

    def test_gives_the_gradient_of_the_class_balanced_loss(self) -> None:
        inputs = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
        labels, w = np.array([0, 1, 1, 1]), np.ones(5, np.float32)
        value, grads = class_grads(w, inputs, labels)
        weighted = apply_named["scale_by_class_frequency"](grads, counts=value.counts)
        balanced = sum(mean_gradient(w, inputs[k], labels[k]) for k in CLASSES) / 2
        np.testing.assert_allclose(weighted.sum(axis=0), balanced, rtol=1e-5, atol=1e-6)


@functools.partial(jax.jit, static_argnums=0)
def align(min_alignment: float, grads: Any, reference: Any) -> Any:
    tx = pcn_jax.scale_by_class_alignment(min_alignment=min_alignment)
    return apply(tx, grads, reference=reference)


def at_angle(*cosines: float) -> tuple[np.ndarray, np.ndarray]:
    """Unit class gradients, and references at the given cosines to them."""
    p = np.array(cosines)
    units = np.stack([p, np.sqrt(1 - p**2)], axis=1).astype(np.float32)
    return units, np.tile(np.array([[7, 0]], np.float32), (len(p), 1))


class TestAlignment:
    """The table of the docstring row by row, and its bounds."""

    @pytest.mark.parametrize(
        ("alignment", "weight"),
        [
            (1.0, 1.0),  # 1/p from min_alignment on
            (0.5, 2.0),
            (0.125, 8.0),
            (-0.5, -2.0),  # turned round
            (-1.0, -1.0),
            (0.0625, 4.0),  # p / min_alignment² below it
            (-0.0625, -4.0),
            (0.0, 0.0),
        ],
    )
    def test_weight_of_the_table(self, alignment: float, weight: float) -> None:
        units, reference = at_angle(alignment)
        aligned = align(0.125, units, reference)
        np.testing.assert_allclose(aligned, weight * units, rtol=1e-4)

    def test_absent_or_zero_rows_stay_zero(self) -> None:
        units, reference = at_angle(0.5, 0.5, 0.5)
        units[0], reference[1] = 0, 0
        aligned = align(0.1, units, reference)
        np.testing.assert_allclose(aligned, [[0, 0], [0, 0], 2 * units[2]], rtol=1e-5)

    @pytest.mark.parametrize("min_alignment", [1e-3, 1e-6])
    def test_small_bounds_make_no_nan(self, min_alignment: float) -> None:
        units, reference = at_angle(0.5, 0.0, 0.5)
        units[2] = 0
        aligned = align(min_alignment, units, reference)
        np.testing.assert_allclose(aligned, [2 * units[0], [0, 0], [0, 0]], rtol=1e-5)

    @many_examples
    @given(nonzero_rows, nonzero_rows, st.sampled_from([0.01, 0.1, 0.5, 1.0]))
    def test_never_steps_against_the_true_gradient_and_is_bounded(
        self, noisy: np.ndarray, true: np.ndarray, min_alignment: float
    ) -> None:
        units = noisy / np.linalg.norm(noisy, axis=1, keepdims=True)
        aligned = matrix_of(align(min_alignment, tree_of(units), tree_of(true)))
        along = (aligned * matrix_of(tree_of(true))).sum(axis=1)
        assert (along >= -1e-5 / min_alignment).all()
        lengths = np.linalg.norm(aligned, axis=1)
        assert (lengths <= 1 / min_alignment * (1 + 1e-5)).all()

    @many_examples
    @given(nonzero_rows, st.floats(-20, 20))
    def test_length_of_the_reference_does_not_matter(
        self, true: np.ndarray, exponent: float
    ) -> None:
        noisy = tree_of(np.roll(true, 1, axis=1))
        longer = tree_of(true * np.float32(10.0**exponent))
        chex.assert_trees_all_close(
            align(0.1, noisy, longer), align(0.1, noisy, tree_of(true)), atol=1e-3
        )

    def test_by_one_sees_what_the_true_gradient_sees(self) -> None:
        """PCNSGD+R with noise at a right angle moves as far as PCNGD along it."""
        units, reference = at_angle(0.25, 1.0)
        aligned = align(0.1, units, reference)
        np.testing.assert_allclose(aligned[:, 0], [1.0, 1.0], rtol=1e-5)

    def test_published_code_multiplies_by_the_others(self) -> None:
        units, reference = at_angle(0.5, 0.25, -0.125)
        name = "scale_by_class_alignment, published"
        scaled = apply_named[name](units, reference=reference)
        weights = np.array([[0.25 * -0.125], [0.5 * -0.125], [0.5 * 0.25]])
        np.testing.assert_allclose(scaled, weights * units, rtol=1e-5)

    def test_published_code_leaves_zero_rows_out(self) -> None:
        units, reference = at_angle(0.5, 0.25, 0.125)
        units[2] = 0
        name = "scale_by_class_alignment, published"
        scaled = apply_named[name](units, reference=reference)
        expected = np.array([[0.25], [0.5], [0.0]]) * units
        np.testing.assert_allclose(scaled, expected, rtol=1e-5)

    def test_published_code_has_the_direction_of_the_inverse(self) -> None:
        units, reference = at_angle(0.5, 0.25, 0.75)
        name = "scale_by_class_alignment, published"
        published = apply_named[name](units, reference=reference)
        ratio = np.asarray(published / align(0.1, units, reference))
        np.testing.assert_allclose(ratio, 0.5 * 0.25 * 0.75, rtol=1e-4)


class TestAngle:
    """The two-class step-size rule of the published code."""

    @pytest.mark.parametrize("cosine", [-1.0, -0.5, 0.0, 0.5, 1.0])
    def test_step_is_that_of_the_published_rule(self, cosine: float) -> None:
        """`η (1 + cos α)` times a direction of length `√(2 (1 + cos α))`."""
        units, (reference, _) = at_angle(cosine, 1.0)
        grads = jnp.stack([3 * units[0], reference])
        rule = optax.chain(
            pcn_jax.scale_by_class_norm(), pcn_jax.scale_by_class_angle()
        )
        step = apply(optax.chain(rule, pcn_jax.sum_over_classes()), grads)
        length = (1 + cosine) * np.sqrt(2 * (1 + cosine))
        np.testing.assert_allclose(jnp.linalg.norm(step), length, atol=1e-5)

    def test_of_an_absent_class_is_a_right_one(self) -> None:
        grads = jnp.array([[3.0, 4.0], [0.0, 0.0]])
        same = apply_named["scale_by_class_angle"](grads)
        np.testing.assert_array_equal(same, grads)


class TestRestrictions:
    """What the docstrings warn of."""

    inputs = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.5], [-0.5, 2.0]])
    labels = jnp.array([0, 1, 0, 1])
    params = jnp.array([1.0, -2.0])

    @pytest.mark.usefixtures("mixed_dtypes")
    @pytest.mark.xfail(strict=True, raises=ValueError)
    def test_multi_steps_around_a_chain(self) -> None:
        """It adds up gradients in the shape of the parameters."""
        tx = optax.MultiSteps(pcn_jax.pcnsgd(0.1), every_k_schedule=2)
        _, grads = class_grads(self.params, self.inputs, self.labels)
        tx.update(grads, tx.init(self.params), self.params)

    @pytest.mark.usefixtures("mixed_dtypes")
    def test_multi_steps_behind_the_sum_normalise_each_part(self) -> None:
        """Unlike `accumulate`, which gives the step of the whole batch."""
        params, batch = self.params, (self.inputs, self.labels)
        whole = direction(class_grads(params, *batch)[1])
        in_parts = pcn_jax.accumulate(class_grads, 2)(params, *batch)[1]
        np.testing.assert_allclose(direction(in_parts), whole, rtol=1e-5)

        behind = optax.chain(
            pcn, optax.MultiSteps(optax.sgd(1.0), 2).gradient_transformation()
        )
        state, step = behind.init(params), jax.jit(behind.update)
        for part in (slice(0, 2), slice(2, 4)):
            _, grads = class_grads(params, self.inputs[part], self.labels[part])
            updates, state = step(grads, state, params)
        assert np.linalg.norm(updates + whole) > 0.1 * np.linalg.norm(whole)
