"""The page of what was measured on an accelerator."""

from typing import Any

import numpy as np
from tabulate import tabulate

from benchmarks.report import NETS

_CASE = ("net", "batch", "classes")
_FORCED = ("fused", "each", "groups", "masked", "pairs", "textbook")
_PAGE = """\
# What a balanced gradient costs on an accelerator

`python -m benchmarks.accelerator`, {date}, one {device}, {described}.
{note}

Each method was a step in a compiled loop, in turn with the others, {rounds} rounds;
milliseconds are medians. *Plain* is the gradient of the mean loss, *fused*
`pcn_value_and_grad`, and *ratio* the second over the first. Labels are long-tailed.
Products of matrices and convolutions are rounded as JAX does by default (GPUs of
NVIDIA: to TF32). *Of the limit*: the least time there could be, over the measured one:
that of the operations of a plain gradient at the {flops:.0f} TFLOP/s of a large product
of matrices, or, if longer, that of its images and parameters, in and out, at the
{bandwidth:.1f} TB/s of a large copy. *Temporaries* are a multiple of the plain
gradient's. Nets: as in [What a balanced gradient costs](gradients.md).

{costs}

## Ways to the norms

The ratio, where one way is forced at every matrix and convolution at which it can be
taken. *Each*: the gradients of all examples side by side; *groups*: those of groups of
examples in a loop; *masked*: at convolutions, one gradient a class, of a masked batch;
*pairs*: inner products of pairs of examples, where an example has up to 64 tokens or
positions. *Textbook*: one masked pass through the whole net a class. What is empty was
not measured.

{forced}
"""


def page(results: dict[str, Any]) -> str:
    """The page of what was measured.

    Args:
      results: As kept.

    Returns:
      Markdown.
    """
    limits = results["limits"]
    costs, forced = [], []
    for record in results["cases"].values():
        case, methods = record["case"], record["methods"]
        ms = {name: float(np.median(facts["ms"])) for name, facts in methods.items()}
        ratios = {name: f"{time / ms['plain']:.2f}" for name, time in ms.items()}
        shortest = 1000 * max(record["least"][k] / limits[k] for k in limits)
        memory = {name: facts["temporary_mb"] for name, facts in methods.items()}
        named = [NETS[case["net"]], case["batch_size"], case["num_classes"]]
        costs.append(
            [
                *named,
                *(f"{ms[name]:.3f}" for name in ("plain", "fused")),
                ratios["fused"],
                *(f"{shortest / ms[name]:.2f}" for name in ("plain", "fused")),
                f"{memory['fused'] / memory['plain']:.1f}",
            ]
        )
        if len(methods) > 2:
            forced.append([*named, *(ratios.get(name, "") for name in _FORCED)])
    of_costs = "plain, ms|fused, ms|ratio|of the limit, plain|fused|temporaries"
    return _PAGE.format(
        **results,
        described=", ".join(" ".join(x) for x in results["versions"].items()),
        flops=limits["flops"] / 1e12,
        bandwidth=limits["bytes"] / 1e12,
        costs=_table(costs, [*_CASE, *of_costs.split("|")]),
        forced=_table(forced, [*_CASE, "as chosen", *_FORCED[1:]]),
    )


def _table(rows: list[list[Any]], head: list[str]) -> str:
    return tabulate(rows, head, "github", disable_numparse=True)
