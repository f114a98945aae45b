"""Losses of every kind that the fused path has to understand, each with its data.

Plain functions of arrays, without flax, so that what is tested is in sight.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

NUM_CLASSES = 3
LABELS = np.array([0, 2, 0, 0, 1, 0, 2], np.int32)


def in_float64(tree: Any) -> Any:
    return jax.tree.map(
        lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, tree
    )


class Case(NamedTuple):
    """A loss `[B]`, its parameters and what it takes besides the labels."""

    loss: Callable[..., jax.Array]
    params: Any
    inputs: Any
    args: tuple[Any, ...] = ()


def normal(seed: int, *shape: int) -> jax.Array:
    """Fixed pseudo-random numbers."""
    values = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(values, jnp.float32) * 0.5


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Softmax cross-entropy of each example."""
    losses: jax.Array = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses


def dense(x: jax.Array, layer: dict[str, jax.Array]) -> jax.Array:
    """A dense layer with a bias."""
    bias = layer["bias"]
    return x @ layer["kernel"] + bias.reshape((1,) * (x.ndim - 1) + bias.shape)


def layer(seed: int, inner: int, outer: int) -> dict[str, jax.Array]:
    """Its parameters."""
    return {"kernel": normal(seed, inner, outer), "bias": normal(seed + 1, outer)}


SIZE = len(LABELS)
IMAGES = normal(0, SIZE, 8, 8, 2)
TOKENS = np.random.default_rng(1).integers(0, 5, (SIZE, 4)).astype(np.int32)
SEQUENCES = normal(2, SIZE, 4, 6)


def mlp(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    hidden = jax.nn.relu(dense(x, params["one"]))
    return cross_entropy(dense(hidden, params["two"]), y)


MLP = {"one": layer(10, 6, 5), "two": layer(12, 5, NUM_CLASSES)}


def conv(x: jax.Array, kernel: jax.Array, **options: Any) -> jax.Array:
    options = {"window_strides": (1, 1), "padding": "SAME", **options}
    numbers = options.pop("dimension_numbers", ("NHWC", "HWIO", "NHWC"))
    return jax.lax.conv_general_dilated(x, kernel, dimension_numbers=numbers, **options)


def cnn(params: Any, x: jax.Array, y: jax.Array, **options: Any) -> jax.Array:
    hidden = jnp.tanh(conv(x, params["kernel"], **options))
    return cross_entropy(dense(hidden.mean(axis=(1, 2)), params["head"]), y)


def _cnn(kernel: tuple[int, ...], **options: Any) -> Case:
    params = {"kernel": normal(20, *kernel), "head": layer(21, kernel[-1], NUM_CLASSES)}
    return Case(lambda p, x, y: cnn(p, x, y, **options), params, IMAGES)


def channels_first(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    numbers = ("NCHW", "OIHW", "NCHW")
    hidden = conv(x, params["kernel"], dimension_numbers=numbers, padding="VALID")
    hidden = jax.nn.relu(hidden).max(axis=(2, 3))
    return cross_entropy(dense(hidden, params["head"]), y)


def layer_norm(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    mean = x.mean(axis=-1, keepdims=True)
    deviation = jnp.sqrt(((x - mean) ** 2).mean(axis=-1, keepdims=True) + 1e-3)
    scale, shift = (v.reshape((1,) * (x.ndim - 1) + v.shape) for v in (scale, shift))
    return (x - mean) / deviation * scale + shift


def attention(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    x = params["table"][x] + params["position"][None]
    x = layer_norm(x, params["scale"], params["shift"])
    q, k, v = (jnp.einsum("btd,dhe->bthe", x, params[name]) for name in "qkv")
    weights = jax.nn.softmax(jnp.einsum("bthe,bshe->bhts", q, k), axis=-1)
    mixed = jnp.einsum("bhts,bshe->bthe", weights, v)
    x = x + jnp.einsum("bthe,hed->btd", mixed, params["out"])
    return cross_entropy(dense(jax.nn.gelu(x).mean(axis=1), params["head"]), y)


ATTENTION = {
    "table": normal(30, 5, 6),
    "position": normal(31, 4, 6),
    "scale": 1 + normal(32, 6),
    "shift": normal(33, 6),
    **{name: normal(34 + k, 6, 2, 3) for k, name in enumerate("qkv")},
    "out": normal(38, 2, 3, 6),
    "head": layer(39, 6, NUM_CLASSES),
}


def recurrent(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    def step(h: jax.Array, now: jax.Array) -> tuple[jax.Array, None]:
        return jnp.tanh(dense(h, params["inner"]) + now @ params["outer"]), None

    start = jnp.zeros((len(x), 5), x.dtype)
    last, _ = jax.lax.scan(step, start, x.transpose(1, 0, 2))
    return cross_entropy(dense(last, params["head"]), y)


def shared(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Used twice, once transposed, and once through a nonlinear function."""
    hidden = jnp.tanh(x @ params["w"])
    hidden = jnp.tanh(hidden @ params["w"].T) @ jnp.sin(params["w"])
    return cross_entropy(dense(hidden, params["head"]), y)


def tied(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    hidden = jnp.tanh(params["table"][x].mean(axis=1) @ params["w"])
    return cross_entropy((hidden @ params["table"].T)[:, :NUM_CLASSES], y)


def normalised_weights(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    v = params["v"]
    w = params["g"][None, :] * v / jnp.sqrt((v * v).sum(axis=0, keepdims=True))
    return cross_entropy(x @ w, y)


def with_dropout(params: Any, x: jax.Array, y: jax.Array, key: Any) -> jax.Array:
    hidden = jax.nn.relu(dense(x, params["one"]))
    keep = jax.random.bernoulli(key, 0.5, hidden.shape)
    return cross_entropy(dense(jnp.where(keep, 2 * hidden, 0), params["two"]), y)


def with_decay(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    decay = jnp.stack([(w * w).sum() for w in jax.tree.leaves(params)]).sum()
    return mlp(params, x, y) + 0.1 * decay


def rematerialised(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    @jax.checkpoint
    def block(one: Any, x: jax.Array) -> jax.Array:
        return jnp.tanh(dense(x, one))

    hidden = jax.jit(block)(params["one"], x)
    return cross_entropy(dense(hidden, params["two"]), y)


@jax.custom_vjp
def reversed_gradient(x: jax.Array) -> jax.Array:
    return 2 * x


reversed_gradient.defvjp(lambda x: (2 * x, None), lambda _, g: (-g,))


def with_custom_derivative(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    hidden = reversed_gradient(jnp.tanh(dense(x, params["one"])))
    return cross_entropy(dense(hidden, params["two"]), y)


@jax.custom_vjp
def custom_scale(x: jax.Array, scale: jax.Array) -> jax.Array:
    return x * scale


custom_scale.defvjp(
    lambda x, s: (x * s, (x, s)), lambda saved, g: (g * saved[1], (g * saved[0]).sum())
)


def parameter_in_a_custom_function(
    params: Any, x: jax.Array, y: jax.Array
) -> jax.Array:
    return mlp(params["mlp"], custom_scale(x, params["scale"]), y)


def frozen(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    params = {"one": jax.lax.stop_gradient(params["one"]), "two": params["two"]}
    return mlp(params, x, y)


def scalars(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Parameters of every rank, one of them used by no example."""
    hidden = jnp.maximum(x * params["slope"], params["w"][None, :]) + params["one"]
    return jnp.square(hidden.sum(axis=1) - y.astype(x.dtype))


def of_frames(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Each frame of a film by itself, and a frame after the other."""
    frames = x.reshape(-1, 4, *x.shape[2:])
    maps = conv(frames, params["kernel"], padding="SAME")
    maps = jnp.tanh(maps + params["bias"][None, None, None])
    hidden = maps.mean(axis=(1, 2)) * params["scale"][None]
    hidden = jnp.tanh(hidden @ params["w"]).reshape(len(x), 2, -1)
    return cross_entropy(dense((hidden @ params["w"]).sum(axis=1), params["head"]), y)


def of_tokens(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """A loss for each token, all tokens on one axis."""
    log_probs = jax.nn.log_softmax(dense(params["table"][x.ravel()], params["head"]))
    of_each = log_probs[jnp.arange(x.size), jnp.repeat(y, x.shape[1])]
    return -of_each.reshape(x.shape).mean(axis=1)


def with_margins(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Rare classes have to be ahead by more, as in LDAM (Cao et al., 2019)."""
    margins = jnp.linspace(0.1, 0.5, NUM_CLASSES)
    logits = dense(jnp.tanh(dense(x, params["one"])), params["two"])
    return cross_entropy(logits.at[jnp.arange(len(y)), y].add(-margins[y]), y)


def of_graphs(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Messages between the nodes of each graph, added up where they arrive."""
    nodes = jnp.stack([x[:, :4], x[:, 2:6], x[:, 1:5]], axis=1)
    sender, receiver = jnp.array([0, 1, 1, 2]), (y[:, None] + jnp.arange(4)[None]) % 3
    messages = jnp.tanh(nodes @ params["w"])[:, sender]
    arrived = jax.vmap(lambda m, at: jax.ops.segment_sum(m, at, 3))(messages, receiver)
    arrived = jnp.tanh(arrived + nodes @ params["own"])
    return cross_entropy(dense(arrived.sum(axis=1), params["head"]), y)


def with_a_place_set(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """A learned token in the place of the first, and places of its own in another."""
    hidden = (x[:, :, None] * params["in"][None, None]).at[:, 0].set(params["first"])
    hidden = hidden.at[jnp.arange(len(y)), y, 1].add(params["added"])
    of_labels = (
        jnp.zeros((len(y), NUM_CLASSES))
        .at[jnp.arange(len(y)), y]
        .set(jnp.tanh(hidden).sum(axis=(1, 2)))
    )
    return cross_entropy(dense(jnp.tanh(hidden).mean(1), params["head"]) + of_labels, y)


def of_matrices(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """A matrix of each example is inverted and factored between parameters."""
    hidden = dense(x, params["one"]).reshape(len(x), 2, 2)
    matrices = hidden @ hidden.transpose(0, 2, 1) + params["ridge"] * jnp.eye(2)[None]
    solved = jnp.linalg.solve(matrices, hidden * params["scale"][None])
    lower = jnp.linalg.cholesky(matrices)
    return cross_entropy(dense((solved + lower).reshape(len(x), -1), params["two"]), y)


def of_spectra(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Tokens are mixed by Fourier transforms, and filtered by complex weights."""
    hidden = dense(x, params["one"])
    hidden += jnp.fft.fft2(hidden).real
    spectrum = jnp.fft.rfft(hidden, axis=1)
    spectrum *= jax.lax.complex(params["real"], params["imaginary"])[None]
    spectrum += params["shift"].astype(spectrum.dtype)[None, None]
    hidden = jnp.fft.irfft(spectrum, n=x.shape[1], axis=1)
    return cross_entropy(dense(jnp.tanh(hidden).mean(axis=1), params["head"]), y)


def of_two_inputs(params: Any, x: dict[str, jax.Array], y: jax.Array) -> jax.Array:
    hidden = dense(x["left"], params["one"]) * x["right"][:, None]
    return cross_entropy(dense(jnp.tanh(hidden), params["two"]), y)


def masked_weights(params: Any, x: jax.Array, y: jax.Array, mask: Any) -> jax.Array:
    """A mask that differs between examples is laid on parameters, not on inputs."""
    hidden = x * (mask * params["scale"][None, :])
    return mlp(params["mlp"], hidden, y)


def experts(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Several matrices side by side, mixed by a gate, in a loop of fixed length."""
    outputs = jnp.einsum("bd,edo->beo", x, params["experts"])
    gate = jax.nn.softmax(x @ params["gate"], axis=-1)
    mixed = (outputs * gate[:, :, None]).sum(axis=1)
    mixed = jax.lax.fori_loop(0, 2, lambda _, h: jnp.tanh(h), mixed)
    return cross_entropy(mixed, y)


def one_matrix_each(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Products of several vectors with as many matrices, side by side."""
    left, right = jnp.unstack(jnp.tile(x, (1, 2)).reshape(len(x), 2, -1), axis=1)
    several = jnp.stack([left, jnp.tanh(right)], axis=1)
    return cross_entropy(jnp.einsum("bed,edo->beo", several, params).sum(axis=1), y)


def crossed(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """What is summed lies in another order in the tokens than in the kernel."""
    parts = x.reshape(*x.shape[:2], 2, 3)
    mixed = jnp.einsum("bthe,edh->btd", parts, params["kernel"])
    return cross_entropy(dense(jnp.tanh(mixed).mean(axis=1), params["head"]), y)


def joined(params: Any, x: jax.Array, y: jax.Array, more: Any) -> jax.Array:
    """Kernels joined with each other, and one with numbers that are none."""
    both = jnp.concatenate([params["left"], params["right"]], axis=1)
    other = jnp.concatenate([params["other"], more], axis=1)
    return cross_entropy(jnp.tanh(x @ both) @ other, y)


def learned_token(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """One for what is masked, and positions, both repeated for the examples."""
    hidden = jnp.where(x[..., :1] > 0.3, params["token"], x)
    hidden = hidden + jnp.broadcast_to(params["positions"], x.shape)
    return cross_entropy(dense(jnp.tanh(hidden).mean(axis=1), params["head"]), y)


def latents(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Queries that are learned, and go through a matrix before they meet examples."""
    queries = jnp.tile(params["latents"][None], (len(x), 1, 1)) @ params["query"]
    scores = jnp.einsum("bqd,btd->bqt", queries, x @ params["key"])
    mixed = jnp.einsum("bqt,btd->bqd", jax.nn.softmax(scores), x).mean(axis=1)
    return cross_entropy(dense(mixed, params["head"]), y)


def summed_copies(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """A parameter that is repeated for the examples, and added up again."""
    repeated = jnp.broadcast_to(params["shift"], x.shape)
    return mlp(params["mlp"], x + repeated.sum(axis=0, keepdims=True) / len(x), y)


def hard_examples(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Examples meet in a threshold, through which no derivative goes."""
    losses = mlp(params, x, y)
    return jnp.where(losses >= jnp.quantile(losses, 0.4), losses, 0.0)


def solved_with_one_matrix(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """All examples are columns, or rows, beside one triangular matrix."""
    matrix = jnp.tril(params["matrix"], -1) + 2 * jnp.eye(6, dtype=x.dtype)
    solve = functools.partial(jax.lax.linalg.triangular_solve, matrix, lower=True)
    columns = jax.vmap(lambda row: solve(row[:, None], left_side=True)[:, 0])(x)
    return mlp(params["mlp"], columns + solve(x), y)


CASES = {
    "mlp": Case(mlp, MLP, normal(3, SIZE, 6)),
    "learned token": Case(
        learned_token,
        {
            "token": normal(90, 6),
            "positions": normal(91, 4, 6),
            "head": layer(92, 6, NUM_CLASSES),
        },
        normal(93, SIZE, 4, 6),
    ),
    "latents": Case(
        latents,
        {
            "latents": normal(94, 2, 6),
            "query": normal(95, 6, 5),
            "key": normal(96, 6, 5),
            "head": layer(97, 6, NUM_CLASSES),
        },
        normal(98, SIZE, 4, 6),
    ),
    "summed copies": Case(
        summed_copies, {"shift": normal(99, 6), "mlp": MLP}, normal(3, SIZE, 6)
    ),
    "hard examples": Case(hard_examples, MLP, normal(3, SIZE, 6)),
    "solved with one matrix": Case(
        solved_with_one_matrix,
        {"matrix": normal(89, 6, 6), "mlp": MLP},
        normal(3, SIZE, 6),
    ),
    "conv": _cnn((3, 3, 2, 4)),
    "strided conv": _cnn((3, 2, 2, 4), window_strides=(2, 3), padding="VALID"),
    "dilated conv": _cnn((3, 3, 2, 4), rhs_dilation=(2, 1), padding=((1, 2), (0, 1))),
    "transposed conv": _cnn(
        (3, 3, 2, 4), lhs_dilation=(2, 2), padding=((2, 1), (0, 2))
    ),
    "depthwise conv": _cnn((3, 3, 1, 4), feature_group_count=2),
    "strided depthwise conv": _cnn(
        (3, 2, 1, 4),
        feature_group_count=2,
        window_strides=(2, 3),
        lhs_dilation=(1, 2),
        rhs_dilation=(2, 1),
        padding=((1, 2), (0, 1)),
    ),
    "grouped conv": _cnn((3, 3, 2, 4), feature_group_count=2)._replace(
        inputs=normal(88, SIZE, 8, 8, 4)
    ),
    "more weights than positions": Case(
        cnn,
        {"kernel": normal(24, 3, 3, 8, 16), "head": layer(25, 16, NUM_CLASSES)},
        normal(26, SIZE, 2, 2, 8),
    ),
    "channels first": Case(
        channels_first,
        {"kernel": normal(22, 4, 2, 3, 3), "head": layer(23, 4, NUM_CLASSES)},
        IMAGES.transpose(0, 3, 1, 2),
    ),
    "attention": Case(attention, ATTENTION, TOKENS),
    "recurrent": Case(
        recurrent,
        {
            "inner": layer(50, 5, 5),
            "outer": normal(52, 6, 5),
            "head": layer(53, 5, NUM_CLASSES),
        },
        SEQUENCES,
    ),
    "shared": Case(
        shared,
        {"w": normal(60, 6, 5), "head": layer(61, 5, NUM_CLASSES)},
        normal(3, SIZE, 6),
    ),
    "frames": Case(
        of_frames,
        {
            "kernel": normal(70, 3, 3, 2, 4),
            "bias": normal(71, 4),
            "scale": 1 + normal(72, 4),
            "w": normal(73, 4, 4),
            "head": layer(74, 4, NUM_CLASSES),
        },
        IMAGES,
    ),
    "tokens": Case(
        of_tokens,
        {"table": normal(76, 5, 4), "head": layer(77, 4, NUM_CLASSES)},
        TOKENS,
    ),
    "margins": Case(with_margins, MLP, normal(3, SIZE, 6)),
    "graphs": Case(
        of_graphs,
        {
            "w": normal(78, 4, 5),
            "own": normal(79, 4, 5),
            "head": layer(80, 5, NUM_CLASSES),
        },
        normal(3, SIZE, 6),
    ),
    "a place set": Case(
        with_a_place_set,
        {
            "in": normal(81, 4),
            "first": normal(82, 4),
            "added": normal(83),
            "head": layer(84, 4, NUM_CLASSES),
        },
        normal(3, SIZE, 6),
    ),
    "matrices": Case(
        of_matrices,
        {
            "one": layer(88, 6, 4),
            "two": layer(89, 4, NUM_CLASSES),
            "ridge": 1 + jnp.square(normal(90)),
            "scale": normal(91, 2, 2),
        },
        normal(3, SIZE, 6),
    ),
    "spectra": Case(
        of_spectra,
        {
            "one": layer(92, 6, 5),
            "real": normal(93, 3, 5),
            "imaginary": normal(94, 3, 5),
            "shift": normal(95, 5),
            "head": layer(96, 5, NUM_CLASSES),
        },
        SEQUENCES,
    ),
    "tied": Case(tied, {"table": normal(62, 5, 4), "w": normal(63, 4, 4)}, TOKENS),
    "normalised weights": Case(
        normalised_weights,
        {"v": normal(64, 6, NUM_CLASSES), "g": normal(65, NUM_CLASSES)},
        normal(3, SIZE, 6),
    ),
    "dropout": Case(with_dropout, MLP, normal(3, SIZE, 6), (jax.random.key(0),)),
    "weight decay": Case(with_decay, MLP, normal(3, SIZE, 6)),
    "rematerialised": Case(rematerialised, MLP, normal(3, SIZE, 6)),
    "custom derivative": Case(with_custom_derivative, MLP, normal(3, SIZE, 6)),
    "parameter in a custom function": Case(
        parameter_in_a_custom_function,
        {"mlp": MLP, "scale": normal(66)},
        normal(3, SIZE, 6),
    ),
    "frozen": Case(frozen, MLP, normal(3, SIZE, 6)),
    "scalars": Case(
        scalars,
        {
            "slope": normal(67),
            "w": normal(68, 6),
            "one": normal(69),
            "no": normal(70, 2),
        },
        normal(3, SIZE, 6),
    ),
    "two inputs": Case(
        of_two_inputs, MLP, {"left": normal(3, SIZE, 6), "right": normal(4, SIZE)}
    ),
    "masked weights": Case(
        masked_weights,
        {"mlp": MLP, "scale": normal(71, 6)},
        normal(3, SIZE, 6),
        (normal(72, SIZE, 6),),
    ),
    "one matrix each": Case(
        one_matrix_each, normal(75, 2, 6, NUM_CLASSES), normal(3, SIZE, 6)
    ),
    "joined": Case(
        joined,
        {
            "left": normal(78, 6, 2),
            "right": normal(79, 6, 3),
            "other": normal(80, 5, 2),
        },
        normal(3, SIZE, 6),
        (normal(81, 5, 1),),
    ),
    "crossed": Case(
        crossed,
        {"kernel": normal(76, 3, 4, 2), "head": layer(77, 4, NUM_CLASSES)},
        SEQUENCES,
    ),
    "experts": Case(
        experts,
        {"experts": normal(73, 4, 6, NUM_CLASSES), "gate": normal(74, 6, 4)},
        normal(3, SIZE, 6),
    ),
}


def scanned(x: jax.Array) -> jax.Array:
    def step(total: jax.Array, now: jax.Array) -> tuple[jax.Array, jax.Array]:
        return total + now, total

    return jax.lax.scan(step, jnp.zeros_like(x[0]), x)[1]


@jax.custom_vjp
def mixed_backwards(x: jax.Array) -> jax.Array:
    return x


mixed_backwards.defvjp(
    lambda x: (x, None), lambda _, g: (g - g.mean(0, keepdims=True),)
)


def merged_axes(x: jax.Array) -> jax.Array:
    """Independent, but not in a way that is followed."""
    both = jnp.stack([x, 2 * x], axis=0).reshape(2 * len(x), -1)
    return both.reshape(2, len(x), -1).mean(axis=0)


STATISTICS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "mean": lambda x: x - x.mean(axis=0, keepdims=True),
    "mean and variance": lambda x: (
        (x - x.mean(0, keepdims=True)) / (0.1 + x.std(0, keepdims=True))
    ),
    "largest": lambda x: x / (1 + jnp.abs(x).max()),
    "covariance": lambda x: x @ (x.T @ x),
    "weighted mean": lambda x: x - jnp.linspace(0, 1, len(x))[None] @ x,
}
"""Layers in which examples meet in values that all of them share."""

MIXTURES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tiled": lambda x: jnp.tile(x, (2, 1))[1 : 1 + len(x)],
    "taken apart": lambda x: x - jnp.unstack(x, axis=0)[0][None],
    "contrastive": lambda x: jnp.tanh(x @ x.T) @ x,
    "neighbours": lambda x: x + jnp.roll(x, 1, axis=0),
    "mixup": lambda x: 0.7 * x + 0.3 * x[np.random.default_rng(0).permutation(len(x))],
    "reversed": lambda x: x[::-1],
    "sorted": lambda x: jnp.sort(x, axis=0),
    "running sum": lambda x: jnp.cumsum(x, axis=0),
    "looked up": lambda x: x[LABELS],
    "scanned": scanned,
    "backwards": mixed_backwards,
    "merged axes": merged_axes,
}
"""Layers in which they meet otherwise."""


def mixed_inputs(mixture: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A loss with such a layer before all parameters."""

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return mlp(params, mixture(x), y)

    return loss


def mixed_hidden(mixture: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A loss with such a layer between its parameters."""

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        hidden = jnp.tanh(mixture(dense(x, params["one"])))
        return cross_entropy(dense(hidden, params["two"]), y)

    return loss


def relative_loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    losses = mlp(params, x, y)
    return losses / losses.sum()


INTERACTING = {
    **{name: mixed_hidden(x) for name, x in (STATISTICS | MIXTURES).items()},
    "relative loss": relative_loss,
}
