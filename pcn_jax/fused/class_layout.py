"""The examples of a batch in the order of their classes, whatever the labels are."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

Carry = TypeVar("Carry")
Chunk = tuple[jax.Array, jax.Array]
"""Examples of one class: positions in the batch `[m]`, and which of them count `[m]`."""


class ClassLayout(NamedTuple):
    """Where the examples of each class are that is present in the batch.

    A batch of `B` examples shows at most `R = min(C, B)` classes: work is done for these
    *rows*, and spread over all classes at the end.

    Attributes:
      row: Row of each example, `[B]`; `R` for padding.
      label: Class of each row, `[R]`; `C` for a row that is not used.
      order: Positions of the examples, class after class, `[B]`.
      start: Where each row starts in `order`, `[R]`.
      count: Examples of each row, `[R]`.
    """

    row: jax.Array
    label: jax.Array
    order: jax.Array
    start: jax.Array
    count: jax.Array

    @property
    def num_rows(self) -> int:
        """`R`, the most classes that the batch can show."""
        return len(self.count)

    @property
    def size(self) -> int:
        """`B`, the examples of the batch."""
        return len(self.order)


def sort_by_class(labels: jax.Array, num_classes: int) -> ClassLayout:
    """Sorts a batch by class.

    Args:
      labels: Class of each example, int32 `[B]`; what is not in `[0, C)` is padding.
      num_classes: `C`.

    Returns:
      The layout. Within a class the order of the batch is kept.

    Example:
      >>> layout = sort_by_class(jnp.array([5, 2, -1, 5]), num_classes=9)
      >>> layout.row.tolist(), layout.label.tolist(), layout.count.tolist()
      ([1, 0, 4, 1], [2, 5, 9, 9], [1, 2, 0, 0])
    """
    size = labels.shape[0]
    num_rows = min(num_classes, size)
    real = (labels >= 0) & (labels < num_classes)
    labels = jnp.where(real, labels, num_classes)
    order = jnp.argsort(labels, stable=True)
    labels = labels[order]
    row = jnp.cumsum(jnp.diff(labels, prepend=labels[:1]) > 0, dtype=jnp.int32)
    row = jnp.where(labels == num_classes, num_rows, row)
    count = jnp.zeros(num_rows, jnp.int32).at[row].add(1, mode="drop")
    return ClassLayout(
        row=jnp.zeros(size, jnp.int32).at[order].set(row),
        label=jnp.full(num_rows, num_classes).at[row].set(labels, mode="drop"),
        order=order,
        start=jnp.cumsum(count) - count,
        count=count,
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
    number = -(-layout.count // size)
    end = jnp.cumsum(number)

    def body(k: jax.Array, carry: Carry) -> Carry:
        row = jnp.searchsorted(end, k, side="right")
        place = k - (end[row] - number[row])
        within = place * size + jnp.arange(size)
        counts = within < layout.count[row]
        at = jnp.minimum(layout.start[row] + within, layout.size - 1)
        return step(carry, row, place == 0, (layout.order[at], counts))

    return jax.lax.fori_loop(0, end[-1], body, carry)
