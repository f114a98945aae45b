"""The balanced gradient: what the explicit class gradients give, by another way."""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from balanced_by_chain import (
    EVERY,
    LINKS,
    assert_as_by_a_chain,
    assert_close,
    explicit,
    fused,
    reference_of,
)
from fused_losses import (
    CASES,
    LABELS,
    NUM_CLASSES,
    Case,
    cross_entropy,
    in_float64,
    mlp,
    normal,
)
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import pcn_jax
from pcn_jax import pcn_value_and_grad, weights
from pcn_jax.fused import gradients, plan


class TestEquality:
    """In float64, with everything that can be asked for."""

    @pytest.mark.parametrize("name", EVERY)
    def test_every_loss(self, name: str) -> None:
        with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
            loss, *given = EVERY[name]

            @jax.jit
            def both(params: Any, inputs: Any, args: Any) -> Any:
                case = Case(loss, params, inputs, args)
                value, grads, by_chain = explicit(case, LINKS["norm"][0])
                reference = reference_of(grads)
                expected = {
                    "norms": pcn_jax.class_norms(grads),
                    "cosines": pcn_jax.class_cosines(grads),
                    "alignment": pcn_jax.class_alignment(grads, reference),
                }
                plain, gramian = fused(case), fused(case, with_gramian=True)
                with_reference = fused(case, reference=reference)
                return (plain, gramian, with_reference), value, by_chain, expected

            found, value, by_chain, expected = both(*in_float64(given))
            for _, direction in found:
                assert_close(direction, by_chain)
            (plain, _), (gramian, _), (with_reference, _) = found
            assert_close(plain.losses, value.losses)
            assert plain.counts.tolist() == value.counts.tolist()
            measured = {
                "norms": plain.norms,
                "cosines": gramian.statistics.cosines,
                "alignment": with_reference.statistics.alignment,
            }
            assert_close(measured, expected, atol=1e-12)

    @pytest.mark.parametrize(
        "name",
        [
            "conv",
            "strided conv",
            "grouped conv",
            "attention",
            "one matrix each",
            "layers",
            "one layer again",
            "frames",
        ],
    )
    def test_the_ways_of_accelerators(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(plan, "is_cpu", lambda: False)
        assert_as_by_a_chain(name)

    def test_norms_of_rows_that_are_too_large_to_keep(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(plan, "_CACHE_SIZE", 0)
        case = CASES["one matrix each"]
        chosen = pcn_jax.pcn_plan(case.loss, NUM_CLASSES)(
            case.params, case.inputs, LABELS
        )
        assert "stream" in str(chosen)
        assert_as_by_a_chain("one matrix each")

    @pytest.mark.parametrize("name", ["mlp", "attention"])
    def test_small_parameters_by_pairs(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gradients, "_MANY_NUMBERS", 0)
        monkeypatch.setattr(gradients, "_LARGE", 5)
        assert_as_by_a_chain(name)

    @pytest.mark.parametrize(
        "name", ["mlp", "attention", "conv", "one matrix each", "frames"]
    )
    @pytest.mark.parametrize("block", [1, 5])
    def test_pairs_block_by_block(
        self, name: str, block: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gradients, "block_size", lambda *_: block)
        monkeypatch.setattr(gradients, "_MANY_NUMBERS", 0)
        assert_as_by_a_chain(name)

    @pytest.mark.parametrize(
        "name", ["mlp", "attention", "conv", "recurrent", "one layer again", "frames"]
    )
    def test_rows_group_by_group(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for other in ("_cost_of_pairs", "_cost_of_masks"):
            monkeypatch.setattr(plan, other, lambda *_, **__: math.inf)
        case = EVERY[name]
        chosen = pcn_jax.pcn_plan(case.loss, NUM_CLASSES)(
            case.params, case.inputs, LABELS
        )
        assert "at once" in str(chosen)
        assert "pairs" not in str(chosen)
        assert_as_by_a_chain(name)

    @pytest.mark.parametrize("path", ["fused", "masked"])
    @pytest.mark.parametrize("name", LINKS)
    def test_the_weights_of_every_link(self, name: str, path: str) -> None:
        links, class_weights = LINKS[name]
        with jax.enable_x64(True):
            case = Case(CASES["mlp"].loss, *in_float64(tuple(CASES["mlp"][1:])))
            _, grads, direction = explicit(case, links)
            reference = reference_of(grads)
            _, found = fused(
                case, weights=class_weights, path=path, reference=reference
            )
            assert_close(found, direction)

    @pytest.mark.parametrize("name", ["mlp", "conv", "attention", "tied"])
    def test_float32(self, name: str) -> None:
        case = CASES[name]
        _, _, direction = explicit(case, LINKS["norm"][0])
        _, found = fused(case)
        assert_close(found, direction, atol=1e-5)

    def test_bfloat16(self) -> None:
        case = CASES["conv"]
        params, inputs = jax.tree.map(
            lambda x: x.astype(jnp.bfloat16), (case.params, case.inputs)
        )
        with jax.numpy_dtype_promotion("standard"):
            case = Case(case.loss, params, inputs)
            _, _, direction = explicit(case, LINKS["norm"][0])
            value, found = fused(case)
        assert value.norms.dtype == jnp.float32
        assert_close(found, direction, atol=0.02)

    def test_weights_may_be_any_function_of_the_gramian(self) -> None:
        case = CASES["mlp"]
        _, grads, _ = explicit(case, [])

        def towards_all(statistics: pcn_jax.ClassStatistics) -> jax.Array:
            return statistics.cosines.sum(axis=1)

        value, direction = fused(case, weights=towards_all, with_gramian=True)
        link = pcn_jax.scale_by_class_weights(towards_all, with_gramian=True)
        assert_close(explicit(case, [link])[2], direction, atol=1e-5)
        expected = jax.tree.map(
            lambda g: jnp.tensordot(pcn_jax.class_cosines(grads).sum(axis=1), g, 1),
            grads,
        )
        assert_close(direction, expected, atol=1e-5)
        assert value.weights.shape == (NUM_CLASSES,)


class TestBatches:
    """Whatever the labels are."""

    @pytest.mark.parametrize("name", ["mlp", "conv", "attention", "recurrent"])
    @pytest.mark.parametrize(
        "labels",
        [
            pytest.param([1] * 7, id="one class"),
            pytest.param([2, -1, 0, -3, 2, 2, 0], id="padding and an absent class"),
            pytest.param([-1] * 7, id="nothing but padding"),
            pytest.param([40, 7, 99, 7, 7, 0, -1], id="more classes than examples"),
        ],
    )
    def test_any_labels(self, name: str, labels: list[int]) -> None:
        case, number = CASES[name], 100
        given = np.asarray(labels, np.int32)

        def loss(params: Any, x: Any, y: jax.Array) -> jax.Array:
            return CASES[name].loss(params, x, jnp.clip(y, 0, 2))

        case = case._replace(loss=loss)
        value, grads, direction = explicit(case, LINKS["norm"][0], given, number)
        found, fused_direction = fused(case, given, num_classes=number)
        assert_close(fused_direction, direction, atol=1e-5)
        assert_close(found.losses, value.losses, atol=1e-6)
        assert_close(found.norms, pcn_jax.class_norms(grads), atol=1e-6)
        assert found.counts.tolist() == value.counts.tolist()

    @pytest.mark.parametrize("name", ["mlp", "conv", "attention", "gated", "chosen"])
    def test_of_one_example(self, name: str) -> None:
        case = EVERY[name]._replace(inputs=EVERY[name].inputs[:1])
        value, _, direction = explicit(case, LINKS["norm"][0], LABELS[:1])
        found, fused_direction = fused(case, LABELS[:1])
        assert_close(fused_direction, direction, atol=1e-6)
        assert_close(found.losses, value.losses, atol=1e-6)

    @pytest.mark.parametrize("num_classes", [NUM_CLASSES, 50])
    def test_neither_the_order_nor_the_names_of_classes_matter(
        self, num_classes: int
    ) -> None:
        case, order = CASES["conv"], np.array([3, 1, 6, 0, 2, 5, 4])
        names = np.array([2, 0, 1], np.int32)
        _, direction = fused(case, groups=LABELS, num_classes=num_classes)
        shuffled = case._replace(inputs=case.inputs[order])
        _, again = fused(
            shuffled,
            LABELS[order],
            groups=names[LABELS][order],
            num_classes=num_classes,
        )
        assert_close(again, direction, atol=1e-6)

    def test_rows_finer_than_classes(self) -> None:
        case = CASES["mlp"]
        halves = np.array([0, 4, 1, 0, 2, 1, 5], np.int32)

        def loss(params: Any, inputs: Any, rows: jax.Array) -> jax.Array:
            return case.loss(params, inputs, jnp.asarray(LABELS))

        _, grads, _ = explicit(case._replace(loss=loss), [], halves, 6)
        value, _ = fused(case, groups=halves, num_classes=6, with_gramian=True)
        expected = pcn_jax.class_cosines(grads)
        assert_close(value.statistics.cosines, expected, atol=1e-5)
        assert value.counts.tolist() == [2, 2, 1, 0, 1, 1]

    @pytest.mark.parametrize("name", ["mlp", "conv"])
    @pytest.mark.parametrize("scale", [1e-20, 1e20])
    def test_the_scale_of_a_class_does_not_matter(
        self, name: str, scale: float
    ) -> None:
        case = CASES[name]
        _, direction = fused(case)

        def scaled(params: Any, x: Any, y: jax.Array) -> jax.Array:
            return case.loss(params, x, y) * jnp.where(y == 2, scale, 1)

        value, found = fused(case._replace(loss=scaled))
        assert_close(found, direction, atol=1e-5)
        assert np.isfinite(value.norms).all()

    def test_parameters_may_matter_far_less_than_others(self) -> None:
        """The gate is shut, so the cotangents there are 1e-22 of those elsewhere."""

        def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
            gate = jax.nn.sigmoid(x @ params["gate"] - 50)
            of_labels = 1 + y.astype(x.dtype)
            return jax.nn.logsumexp(x @ params["w"], axis=1) * of_labels + gate

        params = {"gate": jnp.ones(3), "w": jnp.ones((3, 2)) / 10}
        case = Case(loss, params, CASES["mlp"].inputs[:, :3])
        _, _, expected = explicit(case, LINKS["norm"][0])
        assert_close(fused(case)[1], expected, atol=1e-6)

    def test_an_exactly_zero_gradient_contributes_nothing(self) -> None:
        case = CASES["mlp"]

        def loss(params: Any, x: Any, y: jax.Array) -> jax.Array:
            return jnp.where(y == 0, 0, case.loss(params, x, y))

        _, _, direction = explicit(case._replace(loss=loss), LINKS["norm"][0])
        value, found = fused(case._replace(loss=loss))
        assert float(value.norms[0]) == float(value.weights[0]) == 0
        assert_close(found, direction, atol=1e-6)

    @pytest.mark.parametrize("with_gramian", [False, True])
    @pytest.mark.parametrize("rest", [0, 1e-7, 1e-6, 1e-5, 1e-4])
    def test_examples_that_cancel_never_make_a_long_step(
        self, rest: float, with_gramian: bool
    ) -> None:
        def squared_error(w: jax.Array, x: Any, y: jax.Array) -> jax.Array:
            return jnp.square(x["features"] @ w - x["targets"]).sum(axis=1)

        given: Any = {"num_classes": 2, "with_gramian": with_gramian}
        function = pcn_value_and_grad(squared_error, path="fused", **given)
        function, labels = jax.jit(function), np.zeros(64, np.int32)
        w = jnp.zeros((100, 1000))
        for seed in range(20):
            random = np.random.default_rng(seed)
            x = random.normal(size=100) + rest * random.normal(size=(64, 100))
            targets = np.arange(-31.5, 32)[:, None] * random.normal(size=1000)
            inputs: Any = {"features": x, "targets": targets}  # which sum to zero
            inputs = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), inputs)
            value, direction = function(w, inputs, labels)
            assert np.isfinite(value.norms).all()
            assert jnp.linalg.norm(direction) < 1.1
        plan_of = pcn_jax.pcn_plan(squared_error, **given)
        assert plan_of(w, inputs, labels).ways == (("params", "pairs"),)

    def test_norms_that_are_too_large_are_not_taken_for_none(self) -> None:
        w, x = jnp.ones((3, 2)), 1e20 * jnp.eye(3)
        _, direction = pcn_value_and_grad(
            lambda w, x, y: (x @ w).sum(axis=1), 3, path="fused"
        )(w, x, jnp.arange(3))
        assert jnp.all(jnp.isnan(direction))

    def test_small_losses_of_nets_in_float16(self) -> None:
        case = CASES["mlp"]

        def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
            half = jax.tree.map(lambda x: x.astype(jnp.float16), (params, x))
            losses: jax.Array = case.loss(*half, y)
            return 1e-4 * losses.astype(jnp.float32)

        small = case._replace(loss=loss)
        with jax.numpy_dtype_promotion("standard"):
            (_, found), (_, expected) = (
                fused(small, path=path) for path in ("fused", "masked")
            )
        assert_close(found, expected, atol=0.02)

    @pytest.mark.parametrize("path", ["fused", "masked"])
    def test_an_infinite_weight_of_an_absent_class_does_no_harm(
        self, path: str
    ) -> None:
        case, labels = CASES["mlp"], np.where(LABELS == 1, 0, LABELS)
        _, _, direction = explicit(case, LINKS["norm"][0], labels)
        value, found = fused(case, labels, weights=lambda s: 1 / s.norms, path=path)
        assert_close(found, direction, atol=1e-5)
        assert float(value.weights[1]) == 0

    @pytest.mark.parametrize("path", ["fused", "masked"])
    def test_rows_leave_the_labels_to_the_loss(self, path: str) -> None:
        case, targets = CASES["mlp"], jax.nn.one_hot(LABELS, NUM_CLASSES)

        def loss(params: Any, x: Any, targets: jax.Array) -> jax.Array:
            return case.loss(params, x, targets.argmax(axis=1))

        soft = case._replace(loss=loss)
        found = fused(soft, targets, groups=jnp.asarray(LABELS), path=path)
        assert_close(found, fused(case, path=path), atol=1e-6)

    @pytest.mark.parametrize("padding", [-(2**32), np.iinfo(np.int64).min])
    def test_padding_far_below_zero_is_no_class(self, padding: int) -> None:
        with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
            case = Case(CASES["mlp"].loss, *in_float64(tuple(CASES["mlp"][1:])))
            labels = np.where(np.arange(len(LABELS)) < 2, -1, LABELS).astype(np.int64)
            expected = fused(case, labels)
            found = fused(case, np.where(labels < 0, padding, labels))
            assert_close(found[1], expected[1], atol=0)
            assert found[0].counts.tolist() == expected[0].counts.tolist()

    @pytest.mark.parametrize("path", ["fused", "masked"])
    @pytest.mark.parametrize("label", [2**31, 2**32, 2**32 + 1])
    def test_labels_that_32_bits_cannot_hold_are_out_of_range(
        self, label: int, path: Any
    ) -> None:
        with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
            case = Case(CASES["mlp"].loss, *in_float64(tuple(CASES["mlp"][1:])))
            labels = jnp.asarray(LABELS, jnp.int64).at[0].set(label)
            value, direction = fused(case, labels, path=path)  # unknown when tracing
        assert all(np.isnan(x).any() for x in jax.tree.leaves(direction))
        assert np.isnan(value.losses).all()

    @pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float32])
    def test_inputs_of_another_dtype_than_parameters(self, dtype: Any) -> None:
        with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
            x, w = np.arange(21).reshape(7, 3) % 5, normal(4, 3, 3).astype(np.float64)
            case = Case(
                lambda w, x, y: cross_entropy(x @ w, y), jnp.asarray(w), x.astype(dtype)
            )
            (_, found), (_, expected) = (
                fused(case, path=path) for path in ("fused", "masked")
            )
            assert_close(found, expected)

    def test_numbers_have_the_dtype_of_class_gradients(self) -> None:
        with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
            w, x = jnp.ones((3, 2), jnp.float32), np.ones((4, 3))  # float64

            def loss(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
                return jnp.square(x @ w).sum(axis=1).astype(jnp.float32) + 0 * y

            for path in ("fused", "masked"):
                function = pcn_value_and_grad(loss, 2, with_gramian=True, path=path)
                value: Any
                value, direction = function(w, x, jnp.array([0, 1, 0, 1]))
                found = value.norms, value.weights, value.statistics.gramian, direction
                assert {x.dtype for x in found} == {jnp.dtype(jnp.float32)}

    def test_unsigned_labels_out_of_range(self) -> None:
        labels = jnp.asarray(LABELS, jnp.uint32).at[0].set(2**32 - 1)
        _, direction = fused(CASES["mlp"], labels)  # unknown when tracing
        assert all(np.isnan(x).any() for x in jax.tree.leaves(direction))

    @pytest.mark.parametrize("label", [NUM_CLASSES, 2**30, 2**31 - 1])
    @pytest.mark.parametrize("path", ["fused", "masked"])
    def test_labels_whose_halves_are_out_of_range(self, label: int, path: Any) -> None:
        smoothed = pcn_jax.weights.inverse_smoothed_norm(0.3)
        labels, state = jnp.asarray(LABELS).at[0].set(label), smoothed.init(NUM_CLASSES)
        _, direction = fused(
            CASES["mlp"], labels, weights=smoothed, state=state, path=path
        )
        assert all(np.isnan(x).any() for x in jax.tree.leaves(direction))

    def test_labels_out_of_range(self) -> None:
        case, labels = CASES["mlp"], np.array([0, 3, 0, 0, 1, 0, 2], np.int32)
        with pytest.raises(ValueError, match="below num_classes=3, got a label 3"):
            pcn_value_and_grad(case.loss, 3)(case.params, case.inputs, labels)
        _, direction = fused(case, jnp.asarray(labels))  # unknown when tracing
        assert all(np.isnan(x).any() for x in jax.tree.leaves(direction))


class TestUse:
    """Under transformations, and with auxiliary output."""

    def test_vmap_over_seeds(self) -> None:
        case = CASES["conv"]
        several = jax.tree.map(lambda x: jnp.stack([x, 2 * x, -x]), case.params)
        function = pcn_value_and_grad(case.loss, NUM_CLASSES, path="fused")
        function = jax.jit(function)
        _, together = jax.vmap(lambda p: function(p, case.inputs, LABELS))(several)
        for k in range(3):
            one = jax.tree.map(lambda x, k=k: x[k], several)
            _, alone = function(one, case.inputs, LABELS)
            assert_close(jax.tree.map(lambda x, k=k: x[k], together), alone, atol=1e-6)

    def test_scan_with_an_optimizer(self) -> None:
        case, optimizer = CASES["mlp"], optax.adam(0.1)
        function = pcn_value_and_grad(case.loss, NUM_CLASSES, path="fused")

        def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
            params, state = carry
            value, direction = function(params, case.inputs, jnp.asarray(LABELS))
            updates, state = optimizer.update(direction, state, params)
            return (optax.apply_updates(params, updates), state), value.loss

        start = case.params, optimizer.init(case.params)
        with jax.numpy_dtype_promotion("standard"):  # in Adam
            _, losses = jax.lax.scan(step, start, length=30)
        assert losses[-1] < 0.2 * losses[0]

    def test_is_traced_once(self) -> None:
        case, traced = CASES["mlp"], []

        def loss(*given: Any) -> jax.Array:
            traced.append(given)
            return case.loss(*given)

        function = jax.jit(pcn_value_and_grad(loss, NUM_CLASSES))
        function(case.params, case.inputs, LABELS)
        once = len(traced)
        function(case.params, 2 * case.inputs, LABELS[::-1].copy())
        assert len(traced) == once

    @pytest.mark.parametrize("path", ["fused", "masked"])
    def test_aux_may_mix_examples(self, path: Any) -> None:
        def loss(params: Any, x: Any, y: jax.Array) -> tuple[jax.Array, Any]:
            losses = mlp(params, x, y)
            return losses, {"mean": losses.mean(), "twice": 2 * losses, "n": 7}

        case = CASES["mlp"]
        function = pcn_value_and_grad(loss, NUM_CLASSES, has_aux=True, path=path)
        value, _ = jax.jit(function)(case.params, case.inputs, LABELS)
        expected = mlp(case.params, case.inputs, jnp.asarray(LABELS))
        np.testing.assert_allclose(value.aux["mean"], expected.mean(), rtol=1e-6)
        np.testing.assert_allclose(value.aux["twice"], 2 * expected, rtol=1e-6)
        assert int(value.aux["n"]) == 7
        np.testing.assert_allclose(value.loss, expected.mean(), rtol=1e-6)

    def test_closed_over_arrays(self) -> None:
        case, shift = CASES["mlp"], np.ones((1, 6), np.float32)

        def loss(params: Any, x: Any, y: jax.Array) -> jax.Array:
            return case.loss(params, x + shift, y)

        _, direction = fused(case._replace(loss=loss))
        _, expected = fused(case._replace(inputs=case.inputs + shift))
        assert_close(direction, expected, atol=1e-7)

    @pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto])
    @pytest.mark.parametrize("name", ["norm", "alignment", "smoothed"])
    def test_a_batch_that_is_split_over_a_mesh(self, kind: AxisType, name: str) -> None:
        # One device is enough: types forbid with it what they forbid with several.
        mesh = jax.make_mesh((1, 1), ("data", "model"), axis_types=(kind, kind))
        case, given = CASES["mlp"], {}
        rule: Any = weights.inverse_smoothed_norm(0.3)
        if name == "smoothed":
            given["state"] = rule.init(NUM_CLASSES)
        else:
            rule = LINKS[name][1]
            class_gradients = pcn_jax.per_class_value_and_grad(case.loss, NUM_CLASSES)
            grads = class_gradients(case.params, case.inputs, jnp.asarray(LABELS))[1]
            given["reference"] = reference_of(grads)
        function = jax.jit(pcn_value_and_grad(case.loss, NUM_CLASSES, weights=rule))
        expected = function(case.params, case.inputs, LABELS, **given)

        def put(x: Any, *axes: str | None) -> Any:
            spec = PartitionSpec(*axes)
            return jax.device_put(x, NamedSharding(mesh, spec))

        params = jax.tree.map(
            lambda x: put(x, *(None, "model")[-x.ndim :]), case.params
        )
        value, direction = function(
            params, put(case.inputs, "data"), put(LABELS, "data"), **given
        )
        assert_close((value, direction), expected, atol=1e-6)
        types = [jax.tree.map(jax.typeof, tree) for tree in (direction, params)]
        assert types[0] == types[1]


@pytest.mark.parametrize("mode", ["fill", "clip"])
@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.uint32, jnp.int8, jnp.int32])
def test_places_outside_of_a_table(dtype: Any, mode: str) -> None:
    """Also where the dtype of the places has no -1."""

    def loss(table: jax.Array, places: jax.Array, labels: jax.Array) -> jax.Array:
        found = table.at[places].get(mode=mode, fill_value=0)
        return cross_entropy(jnp.tanh(found.sum(axis=1)), labels)

    places = np.array([[0, 9], [1, 3], [2, 9], [3, 9], [4, 4], [9, 9], [0, 1]])
    places = np.where(places == 9, np.iinfo(dtype).max, places)
    given = normal(0, 5, NUM_CLASSES), jnp.asarray(places, dtype), LABELS
    assert "lookup" in str(pcn_jax.pcn_plan(loss, NUM_CLASSES)(*given))
    chex.assert_trees_all_close(
        *(
            pcn_value_and_grad(loss, NUM_CLASSES, path=path)(*given)
            for path in ("fused", "masked")
        ),
        rtol=1e-5,
    )


def test_the_label_of_each_example_is_looked_up_by_its_number() -> None:
    """A common way to write the cross-entropy."""

    def loss(kernel: jax.Array, x: jax.Array, labels: jax.Array) -> jax.Array:
        return -jax.nn.log_softmax(x @ kernel)[jnp.arange(len(labels)), labels]

    given = normal(0, 6, NUM_CLASSES), normal(1, len(LABELS), 6), LABELS
    found, expected = (
        jax.jit(pcn_value_and_grad(of, NUM_CLASSES, path="fused"))(*given)
        for of in (loss, lambda w, x, y: cross_entropy(x @ w, y))
    )
    chex.assert_trees_all_close(found, expected, rtol=1e-5)


def test_runs_under_the_checks_of_jax() -> None:
    case = CASES["mlp"]
    with jax.enable_checks(True):
        found, expected = (
            pcn_value_and_grad(case.loss, NUM_CLASSES, path=path)(
                case.params, case.inputs, LABELS
            )
            for path in ("fused", "masked")
        )
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("path", ["fused", "masked"])
def test_weights_with_a_state_of_their_own(path: Any) -> None:
    """By an average of the norms, without halves, and so with a reference, too."""

    def update(
        statistics: pcn_jax.ClassStatistics, mean: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        mean = 0.5 * mean + 0.5 * statistics.norms
        return 1 / mean, mean

    rule = weights.StatefulClassWeights(init=jnp.ones, update=update)
    case = CASES["mlp"]
    _, grads, _ = explicit(case, [])
    norms = pcn_jax.class_norms(grads)
    function = jax.jit(pcn_value_and_grad(mlp, NUM_CLASSES, weights=rule, path=path))
    state, mean = rule.init(NUM_CLASSES), np.ones(NUM_CLASSES)
    for _ in range(2):
        value, direction = function(
            case.params, case.inputs, LABELS, state=state, reference=grads
        )
        state, mean = value.state, 0.5 * mean + 0.5 * norms
        scaled = jax.tree.map(lambda g, m=mean: jnp.tensordot(1 / m, g, 1), grads)
        assert_close(direction, scaled, atol=1e-5)
    np.testing.assert_allclose(value.statistics.alignment, 1, atol=1e-5)
    assert value.norms.shape == (NUM_CLASSES,)
