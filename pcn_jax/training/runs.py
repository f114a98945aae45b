"""A run on disk: what it was and its measurements, published when it is finished."""

import contextlib
import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
from flax import serialization

from pcn_jax.training.measure import Record
from pcn_jax.training.state import Keep, TrainState

if sys.platform != "win32":
    import fcntl

_DESCRIPTION, _RECORDS = "run.json", "metrics.jsonl"
_TENSORBOARD = "tensorboard"


@dataclass(frozen=True)
class RunWriter:
    """Writes an unfinished run: called with a record, it appends that."""

    _folder: Path
    _append: Callable[[Record], None]

    def __call__(self, record: Record) -> None:
        """Appends a record to `metrics.jsonl`."""
        self._append(record)

    def save_params(self, state: TrainState, keep: Keep = "last") -> None:
        """Writes parameters and model state, as `flax.serialization` reads them.

        Args:
          state: Whose `params` and `model_state` are written.
          keep: Which state that is; they go to `last_params.msgpack` or
            `best_params.msgpack`.
        """
        saved = {"params": state.params, "model_state": state.model_state}
        params_path(self._folder, keep).write_bytes(serialization.to_bytes(saved))


@contextlib.contextmanager
def write_run(
    folder: Path, description: dict[str, Any], *, tensorboard: bool = False
) -> Iterator[RunWriter]:
    """Opens a run for writing, and publishes it if nothing was raised.

    Writes `run.json` (the description, and the versions and device it ran on) and
    `metrics.jsonl` (a record a line; what is not finite is `null`). Until the end they
    are in a folder of their own in `folder`, `unfinished-...`, where a run that broke
    off, or has no records, leaves them; a note to what was raised says where. So that
    is never taken for a finished one, several processes may write the same run, and one
    that is there, of whatever description, is replaced by a whole one only.

    Args:
      folder: Folder of the run; made where it is missing.
      description: What decides the result: plain data, dataclasses and paths.
      tensorboard: Whether to write TensorBoard event files, too; needs no TensorFlow.

    Yields:
      A `RunWriter`: a function that appends one record, and can save parameters.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp()) / "run"
      >>> with write_run(folder, {"seed": 0}) as write:
      ...     write({"step": 0, "loss": [0.5, float("inf")]})
      >>> read_run(folder)
      [{'step': 0, 'loss': [0.5, nan]}]
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix="unfinished-", dir=folder))
    run = {"description": plain(description), "ran_on": environment()}
    (partial / _DESCRIPTION).write_text(json.dumps(run, indent=2) + "\n")
    with _noting(partial), contextlib.ExitStack() as stack:
        lines = stack.enter_context(open(partial / _RECORDS, "w", encoding="utf-8"))
        scalars = _tensorboard(partial / _TENSORBOARD, stack) if tensorboard else None

        def append(record: Record) -> None:
            record = plain(record)
            lines.write(json.dumps(record, allow_nan=False) + "\n")
            lines.flush()
            if scalars is not None:
                scalars(record)

        yield RunWriter(partial, append)
    if (partial / _RECORDS).stat().st_size:
        _publish(partial, folder)


@contextlib.contextmanager
def _noting(partial: Path) -> Iterator[None]:
    """Has whatever breaks a run off say where its measurements are."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"What was measured before is in {partial}.")
        raise


def _publish(partial: Path, folder: Path) -> None:
    """Replaces the run in a folder: the records go first and come last."""
    params = [params_path(partial, keep).name for keep in get_args(Keep)]
    with _locked(folder):
        for name in (_RECORDS, *params):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / _TENSORBOARD, ignore_errors=True)
        for name in (_DESCRIPTION, *params, _TENSORBOARD, _RECORDS):
            if (partial / name).exists():
                (partial / name).replace(folder / name)
        partial.rmdir()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps other processes waiting; a lock ends with the process that holds it."""
    if sys.platform == "win32":  # which cannot lock folders
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def params_path(folder: Path, keep: Keep) -> Path:
    """Where `RunWriter.save_params` writes.

    Args:
      folder: Folder of the run.
      keep: Which state is meant.
    """
    return folder / f"{keep}_params.msgpack"


def read_run(folder: Path) -> list[Record]:
    """Reads the measurements of a finished run.

    Args:
      folder: Folder of the run.

    Returns:
      Its records, in order, where `null` becomes NaN.

    Raises:
      FileNotFoundError: If there is no finished run.
      ValueError: If its records cannot be read, or there are none.
    """
    path = folder / _RECORDS
    if not path.exists():
        raise FileNotFoundError(f"There is no finished run in {folder}.")
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            records.append(_with_nan(json.loads(line)))
        except ValueError as error:
            raise ValueError(
                f"{path} is broken in line {number} ({error}): write the run again."
            ) from error
    if not records:
        raise ValueError(f"{path} holds no records: write the run again.")
    return records


def finished_description(folder: Path) -> Any:
    """The description of the finished run in a folder, or `None` if there is none.

    Args:
      folder: Folder of the run.

    Returns:
      Plain data; `None` also where there are no records.

    Raises:
      ValueError: If the description or the records cannot be read.
    """
    records, path = folder / _RECORDS, folder / _DESCRIPTION
    if not records.exists() or not records.stat().st_size:
        return None
    read_run(folder)  # what cannot be read is not finished either
    try:
        return json.loads(path.read_text(encoding="utf-8"))["description"]
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} does not say what the run was ({error!r}): write the run again."
        ) from error


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
    if isinstance(x, jax.Array | np.ndarray | np.generic):
        return plain(np.asarray(x).tolist())
    if isinstance(x, list | tuple):
        return [plain(value) for value in x]
    if isinstance(x, float) and not math.isfinite(x):
        return None
    return str(x) if isinstance(x, Path) else x


def environment() -> dict[str, Any]:
    """Versions, the device and the processor, to be kept with results.

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
        "processor": processor(),
    }


def processor() -> str:
    """The name of the processor, on which it depends how sums are rounded."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return models[0] if models else platform.processor()


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
    if isinstance(x, int | float):
        yield tag, x
