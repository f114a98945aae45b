"""The page on what `benchmarks.batch_norm` measured."""

from typing import Any

import numpy as np
from scipy import stats
from tabulate import tabulate

from pcn_jax.balanced import GradientPath

PATHS: tuple[GradientPath, ...] = ("masked", "frozen")
NO_BALANCE = "none"
RATES = 0.03, 0.1, 0.3, 1.0
"""Learning rates that are searched."""
BATCH = 64
"""Images in a batch whose gradient is timed."""

_TEXT = """# The frozen path, for batch normalisation

`python -m benchmarks.batch_norm`, {dates}, one core of {on}.

A ResNet-32 with batch normalisation. On the *masked* path all class gradients are
made. On the *frozen* one only their norms are taken, with the means and variances of
the batch held fixed; the direction is the sum of the true class gradients, with
weights from these norms.

## What it costs

One gradient of {batch} random images. *Ratio*: the median over {repeats} rounds of
its time over that of the plain gradient of the mean loss (*none*) in the same round,
with the 10 % and 90 % quantiles; of two calls in a row the second counted. The three
settings of malloc were [those advised](../balanced_gradient.md).

{times}

## How far the norms are off

Along a training by the masked path at a learning rate of 0.1 on scikit-learn's
digits, at steps 0, 1, 2, 4, 8 and so on up to {steps}. *Too long*: the norm with
statistics held fixed over the true one, of all classes in the batches. What is the same
for all classes does no harm: *uneven* is the largest of these ratios over the smallest
in a batch. *Cosine*: of the frozen direction with the masked one. Medians, and the
extremes.

{norms}

## What becomes of it

Test macro recall after {steps} steps, the mean over {seeds} seeds with its 95 %
interval (Student's t), and the same of the paired difference to the masked path.
*masked* and *frozen* clip at 0.1. Learning rates were chosen among
{rates} for each path, on validation data, with one other seed.

{recalls}
"""


def page(results: dict[str, dict[str, Any]]) -> str:
    """The page in the documentation.

    Args:
      results: What was measured.

    Returns:
      Markdown.
    """
    times, norms, recalls = [], [], []
    for name, found in results["times"].items():
        plain = np.array(found[NO_BALANCE]["ms"])
        for path in (NO_BALANCE, *PATHS):
            if path in found:
                ms, compile_time = np.array(found[path]["ms"]), found[path]["compile"]
                ratio = _spread(ms / plain, 2, (0.1, 0.5, 0.9))
                row = [name, path, f"{np.median(ms):.0f}", ratio]
                times.append([*row, f"{compile_time:.0f}"])
    for name, found in results["norms"].items():
        columns = ("too_long", 2), ("uneven", 2), ("cosine", 3)
        norms.append([name, *(_spread(found[x], digits) for x, digits in columns)])
    for name, found in results["recalls"].items():
        of_masked = np.array(found["masked"]["macro_recalls"])
        for path in (*PATHS, NO_BALANCE):
            each = np.array(found[path]["macro_recalls"])
            over = "" if path == "masked" else _interval(each - of_masked)
            recalls.append(
                [name, path, str(found[path]["rate"]), _interval(each), over]
            )
    every = [found for part in results.values() for found in part.values()]
    (steps,) = {found["steps"] for found in results["recalls"].values()}
    return _TEXT.format(
        dates=" and ".join(sorted({found["date"] for found in every})),
        on=" and ".join(sorted({found["on"] for found in every})),
        batch=BATCH,
        steps=steps,
        seeds=len(of_masked),
        repeats=len(plain),
        rates=", ".join(map(str, RATES)),
        times=_table(["images", "path", "ms", "ratio", "compile, s"], times),
        norms=_table(["set-up, batches", "too long", "uneven", "cosine"], norms),
        recalls=_table(
            ["set-up, batches", "path", "rate", "macro recall", "over masked"], recalls
        ),
    )


def _table(headers: list[str], rows: list[list[str]]) -> str:
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def _spread(
    values: Any, digits: int, quantiles: tuple[float, ...] = (0, 0.5, 1)
) -> str:
    low, middle, high = np.quantile(values, quantiles)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _interval(values: np.ndarray) -> str:
    """The mean, and the 95 % interval of Student's t."""
    mean, half = values.mean(), stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
    return f"{mean:.3f} [{mean - half:.3f}, {mean + half:.3f}]"
