"""Which kind of loop is fast: XLA compiles convolutions inside loops badly on CPU.

On GPU and TPU a `lax.scan` keeps the device busy without a round trip to Python. On
CPU the same convolution runs 10 to 150 times slower inside a `while` loop than outside
of one, so there a Python loop of jitted calls is the fast one.
"""

from typing import Literal

import jax

Loop = Literal["python", "scan"]


def resolve_loop(loop: Loop | None) -> Loop:
    """Returns `loop`, or the kind that suits the default backend if it is `None`.

    Args:
      loop: `"python"` (a Python loop over jitted calls), `"scan"` (one compiled loop)
        or `None` (`"python"` on CPU, `"scan"` elsewhere).

    Returns:
      `"python"` or `"scan"`.

    Raises:
      ValueError: If `loop` is something else.
    """
    if loop is None:
        return "python" if jax.default_backend() == "cpu" else "scan"
    if loop not in ("python", "scan"):
        raise ValueError(f"loop must be 'python', 'scan' or None, got {loop!r}.")
    return loop
