"""The proof that examples do not meet: held against what changing one of them does."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from pcn_jax.fused.axis_rules import NotProvenError
from pcn_jax.fused.example_axis import follow_examples
from pcn_jax.fused.program import flatten, needed_for

SIZE = 5
X = jnp.asarray(np.random.default_rng(0).normal(size=(SIZE, 4, 3)), jnp.float32)
W = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)), jnp.float32)
TABLE = jnp.arange(4, dtype=jnp.float32)
Function = Callable[[jax.Array], jax.Array]


def largest(x: jax.Array) -> jax.Array:
    """An index in each example, `[SIZE]`."""
    return jnp.argmax(x[:, :3, 0], axis=1)


def pooled(x: jax.Array, axis: int) -> jax.Array:
    """The largest of every two neighbours along an axis."""
    window = tuple(2 if d == axis else 1 for d in range(x.ndim))
    y: jax.Array = lax.reduce_window(x, -jnp.inf, lax.max, window, (1,) * 3, "VALID")
    return y


def matrices(x: jax.Array) -> jax.Array:
    """A positive definite one of each example, `[SIZE, 4, 4]`."""
    return jnp.einsum("btd,bsd->bts", x, x) + jnp.eye(4)[None]


APART: dict[str, Function] = {
    "transpose": lambda x: x.transpose(1, 0, 2),
    "reshape": lambda x: x.transpose(1, 2, 0).reshape(12, SIZE),
    "several places": lambda x: x.transpose(2, 0, 1).reshape(3, SIZE * 4),
    "all in a row": lambda x: x.ravel(),
    "fewer places": lambda x: x.reshape(SIZE * 4, 3).reshape(SIZE * 2, 6).T,
    "places of their own": lambda x: x.reshape(1, SIZE * 4, 3).reshape(SIZE, 2, 2, 3),
    "places in a loop": lambda x: lax.fori_loop(
        0, 3, lambda _, y: jnp.sin(y).reshape(SIZE * 2, -1).reshape(y.shape), x
    ),
    "new axis": lambda x: x[:, None, :, None],
    "squeeze": lambda x: x[:, :, :1].squeeze(2),
    "reduce": lambda x: x.transpose(1, 0, 2).max(axis=(0, 2)),
    "reduce each": jax.vmap(lambda y: y.sum(axis=1), 1, 1),
    "argmax": lambda x: jnp.argmax(x, axis=1),
    "sort": lambda x: jnp.sort(x, axis=2),
    "cumulative": lambda x: jnp.cumsum(x, axis=1),
    "reversed": lambda x: x[:, ::-1],
    "padded": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 0))),
    "put on a device": jax.device_put,
    "bits": lambda x: lax.bitcast_convert_type(x, jnp.uint16).astype(jnp.float32),
    "slice": lambda x: x[:, 1:3, ::2],
    "dynamic slice": lambda x: lax.dynamic_slice_in_dim(x, jnp.int32(1), 2, 1),
    "dynamic update": lambda x: lax.dynamic_update_slice_in_dim(
        x, 2 * x[:, :1], jnp.int32(2), 1
    ),
    "top k": lambda x: lax.top_k(x, 2)[0],
    "concatenate": lambda x: jnp.concatenate([x, x * 2], axis=1),
    "pick columns": lambda x: x[:, jnp.array([2, 0])],
    "look up": lambda x: TABLE[jnp.argmax(x, axis=1)],
    "take along": lambda x: jnp.take_along_axis(
        x, jnp.argmax(x, axis=1)[:, None], axis=1
    ),
    "numbered": lambda x: x[jnp.arange(SIZE), largest(x)],
    "numbered by NumPy": lambda x: x[np.arange(-SIZE, 0), largest(x), 1],
    "numbered in two columns": lambda x: x[
        jnp.arange(SIZE)[:, None], jnp.stack([largest(x)] * 2, axis=1)
    ],
    "numbered behind": lambda x: x.transpose(1, 2, 0)[largest(x), :, jnp.arange(SIZE)],
    "numbered, of one place": lambda x: x[jnp.arange(SIZE), 2],
    "updates that begin elsewhere": jax.vmap(
        lambda y: lax.dynamic_update_slice_in_dim(y, y[:1], jnp.argmax(y[:, 0]), 0)
    ),
    "set a place": lambda x: x.at[:, 1].set(W[1][None]),
    "set places from others": lambda x: x.at[:, :2].set(x[:, 2:]),
    "set a place of a constant": lambda x: jnp.zeros_like(x).at[:, 2].set(x[:, 0]),
    "add at numbers": lambda x: x.at[jnp.arange(SIZE), largest(x), 1].add(-2.0),
    "multiply at numbers": lambda x: x.at[jnp.arange(SIZE), 3].multiply(x[:, 0]),
    "set numbers of a constant": lambda x: (
        jnp.zeros((3, SIZE)).at[largest(x), jnp.arange(SIZE)].set(x[:, 0, 0])
    ),
    "add at numbers in two columns": lambda x: x.at[
        jnp.arange(SIZE)[:, None], jnp.stack([largest(x)] * 2, axis=1)
    ].add(x[:, :2]),
    "sum of segments": jax.vmap(
        lambda y: jax.ops.segment_sum(y, jnp.argmax(y, axis=1), 3), 0, 1
    ),
    "largest of segments": jax.vmap(
        lambda y: jax.ops.segment_max(y, jnp.array([0, 2, 0, 2]), 3)
    ),
    "product": lambda x: jnp.einsum("btd,td->bd", x, W),
    "product from the left": lambda x: jnp.tensordot(W.T, x.transpose(1, 2, 0), 1),
    "product of examples": lambda x: jnp.einsum("btd,bsd->bts", x, x),
    "cholesky": lambda x: lax.linalg.cholesky(matrices(x)),
    "solved": lambda x: jnp.linalg.solve(matrices(x), x),
    "inverse of each": jax.vmap(lambda y: jnp.linalg.inv(matrices(y[None])[0]), 0, 1),
    "singular values": lambda x: jnp.linalg.svd(x, compute_uv=False),
    "orthogonal": lambda x: jnp.linalg.qr(x)[0],
    "eigenvalues": lambda x: jnp.linalg.eigvalsh(matrices(x)),
    "spectrum": lambda x: jnp.abs(jnp.fft.rfft(x, axis=1)),
    "special functions": lambda x: jax.scipy.special.gammainc(2.0, jnp.exp(x)),
    "windows": lambda x: lax.reduce_window(
        x, -jnp.inf, lax.max, (1, 2, 1), (1, 2, 1), "VALID"
    ),
    "nearly the largest": lambda x: lax.approx_max_k(x, 2)[0],
    "largest of windows, differentiated": jax.grad(lambda x: (pooled(x, 1) ** 3).sum()),
    "the same again": lambda x: jax.jvp(
        jax.grad(lambda x: (pooled(x, 1) ** 3).sum()), (x,), (jnp.cos(x),)
    )[1],
    "loop": lambda x: lax.fori_loop(0, 3, lambda _, y: jnp.sin(y), x),
    "loop from a constant": lambda x: lax.fori_loop(
        0, 3, lambda _, y: y + x, jnp.zeros_like(x)
    ),
    "scan": lambda x: lax.scan(
        lambda c, now: (c + now, c * now), x[:, 0], x.transpose(1, 0, 2)
    )[1],
    "condition of all": lambda x: lax.cond(W.sum() > 0, jnp.sin, jnp.cos, x),
    "branch without examples": lambda x: lax.cond(
        W.sum() > 0, lambda x: x, jnp.zeros_like, x
    ),
}
TOGETHER: dict[str, Function] = {
    "mean": lambda x: x - x.mean(axis=0, keepdims=True),
    "sort": lambda x: jnp.sort(x, axis=0),
    "cumulative": lambda x: jnp.cumsum(x, axis=0),
    "reversed": lambda x: x[::-1],
    "slice": lambda x: x[1:],
    "strided": lambda x: x[::2],
    "padded": lambda x: jnp.pad(x, ((1, 0), (0, 0), (0, 0))),
    "bits joined": lambda x: lax.bitcast_convert_type(
        x[:2, 0, 0].astype(jnp.float16), jnp.float32
    ),
    "reshape": lambda x: x.transpose(1, 0, 2).reshape(4 * SIZE, 3),
    "mean of places": lambda x: x.reshape(SIZE * 4, 3).mean(axis=0),
    "reversed places": lambda x: x.reshape(SIZE * 4, 3)[::-1],
    "squeeze": lambda x: x[:1].squeeze(0),
    "concatenate": lambda x: jnp.concatenate([x, x], axis=0),
    "pick": lambda x: x[jnp.array([3, 0, 1, 2, 4])],
    "look up others": lambda x: x[jnp.argmax(x[:, :, 0], axis=1)],
    "numbered backwards": lambda x: x[jnp.arange(SIZE)[::-1], largest(x)],
    "numbered by themselves": lambda x: x[largest(x), largest(x)],
    "numbered in a loop, which may run on some": lambda x: lax.fori_loop(
        0, 2, lambda _, y: y + y[jnp.arange(SIZE), largest(y)][:, None], x
    ),
    "begins elsewhere": lambda x: lax.dynamic_slice_in_dim(
        x, jnp.argmax(x[0, :, 0]), 2, 1
    ),
    "overwritten": lambda x: lax.dynamic_update_slice_in_dim(x, x[:1], jnp.int32(2), 0),
    "one is set": lambda x: x.at[0].set(W),
    "some are set": lambda x: x.at[1:3].set(W[None]),
    "set to others": lambda x: x.at[jnp.arange(SIZE)[::-1]].set(x),
    "added to others": lambda x: x.at[largest(x)].add(x),
    "set at others' places": lambda x: x.at[:, largest(x)].set(1.0),
    "histogram": lambda x: jnp.zeros(3).at[largest(x)].add(x[:, 0, 0]),
    "segments of all": lambda x: jax.ops.segment_sum(x, largest(x), SIZE),
    "counted twice": lambda x: x.at[jnp.arange(SIZE) // 2, largest(x)].add(x[:, 0]),
    "added in a loop, which may run on some": lambda x: lax.fori_loop(
        0, 2, lambda _, y: y.at[jnp.arange(SIZE), largest(y)].add(1.0), x
    ),
    "products of all pairs": lambda x: jnp.einsum("btd,ctd->bc", x, x),
    "sum of products": lambda x: jnp.einsum("btd,btd->td", x, x),
    "convolution over them": lambda x: lax.conv_general_dilated(
        x.transpose(1, 0, 2),
        jnp.ones((2, 3, 1)),
        (1,),
        "VALID",
        dimension_numbers=("NWC", "WIO", "NWC"),
    ),
    "kernels of examples": lambda x: lax.conv_general_dilated(
        jnp.ones((1, 9, 3)),
        x.transpose(1, 2, 0),
        (1,),
        "VALID",
        dimension_numbers=("NWC", "WIO", "NWC"),
    ),
    "windows": lambda x: lax.reduce_window(
        x, -jnp.inf, lax.max, (2, 1, 1), (1, 1, 1), "SAME"
    ),
    "nearly the largest of them": lambda x: lax.approx_max_k(
        x, 2, reduction_dimension=-3
    )[0],
    "windows, differentiated": jax.grad(lambda x: (pooled(x, 0) ** 3).sum()),
    "loop that turns": lambda x: lax.fori_loop(
        0, 2, lambda _, y: y.transpose(1, 0, 2), x[:, :4, :][:, jnp.arange(SIZE) % 4]
    ),
    "until one says so": lambda x: lax.while_loop(
        lambda y: y.sum() < 10, lambda y: y + 1, x
    ),
    "condition of one": lambda x: lax.cond(x[0, 0, 0] > 0, jnp.sin, jnp.cos, x),
    "matrices across them": lambda x: jnp.linalg.qr(x.transpose(1, 0, 2))[1],
    "spectrum of them": lambda x: jnp.fft.fft(x, axis=0).real,
    "spectrum over them, too": lambda x: jnp.fft.fftn(x).imag,
    "solved together": lambda x: jnp.linalg.solve(
        jnp.eye(SIZE) + x[:, 0] @ x[:, 0].T, x[:, 1]
    ),
    "unknown": lambda x: lax.linalg.hessenberg(matrices(x))[0],
}


def axis_of(function: Function, x: jax.Array = X) -> Any:
    program = flatten(jax.make_jaxpr(function)(x))
    needed = needed_for(program, program.outputs)
    depends = set(range(len(program.types)))
    return follow_examples(needed, [0], depends).axes[program.outputs[0]]


@pytest.mark.parametrize("name", APART)
def test_only_its_own_slice_changes_with_an_example(name: str) -> None:
    function, changed = APART[name], 3
    axis = axis_of(function)
    before, after = function(X), function(X.at[changed].multiply(-1.5))
    assert type(axis) is int  # and none of NumPy
    places, rest = divmod(before.shape[axis], SIZE)
    assert rest == 0
    gone = changed * places + np.arange(places)
    others = [np.delete(np.asarray(y), gone, axis) for y in (before, after)]
    np.testing.assert_array_equal(others[0], others[1])


@pytest.mark.parametrize("name", TOGETHER)
def test_what_may_mix_examples_is_refused(name: str) -> None:
    with pytest.raises(NotProvenError):
        axis_of(TOGETHER[name])


@pytest.mark.parametrize(
    "function", [jax.nn.softplus, jax.nn.log_sigmoid, jax.nn.mish, jnp.sinc]
)
def test_a_function_may_occur_in_its_own_derivative(function: Function) -> None:
    assert axis_of(function) == 0


def test_a_value_without_examples_has_no_axis() -> None:
    assert axis_of(lambda x: jnp.zeros(len(x)) + W.sum()) is None


def test_a_batch_of_one_example_is_not_repeated() -> None:
    with pytest.raises(NotProvenError):
        axis_of(lambda x: jnp.broadcast_to(x, (7, 4, 3)), X[:1])


def test_a_batch_of_one_example_may_be_flattened() -> None:
    assert axis_of(lambda x: x.reshape(4, 3).reshape(1, 4, 3).sum(axis=1), X[:1]) == 0
