"""Which examples are in the batch: a pure function of the seed and the step.

A sampler holds no state. It shuffles with a keyed permutation that is evaluated only at
the positions a step needs, so it runs inside `jax.jit`, `jax.lax.scan` and `jax.vmap`
over seeds, any step can be jumped to, and the step counter is all there is to save.

Each pool (all examples, or those of one class) is passed through without replacement,
in a new order every pass. Orders repeat after 2³² draws from one pool.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from pcn_jax.checks import check_host_labels, check_positive_integer


@dataclasses.dataclass(frozen=True, eq=False)
class Sampler:
    """Indices of the examples in the batch of a step.

    Calling it with `(seed, step)`, two integers (below 2³², traced or not), returns
    int32 indices `[batch_size]`. Those of one class stand together, in class order,
    where `class_counts` is known.

    Attributes:
      draw: The function behind the call, of two uint32 scalars.
      batch_size: Examples in a batch.
      class_counts: Examples of each class in every batch, `[C]`, or `None` where the
        sampler does not fix them.
      num_examples: Of the data that it draws from, `n`; `None` for any.

    Example:
      >>> sampler = oversampled(np.array([0, 0, 0, 1]), batch_size=2)
      >>> sampler(seed=0, step=10**6).tolist()[1]
      3
    """

    draw: Callable[[jax.Array, jax.Array], jax.Array]
    batch_size: int
    class_counts: tuple[int, ...] | None
    num_examples: int | None = None

    def __call__(self, seed: ArrayLike, step: ArrayLike) -> jax.Array:
        """Indices of the batch of a step, int32 `[batch_size]`."""
        return self.draw(_uint32("seed", seed), _uint32("step", step))


def uniform(labels: np.ndarray, batch_size: int) -> Sampler:
    """Shuffled passes over all the data: what SGD usually means.

    A rare class can be absent from a batch; its class gradient is then zero.

    Args:
      labels: Class of each example, integers `[n]`.
      batch_size: Examples in a batch.

    Returns:
      A `Sampler` with `class_counts` `None`.

    Raises:
      ValueError: If labels are not integers `[n]` from 0 up without a gap, or the batch
        is empty.

    Example:
      >>> sampler = uniform(np.array([0, 0, 0, 1]), batch_size=2)
      >>> sorted(i for t in range(2) for i in sampler(seed=0, step=t).tolist())
      [0, 1, 2, 3]
    """
    labels, _ = _check(labels, batch_size)
    draw = _fixed(_one_pool(labels), [batch_size])
    return Sampler(draw, batch_size, None, len(labels))


def stratified(labels: np.ndarray, batch_size: int) -> Sampler:
    """Every batch holds each class in its share of the data: SGD and PCNSGD.

    Class `l` gets `b n_l / n` examples, rounded by largest remainders so that they add
    up to `b`. Where that is a whole number for every class, all classes finish a pass
    in the same number of steps. Not every batch size works: a class of which a batch
    has an example may have none in a slightly larger one.

    Args:
      labels: Class of each example, integers `[n]`.
      batch_size: Examples in a batch, `b`.

    Returns:
      A `Sampler`.

    Raises:
      ValueError: If labels are not integers `[n]` from 0 up without a gap, or if a
        class would get no example. The message names the class and the nearest batch
        sizes that work.

    Example:
      >>> stratified(np.array([0] * 90 + [1] * 10), batch_size=20).class_counts
      (18, 2)

    References:
      Francazi et al., 2023, SGD and PCNSGD.
    """
    labels, class_counts = _check(labels, batch_size)
    return _proportional(labels, class_counts, batch_size, weights=class_counts)


def square_root(labels: np.ndarray, batch_size: int) -> Sampler:
    """Every batch holds each class in proportion to the square root of its size.

    Half-way between `stratified` and `oversampled`; rounded like the former.

    Args:
      labels: Class of each example, integers `[n]`.
      batch_size: Examples in a batch.

    Returns:
      A `Sampler`.

    Raises:
      ValueError: As `stratified`.

    Example:
      >>> square_root(np.array([0] * 81 + [1] * 9), batch_size=20).class_counts
      (15, 5)

    References:
      Kang et al., `Decoupling Representation and Classifier for Long-Tailed
      Recognition <https://arxiv.org/abs/1910.09217>`_, 2020, section 3.
    """
    labels, class_counts = _check(labels, batch_size)
    return _proportional(
        labels, class_counts, batch_size, weights=np.sqrt(class_counts)
    )


def oversampled(labels: np.ndarray, batch_size: int) -> Sampler:
    """Every batch holds equally many examples of each class: SGD+O and PCNSGD+O.

    A class that runs out is reshuffled and starts over.

    Args:
      labels: Class of each example, integers `[n]`.
      batch_size: Examples in a batch, a multiple of the number of classes.

    Returns:
      A `Sampler`.

    Raises:
      ValueError: If labels are not integers `[n]` from 0 up without a gap, or if the
        batch size is not a multiple of the number of classes.

    Example:
      >>> sampler = oversampled(np.array([0] * 90 + [1] * 10), batch_size=20)
      >>> sampler.class_counts, sampler(seed=0, step=5).shape
      ((10, 10), (20,))

    References:
      Francazi et al., 2023, SGD+O and PCNSGD+O.
    """
    labels, class_counts = _check(labels, batch_size)
    num_classes = len(class_counts)
    each, rest = divmod(batch_size, num_classes)
    if rest:
        sizes = f"{each * num_classes} or " if each else ""
        raise ValueError(
            "batch_size of an oversampled batch must be a multiple of the "
            f"{num_classes} classes, got {batch_size}: use {sizes}"
            f"{(each + 1) * num_classes}."
        )
    return _of_counts(labels, [each] * num_classes)


def progressively_balanced(
    labels: np.ndarray, batch_size: int, *, total_steps: int
) -> Sampler:
    """Goes from the classes' own shares to equal ones in the course of training.

    At step `t` of `T`, class `l` has the share `(1 − t/T) n_l/n + (t/T) / C`: a growing
    part of the batch comes from class-balanced passes, the rest from uniform ones.

    Args:
      labels: Class of each example, integers `[n]`.
      batch_size: Examples in a batch.
      total_steps: `T`; later steps are balanced.

    Returns:
      A `Sampler` with `class_counts` `None`.

    Raises:
      ValueError: If labels are not integers `[n]` from 0 up without a gap, the batch is
        empty, or `total_steps` is not positive.

    Example:
      >>> labels = np.array([0] * 90 + [1] * 10)
      >>> sampler = progressively_balanced(labels, batch_size=20, total_steps=100)
      >>> int((labels[sampler(seed=0, step=100)] == 1).sum())
      10

    References:
      Kang et al., 2020, section 3.
    """
    labels, class_counts = _check(labels, batch_size)
    check_positive_integer("total_steps", total_steps)
    everything, by_class = _one_pool(labels), _by_class(labels)
    steps = np.arange(total_steps + 1, dtype=np.int64)
    balanced = np.rint(batch_size * steps / total_steps).astype(np.uint32)
    before = np.cumsum(balanced, dtype=np.uint32) - balanced
    slots = np.arange(batch_size, dtype=np.uint32)

    @jax.jit
    def draw(seed: jax.Array, step: jax.Array) -> jax.Array:
        within = jnp.minimum(step, np.uint32(total_steps))
        late = (step - within) * np.uint32(batch_size)
        first = jnp.asarray(before)[within] + late  # balanced draws in earlier steps
        num_balanced = jnp.asarray(balanced)[within]
        balanced_draw = first + slots
        uniform_draw = step * np.uint32(batch_size) - first + (slots - num_balanced)
        num_classes = np.uint32(len(class_counts))
        return jnp.where(
            slots < num_balanced,
            by_class.example(
                seed, balanced_draw % num_classes, balanced_draw // num_classes
            ),
            everything.example(seed, jnp.zeros_like(slots), uniform_draw),
        )

    return Sampler(draw, batch_size, None, len(labels))


_ROUNDS = 24  # of the shuffle; from 16 on, tests cannot tell it from chance


@dataclasses.dataclass(frozen=True)
class _Pools:
    """Examples grouped into pools, each an endless stream of shuffled passes."""

    order: np.ndarray  # example indices, pool after pass, [n]
    sizes: np.ndarray  # examples in each pool

    def example(self, seed: jax.Array, pool: ArrayLike, draw: jax.Array) -> jax.Array:
        """The example at position `draw` of the stream of a pool; uint32 arrays."""
        sizes = self.sizes.astype(np.uint32)
        size = jnp.asarray(sizes)[pool]
        start = jnp.asarray(np.cumsum(sizes, dtype=np.uint32) - sizes)[pool]
        key = _hash(_hash(_hash(seed) ^ jnp.asarray(pool, np.uint32)) + draw // size)
        return jnp.asarray(self.order, np.int32)[
            start + _shuffle(key, size, draw % size)
        ]


def _one_pool(labels: np.ndarray) -> _Pools:
    return _Pools(np.arange(len(labels)), np.array([len(labels)]))


def _by_class(labels: np.ndarray) -> _Pools:
    return _Pools(np.argsort(labels, kind="stable"), np.bincount(labels))


def _proportional(
    labels: np.ndarray, class_counts: np.ndarray, batch_size: int, weights: np.ndarray
) -> Sampler:
    counts = _largest_remainders(weights, np.array([batch_size]))[0]
    if counts.min() == 0:
        absent = min(np.flatnonzero(counts == 0), key=class_counts.__getitem__)
        nearest = " or ".join(map(str, _nearest_batches(weights, batch_size)))
        raise ValueError(
            f"With batch_size={batch_size} class {absent} ({class_counts[absent]} of "
            f"{len(labels)} examples) would get no example: use {nearest}. Counts are "
            "rounded, so not every size works."
        )
    return _of_counts(labels, counts.tolist())


def _largest_remainders(weights: np.ndarray, batch_sizes: np.ndarray) -> np.ndarray:
    """Whole numbers `[K, C]` in proportion to weights, adding up to each batch size."""
    quotas = batch_sizes[:, None] * weights / weights.sum()
    counts = np.floor(quotas + 1e-9).astype(np.int64)
    missing = batch_sizes - counts.sum(axis=1)
    rank = np.argsort(np.argsort(counts - quotas, axis=1, kind="stable"), axis=1)
    return np.asarray(counts + (rank < missing[:, None]))


def _nearest_batches(weights: np.ndarray, batch_size: int) -> list[int]:
    """The nearest sizes at which each class has an example, below and above."""
    enough = math.ceil(weights.sum() / weights.min())
    smaller = range(batch_size - 1, len(weights) - 1, -1)
    larger = range(batch_size + 1, enough + 1)
    return [*_first_that_works(weights, smaller), *_first_that_works(weights, larger)]


def _first_that_works(weights: np.ndarray, batch_sizes: range) -> list[int]:
    chunk = 256
    for first in range(0, len(batch_sizes), chunk):
        sizes = np.array(batch_sizes[first : first + chunk])
        works = _largest_remainders(weights, sizes).min(axis=1) > 0
        if works.any():
            return [int(sizes[np.argmax(works)])]
    return []


def _of_counts(labels: np.ndarray, counts: list[int]) -> Sampler:
    """Every batch holds `counts[l]` examples of class `l`."""
    draw = _fixed(_by_class(labels), counts)
    return Sampler(draw, sum(counts), tuple(counts), len(labels))


def _fixed(
    pools: _Pools, counts: list[int]
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Draws `counts[p]` examples of each pool at every step."""
    per_step = np.asarray(counts, np.uint32)
    pool = np.repeat(np.arange(len(counts)), counts)
    slot = np.concatenate([np.arange(count, dtype=np.uint32) for count in counts])

    @jax.jit
    def draw(seed: jax.Array, step: jax.Array) -> jax.Array:
        return pools.example(seed, pool, step * per_step[pool] + slot)

    return draw


def _shuffle(key: jax.Array, size: jax.Array, x: jax.Array) -> jax.Array:
    """Image of `x < size` under the permutation of `range(size)` that `key` chooses.

    The swap-or-not shuffle of Hoang, Morris and Rogaway (CRYPTO 2012): each round pairs
    every position with a partner and tosses a coin, the same for both, whether they
    swap. It works for any size and moves one position without looking at the others.
    """

    def swap_or_not(
        _: int, state: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        key, x = state
        key = _hash(key)
        centre = key % size
        partner = jnp.where(centre < x, centre + size, centre) - x
        coin = _hash(jnp.maximum(x, partner) ^ _hash(~key))
        return key, jnp.where(coin >> 31, partner, x)

    image: jax.Array = jax.lax.fori_loop(0, _ROUNDS, swap_or_not, (key, x))[1]
    return image


def _hash(x: jax.Array) -> jax.Array:
    """Mixes 32 bits: the finaliser of MurmurHash3, behind an odd offset."""
    x = x + np.uint32(0x9E3779B9)
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _uint32(name: str, x: ArrayLike) -> jax.Array:
    in_range = isinstance(x, int | np.integer) and 0 <= int(x) < 2**32
    array = isinstance(x, jax.Array | np.ndarray) and jnp.issubdtype(
        x.dtype, jnp.integer
    )
    if not in_range and not array:
        raise ValueError(f"{name} must be an integer from 0 to 2**32 - 1, got {x}.")
    return jnp.asarray(x, np.uint32)


def _check(labels: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    labels = check_host_labels(labels, "[n]")
    check_positive_integer("batch_size", batch_size)
    if labels.min() < 0:
        raise ValueError(f"labels must not be negative, got {labels.min()}.")
    class_counts = np.bincount(labels)
    if not class_counts.all():
        raise ValueError(
            f"Class {int(np.argmin(class_counts))} has no examples; number the classes "
            f"that there are from 0 to {np.count_nonzero(class_counts) - 1}."
        )
    return labels, class_counts
