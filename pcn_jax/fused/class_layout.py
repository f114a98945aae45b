"""The examples of a batch in the order of their classes, whatever the labels are."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

Carry = TypeVar("Carry")
Chunk = tuple[jax.Array, jax.Array]
"""Some examples of one class: positions in the batch, and which of them count."""


class ClassLayout(NamedTuple):
    """Where the examples of each class are that is present in the batch.

    A batch of `B` examples shows at most `R = min(C, B)` classes. Work is done for
    these *rows*, and spread over all classes at the end.

    The classes may be the halves of classes (see `pcn_jax.split_halves`): rows that
    follow each other, of which more can be asked.

    Attributes:
      rows: Row of each example, `[B]`; `R` for padding.
      labels: Class of each row, `[R]`; `C` for a row that is not used.
      order: Positions of the examples, row after row, `[B]`.
      starts: Where each row starts in `order`, `[R]`.
      counts: Examples of each row, `[R]`.
      num_classes: `C`.
      by_halves: Whether classes `2l` and `2l + 1` are the halves of one.
    """

    rows: jax.Array
    labels: jax.Array
    order: jax.Array
    starts: jax.Array
    counts: jax.Array

    num_classes: int
    by_halves: bool = False

    @property
    def num_rows(self) -> int:
        """`R`, the most classes that the batch can show."""
        return len(self.counts)

    @property
    def num_wholes(self) -> int:
        """The most classes of which the rows are halves; or `R`."""
        return -(-self.num_rows // 2) if self.by_halves else self.num_rows

    @property
    def size(self) -> int:
        """`B`, the examples of the batch."""
        return len(self.order)

    @property
    def members(self) -> jax.Array:
        """Which examples belong to each row, `[R, B]`."""
        return self.rows[None, :] == _numbers(self.num_rows)

    @property
    def wholes(self) -> jax.Array:
        """A number that the two halves of a class have in common, `[R]`; or its own."""
        if not self.by_halves:
            return jnp.arange(self.num_rows, dtype=jnp.int32)
        return self.labels // 2

    def to_classes(self, of_rows: jax.Array) -> jax.Array:
        """A quantity of each row `[R, ...]`, placed among all classes `[C, ...]`."""
        if self.num_rows == self.num_classes:
            return of_rows
        classes = _numbers(self.num_classes)  # labels are sorted
        row = jnp.minimum(_sum(self.labels[None, :] < classes), self.num_rows - 1)
        is_shown = self.labels[row] == classes[:, 0]
        is_shown = is_shown.reshape(-1, *[1] * (of_rows.ndim - 1))
        return jnp.where(is_shown, of_rows[row], 0)

    def to_rows(self, of_classes: jax.Array) -> jax.Array:
        """A quantity of each class `[C, ...]`, for each row; arbitrary if not used."""
        if self.num_rows == self.num_classes:
            return of_classes
        return of_classes[jnp.minimum(self.labels, self.num_classes - 1)]

    def to_examples(self, of_rows: jax.Array) -> jax.Array:
        """A quantity of each row, given to its examples, `[B]`; zero for padding."""
        of_examples = jnp.append(of_rows, jnp.zeros(1, of_rows.dtype))[self.rows]
        # Looked up once, and not again wherever it is used.
        barrier: Callable[[jax.Array], jax.Array] = jax.lax.optimization_barrier
        return barrier(of_examples)

    def repeated(self, times: int) -> "ClassLayout":
        """The layout of a batch that has each example so many times, one by one."""
        if times == 1:
            return self
        copies = jnp.arange(times, dtype=self.order.dtype)[None]
        return self._replace(
            rows=jnp.repeat(self.rows, times),
            order=(self.order[:, None] * times + copies).reshape(-1),
            starts=self.starts * times,
            counts=self.counts * times,
        )


def sort_by_class(
    labels: jax.Array, num_classes: int, *, by_halves: bool = False
) -> ClassLayout:
    """Sorts a batch by class.

    Args:
      labels: Class of each example, int32 `[B]`; what is not in `[0, C)` is padding.
      num_classes: `C`.
      by_halves: Whether classes `2l` and `2l + 1` are the halves of one.

    Returns:
      The layout. Within a class the order of the batch is kept.

    Example:
      >>> layout = sort_by_class(jnp.array([5, 2, -1, 5]), num_classes=9)
      >>> layout.rows.tolist(), layout.labels.tolist(), layout.counts.tolist()
      ([1, 0, 4, 1], [2, 5, 9, 9], [1, 2, 0, 0])
    """
    # Comparisons of all pairs are fewer and faster kernels than scatters on CPU.
    size = labels.shape[0]
    real = (labels >= 0) & (labels < num_classes)
    labels = jnp.where(real, labels, num_classes)
    if num_classes <= size:
        num_rows, row = num_classes, labels
        label = jnp.arange(num_rows, dtype=labels.dtype)
    else:
        num_rows = size
        same = labels[:, None] == labels[None, :]
        earlier = _numbers(size) > jnp.arange(size, dtype=jnp.int32)[None, :]
        is_first = real & (_sum(same & earlier) == 0)
        smaller = labels[None, :] < labels[:, None]
        row = jnp.where(real, _sum(smaller & is_first[None, :]), num_rows)
        here = (row[None, :] == _numbers(num_rows)) & is_first[None, :]
        label = jnp.where(here, labels[None, :] - num_classes, 0)
        label = num_classes + _sum(label)
    rows = _numbers(num_rows)
    return ClassLayout(
        rows=row,
        labels=label,
        order=jnp.argsort(row),
        starts=_sum(row[None, :] < rows),
        counts=_sum(row[None, :] == rows),
        num_classes=num_classes,
        by_halves=by_halves,
    )


def over_chunks(
    layout: ClassLayout,
    size: int,
    step: Callable[[Carry, jax.Array, jax.Array, Chunk], Carry],
    carry: Carry,
) -> Carry:
    """Loops over groups of `size` examples of one class, class after class.

    Args:
      layout: The batch.
      size: Examples in a group; the last one of a class may be filled up.
      step: Given the carry, the row of the group, whether it is the first of its row,
        and the group; returns the carry.
      carry: Where to start.

    Returns:
      The last carry.
    """
    number = -(-layout.counts // size)
    up_to = _numbers(layout.num_rows) >= _numbers(layout.num_rows).T
    end = _sum(jnp.where(up_to, number[None, :], 0))
    # All groups there can be, laid out before the loop, where it is one kernel.
    most = min(layout.size, layout.size // size + layout.num_rows)
    group = jnp.arange(most, dtype=jnp.int32)
    row = jnp.minimum(_sum(end[None, :] <= group[:, None]), layout.num_rows - 1)
    place = group - (end - number)[row]
    within = place[:, None] * size + jnp.arange(size, dtype=jnp.int32)[None, :]
    at = layout.order[
        jnp.minimum(layout.starts[row][:, None] + within, layout.size - 1)
    ]
    counts = within < layout.counts[row][:, None]

    def body(k: jax.Array, carry: Carry) -> Carry:
        return step(carry, row[k], place[k] == 0, (at[k], counts[k]))

    last: Carry = jax.lax.fori_loop(jnp.zeros_like(end[-1]), end[-1], body, carry)
    return last


def _numbers(size: int) -> jax.Array:
    return jnp.arange(size, dtype=jnp.int32)[:, None]


def _sum(x: jax.Array) -> jax.Array:
    """Sums over the examples of `[R, B]`, in floats: those have fewer kernels on CPU.

    Exact below 2**24.
    """
    return jnp.sum(x, axis=1, dtype=jnp.float32).astype(jnp.int32)
