"""What one pass leaves at the sites, and the weight gradients that are made of it.

At a site the operands that depend on examples and the cotangents of the results are all
that is needed for the weight gradient of any selection of examples.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pcn_jax.fused.class_layout import ClassLayout
from pcn_jax.fused.conv import depthwise_gradients, kernel_gradient
from pcn_jax.fused.program import Slot
from pcn_jax.fused.sites import DenseNumbers, Site
from pcn_jax.precision import at_least_float32


class Taps(NamedTuple):
    """What one pass through the network and back leaves at a site.

    Attributes:
      values: The operands, by slot.
      cotangents: Derivative of the mean loss, over the examples that count, by each
        differentiable result.
    """

    values: dict[Slot, jax.Array]
    cotangents: list[jax.Array]


def repeated(of_examples: jax.Array, size: int) -> jax.Array:
    """A quantity of each example `[B]`, given to all of its places, `[size]`."""
    places = size // len(of_examples)
    return of_examples if places == 1 else jnp.repeat(of_examples, places)


def weight_gradients(
    site: Site, taps: Taps, weights: jax.Array
) -> dict[Slot, jax.Array]:
    """Gradient of the weighted mean of the losses, by each parameter of a site.

    Args:
      site: The site.
      taps: Of all examples, or of some.
      weights: One an example, `[B]`.

    Returns:
      Gradients shaped like the parameters, by slot.
    """
    return _pull_back(site, taps.values, _weighted(site, taps.cotangents, weights))


def masked_gradients(
    site: Site, taps: Taps, weights: jax.Array, layout: ClassLayout
) -> dict[Slot, jax.Array]:
    """The same for each row, `[R, *param.shape]`, by one pass a row: always right."""

    def of_row(row: jax.Array) -> dict[Slot, jax.Array]:
        return weight_gradients(site, taps, jnp.where(layout.rows == row, weights, 0))

    return jax.vmap(of_row)(jnp.arange(layout.num_rows, dtype=layout.rows.dtype))


def example_gradients(site: Site, taps: Taps, size: int) -> jax.Array:
    """Gradients of so many examples `[B, *param.shape]`.

    At an elementwise site, or one that is depthwise.
    """
    if site.is_depthwise:
        x, (cotangent,), kernel = site.operand, taps.cotangents, site.param_shape
        params = site.equation.params
        grads = depthwise_gradients(taps.values[x], cotangent, kernel, params)
        return grads.reshape(size, -1, *kernel).sum(axis=1)
    (slot,), (axis,), (cotangent,) = site.params, site.out_axes, taps.cotangents
    param = taps.values[slot]
    if not param.ndim:
        param = param.reshape((1,) * cotangent.ndim)
    copies = [cotangent.shape[d] if d == axis else 1 for d in range(param.ndim)]
    values = {**taps.values, slot: jnp.tile(param, copies)}  # each has its own gradient
    grads = jnp.moveaxis(_pull_back(site, values, [cotangent])[slot], axis, 0)
    return grads.reshape(size, -1, *site.param_shape).sum(axis=1)


def take_examples(
    site: Site,
    taps: Taps,
    positions: jax.Array | None,
    weights: jax.Array | None = None,
) -> Taps:
    """The taps of a few examples.

    Args:
      site: The site.
      taps: Of all examples.
      positions: Of the few in the batch, `[m]`; `None` for all, as they lie.
      weights: What their losses are multiplied by, `[m]`.

    Returns:
      Taps as of a batch of the few.
    """
    values = {
        slot: x if axis is None else _take(x, positions, axis)
        for (slot, x), axis in zip(
            taps.values.items(), map(site.axes.get, taps.values), strict=True
        )
    }
    cotangents = [
        _take(x, positions, axis)
        for x, axis in zip(taps.cotangents, site.out_axes, strict=True)
    ]
    if weights is not None:
        cotangents = _weighted(site, cotangents, weights)
    return Taps(values, cotangents)


def summed_gradient(site: Site, taps: Taps) -> jax.Array:
    """Gradient of the sum of a few examples, at a product or a convolution.

    Returns:
      `param.shape`, in float32 or wider.
    """
    if site.kind == "conv":
        return kernel_gradient(
            taps.values[site.operand],
            taps.cotangents[0],
            site.param_shape,
            site.equation.params,
        )
    grads = _pull_back(site, taps.values, taps.cotangents)
    return at_least_float32(grads[site.params[0]])


def summed_gradients(site: Site, taps: Taps) -> jax.Array:
    """The same of each example by itself, all side by side: `[B, *param.shape]`."""
    axes = {slot: site.axes[slot] for slot in taps.values}

    def of_one(values: dict[Slot, jax.Array], cotangents: list[jax.Array]) -> jax.Array:
        pairs = (values, axes), (cotangents, list(site.out_axes))
        return summed_gradient(site, Taps(*(_batch_of_one(*pair) for pair in pairs)))

    in_axes = axes, list(site.out_axes)
    each: jax.Array = jax.vmap(of_one, in_axes)(taps.values, taps.cotangents)
    return each


def lookup_factors(site: Site, taps: Taps) -> tuple[jax.Array, jax.Array]:
    """Rows of the table `[B, T]`, `-1` outside, and their cotangents `[B, T, size]`."""
    x, (cotangent,), (out_axis,) = site.operand, taps.cotangents, site.out_axes
    axis, last = site.axes[x], taps.values[x].ndim - 1
    indices = jnp.moveaxis(taps.values[x].squeeze(last), axis or 0, 0)
    # Signed, as -1 is; what is too large for that is outside of any table.
    signed = jnp.int64 if indices.dtype.itemsize > 4 else jnp.int32
    most = min(jnp.iinfo(kind).max for kind in (indices.dtype, signed))
    indices = jnp.minimum(indices, jnp.asarray(most, indices.dtype)).astype(signed)
    length = site.param_shape[0]
    if site.equation.params["mode"] == lax.GatherScatterMode.CLIP:
        indices = jnp.clip(indices, 0, length - 1)
    inside = (indices >= 0) & (indices < length)
    indices = jnp.where(inside, indices, -1).reshape(site.size, -1)
    cotangent = jnp.moveaxis(cotangent, out_axis, 0)
    return indices, cotangent.reshape(*indices.shape, -1)


def _pull_back(
    site: Site, values: dict[Slot, jax.Array], cotangents: list[jax.Array]
) -> dict[Slot, jax.Array]:
    """Gradients by the parameters, from cotangents of the differentiable results."""
    if site.kind == "dense" and site.tokens > 1:
        return {site.params[0]: _sum_over_tokens(site, values, *cotangents)}

    def results(params: dict[Slot, jax.Array]) -> list[jax.Array]:
        given = {**values, **params}
        outputs = site.equation.apply(*(given[slot] for slot in site.equation.inputs))
        return list(itertools.compress(outputs, site.differentiable))

    _, pullback = jax.vjp(results, {slot: values[slot] for slot in site.params})
    (grads,) = pullback(cotangents)
    return dict(grads)


def _sum_over_tokens(
    site: Site, values: dict[Slot, jax.Array], cotangent: jax.Array
) -> jax.Array:
    """The same of a dense site: as JAX orders the operands, XLA copies them on CPU."""
    numbers = DenseNumbers.of(site)
    product = lax.dot_general(
        values[site.operand],
        cotangent,
        ((numbers.free, numbers.of_operand), ((), ())),
        precision=site.equation.params["precision"],
    )
    # It has what was contracted in the order of the operand, then the rest.
    contracted, _ = site.equation.params["dimension_numbers"]
    of_operand, of_param = (contracted[numbers.side], contracted[1 - numbers.side])
    place = dict(zip(of_param, np.argsort(np.argsort(of_operand)), strict=True))
    rest = iter(range(len(place), product.ndim))
    order = [place[d] if d in place else next(rest) for d in range(product.ndim)]
    return product.transpose(order).astype(values[site.params[0]].dtype)


def _weighted(
    site: Site, cotangents: Sequence[jax.Array], weights: jax.Array
) -> list[jax.Array]:
    weighted = []
    for axis, x in zip(site.out_axes, cotangents, strict=True):
        wide = at_least_float32(x)  # 16 bits may not hold the weights
        of_places = repeated(weights.astype(wide.dtype), x.shape[axis])
        others = [d for d in range(x.ndim) if d != axis]
        weighted.append((wide * jnp.expand_dims(of_places, others)).astype(x.dtype))
    return weighted


def _batch_of_one(arrays: Any, axes: Any) -> Any:
    """Gives arrays their axes back, where they have one."""
    return jax.tree.map(
        lambda axis, x: x if axis is None else jnp.expand_dims(x, axis),
        axes,
        arrays,
        is_leaf=lambda axis: axis is None,
    )


def _take(x: jax.Array, positions: jax.Array | None, axis: int) -> jax.Array:
    if positions is None:
        return x
    if len(positions) == 1:
        return jax.lax.dynamic_slice_in_dim(x, positions[0], 1, axis)
    return jnp.take(x, positions, axis, mode="clip")
