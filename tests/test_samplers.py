"""Samplers: pure, exact without replacement, fair, and clear about what cannot be."""

import functools
import itertools
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

import pcn_jax
from pcn_jax import Sampler

progressively_balanced = functools.partial(
    pcn_jax.progressively_balanced, total_steps=50
)
SAMPLERS: dict[str, Callable[[Any, int], Sampler]] = {
    "uniform": pcn_jax.uniform,
    "stratified": pcn_jax.stratified,
    "square_root": pcn_jax.square_root,
    "oversampled": pcn_jax.oversampled,
    "progressively_balanced": progressively_balanced,
}
COUNTS = (17, 6, 4)
# Mixed up, so that positions among the sorted are not positions in the data.
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(3), COUNTS))
BATCH = 12
every_sampler = pytest.mark.parametrize("name", SAMPLERS)
# One for each way to turn a step into positions.
two_samplers = pytest.mark.parametrize("name", ["uniform", "progressively_balanced"])
proportional = pytest.mark.parametrize("name", ["stratified", "square_root"])
many_examples = settings(max_examples=50, deadline=None, derandomize=True)
class_sizes = st.lists(st.integers(1, 60), min_size=1, max_size=6)


def steps_of(sampler: Sampler, steps: int, seed: int = 0, first: int = 0) -> np.ndarray:
    """Indices of consecutive batches, `[steps, batch_size]`."""
    draw = jax.jit(jax.vmap(sampler, in_axes=(None, 0)))
    return np.asarray(draw(seed, first + jnp.arange(steps)))


def labels_of(sizes: list[int]) -> np.ndarray:
    return np.repeat(np.arange(len(sizes)), sizes)


def assert_passes_are_permutations(stream: np.ndarray, members: np.ndarray) -> None:
    """At least two whole passes, and no example twice in what is left of the last."""
    whole = len(stream) // len(members)
    assert whole >= 2
    passes = stream[: whole * len(members)].reshape(whole, -1)
    np.testing.assert_array_equal(
        np.sort(passes, axis=1), np.tile(np.sort(members), (whole, 1))
    )
    rest = stream[whole * len(members) :]
    assert len(set(rest.tolist())) == len(rest)
    assert set(rest.tolist()) <= set(members.tolist())


@functools.cache
def compiled(name: str) -> Callable[..., jax.Array]:
    return jax.jit(SAMPLERS[name](LABELS, BATCH))


class TestPurity:
    """The indices are a function of the seed and the step and nothing else."""

    @every_sampler
    def test_same_seed_and_step_give_the_same_batch(self, name: str) -> None:
        batch = compiled(name)(3, 5)
        compiled(name)(3, 6)
        np.testing.assert_array_equal(batch, compiled(name)(3, 5))
        # Not compiled, and made anew.
        np.testing.assert_array_equal(batch, SAMPLERS[name](LABELS, BATCH)(3, 5))

    @every_sampler
    def test_scan_and_vmap_over_seeds_change_nothing(self, name: str) -> None:
        sampler = SAMPLERS[name](LABELS, BATCH)
        seeds, steps = jnp.arange(2), jnp.arange(3)

        def scanned(seed: jax.Array) -> jax.Array:
            return jax.lax.scan(lambda _, t: (None, sampler(seed, t)), None, steps)[1]

        expected = [[compiled(name)(s, t) for t in range(3)] for s in range(2)]
        np.testing.assert_array_equal(jax.jit(jax.vmap(scanned))(seeds), expected)

    @every_sampler
    def test_indices_are_int32_in_range(self, name: str) -> None:
        batch = compiled(name)(1, 2)
        assert (batch.dtype, batch.shape) == (jnp.int32, (BATCH,))
        assert 0 <= batch.min() <= batch.max() < len(LABELS)
        sampler = SAMPLERS[name](LABELS, BATCH)
        assert (sampler.batch_size, sampler.num_examples) == (BATCH, len(LABELS))
        with jax.enable_x64(True):
            wide = jax.jit(SAMPLERS[name](LABELS, BATCH))(1, 2)
        assert wide.dtype == jnp.int32
        np.testing.assert_array_equal(wide, batch)

    @every_sampler
    def test_seeds_and_steps_give_other_batches(self, name: str) -> None:
        batches = [compiled(name)(s, t) for s in range(2) for t in range(20)]
        assert len({np.asarray(batch).tobytes() for batch in batches}) == 40

    @every_sampler
    def test_jumping_to_a_far_step_is_free(self, name: str) -> None:
        """One trace serves every step, and gives what walking there would."""
        sampler, traces = SAMPLERS[name](LABELS, BATCH), 0

        @jax.jit
        def draw(seed: jax.Array, step: jax.Array) -> jax.Array:
            nonlocal traces
            traces += 1
            return sampler(seed, step)

        walked = steps_of(sampler, 40, first=999_980)
        draw(0, 0)
        np.testing.assert_array_equal(draw(0, 1_000_000), walked[20])
        assert traces == 1

    @two_samplers
    @pytest.mark.parametrize("value", [2**31, 2**32 - 1, np.int64(2**31)])
    def test_seeds_and_steps_may_have_32_bits(self, name: str, value: int) -> None:
        sampler = SAMPLERS[name](LABELS, BATCH)
        same = np.uint32(value)
        np.testing.assert_array_equal(sampler(value, 0), compiled(name)(same, 0))
        np.testing.assert_array_equal(sampler(0, value), compiled(name)(0, same))


class TestWithoutReplacement:
    """Each pool is passed through in permutations, a new one every pass."""

    @pytest.mark.parametrize("batch_size", [1, 5, 27, 40])
    def test_uniform(self, batch_size: int) -> None:
        """With batches that divide the data, do not, and are larger."""
        stream = steps_of(pcn_jax.uniform(LABELS, batch_size), 90).ravel()
        assert_passes_are_permutations(stream, np.arange(27))

    @pytest.mark.parametrize(
        ("name", "batch_size"),
        [
            ("stratified", 12),
            ("stratified", 27),  # all the data at every step
            ("stratified", 61),  # each class more than twice
            ("square_root", 11),
            ("oversampled", 3),
            ("oversampled", 30),  # more of each than the smaller classes have
        ],
    )
    def test_of_each_class(self, name: str, batch_size: int) -> None:
        batches = steps_of(SAMPLERS[name](LABELS, batch_size), 60)
        for c in range(3):
            stream = batches[LABELS[batches] == c]
            assert_passes_are_permutations(stream, np.flatnonzero(c == LABELS))

    def test_progressively_balanced(self) -> None:
        """Of each class in the balanced part, and of all in the rest."""
        total, batches = 50, steps_of(progressively_balanced(LABELS, BATCH), 50)
        sizes = np.rint(BATCH * np.arange(total) / total).astype(int)
        balanced = np.concatenate(
            [batch[:size] for batch, size in zip(batches, sizes, strict=True)]
        )
        rest = np.concatenate(
            [batch[size:] for batch, size in zip(batches, sizes, strict=True)]
        )
        assert_passes_are_permutations(rest, np.arange(27))
        for c in range(3):
            stream = balanced[LABELS[balanced] == c]
            assert_passes_are_permutations(stream, np.flatnonzero(c == LABELS))
        numbers = np.bincount(LABELS[balanced])
        assert numbers.max() - numbers.min() <= 1

    def test_in_the_order_of_the_classes(self) -> None:
        for name in ("stratified", "square_root", "oversampled"):
            drawn = LABELS[steps_of(SAMPLERS[name](LABELS, BATCH), 10)]
            assert (np.diff(drawn, axis=1) >= 0).all()

    def test_every_pass_and_every_seed_has_its_own_order(self) -> None:
        sampler = pcn_jax.uniform(LABELS, len(LABELS))
        orders = [*steps_of(sampler, 50), *steps_of(sampler, 50, seed=1)]
        assert len({order.tobytes() for order in orders}) == 100

    def test_classes_of_one_size_have_orders_of_their_own(self) -> None:
        labels = labels_of([20, 20])
        batch = np.asarray(pcn_jax.stratified(labels, 40)(0, 0))
        assert (batch[:20] != batch[20:] - 20).any()

    def test_a_class_of_one_example_is_always_there(self) -> None:
        batches = steps_of(pcn_jax.oversampled(np.array([0, 0, 1]), 4), 10)
        np.testing.assert_array_equal(batches[:, 2:], 2)


class TestFairness:
    """Chi-square tests on fixed seeds: one in a thousand fails by chance, once."""

    ORDERS = tuple(itertools.permutations(range(4)))

    @staticmethod
    def assert_equally_likely(outcomes: np.ndarray, kinds: int) -> None:
        observed = np.bincount(outcomes, minlength=kinds)
        assert len(observed) == kinds
        assert scipy.stats.chisquare(observed).pvalue > 1e-3

    def numbered(self, orders: np.ndarray) -> np.ndarray:
        return np.array([self.ORDERS.index(tuple(order)) for order in orders.tolist()])

    def test_orders_of_four_over_seeds(self) -> None:
        draw = jax.vmap(pcn_jax.uniform(np.array([0, 0, 1, 1]), 4), in_axes=(0, None))
        orders = np.asarray(draw(jnp.arange(4800), 0))
        self.assert_equally_likely(self.numbered(orders), 24)

    def test_orders_of_four_over_passes(self) -> None:
        orders = steps_of(pcn_jax.uniform(np.array([0, 0, 1, 1]), 4), 4800)
        self.assert_equally_likely(self.numbered(orders), 24)

    def test_orders_of_four_within_a_class(self) -> None:
        sampler = pcn_jax.stratified(np.array([1] * 4 + [0] * 8), 12)
        orders = steps_of(sampler, 4800, seed=7)[:, 8:]
        self.assert_equally_likely(self.numbered(orders), 24)

    def test_orders_of_a_pass_tell_nothing_of_the_next(self) -> None:
        orders = steps_of(pcn_jax.uniform(np.array([0, 0, 0]), 3), 7200)[:, 0]
        self.assert_equally_likely(3 * orders[:-1] + orders[1:], 9)

    def test_orders_of_a_class_tell_nothing_of_another(self) -> None:
        batches = steps_of(pcn_jax.stratified(labels_of([3, 3]), 6), 7200)
        self.assert_equally_likely(3 * batches[:, 0] + batches[:, 3] - 3, 9)

    def test_orders_of_a_seed_tell_nothing_of_its_neighbour(self) -> None:
        draw = jax.vmap(pcn_jax.uniform(np.array([0, 0, 0]), 3), in_axes=(0, None))
        first = np.asarray(draw(jnp.arange(7200), 0))[:, 0]
        self.assert_equally_likely(3 * first[:-1] + first[1:], 9)

    def test_every_position_of_a_larger_pool(self) -> None:
        draw = jax.vmap(pcn_jax.uniform(np.zeros(50, int), 1), in_axes=(0, None))
        first = np.asarray(draw(jnp.arange(10_000), 0))[:, 0]
        self.assert_equally_likely(first, 50)


def rounded_by_largest_remainders(weights: list[Fraction], size: int) -> list[int]:
    """In exact arithmetic; of equal remainders the first class is rounded up."""
    quotas = [size * weight / sum(weights) for weight in weights]
    counts = [int(quota) for quota in quotas]
    order = sorted(range(len(counts)), key=lambda c: counts[c] - quotas[c])
    for c in order[: size - sum(counts)]:
        counts[c] += 1
    return counts


class TestClassCounts:
    """How many of each class are in a batch, and which batches are too small."""

    @pytest.mark.parametrize("name", ["stratified", "square_root", "oversampled"])
    def test_are_those_of_every_batch(self, name: str) -> None:
        sampler = SAMPLERS[name](LABELS, BATCH)
        for batch in steps_of(sampler, 20):
            assert tuple(np.bincount(LABELS[batch])) == sampler.class_counts

    @pytest.mark.parametrize("name", ["uniform", "progressively_balanced"])
    def test_are_none_where_they_vary(self, name: str) -> None:
        sampler = SAMPLERS[name](LABELS, BATCH)
        assert sampler.class_counts is None
        varying = np.sum(LABELS[steps_of(sampler, 20)] == 0, axis=1)
        assert len(set(varying.tolist())) > 1

    def test_the_class_that_would_be_absent_is_named(self) -> None:
        with pytest.raises(ValueError, match=r"class 2 \(1 of 10 examples\) would get"):
            pcn_jax.stratified(labels_of([8, 1, 1]), 5)

    @many_examples
    @given(class_sizes, st.integers(1, 200))
    def test_stratified_are_rounded_by_largest_remainders(
        self, sizes: list[int], batch_size: int
    ) -> None:
        expected = rounded_by_largest_remainders(
            [Fraction(n) for n in sizes], batch_size
        )
        if min(expected) == 0:
            with pytest.raises(ValueError, match="would get no example"):
                pcn_jax.stratified(labels_of(sizes), batch_size)
        else:
            sampler = pcn_jax.stratified(labels_of(sizes), batch_size)
            assert sampler.class_counts == tuple(expected)

    @pytest.mark.parametrize(
        ("sizes", "batch_size", "counts"),
        [
            ([1, 9, 100], 55, (4, 12, 39)),  # quotas 3.93, 11.79 and 39.29
            ([4, 16, 64], 14, (2, 4, 8)),
            ([1, 1, 1], 5, (2, 2, 1)),
        ],
    )
    def test_square_root(
        self, sizes: list[int], batch_size: int, counts: tuple[int, ...]
    ) -> None:
        sampler = pcn_jax.square_root(labels_of(sizes), batch_size)
        roots = [Fraction(np.sqrt(n)) for n in sizes]
        assert rounded_by_largest_remainders(roots, batch_size) == list(counts)
        assert sampler.class_counts == counts

    @pytest.mark.parametrize("batch_size", [3, 12, 300])
    def test_oversampled_are_equal(self, batch_size: int) -> None:
        sampler = pcn_jax.oversampled(LABELS, batch_size)
        assert sampler.class_counts == (batch_size // 3,) * 3

    @proportional
    @settings(max_examples=20, deadline=None, derandomize=True)
    @given(sizes=class_sizes)
    def test_nearest_batches_that_work_are_named(
        self, name: str, sizes: list[int]
    ) -> None:
        """They work, and all those between them are refused with the same advice."""
        labels, works, advice = labels_of(sizes), [], {}
        for batch_size in range(1, sum(sizes) + 1):
            try:
                SAMPLERS[name](labels, batch_size)
            except ValueError as error:
                found = re.search(r"use ([\d or]+)\.", str(error))
                assert found is not None
                advice[batch_size] = list(map(int, found[1].split(" or ")))
            else:
                works.append(batch_size)
        for batch_size, advised in advice.items():
            below = [size for size in works if size < batch_size][-1:]
            above = [size for size in works if size > batch_size][:1]
            assert advised == below + above

    def test_a_larger_batch_may_leave_out_a_class_that_a_smaller_one_has(self) -> None:
        labels = labels_of([1, 3, 3])
        assert pcn_jax.stratified(labels, 3).class_counts == (1, 1, 1)
        with pytest.raises(ValueError, match=r"class 0 .* use 3 or 5\. Counts are rou"):
            pcn_jax.stratified(labels, 4)

    @proportional
    def test_class_that_would_be_missing_is_named(self, name: str) -> None:
        message = r"batch_size=3 class 1 \(2 of 1902 examples\) would get no example"
        with pytest.raises(ValueError, match=message):
            SAMPLERS[name](labels_of([1000, 2, 900]), 3)

    @pytest.mark.parametrize(
        ("batch_size", "advice"), [(1, "use 3."), (4, "use 3 or 6."), (50, "48 or 51.")]
    )
    def test_oversampled_batch_is_a_multiple(
        self, batch_size: int, advice: str
    ) -> None:
        message = f"multiple of the 3 .*, got {batch_size}: .*{re.escape(advice)}"
        with pytest.raises(ValueError, match=message):
            pcn_jax.oversampled(LABELS, batch_size)


class TestProgressivelyBalanced:
    """Shares go from those of the data to equal ones, and stay there."""

    LABELS = labels_of([60, 20, 10])

    def shares(self, step: int) -> np.ndarray:
        sampler = pcn_jax.progressively_balanced(self.LABELS, 30, total_steps=100)
        draw = jax.jit(jax.vmap(sampler, in_axes=(0, None)))
        batches = np.asarray(draw(jnp.arange(400), step))
        return np.bincount(self.LABELS[batches].ravel()) / batches.size

    @pytest.mark.parametrize("step", [0, 20, 50, 80, 100, 5000])
    def test_share_of_each_class(self, step: int) -> None:
        """`(1 − t/T) n_l/n + (t/T) / C`; here within 4 standard errors at most."""
        t = min(step / 100, 1)
        expected = (1 - t) * np.array([60, 20, 10]) / 90 + t / 3
        np.testing.assert_allclose(self.shares(step), expected, atol=0.015)

    def test_later_batches_are_balanced_exactly(self) -> None:
        sampler = pcn_jax.progressively_balanced(self.LABELS, 30, total_steps=100)
        for batch in steps_of(sampler, 20, first=100):
            assert np.bincount(self.LABELS[batch]).tolist() == [10, 10, 10]

    def test_passes_go_on_when_balanced(self) -> None:
        batches = steps_of(
            pcn_jax.progressively_balanced(self.LABELS, 30, total_steps=1), 20, first=1
        )
        for c in range(3):
            stream = batches[self.LABELS[batches] == c]
            assert_passes_are_permutations(stream, np.flatnonzero(c == self.LABELS))

    @pytest.mark.parametrize("total_steps", [0, -1, 2.5])
    def test_takes_at_least_one_step(self, total_steps: Any) -> None:
        message = f"total_steps must be a positive integer, got {total_steps}"
        with pytest.raises(ValueError, match=message):
            pcn_jax.progressively_balanced(LABELS, BATCH, total_steps=total_steps)


class TestErrors:
    """Bad labels, batch sizes, seeds and steps are refused by every sampler."""

    @every_sampler
    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            ([0.0, 1.0], r"integers of shape \[n\], .* got float64\[2\]"),
            ([[0, 1]], r"integers of shape \[n\], .* got int64\[1, 2\]"),
            ([True, False], r"integers of shape \[n\], .* got bool\[2\]"),
            (np.array([], int), r"at least one, got int64\[0\]"),
            ([0, -1, 1], "must not be negative, got -1"),
            ([0, 0, 2], "Class 1 has no examples; number .* from 0 to 1"),
            ([1, 1, 2], "Class 0 has no examples; number .* from 0 to 1"),
        ],
    )
    def test_labels(self, name: str, labels: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            SAMPLERS[name](np.asarray(labels), 6)

    @every_sampler
    @pytest.mark.parametrize("batch_size", [0, -3, 4.5])
    def test_batch_size(self, name: str, batch_size: Any) -> None:
        with pytest.raises(ValueError, match=re.escape(f"{batch_size}")):
            SAMPLERS[name](LABELS, batch_size)

    @two_samplers
    @pytest.mark.parametrize("value", [-1, 2**32, np.int64(-1), 1.5, jax.random.key(0)])
    def test_seed_and_step(self, name: str, value: Any) -> None:
        sampler = SAMPLERS[name](LABELS, BATCH)
        message = re.escape(f"from 0 to 2**32 - 1, got {value}")
        with pytest.raises(ValueError, match=message):
            sampler(value, 0)
        with pytest.raises(ValueError, match=message):
            sampler(0, value)

    @pytest.mark.parametrize("name", ["uniform", "stratified"])
    def test_unsigned_labels_and_lists_are_welcome(self, name: str) -> None:
        expected = compiled(name)(0, 0)
        for labels in (LABELS.astype(np.uint8), LABELS.tolist()):
            batch = SAMPLERS[name](labels, BATCH)(0, 0)
            np.testing.assert_array_equal(batch, expected)
