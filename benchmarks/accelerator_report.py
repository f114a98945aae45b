"""The page of what was measured on an accelerator."""

from typing import Any

import numpy as np
from tabulate import tabulate

from benchmarks.report import NETS

_CASE = ("net", "batch", "classes")
_RATIOS = ("fused", "smoothed norm", "textbook")
_COSTS = (
    "plain, ms",
    "fused, ms",
    "ratio",
    "smoothed norm",
    "textbook",
    "of the limit, plain",
    "fused",
    "temporaries",
)
_FORCED = ("fused", "each", "groups", "masked", "pairs")
_TORCH = {
    "plain": "PyTorch: plain",
    "class loop": "a loop over classes",
    "torch.func vmap": "torch.func vmap",
    "torchjd autojac": "TorchJD autojac",
    "torchjd autogram": "TorchJD autogram",
}
_PAGE = """\
# What a balanced gradient costs on an accelerator

`python -m benchmarks.accelerator`, one {device}:

{measured}
{note}
Each method was a step in a compiled loop, in turn with the others, {rounds} rounds;
milliseconds are medians. *Plain* is the gradient of the mean loss, *fused*
`pcn_value_and_grad`, *ratio* the second over the first; likewise with the *smoothed
norm*, and *textbook*, one masked pass through the whole net a class. Labels are
long-tailed. Products of matrices and convolutions are rounded as JAX does by default
(GPUs of NVIDIA: to TF32). *Of the limit*: the least time there could be, over the
measured one: that of the operations of a plain gradient at the {flops:.0f} TFLOP/s of a
large product of matrices, or, if longer, that of its images and parameters, in and out,
at the {bandwidth:.1f} TB/s of a large copy. *Temporaries* are a multiple of the plain
gradient's. Nets: as in [What a balanced gradient costs](gradients.md). In the
[ResNet-32 with batch normalisation](batch_norm.md) examples interact: there *fused* is
`path="frozen"`, which holds the statistics fixed.

{costs}
"""
_PEERS = """
## Beside PyTorch

Milliseconds. PyTorch's methods ({described}) are called one after the other, as they
are in its training, and Python's part of a small step is longer than the device's; they
are rounded to TF32, too. What is empty was not measured.

{peers}
"""
_WAYS = """
## Ways to the norms

The ratio, where one way is forced at every matrix and convolution at which it can be
taken. *Each*: the gradients of all examples side by side; *groups*: those of groups of
examples in a loop; *masked*: at convolutions, one gradient a class, of a masked batch;
*pairs*: inner products of pairs of examples, where an example has up to 64 tokens or
positions. What is empty was not measured.

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
    costs, peers, forced = [], [], []
    nets = list(NETS)
    records = sorted(
        results["cases"].values(), key=lambda record: nets.index(record["case"]["net"])
    )
    for record in records:
        case, ms = record["case"], _medians(record)
        ratios = {name: f"{time / ms['plain']:.2f}" for name, time in ms.items()}
        shortest = 1000 * max(record["least"][k] / limits[k] for k in limits)
        memory = {
            name: record["methods"][name]["temporary_mb"] for name in ("plain", "fused")
        }
        named = [NETS[case["net"]], case["batch_size"], case["num_classes"]]
        costs.append(
            [
                *named,
                *(f"{ms[name]:.3f}" for name in ("plain", "fused")),
                *(ratios.get(name, "") for name in _RATIOS),
                *(f"{shortest / ms[name]:.2f}" for name in ("plain", "fused")),
                f"{memory['fused'] / memory['plain']:.1f}",
            ]
        )
        if "peers" in record:
            of_torch = _medians(record["peers"])
            times = [ms["plain"], ms["fused"], *map(of_torch.get, _TORCH)]
            peers.append([*named, *(f"{x:.3f}" if x else "" for x in times)])
        if "each" in ratios:
            forced.append([*named, *(ratios.get(name, "") for name in _FORCED)])
    text = _PAGE.format(
        device=results["device"],
        measured=_measured(records),
        note=results["note"],
        rounds=min(len(record["methods"]["plain"]["ms"]) for record in records),
        flops=limits["flops"] / 1e12,
        bandwidth=limits["bytes"] / 1e12,
        costs=_table(costs, [*_CASE, *_COSTS]),
    )
    if peers:
        of_peers = [record["peers"] for record in records if "peers" in record]
        described = " and ".join(sorted({_described(peer) for peer in of_peers}))
        head = ["plain", "fused", *_TORCH.values()]
        text += _PEERS.format(described=described, peers=_table(peers, [*_CASE, *head]))
    if forced:
        text += _WAYS.format(forced=_table(forced, [*_CASE, "as chosen", *_FORCED[1:]]))
    return text


def _medians(record: dict[str, Any]) -> dict[str, float]:
    """Milliseconds of each method."""
    return {k: float(np.median(x["ms"])) for k, x in record["methods"].items()}


def _measured(records: list[dict[str, Any]]) -> str:
    """A list of what was measured when, and of which code."""
    of_code: dict[str, list[str]] = {}
    for record in records:
        code = f"at {record['commit']}, {_described(record)}"
        name = f"{NETS[record['case']['net']]} {record['case']['batch_size']}"
        if name not in of_code.setdefault(code, []):
            of_code[code].append(name)
    return "\n".join(f"- {code}: {', '.join(x)}" for code, x in sorted(of_code.items()))


def _described(record: dict[str, Any]) -> str:
    versions = ", ".join(" ".join(x) for x in record["versions"].items())
    return f"{record['date']}, {versions}"


def _table(rows: list[list[Any]], head: list[str]) -> str:
    return tabulate(rows, head, "github", disable_numparse=True)
