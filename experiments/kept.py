"""Files that keep what was computed: whole or not at all, and of which code."""

import json
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def commit() -> str:
    """The commit that is checked out, or `unknown` outside of a repository."""
    found = subprocess.run(
        ["git", "rev-parse", "--short=8", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    return found.stdout.strip() or "unknown"


def write_rows(path: Path, head: Mapping[str, Any], rows: Iterable[Any]) -> None:
    """Writes a JSON file with one row a line.

    Args:
      path: Of the file.
      head: What it holds besides.
      rows: Its `rows`.
    """
    lines = ",\n".join(map(json.dumps, rows))
    write_whole(path, f'{json.dumps(head)[:-1]}, "rows": [\n{lines}\n]}}\n')


def write_whole(path: Path, text: str) -> None:
    """Writes a file, so that an interruption leaves the one that was there.

    Several processes may write the same one: the last has its way.

    Args:
      path: Of the file; its folder is made if it is not there.
      text: What it is to hold.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        partial = Path(folder, path.name)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
