"""What the benchmarks say is what was measured."""

import json
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pcn_jax
from benchmarks import accelerator, batch_norm_report
from benchmarks.accelerator_report import page
from benchmarks.cases import Case, Net, cases, least
from benchmarks.report import draw

DOCS = Path(__file__).parent.parent / "docs" / "benchmarks"


@pytest.mark.parametrize("folder", [DOCS, DOCS / "two_cores"])
def test_the_table_is_made_from_the_results(folder: Path, tmp_path: Path) -> None:
    results = json.loads((folder / "gradients.json").read_text(encoding="utf-8"))
    draw(results, tmp_path)
    table = (tmp_path / "gradients.md").read_text(encoding="utf-8")
    assert table == (folder / "gradients.md").read_text(encoding="utf-8")
    assert (tmp_path / "gradients.png").stat().st_size > 10_000


def test_every_case_was_measured() -> None:
    results = json.loads((DOCS / "gradients.json").read_text(encoding="utf-8"))
    wanted = cases(get_args(Net), (2, 10, 100, 1000))
    assert set(results["cases"]) == {case.name for case in wanted}


@pytest.mark.parametrize("labels", ["balanced", "long-tailed"])
def test_the_labels_of_a_case(labels: str) -> None:
    case = Case("mlp", 10, 1000, labels)  # type: ignore[arg-type]
    counts = np.bincount(case.classes, minlength=10)
    again = Case("mlp", 10, 1000, labels)  # type: ignore[arg-type]
    np.testing.assert_array_equal(case.classes, again.classes)
    if labels == "balanced":
        assert set(counts) == {100}
    else:
        assert counts[0] > 350
        assert 0 < counts[-1] < 20


def test_the_page_on_batch_normalisation_is_made_from_the_results() -> None:
    results = json.loads((DOCS / "batch_norm.json").read_text(encoding="utf-8"))
    written = (DOCS / "batch_norm.md").read_text(encoding="utf-8")
    assert batch_norm_report.page(results) == written


class TestAccelerator:
    """What runs on an accelerator, as far as a CPU can tell."""

    def test_the_page_is_made_from_the_results(self) -> None:
        results = json.loads((DOCS / "accelerator.json").read_text(encoding="utf-8"))
        written = (DOCS / "accelerator.md").read_text(encoding="utf-8")
        assert page(results) == written

    def test_times_of_another_device_are_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "accelerator.json"
        path.write_text('{"device": "another"}')
        with pytest.raises(SystemExit, match="times of another, and this is cpu"):
            accelerator.kept_of_this_device(path)

    def test_a_loop_repeats_the_step_that_it_is_given(self) -> None:
        def loss(w: jax.Array, x: jax.Array, y: jax.Array) -> Any:
            return optax.softmax_cross_entropy_with_integer_labels(x @ w, y)

        method = pcn_jax.pcn_value_and_grad(loss, 3)
        given = jnp.ones((4, 3)), jnp.arange(20.0).reshape(5, 4), jnp.arange(5) % 3
        run = jax.jit(accelerator.in_a_loop(method))
        unmoved, gradient = run(*given, 3, 0.0)
        np.testing.assert_array_equal(unmoved, given[0])
        np.testing.assert_allclose(gradient, jax.jit(method)(*given)[1], rtol=1e-5)
        moved, _ = run(*given, 1, 0.5)
        np.testing.assert_allclose(moved, given[0] - 0.5 * gradient, rtol=1e-5)

    def test_ways_are_forced_where_they_can_be_taken(self) -> None:
        case = Case("cnn", 2, 4, "long-tailed")
        lowered = accelerator.lower_all(case, ways=True)
        taken = {name: "; ".join(ways) for name, (_, _, ways) in lowered.items()}
        paths = {"plain", "fused", "smoothed norm", "textbook"}
        assert set(taken) == paths | set(accelerator.WAYS)
        assert taken["plain"] == taken["textbook"] == ""
        assert taken["each"].count("rows, 4 at once") == 3
        assert taken["masked"].count("masked") == 2  # convolutions only
        assert "pairs" in taken["pairs"]

    def test_what_a_gradient_needs(self) -> None:
        """A dense layer multiplies and adds as often forwards as for its weights."""
        found = least(Case("narrow", 2, 64, "balanced"))
        weights = [3072 * 32, 32 * 32, 32 * 2]
        flops = 2 * 64 * (3 * sum(weights) - weights[0])
        assert flops < found["flops"] < 1.02 * flops
        parameters = sum(weights) + 32 + 32 + 2
        assert found["bytes"] == 4 * (2 * parameters + 64 * 3072 + 64)
