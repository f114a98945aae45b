"""The slow reference: every formula as a plain loop, to hold the fast library against.

Nothing here comes from `pcn_jax` or JAX: NumPy in float64, a hand-written backward pass
of one example at a time, Python loops over examples and classes. Parameters and
gradients are dicts of arrays, class gradients a list of C such dicts. Every algorithm
is a weight for each class: `direction` is the weighted sum of the rows, `trajectory`
walks along it. A class that is absent or whose gradient is zero weighs 0.

Source: Francazi, Baity-Jesi, Lucchi, "A Theoretical Analysis of the Learning Dynamics
under Class Imbalance", ICML 2023, arXiv 2207.00391.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
Params = dict[str, Array]


def initial_params(
    rng: np.random.Generator, num_features: int, num_hidden: int, num_classes: int
) -> Params:
    """Draws the parameters of dense - tanh - dense, biases included."""
    return {
        "w1": rng.normal(size=(num_features, num_hidden)) / math.sqrt(num_features),
        "b1": 0.1 * rng.normal(size=num_hidden),
        "w2": rng.normal(size=(num_hidden, num_classes)) / math.sqrt(num_hidden),
        "b2": 0.1 * rng.normal(size=num_classes),
    }


def example_loss(params: Params, x: Array, label: int) -> float:
    """Softmax cross-entropy of one example `x` of shape [num_features]."""
    hidden = np.tanh(x @ params["w1"] + params["b1"])
    logits = hidden @ params["w2"] + params["b2"]
    top = logits.max()
    return float(top + np.log(np.exp(logits - top).sum()) - logits[label])


def example_gradient(params: Params, x: Array, label: int) -> Params:
    """Gradient of `example_loss`, backpropagated by hand."""
    hidden = np.tanh(x @ params["w1"] + params["b1"])
    logits = hidden @ params["w2"] + params["b2"]
    d_logits = np.exp(logits - logits.max())
    d_logits /= d_logits.sum()
    d_logits[label] -= 1.0
    d_hidden = (params["w2"] @ d_logits) * (1.0 - hidden**2)
    return {
        "w1": np.outer(x, d_hidden),
        "b1": d_hidden,
        "w2": np.outer(hidden, d_logits),
        "b2": d_logits,
    }


def class_counts(labels: Labels, num_classes: int) -> list[int]:
    """Examples of each class; a label below 0 is padding and belongs to none."""
    return [sum(1 for y in labels if y == c) for c in range(num_classes)]


def class_losses(
    params: Params, inputs: Array, labels: Labels, num_classes: int
) -> list[float]:
    """Mean loss of each class, 0 where it is absent."""
    means = []
    for c in range(num_classes):
        losses = [
            example_loss(params, x, c)
            for x, y in zip(inputs, labels, strict=True)
            if y == c
        ]
        means.append(sum(losses) / len(losses) if losses else 0.0)
    return means


def class_gradients(
    params: Params, inputs: Array, labels: Labels, num_classes: int
) -> list[Params]:
    """Row l is `(1/B) * sum of grad loss_i over class l`: the rows sum to the gradient.

    `B` counts the examples with a class; padding (a label below 0) is left out.
    """
    size = sum(class_counts(labels, num_classes))
    rows = []
    for c in range(num_classes):
        row = {name: np.zeros_like(value) for name, value in params.items()}
        for x, y in zip(inputs, labels, strict=True):
            if y == c:
                for name, value in example_gradient(params, x, c).items():
                    row[name] += value / size
        rows.append(row)
    return rows


def dot(a: Params, b: Params) -> float:
    """Inner product over all parameters at once, never per layer."""
    return math.fsum(float(v) for name in a for v in (a[name] * b[name]).ravel())


def norm(a: Params) -> float:
    """Global L2 norm over all parameters."""
    return math.sqrt(dot(a, a))


def cosine(a: Params, b: Params) -> float:
    """Cosine of the angle between two gradients, 0 where one of them is zero."""
    norms = norm(a) * norm(b)
    return dot(a, b) / norms if norms else 0.0


def class_weights(
    algorithm: str,
    rows: Sequence[Params],
    *,
    counts: Sequence[int] | None = None,
    full_rows: Sequence[Params] | None = None,
    max_norm: float = 1.0,
    min_alignment: float = 0.1,
    shares: Sequence[float] | None = None,
    max_adjusted_norm: float = 1.0,
) -> list[float]:
    """The weight of each row of class gradients in the descent direction.

    Args:
      algorithm: a name of the paper, "PCNSGD+R published" for what its code does
        (`prod_{k != l} p_k` where the pseudo-code has `1 / p_l`), "RW" for
        re-weighting by class frequency, "LA" for rows that are logit-adjusted
        already, "CLIP" for per-class clipping, or "CLIP+LA" for that of such rows.
      rows: class gradients of the batch, C dicts.
      counts: examples of each class in the batch, for "RW" and "CLIP".
      full_rows: class gradients over all data, for the two kinds of "+R".
      max_norm: length at which "CLIP" starts to shorten a class-mean gradient.
      shares: of the classes in all data, for "CLIP+LA", which shortens below
        `max_adjusted_norm` divided by C times the share.
      max_adjusted_norm: see `shares`.
      min_alignment: "PCNSGD+R" weighs by `1 / p_l` where `|p_l|` is at least this much
        and by `p_l / min_alignment**2` below, which is continuous and bounded.

    Returns:
      C weights, 0 for a class that is absent or whose gradient is zero.
    """
    norms = [norm(row) for row in rows]
    present = [c for c in range(len(rows)) if norms[c] > 0.0]
    weights = [0.0] * len(rows)
    for c in present:
        match algorithm:
            case "GD" | "SGD" | "SGD+O" | "LA":
                weights[c] = 1.0
            case "PCNGD" | "PCNSGD" | "PCNSGD+O":
                weights[c] = 1.0 / norms[c]
            case "PCNSGD+R":
                assert full_rows is not None
                p = cosine(rows[c], full_rows[c])
                inverse = 1.0 / p if abs(p) >= min_alignment else p / min_alignment**2
                weights[c] = inverse / norms[c]
            case "PCNSGD+R published":
                assert full_rows is not None
                others = [cosine(rows[k], full_rows[k]) for k in present if k != c]
                weights[c] = math.prod(others) / norms[c]
            case "RW":
                assert counts is not None
                weights[c] = sum(counts) / (len(counts) * counts[c])
            case "CLIP":
                assert counts is not None
                to_mean = sum(counts) / counts[c]
                weights[c] = to_mean / max(to_mean * norms[c], max_norm)
            case "CLIP+LA":
                assert counts is not None
                assert shares is not None
                to_mean = sum(counts) / counts[c]
                least = max_adjusted_norm / (len(rows) * shares[c])
                weights[c] = to_mean / max(to_mean * norms[c], least)
            case _:
                raise ValueError(f"no algorithm is called {algorithm!r}")
    return weights


def smoothed_weights(
    gradients: Sequence[Sequence[Params]],
    history: list[list[tuple[float, float]]],
    size: int,
    *,
    min_norm: float,
    decay: float,
    least_alignment: float,
) -> list[float]:
    """The weights of "SPLIT" from the gradients of single examples of each class.

    Args:
      gradients: of every example of each class in the batch, in its order.
      history: for each class, what was seen in the steps so far: inner products of its
        halves and squared lengths of its mean gradient; the new ones are added.
      size: examples in the batch.
      min_norm: the least norm that is divided by.
      decay: of an estimate's weight in the mean of all, from one step to the next.
      least_alignment: the least part of the mean length that is taken for the norm.

    Returns:
      C weights of the class gradients (shares of the batch's mean loss).
    """
    weights = []
    for of_class, estimates in zip(gradients, history, strict=True):
        count = len(of_class)
        if count == 0:
            weights.append(0.0)
            continue
        ones = [1.0] * count
        if count >= 2:
            a, b = (
                direction([1.0 / len(half)] * len(half), half)
                for half in (of_class[0::2], of_class[1::2])
            )
            whole = direction([1.0 / count] * count, of_class)
            estimates.append((dot(a, b), dot(whole, whole)))
        if estimates:
            ages = range(len(estimates) - 1, -1, -1)
            parts = [decay**age for age in ages]
            product, squared_length = (
                math.fsum(p * e for p, e in zip(parts, column, strict=True))
                / math.fsum(parts)
                for column in zip(*estimates, strict=True)
            )
            length = math.sqrt(max(product, least_alignment**2 * squared_length))
        else:
            length = norm(direction(ones, of_class)) / count
        weights.append(size / count / max(length, min_norm))
    return weights


def direction(weights: Sequence[float], rows: Sequence[Params]) -> Params:
    """The descent direction `d = sum_l w_l g_l`, subtracted from the parameters."""
    total = {name: np.zeros_like(value) for name, value in rows[0].items()}
    for weight, row in zip(weights, rows, strict=True):
        for name in total:
            total[name] += weight * row[name]
    return total


def trajectory(
    algorithm: str,
    params: Params,
    batches: Sequence[NDArray[np.int64]],
    full_batch: tuple[Array, Labels],
    *,
    learning_rate: float,
    steps: int,
    max_norm: float = 1.0,
    max_adjusted_norm: float = 1.0,
    min_alignment: float = 0.1,
    min_norm: float = 0.3,
    decay: float = 0.99,
    least_alignment: float = 0.5,
    momentum: float = 0.0,
    nesterov: bool = False,
) -> list[Params]:
    """The parameters before the first step and after each one, `steps + 1` dicts.

    Args:
      algorithm: as in `class_weights`, or "SPLIT" for the smoothed norm from halves;
        "GD" and "PCNGD" use all data at every step.
      params: parameters to start from; they are not modified.
      batches: indices into the data, one array a step; unused by "GD" and "PCNGD".
      full_batch: inputs [n, num_features] and labels [n] of all data.
      learning_rate: length of a step along the direction.
      steps: number of steps.
      max_norm: see `class_weights`.
      max_adjusted_norm: see `class_weights`.
      min_alignment: see `class_weights`.
      min_norm: see `smoothed_weights`.
      decay: see `smoothed_weights`.
      least_alignment: see `smoothed_weights`.
      momentum: heavy-ball factor, `m <- d + momentum * m`, the step going along `m`.
      nesterov: whether the step goes along `d + momentum * m` instead.
    """
    inputs, labels = full_batch
    num_classes = len(params["b2"])
    velocity = {name: np.zeros_like(value) for name, value in params.items()}
    history: list[list[tuple[float, float]]] = [[] for _ in range(num_classes)]
    of_data = [count / len(labels) for count in class_counts(labels, num_classes)]
    shares = [1 / num_classes] * num_classes if algorithm == "CLIP+LA" else of_data
    path = [params]
    for step in range(steps):
        everything = algorithm in ("GD", "PCNGD")
        batch = np.arange(len(labels)) if everything else batches[step]
        at = params
        if algorithm.endswith("LA"):  # to adjust the logits is to move their bias
            at = {**params, "b2": params["b2"] + np.log(shares)}
        rows = class_gradients(at, inputs[batch], labels[batch], num_classes)
        full_rows = None
        if algorithm.startswith("PCNSGD+R"):
            full_rows = class_gradients(params, inputs, labels, num_classes)
        if algorithm == "SPLIT":
            of_examples = [
                [
                    example_gradient(params, x, c)
                    for x, y in zip(inputs[batch], labels[batch], strict=True)
                    if y == c
                ]
                for c in range(num_classes)
            ]
            weights = smoothed_weights(
                of_examples,
                history,
                len(batch),
                min_norm=min_norm,
                decay=decay,
                least_alignment=least_alignment,
            )
        else:
            weights = class_weights(
                algorithm,
                rows,
                counts=class_counts(labels[batch], num_classes),
                full_rows=full_rows,
                max_norm=max_norm,
                min_alignment=min_alignment,
                shares=of_data,
                max_adjusted_norm=max_adjusted_norm,
            )
        if algorithm == "CLIP+LA":
            counts = class_counts(labels[batch], num_classes)
            parts = [w * n for w, n in zip(weights, counts, strict=True)]
            mixed = [
                0.9 * old + 0.1 * part / sum(parts) if count else old
                for old, part, count in zip(shares, parts, counts, strict=True)
            ]
            shares = [share / sum(mixed) for share in mixed]
        d = direction(weights, rows)
        velocity = {name: d[name] + momentum * velocity[name] for name in d}
        if nesterov:
            along = {name: d[name] + momentum * velocity[name] for name in d}
        else:
            along = velocity
        params = {name: params[name] - learning_rate * along[name] for name in d}
        path.append(params)
    return path
