"""The floors of the library: what imports what, and what every public name explains."""

import ast
import graphlib
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import pcn_jax

ROOT = Path(pcn_jax.__file__).parent
PACKAGES = ("pcn_jax", "experiments", "benchmarks")


def imports(path: Path) -> set[str]:
    """Dotted names of all that a file imports, also inside of its functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def parts_used_by(part: str) -> set[str]:
    """The modules and packages of the library that one of them imports."""
    files = [ROOT / f"{part}.py", *(ROOT / part).rglob("*.py")]
    names = set().union(*(imports(path) for path in files if path.exists()))
    return {name.split(".")[1] for name in names if name.startswith("pcn_jax.")}


UPPER = {"dynamics", "data", "models", "samplers", "training", "transforms"}
GROUND = sorted(
    path.stem
    for path in ROOT.iterdir()
    if (path.suffix == ".py" or (path / "__init__.py").exists())
    and path.stem not in UPPER | {"__init__"}
)


@pytest.mark.parametrize("part", GROUND)
def test_class_gradients_stand_on_the_ground(part: str) -> None:
    assert not parts_used_by(part) & UPPER


def test_there_is_a_ground() -> None:
    assert {"balanced", "class_gradients", "fused", "geometry"} <= set(GROUND)


def test_the_fused_path_knows_neither_chains_nor_the_paths_beside_it() -> None:
    assert parts_used_by("fused") <= {"fused", "counts", "precision"}


@pytest.mark.parametrize("part", ["samplers", "initial_drop"])
def test_samplers_and_drops_stand_by_themselves(part: str) -> None:
    assert (ROOT / f"{part}.py").exists()
    assert parts_used_by(part) <= {"checks"}


@pytest.mark.parametrize("part", ["transforms", "dynamics"])
def test_the_first_floor_knows_class_gradients_only(part: str) -> None:
    assert parts_used_by(part) & UPPER <= {part}


def test_nothing_in_the_library_imports_experiments_or_benchmarks() -> None:
    files = list(ROOT.rglob("*.py"))
    assert len(files) > 10
    for path in files:
        packages = {name.split(".")[0] for name in imports(path)}
        assert not packages & {"experiments", "benchmarks"}, path


def test_experiments_and_benchmarks_share_how_files_are_kept_and_nothing_else() -> None:
    for folder, other in ("benchmarks", "experiments"), ("experiments", "benchmarks"):
        files = list((ROOT.parent / folder).rglob("*.py"))
        assert files
        for path in files:
            shared = {name for name in imports(path) if name.startswith(other)}
            kept = folder == "benchmarks" and "experiments.kept."
            assert all(kept and name.startswith(kept) for name in shared), path


def test_importing_the_library_imports_none_of_the_extras() -> None:
    extras = {"flax", "sklearn", "tensorflow_datasets", "matplotlib", "tensorboardX"}
    command = (
        "import pcn_jax, sys; print(*{name.split('.')[0] for name in sys.modules})"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {"jax", "optax", "pcn_jax"} <= set(loaded)
    assert not extras & set(loaded)


def test_no_module_imports_what_imports_it() -> None:
    modules = {
        ".".join(path.relative_to(ROOT.parent).with_suffix("").parts): path
        for package in PACKAGES
        for path in (ROOT.parent / package).rglob("*.py")
    }
    assert "pcn_jax.training.config" in modules
    graph = {}
    for module, path in modules.items():
        found = imports(path)
        found |= {name.rpartition(".")[0] for name in found}
        graph[module] = found & modules.keys() - {module}
    graphlib.TopologicalSorter(graph).prepare()  # raises a CycleError


@pytest.mark.parametrize("name", pcn_jax.__all__)
def test_every_public_name_is_explained_by_an_example(name: str) -> None:
    documentation = getattr(pcn_jax, name).__doc__ or ""
    assert "Example:" in documentation
    assert ">>> " in documentation


def docstrings() -> Iterator[tuple[str, str]]:
    """Where each docstring of the library is, and its text without indentation."""
    explained = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, explained) and (text := ast.get_docstring(node)):
                yield f"{path.relative_to(ROOT)}: {getattr(node, 'name', '')}", text


# A line that ends in a colon and what is indented below it, blank lines included.
SECTION = re.compile(r"^(\S.*):\n( .*\n(?: .*\n|\n)*)", re.MULTILINE)
OF_ENTRIES = {"Args", "Attributes", "Raises"}
SECTIONS = OF_ENTRIES | {"Example", "References", "Returns", "Warning", "Yields"}


def test_all_docstrings_are_in_one_dialect() -> None:
    faults, texts = [], list(docstrings())
    assert len(texts) > 100
    for where, text in texts:
        outside_of_examples = text
        for name, body in SECTION.findall(f"{text}\n"):
            if name not in SECTIONS:
                faults.append((where, f"{name}: is none of {sorted(SECTIONS)}"))
            if name == "Example":
                outside_of_examples = outside_of_examples.replace(body.strip(), "")
                continue
            entries, begin = [textwrap.dedent(body).strip()], ""
            if name in OF_ENTRIES:
                entries, begin = re.split(r"\n+(?=\S)", entries[0]), r"\*{0,2}\w+: "
            # Entries begin with no small letter and end in a full stop.
            is_entry = re.compile(begin + r"[^a-z].*\.", re.DOTALL)
            faults += [(where, e) for e in entries if not is_entry.fullmatch(e)]
        if ">>>" in outside_of_examples:
            faults.append((where, ">>> without Example: before it"))
    assert not faults


def test_public_names_are_sorted() -> None:
    assert list(pcn_jax.__all__) == sorted(pcn_jax.__all__)
