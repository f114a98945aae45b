"""The balanced gradient at the price of about a plain one."""

import functools
import numbers
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from pcn_jax.arguments import of_arrays, take_out_arrays
from pcn_jax.checks import (
    check_choice,
    check_inputs,
    check_labels,
    check_params,
    describe,
)
from pcn_jax.class_gradients import (
    ClassValue,
    LossFn,
    losses_and_aux,
    per_class_value_and_grad,
)
from pcn_jax.counts import at_least_one
from pcn_jax.explicit_mesh import auto_sharded
from pcn_jax.fused import gradients, tracing
from pcn_jax.fused.axis_rules import NotProvenError, StatisticError
from pcn_jax.fused.class_layout import sort_by_class
from pcn_jax.geometry import (
    class_norms,
    scale_rows,
    sum_rows,
    unit_class_grads,
)
from pcn_jax.halves import half_products, split_halves
from pcn_jax.precision import widest_dtype
from pcn_jax.weighing import PCNValue, Weighing, class_statistics
from pcn_jax.weights import ClassStatistics, ClassWeights, StatefulClassWeights

GradientPath = Literal["fused", "frozen", "masked"]


class Plan(NamedTuple):
    """How a balanced gradient is computed; its text is for people.

    Attributes:
      path: `"fused"`, `"frozen"` or `"masked"`.
      reason: Why it is the masked one; empty on the other two.
      ways: On the other two, for each use of a parameter, its name and the way to its
        norms (see `pcn_jax.fused.plan.Choice`).

    Example:
      >>> print(Plan("fused", "", (("['w']", "pairs"), ("['bias']", "examples"))))
      ['w']     pairs
      ['bias']  examples
    """

    path: GradientPath
    reason: str
    ways: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        """One line a use of a parameter."""
        if self.path == "masked":
            return f"masked: {self.reason}"
        width = max(len(name) for name, _ in self.ways)
        lines = [f"{name:<{width}}  {way}" for name, way in self.ways]
        if self.path == "frozen":
            lines.insert(0, "frozen: norms with statistics of the batch held fixed")
        return "\n".join(lines)


PCNValueAndGrad = Callable[..., tuple[PCNValue, chex.ArrayTree]]


def pcn_value_and_grad(
    loss_fn: LossFn,
    num_classes: int,
    *,
    weights: ClassWeights | StatefulClassWeights | None = None,
    has_aux: bool = False,
    with_gramian: bool = False,
    path: GradientPath | None = None,
) -> PCNValueAndGrad:
    """Turns a per-example loss into a function for its balanced gradient.

        d = Σ_l w_l g_l,    w_l = 1 / ‖g_l‖

    Imitates `jax.value_and_grad`, and costs about as much under `jax.jit` (without it
    the loss is traced anew at each call): the class gradients `g_l` are measured,
    without a backward pass for each. What comes out is shaped like the parameters, so
    any optax optimizer follows it. It is what `per_class_value_and_grad`,
    `scale_by_class_norm` and `sum_over_classes` give together, with other weights what
    the other links give.

    Two paths lead there. The *fused* one looks into the loss function, and so has to
    see that examples do not interact in it. The *masked* one makes all class gradients,
    for about `(1 + 2C)/3` plain ones, and is always right.

    A third one has to be asked for, and is for batch normalisation. The *frozen* path
    is the fused one with statistics, such as the mean of the batch, held fixed while
    norms are taken. So these are not quite `‖g_l‖`; the direction is `Σ_l w_l g_l` of
    the true class gradients. It takes about two plain gradients.

    Args:
      loss_fn: `loss_fn(params, inputs, labels, *args, **kwargs)` returning losses
        `[B]`, or `(losses, aux)` if `has_aux`.
      num_classes: `C`.
      weights: From `ClassStatistics` to the weights `[C]`; `None` for
        `pcn_jax.weights.inverse_norm()`. Not differentiated; may be any function. Or
        `StatefulClassWeights`, such as `pcn_jax.weights.inverse_smoothed_norm(0.3)`.
      has_aux: Whether `loss_fn` returns `(losses, aux)`.
      with_gramian: Whether to compute the inner products of all class gradients, too.
      path: `"fused"`, `"frozen"` or `"masked"`; `None` for the fused one where it is
        proven to be right, and otherwise the masked one, with a warning.

    Returns:
      A function of `(params, inputs, labels, *args, **kwargs)`, where `labels` are
      integers `[B]` below `C`, those below zero being padding. It returns a `PCNValue`
      and the direction, a pytree like `params`. Three keywords are its own, and all
      others go to `loss_fn`; what that calls by one of these names goes by position:

      - `reference`: class gradients with leaves `[C, *param.shape]`, to measure
        `statistics.alignment` with.
      - `groups`: integers `[B]`, where examples are not to be grouped by their labels.
        `num_classes` is then the number of groups, and `labels` whatever `loss_fn`
        takes, examples first.
      - `state`, where the weights have one: `weights.init(C)` at first, then
        `value.state`.

    Raises:
      ValueError: At construction if `num_classes` is not a positive integer, `weights`
        no function or there is no such path. When called, if labels or groups are not
        integers `[B]` or one is `C` or more (under `jit`, where values are unknown,
        the direction becomes NaN instead); if inputs are not as many, losses or weights
        of another shape, or there are no examples; if a state or a reference is
        missing, of another shape or without use; if `path="fused"` and examples may
        interact, or `path="frozen"` and they may in more than a statistic.
      TypeError: When called, if a parameter is not of real floating point.

    Warning:
      A direction is that of its batch, and not a sum over parts of it. So do not
      average directions of micro-batches (`optax.MultiSteps`) or of devices (`pmean`
      under `jax.pmap` or `jax.shard_map`): there a class is normalised within each
      part. Over devices, jit it with a batch that is split over them; over
      micro-batches, use `pcn_jax.accumulate` and a chain.

      Not meant to be differentiated itself. Examples must be on the first axis of
      every input. In loops derivatives of your own (`jax.custom_vjp`) by parameters
      must be linear in the cotangent, as those of functions are: one that clips
      gradients clips something else there. Elsewhere it ends the proof.
      The fused path takes norms from inner products of examples where that is cheaper;
      a class whose examples cancel to rounding then takes a shorter step than 1.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> def squared_error(w, x, y):
      ...     return 0.5 * (x @ w - y) ** 2
      >>> x, y, w = jnp.eye(2), jnp.array([0, 1]), jnp.array([2.0, 4.0])
      >>> value, direction = pcn_value_and_grad(squared_error, num_classes=2)(w, x, y)
      >>> value.losses.tolist(), value.norms.tolist(), direction.tolist()
      ([2.0, 4.5], [1.0, 1.5], [1.0, 1.0])
      >>> optimizer = optax.adam(0.1)
      >>> updates, state = optimizer.update(direction, optimizer.init(w), w)

    References:
      Francazi et al., 2023, PCNGD and PCNSGD; that norms of sums of per-example
      gradients need no gradients: Goodfellow, `Efficient Per-Example Gradient
      Computations <https://arxiv.org/abs/1510.01799>`_, 2015.
    """
    weighing = Weighing.of(num_classes, weights, with_gramian)
    if path is not None:
        check_choice("path", path, GradientPath)

    def value_and_grad(
        params: chex.ArrayTree,
        inputs: Any,
        labels: jax.Array,
        *args: Any,
        groups: jax.Array | None = None,
        reference: chex.ArrayTree | None = None,
        state: Any = None,
        **kwargs: Any,
    ) -> tuple[PCNValue, chex.ArrayTree]:
        check_params(params)
        name = "labels" if groups is None else "groups"
        checked = functools.partial(
            check_labels, ndim=1, num_classes=num_classes, name=name
        )
        if groups is None:
            labels = groups = checked(labels)
        else:
            groups = checked(groups)
        check_inputs(inputs, len(groups), name=name)
        weighing.check_reference(reference, params)
        weighing.check_state(state)
        groups = split_halves(groups) if weighing.by_halves else groups
        losses_fn, arrays = _grouped(loss_fn, has_aux, args, kwargs)
        examples = _Examples(inputs, labels)
        given = jax.tree.map(_on_device, (params, examples, groups, *arrays))
        if path != "masked":
            try:
                traced = _trace(losses_fn, given, path)
            except NotProvenError as reason:
                _masked_instead(reason, path)
            else:
                return _fused(traced, given, weighing, reference, state)
        masked = per_class_value_and_grad(losses_fn, weighing.num_groups, has_aux=True)
        value, grads = masked(*given)
        return _masked(value, grads, weighing, reference, state)

    return auto_sharded(value_and_grad)


def pcn_plan(
    loss_fn: LossFn,
    num_classes: int,
    *,
    weights: ClassWeights | StatefulClassWeights | None = None,
    has_aux: bool = False,
    with_gramian: bool = False,
    path: GradientPath | None = None,
) -> Callable[..., Plan]:
    """Says how `pcn_value_and_grad` would compute a direction, without computing it.

    Args:
      loss_fn: As there.
      num_classes: As there.
      weights: As there.
      has_aux: As there.
      with_gramian: As there.
      path: As there, but none is refused: the plan says why it is the masked one.

    Returns:
      A function that takes what the one of `pcn_value_and_grad` takes, or the shapes of
      it, and returns a `Plan`; print it. A state may be left out.

    Example:
      >>> import jax.numpy as jnp
      >>> def squared_error(params, x, y):
      ...     return 0.5 * (x @ params["w"] + params["b"] - y) ** 2
      >>> params, x = {"w": jnp.ones(3), "b": jnp.zeros(())}, jnp.ones((4, 3))
      >>> print(pcn_plan(squared_error, 2)(params, x, jnp.array([0, 1, 1, 0])))
      ['w']  pairs
      ['b']  examples
    """
    weighing = Weighing.of(num_classes, weights, with_gramian)
    if path is not None:
        check_choice("path", path, GradientPath)

    def plan(
        params: chex.ArrayTree,
        inputs: Any,
        labels: Any,
        *args: Any,
        groups: Any = None,
        reference: Any = None,
        state: Any = None,
        **kwargs: Any,
    ) -> Plan:
        check_params(params)
        name = "labels" if groups is None else "groups"
        checked = functools.partial(check_labels, ndim=1, name=name)
        if groups is None:
            labels = groups = jax.eval_shape(checked, _with_dtype(labels))
        else:
            groups = jax.eval_shape(checked, _with_dtype(groups))
        check_inputs(inputs, len(groups), name=name)
        weighing.check_reference(reference, params)
        del state  # what it is does not matter
        if path == "masked":
            return Plan("masked", "it was asked for", ())
        losses_fn, arrays = _grouped(loss_fn, has_aux, args, kwargs)
        try:
            given = params, _Examples(inputs, labels), groups, *arrays
            traced = _trace(losses_fn, given, path)
        except NotProvenError as reason:
            return Plan("masked", str(reason), ())
        choices = gradients.choices_of(
            traced,
            min(weighing.num_groups, len(groups)),
            by_halves=weighing.by_halves,
            with_reference=reference is not None,
            with_gramian=with_gramian,
        )
        names = [
            jax.tree_util.keystr(key) or "params"
            for key, _ in jax.tree_util.tree_leaves_with_path(params)
        ]
        return Plan(
            "fused" if traced.statistics is None else "frozen",
            "",
            tuple(
                (", ".join(names[k] for k in used), str(choice))
                for used, choice in zip(tracing.params_of(traced), choices, strict=True)
            ),
        )

    return plan


def _on_device(x: Any) -> Any:
    """NumPy arrays as JAX takes them, so that float64 without x64 is float32."""
    return jnp.asarray(x) if isinstance(x, np.ndarray) else x


def _with_dtype(labels: Any) -> Any:
    return labels if hasattr(labels, "dtype") else np.asarray(labels)


class _Examples(NamedTuple):
    """What a batch has of each example."""

    inputs: Any
    labels: Any


def _grouped(
    loss_fn: LossFn, has_aux: bool, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[LossFn, list[Any]]:
    """The same loss, of groups where labels were, and the arrays that it takes besides.

    The labels are among its inputs, and all that is no array is put inside.
    """
    fixed, arrays = take_out_arrays(args, kwargs)

    def losses_fn(
        params: chex.ArrayTree, examples: _Examples, groups: jax.Array, *arrays: Any
    ) -> tuple[jax.Array, Any]:
        output = of_arrays(loss_fn, fixed)(params, *examples, *arrays)
        return losses_and_aux(output, groups.shape, has_aux=has_aux)

    return losses_fn, arrays


def _trace(
    losses_fn: LossFn, given: tuple[Any, ...], path: GradientPath | None
) -> tracing.Traced:
    """Understands a loss function, whose auxiliary output goes through a trace, too."""

    def checked(*arguments: Any) -> tuple[jax.Array, Any]:
        losses, aux = losses_fn(*arguments)
        for key, leaf in jax.tree_util.tree_leaves_with_path(aux):
            if not (hasattr(leaf, "dtype") or isinstance(leaf, numbers.Number)):
                raise ValueError(
                    "The auxiliary output must hold arrays, got "
                    f"{describe(leaf)} at aux{jax.tree_util.keystr(key)}: leave it "
                    "out, or pass path='masked'."
                )
        return losses, aux

    return tracing.trace(checked, *given, freeze=path == "frozen")


def _masked_instead(reason: NotProvenError, path: GradientPath | None) -> None:
    other = ""
    if isinstance(reason, StatisticError):
        other = " path='frozen' holds that fixed while it takes norms, and is faster."
    if path is not None:
        raise ValueError(
            f"The {path} path is not proven to be right here: {reason}. Use "
            f"path='masked', which always is.{other}"
        )
    warnings.warn(
        "pcn_value_and_grad makes all class gradients, which is slow: "
        f"{reason}. Pass path='masked' if that is what you want.{other}",
        stacklevel=4,  # behind value_and_grad and auto_sharded
    )


def _fused(
    traced: tracing.Traced,
    given: tuple[Any, ...],
    weighing: Weighing,
    reference: chex.ArrayTree | None,
    state: Any,
) -> tuple[PCNValue, chex.ArrayTree]:
    groups, num_groups = given[2], weighing.num_groups
    layout = sort_by_class(groups, num_groups, by_halves=weighing.by_halves)
    real = groups >= 0
    # Labels that could not be checked before must not pass silently: NaN.
    one = jnp.where(jnp.any(groups >= num_groups), jnp.nan, 1)
    if reference is not None:
        reference = jax.tree.map(layout.to_rows, unit_class_grads(reference)[0])
    measured = gradients.measure(
        traced,
        *given,
        seeds=jnp.where(real, one, 0),
        layout=layout,
        reference=reference,
        with_gramian=weighing.with_gramian,
    )
    dtype = widest_dtype(jax.tree.leaves(given[0]))  # as of class gradients
    norms, halves, gramian, alignment = jax.tree.map(
        lambda of_rows: layout.to_classes(of_rows).astype(dtype),
        (measured.norms, measured.halves, measured.gramian, measured.alignment),
    )
    if halves is not None:
        halves = halves[::2]
    if gramian is not None:
        gramian = layout.to_classes(gramian.T).T
    counts = layout.to_classes(layout.counts)
    losses = jnp.where(layout.members, measured.losses[None, :], 0).sum(axis=1)
    losses *= one.astype(losses.dtype)
    losses /= at_least_one(layout.counts).astype(losses.dtype)
    value, weights = weighing.weigh(
        layout.to_classes(losses),
        ClassStatistics(norms, counts, gramian, alignment),
        halves,
        measured.aux,
        state,
    )
    of_rows = jnp.where(layout.counts > 0, layout.to_rows(weights), 0)
    return value, measured.add_up(of_rows)


def _masked(
    value: ClassValue,
    grads: chex.ArrayTree,
    weighing: Weighing,
    reference: chex.ArrayTree | None,
    state: Any,
) -> tuple[PCNValue, chex.ArrayTree]:
    norms = class_norms(grads)
    halves = half_products(grads, norms) if weighing.by_halves else None
    statistics = class_statistics(
        grads,
        norms,
        value.counts,
        with_gramian=weighing.with_gramian,
        reference=reference,
    )
    balanced, weights = weighing.weigh(
        value.losses, statistics, halves, value.aux, state
    )
    direction = sum_rows(scale_rows(grads, weights))
    return balanced, optax.tree_utils.tree_cast_like(direction, grads)
