"""How a worker is spoken to: one JSON object a line, answered with one.

It imports nothing that only one of the workers' environments has.
"""

import json
import sys
from collections.abc import Callable
from typing import Any, Protocol


class Prepared(Protocol):
    """A case, ready to be run."""

    def describe(self) -> dict[str, Any]:
        """Facts about each method, the number of parameters and versions."""

    def run(self, name: str) -> float:
        """Milliseconds of one method."""


def answer(prepare: Callable[[dict[str, Any]], Prepared]) -> None:
    """Answers until there is nothing more to read.

    Args:
      prepare: From a request with `do="prepare"` to what runs its methods.
    """
    prepared: Prepared | None = None
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "prepare":
            prepared = None  # frees the last one
            prepared = prepare(request)
            result = prepared.describe()
        else:
            assert prepared is not None
            result = {"ms": prepared.run(request["method"])}
        print(json.dumps(result), flush=True)
