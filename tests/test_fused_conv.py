"""Convolutions taken apart: against the derivative that JAX takes, in float64."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcn_jax.fused.conv import kernel_gradient, of_patches_is_less, patch_products

CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one position": {"window": (1, 1)},
    "strided": {"window_strides": (2, 3), "padding": ((1, 0), (2, 1))},
    "valid": {"padding": ((0, 0), (0, 0)), "window": (2, 4)},
    "dilated": {"rhs_dilation": (2, 1), "padding": ((3, 2), (0, 1))},
    "transposed": {"lhs_dilation": (2, 3), "padding": ((2, 1), (0, 2))},
    "channels first": {"dimension_numbers": ("NCHW", "OIHW", "NCHW")},
    "in one dimension": {
        "window": (3,),
        "side": (6,),
        "padding": ((1, 1),),
        "dimension_numbers": ("NWC", "WIO", "NWC"),
    },
}


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


class Convolution:
    """Some examples, a kernel and how they are convolved."""

    def __init__(self, options: dict[str, Any]) -> None:
        """Fixed pseudo-random numbers of the right shapes."""
        random = np.random.default_rng(0)
        window, side = options.get("window", (3, 3)), options.get("side", (5, 4))
        lhs, rhs, out = options.get("dimension_numbers", ("NHWC", "HWIO", "NHWC"))
        spatial = [letter for letter in rhs if letter not in "IO"]
        sizes = {
            "N": 4,
            "C": 2,
            **dict(zip(spatial, side, strict=True)),
        }
        kernel = {"I": 2, "O": 3, **dict(zip(spatial, window, strict=True))}
        self.x = jnp.asarray(random.normal(size=[sizes[k] for k in lhs]))
        self.kernel = jnp.asarray(random.normal(size=[kernel[k] for k in rhs]))
        ones = (1,) * len(window)
        self.params = {
            "window_strides": options.get("window_strides", ones),
            "padding": options.get("padding", ((1, 1),) * len(window)),
            "lhs_dilation": options.get("lhs_dilation", ones),
            "rhs_dilation": options.get("rhs_dilation", ones),
            "precision": None,
        }
        self.numbers = jax.lax.conv_dimension_numbers(
            self.x.shape, self.kernel.shape, (lhs, rhs, out)
        )
        shape = jax.eval_shape(self.convolve, self.x, self.kernel).shape
        self.cotangent = jnp.asarray(random.normal(size=shape))
        self.out = [shape[d] for d in self.numbers.out_spec[2:]]
        self.positions = [self.x.shape[d] for d in self.numbers.lhs_spec[2:]]

    def convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, kernel, dimension_numbers=self.numbers, **self.params
        )

    def gradient(self, examples: slice) -> jax.Array:
        x, cotangent = self.x[examples], self.cotangent[examples]
        _, pullback = jax.vjp(lambda kernel: self.convolve(x, kernel), self.kernel)
        grad: jax.Array = pullback(cotangent)[0]
        return grad

    @property
    def all_params(self) -> dict[str, Any]:
        return {**self.params, "dimension_numbers": self.numbers}


@pytest.fixture(params=CONVOLUTIONS)
def conv(request: pytest.FixtureRequest) -> Convolution:
    return Convolution(CONVOLUTIONS[request.param])


def test_gradient_of_the_kernel(conv: Convolution) -> None:
    found = kernel_gradient(conv.x, conv.cotangent, conv.kernel.shape, conv.all_params)
    np.testing.assert_allclose(found, conv.gradient(slice(None)), atol=1e-12)


def test_inner_products_of_gradients(conv: Convolution) -> None:
    left, right = slice(0, 1), slice(1, 4)
    spec = conv.numbers.out_spec
    cotangents = conv.cotangent.transpose(spec[0], *spec[2:], spec[1])
    ours, theirs = (cotangents[k].reshape(-1, 3) for k in (left, right))
    products = patch_products(
        conv.x[left],
        conv.x[right],
        conv.kernel.shape,
        conv.out,
        conv.all_params,
        precision=jax.lax.Precision.HIGHEST,
    )
    products = products * (ours @ theirs.T)
    found = products.reshape(1, len(ours), 3, -1).sum(axis=(1, 3))[0]
    grads = [conv.gradient(slice(k, k + 1)) for k in range(4)]
    expected = [jnp.vdot(grads[0], grad) for grad in grads[1:]]
    np.testing.assert_allclose(found, jnp.stack(expected), atol=1e-12)


def test_products_are_taken_of_patches_and_of_positions() -> None:
    ways = set()
    for options in CONVOLUTIONS.values():
        conv = Convolution(options)
        window = options.get("window", (3, 3))
        ways.add(of_patches_is_less(conv.positions, window, conv.out))
    assert ways == {False, True}
