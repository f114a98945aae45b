"""PCN by the smoothed norm from two halves of each class: in a chain, and fused."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fused_losses import CASES, Case, in_float64
from fused_losses import LABELS as LOSS_LABELS
from fused_losses import NUM_CLASSES as LOSS_CLASSES
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_losses import OPENED

import pcn_jax
from pcn_jax import weights
from pcn_jax.fused import gradients, plan
from pcn_jax.weights import ClassStatistics

EVERY = CASES | OPENED
NUM_CLASSES = 4
LABELS = np.array([0, 1, 0, 0, 2, 1, 0, 1, 0, -1, 0, 1])  # class 3 is absent


def loss_fn(params: Any, inputs: Any, labels: Any) -> jax.Array:
    logits = jnp.tanh(inputs @ params["w"]) @ params["v"]
    each: jax.Array = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.maximum(labels, 0)
    )
    return each


of_classes = pcn_jax.per_class_value_and_grad(loss_fn, NUM_CLASSES)


def batches(number: int, seed: int = 0) -> tuple[Any, list[Any]]:
    rng = np.random.default_rng(seed)
    params = {"w": rng.normal(size=(5, 6)), "v": rng.normal(size=(6, NUM_CLASSES))}
    inputs = [rng.normal(size=(len(LABELS), 5)) for _ in range(number)]
    return params, [(x, rng.permutation(LABELS)) for x in inputs]


@jax.jit
def of_halves(params: Any, inputs: Any, labels: Any) -> Any:
    def half_loss(params: Any, inputs: Any, halves: Any) -> jax.Array:
        return loss_fn(params, inputs, halves // 2)

    gradients = pcn_jax.per_class_value_and_grad(half_loss, 2 * NUM_CLASSES)
    return gradients(params, inputs, pcn_jax.split_halves(jnp.asarray(labels)))


@pytest.mark.parametrize("path", ["fused", "masked"])
@pytest.mark.parametrize("average", ["norm", "alignment"])
def test_the_fused_path_gives_what_the_chain_gives_step_after_step(
    path: Any, average: Any
) -> None:
    options: Any = {"decay": 0.7, "average": average}
    with jax.enable_x64(True):
        params, given = batches(5)
        rule = weights.inverse_smoothed_norm(0.05, **options)
        fused = jax.jit(
            pcn_jax.pcn_value_and_grad(loss_fn, NUM_CLASSES, weights=rule, path=path)
        )
        chain = optax.chain(
            pcn_jax.scale_by_smoothed_class_norm(NUM_CLASSES, 0.05, **options),
            pcn_jax.sum_over_classes(),
        )
        update, plain = jax.jit(chain.update), jax.jit(of_classes)
        of_chain, state = chain.init(params), rule.init(NUM_CLASSES)
        for inputs, labels in given:
            value, direction = fused(params, inputs, labels, state=state)
            halves, grads = of_halves(params, inputs, labels)
            expected, of_chain = update(
                grads, of_chain, params, class_counts=halves.counts
            )
            chex.assert_trees_all_close(direction, expected, atol=1e-6, rtol=1e-6)
            chex.assert_trees_all_close(value.state, of_chain[0], atol=1e-6, rtol=1e-5)
            classes, class_grads = plain(params, inputs, labels)
            np.testing.assert_allclose(value.losses, classes.losses, atol=1e-12)
            assert value.counts.tolist() == classes.counts.tolist()
            norms = pcn_jax.class_norms(class_grads)
            np.testing.assert_allclose(value.norms, norms, atol=1e-7)
            state = value.state
        assert float(state.seen[0]) == pytest.approx(1 - 0.7**5)
        assert state.seen[2] == state.seen[3] == 0  # one example, and none
        assert not np.asarray(value.weights)[3]


def assert_fused_as_masked(name: str, num_classes: int = LOSS_CLASSES) -> None:
    """All that is known of the halves, against class gradients that are made."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        case = Case(EVERY[name].loss, *in_float64(tuple(EVERY[name][1:])))
        rule = weights.inverse_smoothed_norm(0.05)
        state = rule.init(num_classes)

        @jax.jit
        def both(params: Any, inputs: Any, args: Any) -> Any:
            return [
                pcn_jax.pcn_value_and_grad(
                    case.loss, num_classes, weights=rule, path=path
                )(params, inputs, LOSS_LABELS, *args, state=state)
                for path in ("fused", "masked")
            ]

        (value, direction), (expected, by_stacks) = both(*case[1:])
        assert np.any(np.asarray(expected.statistics.squared_mean_norms))
        chex.assert_trees_all_close(
            value._replace(aux=None), expected._replace(aux=None), atol=1e-11
        )
        chex.assert_trees_all_close(direction, by_stacks, atol=1e-10)


@pytest.mark.parametrize(
    "name", ["mlp", "conv", "attention", "shared", "experts", "one layer again"]
)
def test_every_way_measures_halves(name: str) -> None:
    assert_fused_as_masked(name)


@pytest.mark.parametrize("name", ["attention", "one matrix each"])
def test_halves_where_most_classes_are_absent(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "_CACHE_SIZE", 0)  # streams, one row after the other
    assert_fused_as_masked(name, num_classes=50)


@pytest.mark.parametrize("block", [1, 2, 5])
def test_halves_that_lie_in_several_blocks_of_pairs(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradients, "block_size", lambda *_: block)
    monkeypatch.setattr(gradients, "_MANY_NUMBERS", 0)
    assert_fused_as_masked("mlp")


def test_the_gramian_of_classes_may_be_asked_for_besides() -> None:
    params, [(inputs, labels)] = batches(1)
    rule = weights.inverse_smoothed_norm(0.05)
    alone, beside = (
        jax.jit(
            pcn_jax.pcn_value_and_grad(
                loss_fn, NUM_CLASSES, weights=rule, with_gramian=gramian
            )
        )(params, inputs, labels, state=rule.init(NUM_CLASSES))
        for gramian in (False, True)
    )
    chex.assert_trees_all_close(alone[1], beside[1], rtol=1e-4)
    assert alone[0].statistics.gramian is None
    _, grads = jax.jit(of_classes)(params, inputs, labels)
    cosines = pcn_jax.class_cosines(grads)
    np.testing.assert_allclose(beside[0].statistics.cosines, cosines, atol=1e-5)


def test_the_estimate_has_no_bias_where_the_noisy_norm_is_far_too_long() -> None:
    rng = np.random.default_rng(0)
    truth, counts = rng.normal(size=20) / 10, (2, 3, 8, 17)
    for count in counts:
        noise = rng.normal(size=(20_000, count, 20))
        examples = truth + noise  # class-mean gradients of single examples
        halves = [examples[:, k::2].sum(axis=1) for k in (0, 1)]
        sizes = jnp.array([-(-count // 2), count // 2])
        found = jax.vmap(
            lambda a, b, sizes=sizes, n=float(count): pcn_jax.halves.of_halves(
                ClassStatistics(
                    jnp.stack([jnp.linalg.norm(a), jnp.linalg.norm(b)]) / n, sizes
                ),
                (a @ b)[None] / n**2,
            )
        )(*(jnp.asarray(half, jnp.float32) for half in halves))
        estimates = np.asarray(found.squared_mean_norms)[:, 0]
        error = estimates.std() / np.sqrt(len(estimates))
        assert abs(estimates.mean() - truth @ truth) < 4 * error
        noisy = np.square(np.asarray(found.norms)).mean()
        assert noisy == pytest.approx(truth @ truth + 20 / count, rel=0.02)


def test_without_noise_it_is_per_class_clipping() -> None:
    params, [(inputs, labels)] = batches(1)
    labels = np.sort(np.abs(labels))
    inputs = inputs[labels]  # all examples of a class are the same
    clipped, smoothed = (
        jax.jit(pcn_jax.pcn_value_and_grad(loss_fn, NUM_CLASSES, weights=rule))
        for rule in (
            weights.inverse_clipped_norm(0.3),
            weights.inverse_smoothed_norm(0.3),
        )
    )
    _, expected = clipped(params, inputs, labels)
    state = weights.inverse_smoothed_norm(0.3).init(NUM_CLASSES)
    _, direction = smoothed(params, inputs, labels, state=state)
    chex.assert_trees_all_close(direction, expected, rtol=1e-4)


def test_a_class_of_one_example_is_taken_by_its_own_norm_and_an_absent_one_waits() -> (
    None
):
    rule = weights.inverse_smoothed_norm(0.5, decay=0.9, min_alignment=0)
    statistics = ClassStatistics(
        norms=jnp.array([2.0, 0.0, 1.0]),
        counts=jnp.array([1, 0, 3]),
        squared_mean_norms=jnp.array([0.0, 0.0, -5.0]),
    )
    found, state = rule.update(statistics, rule.init(3))
    # By 4 / 8, the noisy norm; nothing; and 4 / 3 / 0.5, the floor.
    np.testing.assert_allclose(found, [0.5, 0, 8 / 3], rtol=1e-6)
    assert state.seen.tolist() == [0, 0, pytest.approx(0.1)]
    later = statistics._replace(counts=jnp.array([1, 0, 1]))
    _, same = rule.update(later, state)
    chex.assert_trees_all_equal(same, state)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_batch_that_is_not_finite_is_not_remembered(bad: float) -> None:
    rule = weights.inverse_smoothed_norm(0.1)
    good = ClassStatistics(
        norms=jnp.array([3.0, 3.0]),
        counts=jnp.array([4, 4]),
        squared_mean_norms=jnp.array([30.0, 30.0]),
    )
    _, state = rule.update(good, rule.init(2))
    overflown = good._replace(
        norms=jnp.array([bad, 3.0]), squared_mean_norms=jnp.array([bad, 30.0])
    )
    found, after = rule.update(overflown, state)
    chex.assert_tree_all_finite(after)
    assert after.seen[0] == state.seen[0]
    assert after.seen[1] > state.seen[1]
    assert np.isfinite(found[1])


def test_the_norm_is_not_taken_to_be_far_shorter_than_the_noisy_one() -> None:
    """By chance the product of two halves is near zero, or below it."""
    statistics = ClassStatistics(
        norms=jnp.array([3.0, 3.0, 3.0]),
        counts=jnp.array([4, 4, 4]),
        squared_mean_norms=jnp.array([64.0, 0.01, -5.0]),
    )
    norm, noisy = [8.0, 4.5, 4.5], 9.0
    for alignment, expected in {0.5: norm, 1.0: [noisy] * 3}.items():
        rule = weights.inverse_smoothed_norm(0.1, min_alignment=alignment)
        found, state = rule.update(statistics, rule.init(3))
        np.testing.assert_allclose(3 / found, expected, rtol=1e-6)
        np.testing.assert_allclose(state.alignment, [8 / 9, 0.1 / 9, 0], rtol=1e-5)
    assert rule.init(3).alignment.tolist() == [0, 0, 0]


def test_with_p_averaged_it_follows_a_changing_norm_as_rescaling_by_p_does() -> None:
    """PCNSGD+R with the true p, whatever the lengths of the steps before."""
    p, rng = jnp.array([0.9, 0.6, 0.45]), np.random.default_rng(0)
    rule = weights.inverse_smoothed_norm(1e-6, average="alignment", min_alignment=0.4)
    lagging = weights.inverse_smoothed_norm(1e-6, min_alignment=0.4)
    rescaled = weights.inverse_aligned_norm(min_alignment=0.4)
    state, old = rule.init(3), lagging.init(3)
    for norms in rng.uniform(0.1, 10, size=(20, 3)).astype(np.float32):
        statistics = ClassStatistics(
            norms=jnp.asarray(norms), counts=jnp.array([12, 4, 2]), alignment=p
        )
        squares = jnp.square(p * statistics.mean_norms)
        statistics = statistics._replace(squared_mean_norms=squares)
        found, state = rule.update(statistics, state)
        np.testing.assert_allclose(found, rescaled(statistics), rtol=1e-4)
        late, old = lagging.update(statistics, old)
        chex.assert_trees_all_equal(state, old)
    assert np.abs(late / found - 1).max() > 0.5


def test_the_state_estimates_how_true_batches_are() -> None:
    """At fixed parameters, against the gradients of all the data and item 6 of p."""
    params, _ = batches(1)
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(NUM_CLASSES), [600, 300, 120, 60])
    inputs = rng.normal(size=(len(labels), 5)) + labels[:, None] / 2
    plain, alignment = jax.jit(of_classes), jax.jit(pcn_jax.class_alignment)
    _, truth = plain(params, inputs, labels)
    sampler = pcn_jax.stratified(labels, 54)
    rule = weights.inverse_smoothed_norm(0.1, decay=0.99)
    balanced = jax.jit(pcn_jax.pcn_value_and_grad(loss_fn, NUM_CLASSES, weights=rule))
    state, alignments = rule.init(NUM_CLASSES), []
    for step in range(400):
        at = np.asarray(sampler(0, step))
        value, _ = balanced(params, inputs[at], labels[at], state=state)
        state = value.state
        _, grads = plain(params, inputs[at], labels[at])
        alignments.append(alignment(grads, truth))
    true_p = np.mean(alignments, axis=0)
    assert np.ptp(true_p) > 0.1  # there is something to tell apart
    np.testing.assert_allclose(state.alignment, true_p, atol=0.06)


def test_halves_take_turns_within_a_class() -> None:
    halves = pcn_jax.split_halves(jnp.asarray(LABELS))
    assert (np.asarray(halves)[LABELS >= 0] // 2 == LABELS[LABELS >= 0]).all()
    assert halves[LABELS < 0].tolist() == [-1]
    for label in range(NUM_CLASSES):
        a, b = ((np.asarray(halves) == 2 * label + k).sum() for k in (0, 1))
        assert a - b in (0, 1)


@settings(max_examples=20, deadline=None)
@given(labels=st.lists(st.integers(-2, 3), min_size=1, max_size=20))
def test_halves_of_any_labels(labels: list[int]) -> None:
    seen: dict[int, int] = {}
    expected = []
    for label in labels:
        expected.append(label if label < 0 else 2 * label + seen.get(label, 0) % 2)
        seen[label] = seen.get(label, 0) + 1
    assert pcn_jax.split_halves(jnp.array(labels)).tolist() == expected


def test_halves_are_of_integers() -> None:
    with pytest.raises(ValueError, match=r"integers of shape \[B\], got float32\[2\]"):
        pcn_jax.split_halves(jnp.ones(2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0.3), "num_classes"),
        ((3, 0.0), r"min_norm must be positive and finite, got 0\.0"),
        ((3, -1.0), "min_norm must be positive"),
    ],
)
def test_refuses_bad_options(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pcn_jax.scale_by_smoothed_class_norm(*arguments)


def test_refuses_bad_calls() -> None:
    params, [(inputs, labels)] = batches(1)
    rule = weights.inverse_smoothed_norm(0.3)
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got 1"):
        weights.inverse_smoothed_norm(0.3, decay=1)
    with pytest.raises(ValueError, match=r"min_alignment must be in \[0, 1\], got 2"):
        weights.inverse_smoothed_norm(0.3, min_alignment=2)
    with pytest.raises(ValueError, match="one of 'norm', 'alignment', got 'both'"):
        weights.inverse_smoothed_norm(0.3, average="both")  # type: ignore[arg-type]
    fused = pcn_jax.pcn_value_and_grad(loss_fn, NUM_CLASSES, weights=rule)
    with pytest.raises(ValueError, match=r"pass state=weights\.init"):
        fused(params, inputs, labels)
    state = rule.init(NUM_CLASSES)
    with pytest.raises(ValueError, match=r"leaves \[\(4,\), .*got .*\[\(3,\)"):
        fused(params, inputs, labels, state=rule.init(3))
    with pytest.raises(ValueError, match="reference is not for weights that look"):
        fused(params, inputs, labels, state=state, reference=params)
    plain = pcn_jax.pcn_value_and_grad(loss_fn, NUM_CLASSES)
    with pytest.raises(ValueError, match="these do not"):
        plain(params, inputs, labels, state=state)
    with pytest.raises(ValueError, match="needs the halves"):
        rule.update(ClassStatistics(jnp.ones(4), jnp.ones(4)), state)
    tx = pcn_jax.scale_by_smoothed_class_norm(NUM_CLASSES, 0.3)
    _, grads = jax.jit(of_classes)(params, inputs, labels)
    with pytest.raises(ValueError, match="8 rows, got 4"):
        tx.update(grads, tx.init(params), params, class_counts=np.ones(4))
