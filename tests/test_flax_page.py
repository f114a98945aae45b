"""The models of docs/flax.md train as they stand there."""

import re
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pcn_jax

PAGE = Path(__file__).parent.parent / "docs" / "flax.md"
LINEN, BATCH_NORM, NNX = re.findall(
    r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL
)
LABELS = np.repeat(np.arange(10), 10)
INPUTS = np.eye(10, dtype=np.float32)[LABELS]


@pytest.fixture(autouse=True)
def _allow_promotion() -> Any:
    with jax.numpy_rank_promotion("allow"):
        yield


def run(block: str) -> Any:
    names: dict[str, Any] = {}
    exec(compile(block, PAGE.name, "exec"), names)
    return type("Script", (), names)


def assert_as_by_class_gradients(
    script: Any, value: Any, params: Any, *given: Any, exact: bool = True
) -> None:
    """The last step, to `params`, went along the weighted sum of class gradients."""
    has_aux = value.aux is not None
    per_class = pcn_jax.per_class_value_and_grad(script.loss_fn, 10, has_aux=has_aux)
    expected, grads = jax.jit(per_class)(*given)
    chex.assert_trees_all_close(value.losses, expected.losses, rtol=1e-5)
    moved = jax.tree.map(
        lambda p, g: p - 0.1 * jnp.tensordot(1 / value.norms, g, 1), given[0], grads
    )
    longer = value.norms / pcn_jax.class_norms(grads)
    assert jnp.all(longer > 1 - 1e-4)
    assert jnp.all(longer < (1 + 1e-4 if exact else 2)), longer
    chex.assert_trees_all_close(params, moved, atol=1e-5)


def test_linen_with_dropout() -> None:
    script = run(LINEN)
    params = script.model.init(jax.random.key(0), INPUTS, train=False)["params"]
    opt_state = script.optimizer.init(params)
    for number in range(30):
        key = jax.random.fold_in(jax.random.key(1), number)
        given = params, INPUTS, LABELS, key
        params, opt_state, value = script.step(params, opt_state, *given[1:])
    assert_as_by_class_gradients(script, value, params, *given)
    assert jnp.all(value.losses < 0.5 * jnp.log(10))


@pytest.mark.parametrize("path", ["frozen", "masked"])
def test_linen_with_batch_normalisation(path: str) -> None:
    assert 'path="frozen"' in BATCH_NORM
    script = run(BATCH_NORM.replace("frozen", path))
    variables = script.model.init(jax.random.key(0), INPUTS, train=False)
    params, stats = variables["params"], variables["batch_stats"]
    opt_state = script.optimizer.init(params)
    # In the end class gradients are as small as what rounding makes of them.
    exact, checked = path == "masked", {"masked": 29, "frozen": 9}[path]
    for number in range(30):
        given = params, INPUTS, LABELS, stats
        params, stats, opt_state, value = script.step(
            params, stats, opt_state, *given[1:3]
        )
        if number == checked:
            assert_as_by_class_gradients(script, value, params, *given, exact=exact)
    chex.assert_trees_all_close(stats, script.loss_fn(*given)[1], rtol=1e-5)
    logits = script.model.apply(
        {"params": params, "batch_stats": stats}, INPUTS, train=False
    )
    assert jnp.mean(jnp.argmax(logits, axis=1) == LABELS) == 1


def test_nnx() -> None:
    script = run(NNX)
    params, rest = script.params, script.rest
    opt_state = script.optimizer.init(params)
    seen = []
    for _ in range(30):
        given = params, INPUTS, LABELS, rest
        params, rest, opt_state, value = script.step(
            params, rest, opt_state, *given[1:3]
        )
        seen.append(int(jax.tree.leaves(rest)[0].item()))
    assert_as_by_class_gradients(script, value, params, *given)
    assert len(set(seen)) == 30  # another mask each step
    nnx.update(script.model, params, rest)
    script.model.eval()
    assert jnp.mean(jnp.argmax(script.model(INPUTS), axis=1) == LABELS) == 1
