"""Losses with loops in which parameters meet examples."""

from typing import Any

import jax
import jax.numpy as jnp
from fused_losses import (
    NUM_CLASSES,
    SEQUENCES,
    SIZE,
    Case,
    cross_entropy,
    dense,
    layer,
    layer_norm,
    normal,
)
from jax import lax

DEPTH, WIDTH = 3, 6


def stacked(one: Any) -> Any:
    """Parameters of each of several layers."""
    return jax.tree.map(lambda x: jnp.stack([x * (1 + k) for k in range(DEPTH)]), one)


HEAD = layer(80, WIDTH, NUM_CLASSES)
BLOCK = {
    "mlp": layer(81, WIDTH, WIDTH),
    "norm": {"scale": 1 + normal(83, WIDTH), "shift": normal(84, WIDTH)},
    "slope": normal(85),
}


def block(x: jax.Array, params: Any) -> jax.Array:
    inner = dense(layer_norm(x, **params["norm"]), params["mlp"])
    slope: jax.Array = params["slope"]
    return x + slope * jnp.tanh(inner)


def head(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return cross_entropy(dense(x, params["head"]), y)


def layers(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    x, _ = lax.scan(lambda x, p: (block(x, p), None), x, params["blocks"])
    return head(params, x.mean(axis=1), y)


def flat_layers(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """All tokens of all examples are on one axis, before the loop and in it."""

    def step(x: jax.Array, p: Any) -> tuple[jax.Array, None]:
        x = block(x, p).reshape(2 * SIZE, -1) @ params["w"]
        return x.reshape(4 * SIZE, -1), None

    x, _ = lax.scan(step, x.reshape(4 * SIZE, -1), params["blocks"])
    return head(params, x.reshape(SIZE, 4, -1).mean(axis=1), y)


def one_layer_again(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """The same weights in every step, which are also counted, and rematerialised."""
    again = jax.checkpoint(lambda x: block(x, params["block"]))
    x = lax.fori_loop(0, DEPTH, lambda k, x: again(x) * (1 + k), x)
    return head(params, x.mean(axis=1), y)


def gated(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Backwards, from a start that is learned, with kernels joined in every step."""

    def step(h: jax.Array, now: jax.Array) -> tuple[jax.Array, jax.Array]:
        kernel = jnp.concatenate([params["gate"], params["value"]], axis=1)
        gate, value = jnp.split(jnp.concatenate([h, now], axis=1) @ kernel, 2, axis=1)
        h = h + jax.nn.sigmoid(gate) * jnp.tanh(value)
        return h, h

    start = jnp.broadcast_to(params["start"], (len(x), WIDTH))
    _, states = lax.scan(step, start, x.transpose(1, 0, 2), reverse=True)
    return head(params, states.mean(axis=0), y)


def chosen(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Each number is a product or a parameter; a loop before has no derivative."""
    frozen = lax.stop_gradient(params["w"])

    def settle(carry: Any) -> Any:
        h, k = carry
        return jnp.tanh(h @ frozen), k + 1

    start, _ = lax.while_loop(lambda carry: carry[1] < 2, settle, (x[:, 0], 0))

    def step(h: jax.Array, now: jax.Array) -> tuple[jax.Array, None]:
        return jnp.where(now > 0, h @ params["w"], params["otherwise"]), None

    last, _ = lax.scan(step, start, x.transpose(1, 0, 2))
    return head(params, last, y)


def kernel_first(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """The kernel is on the left, of products side by side, too."""

    def step(h: jax.Array, now: jax.Array) -> tuple[jax.Array, None]:
        h = jnp.einsum("oi,ib->ob", params["inner"], h)
        now = jnp.einsum("eod,bed->eob", params["outer"], now)
        return jnp.tanh(h + now.sum(axis=0)), None

    parts = x.reshape(SIZE, 4, 2, 3).transpose(1, 0, 2, 3)
    last, _ = lax.scan(step, jnp.zeros((WIDTH, SIZE), x.dtype), parts)
    return head(params, last.T, y)


def twice_in_a_step(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Of products and of sums: cross terms between the uses count."""

    def step(h: jax.Array, now: jax.Array) -> tuple[jax.Array, None]:
        w, b = params["w"], params["b"][None, :]
        return jnp.tanh((h @ w + b) @ w.T + now * b), None

    last, _ = lax.scan(step, x[:, 0], x.transpose(1, 0, 2))
    return head(params, last, y)


def not_only_added(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Products that are added, but have another gradient: used again, or returned."""

    def step(h: jax.Array, now: jax.Array) -> tuple[jax.Array, jax.Array]:
        again, returned = h @ params["w"], h @ params["v"]
        return (again + now) * jnp.tanh(again) + (returned + now), returned

    last, products = lax.scan(step, x[:, 0], x.transpose(1, 0, 2))
    return head(params, jnp.tanh(last) + products.sum(axis=0), y)


def parts_added(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Halves of products that are added, as in an LSTM; and crosswise, as nowhere."""

    def step(h: jax.Array, now: jax.Array) -> tuple[jax.Array, None]:
        (a, b), (c, d), (e, f), (g, i) = (
            jnp.split(value @ params[name], 2, axis=1)
            for value, name in ((h, "p"), (now, "q"), (h, "r"), (now, "s"))
        )
        gated = jax.nn.sigmoid(a + c) * jnp.tanh(b + d)
        return gated + jax.nn.sigmoid(e + i) * jnp.tanh(f + g), None

    last, _ = lax.scan(step, x[:, 0], x.transpose(1, 0, 2))
    return head(params, last, y)


def slices_twice(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """The same in layers, one of which is also used outside."""

    def step(h: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
        return jnp.tanh(jnp.tanh(h @ w) @ w.T), None

    last, _ = lax.scan(step, x[:, 0], params["w"])
    return head(params, last @ params["w"][1], y)


def given_twice(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """The same parameters are scanned in two places."""

    def step(h: jax.Array, given: Any) -> tuple[jax.Array, None]:
        one, again = given
        return jnp.tanh(h @ (one * again) + h @ one), None

    last, _ = lax.scan(step, x[:, 0], (params["w"], params["w"]))
    return head(params, last, y)


def convolved(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Neither product nor bias: each has its own kernel, and a table."""

    def step(h: jax.Array, given: Any) -> tuple[jax.Array, None]:
        kernel, table = given
        h = lax.conv_general_dilated(
            h, kernel, (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC")
        )
        return jnp.tanh(h + table[(h[:, :, 0] > 0).astype(jnp.int32)]), None

    last, _ = lax.scan(step, x, (params["kernels"], params["tables"]))
    return head(params, last.mean(axis=1), y)


def nested(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """A loop over time in one over layers."""

    def one(x: jax.Array, p: Any) -> tuple[jax.Array, None]:
        def step(h: jax.Array, now: jax.Array) -> tuple[jax.Array, jax.Array]:
            h = jnp.tanh(dense(h, p["mlp"]) + now)
            return h, h

        start = jnp.zeros((SIZE, WIDTH), x.dtype)
        _, states = lax.scan(step, start, x.transpose(1, 0, 2))
        return states.transpose(1, 0, 2) * p["slope"], None

    x, _ = lax.scan(one, x, params["blocks"])
    return head(params, x.mean(axis=1), y)


def masked_steps(params: Any, x: jax.Array, y: jax.Array, key: Any) -> jax.Array:
    """Dropout with a key for each step, and a factor that is counted."""

    def step(h: jax.Array, given: Any) -> tuple[jax.Array, None]:
        w, key, number = given
        kept = jax.random.bernoulli(key, 0.7, h.shape)
        return jnp.tanh(jnp.where(kept, h, 0) @ (w * number)), None

    keys, numbers = (
        jax.random.split(key, DEPTH),
        jnp.arange(1, DEPTH + 1, dtype=x.dtype),
    )
    last, _ = lax.scan(step, x[:, 0], (params["w"], keys, numbers))
    return head(params, last, y)


def keys_of_examples(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Each example has a key, which the loop splits, and folds numbers in."""

    def one(x: jax.Array, key: jax.Array) -> jax.Array:
        def step(carry: Any, given: Any) -> tuple[Any, None]:
            (h, key), (w, number) = carry, given
            key, now = jax.random.split(key)
            kept = jax.random.bernoulli(jax.random.fold_in(now, number), 0.7, h.shape)
            return (jnp.tanh(jnp.where(kept, h, 0) @ w), key), None

        numbers = jnp.arange(DEPTH, dtype=jnp.uint32)
        (last, _), _ = lax.scan(step, (x[0], key), (params["w"], numbers))
        return last

    keys = jax.random.split(jax.random.key(2), len(x))
    return head(params, jax.vmap(one)(x, keys), y)


def no_steps(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """No layers, and a kernel without numbers."""
    last, _ = lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x[:, 0], params["w"])
    return head(params, last + x[:, 0, :0] @ params["none"], y)


def weights_that_change(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """The loop carries parameters."""

    def step(carry: Any, now: jax.Array) -> tuple[Any, None]:
        h, w = carry
        return (jnp.tanh(h @ w + now), w * 0.9), None

    start = x[:, 0], params["w"]
    (last, _), _ = lax.scan(step, start, x.transpose(1, 0, 2))
    return head(params, last, y)


def returned(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """The loop returns slices, what is made of them, and what all steps use."""

    @jax.checkpoint
    def step(h: jax.Array, w: jax.Array) -> tuple[jax.Array, Any]:
        scale = params["scale"]
        of_step = {"w": w, "sine": jnp.sin(w), "square": jnp.sum(w**2), "scale": scale}
        return jnp.tanh(h @ w * scale[None]), of_step

    last, found = lax.scan(step, x[:, 0], params["w"], reverse=True)
    last = last @ found["w"][0] + last @ found["sine"][1] + found["scale"][2][None]
    losses: jax.Array = head(params, last, y) + 0.1 * found["square"].sum()
    return losses


_SQUARES = normal(90, DEPTH, WIDTH, WIDTH)
OPENED = {
    "layers": Case(layers, {"blocks": stacked(BLOCK), "head": HEAD}, SEQUENCES),
    "flat layers": Case(
        flat_layers,
        {
            "blocks": stacked(BLOCK),
            "w": normal(86, 2 * WIDTH, 2 * WIDTH),
            "head": HEAD,
        },
        SEQUENCES,
    ),
    "one layer again": Case(one_layer_again, {"block": BLOCK, "head": HEAD}, SEQUENCES),
    "gated": Case(
        gated,
        {
            "gate": normal(91, 2 * WIDTH, WIDTH),
            "value": normal(92, 2 * WIDTH, WIDTH),
            "start": normal(93, 1, WIDTH),
            "head": HEAD,
        },
        SEQUENCES,
    ),
    "chosen": Case(
        chosen,
        {"w": _SQUARES[0], "otherwise": normal(89, WIDTH), "head": HEAD},
        SEQUENCES,
    ),
    "kernel first": Case(
        kernel_first,
        {"inner": _SQUARES[0], "outer": normal(94, 2, WIDTH, 3), "head": HEAD},
        SEQUENCES,
    ),
    "twice in a step": Case(
        twice_in_a_step,
        {"w": _SQUARES[0], "b": normal(95, WIDTH), "head": HEAD},
        SEQUENCES,
    ),
    "not only added": Case(
        not_only_added,
        {"w": _SQUARES[0], "v": _SQUARES[1], "head": HEAD},
        SEQUENCES,
    ),
    "parts added": Case(
        parts_added,
        {**{k: normal(99 + ord(k), WIDTH, 2 * WIDTH) for k in "pqrs"}, "head": HEAD},
        SEQUENCES,
    ),
    "slices twice": Case(slices_twice, {"w": _SQUARES, "head": HEAD}, SEQUENCES),
    "given twice": Case(given_twice, {"w": _SQUARES, "head": HEAD}, SEQUENCES),
    "convolved": Case(
        convolved,
        {
            "kernels": normal(96, DEPTH, 3, WIDTH, WIDTH),
            "tables": normal(97, DEPTH, 2, WIDTH),
            "head": HEAD,
        },
        SEQUENCES,
    ),
    "nested": Case(nested, {"blocks": stacked(BLOCK), "head": HEAD}, SEQUENCES),
    "returned": Case(
        returned,
        {"w": _SQUARES, "scale": 1 + normal(88, WIDTH), "head": HEAD},
        SEQUENCES,
    ),
    "no steps": Case(
        no_steps,
        {"w": _SQUARES[:0], "none": normal(98, 0, WIDTH), "head": HEAD},
        SEQUENCES,
    ),
    "keys of examples": Case(
        keys_of_examples, {"w": _SQUARES, "head": HEAD}, SEQUENCES
    ),
    "masked steps": Case(
        masked_steps, {"w": _SQUARES, "head": HEAD}, SEQUENCES, (jax.random.key(1),)
    ),
}
WHOLE = {
    "weights that change": Case(
        weights_that_change, {"w": _SQUARES[0], "head": HEAD}, SEQUENCES
    ),
}
