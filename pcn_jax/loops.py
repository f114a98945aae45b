"""Which kind of loop over steps or micro-batches is fast.

On GPU and TPU a `lax.scan` keeps the device busy without a round trip to Python. On
CPU the same convolution runs 10 to 150 times slower inside a `while` loop than outside
of one, so there a Python loop of jitted calls is the fast one.
"""

from typing import Literal

import jax

from pcn_jax.checks import check_choice

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
    check_choice("loop", loop, Loop)
    return loop
