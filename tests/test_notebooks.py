"""Notebooks run from top to bottom, are stored clean, and are what docs/ shows."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> dict[str, Any]:
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return notebook


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@every_notebook
def test_runs(path: Path, tmp_path: Path) -> None:
    # In a process of its own: what Jupyter warns of is not an error here.
    command = [sys.executable, "-m", "jupyter", "nbconvert", "--to", "notebook"]
    run = subprocess.run(
        [*command, "--execute", "--output-dir", tmp_path, path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    executed = read(tmp_path / path.name)
    outputs = [
        output for cell in executed["cells"] for output in cell.get("outputs", ())
    ]
    assert not [output for output in outputs if output.get("name") == "stderr"]


@every_notebook
def test_is_stored_clean(path: Path) -> None:
    notebook = read(path)
    assert list(notebook["metadata"]) == ["kernelspec"]
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    for cell in notebook["cells"]:
        assert not cell["metadata"]
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@every_notebook
def test_the_page_in_docs_is_of_this_notebook(path: Path) -> None:
    page = (ROOT / "docs" / f"{path.stem}.md").read_text(encoding="utf-8")
    for cell in read(path)["cells"]:
        assert "".join(cell["source"]) in page, "make notebooks renews the page"
