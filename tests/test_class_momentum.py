"""Momentum of each class, before its gradient is normalised."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pcn_jax


def averages(decay: float, gradients: list[np.ndarray]) -> np.ndarray:
    """The weighted mean of all gradients, the last of weight 1, with no state."""
    powers = decay ** np.arange(len(gradients))[::-1]
    total = sum(power * grad for power, grad in zip(powers, gradients, strict=True))
    return np.asarray(total / powers.sum())


def run(
    tx: optax.GradientTransformationExtraArgs,
    steps: list[np.ndarray],
    counts: list[list[int]],
) -> np.ndarray:
    params = jnp.zeros(steps[0].shape[1:])
    state, update = tx.init(params), jax.jit(tx.update)
    for grads, of_batch in zip(steps, counts, strict=True):
        updates, state = update(
            grads, state, params, class_counts=np.array(of_batch, np.int32)
        )
    return np.asarray(updates)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_is_the_weighted_mean_of_what_was_seen(decay: float) -> None:
    rng = np.random.default_rng(0)
    steps = [rng.normal(size=(3, 4, 2)).astype(np.float32) for _ in range(6)]
    found = run(pcn_jax.class_momentum(3, decay), steps, [[5, 2, 1]] * 6)
    np.testing.assert_allclose(found, averages(decay, steps), rtol=1e-5, atol=1e-6)


def test_an_absent_class_keeps_its_average_and_adds_nothing() -> None:
    rng = np.random.default_rng(1)
    steps = [rng.normal(size=(2, 3)).astype(np.float32) for _ in range(4)]
    counts = [[3, 1], [3, 0], [4, 0], [3, 1]]
    for grads, of_batch in zip(steps, counts, strict=True):
        grads[np.array(of_batch) == 0] = 0
    tx = pcn_jax.class_momentum(2, 0.9)
    assert (run(tx, steps[:3], counts[:3])[1] == 0).all()
    found = run(tx, steps, counts)
    shares = [of_batch[0] / sum(of_batch) for of_batch in counts]
    means = [step[0] / share for step, share in zip(steps, shares, strict=True)]
    np.testing.assert_allclose(found[0], shares[-1] * averages(0.9, means), 1e-5)
    np.testing.assert_allclose(
        found[1], averages(0.9, [steps[0][1], steps[3][1]]), 1e-5
    )


def test_how_many_examples_other_batches_had_does_not_matter() -> None:
    """The mean loss of a class has the same gradient in all of them."""
    counts = [[9, 1], [7, 3], [9, 1], [5, 5]]
    steps = [np.array([[n], [m]], np.float32) / 10 for n, m in counts]
    tx = optax.chain(pcn_jax.class_momentum(2, 0.9), pcn_jax.clip_by_class_norm(2.0))
    for number in range(1, 5):
        found = run(tx, steps[:number], counts[:number])
        np.testing.assert_allclose(found, 0.5, rtol=1e-5)


def test_lowers_directional_noise_where_normalising_alone_cannot() -> None:
    """A short true gradient behind noise: its normalised average points along it."""
    rng = np.random.default_rng(2)
    true = np.full((1, 100), 0.05, np.float32)
    steps = [
        (true + rng.normal(size=true.shape)).astype(np.float32) for _ in range(2000)
    ]
    along = {}
    for decay in (0.0, 0.9, 0.99):
        tx = optax.chain(
            pcn_jax.class_momentum(1, decay), pcn_jax.scale_by_class_norm()
        )
        found = [
            run(tx, steps[k : k + 500], [[1]] * 500)[0] for k in range(0, 2000, 500)
        ]
        along[decay] = np.mean(found @ true[0]) / np.linalg.norm(true)
    assert along[0.0] < along[0.9] < along[0.99]
    # p = 1 / sqrt(1 + noise / signal), the noise shrunk by (1 - decay) / (1 + decay).
    expected = 1 / np.sqrt(1 + 100 * (0.01 / 1.99) / 0.25)
    assert along[0.99] == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 0.9), "num_classes"), ((2, 1.0), r"decay must be in \[0, 1\), got 1\.0")],
)
def test_refuses_what_makes_no_sense(
    arguments: tuple[int, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pcn_jax.class_momentum(*arguments)


def test_refuses_another_number_of_classes() -> None:
    tx = pcn_jax.class_momentum(3, 0.9)
    with pytest.raises(ValueError, match="made for 3 classes, got 2 rows"):
        run(tx, [np.ones((2, 4), np.float32)], [[1, 1]])
