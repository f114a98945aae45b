"""Loops in which parameters meet examples: what is seen of them from outside."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from fused_losses import CASES, LABELS, NUM_CLASSES, SIZE, Case, cross_entropy
from loop_losses import OPENED, WHOLE, head

import pcn_jax
from pcn_jax.fused import tracing

ELSEWHERE = "['head']"
"""What all of these losses have, and not in a loop."""


def traced(case: Case) -> tracing.Traced:
    def losses(*given: Any) -> tuple[jax.Array, None]:
        return case.loss(*given), None

    labels = jnp.asarray(LABELS)
    return tracing.trace(losses, case.params, case.inputs, labels, *case.args)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "layers",
            {
                "['blocks']['mlp']['kernel']": "rows",
                "['blocks']['mlp']['bias']": "examples",
                "['blocks']['norm']['scale']": "examples",
                "['blocks']['norm']['shift']": "examples",
                "['blocks']['slope']": "masked",  # one number a layer
            },
        ),
        (
            "one layer again",
            {
                "['block']['mlp']['kernel']": "pairs",
                "['block']['mlp']['bias']": "examples",
                "['block']['norm']['scale']": "examples",
                "['block']['norm']['shift']": "examples",
                "['block']['slope']": "examples",
            },
        ),
        ("gated", {"['gate'], ['value']": "pairs", "['start']": "examples"}),
        ("kernel first", {"['inner']": "pairs", "['outer']": "rows"}),
        ("convolved", {"['kernels']": "masked", "['tables']": "masked"}),
    ],
)
def test_the_ways_are_those_of_products_outside(
    name: str, expected: dict[str, str]
) -> None:
    case = OPENED[name]
    plan = pcn_jax.pcn_plan(case.loss, NUM_CLASSES)(case.params, case.inputs, LABELS)
    ways = {
        parameter: way.split(",")[0]
        for parameter, way in plan.ways
        if ELSEWHERE not in parameter
    }
    assert ways == expected


@pytest.mark.parametrize("name", WHOLE)
def test_what_cannot_be_opened_takes_the_masked_path(name: str) -> None:
    case = WHOLE[name]
    plan = pcn_jax.pcn_plan(case.loss, NUM_CLASSES)(case.params, case.inputs, LABELS)
    assert plan.path == "masked"
    with pytest.warns(UserWarning, match="path='masked'"):
        jax.jit(pcn_jax.pcn_value_and_grad(case.loss, NUM_CLASSES))(
            case.params, case.inputs, LABELS
        )


def test_a_loop_returns_no_more_than_is_needed() -> None:
    """What is added up has one gradient, and what is scanned is known already."""
    found = traced(CASES["recurrent"])
    in_loop = [site for site in found.sites if site.out_axes == (1,)]
    assert [site.kind for site in in_loop] == ["dense", "elementwise", "dense"]
    assert len({site.equation.outputs for site in in_loop}) == 1
    (loop,) = (x for x in found.program.equations if x.primitive == "scan")
    stacks = [found.program.shape(slot) for slot in loop.outputs]
    assert stacks == [(SIZE, 5), (4, SIZE, 5), (4, SIZE, 5)]  # the last state, all, h@w


def test_values_whose_parts_are_added_share_their_cotangents() -> None:
    case = OPENED["parts added"]
    names = [jax.tree_util.keystr(x) for x, _ in jax.tree.leaves_with_path(case.params)]
    found = traced(case)
    outputs = {
        names[used[0]]: site.equation.outputs
        for site, used in zip(found.sites, tracing.params_of(found), strict=True)
    }
    assert outputs["['p']"] == outputs["['q']"]
    assert outputs["['r']"] != outputs["['s']"]  # crosswise


@pytest.mark.parametrize(
    ("name", "expected"), [("layers", False), ("one layer again", True)]
)
def test_what_a_step_would_compute_again_is_not_kept(name: str, expected: bool) -> None:
    case = OPENED[name]
    function = pcn_jax.pcn_value_and_grad(case.loss, NUM_CLASSES, path="fused")
    jaxpr = jax.make_jaxpr(function)(case.params, case.inputs, LABELS)
    named = any(name in str(jaxpr) for name in ("remat", "checkpoint"))
    assert named is expected  # in the pass back, by the name that JAX has for it


def measured_layers(params: Any, x: jax.Array, y: jax.Array) -> Any:
    """The loop also returns, and carries, what is taken over all examples."""

    def step(carry: Any, w: jax.Array) -> Any:
        h, total = carry
        h = jnp.tanh(h @ w)
        return (h, total + h.std(axis=0) + (w * w).sum()), (jnp.abs(h).mean(), h)

    start = x[:, 0], jnp.zeros(x.shape[2], x.dtype)
    (last, total), (means, states) = jax.lax.scan(step, start, params["w"])
    return head(params, last + states[0], y), {
        "total": total,
        "means": means,
        "states": states,
    }


def test_examples_may_meet_in_what_loops_return_for_the_auxiliary_output() -> None:
    case = OPENED["masked steps"]
    given = case.params, case.inputs, jnp.asarray(LABELS)
    options: Any = {"num_classes": NUM_CLASSES, "has_aux": True}
    plan = pcn_jax.pcn_plan(measured_layers, **options)(*given)
    assert dict(plan.ways)["['w']"].startswith("rows")
    fused, masked = (
        jax.jit(pcn_jax.pcn_value_and_grad(measured_layers, path=path, **options))(
            *given
        )
        for path in ("fused", "masked")
    )
    chex.assert_trees_all_close(fused, masked, atol=1e-5)

    def of_the_total(*given: Any) -> jax.Array:
        losses, aux = measured_layers(*given)
        total: jax.Array = losses + aux["total"].sum()
        return total

    assert pcn_jax.pcn_plan(of_the_total, NUM_CLASSES)(*given).path == "masked"


def test_what_loops_print_is_printed() -> None:
    case = OPENED["masked steps"]
    seen: list[Any] = []

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        def step(h: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
            h = jnp.tanh(h @ w)
            jax.debug.callback(seen.append, h)
            return h, None

        last, _ = jax.lax.scan(step, x[:, 0], params["w"])
        return head(params, last, y)

    function = pcn_jax.pcn_value_and_grad(loss, NUM_CLASSES, path="fused")
    jax.block_until_ready(jax.jit(function)(case.params, case.inputs, LABELS))
    jax.effects_barrier()
    assert [h.shape for h in seen] == [case.inputs[:, 0].shape] * len(case.params["w"])


def test_layers_in_bfloat16() -> None:
    case = OPENED["layers"]
    with jax.numpy_dtype_promotion("standard"):
        params, inputs = jax.tree.map(
            lambda x: x.astype(jnp.bfloat16), (case.params, case.inputs)
        )
        directions = [
            jax.jit(pcn_jax.pcn_value_and_grad(case.loss, NUM_CLASSES, path=path))(
                params, inputs, LABELS
            )[1]
            for path in ("fused", "masked")
        ]
    for fused, masked in zip(*map(jax.tree.leaves, directions), strict=True):
        assert fused.dtype == masked.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(fused), np.float32(masked), atol=0.03)


def test_loops_of_flax() -> None:
    """Layers that are scanned, and a recurrent one: no parameter inside is masked."""

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return x + nn.Dense(6)(nn.gelu(nn.LayerNorm()(x))), None

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            layers = nn.scan(
                Layer,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=3,
            )
            x, _ = layers()(x, None)
            states: Any = nn.RNN(nn.OptimizedLSTMCell(5))(x)
            return nn.Dense(NUM_CLASSES)(states.mean(axis=1))

    model, inputs = Model(), CASES["recurrent"].inputs
    params = model.init(jax.random.key(0), inputs)

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        logits: Any = model.apply(params, x)
        return cross_entropy(logits, y)

    plan = pcn_jax.pcn_plan(loss, NUM_CLASSES)(params, inputs, LABELS)
    assert {way.split(",")[0] for _, way in plan.ways} <= {"rows", "pairs", "examples"}
    directions = [
        jax.jit(pcn_jax.pcn_value_and_grad(loss, NUM_CLASSES, path=path))(
            params, inputs, LABELS
        )[1]
        for path in ("fused", "masked")
    ]
    chex.assert_trees_all_close(*directions, atol=1e-5)
