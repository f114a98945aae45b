"""Imports what only the data sets need, at the moment they need it."""

import importlib
from typing import Any


def import_data_extra(module: str) -> Any:
    """The module of this name, of those the `data` extra installs.

    Raises:
      ModuleNotFoundError: If it is not installed, with the command that installs it.

    Example:
      >>> import_data_extra("no_such_module")
      Traceback (most recent call last):
          ...
      ModuleNotFoundError: no_such_module is not installed: `pip install ...`.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is not installed: `pip install 'pcn_jax[data]'`.",
            name=error.name,
        ) from error
