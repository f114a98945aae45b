"""The theory holds on quadratics, and the checks notice where it does not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.claims import theory
from experiments.claims.quadratics import (
    Quadratics,
    descend,
    normalised,
    plain,
    random_problems,
    random_quadratics,
    shortest,
    slopes,
)
from experiments.claims.theory_examples import measure_delays
from pcn_jax import class_cosines, scale_by_class_norm, sum_over_classes


@pytest.fixture(scope="module")
def pairs() -> list[Quadratics]:
    return random_problems(np.random.default_rng(1), 2, 5)


def test_everything_is_seen() -> None:
    finding = theory.find("fast")
    assert [e.statement for e in finding.effects if not e.seen] == []
    assert finding.verdict == "holds"
    assert len(finding.table.splitlines()) == 2 + 5
    assert len(finding.draw().axes) == 3


def test_gradients_and_directions_match_the_library() -> None:
    problem = random_quadratics(np.random.default_rng(2), 3, 5, 2, 10.0)
    with jax.enable_x64(True):
        hessians, centres = jnp.asarray(problem.hessians), jnp.asarray(problem.centres)

        def losses(x: jax.Array) -> jax.Array:
            offsets = x[None] - centres
            return jnp.einsum("ld,lde,le->l", offsets, hessians, offsets) / 2

        start = jnp.asarray(problem.start)
        class_grads = jax.jacobian(losses)(start)
        transform = optax.chain(scale_by_class_norm(), sum_over_classes())
        direction, _ = transform.update(class_grads, transform.init(start), start)
        margins = class_cosines(class_grads).sum(axis=1)
        expected = [np.asarray(x) for x in (losses(start), class_grads, direction)]
    grads = problem.grads(problem.start)
    path = descend(problem, normalised, lambda _: 0.1, 1)
    actual = [problem.losses(problem.start), grads, normalised(grads)]
    for found, wanted in zip(actual, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-12)
    np.testing.assert_allclose(path.margins[0], margins, rtol=1e-12)


def test_slopes_are_inner_products(pairs: list[Quadratics]) -> None:
    for pair in pairs:
        path = descend(pair, plain, lambda _: 0.1, 3)
        products = np.einsum("tld,td->tl", path.grads, path.directions)
        np.testing.assert_allclose(slopes(path, 0.2), -products, rtol=1e-9, atol=1e-12)


def test_too_small_a_smoothness_is_noticed(pairs: list[Quadratics]) -> None:
    wrong = [pair._replace(smooth=0.9 * pair.smooth) for pair in pairs]
    paths = [descend(pair, normalised, lambda _: 0.1, 20) for pair in wrong]
    paths += [descend(pairs[0], normalised, lambda _: 0.1, 20)]  # for the equality
    assert not theory.one_step(paths).effects[0].seen


def test_the_drop_is_gd_s(pairs: list[Quadratics]) -> None:
    paths = [descend(pair, normalised, lambda _: 0.1, 20) for pair in pairs]
    assert not theory.minority_drop(paths, measure_delays()).effects[0].seen


def test_gd_raises_a_class_loss(pairs: list[Quadratics]) -> None:
    paths = [descend(pair, plain, lambda _: 0.1, 20) for pair in pairs]
    assert [e.seen for e in theory.two_classes(paths).effects] == [False, False, False]


def test_long_steps_raise_a_class_loss(pairs: list[Quadratics]) -> None:
    paths = [descend(p, normalised, shortest(p, 2.5), 20) for p in pairs]
    assert [e.seen for e in theory.two_classes(paths).effects] == [False, True, True]


def test_long_steps_raise_classes_with_a_margin() -> None:
    triples = random_problems(np.random.default_rng(3), 3, 5)
    paths = [descend(p, normalised, lambda _: 0.5, 20) for p in triples]
    assert not theory.three_classes(paths).effects[1].seen


@pytest.mark.parametrize("part", [0.05, 1.5])
def test_another_step_size_loses_the_linear_rate(
    pairs: list[Quadratics], part: float
) -> None:
    common = [pair.with_common_constants() for pair in pairs]
    paths = [descend(p, normalised, shortest(p, part), 20) for p in common]
    assert [e.seen for e in theory.linear_rate(paths).effects] == [False, False, False]
