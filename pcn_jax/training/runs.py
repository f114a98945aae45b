"""A run on disk: what it was, written first, and its measurements, line by line."""

import contextlib
import dataclasses
import importlib.metadata
import json
import math
import platform
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pcn_jax.training.measure import Record

_DESCRIPTION, _RECORDS, _UNFINISHED = "run.json", "metrics.jsonl", "metrics.jsonl.part"


@contextlib.contextmanager
def write_run(
    folder: Path, description: dict[str, Any], *, tensorboard: bool = False
) -> Iterator[Callable[[Record], None]]:
    """Opens a run for writing, and marks it as finished if nothing was raised.

    Writes `run.json` (the description, and the versions and device it ran on) and
    `metrics.jsonl` (a record a line; what is not finite is `null`). Until the end the
    latter is called `metrics.jsonl.part`, so a run that broke off is never taken for a
    finished one. A finished run of the same description is replaced.

    Args:
      folder: Folder of the run; made where it is missing.
      description: What decides the result: plain data, dataclasses and paths.
      tensorboard: Whether to write TensorBoard event files, too; needs no TensorFlow.

    Yields:
      A function that appends one record.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp()) / "run"
      >>> with write_run(folder, {"seed": 0}) as write:
      ...     write({"step": 0, "loss": [0.5, float("inf")]})
      >>> read_run(folder)
      [{'step': 0, 'loss': [0.5, nan]}]
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in (_RECORDS, _UNFINISHED):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    run = {"description": plain(description), "ran_on": environment()}
    (folder / _DESCRIPTION).write_text(json.dumps(run, indent=2) + "\n")
    with contextlib.ExitStack() as stack:
        lines = stack.enter_context(open(folder / _UNFINISHED, "w", encoding="utf-8"))
        scalars = _tensorboard(folder / "tensorboard", stack) if tensorboard else None

        def write(record: Record) -> None:
            lines.write(json.dumps(plain(record), allow_nan=False) + "\n")
            lines.flush()
            if scalars is not None:
                scalars(record)

        yield write
    (folder / _UNFINISHED).replace(folder / _RECORDS)


def read_run(folder: Path) -> list[Record]:
    """Reads the measurements of a finished run.

    Args:
      folder: Folder of the run.

    Returns:
      Its records, in order, where `null` becomes NaN.

    Raises:
      FileNotFoundError: If there is no finished run.
    """
    if not (folder / _RECORDS).exists():
        raise FileNotFoundError(f"There is no finished run in {folder}.")
    lines = (folder / _RECORDS).read_text(encoding="utf-8").splitlines()
    return [_with_nan(json.loads(line)) for line in lines]


def finished_description(folder: Path) -> Any:
    """The description of the finished run in a folder, or `None` if there is none."""
    if not (folder / _RECORDS).exists():
        return None
    return json.loads((folder / _DESCRIPTION).read_text())["description"]


def plain(x: Any) -> Any:
    """Turns dataclasses, paths, arrays and NaN into what JSON can hold.

    Args:
      x: Nested data.

    Returns:
      The same with dictionaries, lists, strings, numbers and `None` only.

    Example:
      >>> plain({"path": Path("a"), "counts": np.array([2, 1]), "loss": float("nan")})
      {'path': 'a', 'counts': [2, 1], 'loss': None}
    """
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        x = {field.name: getattr(x, field.name) for field in dataclasses.fields(x)}
    if isinstance(x, dict):
        return {str(key): plain(value) for key, value in x.items()}
    if isinstance(x, np.ndarray | np.generic):
        return plain(x.tolist())
    if isinstance(x, list | tuple):
        return [plain(value) for value in x]
    if isinstance(x, float) and not math.isfinite(x):
        return None
    return str(x) if isinstance(x, Path) else x


def environment() -> dict[str, Any]:
    """Versions and the device, to be kept with results.

    Returns:
      Names to strings.

    Example:
      >>> sorted(environment())[:3]
      ['device', 'flax', 'jax']
    """
    packages = ("pcn_jax", "jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
        "device": jax.devices()[0].device_kind,
    }


def _with_nan(x: Any) -> Any:
    if isinstance(x, dict):
        return {key: _with_nan(value) for key, value in x.items()}
    if isinstance(x, list):
        return [_with_nan(value) for value in x]
    return math.nan if x is None else x


def _tensorboard(folder: Path, stack: contextlib.ExitStack) -> Callable[[Record], None]:
    from tensorboardX import SummaryWriter  # noqa: PLC0415 — only where it is asked for

    writer = stack.enter_context(SummaryWriter(str(folder)))

    def scalars(record: Record) -> None:
        step = record["step"]
        for tag, value in _tagged({k: v for k, v in record.items() if k != "step"}):
            writer.add_scalar(tag, value, step)

    return scalars


def _tagged(x: Any, tag: str = "") -> Iterator[tuple[str, float]]:
    """Every number in a record under a name such as `test/recall/3`."""
    items = (
        x.items()
        if isinstance(x, dict)
        else enumerate(x)
        if isinstance(x, list)
        else ()
    )
    for key, value in items:
        yield from _tagged(value, f"{tag}/{key}" if tag else str(key))
    if not isinstance(x, dict | list):
        yield tag, x
