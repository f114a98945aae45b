"""Class gradients: sums, joint forwards, padding, micro-batches, dtypes and errors."""

import functools
from collections.abc import Iterator
from typing import Any, Literal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pcn_jax
from pcn_jax import ClassValue, accumulate, combine

NUM_CLASSES, FEATURES, BATCH = 3, 4, 12
LABELS = np.array([0] * 7 + [1] * 4 + [2])
RNG = np.random.default_rng(0)
INPUTS: dict[str, Any] = {
    "features": RNG.normal(size=(BATCH, FEATURES)).astype(np.float32),
    "offsets": (RNG.normal(size=(BATCH, NUM_CLASSES)).astype(np.float32),),
}
PARAMS = {
    "layer": {"w": RNG.normal(size=(FEATURES, NUM_CLASSES)).astype(np.float32)},
    "scale": np.float32(0.5),
}
Loop = Literal["python", "scan"]
every_loop = pytest.mark.parametrize("loop", ["python", "scan"])


def loss_fn(params: Any, inputs: Any, labels: jax.Array) -> jax.Array:
    logits = jnp.tanh(inputs["features"] @ params["layer"]["w"]) * params["scale"]
    logits = jax.nn.log_softmax(logits + inputs["offsets"][0])
    return -jnp.take_along_axis(logits, labels.astype(jnp.int32)[:, None], axis=1)[:, 0]


def loss_and_features(*args: Any) -> tuple[jax.Array, Any]:
    return loss_fn(*args), {"features": args[1]["features"], "mean": args[2].mean()}


def mean_loss(params: Any, inputs: Any, labels: Any) -> jax.Array:
    return loss_fn(params, inputs, jnp.asarray(labels)).mean()


mean_gradient = jax.jit(jax.grad(mean_loss))
eager = pcn_jax.per_class_value_and_grad(loss_fn, NUM_CLASSES)
per_class = jax.jit(eager)
per_group = jax.jit(pcn_jax.per_group_value_and_grad(loss_fn))


def squared_error(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.square(x @ w - y.astype(x.dtype))


def total(class_grads: Any) -> Any:
    return jax.tree.map(lambda g: g.sum(axis=0), class_grads)


def assert_same(actual: Any, expected: Any) -> None:
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-6)


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


class TestRows:
    """Row `l` is the gradient of class `l`'s share of the mean loss."""

    def test_sum_to_the_gradient_of_the_mean_loss(self) -> None:
        _, grads = per_class(PARAMS, INPUTS, LABELS)
        assert_same(total(grads), mean_gradient(PARAMS, INPUTS, LABELS))

    def test_are_gradients_of_class_shares(self) -> None:
        value, grads = per_class(PARAMS, INPUTS, LABELS)
        for c, count in enumerate([7, 4, 1]):
            own = jax.tree.map(lambda x, c=c: x[c == LABELS], INPUTS)
            loss, gradient = jax.jit(jax.value_and_grad(mean_loss))(
                PARAMS, own, LABELS[c == LABELS]
            )
            assert_same(value.losses[c], loss)
            share = jax.tree.map(lambda g, count=count: g * (count / BATCH), gradient)
            assert_same(jax.tree.map(lambda g, c=c: g[c], grads), share)

    def test_are_laid_out_like_the_parameters(self) -> None:
        value, grads = per_class(PARAMS, INPUTS, LABELS)
        chex.assert_trees_all_equal_structs(grads, PARAMS)
        assert grads["layer"]["w"].shape == (NUM_CLASSES, FEATURES, NUM_CLASSES)
        assert grads["scale"].shape == (NUM_CLASSES,)
        assert value.counts.tolist() == [7, 4, 1]
        assert value.aux is None

    def test_of_pixels_that_interact(self) -> None:
        """With labels and losses of all pixels in one row, as the documents advise."""
        images: Any = INPUTS["features"][:, :, None]  # 12 of 4 pixels
        labels = RNG.integers(NUM_CLASSES, size=images.shape[:2])

        def pixel_losses(params: Any, images: Any, labels: jax.Array) -> jax.Array:
            around = images + jnp.roll(images, 1, axis=1) ** 2
            logits = jax.nn.log_softmax(jnp.tanh(around @ params)).reshape(
                -1, NUM_CLASSES
            )
            return -jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]

        params: Any = RNG.normal(size=(1, NUM_CLASSES)).astype(np.float32)
        function = pcn_jax.per_class_value_and_grad(pixel_losses, NUM_CLASSES)
        value, grads = function(params, images, labels.ravel())
        assert int(value.counts.sum()) == images.size

        def share(params: Any, c: int) -> jax.Array:
            losses = pixel_losses(params, images, jnp.asarray(labels.ravel()))
            total: jax.Array = jnp.where(labels.ravel() == c, losses, 0).sum()
            return total / float(images.size)

        expected = [jax.grad(share)(params, c) for c in range(NUM_CLASSES)]
        assert_same(grads, np.stack(expected))

    def test_of_an_absent_class_are_zero(self) -> None:
        value, grads = per_class(PARAMS, INPUTS, np.where(LABELS == 1, 0, LABELS))
        assert value.counts.tolist() == [11, 0, 1]
        assert value.losses[1] == 0
        assert not flat(jax.tree.map(lambda g: g[1], grads)).any()
        chex.assert_tree_all_finite((value.losses, grads))

    def test_of_an_empty_batch_are_zero(self) -> None:
        value, grads = per_class(PARAMS, INPUTS, np.full(BATCH, -1))
        assert (value.counts.tolist(), float(value.loss)) == ([0, 0, 0], 0.0)
        assert not flat((value.losses, grads)).any()

    def test_jit_changes_nothing(self) -> None:
        assert_same(eager(PARAMS, INPUTS, LABELS), per_class(PARAMS, INPUTS, LABELS))

    def test_vmap_over_stacked_parameters_is_a_loop(self) -> None:
        nets = [jax.tree.map(lambda p, k=k: p * k, PARAMS) for k in (0.5, 1.0, 2.0)]
        stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *nets)
        together = jax.vmap(per_class, in_axes=(0, None, None))(stacked, INPUTS, LABELS)
        for k, net in enumerate(nets):
            one = jax.tree.map(lambda x, k=k: x[k], together)
            assert_same(one, per_class(net, INPUTS, LABELS))

    def test_auxiliary_output_comes_as_it_is(self) -> None:
        with_aux = pcn_jax.per_class_value_and_grad(
            loss_and_features, NUM_CLASSES, has_aux=True
        )
        value, grads = jax.jit(with_aux)(PARAMS, INPUTS, LABELS)
        assert_same(grads, per_class(PARAMS, INPUTS, LABELS)[1])
        chex.assert_trees_all_equal(value.aux["features"], INPUTS["features"])

    def test_mean_loss_of_the_value_is_that_of_the_batch(self) -> None:
        value, _ = per_class(PARAMS, INPUTS, LABELS)
        assert_same(value.loss, mean_loss(PARAMS, INPUTS, LABELS))

    def test_second_batch_is_not_traced_again(self) -> None:
        chex.clear_trace_counter()
        step = jax.jit(chex.assert_max_traces(eager, n=1))
        for labels in (LABELS, LABELS[::-1].copy()):
            step(PARAMS, INPUTS, labels)


class TestJointForward:
    """Examples that interact, or share a key, do so as in the plain gradient."""

    @staticmethod
    @functools.cache
    def batch_norm_net() -> tuple[Any, Any, jax.Array, jax.Array]:
        class Net(nn.Module):
            @nn.compact
            def __call__(self, x: jax.Array) -> jax.Array:
                x = nn.BatchNorm(use_running_average=False)(nn.Dense(5)(x))
                return jnp.asarray(nn.Dense(NUM_CLASSES)(jnp.tanh(x)))

        net, x = Net(), INPUTS["features"] + 2.0 * LABELS[:, None].astype(np.float32)
        variables = jax.jit(net.init)(jax.random.key(0), x)

        def loss_and_stats(params: Any, x: jax.Array, y: jax.Array) -> Any:
            logits, updated = net.apply(
                variables | {"params": params}, x, mutable=["batch_stats"]
            )
            chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1)
            return -chosen[:, 0], updated["batch_stats"]

        return loss_and_stats, variables["params"], x, jnp.asarray(LABELS)

    def test_batch_norm_in_training_mode(self) -> None:
        loss_and_stats, params, x, y = self.batch_norm_net()
        joint = pcn_jax.per_class_value_and_grad(
            loss_and_stats, NUM_CLASSES, has_aux=True
        )
        value, grads = jax.jit(joint)(params, x, y)
        # The running statistics are those of the batch, not one set a class.
        chex.assert_trees_all_close(value.aux, loss_and_stats(params, x, y)[1])

        @jax.jit
        def masked_loss(params: Any, c: jax.Array) -> jax.Array:
            return jnp.where(y == c, loss_and_stats(params, x, y)[0], 0).mean()

        for c in range(NUM_CLASSES):
            row = jax.tree.map(lambda g, c=c: g[c], grads)
            assert_same(row, jax.grad(masked_loss)(params, jnp.asarray(c)))

    def test_one_forward_a_class_would_give_something_else(self) -> None:
        loss_and_stats, params, x, y = self.batch_norm_net()
        joint = pcn_jax.per_class_value_and_grad(
            loss_and_stats, NUM_CLASSES, has_aux=True
        )
        first = jax.tree.map(lambda g: g[0], jax.jit(joint)(params, x, y)[1])

        def alone(params: Any) -> jax.Array:
            own = LABELS == 0
            losses: jax.Array = loss_and_stats(params, x[own], y[own])[0]
            return losses.sum() / BATCH

        separate = jax.jit(jax.grad(alone))(params)
        assert np.linalg.norm(flat(first) - flat(separate)) > 0.1 * np.linalg.norm(
            flat(first)
        )

    def test_dropout_has_one_mask_for_all_classes(self) -> None:
        def dropped(params: Any, inputs: Any, labels: Any, key: jax.Array) -> jax.Array:
            kept = jax.random.bernoulli(key, 0.5, inputs["features"].shape)
            features = jnp.where(kept, inputs["features"], 0.0)
            return loss_fn(params, inputs | {"features": features}, labels)

        class_grads = jax.jit(pcn_jax.per_class_value_and_grad(dropped, NUM_CLASSES))

        def plain(params: Any, key: jax.Array) -> jax.Array:
            return dropped(params, INPUTS, jnp.asarray(LABELS), key).mean()

        key, other = jax.random.split(jax.random.key(0))
        _, grads = class_grads(PARAMS, INPUTS, LABELS, key)
        assert_same(total(grads), jax.grad(plain)(PARAMS, key))
        assert np.abs(
            flat(total(grads)) - flat(jax.grad(plain)(PARAMS, other))
        ).max() > (0.01)


class TestGroups:
    """A batch laid out class by class gives what the masked one does."""

    @settings(max_examples=30, deadline=None, derandomize=True)
    @given(st.lists(st.integers(-1, NUM_CLASSES - 1), min_size=BATCH, max_size=BATCH))
    def test_equal_masks_with_any_padding(self, drawn: list[int]) -> None:
        labels = np.array(drawn)
        groups = np.stack([np.arange(BATCH)] * NUM_CLASSES)
        laid_out = np.where(
            labels[groups] == np.arange(NUM_CLASSES)[:, None], labels[groups], -1
        )
        grouped = per_group(PARAMS, jax.tree.map(lambda x: x[groups], INPUTS), laid_out)
        assert_same(grouped, per_class(PARAMS, INPUTS, labels))

    def test_auxiliary_output_has_the_group_axis(self) -> None:
        inputs = jax.tree.map(lambda x: x.reshape(3, 4, *x.shape[1:]), INPUTS)
        labels = np.repeat(np.arange(3), 4).reshape(3, 4)
        with_aux = pcn_jax.per_group_value_and_grad(loss_and_features, has_aux=True)
        value, _ = jax.jit(with_aux)(PARAMS, inputs, jnp.asarray(labels))
        chex.assert_trees_all_equal(value.aux["features"], inputs["features"])
        assert value.aux["mean"].tolist() == [0.0, 1.0, 2.0]


class TestPadding:
    """A label below zero belongs to no class."""

    @pytest.mark.parametrize("mark", [-1, -7])
    def test_is_as_if_it_were_not_there(self, mark: int) -> None:
        kept = np.arange(BATCH) % 3 != 0
        padded = per_class(PARAMS, INPUTS, np.where(kept, LABELS, mark))
        without = per_class(
            PARAMS, jax.tree.map(lambda x: x[kept], INPUTS), LABELS[kept]
        )
        assert_same(padded, without)

    def test_is_not_counted_in_the_mean_loss(self) -> None:
        labels = np.where(np.arange(BATCH) < 2, LABELS, -1)
        value, _ = per_class(PARAMS, INPUTS, labels)
        first_two = jax.tree.map(lambda x: x[:2], INPUTS)
        assert_same(value.loss, mean_loss(PARAMS, first_two, LABELS[:2]))


class TestAccumulate:
    """Micro-batches give the whole batch's class gradients."""

    @every_loop
    @pytest.mark.parametrize("size", [1, 4, 5, 50])
    def test_equals_the_whole(self, size: int, loop: Loop) -> None:
        in_parts = accumulate(eager, size, loop=loop)
        whole = per_class(PARAMS, INPUTS, LABELS)
        assert_same(in_parts(PARAMS, INPUTS, LABELS), whole)

    @every_loop
    def test_equals_the_whole_inside_jit(self, loop: Loop) -> None:
        in_parts = jax.jit(accumulate(eager, 5, loop=loop))
        whole = per_class(PARAMS, INPUTS, LABELS)
        assert_same(in_parts(PARAMS, INPUTS, LABELS), whole)

    @every_loop
    def test_equals_the_whole_with_padding(self, loop: Loop) -> None:
        labels = np.where(np.arange(BATCH) % 4 == 1, -1, LABELS)
        in_parts = accumulate(eager, 5, loop=loop)
        assert_same(in_parts(PARAMS, INPUTS, labels), per_class(PARAMS, INPUTS, labels))

    @every_loop
    def test_takes_labels_as_image_data_has_them(self, loop: Loop) -> None:
        with jax.numpy_dtype_promotion("standard"):
            in_parts = accumulate(eager, 5, loop=loop)
            result = in_parts(PARAMS, INPUTS, LABELS.astype(np.uint8))
        assert_same(result, per_class(PARAMS, INPUTS, LABELS))

    @every_loop
    def test_stacks_the_auxiliary_output(self, loop: Loop) -> None:
        with_aux = pcn_jax.per_class_value_and_grad(
            loss_and_features, NUM_CLASSES, has_aux=True
        )
        value, _ = accumulate(with_aux, 6, loop=loop)(PARAMS, INPUTS, LABELS)
        halves = INPUTS["features"].reshape(2, 6, FEATURES)
        chex.assert_trees_all_equal(value.aux["features"], halves)
        assert value.aux["mean"].shape == (2,)

    @every_loop
    def test_passes_further_arguments_on(self, loop: Loop) -> None:
        def weighted(w: Any, x: Any, y: Any, factor: jax.Array) -> jax.Array:
            return squared_error(w, x, y) * factor

        class_grads = pcn_jax.per_class_value_and_grad(weighted, 2)
        args = jnp.ones(2), jnp.arange(10.0).reshape(5, 2), jnp.array([0, 1, 0, 1, 1])
        three = accumulate(class_grads, 2, loop=loop)(*args, jnp.float32(3.0))
        one = accumulate(class_grads, 2, loop=loop)(*args, jnp.float32(1.0))
        assert_same(three[1], 3 * one[1])

    @every_loop
    def test_second_call_is_not_traced_again(self, loop: Loop) -> None:
        traces = 0

        def counted(*args: Any) -> jax.Array:
            nonlocal traces
            traces += 1
            return loss_fn(*args)

        in_parts = accumulate(
            pcn_jax.per_class_value_and_grad(counted, NUM_CLASSES), 5, loop=loop
        )
        in_parts(PARAMS, INPUTS, LABELS)
        once = traces
        in_parts(PARAMS, INPUTS, LABELS[::-1].copy())
        assert traces == once

    @every_loop
    def test_keeps_sums_of_16_bit_gradients_in_float32(self, loop: Loop) -> None:
        """One by one the sum would stop at 256 in bfloat16."""
        x, y = jnp.full((300, 1), -1.0, jnp.bfloat16), jnp.zeros(300, jnp.int32)
        class_grads = pcn_jax.per_class_value_and_grad(lambda w, x, y: x @ w, 1)
        value, grads = accumulate(class_grads, 1, loop=loop)(
            jnp.ones(1, jnp.bfloat16), x, y
        )
        assert (grads.dtype, grads.tolist()) == (jnp.bfloat16, [[-1.0]])
        assert (value.losses.dtype, value.losses.tolist()) == (jnp.float32, [-1.0])

    @pytest.mark.parametrize("size", [0, -1, 2.5, "8", None])
    def test_refuses_other_sizes(self, size: Any) -> None:
        with pytest.raises(ValueError, match=f"positive integer, got {size!r}"):
            accumulate(eager, size)

    @pytest.mark.parametrize("loop", ["python", "scan"])
    @pytest.mark.parametrize(
        ("function", "got"),
        [
            (squared_error, r"float32\[2\]"),
            (
                jax.value_and_grad(lambda *args: squared_error(*args).mean()),
                r"float32\[\] and float32\[2\]",
            ),
        ],
        ids=["losses", "ordinary gradients"],
    )
    def test_refuses_what_gives_no_class_gradients(
        self, function: Any, got: str, loop: Loop
    ) -> None:
        in_parts = accumulate(function, 2, loop=loop)
        message = (
            rf"class gradients, got {got}\. Of a loss .* per_class_value_and_grad\("
        )
        with pytest.raises(ValueError, match=message):
            in_parts(jnp.ones(2), jnp.ones((4, 2)), jnp.array([0, 1, 1, 0]))

    def test_refuses_what_is_no_function(self) -> None:
        with pytest.raises(ValueError, match=r"must be a function, .* got 3\."):
            accumulate(3, 5)  # type: ignore[arg-type]

    def test_refuses_what_has_labels_of_its_own(self) -> None:
        known = pcn_jax.known_labels_value_and_grad(squared_error, 2, np.array([0, 1]))
        with pytest.raises(ValueError, match="pass microbatch_size to known_labels"):
            accumulate(known, 5)(jnp.ones(2), jnp.ones((2, 2)))

    def test_refuses_other_loops(self) -> None:
        with pytest.raises(ValueError, match="one of 'python', 'scan', got 'fori'"):
            accumulate(eager, 4, loop="fori")  # type: ignore[arg-type]


def part(labels: slice) -> tuple[ClassValue, Any]:
    own = jax.tree.map(lambda x: x[labels], INPUTS)
    result: tuple[ClassValue, Any] = per_class(PARAMS, own, LABELS[labels])
    return result


class TestCombine:
    """Batches joined are their union."""

    PARTS = (slice(0, 5), slice(5, 6), slice(6, BATCH))

    def test_equals_the_union(self) -> None:
        assert_same(combine(map(part, self.PARTS)), per_class(PARAMS, INPUTS, LABELS))

    def test_of_one_part_is_that_part(self) -> None:
        assert_same(combine([part(slice(0, 5))]), part(slice(0, 5)))

    def test_leaves_its_input_alone(self) -> None:
        parts = [part(labels) for labels in self.PARTS]
        copies = jax.tree.map(np.array, parts)
        first = combine(parts)
        chex.assert_trees_all_equal(first, combine(parts))
        chex.assert_trees_all_equal(parts, copies)

    def test_takes_batches_as_they_come(self) -> None:
        """Without keeping them: as many arrays live at the tenth as at the third."""
        alive = []

        def stream() -> Iterator[tuple[ClassValue, Any]]:
            for _ in range(10):
                yield part(slice(0, 5))
                alive.append(len(jax.live_arrays()))

        assert combine(stream())[0].counts.sum() == 50
        assert alive[2] == alive[9]

    def test_sums_16_bit_gradients_in_float32(self) -> None:
        one = ClassValue(jnp.ones(1), jnp.array([1])), jnp.ones((1, 1), jnp.bfloat16)
        value, grads = combine([one] * 300)
        assert (grads.dtype, grads.tolist()) == (jnp.bfloat16, [[1.0]])
        assert value.counts.tolist() == [300]

    def test_stacks_the_auxiliary_output(self) -> None:
        parts = [
            (
                ClassValue(jnp.ones(1), jnp.array([1]), {"k": jnp.float32(k)}),
                jnp.ones(1),
            )
            for k in range(3)
        ]
        assert combine(parts)[0].aux["k"].tolist() == [0.0, 1.0, 2.0]

    def test_of_nothing_is_refused(self) -> None:
        with pytest.raises(ValueError, match="given no batches"):
            combine([])

    @pytest.mark.parametrize(
        ("parts", "got"),
        [
            ((ClassValue(jnp.ones(1), jnp.ones(1)), jnp.ones((1, 2))), "a ClassValue"),
            ([(jnp.ones(1), jnp.ones((1, 2)))], r"float32\[1\] and float32\[1, 2\]"),
            ([None], "a NoneType"),
        ],
    )
    def test_of_what_is_no_pair_is_refused(self, parts: Any, got: str) -> None:
        message = rf"class gradients, got {got}\. .* combine\(\[\(value, grads\)\]\)"
        with pytest.raises(ValueError, match=message):
            combine(parts)

    def test_of_balanced_directions_is_refused(self) -> None:
        balanced: Any = pcn_jax.pcn_value_and_grad(squared_error, 2)
        given = jnp.ones(2), jnp.ones((4, 2)), jnp.array([0, 1, 1, 0])
        with pytest.raises(ValueError, match=r"directions .* cannot.*a PCNValue"):
            combine([balanced(*given)])
        with pytest.raises(ValueError, match=r"directions .* cannot.*a PCNValue"):
            combine(balanced(*given))
        with pytest.raises(ValueError, match="balance the result in a chain"):
            accumulate(balanced, 2)(*given)


class TestLabels:
    """What is no class is refused at once, or where values are unknown, shows."""

    @pytest.mark.parametrize("largest", [NUM_CLASSES, 99])
    def test_out_of_range(self, largest: int) -> None:
        labels = np.where(LABELS == 2, largest, LABELS)
        message = f"below num_classes=3, got a label {largest}. Number the classes"
        with pytest.raises(ValueError, match=message):
            eager(PARAMS, INPUTS, labels)

    @pytest.mark.parametrize(
        "labels",
        [[0, 0, 1, 2, 3], [0, 0, 0, 0, 3], [3, 3, 3, 3, 3]],
        ids=["all present", "some absent", "all out of range"],
    )
    def test_out_of_range_under_jit_make_everything_nan(
        self, labels: list[int]
    ) -> None:
        class_grads = jax.jit(pcn_jax.per_class_value_and_grad(squared_error, 3))
        value, grads = class_grads(jnp.ones(2), jnp.ones((5, 2)), jnp.array(labels))
        assert np.isnan(value.losses).all()
        assert np.isnan(grads).all()

    @pytest.mark.parametrize("wrap", [np.asarray, jnp.asarray])
    def test_may_be_constants_of_a_jitted_function(self, wrap: Any) -> None:
        labels = wrap(LABELS)
        closed = jax.jit(lambda params: eager(params, INPUTS, labels))
        assert_same(closed(PARAMS), per_class(PARAMS, INPUTS, LABELS))

    @pytest.mark.parametrize("dtype", ["int8", "uint8", "int64"])
    def test_may_be_integers_of_any_kind(self, dtype: str) -> None:
        with jax.numpy_dtype_promotion("standard"):
            result = eager(PARAMS, INPUTS, LABELS.astype(dtype))
        assert_same(result, per_class(PARAMS, INPUTS, LABELS))

    def test_may_be_a_list(self) -> None:
        result = eager(PARAMS, INPUTS, LABELS.tolist())
        assert_same(result, per_class(PARAMS, INPUTS, LABELS))

    @pytest.mark.parametrize(
        ("labels", "given"),
        [
            (np.zeros(BATCH), r"float64\[12\]"),
            (np.zeros(BATCH, bool), r"bool\[12\]\. Use labels\.astype"),
            (np.zeros((BATCH, 3), int), r"int64\[12, 3\]\. Of one-hot rows use"),
            (np.zeros((BATCH, 1), int), r"int64\[12, 1\]\. Use labels\[\.\.\., 0\]"),
            (0, r"int64\[\]"),
        ],
    )
    @pytest.mark.parametrize(
        "class_grads", [eager, accumulate(eager, 4)], ids=["whole", "accumulated"]
    )
    def test_of_another_kind(self, class_grads: Any, labels: Any, given: str) -> None:
        with pytest.raises(ValueError, match=rf"integers of shape \[B\], got {given}"):
            class_grads(PARAMS, INPUTS, labels)

    def test_without_the_group_axis(self) -> None:
        message = r"integers of shape \[C, m\], got int64\[12\]"
        with pytest.raises(ValueError, match=message):
            pcn_jax.per_group_value_and_grad(loss_fn)(PARAMS, INPUTS, LABELS)


class TestLosses:
    """There is one for each example, summed in float32."""

    @pytest.mark.parametrize(
        ("loss_fn", "given"),
        [
            (lambda w, x, y: squared_error(w, x, y).mean(), r"float32\[\]"),
            (lambda w, x, y: squared_error(w, x, y)[:, None], r"float32\[5, 1\]"),
            (lambda w, x, y: (squared_error(w, x, y), x), "a tuple"),
            (lambda w, x, y: 1.0, "a float"),
        ],
        ids=["a mean", "a column", "aux unannounced", "a number"],
    )
    def test_of_another_shape(self, loss_fn: Any, given: str) -> None:
        message = rf"one loss an example, shape \(5,\) .*got {given}\. Do not average"
        args = jnp.ones(2), jnp.ones((5, 2))
        with pytest.raises(ValueError, match=message):
            pcn_jax.per_class_value_and_grad(loss_fn, 2)(*args, jnp.zeros(5, jnp.int32))
        grouped = pcn_jax.per_group_value_and_grad(loss_fn)
        with pytest.raises(ValueError, match=message):
            grouped(jnp.ones(2), jnp.ones((3, 5, 2)), jnp.zeros((3, 5), jnp.int32))

    def test_in_bfloat16_are_summed_in_float32(self) -> None:
        """In bfloat16 a sum of ones stops at 256."""
        class_grads = pcn_jax.per_class_value_and_grad(lambda w, x, y: x @ w, 1)
        x, labels = jnp.ones((1000, 1), jnp.bfloat16), jnp.zeros(1000, jnp.int32)
        value, _ = jax.jit(class_grads)(jnp.ones(1, jnp.bfloat16), x, labels)
        assert (value.losses.dtype, value.losses.tolist()) == (jnp.float32, [1.0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_gradients_have_the_dtype_of_the_parameters(dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        x, w = jnp.ones((4, 2), dtype), jnp.ones(2, dtype)
        class_grads = pcn_jax.per_class_value_and_grad(squared_error, 2)
        labels = jnp.array([0, 0, 1, 1])
        for compute in (class_grads, accumulate(class_grads, 3, loop="scan")):
            value, grads = jax.jit(compute)(w, x, labels)
            assert grads.dtype == dtype
            assert value.counts.dtype == jnp.int32
            assert value.losses.dtype == (
                "float64" if dtype == "float64" else "float32"
            )


def test_the_dtype_of_labels_is_looked_at_before_their_range() -> None:
    class_grads = pcn_jax.per_class_value_and_grad(squared_error, 2)
    for labels in (np.array([7.0, 1.0]), np.array(["a", "b"])):
        with pytest.raises(ValueError, match=r"integers of shape \[B\], got"):
            class_grads(jnp.ones(2), jnp.ones((2, 2)), labels)


@pytest.mark.parametrize("num_classes", [0, -1, 2.0, "3", None, True])
def test_number_of_classes_is_a_positive_integer(num_classes: Any) -> None:
    with pytest.raises(ValueError, match=f"positive integer, got {num_classes!r}"):
        pcn_jax.per_class_value_and_grad(loss_fn, num_classes)
