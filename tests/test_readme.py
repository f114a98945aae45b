"""What the README shows runs as it stands."""

import re
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def run(block: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), names)
    return names


def test_the_training_script_learns_every_class() -> None:
    with jax.numpy_rank_promotion("allow"):
        labels = np.repeat(np.arange(10), np.arange(10, 0, -1))
        params = {"w": jnp.zeros((10, 10)), "b": jnp.zeros(10)}
        _, value = run(BLOCKS[0])["train"](params, np.eye(10)[labels], labels, 30)
    assert value.counts.tolist() == [10] * 10
    assert jnp.all(value.losses < 0.5 * jnp.log(10))


def test_the_chain_takes_the_same_step() -> None:
    with jax.numpy_rank_promotion("allow"):
        script, chain = run(BLOCKS[0]), run(BLOCKS[1])
        inputs, labels = jnp.eye(10), jnp.arange(10) // 2
        params = {"w": jnp.zeros((10, 10)), "b": jnp.zeros(10)}
        expected, _, _ = script["step"](
            params, script["optimizer"].init(params), inputs, labels
        )
        found, _ = chain["update"](
            script["loss_fn"], params, chain["optimizer"].init(params), inputs, labels
        )
    chex.assert_trees_all_close(found, expected, atol=1e-6)


def test_the_training_script_in_python_records() -> None:
    assert [record["step"] for record in run(BLOCKS[2])["records"]][-1] == 20


@pytest.mark.parametrize("target", re.findall(r"\]\(((?!http)[^)#]+)\)", README))
def test_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()
