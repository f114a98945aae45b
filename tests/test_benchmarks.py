"""What the benchmarks say is what was measured."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.cases import Case, cases
from benchmarks.report import draw

DOCS = Path(__file__).parent.parent / "docs" / "benchmarks"


def test_the_table_is_made_from_the_results(tmp_path: Path) -> None:
    results = json.loads((DOCS / "gradients.json").read_text(encoding="utf-8"))
    draw(results, tmp_path)
    table = (tmp_path / "gradients.md").read_text(encoding="utf-8")
    assert table == (DOCS / "gradients.md").read_text(encoding="utf-8")
    assert (tmp_path / "gradients.png").stat().st_size > 10_000


def test_every_case_was_measured() -> None:
    results = json.loads((DOCS / "gradients.json").read_text(encoding="utf-8"))
    wanted = cases(("mlp", "narrow", "cnn", "wide", "resnet18"), (2, 10, 100, 1000))
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
